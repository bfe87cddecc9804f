"""The parts of an experiment, each made from its section of the config."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from kdjax import features, fingerprints, networks, parallel, steps
from kdjax import teacher_cache as caches
from kdjax.builders import _caches
from kdjax.builders._checks import check, plain
from kdjax.builders._networks import network
from kdjax.builders._objectives import (
    Built,
    Sides,
    distill_objective,
    label_objective,
    optimizer_hparams,
)
from kdjax.builders._roles import Role, read_teacher, run_teacher
from kdjax.builders._starts import digests
from kdjax.builders._terms import Setting
from kdjax.builders._trainings import Trainings
from kdjax.data import augment, loaders, sources
from kdjax.training import Training, predict_split, split_evaluator
from kdjax.types import (
    UserError,
    Variables,
)


def assemble(config: ConfigDict) -> "Parts":
    """Reads what all recipes have in common: data, devices, teacher and student.

    Raises:
      UserError: on the first thing wrong with the config.
    """
    check(config)
    devices = parallel.create(config.parallel)
    for role in ("teacher", "student"):
        devices.check_batch_size(
            f"{role}.train.batch_size", config[role].train.batch_size
        )
    splits = sources.load(
        config.dataset.name,
        path=config.dataset.path,
        data_dir=config.dataset.data_dir,
        image_size=config.dataset.image_size,
        validation=config.dataset.validation,
        max_examples=config.dataset.max_examples,
    )
    nets = {
        role: network(config[role], splits.train, devices)
        for role in ("teacher", "student")
    }
    predict = {
        role: devices.predict_program(steps.make_predict_step(net.apply))
        for role, net in nets.items()
    }
    return Parts(config, devices, splits, nets["teacher"], nets["student"], predict)


@dataclasses.dataclass(frozen=True)
class Parts:
    """What is built so far; the methods make the rest when it is needed."""

    config: ConfigDict
    devices: parallel.Parallel
    splits: sources.Splits
    teacher: networks.Network
    student: networks.Network
    predict: Mapping[str, Callable[[Variables, Any], np.ndarray]]
    programs: dict[str, Any] = dataclasses.field(default_factory=dict)

    def check(self) -> None:
        """Builds what is cheap, so that a mistake shows before the first stage."""
        self._distillation(num_steps=1)
        for train in (self.config.teacher.train, self.config.student.train):
            self._steps_per_epoch(train)
            self._augmentation(train)
        if self.config.teacher.source == "cached":
            self._encoding()

    def teacher_training(self, seed: int | None = None) -> Training:
        train = self.config.teacher.train
        start = self.config.teacher.pretrained
        built = label_objective(train)
        role = Role("teacher", self.teacher, train, built, start=start)
        return self._training(role, self.config.seed if seed is None else seed)

    def baseline_training(self, seed: int) -> Training:
        train = self.config.student.train
        start = self.config.student.pretrained
        built = label_objective(train)
        role = Role("baseline", self.student, train, built, start=start)
        return self._training(role, seed)

    def student_training(
        self, seed: int, teacher_variables: Variables, cache: caches.Cache | None
    ) -> Training:
        role, constants = self.student_role(teacher_variables, cache)
        return self._training(role, seed, constants, cache)

    def student_role(
        self, teacher_variables: Variables, cache: caches.Cache | None
    ) -> tuple[Role, Variables]:
        """How a student is trained, and what its steps read of the teacher."""
        train = self.config.student.train
        built = self._distillation(self._num_steps(train))
        if cache is None:
            teacher_fn = functools.partial(run_teacher, self.teacher.apply)
        else:
            teacher_fn = functools.partial(read_teacher, cache.manifest.encoding)
            if not built.teacher_taps:
                teacher_variables = {}  # Terms of features may read a classifier.
        start = self.config.student.pretrained
        role = Role(
            "student", self.student, train, built, teacher_fn, self.teacher, start
        )
        return role, teacher_variables

    def _distillation(self, num_steps: int) -> Built:
        train, distill = self.config.student.train, self.config.distill
        setting = Setting(train.batch_size, lambda: sources.labels(self.splits.train))
        student, teacher = (features.describe(x) for x in (self.student, self.teacher))
        sides = Sides(student, teacher, setting)
        return distill_objective(distill, train, num_steps, sides)

    @property
    def teacher_pretrained(self) -> str | None:
        """The file that the teacher is read from, as it is; `None` if it is trained."""
        teacher = self.config.teacher
        return None if teacher.finetune else teacher.pretrained

    @property
    def reads_features(self) -> bool:
        """Whether a term of the student's objective reads features of the teacher."""
        return bool(self._distillation(num_steps=1).teacher_taps)

    def adapters(self) -> dict[str, features.Adapter]:
        """What is trained beside the student."""
        return self._distillation(num_steps=1).adapters

    @property
    def cached(self) -> bool:
        """Whether the student's steps read the teacher from a cache."""
        if self.config.teacher.source != "cached":
            return False
        num_views = self._num_views(self.config.student.train)
        num_entries = num_views * len(self.splits.train)
        return _caches.fits(self.config, self._encoding(), num_entries)

    @property
    def teacher_note(self) -> str:
        """A sentence on where they have it from, and what that takes."""
        if self.config.teacher.source != "cached":
            return "The teacher runs in every step."
        num_views = self._num_views(self.config.student.train)
        num_examples = len(self.splits.train)
        return _caches.note(self.config, self._encoding(), num_examples, num_views)

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
        """A function from example ids and a view to what is stored of the teacher."""
        augmentation = self._augmentation(self.config.student.train)
        encoding = self._encoding()
        sharded = self.devices.sharded

        @functools.partial(
            jax.jit,
            in_shardings=(None, sharded, sharded, None),
            out_shardings=self.devices.replicated,
        )
        def program(variables, raw, ids, view):
            batch = augmentation(raw, ids, view)
            outputs, _ = self.teacher.apply(variables, batch["image"], train=False)
            return encoding.flatten(outputs)

        variables = self.devices.replicate(teacher_variables)

        def compute(ids: np.ndarray, view: int) -> np.ndarray:
            raw = loaders.raw_examples(self.splits.train, augmentation, ids, view)
            raw, ids = self.devices.scatter((raw, ids))
            return np.asarray(program(variables, raw, ids, np.int32(view)))

        return compute

    def inputs(self) -> dict[str, Any]:
        """What each stage's result depends on, apart from the stages before it."""
        config = plain(self.config)
        teacher, own = digests(config["teacher"]), digests(config["student"])
        dataset = {
            "train": self.splits.train.fingerprint(),
            "parallel": config["parallel"],
            "image_shape": list(self.splits.train.image_shape),
        }
        student = {"dataset": dataset, "seed": config["seed"]} | own
        return {
            "teacher": {"dataset": dataset, "seed": config["seed"]} | teacher,
            "student": student
            | {"distill": config["distill"], "cache": config["cache"]},
            "baseline": student,
        }

    def _encoding(self) -> caches.Encoding:
        taps = self._distillation(num_steps=1).teacher_taps
        known = features.describe(self.teacher).features
        stored = {tap: known[tap].shape[1:] for tap in taps}
        return _caches.encoding(self.config, self.teacher.num_classes, stored)

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

    def loader_arguments(self, train: ConfigDict, seed: int) -> dict[str, Any]:
        """What every loader of the train split is made from."""
        return dict(
            source=self.splits.train,
            augmentation=self._augmentation(train),
            batch_size=train.batch_size,
            num_views=self._num_views(train),
            seed=seed,
        )

    def loader(
        self, train: ConfigDict, seed: int, cache: _caches.Stored | None = None
    ) -> loaders.Loader:
        """Batches of the train split, with the entries of a cache, or of several."""
        arguments = self.loader_arguments(train, seed)
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

    def test_accuracy(self, role: str, variables: Variables) -> float:
        """Of the teacher or the student on the test split, in %."""
        size = self.config.student.train.batch_size
        predict = self.predict[role]
        logits, labels = predict_split(predict, variables, self.splits.test, size)
        return 100 * float(np.mean(logits.argmax(axis=-1) == labels))

    def custom_training(
        self,
        *,
        train: ConfigDict,
        seed: int,
        loader: loaders.Loader | None = None,
        **arguments: Any,
    ) -> Training:
        """A training of any state, by any pure step.

        Args:
          train: how long, and with which batches.
          seed: of the order of the examples.
          loader: gives the batches; by default those of the train split.
          **arguments: further ones of `Trainings.make`.
        """
        if loader is None:
            loader = self.loader(train, seed)
        trainings = Trainings(self.config, self.devices, self.programs)
        return trainings.make(train=train, loader=loader, **arguments)

    def _training(
        self,
        role: Role,
        seed: int,
        teacher_variables: Variables | None = None,
        cache: caches.Cache | None = None,
    ) -> Training:
        """One training of a recipe; those of other seeds share its programs."""
        train = role.train
        rates = optimizer_hparams(train, self._steps_per_epoch(train))
        hparams = {**rates, **role.built.hparams}
        network = "teacher" if role.name == "teacher" else "student"
        return self.custom_training(
            key=role.name,
            name=role.name if role.name == "teacher" else f"{role.name} {seed}",
            train=train,
            seed=seed,
            init=functools.partial(role.init_state, seed, hparams),
            train_step=role.train_step(self.devices.axis_name),
            constants=teacher_variables or {},
            hparams=hparams,
            evaluate=split_evaluator(
                self.predict[network], self.splits.validation, train.batch_size
            ),
            loader=self.loader(train, seed, cache),
            diagnose_step=role.diagnose_step(self.devices.axis_name),
        )
