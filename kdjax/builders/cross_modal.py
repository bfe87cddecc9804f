"""Transfer between modalities from a config: pairs without labels, and few with."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from kdjax import features, networks, parallel, steps
from kdjax.builders._checks import expect, plain
from kdjax.builders._networks import network
from kdjax.builders._objectives import (
    Built,
    Sides,
    distill_objective,
    optimizer_hparams,
)
from kdjax.builders._parts import Parts, assemble
from kdjax.builders._roles import Role, run_teacher
from kdjax.builders._terms import Setting
from kdjax.data import modalities, sources
from kdjax.training import Training, predict_split
from kdjax.types import UserError, Variables

# What a step says that only labels, or terms that do not count, could tell.
_MEANINGLESS = ("accuracy", "hard", "soft")


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Cross-modal transfer, ready to run: functions and arrays, no config.

    Attributes:
      teacher: sees one modality of an image.
      student: sees another one.
      seeds: one student of each kind for every seed.
      methods: how students learn from pairs.
      own_classifier: those of the methods that train the student's classifier too.
      labels: labelled examples a class, ascending.
      compare_at: the number of them at which students are compared.
      pairs: what transfer learns from; of its labels only a few are ever read.
      test: what all are judged by.
      few_labels: the labelled pairs of a seed, so many a class.
      teacher_training: makes that of the teacher, with labels, on other examples.
      transfer_training: makes that of a student by a method, from a seed and the
        teacher's variables, without labels.
      scratch_training: makes that of a student on few labels a class, from a seed.
      finetune_training: makes the same from a student's variables: all that differs is
        where it starts.
      supervised_training: makes that of a student on the labels of all pairs.
      features: what a probe sees of a split: `features(variables, source)`, `[N, D]`.
      accuracy: of a role's variables on a split, in %.
      probe_weight_decay: of the linear probe.
      inputs: by kind of training, what its result depends on; JSON-able.
      config: the whole config, for the report.
    """

    teacher: networks.Network
    student: networks.Network
    seeds: tuple[int, ...]
    methods: tuple[str, ...]
    own_classifier: tuple[str, ...]
    labels: tuple[int, ...]
    compare_at: int
    pairs: sources.ArraySource
    test: sources.Source
    few_labels: Callable[[int, int], sources.ArraySource]
    teacher_training: Callable[[], Training]
    transfer_training: Callable[[str, int, Variables], Training]
    scratch_training: Callable[[int, int], Training]
    finetune_training: Callable[[int, int, Variables], Training]
    supervised_training: Callable[[int], Training]
    features: Callable[[Variables, sources.Source], np.ndarray]
    accuracy: Callable[[str, Variables, sources.Source], float]
    probe_weight_decay: float
    inputs: Mapping[str, Mapping[str, Any]]
    config: Mapping[str, Any]


def build(config: ConfigDict) -> Experiment:
    """Reads a whole config, and raises `UserError` on the first thing wrong with it."""
    _check(config)
    parts = _seeing(assemble(config))
    split = _divide(parts)
    split.check()
    settings = config.cross_modal
    return Experiment(
        teacher=parts.teacher,
        student=parts.student,
        seeds=tuple(config.seeds),
        methods=tuple(settings.methods),
        own_classifier=split.own_classifier(),
        labels=tuple(settings.labels),
        compare_at=settings.compare_at,
        pairs=split.pairs,
        test=parts.splits.test,
        few_labels=split.few_labels,
        teacher_training=split.labelled.teacher_training,
        transfer_training=split.transfer_training,
        scratch_training=split.scratch_training,
        finetune_training=split.finetune_training,
        supervised_training=split.paired.baseline_training,
        features=split.features(),
        accuracy=split.accuracy,
        probe_weight_decay=settings.probe.weight_decay,
        inputs=_inputs(parts),
        config=plain(config),
    )


def _check(config: ConfigDict) -> None:
    def rising(labels: Any) -> bool:
        return len(labels) > 0 and labels[0] > 0 and sorted(set(labels)) == list(labels)

    name = "cross_modal"
    expect(config, f"{name}.labels", rising, "positive numbers, ascending")
    counts = tuple(config.cross_modal.labels)
    expect(config, f"{name}.compare_at", lambda x: x in counts, f"one of {counts}")
    expect(config, f"{name}.pairs", lambda x: x > 0, "a count, or a share of train")
    expect(config, f"{name}.methods", len, "one method or more")
    for key in ("scratch_epochs", "probe.weight_decay"):
        expect(config, f"{name}.{key}", lambda x: x > 0, "a positive number")
    for method, settings in config.cross_modal.methods.items():
        if "loss" not in settings or method in ("scratch", "supervised", "random"):
            raise UserError(
                f"Expected cross_modal.methods.{method} to name a loss, and to be "
                "called neither scratch, supervised nor random, which are what "
                f"methods are compared with; got {plain(settings)}."
            )
    if config.dataset.streaming:
        raise UserError(
            "Expected dataset.streaming=False for cross-modal transfer, which lets "
            "every training have its own part of the examples, got True."
        )


