"""The methods that a config can name under `distill.terms`, and what each is fed."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import jax
from flax import linen as nn

from kdjax import adapters, losses
from kdjax.types import Batch, Outputs

Shape: TypeAlias = tuple[int, ...]


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
        return _keywords(self.fn) | {"weight": True, "standardize": False}


class FeatureMethod(NamedTuple):
    """A loss between features, summed over pairs of layers.

    Attributes:
      fn: of a student's and a teacher's features, `[B, ...]`.
      tap: the layers that it is for, unless the config names others.
      adapter: from the teacher's shape, what brings the student's features to it.
      fuses: whether one adapter, of all the teacher's shapes, maps all layers.
      spread: whether the adapter makes several arguments of the loss.
    """

    fn: Callable[..., jax.Array]
    tap: str
    adapter: Callable[..., nn.Module] | None = None
    fuses: bool = False
    spread: bool = False

    def options(self) -> dict[str, bool]:
        """What a term may set, and whether it is an array in the compiled step."""
        named = {"weight": True, "student_features": False, "teacher_features": False}
        return _keywords(self.fn) | named


def _hint(shape: Shape) -> nn.Module:
    return adapters.Regressor(hint_shape=shape)


def _connect(shape: Shape) -> nn.Module:
    return adapters.Connector(channels=shape[-1])


def _embed(shape: Shape) -> nn.Module:
    return adapters.Embed(dim=shape[-1], normalize=False)


def _generate(shape: Shape) -> nn.Module:
    return adapters.MaskedGenerator(channels=shape[-1])


def _predict(shape: Shape) -> nn.Module:
    size = (shape[1], shape[2]) if len(shape) == 4 else None
    return adapters.VariationalRegressor(channels=shape[-1], size=size)


def _review(*shapes: Shape) -> nn.Module:
    return adapters.ReviewFusion(teacher_shapes=shapes)


def _keywords(fn: Callable[..., jax.Array]) -> dict[str, bool]:
    """The keywords of a loss, and whether each is a number that may change."""
    return {
        name: parameter.annotation not in (int, bool, str)
        for name, parameter in inspect.signature(fn).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY and name != "where"
    }


_STAGES = "stage[1234]"

LOSSES: Mapping[str, Method | FeatureMethod] = {
    "ab": FeatureMethod(losses.ab_loss, "stage*_preact", _connect),
    "adaptive_kl": Method(losses.adaptive_kl),
    "attention_transfer": FeatureMethod(losses.attention_transfer_loss, _STAGES),
    "cka": FeatureMethod(losses.cka_loss, "pooled"),
    "consistency": Method(losses.consistency_loss),
    "contrastive": FeatureMethod(losses.contrastive_loss, "pooled", _embed),
    "correlation_congruence": FeatureMethod(
        losses.correlation_congruence_loss, "pooled", _embed
    ),
    "cosine": FeatureMethod(losses.cosine_loss, "pooled", _embed),
    "cross_entropy": Method(losses.cross_entropy, teacher=False, labels=True),
    "cwd": FeatureMethod(losses.cwd_loss, "stage3", _connect),
    "cwtm": Method(losses.cwtm_loss, labels=True),
    "dist": Method(losses.dist_loss),
    "dkd": Method(losses.dkd_loss, labels=True),
    "fedmd": Method(losses.fedmd_loss),
    "forward_kl": Method(losses.forward_kl),
    "hard_target": Method(losses.hard_target_loss),
    "hint": FeatureMethod(losses.hint_loss, "stage2", _hint),
    "ickd": FeatureMethod(losses.ickd_loss, "stage3", _connect),
    "jensen_shannon": Method(losses.jensen_shannon),
    "logit_matching": Method(losses.logit_matching_loss),
    "mgd": FeatureMethod(losses.mgd_loss, "stage3", _generate),
    "mlkd": Method(losses.mlkd_loss),
    "nkd": Method(losses.nkd_loss, labels=True),
    "nst": FeatureMethod(losses.nst_loss, "stage3"),
    "pkd": FeatureMethod(losses.pkd_loss, "stage3", _connect),
    "pkt": FeatureMethod(losses.pkt_loss, "pooled"),
    "reverse_kl": Method(losses.reverse_kl),
    "review": FeatureMethod(losses.review_loss, _STAGES, _review, fuses=True),
    "rkd_angle": FeatureMethod(losses.rkd_angle_loss, "pooled"),
    "rkd_distance": FeatureMethod(losses.rkd_distance_loss, "pooled"),
    "similarity_preserving": FeatureMethod(losses.similarity_preserving_loss, "stage3"),
    "skew_forward_kl": Method(losses.skew_forward_kl),
    "skew_reverse_kl": Method(losses.skew_reverse_kl),
    "soft_target": Method(losses.soft_target_loss),
    "symmetric_kl": Method(losses.symmetric_kl),
    "taid": Method(losses.taid_loss),
    "top_k_kl": Method(losses.top_k_kl),
    "total_variation": Method(losses.total_variation),
    "ttm": Method(losses.ttm_loss),
    "vid": FeatureMethod(losses.vid_loss, _STAGES, _predict, spread=True),
    "virtual_teacher": Method(losses.virtual_teacher_loss, teacher=False, labels=True),
    "wsld": Method(losses.wsld_loss, labels=True),
    "wttm": Method(losses.wttm_loss),
}
