"""How good a model is, how honest about it, and how faithful to its teacher.

Each is the mean over the valid examples of one value per example, NaN if there is none.
Arrays may be NumPy's.
"""

from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from kdjax import losses

AnyArray: TypeAlias = Array | np.ndarray


def accuracy(
    logits: Float[AnyArray, "*batch classes"],
    labels: Int[AnyArray, "*batch"],
    *,
    where: Bool[AnyArray, "*batch"] | None = None,
) -> Float[Array, ""]:
    """Fraction of examples whose largest logit is that of the label.

    Of equal largest logits the first class is the prediction.

    Args:
      logits: unnormalised log-probabilities, `[..., num_classes]`.
      labels: integer classes, `[...]`.
      where: which examples are valid, `[...]`.

    Returns:
      The accuracy, from 0 to 1, a scalar.

    Examples:
      >>> import jax.numpy as jnp
      >>> from kdjax import metrics
      >>> logits = jnp.array([[2.0, 1.0], [3.0, 0.0]])
      >>> print(metrics.accuracy(logits, jnp.array([0, 1])))
      0.5
    """
    predictions = jnp.argmax(jnp.asarray(logits), axis=-1)
    return _mean(predictions == jnp.asarray(labels), where)


def top_k_accuracy(
    logits: Float[AnyArray, "*batch classes"],
    labels: Int[AnyArray, "*batch"],
    *,
    k: int,
    where: Bool[AnyArray, "*batch"] | None = None,
) -> Float[Array, ""]:
    """Fraction of examples whose label is among the `k` largest logits.

    Of equal logits the first classes count as the larger, so that a model of equal
    logits is right on `k` classes, not on all.

    Args:
      logits: unnormalised log-probabilities, `[..., num_classes]`.
      labels: integer classes, `[...]`.
      k: how many classes a model may name; from 1 to `num_classes`.
      where: which examples are valid, `[...]`.

    Returns:
      The accuracy, from 0 to 1, a scalar.

    Raises:
      ValueError: if `k` is out of its range.

    Examples:
      >>> import jax.numpy as jnp
      >>> from kdjax import metrics
      >>> logits = jnp.array([[2.0, 1.0, 0.0], [2.0, 0.0, 1.0]])
      >>> print(metrics.top_k_accuracy(logits, jnp.array([1, 1]), k=2))
      0.5
    """
    logits = jnp.asarray(logits)
    if not 1 <= k <= logits.shape[-1]:
        raise ValueError(f"Expected k from 1 to {logits.shape[-1]} classes, got {k}.")
    _, named = jax.lax.top_k(logits, k)
    correct = jnp.any(named == jnp.asarray(labels)[..., None], axis=-1)
    return _mean(correct, where)


def negative_log_likelihood(
    logits: Float[AnyArray, "*batch classes"],
    labels: Int[AnyArray, "*batch"],
    *,
    where: Bool[AnyArray, "*batch"] | None = None,
) -> Float[Array, ""]:
    r"""Mean negative log-probability of the label, at temperature 1.

    .. math:: -\frac{1}{N} \sum_i \log p_{i y_i}

    A proper score: unlike accuracy, it is best only for a model as sure as it is
    right.

    Args:
      logits: unnormalised log-probabilities, `[..., num_classes]`.
      labels: integer classes, `[...]`.
      where: which examples are valid, `[...]`.

    Returns:
      The negative log-likelihood in nats, a scalar.

    Examples:
      >>> import jax.numpy as jnp
      >>> from kdjax import metrics
      >>> uniform = jnp.zeros((1, 10))
      >>> print(metrics.negative_log_likelihood(uniform, jnp.array([3])).round(4))
      2.3026
    """
    values = losses.cross_entropy(jnp.asarray(logits), jnp.asarray(labels))
    return _mean(values, where)


