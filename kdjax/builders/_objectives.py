"""Objectives with their hyperparameters and adapters, from a config."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from kdjax import features, losses, schedules
from kdjax.builders._methods import LOSSES, FeatureMethod, Method, Shape
from kdjax.objectives import Objective, Term, weighted_sum
from kdjax.types import Batch, HParams, Outputs, UserError, Values


class Sides(NamedTuple):
    """The shapes of the features of student and teacher, `[1, ...]`, by name."""

    student: Mapping[str, Shape]
    teacher: Mapping[str, Shape]


class Built(NamedTuple):
    """What a training minimises.

    Attributes:
      objective: the weighted sum.
      hparams: schedules of its numbers.
      adapters: what is trained beside the student.
      uses_features: whether it reads features of the teacher.
    """

    objective: Objective
    hparams: dict[str, Any]
    adapters: dict[str, features.Adapter]
    uses_features: bool


def label_objective(train: ConfigDict) -> Built:
    """Labels alone: how a teacher and a baseline are trained."""
    hparams = {"label_smoothing": schedules.Constant(train.label_smoothing)}
    objective = weighted_sum({"hard": Term(_hard, lambda values: 1.0)})
    return Built(objective, hparams, {}, False)


def distill_objective(
    distill: ConfigDict, train: ConfigDict, num_steps: int, sides: Sides
) -> Built:
    r"""Hinton's two terms, and any others that the config names.

    .. math::
      \alpha \, \tau^2 \, \mathrm{KL}(p^t_\tau \,\|\, p^s_\tau)
      + (1 - \alpha) \, \mathrm{CE}(y, p^s) + \sum_i w_i \, \ell_i

    A term called `soft` or `hard` replaces the one of that name.
    """
    terms = {
        "hard": Term(_hard, lambda values: 1.0 - values["alpha"]),
        "soft": Term(_soft, lambda values: values["alpha"]),
    }
    hparams = {
        "label_smoothing": schedules.Constant(train.label_smoothing),
        **{
            name: _schedule(
                distill[f"{name}_schedule"],
                distill[name],
                distill[f"{name}_final"],
                num_steps,
            )
            for name in ("temperature", "alpha")
        },
    }
    adapters: dict[str, features.Adapter] = {}
    uses_features = False
    for name, config in distill.terms.items():
        settings = dict(config)
        method = _method(name, settings)
        hparams |= {
            f"{name}.{key}": schedules.Constant(value)
            for key, value in settings.items()
            if method.options()[key]
        }
        if isinstance(method, FeatureMethod):
            terms[name], more = _feature_term(name, method, settings, sides)
            adapters |= more
            uses_features = True
        else:
            terms[name] = _term(name, method, settings)
    return Built(weighted_sum(terms), hparams, adapters, uses_features)


def _hard(
    student: Outputs, teacher: Outputs, batch: Batch, values: Values
) -> jax.Array:
    """Cross-entropy with the labels, or with the mixture of them that mixup made."""
    del teacher
    logits, where = student.logits, batch["mask"]
    if "soft_label" in batch:
        return losses.soft_cross_entropy(logits, batch["soft_label"], where=where)
    return losses.cross_entropy(
        logits, batch["label"], label_smoothing=values["label_smoothing"], where=where
    )


def _soft(
    student: Outputs, teacher: Outputs, batch: Batch, values: Values
) -> jax.Array:
    return losses.soft_target_loss(
        student.logits,
        teacher.logits,
        temperature=values["temperature"],
        where=batch["mask"],
    )


def _method(name: str, settings: dict[str, Any]) -> Method | FeatureMethod:
    """The method of a term; its name is taken out of the settings."""
    method = LOSSES.get(settings.pop("loss", ""))
    if method is None or "weight" not in settings:
        raise UserError(
            f"Expected distill.terms.{name} to have a weight and a loss out of "
            f"{', '.join(LOSSES)}; got {settings}."
        )
    options = method.options()
    if unknown := settings.keys() - options.keys():
        raise UserError(
            f"Expected distill.terms.{name} to set some of {', '.join(options)}, got "
            f"{', '.join(sorted(unknown))}."
        )
    return method


def _reader(name: str, method: Method | FeatureMethod, settings: dict[str, Any]) -> Any:
    """A function from the values of a step to the keywords of the loss."""
    options = method.options()
    numbers = [key for key in settings if options[key] and key != "weight"]
    static = {key: value for key, value in settings.items() if not options[key]}

    def read(values: Values) -> dict[str, Any]:
        return static | {key: values[f"{name}.{key}"] for key in numbers}

    return read


def _term(name: str, method: Method, settings: dict[str, Any]) -> Term:
    read = _reader(name, method, settings)

    def fn(
        student: Outputs, teacher: Outputs, batch: Batch, values: Values
    ) -> jax.Array:
        return method(student, teacher, batch, **read(values))

    return Term(fn, lambda values: values[f"{name}.weight"])


def _feature_term(
    name: str, method: FeatureMethod, settings: dict[str, Any], sides: Sides
) -> tuple[Term, dict[str, features.Adapter]]:
    """A term between features, and the adapters that it needs."""
    student_taps, teacher_taps = (
        features.match(settings.pop(f"{side}_features", method.tap), known, side)
        for side, known in zip(("student", "teacher"), sides, strict=True)
    )
    if len(student_taps) != len(teacher_taps):
        raise UserError(
            f"Expected distill.terms.{name} to name as many features of the student as "
            f"of the teacher, got {', '.join(student_taps)} and "
            f"{', '.join(teacher_taps)}: set student_features and teacher_features."
        )
    adapters = _adapters(name, method, student_taps, teacher_taps, sides)
    pairs = tuple(zip(student_taps, teacher_taps, strict=True))
    read = _reader(name, method, settings)

    def fn(
        student: Outputs, teacher: Outputs, batch: Batch, values: Values
    ) -> jax.Array:
        total = jnp.zeros((), jnp.float32)
        for index, (tap, teacher_tap) in enumerate(pairs):
            total += method.fn(
                *_arguments(name, method, index, tap, student.features),
                teacher.features[teacher_tap],
                where=batch["mask"],
                **read(values),
            )
        return total

    return Term(fn, lambda values: values[f"{name}.weight"]), adapters


def _adapters(
    name: str,
    method: FeatureMethod,
    student_taps: tuple[str, ...],
    teacher_taps: tuple[str, ...],
    sides: Sides,
) -> dict[str, features.Adapter]:
    """One adapter for each pair of layers, or one for all."""
    if method.adapter is None:
        return {}
    shapes = [sides.teacher[tap] for tap in teacher_taps]
    if method.fuses:
        return {name: features.Adapter(method.adapter(*shapes), student_taps)}
    return {
        f"{name}/{tap}": features.Adapter(method.adapter(shape), (tap,))
        for tap, shape in zip(student_taps, shapes, strict=True)
    }


def _arguments(
    name: str, method: FeatureMethod, index: int, tap: str, known: Mapping[str, Any]
) -> tuple[jax.Array, ...]:
    """What of the student's features the loss is given for one layer."""
    if method.fuses:
        return (known[name][index],)
    found = known[tap if method.adapter is None else f"{name}/{tap}"]
    return tuple(found) if method.spread else (found,)


