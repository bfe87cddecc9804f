"""Objectives with their hyperparameters and adapters, from a config."""

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from kdjax import features, losses, schedules
from kdjax.builders._methods import LOSSES
from kdjax.builders._terms import Method, Modules, Seen, Setting
from kdjax.objectives import Objective, Term, weighted_sum
from kdjax.types import Batch, HParams, Outputs, UserError, Values

# When a term counts, in epochs from 0, which may be fractions.
TIMING = ("from_epoch", "until_epoch", "warmup_epochs")


class Sides(NamedTuple):
    """What `features.describe` says of student and teacher, and their training."""

    student: Outputs
    teacher: Outputs
    setting: Setting


class Built(NamedTuple):
    """What a training minimises.

    Attributes:
      objective: the weighted sum.
      hparams: schedules of its numbers.
      adapters: what is trained beside the student.
      teacher_taps: the teacher's features that it reads, each once.
      terms: what it is the sum of.
      staged: whether soft and hard term begin later than the others, so that the first
        stage may leave some of the student without a gradient.
    """

    objective: Objective
    hparams: dict[str, Any]
    adapters: dict[str, features.Adapter]
    teacher_taps: tuple[str, ...] = ()
    terms: Mapping[str, Term] = MappingProxyType({})
    staged: bool = False


def label_objective(train: ConfigDict) -> Built:
    """Labels alone: how a teacher and a baseline are trained."""
    hparams = {"label_smoothing": schedules.Constant(train.label_smoothing)}
    terms = {"hard": Term(_hard, lambda values: 1.0)}
    return Built(weighted_sum(terms), hparams, {}, terms=terms)


def distill_objective(
    distill: ConfigDict, train: ConfigDict, num_steps: int, sides: Sides
) -> Built:
    r"""Hinton's two terms, and any others that the config names.

    .. math::
      \alpha \, \tau^2 \, \mathrm{KL}(p^t_\tau \,\|\, p^s_\tau)
      + (1 - \alpha) \, \mathrm{CE}(y, p^s) + \sum_i w_i \, \ell_i

    A term called `soft` or `hard` replaces the one of that name. Before
    `distill.from_epoch` the two do not count: FitNets' first stage.
    """
    hparams = base_hparams(distill, train, num_steps)
    staged = "begun" in hparams
    begun = (lambda values: values["begun"]) if staged else (lambda values: 1.0)
    terms = {
        "hard": Term(_hard, lambda values: begun(values) * (1.0 - values["alpha"])),
        "soft": Term(_soft, lambda values: begun(values) * values["alpha"]),
    }
    adapters: dict[str, features.Adapter] = {}
    taps: list[str] = []
    for name, config in distill.terms.items():
        settings = dict(config)
        method = _method(name, settings)
        hparams |= _weights(name, method, settings, train.num_epochs, num_steps)
        more_terms, more_adapters, more_taps = _terms(name, method, settings, sides)
        terms |= more_terms
        adapters |= more_adapters
        taps += more_taps
        hparams |= {
            f"{name}.{key}": schedules.Constant(value)
            for key, value in settings.items()
            if method.options()[key]
        }
        hparams[f"{name}.epoch"] = schedules.Linear(0.0, train.num_epochs, num_steps)
    return Built(
        weighted_sum(terms),
        hparams,
        adapters,
        tuple(dict.fromkeys(taps)),
        terms,
        staged,
    )


