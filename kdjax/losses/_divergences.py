"""Divergences between the distributions of student and teacher, without factors."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, ScalarLike

from kdjax.losses import _checks, _masking, _numerics


def forward_kl(
    student_logits: Float[Array, "*batch classes"],
    teacher_logits: Float[Array, "*batch classes"],
    *,
    temperature: ScalarLike = 1.0,
    where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
    r"""Forward Kullback-Leibler divergence, of the student from the teacher.

    .. math::
      \ell = \mathrm{KL}(p^t \,\|\, p^s) = \sum_c p^t_c (\log p^t_c - \log p^s_c),
      \qquad p = \mathrm{softmax}(z / \tau)

    The student must cover all that the teacher holds possible: mean seeking. This
    is `soft_target_loss` without its factor :math:`\tau^2`, and DistiLLM's "forward
    KL" plus the negative entropy of the teacher, a constant.

    Args:
      student_logits: unnormalised log-probabilities, `[..., num_classes]`.
      teacher_logits: unnormalised log-probabilities, `[..., num_classes]`.
      temperature: softens both distributions; a positive scalar.
      where: which examples are valid, `[...]`. The loss and the gradient of every
        other example are exactly zero, even if its logits are not finite.

    Returns:
      The divergence of each example in nats, `[...]`, in at least float32.

    Raises:
      ValueError: if the shapes differ, `where` does not fit them, or a concrete
        temperature is not positive.
      TypeError: if either array is not floating-point, or `where` is not boolean.

    Examples:
      >>> import jax.numpy as jnp
      >>> from kdjax import losses
      >>> student_logits = jnp.array([0.0, 0.0])
      >>> teacher_logits = jnp.array([100.0, 0.0])  # Certain: log 2 away.
      >>> print(losses.forward_kl(student_logits, teacher_logits).round(4))
      0.6931

    References:
      Kullback and Leibler, `On Information and Sufficiency
      <https://doi.org/10.1214/aoms/1177729694>`_, 1951, section 2.
    """
    _checks.check_logits(student_logits=student_logits, teacher_logits=teacher_logits)
    _checks.check_positive(temperature=temperature)

    student_logits, teacher_logits = _masking.drop_invalid(
        where, student_logits, teacher_logits
    )
    student = _numerics.log_probs(student_logits, temperature)
    teacher = _numerics.log_probs(teacher_logits, temperature)
    return _masking.zero_invalid(where, _numerics.kl(teacher, student))


def reverse_kl(
    student_logits: Float[Array, "*batch classes"],
    teacher_logits: Float[Array, "*batch classes"],
    *,
    temperature: ScalarLike = 1.0,
    where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
    r"""Reverse Kullback-Leibler divergence, of the teacher from the student.

    .. math::
      \ell = \mathrm{KL}(p^s \,\|\, p^t) = \sum_c p^s_c (\log p^s_c - \log p^t_c),
      \qquad p = \mathrm{softmax}(z / \tau)

    The student pays for mass where the teacher has none, and may ignore some of
    what the teacher holds possible: mode seeking, preferred for a student too
    small to cover a language model.

    Args:
      student_logits: unnormalised log-probabilities, `[..., num_classes]`.
      teacher_logits: unnormalised log-probabilities, `[..., num_classes]`.
      temperature: softens both distributions; a positive scalar.
      where: which examples are valid, `[...]`. The loss and the gradient of every
        other example are exactly zero, even if its logits are not finite.

    Returns:
      The divergence of each example in nats, `[...]`, in at least float32.

    Raises:
      ValueError: if the shapes differ, `where` does not fit them, or a concrete
        temperature is not positive.
      TypeError: if either array is not floating-point, or `where` is not boolean.

    Examples:
      >>> import jax.numpy as jnp
      >>> from kdjax import losses
      >>> student_logits = jnp.array([0.0, 0.0])
      >>> teacher_logits = jnp.array([100.0, 0.0])  # Half the mass at e**-100.
      >>> print(losses.reverse_kl(student_logits, teacher_logits).round(4))
      49.3069

    References:
      Gu et al., `MiniLLM: Knowledge Distillation of Large Language Models
      <https://arxiv.org/abs/2306.08543>`_, ICLR 2024, section 2.1.
    """
    _checks.check_logits(student_logits=student_logits, teacher_logits=teacher_logits)
    _checks.check_positive(temperature=temperature)

    student_logits, teacher_logits = _masking.drop_invalid(
        where, student_logits, teacher_logits
    )
    student = _numerics.log_probs(student_logits, temperature)
    teacher = _numerics.log_probs(teacher_logits, temperature)
    return _masking.zero_invalid(where, _numerics.kl(student, teacher))


def symmetric_kl(
    student_logits: Float[Array, "*batch classes"],
    teacher_logits: Float[Array, "*batch classes"],
    *,
    reverse_weight: ScalarLike = 0.5,
    temperature: ScalarLike = 1.0,
    where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
    r"""Weighted mean of the forward and the reverse divergence.

    .. math::
      \ell = (1 - \lambda) \, \mathrm{KL}(p^t \,\|\, p^s)
      + \lambda \, \mathrm{KL}(p^s \,\|\, p^t)

    Symmetric in its arguments at :math:`\lambda = 1/2`, where it is half of
    Jeffreys's divergence. DistiLLM's code uses 0.9.

    Args:
      student_logits: unnormalised log-probabilities, `[..., num_classes]`.
      teacher_logits: unnormalised log-probabilities, `[..., num_classes]`.
      reverse_weight: the share :math:`\lambda` of the reverse divergence; from 0
        to 1.
      temperature: softens both distributions; a positive scalar.
      where: which examples are valid, `[...]`. The loss and the gradient of every
        other example are exactly zero, even if its logits are not finite.

    Returns:
      The divergence of each example in nats, `[...]`, in at least float32.

    Raises:
      ValueError: if the shapes differ, `where` does not fit them, a concrete
        temperature is not positive, or a concrete `reverse_weight` is not between 0
        and 1.
      TypeError: if either array is not floating-point, or `where` is not boolean.

    Examples:
      >>> import jax.numpy as jnp
      >>> from kdjax import losses
      >>> student_logits = jnp.array([0.0, 0.0])
      >>> teacher_logits = jnp.array([100.0, 0.0])
      >>> print(losses.symmetric_kl(student_logits, teacher_logits).round(4))
      25.0

    References:
      Jeffreys, `An Invariant Form for the Prior Probability
      <https://doi.org/10.1098/rspa.1946.0056>`_, 1946; as used by Ko et al.,
      `DistiLLM <https://arxiv.org/abs/2402.03898>`_, ICML 2024, section 4.
    """
    _checks.check_logits(student_logits=student_logits, teacher_logits=teacher_logits)
    _checks.check_positive(temperature=temperature)
    _checks.check_fraction(reverse_weight=reverse_weight)

    student_logits, teacher_logits = _masking.drop_invalid(
        where, student_logits, teacher_logits
    )
    (reverse_weight,) = _numerics.scalars(student_logits, reverse_weight)
    student = _numerics.log_probs(student_logits, temperature)
    teacher = _numerics.log_probs(teacher_logits, temperature)
    forward, reverse = _numerics.kl(teacher, student), _numerics.kl(student, teacher)
    loss = (1 - reverse_weight) * forward + reverse_weight * reverse
    return _masking.zero_invalid(where, loss)


def total_variation(
    student_logits: Float[Array, "*batch classes"],
    teacher_logits: Float[Array, "*batch classes"],
    *,
    temperature: ScalarLike = 1.0,
    where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
    r"""Total variation distance: the mass to move from one to the other.

    .. math::
      \ell = \frac{1}{2} \sum_c |p^s_c - p^t_c|, \qquad p = \mathrm{softmax}(z / \tau)

    Symmetric and at most 1; by Pinsker's inequality at most :math:`\sqrt{KL / 2}`.
    Its gradient is zero, a choice among subgradients, for a class of equal
    probability on both sides.

    Args:
      student_logits: unnormalised log-probabilities, `[..., num_classes]`.
      teacher_logits: unnormalised log-probabilities, `[..., num_classes]`.
      temperature: softens both distributions; a positive scalar.
      where: which examples are valid, `[...]`. The loss and the gradient of every
        other example are exactly zero, even if its logits are not finite.

    Returns:
      The distance of each example, from 0 to 1, `[...]`, in at least float32.

    Raises:
      ValueError: if the shapes differ, `where` does not fit them, or a concrete
        temperature is not positive.
      TypeError: if either array is not floating-point, or `where` is not boolean.

    Examples:
      >>> import jax.numpy as jnp
      >>> from kdjax import losses
      >>> print(losses.total_variation(
      ...     jnp.array([0.0, 0.0]), jnp.array([100.0, 0.0])))
      0.5

    References:
      Wen et al., `f-Divergence Minimization for Sequence-Level Knowledge
      Distillation <https://arxiv.org/abs/2307.15190>`_, ACL 2023, section 3.
    """
    _checks.check_logits(student_logits=student_logits, teacher_logits=teacher_logits)
    _checks.check_positive(temperature=temperature)

    student_logits, teacher_logits = _masking.drop_invalid(
        where, student_logits, teacher_logits
    )
    student_probs = jnp.exp(_numerics.log_probs(student_logits, temperature))
    teacher_probs = jnp.exp(_numerics.log_probs(teacher_logits, temperature))
    distance = 0.5 * jnp.sum(_numerics.absolute(student_probs - teacher_probs), axis=-1)
    return _masking.zero_invalid(where, distance)


def top_k_kl(
    student_logits: Float[Array, "*batch classes"],
    teacher_logits: Float[Array, "*batch classes"],
    *,
    num_kept: int,
    temperature: ScalarLike = 1.0,
    where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
    r"""Forward divergence over the teacher's top classes and one bucket for the rest.

    With :math:`K` the teacher's most probable classes, and :math:`\tilde p` the
    probabilities of these and, as one class more, of all others together:

    .. math::
      \ell = \mathrm{KL}(\tilde p^t \,\|\, \tilde p^s), \qquad
      \tilde p = \bigl(p_c \text{ for } c \in K,\ 1 - \textstyle\sum_{c \in K} p_c\bigr)

    Neither side is renormalised to the top classes, so the student is told how much
    mass lies outside. Never more than `forward_kl`, and equal to it where the
    student is proportional to the teacher outside of :math:`K`. The bucket is
    summed in log space, as 1 minus the rest would lose it.

    Args:
      student_logits: unnormalised log-probabilities, `[..., num_classes]`.
      teacher_logits: unnormalised log-probabilities, `[..., num_classes]`.
      num_kept: how many classes of the teacher to keep apart; from 1 to
        `num_classes - 1`. It sets shapes, so it is a Python integer.
      temperature: softens both distributions; a positive scalar.
      where: which examples are valid, `[...]`. The loss and the gradient of every
        other example are exactly zero, even if its logits are not finite.

    Returns:
      The divergence of each example in nats, `[...]`, in at least float32.

    Raises:
      ValueError: if the shapes differ, `where` does not fit them, `num_kept` is out
        of its range, or a concrete temperature is not positive.
      TypeError: if either array is not floating-point, or `where` is not boolean.

    Examples:
      >>> import jax.numpy as jnp
      >>> from kdjax import losses
      >>> student_logits = jnp.array([0.0, 0.0, 0.0, 0.0])
      >>> teacher_logits = jnp.array([100.0, 0.0, 0.0, 0.0])
      >>> print(losses.top_k_kl(student_logits, teacher_logits, num_kept=1).round(4))
      1.3863

    References:
      Anshumann et al., `Sparse Logit Sampling <https://arxiv.org/abs/2503.16870>`_,
      ACL 2025, section 3, on what truncation without the bucket does.
    """
    _checks.check_logits(student_logits=student_logits, teacher_logits=teacher_logits)
    _checks.check_positive(temperature=temperature)
    num_classes = teacher_logits.shape[-1]
    if not 1 <= num_kept < num_classes:
        raise ValueError(
            f"Expected num_kept from 1 to {num_classes - 1}, one less than there are "
            f"classes, got {num_kept}."
        )

    student_logits, teacher_logits = _masking.drop_invalid(
        where, student_logits, teacher_logits
    )
    _, kept = jax.lax.top_k(teacher_logits, num_kept)
    student, teacher = (
        _keep(_numerics.log_probs(logits, temperature), kept)
        for logits in (student_logits, teacher_logits)
    )
    return _masking.zero_invalid(where, _numerics.kl(teacher, student))


def _keep(log_probs: jax.Array, kept: jax.Array) -> jax.Array:
    """The kept log-probabilities, then that of all other classes, `[..., K + 1]`."""
    top = jnp.take_along_axis(log_probs, kept, axis=-1)
    others = jnp.put_along_axis(log_probs, kept, -jnp.inf, axis=-1, inplace=False)
    return jnp.concatenate([top, _numerics.log_sum(others)[..., None]], axis=-1)
