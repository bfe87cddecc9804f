"""Several teachers, or peers, for one student."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, ScalarLike

from kdjax.losses import _checks, _masking, _numerics


def average_logits(
    teacher_logits: Float[Array, "teachers *batch classes"],
    *,
    weights: Float[Array, " teachers *weights"] | None = None,
    where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch classes"]:
    r"""Weighted mean of the teachers' logits, as one teacher's.

    .. math:: z = \sum_k w_k z^k \Big/ \sum_k w_k

    A geometric mean of their probabilities: classes that any teacher rules out are
    ruled out, and a teacher with large logits has the louder voice. FedMD's
    consensus, with equal weights; FedDF's, with the clients' numbers of examples.

    Args:
      teacher_logits: unnormalised log-probabilities, `[teachers, ..., num_classes]`.
      weights: not negative; one for each teacher, `[teachers]`, or also for each
        example, `[teachers, ...]`. Equal if absent. Divided by their sum.
      where: which examples are valid, `[...]`. All other rows are zeros with zero
        gradient, even if they are not finite.

    Returns:
      The mean logits, `[..., num_classes]`, in at least float32.

    Raises:
      ValueError: if the shape of `weights` or `where` does not fit.
      TypeError: if an array is not floating-point, or `where` is not boolean.

    Examples:
      >>> import jax.numpy as jnp
      >>> from kdjax import losses
      >>> teacher_logits = jnp.array([[2.0, 0.0], [0.0, 4.0]])
      >>> print(losses.average_logits(teacher_logits))
      [1. 2.]

    References:
      Lin et al., `Ensemble Distillation for Robust Model Fusion in Federated
      Learning <https://arxiv.org/abs/2006.07242>`_, NeurIPS 2020, section 3.
    """
    teacher_logits, weights = _prepare(teacher_logits, weights, where)
    excluded = jnp.isneginf(teacher_logits)
    terms = weights * jnp.where(excluded, 0, teacher_logits)
    terms = jnp.where(excluded & (weights > 0), -jnp.inf, terms)
    return jnp.sum(terms, axis=0)


def average_probs(
    teacher_logits: Float[Array, "teachers *batch classes"],
    *,
    temperature: ScalarLike = 1.0,
    weights: Float[Array, " teachers *weights"] | None = None,
    where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch classes"]:
    r"""Logits of the weighted mean of the teachers' probabilities.

    .. math::
      z = \tau \log \Bigl( \sum_k w_k \, \mathrm{softmax}(z^k / \tau)
        \Big/ \sum_k w_k \Bigr)

    The softened ensemble: at the same temperature :math:`\tau`, a loss that is given
    the result sees exactly the mean of the softened probabilities. A class that one
    teacher holds possible remains so. Training towards the mean of probabilities has
    the gradient of the mean of the losses, `multi_teacher_loss`.

    Args:
      teacher_logits: unnormalised log-probabilities, `[teachers, ..., num_classes]`.
      temperature: softens the distributions that are averaged; a positive scalar.
      weights: not negative; one for each teacher, `[teachers]`, or also for each
        example, `[teachers, ...]`. Equal if absent. Divided by their sum.
      where: which examples are valid, `[...]`. All other rows are those of equal
        logits, with zero gradient.

    Returns:
      The ensemble's logits, `[..., num_classes]`, in at least float32.

    Raises:
      ValueError: if the shape of `weights` or `where` does not fit, or a concrete
        temperature is not positive.
      TypeError: if an array is not floating-point, or `where` is not boolean.

    Examples:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from kdjax import losses
      >>> teacher_logits = jnp.log(jnp.array([[0.75, 0.25], [0.5, 0.5]]))
      >>> print(jax.nn.softmax(losses.average_probs(teacher_logits)).round(4))
      [0.625 0.375]

    References:
      Hinton et al., `Distilling the Knowledge in a Neural Network
      <https://arxiv.org/abs/1503.02531>`_, 2015, section 2; federated as in Lin et
      al., `Ensemble Distillation for Robust Model Fusion in Federated Learning
      <https://arxiv.org/abs/2006.07242>`_, NeurIPS 2020, section 3.
    """
    _checks.check_positive(temperature=temperature)

    teacher_logits, weights = _prepare(teacher_logits, weights, where)
    (temperature,) = _numerics.scalars(teacher_logits, temperature)
    log_probs = _numerics.log_probs(teacher_logits, temperature)
    excluded = jnp.isneginf(log_probs) | (weights == 0)
    log_weights = jnp.log(jnp.where(weights == 0, 1, weights))
    terms = jnp.where(excluded, -jnp.inf, log_probs + log_weights)
    return temperature * _numerics.log_sum(jnp.moveaxis(terms, 0, -1))


def confidence_weights(
    teacher_logits: Float[Array, "teachers *batch classes"],
    labels: Int[Array, "*batch"],
    *,
    where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, " teachers *batch"]:
    r"""Weights of several teachers, by how well each predicts the label.

    .. math::
      w_k = \frac{1}{K - 1} \left(1 - \frac{\exp(\ell_k)}{\sum_j \exp(\ell_j)}\right),
      \qquad \ell_k = -\log p^k_y

    Sums to 1 over the :math:`K` teachers. For `average_logits`, `average_probs` and
    `multi_teacher_loss`.

    Args:
      teacher_logits: unnormalised log-probabilities, `[teachers, ..., num_classes]`.
      labels: integer classes, `[...]`; NaN comes of a label that is no class.
      where: which examples are valid, `[...]`. All others have weights
        :math:`1 / K`, with zero gradient.

    Returns:
      The weights, `[teachers, ...]`, in at least float32.

    Raises:
      ValueError: if there are fewer than 2 teachers, or shapes do not fit.
      TypeError: if the logits are not floating-point, the labels not integer, or
        `where` not boolean.

    Examples:
      >>> import jax.numpy as jnp
      >>> from kdjax import losses
      >>> teacher_logits = jnp.log(jnp.array([[0.75, 0.25], [0.25, 0.75]]))
      >>> print(losses.confidence_weights(teacher_logits, jnp.array(0)).round(4))
      [0.75 0.25]

    References:
      Zhang et al., `Confidence-Aware Multi-Teacher Knowledge Distillation
      <https://arxiv.org/abs/2201.00007>`_, ICASSP 2022, equations 3 and 4.
    """
    _checks.check_logits(teacher_logits=teacher_logits)
    if teacher_logits.shape[0] < 2 or teacher_logits.ndim < 2:
        raise ValueError(
            "Expected teacher_logits [teachers, ..., num_classes] of at least 2 "
            f"teachers, got {teacher_logits.shape}."
        )
    _checks.check_labels(teacher_logits[0], labels)

    teacher_logits, _ = _prepare(teacher_logits, None, where)
    labels = _masking.drop_invalid_labels(where, labels)
    num_teachers = teacher_logits.shape[0]
    labels = jnp.broadcast_to(labels[None], teacher_logits.shape[:-1])
    hard = -_numerics.at_label(_numerics.log_probs(teacher_logits), labels)
    return (1 - jax.nn.softmax(hard, axis=0)) / (num_teachers - 1)


def multi_teacher_loss(
    student_logits: Float[Array, "*batch classes"],
    teacher_logits: Float[Array, "teachers *batch classes"],
    *,
    temperature: ScalarLike = 1.0,
    weights: Float[Array, " teachers *weights"] | None = None,
    where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
    r"""Weighted mean of the divergences of the student from several teachers.

    .. math::
      \ell = \tau^2 \sum_k w_k \, \mathrm{KL}\!\left(
        \mathrm{softmax}(z^k / \tau) \,\|\, \mathrm{softmax}(z^s / \tau)\right)
        \Big/ \sum_k w_k

    The mean of the losses; the losses of a mean are `soft_target_loss` with
    `average_logits` or `average_probs`. It exceeds the latter by the disagreement of
    the teachers, a constant to the student: the gradient is the same. FedDF's
    default, with the clients' numbers of examples for weights.

    Args:
      student_logits: unnormalised log-probabilities, `[..., num_classes]`.
      teacher_logits: unnormalised log-probabilities, `[teachers, ..., num_classes]`.
      temperature: softens all distributions; a positive scalar.
      weights: not negative; one for each teacher, `[teachers]`, or also for each
        example, `[teachers, ...]`. Equal if absent. Divided by their sum.
      where: which examples are valid, `[...]`. The loss and the gradient of every
        other example are exactly zero, even if its logits are not finite.

    Returns:
      The loss of each example in nats, `[...]`, in at least float32.

    Raises:
      ValueError: if shapes do not fit, or a concrete temperature is not positive.
      TypeError: if an array is not floating-point, or `where` is not boolean.

    Examples:
      >>> import jax.numpy as jnp
      >>> from kdjax import losses
      >>> student_logits = jnp.array([0.0, 0.0])
      >>> teacher_logits = jnp.array([[0.0, 0.0], [100.0, 0.0]])  # 0 and log(2).
      >>> print(losses.multi_teacher_loss(student_logits, teacher_logits).round(4))
      0.3466

    References:
      You et al., `Learning from Multiple Teacher Networks
      <https://doi.org/10.1145/3097983.3098135>`_, KDD 2017, section 3; federated as
      in Lin et al., `Ensemble Distillation for Robust Model Fusion in Federated
      Learning <https://arxiv.org/abs/2006.07242>`_, NeurIPS 2020, section 3.
    """
    _checks.check_logits(student_logits=student_logits)
    _checks.check_positive(temperature=temperature)

    teacher_logits, weights = _prepare(teacher_logits, weights, where)
    _checks.check_logits(
        student_logits=student_logits, one_of_teacher_logits=teacher_logits[0]
    )
    (student_logits,) = _masking.drop_invalid(where, student_logits)
    (temperature,) = _numerics.scalars(student_logits, temperature)
    student = _numerics.log_probs(student_logits, temperature)
    teacher = _numerics.log_probs(teacher_logits, temperature)
    divergences = _numerics.kl(teacher, jnp.broadcast_to(student[None], teacher.shape))
    loss = temperature**2 * jnp.sum(weights[..., 0] * divergences, axis=0)
    return _masking.zero_invalid(where, loss)


def mutual_loss(
    student_logits: Float[Array, "*batch classes"],
    peer_logits: Float[Array, "peers *batch classes"],
    *,
    temperature: ScalarLike = 1.0,
    where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
    r"""Mean divergence of a student from its peers, who learn along with it.

    Deep mutual learning: of :math:`K` networks, each minimises, besides its
    cross-entropy with the labels,

    .. math::
      \ell_i = \frac{\tau^2}{K - 1} \sum_{j \ne i} \mathrm{KL}(p^j \,\|\, p^i)

    The peers are teachers here: to have the paper's gradient, where each network
    takes the others as given, differentiate in the student only. The authors' code
    sums over the peers and lets the gradient flow into them, which is this times
    :math:`K - 1`, summed over the students and differentiated in all.

    Args:
      student_logits: unnormalised log-probabilities, `[..., num_classes]`.
      peer_logits: those of the other networks, `[peers, ..., num_classes]`.
      temperature: softens all distributions; a positive scalar, 1 in the paper.
      where: which examples are valid, `[...]`. The loss and the gradient of every
        other example are exactly zero, even if its logits are not finite.

    Returns:
      The loss of each example in nats, `[...]`, in at least float32.

    Raises:
      ValueError: if shapes do not fit, or a concrete temperature is not positive.
      TypeError: if an array is not floating-point, or `where` is not boolean.

    Examples:
      >>> import jax.numpy as jnp
      >>> from kdjax import losses
      >>> student_logits = jnp.array([0.0, 0.0])
      >>> peer_logits = jnp.array([[100.0, 0.0]])
      >>> print(losses.mutual_loss(student_logits, peer_logits).round(4))
      0.6931

    References:
      Zhang et al., `Deep Mutual Learning <https://arxiv.org/abs/1706.00384>`_, CVPR
      2018, equations 6 and 7.
    """
    return multi_teacher_loss(
        student_logits, peer_logits, temperature=temperature, where=where
    )


def _prepare(
    teacher_logits: jax.Array, weights: jax.Array | None, where: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    """Checked, masked logits, and weights `[K, ..., 1]` that sum to 1 over them."""
    _checks.check_logits(teacher_logits=teacher_logits)
    shape = teacher_logits.shape[:-1]
    _checks.check_where(where, shape[1:])
    if where is not None:
        where = jnp.broadcast_to(where[None], shape)
    (teacher_logits,) = _masking.drop_invalid(where, teacher_logits)
    if weights is None:
        weights = jnp.ones(shape[:1], teacher_logits.dtype)
    elif weights.shape not in (shape[:1], shape):
        raise ValueError(
            f"Expected weights {shape[:1]} or {shape}, one for each teacher or also "
            f"for each example, got {weights.shape}."
        )
    weights = weights.astype(teacher_logits.dtype)
    weights = weights.reshape(weights.shape + (1,) * (len(shape) - weights.ndim))
    if where is not None:
        weights = jnp.where(where, weights, 1)
    weights = weights / jnp.sum(weights, axis=0, keepdims=True)
    return teacher_logits, weights[..., None]
