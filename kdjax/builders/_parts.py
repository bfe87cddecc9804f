"""The parts of an experiment, each made from its section of the config."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from kdjax import features, fingerprints, models, networks, optimizers, parallel, steps
from kdjax import teacher_cache as caches
from kdjax.builders._checks import plain
from kdjax.builders._objectives import (
    Built,
    Sides,
    distill_objective,
    label_objective,
    optimizer_hparams,
)
from kdjax.builders._terms import Setting
from kdjax.data import augment, loaders, sources
from kdjax.training import Training
from kdjax.types import (
    ApplyFn,
    Batch,
    HParams,
    Outputs,
    UserError,
    Values,
    Variables,
)

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def network(
    config: ConfigDict, source: sources.Source, devices: parallel.Parallel
) -> networks.Network:
    """The model of a `teacher` or `student` section, for the images of `source`."""
    arguments = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in config.model.items()
        if name not in ("name", "dtype")
    }
    module = models.create(
        config.model.name,
        num_classes=source.num_classes,
        dtype=jnp.dtype(config.model.dtype),
        axis_name=devices.axis_name,
        **arguments,
    )
    mean, std = _statistics(config.normalize, source)
    return networks.from_linen(
        module,
        name=config.model.name,
        image_shape=source.image_shape,
        num_classes=source.num_classes,
        mean=mean,
        std=std,
    )


def _statistics(
    normalize: str, source: sources.Source
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation by channel, of pixels in [0, 1]."""
    channels = source.image_shape[-1]
    if normalize == "dataset":
        mean, std = sources.channel_statistics(source)
        return tuple(mean.tolist()), tuple(std.tolist())
    if normalize == "unit":
        return (0.0,) * channels, (1.0,) * channels
    if channels != len(IMAGENET_MEAN):
        raise UserError(
            f"Expected images of 3 channels for normalize='imagenet', got {channels}: "
            "use 'dataset' or 'unit'."
        )
    return IMAGENET_MEAN, IMAGENET_STD


def _no_teacher(variables: Variables, batch: Batch, values: Values) -> Outputs:
    del variables, batch, values
    return Outputs(logits=jnp.zeros((0,)))  # No label term reads it.


def _run_teacher(
    apply_fn: ApplyFn, variables: Variables, batch: Batch, values: Values
) -> Outputs:
    del values
    outputs, _ = apply_fn(variables, batch["image"], train=False)
    return outputs


def _read_teacher(
    decode: Callable[[Batch, jax.Array], jax.Array],
    variables: Variables,
    batch: Batch,
    values: Values,
) -> Outputs:
    del variables
    return Outputs(logits=decode(batch, values["temperature"]))