def _seeing(parts: Parts) -> Parts:
    """The parts with networks that see one modality each."""
    config, source = parts.config, parts.splits.train
    if not isinstance(source, sources.ArraySource):
        raise UserError(
            "Expected a set that fits into memory for cross-modal transfer, got "
            f"{source.name} of {len(source)} images on disk: set a smaller "
            "dataset.image_size, or take a smaller set."
        )
    made, predict = {}, {}
    for role in ("teacher", "student"):
        name = config.cross_modal[f"{role}_sees"]
        modality = modalities.get(name, source.image_shape)
        seen = modalities.seen_by(source, modality)
        net = network(config[role], seen, parts.devices)
        made[role] = seeing(net, name, modality, source.image_shape)
        predict_step = steps.make_predict_step(made[role].apply)
        predict[role] = parts.devices.predict_program(predict_step)
    return dataclasses.replace(
        parts, teacher=made["teacher"], student=made["student"], predict=predict
    )


def seeing(
    net: networks.Network,
    name: str,
    modality: modalities.Modality,
    image_shape: tuple[int, ...],
) -> networks.Network:
    """A network of whole images, which looks at one modality of them only."""

    def apply(variables, images, *, train, rng=None):
        return net.apply(variables, modality(images), train=train, rng=rng)

    return dataclasses.replace(
        net,
        apply=apply,
        image_shape=tuple(image_shape),
        description=net.description | {"modality": name},
    )


def _divide(parts: Parts) -> "_Divided":
    """Labelled examples for the teacher, and others that are pairs."""
    train, amount = parts.splits.train, parts.config.cross_modal.pairs
    assert isinstance(train, sources.ArraySource)
    count = round(amount * len(train)) if amount < 1 else int(amount)
    if count >= len(train):
        raise UserError(
            "Expected cross_modal.pairs to leave the teacher something to learn from, "
            f"got {count} of {len(train)} examples: set it lower."
        )
    # By chance alone: the cut must not know labels either.
    labelled, pairs = sources.cut(np.zeros(len(train), np.int32), count)
    return _Divided(_of(parts, train.subset(labelled)), _of(parts, train.subset(pairs)))


def _of(parts: Parts, train: sources.ArraySource) -> Parts:
    """The same on other examples; with programs of its own, which know their count."""
    splits = dataclasses.replace(parts.splits, train=train)
    return dataclasses.replace(parts, splits=splits, programs={})


