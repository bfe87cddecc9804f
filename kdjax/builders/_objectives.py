"""The table of methods, and objectives with their hyperparameters from a config."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import jax
from ml_collections import ConfigDict

from kdjax import losses, schedules
from kdjax.objectives import Objective, Term, weighted_sum
from kdjax.types import Batch, HParams, Outputs, UserError, Values

Built: TypeAlias = tuple[Objective, dict[str, Any]]


class Method(NamedTuple):
    """A loss of `kdjax.losses`, and what it is fed beside the student's logits."""

    fn: Callable[..., jax.Array]
    teacher: bool = True
    labels: bool = False

    def __call__(
        self,
        student: Outputs,
        teacher: Outputs,
        batch: Batch,
        *,
        standardize: bool = False,
        **hyperparameters: Any,
    ) -> jax.Array:
        """The loss, `[B]`, perhaps of standardised logits (Sun et al. 2024)."""
        arrays = [student.logits, teacher.logits] if self.teacher else [student.logits]
        if standardize:
            arrays = [losses.standardize_logits(x) for x in arrays]
        if self.labels:
            arrays.append(batch["label"])
        return self.fn(*arrays, where=batch["mask"], **hyperparameters)

    def options(self) -> dict[str, bool]:
        """What a term may set, and whether it is an array in the compiled step."""
        keywords = {
            name: parameter.annotation not in (int, bool, str)
            for name, parameter in inspect.signature(self.fn).parameters.items()
            if parameter.kind is parameter.KEYWORD_ONLY and name != "where"
        }
        return keywords | {"weight": True, "standardize": False}


# The methods that a config can name under `distill.terms`.
LOSSES: Mapping[str, Method] = {
    "adaptive_kl": Method(losses.adaptive_kl),
    "consistency": Method(losses.consistency_loss),
    "cross_entropy": Method(losses.cross_entropy, teacher=False, labels=True),
    "cwtm": Method(losses.cwtm_loss, labels=True),
    "dist": Method(losses.dist_loss),
    "dkd": Method(losses.dkd_loss, labels=True),
    "fedmd": Method(losses.fedmd_loss),
    "forward_kl": Method(losses.forward_kl),
    "hard_target": Method(losses.hard_target_loss),
    "jensen_shannon": Method(losses.jensen_shannon),
    "logit_matching": Method(losses.logit_matching_loss),
    "mlkd": Method(losses.mlkd_loss),
    "nkd": Method(losses.nkd_loss, labels=True),
    "reverse_kl": Method(losses.reverse_kl),
    "skew_forward_kl": Method(losses.skew_forward_kl),
    "skew_reverse_kl": Method(losses.skew_reverse_kl),
    "soft_target": Method(losses.soft_target_loss),
    "symmetric_kl": Method(losses.symmetric_kl),
    "taid": Method(losses.taid_loss),
    "top_k_kl": Method(losses.top_k_kl),
    "total_variation": Method(losses.total_variation),
    "ttm": Method(losses.ttm_loss),
    "virtual_teacher": Method(losses.virtual_teacher_loss, teacher=False, labels=True),
    "wsld": Method(losses.wsld_loss, labels=True),
    "wttm": Method(losses.wttm_loss),
}


def label_objective(train: ConfigDict) -> Built:
    """Labels alone: how a teacher and a baseline are trained."""
    hparams = {"label_smoothing": schedules.Constant(train.label_smoothing)}
    return weighted_sum({"hard": Term(_hard, lambda values: 1.0)}), hparams


def distill_objective(distill: ConfigDict, train: ConfigDict, num_steps: int) -> Built:
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
    for name, term in distill.terms.items():
        terms[name], term_hparams = _term(name, term)
        hparams |= term_hparams
    return weighted_sum(terms), hparams


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


def _term(name: str, config: ConfigDict) -> tuple[Term, dict[str, Any]]:
    """A term of the config: its loss, its weight, and numbers for the loss."""
    settings = dict(config)
    method = LOSSES.get(settings.pop("loss", ""))
    if method is None or "weight" not in settings:
        raise UserError(
            f"Expected distill.terms.{name} to have a weight and a loss out of "
            f"{', '.join(LOSSES)}; got {dict(config)}."
        )
    options = method.options()
    if unknown := settings.keys() - options.keys():
        raise UserError(
            f"Expected distill.terms.{name} to set some of {', '.join(options)}, got "
            f"{', '.join(sorted(unknown))}."
        )
    numbers = {key: value for key, value in settings.items() if options[key]}
    static: dict[str, Any] = {
        key: value for key, value in settings.items() if not options[key]
    }

    def fn(
        student: Outputs, teacher: Outputs, batch: Batch, values: Values
    ) -> jax.Array:
        read = {key: values[f"{name}.{key}"] for key in numbers if key != "weight"}
        return method(student, teacher, batch, **(static | read))

    hparams = {f"{name}.{k}": schedules.Constant(v) for k, v in numbers.items()}
    return Term(fn, lambda values: values[f"{name}.weight"]), hparams


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