@dataclasses.dataclass(frozen=True)
class Parts:
    """What is built so far; the methods make the rest when it is needed."""

    config: ConfigDict
    devices: parallel.Parallel
    splits: sources.Splits
    teacher: networks.Network
    student: networks.Network
    predict: Mapping[str, Callable[[Variables, Any], np.ndarray]]
    programs: dict[str, Callable[[int], parallel.TrainProgram]] = dataclasses.field(
        default_factory=dict
    )

    def check(self) -> None:
        """Builds what is cheap, so that a mistake shows before the first stage."""
        self._distillation(num_steps=1)
        for train in (self.config.teacher.train, self.config.student.train):
            self._steps_per_epoch(train)
            self._augmentation(train)
        self._encoding()

    def teacher_training(self) -> Training:
        train = self.config.teacher.train
        recipe = _Recipe("teacher", self.teacher, train, label_objective(train))
        return self._training(recipe, self.config.seed)

    def baseline_training(self, seed: int) -> Training:
        train = self.config.student.train
        recipe = _Recipe("baseline", self.student, train, label_objective(train))
        return self._training(recipe, seed)

    def student_training(
        self, seed: int, teacher_variables: Variables, cache: caches.Cache | None
    ) -> Training:
        train = self.config.student.train
        built = self._distillation(self._num_steps(train))
        if cache is None:
            teacher_fn = functools.partial(_run_teacher, self.teacher.apply)
        else:
            teacher_fn = functools.partial(_read_teacher, self._encoding().decode)
            teacher_variables = {}
        recipe = _Recipe(
            "student", self.student, train, built, teacher_fn, self.teacher
        )
        return self._training(recipe, seed, teacher_variables, cache)

    def _distillation(self, num_steps: int) -> Built:
        train, distill = self.config.student.train, self.config.distill
        sides = Sides(
            features.describe(self.student),
            features.describe(self.teacher),
            Setting(train.batch_size, lambda: sources.labels(self.splits.train)),
        )
        built = distill_objective(distill, train, num_steps, sides)
        if built.uses_features and self.config.teacher.source == "cached":
            raise UserError(
                "Expected --config.teacher.source=online for terms between features, "
                "as the cache holds logits alone, got 'cached'."
            )
        return built

    def manifest(self, teacher_variables: Variables) -> caches.Manifest:
        train = self.config.student.train
        return caches.Manifest(
            num_examples=len(self.splits.train),
            num_views=self._num_views(train),
            encoding=self._encoding(),
            shard_size=self.config.cache.shard_size,
            teacher_fingerprint=fingerprints.fingerprint_tree(teacher_variables),
            dataset_fingerprint=self.splits.train.fingerprint(),
            augmentation=self._augmentation(train).description(),
            preprocessing=self.teacher.description,
            seed=self.config.seed,
        )

    def compute(
        self, teacher_variables: Variables
    ) -> Callable[[np.ndarray, int], np.ndarray]:
        """A function from example ids and a view to the teacher's logits."""
        augmentation = self._augmentation(self.config.student.train)
        predict_step = steps.make_predict_step(self.teacher.apply)
        sharded = self.devices.sharded

        @functools.partial(
            jax.jit,
            in_shardings=(None, sharded, sharded, None),
            out_shardings=self.devices.replicated,
        )
        def program(variables, raw, ids, view):
            batch = augmentation(raw, ids, view)
            return predict_step(variables, batch["image"])

        variables = self.devices.replicate(teacher_variables)

        def compute(ids: np.ndarray, view: int) -> np.ndarray:
            raw = loaders.raw_examples(self.splits.train, augmentation, ids, view)
            raw, ids = self.devices.scatter((raw, ids))
            return np.asarray(program(variables, raw, ids, np.int32(view)))

        return compute

    def inputs(self) -> dict[str, Any]:
        """What each stage's result depends on, apart from the stages before it."""
        config = plain(self.config)
        dataset = {
            "train": self.splits.train.fingerprint(),
            "parallel": config["parallel"],
            "image_shape": list(self.splits.train.image_shape),
        }
        student = {"dataset": dataset, "seed": config["seed"]} | config["student"]
        return {
            "teacher": {"dataset": dataset, "seed": config["seed"]} | config["teacher"],
            "student": student
            | {"distill": config["distill"], "cache": config["cache"]},
            "baseline": student,
        }

    def _encoding(self) -> caches.Encoding:
        cache = self.config.cache
        num_classes = self.teacher.num_classes
        if cache.encoding == "float32":
            return caches.Float32(num_classes)
        if cache.encoding == "float16":
            return caches.Float16(num_classes)
        encoding = caches.TopK(num_classes, cache.top_k, tuple(cache.temperatures))
        if self.config.distill.temperature_schedule != "constant":
            raise UserError(
                "Expected a constant distill.temperature with cache.encoding='topk', "
                "whose tail is exact at a few temperatures only, got a schedule: use "
                "'float32' or 'float16'."
            )
        encoding.check_temperature(self.config.distill.temperature)
        return encoding

    def _augmentation(self, train: ConfigDict) -> augment.Augmentation:
        return augment.Augmentation(
            seed=self.config.seed,
            num_examples=len(self.splits.train),
            num_classes=self.splits.train.num_classes,
            **plain(train.augment),
        )

    def _num_views(self, train: ConfigDict) -> int:
        return train.num_views or train.num_epochs

    def _num_steps(self, train: ConfigDict) -> int:
        return train.num_epochs * self._steps_per_epoch(train)

    def _steps_per_epoch(self, train: ConfigDict) -> int:
        steps_per_epoch = len(self.splits.train) // train.batch_size
        if not steps_per_epoch:
            raise UserError(
                f"Expected a batch of at most {len(self.splits.train)} examples, as "
                f"many as the train split has, got batch_size={train.batch_size}."
            )
        return steps_per_epoch

    def _loader(
        self, train: ConfigDict, seed: int, cache: caches.Cache | None
    ) -> loaders.Loader:
        arguments = dict(
            source=self.splits.train,
            augmentation=self._augmentation(train),
            batch_size=train.batch_size,
            num_views=self._num_views(train),
            seed=seed,
        )
        if self.config.dataset.streaming:
            return loaders.StreamingLoader(
                **arguments,
                extras_fn=None if cache is None else cache.read,
                place=self.devices.shard,
                process_index=jax.process_index(),
                process_count=jax.process_count(),
            )
        return loaders.ResidentLoader(
            **arguments,
            extras={} if cache is None else cache.read_all(),
            place=self.devices.replicate,
        )

    def _training(
        self,
        recipe: "_Recipe",
        seed: int,
        teacher_variables: Variables | None = None,
        cache: caches.Cache | None = None,
    ) -> Training:
        """One training of a recipe; those of other seeds share its programs."""
        config, train = self.config, recipe.train
        steps_per_epoch = self._steps_per_epoch(train)
        hparams = {**optimizer_hparams(train, steps_per_epoch), **recipe.built.hparams}
        loader = self._loader(train, seed, cache)
        if recipe.role not in self.programs:
            self.programs[recipe.role] = self.devices.train_program(
                recipe.train_step(self.devices.axis_name),
                loader.batch,
                resident=not config.dataset.streaming,
            )
        # Convolutions inside a loop lose their threads on CPU.
        one_by_one = config.dataset.streaming or jax.default_backend() == "cpu"
        has_validation = len(self.splits.validation) > 0
        return Training(
            name=recipe.role if recipe.role == "teacher" else f"{recipe.role} {seed}",
            init=functools.partial(recipe.init_state, seed, hparams),
            programs=self.programs[recipe.role],
            loader=loader,
            hparams=hparams,
            teacher_variables=teacher_variables or {},
            num_steps=self._num_steps(train),
            steps_per_epoch=steps_per_epoch,
            validation=self.splits.validation if has_validation else None,
            parallel=self.devices,
            predict=self.predict["teacher" if recipe.role == "teacher" else "student"],
            batch_size=train.batch_size,
            steps_per_dispatch=1 if one_by_one else config.steps_per_dispatch,
            log_every_steps=config.log_every_steps,
            eval_every_epochs=config.eval_every_epochs,
            checkpoint_every_steps=config.checkpoint_every_steps,
            keep_checkpoints=config.keep_checkpoints,
        )