@dataclasses.dataclass(frozen=True)
class _Divided:
    """Trainings on the labelled examples of the teacher, and on the pairs.

    Attributes:
      labelled: what the teacher learns from.
      paired: what students learn from.
      programs: those of `scratch_training`.
    """

    labelled: Parts
    paired: Parts
    programs: dict[str, Callable[[int], parallel.TrainProgram]] = dataclasses.field(
        default_factory=dict
    )

    @property
    def config(self) -> ConfigDict:
        return self.paired.config

    @property
    def pairs(self) -> sources.ArraySource:
        assert isinstance(self.paired.splits.train, sources.ArraySource)
        return self.paired.splits.train

    def check(self) -> None:
        """Finds mistakes before the first stage."""
        counts = np.bincount(self.pairs.labels, minlength=self.pairs.num_classes)
        most = self.config.cross_modal.labels[-1]
        if counts.min() < most:
            raise UserError(
                f"Expected cross_modal.labels of at most {counts.min()} examples a "
                f"class, as many as the pairs have of the rarest, got {most}."
            )
        self.labelled.check()
        for method in self.config.cross_modal.methods:
            self._built(method, num_steps=1)
        feature = self.config.cross_modal.probe.features
        found = features.match(
            feature, features.describe(self.paired.student).features, "the student"
        )
        if len(found) != 1:
            raise UserError(
                f"Expected cross_modal.probe.features to name one feature, got "
                f"{feature!r}, which matches {', '.join(found)}."
            )

    def own_classifier(self) -> tuple[str, ...]:
        return tuple(
            method
            for method in self.config.cross_modal.methods
            if not self._built(method, num_steps=1).teacher_taps
        )

    def few_labels(self, count: int, seed: int) -> sources.ArraySource:
        """So many pairs of each class; with more labels, the same and others."""
        rng = np.random.default_rng([self.config.seed, seed])
        shuffled = rng.permutation(len(self.pairs))
        labels = self.pairs.labels[shuffled]
        ids = [shuffled[labels == k][:count] for k in range(self.pairs.num_classes)]
        return self.pairs.subset(np.sort(np.concatenate(ids)))

    def transfer_training(
        self, method: str, seed: int, teacher_variables: Variables
    ) -> Training:
        parts, train = self.paired, self.config.student.train
        steps_per_epoch = len(self.pairs) // train.batch_size
        built = self._built(method, train.num_epochs * steps_per_epoch)
        hparams = {**optimizer_hparams(train, steps_per_epoch), **built.hparams}
        teacher_fn = functools.partial(run_teacher, parts.teacher.apply)
        role = Role(method, parts.student, train, built, teacher_fn, parts.teacher)
        return parts.custom_training(
            key=method,
            name=f"{method} {seed}",
            train=train,
            seed=seed,
            init=functools.partial(role.init_state, seed, hparams),
            train_step=without_labels(role.train_step(parts.devices.axis_name)),
            constants=teacher_variables,
            hparams=hparams,
            evaluate=lambda state: {},
        )

    def scratch_training(self, count: int, seed: int) -> Training:
        """As long for few labels as for many: their examples come more often."""
        few = self.few_labels(count, seed)
        size = self.config.cross_modal.labels[-1] * self.pairs.num_classes
        ids = np.resize(np.arange(len(few)), size)
        config = self.config.copy_and_resolve_references()
        config.student.train.num_epochs = config.cross_modal.scratch_epochs
        parts = _of(self.paired, few.subset(ids))
        # One program for all counts and seeds, as all have as many examples.
        parts = dataclasses.replace(parts, config=config, programs=self.programs)
        training = parts.baseline_training(seed)
        return dataclasses.replace(training, name=f"scratch {seed}")

    def finetune_training(
        self, count: int, seed: int, variables: Variables
    ) -> Training:
        training = self.scratch_training(count, seed)

        def init() -> steps.TrainState:
            state, params = training.init(), variables["params"]
            average = None if state.ema_params is None else params
            rest = {name: x for name, x in variables.items() if name != "params"}
            return state.replace(params=params, model_state=rest, ema_params=average)

        return dataclasses.replace(training, name=f"finetune {seed}", init=init)

    def features(self) -> Callable[[Variables, sources.Source], np.ndarray]:
        """What the probe sees, from variables and a split."""
        apply = self.paired.student.apply
        name = self.config.cross_modal.probe.features

        def step(variables, images):
            outputs, _ = apply(variables, images, train=False)
            x = outputs.features[name]
            return x.reshape(len(x), -1).astype(jnp.float32)

        program = self.paired.devices.predict_program(step)
        return lambda variables, source: self._predict(program, variables, source)[0]

    def accuracy(
        self, role: str, variables: Variables, source: sources.Source
    ) -> float:
        predict = self.paired.predict[role]
        logits, labels = self._predict(predict, variables, source)
        return 100 * float(np.mean(logits.argmax(axis=-1) == labels))

    def _predict(self, program, variables, source):
        size = self.config.student.train.batch_size
        variables = self.paired.devices.replicate(variables)
        return predict_split(program, variables, source, size)

    def _built(self, method: str, num_steps: int) -> Built:
        """One method's term alone: soft and hard term never begin to count."""
        train = self.config.student.train
        distill = self.config.distill.copy_and_resolve_references()
        distill.from_epoch = float(train.num_epochs)
        distill.terms = ConfigDict({method: self.config.cross_modal.methods[method]})
        sides = Sides(
            features.describe(self.paired.student),
            features.describe(self.paired.teacher),
            # To a loss that asks for classes, each pair is one of its own.
            Setting(train.batch_size, lambda: np.arange(len(self.pairs))),
        )
        return distill_objective(distill, train, num_steps, sides)


def without_labels(train_step: steps.TrainStep) -> steps.TrainStep:
    """The same step, from which the labels of the batch are kept."""

    def step(state, teacher_variables, batch, hparams):
        blank = {**batch, "label": jnp.zeros_like(batch["label"])}
        state, metrics = train_step(state, teacher_variables, blank, hparams)
        return state, {k: x for k, x in metrics.items() if k not in _MEANINGLESS}

    return step


def _inputs(parts: Parts) -> dict[str, Any]:
    """What each kind of training depends on, apart from those before it."""
    inputs, settings = parts.inputs(), plain(parts.config)["cross_modal"]
    pairs = {"pairs": settings["pairs"]}
    student = inputs["baseline"] | pairs | {"sees": settings["student_sees"]}
    scratch = {key: settings[key] for key in ("scratch_epochs", "labels")}
    return {
        "teacher": inputs["teacher"] | pairs | {"sees": settings["teacher_sees"]},
        "transfer": student,
        "methods": settings["methods"],
        "scratch": student | scratch,
        "supervised": student,
        "probe": {"probe": settings["probe"], "labels": settings["labels"]},
    }