def base_hparams(
    distill: ConfigDict, train: ConfigDict, num_steps: int
) -> dict[str, Any]:
    """Those of the soft and the hard term; `begun` only where they begin later."""
    hparams: dict[str, Any] = {
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
    if distill.from_epoch > 0:
        first_step = round(distill.from_epoch * num_steps / train.num_epochs)
        hparams["begun"] = schedules.Between(1.0, first_step)
    return hparams


def _weights(
    name: str,
    method: Method,
    settings: dict[str, Any],
    num_epochs: int,
    num_steps: int,
) -> dict[str, Any]:
    """Of a term and of what is beside it; weight and timing leave the settings."""
    timing = {key: settings.pop(key) for key in TIMING if key in settings}
    weights = {f"{name}.weight": settings.pop("weight")}
    if method.beside is not None:
        weights[f"{name}.beside"] = 1.0
    if not timing:
        return {key: schedules.Constant(value) for key, value in weights.items()}
    first, end = timing.get("from_epoch", 0.0), timing.get("until_epoch", math.inf)
    warmup = timing.get("warmup_epochs", 0.0)
    if not (0 <= first < end and warmup >= 0):
        raise UserError(
            f"Expected distill.terms.{name} to have 0 <= from_epoch < until_epoch and "
            f"no negative warmup_epochs, got {timing}."
        )
    per_epoch = num_steps / num_epochs
    steps = [x if x == math.inf else round(x * per_epoch) for x in (first, end, warmup)]
    return {key: schedules.Between(value, *steps) for key, value in weights.items()}


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


def _method(name: str, settings: dict[str, Any]) -> Method:
    """The method of a term; its name is taken out of the settings."""
    method = LOSSES.get(settings.pop("loss", ""))
    if method is None or "weight" not in settings:
        raise UserError(
            f"Expected distill.terms.{name} to have a weight and a loss out of "
            f"{', '.join(LOSSES)}; got {settings}."
        )
    options = [*method.options(), *TIMING]
    if unknown := settings.keys() - set(options):
        raise UserError(
            f"Expected distill.terms.{name} to set some of {', '.join(options)}, got "
            f"{', '.join(sorted(unknown))}."
        )
    return method


def _terms(
    name: str, method: Method, settings: dict[str, Any], sides: Sides
) -> tuple[dict[str, Term], dict[str, features.Adapter], tuple[str, ...]]:
    """A term and what is beside it, its adapters, and what it reads of the teacher.

    What concerns only the adapters leaves the settings.
    """
    taps = _taps(name, method, settings, sides)
    of_modules = {k: settings.pop(k) for k in method.of_modules() if k in settings}
    seen = Seen(name, *taps, sides.student, sides.teacher, {}, {})
    made = method.modules(seen, sides.setting, **of_modules)
    options = method.options()
    numbers = [key for key in settings if options[key]]
    static = {key: value for key, value in settings.items() if not options[key]}

    def fn(*outputs_batch_and_values: Any) -> jax.Array:
        seen = Seen(name, *taps, *outputs_batch_and_values)
        read: dict[str, Any] = {x: seen.values[f"{name}.{x}"] for x in numbers}
        return method(seen, **static, **read)

    terms = {name: Term(fn, lambda values: values[f"{name}.weight"])}
    if (beside := method.beside) is not None:
        terms[f"{name}_beside"] = Term(
            lambda *seen: beside(Seen(name, *taps, *seen)),
            lambda values: values[f"{name}.beside"],
        )
    return terms, _adapters(name, taps, made), taps[1]


def _taps(
    name: str, method: Method, settings: dict[str, Any], sides: Sides
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The names of the features of student and teacher; leaves the settings."""
    if not method.taps:
        return (), ()
    student, teacher = (
        features.match(
            settings.pop(f"{side}_features", method.taps), known.features, side
        )
        for side, known in (("student", sides.student), ("teacher", sides.teacher))
    )
    if len(student) != len(teacher):
        raise UserError(
            f"Expected distill.terms.{name} to name as many features of the student as "
            f"of the teacher, got {', '.join(student)} and {', '.join(teacher)}: set "
            "student_features and teacher_features."
        )
    return student, teacher


def _adapters(
    name: str, taps: tuple[tuple[str, ...], tuple[str, ...]], made: Modules
) -> dict[str, features.Adapter]:
    def reader(read: Callable[[Seen], tuple[Any, ...]]) -> Any:
        return lambda *seen: read(Seen(name, *taps, *seen))

    return {
        f"{name}/{key}": features.Adapter(module, reader(read))
        for key, (module, read) in made.items()
    }


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