def _schedule(kind: str, start: float, end: float, num_steps: int) -> Any:
    if kind == "linear":
        return schedules.Linear(start, end, num_steps)
    if kind == "cosine":
        return schedules.Cosine(start, end, num_steps)
    return schedules.Constant(start)


def optimizer_hparams(train: ConfigDict, steps_per_epoch: int) -> HParams:
    """Schedules of everything that the optimizer reads."""
    rate = train.learning_rate
    constants = {
        "weight_decay": train.optimizer.weight_decay,
        "clip_norm": train.optimizer.clip_norm,
        "max_norm": train.optimizer.max_norm,
        "ema_decay": train.ema_decay,
    }
    if train.optimizer.name == "sgd":
        constants["momentum"] = train.optimizer.momentum
    else:
        constants |= {"b1": train.optimizer.b1, "b2": train.optimizer.b2}
    return {
        "learning_rate": _learning_rate(rate, train.num_epochs, steps_per_epoch),
        **{name: schedules.Constant(value) for name, value in constants.items()},
    }


def _learning_rate(rate: ConfigDict, num_epochs: int, steps_per_epoch: int) -> Any:
    warmup_steps = round(rate.warmup_epochs * steps_per_epoch)
    if rate.schedule == "step":
        decay_steps = tuple(epoch * steps_per_epoch for epoch in rate.decay_epochs)
        return schedules.Step(rate.base, rate.decay_factor, decay_steps, warmup_steps)
    if rate.schedule == "cosine":
        return schedules.Cosine(
            rate.base, rate.final, num_epochs * steps_per_epoch, warmup_steps
        )
    return schedules.Step(rate.base, 1.0, (), warmup_steps)
