"""From a config to self-distillation: arms, each one training of one network."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from kdjax import mean_teacher, metrics, networks, steps
from kdjax.builders._checks import expect, plain
from kdjax.builders._objectives import optimizer_hparams
from kdjax.builders._parts import Parts, assemble
from kdjax.builders._roles import Role, no_teacher
from kdjax.builders._self_objectives import ARMS, Classify, Given, Plan
from kdjax.checkpoints import BEST_METRIC
from kdjax.data import sources
from kdjax.data.two_views import TwoViewLoader
from kdjax.training import Training, predict_split
from kdjax.types import HParams, UserError, Variables

__all__ = ["ARMS", "Arm", "Experiment", "build"]

Predict = Callable[[Variables, sources.Source], tuple[np.ndarray, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Arm:
    """One way of training the network.

    Attributes:
      name: of its directory.
      title: for the report.
      training: makes the training of a seed.
      variables: from its final state to all that its classifiers read.
      classify: maps these and images to the logits of each classifier.
      classifiers: their names; the arm is judged by the first.
      predict: compiled, over a split: logits `[N, classifiers, num_classes]`, and
        labels.
      against: the arm that it is compared with, seed by seed.
      inputs: what its result depends on; JSON-able.
    """

    name: str
    title: str
    training: Callable[[int], Training]
    variables: Callable[[Any], Variables]
    classify: Classify
    classifiers: tuple[str, ...]
    predict: Predict
    against: str | None
    inputs: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Arms, ready to run.

    Attributes:
      arms: in the order of the report.
      seeds: one network of each arm for each.
      network: that all arms train.
      validation: the split that they are watched on.
      test: the split that they are judged on.
      config: the whole config, for the report.
    """

    arms: tuple[Arm, ...]
    seeds: tuple[int, ...]
    network: networks.Network
    validation: sources.Source
    test: sources.Source
    config: Mapping[str, Any]


def build(config: ConfigDict) -> Experiment:
    """Reads a whole config, and raises `UserError` on the first thing wrong with it."""
    _check(config)
    parts = assemble(config)
    parts.check()
    num_labels = config.self_distillation.few_labels.num_labels
    if num_labels >= len(parts.splits.train):
        raise UserError(
            "Expected self_distillation.few_labels.num_labels below the "
            f"{len(parts.splits.train)} examples of train, got {num_labels}."
        )
    given = Given(
        parts.student,
        config,
        len(parts.splits.train) // config.student.train.batch_size,
    )
    names = config.self_distillation.arms
    return Experiment(
        arms=tuple(_arm(parts, name, ARMS[name](given)) for name in names),
        seeds=tuple(config.seeds),
        network=parts.student,
        validation=parts.splits.validation,
        test=parts.splits.test,
        config=plain(config),
    )


_OFF = "off (0) in self-distillation, where {}"
_MUST_BE_OFF = {
    "student.train.label_smoothing": "it is an arm",
    "student.train.ema_decay": "the mean teacher is an arm",
    "student.train.augment.mixup": "labels are not mixed",
    "dataset.streaming": "second views are made of images on the device",
}
_FRACTIONS = (
    "label_smoothing.share",
    "virtual_teacher.alpha",
    "virtual_teacher.correct_prob",
    "byot.alpha",
    "mean_teacher.decay",
)
_NOT_NEGATIVE = (
    "byot.feature_weight",
    "mean_teacher.consistency",
    "mean_teacher.warmup_epochs",
    *(f"uskd.{name}_weight" for name in ("target", "non_target", "weak")),
)
_POSITIVE = (
    "virtual_teacher.temperature",
    "byot.temperature",
    "few_labels.num_labels",
    "few_labels.batch_size",
)
_FORMS = ("paper", "author_code")