def reliability_bins(
    logits: Float[AnyArray, "*batch classes"],
    labels: Int[AnyArray, "*batch"],
    *,
    num_bins: int = 15,
    where: Bool[AnyArray, "*batch"] | None = None,
) -> dict[str, Array]:
    """Confidence and accuracy of the predictions, by confidence.

    The columns of a reliability diagram. Bin m, counted from 1, holds the examples
    whose largest probability is above `(m - 1) / num_bins` and at most
    `m / num_bins`.

    Args:
      logits: unnormalised log-probabilities, `[..., num_classes]`.
      labels: integer classes, `[...]`.
      num_bins: the number of bins of equal width between 0 and 1.
      where: which examples are valid, `[...]`.

    Returns:
      `count`, `confidence` and `accuracy`, each `[num_bins]`: the number of examples
      in a bin, their mean largest probability and the fraction of them that is
      right, both 0 for a bin without examples.

    Examples:
      >>> import jax.numpy as jnp
      >>> from kdjax import metrics
      >>> logits = jnp.log(jnp.array([[0.75, 0.25], [0.75, 0.25]]))
      >>> bins = metrics.reliability_bins(logits, jnp.array([0, 1]), num_bins=2)
      >>> print(bins["count"], bins["confidence"].round(4), bins["accuracy"])
      [0 2] [0.   0.75] [0.  0.5]

    References:
      Guo et al., `On Calibration of Modern Neural Networks
      <https://arxiv.org/abs/1706.04599>`_, ICML 2017, section 2.
    """
    logits, labels = jnp.asarray(logits), jnp.asarray(labels)
    valid = jnp.ones(labels.shape, bool) if where is None else jnp.asarray(where)
    confidence = jnp.max(jax.nn.softmax(logits.astype(jnp.float32)), axis=-1)
    correct = jnp.argmax(logits, axis=-1) == labels
    # A certain prediction may be a rounding error above 1.
    index = jnp.clip(jnp.ceil(confidence * num_bins).astype(int) - 1, 0, num_bins - 1)

    def totals(values: jax.Array) -> jax.Array:
        values = jnp.where(valid, values, jnp.zeros((), values.dtype))
        return jnp.zeros(num_bins, values.dtype).at[index].add(values)

    count = totals(valid.astype(jnp.int32))
    divisor = jnp.maximum(count, 1).astype(jnp.float32)
    return {
        "count": count,
        "confidence": totals(confidence) / divisor,
        "accuracy": totals(correct.astype(jnp.float32)) / divisor,
    }


def expected_calibration_error(
    logits: Float[AnyArray, "*batch classes"],
    labels: Int[AnyArray, "*batch"],
    *,
    num_bins: int = 15,
    where: Bool[AnyArray, "*batch"] | None = None,
) -> Float[Array, ""]:
    r"""Mean gap between how sure a model is and how often it is right.

    .. math::
      \sum_m \frac{|B_m|}{N} \, \bigl|\mathrm{acc}(B_m) - \mathrm{conf}(B_m)\bigr|

    over the bins :math:`B_m` of `reliability_bins`. Biased upwards by bins of few
    examples: compare models on the same examples with the same bins only.

    Args:
      logits: unnormalised log-probabilities, `[..., num_classes]`.
      labels: integer classes, `[...]`.
      num_bins: the number of bins of equal width between 0 and 1.
      where: which examples are valid, `[...]`.

    Returns:
      The error, from 0 to 1, a scalar.

    Examples:
      >>> import jax.numpy as jnp
      >>> from kdjax import metrics
      >>> sure = jnp.array([[100.0, 0.0], [100.0, 0.0]])  # Sure, and half of it wrong.
      >>> print(metrics.expected_calibration_error(sure, jnp.array([0, 1])))
      0.5

    References:
      Guo et al., `On Calibration of Modern Neural Networks
      <https://arxiv.org/abs/1706.04599>`_, ICML 2017, equation 3.
    """
    bins = reliability_bins(logits, labels, num_bins=num_bins, where=where)
    count = bins["count"].astype(jnp.float32)
    gap = jnp.abs(bins["accuracy"] - bins["confidence"])
    return jnp.sum(count * gap) / jnp.sum(count)


def agreement(
    student_logits: Float[AnyArray, "*batch classes"],
    teacher_logits: Float[AnyArray, "*batch classes"],
    *,
    where: Bool[AnyArray, "*batch"] | None = None,
) -> Float[Array, ""]:
    """Fraction of examples on which student and teacher predict the same class.

    Args:
      student_logits: unnormalised log-probabilities, `[..., num_classes]`.
      teacher_logits: unnormalised log-probabilities, `[..., num_classes]`.
      where: which examples are valid, `[...]`.

    Returns:
      The agreement, from 0 to 1, a scalar.

    Examples:
      >>> import jax.numpy as jnp
      >>> from kdjax import metrics
      >>> student_logits = jnp.array([[2.0, 1.0], [3.0, 0.0]])
      >>> teacher_logits = jnp.array([[9.0, 0.0], [0.0, 9.0]])
      >>> print(metrics.agreement(student_logits, teacher_logits))
      0.5

    References:
      Stanton et al., `Does Knowledge Distillation Really Work?
      <https://arxiv.org/abs/2106.05945>`_, NeurIPS 2021, section 3.
    """
    predictions = jnp.argmax(jnp.asarray(teacher_logits), axis=-1)
    return accuracy(student_logits, predictions, where=where)