@dataclasses.dataclass(frozen=True)
class _Recipe:
    """How a role is trained, whatever the seed."""

    role: str
    network: networks.Network
    train: ConfigDict
    built: Built
    teacher_fn: steps.TeacherFn = _no_teacher
    teacher: networks.Network | None = None

    def optimizer_fn(self) -> optimizers.OptimizerFn:
        config = self.train.optimizer
        switches = dict(clip=config.clip_norm > 0, max_norm=config.max_norm > 0)
        if config.name == "sgd":
            return optimizers.sgd(nesterov=config.nesterov, **switches)
        return optimizers.adamw(**switches)

    def init_state(self, seed: int, hparams: HParams) -> steps.TrainState:
        init_rng, rng = jax.random.split(jax.random.key(seed))
        variables = self._init(init_rng, hparams)
        if self.train.num_microbatches > 1 and "batch_stats" in variables:
            raise UserError(
                f"Expected num_microbatches=1 for the {self.role}, whose BatchNorm "
                "would see parts of the batch and learn something else, got "
                f"{self.train.num_microbatches}: use a smaller batch_size, more "
                "devices, or a model without BatchNorm."
            )
        ema = self.train.ema_decay > 0
        return steps.init_state(variables, self.optimizer_fn(), hparams, rng, ema=ema)

    def _init(self, rng: jax.Array, hparams: HParams) -> Variables:
        if self.teacher is None:
            return self.network.init(rng)
        teacher = features.describe(self.teacher)
        values = steps.hyperparameters(hparams, jnp.zeros((), jnp.int32))
        return features.init(rng, self.network, teacher, self.built.adapters, values)

    def train_step(self, axis_name: str | None) -> steps.TrainStep:
        return steps.make_train_step(
            self.network.apply,
            self.teacher_fn,
            self.built.objective,
            self.optimizer_fn(),
            adapters=self.built.adapters,
            num_microbatches=self.train.num_microbatches,
            axis_name=axis_name,
        )