def _check(config: ConfigDict) -> None:
    arms = tuple(config.self_distillation.arms)
    if not arms or len(set(arms)) < len(arms) or not set(arms) <= ARMS.keys():
        raise UserError(
            f"Expected self_distillation.arms to be some of {', '.join(ARMS)}, each "
            f"once, got {', '.join(map(str, arms)) or 'none'}."
        )
    for name, why in _MUST_BE_OFF.items():
        expect(config, name, lambda x: not x, _OFF.format(why))
    prefix = "self_distillation"
    for name in _FRACTIONS:
        bounds = "a number between 0 and 1"
        expect(config, f"{prefix}.{name}", lambda x: 0 <= x <= 1, bounds)
    for name in _NOT_NEGATIVE:
        expect(config, f"{prefix}.{name}", lambda x: x >= 0, "no negative number")
    for name in _POSITIVE:
        expect(config, f"{prefix}.{name}", lambda x: x > 0, "a positive number")
    for name in ("virtual_teacher.form", "uskd.form"):
        expect(config, f"{prefix}.{name}", lambda x: x in _FORMS, f"one of {_FORMS}")
    batch_size, few = config.student.train.batch_size, config[prefix].few_labels
    if few.batch_size >= batch_size:
        raise UserError(
            f"Expected {prefix}.few_labels.batch_size, the labelled share of a batch, "
            f"to be below the {batch_size} of student.train.batch_size, got "
            f"{few.batch_size}."
        )


def _arm(parts: Parts, name: str, plan: Plan) -> Arm:
    def stacked(variables: Variables, images: jax.Array) -> jax.Array:
        return jnp.stack(plan.classify(variables, images), axis=1)

    program = parts.devices.predict_program(stacked)
    batch_size = parts.config.student.train.batch_size
    sections = {x: plain(parts.config.self_distillation[x]) for x in plan.sections}

    def predict(
        variables: Variables, source: sources.Source
    ) -> tuple[np.ndarray, np.ndarray]:
        variables = parts.devices.replicate(variables)
        return predict_split(program, variables, source, batch_size)

    return Arm(
        name=name,
        title=plan.title,
        training=functools.partial(_training, parts, name, plan, predict),
        variables=_two_networks if plan.averaged else _all_variables,
        classify=plan.classify,
        classifiers=plan.classifiers,
        predict=predict,
        against=plan.against,
        inputs={**parts.inputs()["baseline"], "arm": name, "settings": sections},
    )


def _all_variables(state: steps.TrainState) -> Variables:
    """The network's and its adapters'."""
    return {"params": state.params, **state.model_state}


def _two_networks(state: mean_teacher.MeanTeacherState) -> Variables:
    return {"teacher": state.teacher, "student": state.student.eval_variables}


def _training(
    parts: Parts, name: str, plan: Plan, predict: Predict, seed: int
) -> Training:
    train = parts.config.student.train
    steps_per_epoch = len(parts.splits.train) // train.batch_size
    hparams = {**optimizer_hparams(train, steps_per_epoch), **plan.built.hparams}
    teacher_fn: steps.TeacherFn = no_teacher
    if plan.averaged:
        teacher_fn = mean_teacher.see_second_view(parts.student.apply)
    role = Role(name, parts.student, train, plan.built, teacher_fn, parts.student)
    train_step = role.train_step(parts.devices.axis_name)
    if plan.averaged:
        train_step = mean_teacher.make_train_step(train_step)
    variables = _two_networks if plan.averaged else _all_variables

    def evaluate(state: Any) -> dict[str, float]:
        if not len(parts.splits.validation):
            return {}
        logits, labels = predict(variables(state), parts.splits.validation)
        keys = (
            BEST_METRIC,
            *(f"validation_accuracy_{x}" for x in plan.classifiers[1:]),
        )
        return {
            key: float(metrics.accuracy(logits[:, i], labels))
            for i, key in enumerate(keys)
        }

    return parts.custom_training(
        key="mean_teacher" if plan.averaged else name,
        name=f"{name}, seed {seed}",
        train=train,
        seed=seed,
        init=functools.partial(_init, plan, role, seed, hparams),
        train_step=train_step,
        constants={},
        hparams=hparams,
        evaluate=evaluate,
        loader=_two_views(parts, plan, seed) if plan.averaged else None,
    )


def _init(plan: Plan, role: Role, seed: int, hparams: HParams) -> Any:
    state = role.init_state(seed, hparams)
    return mean_teacher.init_state(state) if plan.averaged else state


def _two_views(parts: Parts, plan: Plan, seed: int) -> TwoViewLoader:
    """Of all examples, or of few with labels, the same ones for every seed."""
    train, few = parts.config.student.train, parts.config.self_distillation.few_labels
    arguments = parts.loader_arguments(train, seed) | {"place": parts.devices.replicate}
    if not plan.few_labels:
        return TwoViewLoader(**arguments)
    _, labelled = sources.cut(sources.labels(parts.splits.train), few.num_labels)
    return TwoViewLoader(
        **arguments, labelled=labelled, labelled_batch_size=few.batch_size
    )
