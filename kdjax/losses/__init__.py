"""Distillation losses: arrays in, one value per example out. Needs only jax.

Losses take `(student_x, teacher_x[, labels])`, then keywords; `where` says which
examples are valid. The transforms at the end change logits or gradients before a loss.
"""

from kdjax.losses._batch_relations import dist_loss, mlkd_loss
from kdjax.losses._decoupled import dkd_loss, nkd_loss, uskd_loss
from kdjax.losses._divergences import (
    forward_kl,
    reverse_kl,
    symmetric_kl,
    top_k_kl,
    total_variation,
)
from kdjax.losses._labels import (
    cross_entropy,
    hard_target_loss,
    soft_cross_entropy,
    virtual_teacher_loss,
)
from kdjax.losses._logits import (
    consistency_loss,
    fedmd_loss,
    logit_matching_loss,
    soft_target_loss,
)
from kdjax.losses._mixtures import (
    adaptive_kl,
    jensen_shannon,
    skew_forward_kl,
    skew_reverse_kl,
)
from kdjax.losses._teachers import (
    average_logits,
    average_probs,
    confidence_weights,
    multi_teacher_loss,
    mutual_loss,
)
from kdjax.losses._transforms import (
    permute_non_argmax,
    reverse_gradient,
    standardize_logits,
    taid_loss,
    taid_target,
)
from kdjax.losses._weighted import cwtm_loss, ttm_loss, wsld_loss, wttm_loss

__all__ = [
    "adaptive_kl",
    "average_logits",
    "average_probs",
    "confidence_weights",
    "consistency_loss",
    "cross_entropy",
    "cwtm_loss",
    "dist_loss",
    "dkd_loss",
    "fedmd_loss",
    "forward_kl",
    "hard_target_loss",
    "jensen_shannon",
    "logit_matching_loss",
    "mlkd_loss",
    "multi_teacher_loss",
    "mutual_loss",
    "nkd_loss",
    "permute_non_argmax",
    "reverse_gradient",
    "reverse_kl",
    "skew_forward_kl",
    "skew_reverse_kl",
    "soft_cross_entropy",
    "soft_target_loss",
    "standardize_logits",
    "symmetric_kl",
    "taid_loss",
    "taid_target",
    "top_k_kl",
    "total_variation",
    "ttm_loss",
    "uskd_loss",
    "virtual_teacher_loss",
    "wsld_loss",
    "wttm_loss",
]