def forward_kl(
    student_logits: Float[AnyArray, "*batch classes"],
    teacher_logits: Float[AnyArray, "*batch classes"],
    *,
    where: Bool[AnyArray, "*batch"] | None = None,
) -> Float[Array, ""]:
    """Mean divergence of the student from the teacher, at temperature 1.

    `losses.forward_kl`, averaged: how far the student is from its teacher where
    `agreement` only says whether they decide alike.

    Args:
      student_logits: unnormalised log-probabilities, `[..., num_classes]`.
      teacher_logits: unnormalised log-probabilities, `[..., num_classes]`.
      where: which examples are valid, `[...]`.

    Returns:
      The divergence in nats, a scalar.

    Examples:
      >>> import jax.numpy as jnp
      >>> from kdjax import metrics
      >>> logits = jnp.array([[2.0, 1.0]])
      >>> print(metrics.forward_kl(logits, logits + 3))
      0.0

    References:
      Stanton et al., `Does Knowledge Distillation Really Work?
      <https://arxiv.org/abs/2106.05945>`_, NeurIPS 2021, section 3.
    """
    student_logits, teacher_logits = (
        jnp.asarray(x) for x in (student_logits, teacher_logits)
    )
    return _mean(losses.forward_kl(student_logits, teacher_logits), where)


def rank_correlation(
    student_logits: Float[AnyArray, "*batch classes"],
    teacher_logits: Float[AnyArray, "*batch classes"],
    *,
    where: Bool[AnyArray, "*batch"] | None = None,
) -> Float[Array, ""]:
    r"""Mean correlation of the orders in which student and teacher rank the classes.

    Spearman's: Pearson's correlation of the ranks, over the classes of each example.
    Equal logits share the mean of their ranks. An example on which either side has
    equal logits throughout, and so no order to agree with, counts as 0.

    Args:
      student_logits: unnormalised log-probabilities, `[..., num_classes]`.
      teacher_logits: unnormalised log-probabilities, `[..., num_classes]`.
      where: which examples are valid, `[...]`.

    Returns:
      The correlation, from -1 to 1, a scalar.

    Examples:
      >>> import jax.numpy as jnp
      >>> from kdjax import metrics
      >>> student_logits = jnp.array([[3.0, 1.0, 2.0]])
      >>> teacher_logits = jnp.array([[9.0, 2.0, 1.0]])
      >>> print(metrics.rank_correlation(student_logits, teacher_logits))
      0.5
    """
    student, teacher = (
        _centred_ranks(jnp.asarray(x)) for x in (student_logits, teacher_logits)
    )
    covariance = jnp.sum(student * teacher, axis=-1)
    variances = jnp.sum(student**2, axis=-1) * jnp.sum(teacher**2, axis=-1)
    has_order = variances > 0
    values = covariance / jnp.sqrt(jnp.where(has_order, variances, 1))
    return _mean(jnp.where(has_order, values, 0), where)


def _centred_ranks(
    x: Float[Array, "*batch classes"],
) -> Float[Array, "*batch classes"]:
    """Ranks along the last axis less their mean; equal entries share the mean rank."""
    order = jnp.argsort(x, axis=-1)
    ascending = jnp.take_along_axis(x, order, axis=-1)
    place = jnp.broadcast_to(jnp.arange(x.shape[-1]), x.shape)
    differs = ascending[..., 1:] != ascending[..., :-1]
    edge = jnp.ones((*x.shape[:-1], 1), bool)
    is_first = jnp.concatenate([edge, differs], axis=-1)
    is_last = jnp.concatenate([differs, edge], axis=-1)
    axis = x.ndim - 1
    first = jax.lax.cummax(jnp.where(is_first, place, 0), axis)
    last = jax.lax.cummin(jnp.where(is_last, place, x.shape[-1]), axis, reverse=True)
    # Ranks from 0 have the mean (C - 1) / 2 with any ties: exact, unlike a sum.
    ranks = (first + last - (x.shape[-1] - 1)).astype(jnp.float32) / 2
    return jnp.take_along_axis(ranks, jnp.argsort(order, axis=-1), axis=-1)


def _mean(values: jax.Array, where: AnyArray | None) -> Float[Array, ""]:
    """Sum of the valid values over their number, in float32."""
    valid = None if where is None else jnp.asarray(where)
    return jnp.mean(values, where=valid, dtype=jnp.float32)
