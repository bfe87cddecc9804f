"""Students that one program trains together, from the sections of a config."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from kdjax import features, schedules, steps, students
from kdjax.builders._checks import plain
from kdjax.builders._objectives import Sides, distill_objective, optimizer_hparams
from kdjax.builders._parts import Parts
from kdjax.builders._roles import Role
from kdjax.builders._terms import Setting
from kdjax.checkpoints import BEST_METRIC
from kdjax.data import augment, loaders, sources
from kdjax.networks import Network
from kdjax.training import Training, predict_split
from kdjax.types import HParams, UserError, Variables

Predict = Callable[[Variables, sources.Source], tuple[np.ndarray, np.ndarray]]


class Student(NamedTuple):
    """What one student of a grid differs in.

    Attributes:
      arm: the name of its setting, shared by its twins of other seeds.
      seed: of its initial weights and of its order of the examples.
      alpha: weight of the soft term; the hard one has the rest.
      temperature: of the soft term.
    """

    arm: str
    seed: int
    alpha: float
    temperature: float


@dataclasses.dataclass(frozen=True)
class Lesson:
    """What the students of a grid learn from.

    Attributes:
      source: the examples.
      train: how long, and how.
      teacher_fn: gives the teacher's outputs.
      teacher: the first argument of `teacher_fn`.
      extras: arrays `[views, examples, ...]` that `teacher_fn` finds in its batch.
      num_views: of each example.
      held_out: examples to look at while training, if any.
      look_every: steps between two looks.
      keep_best: whether the variables of the best look are kept.
      validation: where their mean accuracy is measured at each checkpoint, if at all.
    """

    source: sources.Source
    train: ConfigDict
    teacher_fn: steps.TeacherFn
    teacher: Any = dataclasses.field(default_factory=dict)
    extras: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    num_views: int = 1
    held_out: sources.Source | None = None
    look_every: int = 0
    keep_best: bool = False
    validation: sources.Source | None = None


@dataclasses.dataclass(frozen=True)
class Grid:
    """Students that train together, ready to run.

    Attributes:
      name: of its directory; empty for that of the stage.
      students: in the order of every first axis.
      training: of all; its state is a `students.Students`.
      predict: from stacked variables and a split to logits,
        `[students, examples, num_classes]`, and labels.
    """

    name: str
    students: tuple[Student, ...]
    training: Training
    predict: Predict


def pairs(
    settings: Mapping[str, tuple[float, float]], seeds: Sequence[int]
) -> tuple[Student, ...]:
    """A student for each setting (its alpha and temperature) and each seed."""
    return tuple(
        Student(arm, seed, float(alpha), float(temperature))
        for arm, (alpha, temperature) in settings.items()
        for seed in seeds
    )


def part_of(source: sources.Source, ids: np.ndarray) -> sources.ArraySource:
    """Some examples of a split, numbered anew."""
    examples = source.take(ids)
    return sources.ArraySource(
        examples["image"],
        examples["label"],
        name=source.name,
        class_names=source.class_names,
    )


def for_epochs(train: ConfigDict, num_epochs: int) -> ConfigDict:
    """A `train` section with another length."""
    changed = train.copy_and_resolve_references()
    changed.num_epochs = num_epochs
    return changed


def make_grid(
    parts: Parts,
    network: Network,
    chosen: Sequence[Student],
    lesson: Lesson,
    *,
    stage: str,
    name: str = "",
    key: str = "",
) -> Grid:
    """The training of some students of one network, by one program.

    Args:
      parts: of the experiment.
      network: the students'.
      chosen: who trains.
      lesson: what they learn from.
      stage: of the recipe, for messages.
      name: tells apart the grids of a stage.
      key: of the compiled program; grids of the same key differ in numbers alone.
    """
    seeds = [student.seed for student in chosen]
    loader = students_loader(parts, lesson, seeds)
    num_steps = lesson.train.num_epochs * loader.steps_per_epoch
    if lesson.look_every > num_steps:
        raise UserError(
            f"Expected a look at held-out examples after at most {num_steps} steps, as "
            f"many as the stage {stage} has, got {lesson.look_every}: look more often."
        )
    role = _role(parts, network, lesson, num_steps)
    rates = optimizer_hparams(lesson.train, loader.steps_per_epoch)
    each = [
        {**rates, **role.built.hparams, **_own_hparams(student)} for student in chosen
    ]
    num_looks = num_steps // lesson.look_every if lesson.look_every else 0

    def init() -> students.Students:
        states = map(role.init_state, seeds, each)
        return students.init(
            list(states), num_looks=num_looks, keep_best=lesson.keep_best
        )

    title = f"{stage} {name}".strip()
    predict = _predictor(parts, network)
    training = parts.custom_training(
        key=key or title,
        name=title,
        train=lesson.train,
        seed=0,
        init=init,
        train_step=students.make_train_step(
            role.train_step(parts.devices.axis_name),
            network.apply,
            look_every=lesson.look_every,
        ),
        constants=_constants(lesson),
        hparams=students.stack_hparams(each),
        evaluate=_evaluator(predict, lesson.validation),
        loader=loader,
    )
    return Grid(name, tuple(chosen), _saved_as_often(parts, training), predict)


def _own_hparams(student: Student) -> HParams:
    """In what a student's schedules differ from its fellows'."""
    return {
        "alpha": schedules.Constant(student.alpha),
        "temperature": schedules.Constant(student.temperature),
    }


def students_loader(
    parts: Parts, lesson: Lesson, seeds: Sequence[int]
) -> students.StudentsLoader:
    """Batches of a lesson, in the order of each seed."""
    if parts.config.dataset.streaming:
        raise UserError(
            "Expected --config.dataset.streaming=False, as each student has an order "
            "of its own over a set in the device's memory, got True."
        )
    source, train = lesson.source, lesson.train
    if train.batch_size > len(source):
        raise UserError(
            f"Expected student.train.batch_size of at most {len(source)}, the examples "
            f"that an experiment trains on, got {train.batch_size}: set it lower."
        )
    resident = loaders.ResidentLoader(
        source=source,
        augmentation=augment.Augmentation(
            seed=parts.config.seed,
            num_examples=len(source),
            num_classes=source.num_classes,
            **plain(train.augment),
        ),
        batch_size=train.batch_size,
        num_views=lesson.num_views,
        seed=0,
        extras=lesson.extras,
        place=parts.devices.replicate,
    )
    return students.StudentsLoader(
        resident, seeds, len(source), place=parts.devices.replicate
    )


def _role(parts: Parts, network: Network, lesson: Lesson, num_steps: int) -> Role:
    """How one of the students trains."""
    distill = parts.config.distill
    if distill.terms:
        raise UserError(
            "Expected no distill.terms, as these experiments are about the soft and "
            f"the hard term alone, got {', '.join(distill.terms)}."
        )
    setting = Setting(
        lesson.train.batch_size, lambda: sources.labels(parts.splits.train)
    )
    sides = Sides(features.describe(network), features.describe(parts.teacher), setting)
    built = distill_objective(distill, lesson.train, num_steps, sides)
    start = parts.config.student.pretrained
    return Role("student", network, lesson.train, built, lesson.teacher_fn, start=start)


def _constants(lesson: Lesson) -> dict[str, Any]:
    constants = {"teacher": lesson.teacher}
    if lesson.held_out is not None:
        ids = np.arange(len(lesson.held_out))
        constants["held_out"] = lesson.held_out.take(ids)
    return constants


def _saved_as_often(parts: Parts, training: Training) -> Training:
    """Saves after as many steps as epochs of the whole train split have.

    The state of many students is large, and the epoch of a small set short.
    """
    whole = len(parts.splits.train) // parts.config.student.train.batch_size
    every = parts.config.eval_every_epochs * whole / training.steps_per_epoch
    return dataclasses.replace(training, eval_every_epochs=max(1, round(every)))


def _evaluator(
    predict: Predict, validation: sources.Source | None
) -> Callable[[students.Students], dict[str, float]]:
    def evaluate(state: students.Students) -> dict[str, float]:
        if validation is None:
            return {}
        logits, labels = predict(state.each.eval_variables, validation)
        return {BEST_METRIC: float(np.mean(logits.argmax(axis=-1) == labels))}

    return evaluate


def _predictor(parts: Parts, network: Network) -> Predict:
    step = students.make_predict_step(network.apply)
    program = parts.devices.predict_program(step)
    batch_size = parts.config.student.train.batch_size

    def predict(
        variables: Variables, source: sources.Source
    ) -> tuple[np.ndarray, np.ndarray]:
        variables = parts.devices.replicate(variables)
        logits, labels = predict_split(program, variables, source, batch_size)
        return np.moveaxis(logits, 1, 0), labels

    return predict
