"""Losses that weigh examples, or temper one side only."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, ScalarLike

from kdjax.losses import _checks, _masking, _numerics


def wsld_loss(
    student_logits: Float[Array, "*batch classes"],
    teacher_logits: Float[Array, "*batch classes"],
    labels: Int[Array, "*batch"],
    *,
    temperature: ScalarLike = 2.0,
    where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
    r"""Cross-entropy with soft targets, where the student is behind the teacher.

    Weighted soft labels. The more the student's loss on the label exceeds the
    teacher's, the more it has to learn from the soft targets, and the more their
    variance pays for less bias:

    .. math::
      \ell = -w \, \tau^2 \sum_c p^t_c(\tau) \log p^s_c(\tau), \qquad
      w = 1 - \exp\!\left(-\frac{\log p^s_y}{\log p^t_y}\right)

    The weight :math:`w`, from 0 to 1, is at temperature 1 and is not differentiated.
    Cross-entropy, not divergence, so not zero where the student equals the teacher.
    The authors weigh the term 2.5 with :math:`\tau = 2` on ImageNet, 2.25 with
    :math:`\tau = 4` on CIFAR-100.

    Args:
      student_logits: unnormalised log-probabilities, `[..., num_classes]`.
      teacher_logits: unnormalised log-probabilities, `[..., num_classes]`.
      labels: integer classes, `[...]`; NaN comes of a label that is no class.
      temperature: softens both distributions; a positive scalar.
      where: which examples are valid, `[...]`. The loss and the gradient of every
        other example are exactly zero, whatever its logits and label hold.

    Returns:
      The loss of each example in nats, `[...]`, in at least float32.

    Raises:
      ValueError: if shapes do not fit, or a concrete temperature is not positive.
      TypeError: if the logits are not floating-point, the labels not integer, or
        `where` not boolean.

    Examples:
      >>> import jax.numpy as jnp
      >>> from kdjax import losses
      >>> logits = jnp.array([0.0, 0.0])  # (1 - 1/e) * 4 * log(2)
      >>> print(losses.wsld_loss(logits, logits, jnp.array(0)).round(4))
      1.7526

    References:
      Zhou et al., `Rethinking Soft Labels for Knowledge Distillation: A
      Bias-Variance Tradeoff Perspective <https://arxiv.org/abs/2102.00650>`_, ICLR
      2021, equation 10.
    """
    _checks.check_logits(student_logits=student_logits, teacher_logits=teacher_logits)
    _checks.check_labels(student_logits, labels)
    _checks.check_positive(temperature=temperature)

    student_logits, teacher_logits = _masking.drop_invalid(
        where, student_logits, teacher_logits
    )
    labels = _masking.drop_invalid_labels(where, labels)
    (temperature,) = _numerics.scalars(student_logits, temperature)
    student_hard, teacher_hard = (
        -_numerics.at_label(_numerics.log_probs(logits), labels)
        for logits in (student_logits, teacher_logits)
    )
    # 1e-7 as in the authors' code: a sure teacher's loss may be exactly zero.
    weight = jax.lax.stop_gradient(-jnp.expm1(-student_hard / (teacher_hard + 1e-7)))
    loss = _numerics.cross_entropy(
        jnp.exp(_numerics.log_probs(teacher_logits, temperature)),
        _numerics.log_probs(student_logits, temperature),
    )
    return _masking.zero_invalid(where, weight * temperature**2 * loss)


def ttm_loss(
    student_logits: Float[Array, "*batch classes"],
    teacher_logits: Float[Array, "*batch classes"],
    *,
    temperature: ScalarLike,
    where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
    r"""Divergence of the student, as it is, from the softened teacher.

    Transformed teacher matching:

    .. math::
      \ell = \mathrm{KL}\!\left(
        \mathrm{softmax}(z^t / \tau) \,\|\, \mathrm{softmax}(z^s)\right)

    Softening is the power transform :math:`p \to p^{1/\tau}`, normalised. To leave
    the student out of it is to add a Rényi entropy of the student to Hinton's loss,
    a regulariser. No factor :math:`\tau^2`. The student's best is the *softened*
    teacher, so the loss is not zero where both have the same logits unless
    :math:`\tau = 1`, where it is `forward_kl`.

    Args:
      student_logits: unnormalised log-probabilities, `[..., num_classes]`.
      teacher_logits: unnormalised log-probabilities, `[..., num_classes]`.
      temperature: softens the teacher's distribution only; a positive scalar, the
        reciprocal of the paper's exponent.
      where: which examples are valid, `[...]`. The loss and the gradient of every
        other example are exactly zero, even if its logits are not finite.

    Returns:
      The loss of each example in nats, `[...]`, in at least float32.

    Raises:
      ValueError: if the shapes differ, `where` does not fit them, or a concrete
        temperature is not positive.
      TypeError: if either array is not floating-point, or `where` is not boolean.

    Examples:
      >>> import jax.numpy as jnp
      >>> from kdjax import losses
      >>> teacher_logits = jnp.array([4.0, 0.0])
      >>> print(losses.ttm_loss(teacher_logits / 4, teacher_logits, temperature=4.0))
      0.0

    References:
      Zheng and Yang, `Knowledge Distillation Based on Transformed Teacher Matching
      <https://arxiv.org/abs/2402.11148>`_, ICLR 2024, section 3.
    """
    _checks.check_logits(student_logits=student_logits, teacher_logits=teacher_logits)
    _checks.check_positive(temperature=temperature)

    student_logits, teacher_logits = _masking.drop_invalid(
        where, student_logits, teacher_logits
    )
    loss = _numerics.kl(
        _numerics.log_probs(teacher_logits, temperature),
        _numerics.log_probs(student_logits),
    )
    return _masking.zero_invalid(where, loss)


def wttm_loss(
    student_logits: Float[Array, "*batch classes"],
    teacher_logits: Float[Array, "*batch classes"],
    *,
    temperature: ScalarLike,
    where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
    r"""Divergence from the softened teacher, weighted by how unsure it is.

    Weighted transformed teacher matching, `ttm_loss` times the power sum of the
    teacher's probabilities:

    .. math::
      \ell = \Bigl(\sum_c (p^t_c)^{1/\tau}\Bigr) \, \mathrm{KL}\!\left(
        \mathrm{softmax}(z^t / \tau) \,\|\, \mathrm{softmax}(z^s)\right)

    For :math:`\tau > 1` the weight is 1 for a certain teacher and :math:`C^{1 -
    1/\tau}` for a uniform one of :math:`C` classes. No factor :math:`\tau^2`.

    Args:
      student_logits: unnormalised log-probabilities, `[..., num_classes]`.
      teacher_logits: unnormalised log-probabilities, `[..., num_classes]`.
      temperature: softens the teacher's distribution only; a positive scalar, the
        reciprocal of the paper's exponent.
      where: which examples are valid, `[...]`. The loss and the gradient of every
        other example are exactly zero, even if its logits are not finite.

    Returns:
      The loss of each example in nats, `[...]`, in at least float32.

    Raises:
      ValueError: if the shapes differ, `where` does not fit them, or a concrete
        temperature is not positive.
      TypeError: if either array is not floating-point, or `where` is not boolean.

    Examples:
      >>> import jax.numpy as jnp
      >>> from kdjax import losses
      >>> student_logits = jnp.log(jnp.array([0.9, 0.1]))
      >>> teacher_logits = jnp.array([0.0, 0.0])  # sqrt(2) * log(5 / 3)
      >>> print(losses.wttm_loss(
      ...     student_logits, teacher_logits, temperature=2.0).round(4))
      0.7224

    References:
      Zheng and Yang, `Knowledge Distillation Based on Transformed Teacher Matching
      <https://arxiv.org/abs/2402.11148>`_, ICLR 2024, section 4.
    """
    loss = ttm_loss(
        student_logits, teacher_logits, temperature=temperature, where=where
    )
    (teacher_logits,) = _masking.drop_invalid(where, teacher_logits)
    (temperature,) = _numerics.scalars(teacher_logits, temperature)
    log_probs = _numerics.log_probs(teacher_logits)
    excluded = jnp.isneginf(log_probs)
    powers = jnp.exp(jnp.where(excluded, 0, log_probs) / temperature)
    weight = jnp.sum(jnp.where(excluded, 0, powers), axis=-1)
    return _masking.zero_invalid(where, weight * loss)


def cwtm_loss(
    student_logits: Float[Array, "batch classes"],
    teacher_logits: Float[Array, "batch classes"],
    labels: Int[Array, " batch"],
    *,
    where: Bool[Array, " batch"] | None = None,
) -> Float[Array, " batch"]:
    r"""Cross-entropy with the labels, weighted by the teacher's confidence.

    Confidence-weighted by teacher max, a control for born-again networks: how much
    of distillation is importance weighting? The teacher's other probabilities are
    not used:

    .. math::
      \ell_i = -\frac{B \max_c p^t_{ic}}{\sum_j \max_c p^t_{jc}} \log p^s_{i y_i}

    The weights have mean 1 over the batch of :math:`B` examples, so that the mean of
    the losses is the paper's sum. Couples examples: through that mean alone.

    Args:
      student_logits: unnormalised log-probabilities, `[batch, num_classes]`.
      teacher_logits: unnormalised log-probabilities, `[batch, num_classes]`.
      labels: integer classes, `[batch]`; NaN comes of a label that is no class.
      where: which examples are valid, `[batch]`. The loss and the gradient of every
        other example are exactly zero, and it is not in the mean of the batch.

    Returns:
      The loss of each example in nats, `[batch]`, in at least float32.

    Raises:
      ValueError: if shapes do not fit.
      TypeError: if the logits are not floating-point, the labels not integer, or
        `where` not boolean.

    Examples:
      >>> import jax.numpy as jnp
      >>> from kdjax import losses
      >>> student_logits = jnp.zeros((2, 2))
      >>> teacher_logits = jnp.array([[100.0, 0.0], [0.0, 0.0]])  # Sure, unsure.
      >>> print(losses.cwtm_loss(
      ...     student_logits, teacher_logits, jnp.array([0, 0])).round(4))
      [0.9242 0.4621]

    References:
      Furlanello et al., `Born-Again Neural Networks
      <https://arxiv.org/abs/1805.04770>`_, ICML 2018, equation 9.
    """
    _checks.check_logits(student_logits=student_logits, teacher_logits=teacher_logits)
    _checks.check_labels(student_logits, labels)

    student_logits, teacher_logits = _masking.drop_invalid(
        where, student_logits, teacher_logits
    )
    labels = _masking.drop_invalid_labels(where, labels)
    confidence = jnp.exp(jnp.max(_numerics.log_probs(teacher_logits), axis=-1))
    confidence = _masking.zero_invalid(where, confidence)
    mean = jnp.sum(confidence) / _masking.num_valid(where, confidence)
    # Only without a valid example is the mean zero: a confidence is at least 1 / C.
    weight = confidence / jnp.where(mean > 0, mean, 1)
    loss = -_numerics.at_label(_numerics.log_probs(student_logits), labels)
    return _masking.zero_invalid(where, weight * loss)
