"""Divergences from a mixture of student and teacher, or of two divergences."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, ScalarLike

from kdjax.losses import _checks, _masking, _numerics


def jensen_shannon(
    student_logits: Float[Array, "*batch classes"],
    teacher_logits: Float[Array, "*batch classes"],
    *,
    beta: ScalarLike = 0.5,
    normalized: bool = False,
    temperature: ScalarLike = 1.0,
    where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
    r"""Generalised Jensen-Shannon divergence.

    The mean divergence of both distributions from their mixture:

    .. math::
      \ell = \beta \, \mathrm{KL}(p^t \,\|\, m)
        + (1 - \beta) \, \mathrm{KL}(p^s \,\|\, m),
      \qquad m = \beta p^t + (1 - \beta) p^s

    Bounded by the entropy of :math:`(\beta, 1 - \beta)`, at most :math:`\log 2`. It
    vanishes with :math:`\beta` and :math:`1 - \beta`. If `normalized`, it is divided
    by :math:`\beta (1 - \beta)` and so tends to `forward_kl` as :math:`\beta \to 0`
    and to `reverse_kl` as :math:`\beta \to 1`, which are its values there.

    GKD's published form is the plain one between 0 and 1, and jumps to the two
    divergences *at* 0 and 1: a sweep over :math:`\beta` there changes the size of
    the loss 10,000-fold between :math:`10^{-4}` and 0. `normalized` has no jump.

    Args:
      student_logits: unnormalised log-probabilities, `[..., num_classes]`.
      teacher_logits: unnormalised log-probabilities, `[..., num_classes]`.
      beta: the teacher's share of the mixture; from 0 to 1.
      normalized: whether to divide by `beta * (1 - beta)`.
      temperature: softens both distributions; a positive scalar.
      where: which examples are valid, `[...]`. The loss and the gradient of every
        other example are exactly zero, even if its logits are not finite.

    Returns:
      The divergence of each example in nats, `[...]`, in at least float32.

    Raises:
      ValueError: if the shapes differ, `where` does not fit them, a concrete
        temperature is not positive, or a concrete `beta` is not between 0 and 1.
      TypeError: if either array is not floating-point, or `where` is not boolean.

    Examples:
      >>> import jax.numpy as jnp
      >>> from kdjax import losses
      >>> student_logits = jnp.array([0.0, 100.0])
      >>> teacher_logits = jnp.array([100.0, 0.0])  # Opposites: log 2 apart.
      >>> print(losses.jensen_shannon(student_logits, teacher_logits).round(4))
      0.6931

    References:
      Agarwal et al., `On-Policy Distillation of Language Models
      <https://arxiv.org/abs/2306.13649>`_, ICLR 2024, section 2.
    """
    _checks.check_logits(student_logits=student_logits, teacher_logits=teacher_logits)
    _checks.check_positive(temperature=temperature)
    _checks.check_fraction(beta=beta)

    student_logits, teacher_logits = _masking.drop_invalid(
        where, student_logits, teacher_logits
    )
    (beta,) = _numerics.scalars(student_logits, beta)
    student = _numerics.log_probs(student_logits, temperature)
    teacher = _numerics.log_probs(teacher_logits, temperature)
    # At its ends the mixture is one of the two, and what follows 0 or 0 / 0.
    inner = jnp.where((beta > 0) & (beta < 1), beta, 0.5)
    mixture = _numerics.log_mixture(student, teacher, inner)
    loss = inner * _numerics.kl(teacher, mixture)
    loss += (1 - inner) * _numerics.kl(student, mixture)
    if normalized:
        loss /= inner * (1 - inner)
        loss = jnp.where(beta <= 0, _numerics.kl(teacher, student), loss)
        loss = jnp.where(beta >= 1, _numerics.kl(student, teacher), loss)
    else:
        loss = jnp.where(inner == beta, loss, 0)
    return _masking.zero_invalid(where, loss)


def skew_forward_kl(
    student_logits: Float[Array, "*batch classes"],
    teacher_logits: Float[Array, "*batch classes"],
    *,
    skew: ScalarLike = 0.1,
    temperature: ScalarLike = 1.0,
    where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
    r"""Forward divergence from a mixture of the student with some teacher.

    .. math::
      \ell = \mathrm{KL}(p^t \,\|\, \lambda p^t + (1 - \lambda) p^s)

    Some of the teacher in the second argument bounds the loss by :math:`-\log
    \lambda` and its gradient with it, where the forward divergence explodes as the
    student forgets a class. At :math:`\lambda = 0` it is `forward_kl`.

    The authors' code omits the teacher's entropy, a constant, from the value.

    Args:
      student_logits: unnormalised log-probabilities, `[..., num_classes]`.
      teacher_logits: unnormalised log-probabilities, `[..., num_classes]`.
      skew: the teacher's share :math:`\lambda` of the mixture; from 0 to 1.
      temperature: softens both distributions; a positive scalar.
      where: which examples are valid, `[...]`. The loss and the gradient of every
        other example are exactly zero, even if its logits are not finite.

    Returns:
      The divergence of each example in nats, `[...]`, in at least float32.

    Raises:
      ValueError: if the shapes differ, `where` does not fit them, a concrete
        temperature is not positive, or a concrete `skew` is not between 0 and 1.
      TypeError: if either array is not floating-point, or `where` is not boolean.

    Examples:
      >>> import jax.numpy as jnp
      >>> from kdjax import losses
      >>> student_logits = jnp.array([0.0, 1000.0])
      >>> teacher_logits = jnp.array([1000.0, 0.0])  # At the bound, -log 0.1.
      >>> print(losses.skew_forward_kl(student_logits, teacher_logits).round(4))
      2.3026

    References:
      Ko et al., `DistiLLM: Towards Streamlined Distillation for Large Language
      Models <https://arxiv.org/abs/2402.03898>`_, ICML 2024, section 3.1.
    """
    _checks.check_logits(student_logits=student_logits, teacher_logits=teacher_logits)
    _checks.check_positive(temperature=temperature)
    _checks.check_fraction(skew=skew)

    student_logits, teacher_logits = _masking.drop_invalid(
        where, student_logits, teacher_logits
    )
    student = _numerics.log_probs(student_logits, temperature)
    teacher = _numerics.log_probs(teacher_logits, temperature)
    mixture = _numerics.log_mixture(student, teacher, skew)
    return _masking.zero_invalid(where, _numerics.kl(teacher, mixture))


def skew_reverse_kl(
    student_logits: Float[Array, "*batch classes"],
    teacher_logits: Float[Array, "*batch classes"],
    *,
    skew: ScalarLike = 0.1,
    temperature: ScalarLike = 1.0,
    where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
    r"""Reverse divergence from a mixture of the teacher with some student.

    .. math::
      \ell = \mathrm{KL}(p^s \,\|\, (1 - \lambda) p^t + \lambda p^s)

    Some of the student in the second argument bounds the loss by :math:`-\log
    \lambda`, where the reverse divergence explodes as the student finds a class
    that the teacher holds impossible. At :math:`\lambda = 0` it is `reverse_kl`.

    Args:
      student_logits: unnormalised log-probabilities, `[..., num_classes]`.
      teacher_logits: unnormalised log-probabilities, `[..., num_classes]`.
      skew: the student's share :math:`\lambda` of the mixture; from 0 to 1.
      temperature: softens both distributions; a positive scalar.
      where: which examples are valid, `[...]`. The loss and the gradient of every
        other example are exactly zero, even if its logits are not finite.

    Returns:
      The divergence of each example in nats, `[...]`, in at least float32.

    Raises:
      ValueError: if the shapes differ, `where` does not fit them, a concrete
        temperature is not positive, or a concrete `skew` is not between 0 and 1.
      TypeError: if either array is not floating-point, or `where` is not boolean.

    Examples:
      >>> import jax.numpy as jnp
      >>> from kdjax import losses
      >>> student_logits = jnp.array([0.0, 1000.0])
      >>> teacher_logits = jnp.array([1000.0, 0.0])  # At the bound, -log 0.1.
      >>> print(losses.skew_reverse_kl(student_logits, teacher_logits).round(4))
      2.3026

    References:
      Ko et al., `DistiLLM: Towards Streamlined Distillation for Large Language
      Models <https://arxiv.org/abs/2402.03898>`_, ICML 2024, section 3.1.
    """
    _checks.check_logits(student_logits=student_logits, teacher_logits=teacher_logits)
    _checks.check_positive(temperature=temperature)
    _checks.check_fraction(skew=skew)

    student_logits, teacher_logits = _masking.drop_invalid(
        where, student_logits, teacher_logits
    )
    student = _numerics.log_probs(student_logits, temperature)
    teacher = _numerics.log_probs(teacher_logits, temperature)
    mixture = _numerics.log_mixture(teacher, student, skew)
    return _masking.zero_invalid(where, _numerics.kl(student, mixture))


def adaptive_kl(
    student_logits: Float[Array, "*batch classes"],
    teacher_logits: Float[Array, "*batch classes"],
    *,
    head_mass: ScalarLike = 0.5,
    temperature: ScalarLike = 1.0,
    where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
    r"""Forward and reverse divergence, weighted by where the two differ.

    Early in training the forward divergence learns the teacher's likely classes,
    the reverse one its unlikely classes. Each gets the share of the gap that it is
    good at closing:

    .. math::
      \ell = \frac{g_h}{g_h + g_t} \, \mathrm{KL}(p^t \,\|\, p^s)
        + \frac{g_t}{g_h + g_t} \, \mathrm{KL}(p^s \,\|\, p^t),
      \qquad g = \sum_c |p^t_c - p^s_c|

    over the head for :math:`g_h` and the tail for :math:`g_t`. The head is the
    teacher's most probable class, and more of them in order as long as together
    they hold no more than `head_mass`; classes of equal probability are on the same
    side, so the order of the classes does not matter. The shares are not
    differentiated.

    Args:
      student_logits: unnormalised log-probabilities, `[..., num_classes]`.
      teacher_logits: unnormalised log-probabilities, `[..., num_classes]`.
      head_mass: the largest probability of a head of more than one class; from 0
        to 1.
      temperature: softens both distributions; a positive scalar.
      where: which examples are valid, `[...]`. The loss and the gradient of every
        other example are exactly zero, even if its logits are not finite.

    Returns:
      The divergence of each example in nats, `[...]`, in at least float32.

    Raises:
      ValueError: if the shapes differ, `where` does not fit them, a concrete
        temperature is not positive, or a concrete `head_mass` is not between 0
        and 1.
      TypeError: if either array is not floating-point, or `where` is not boolean.

    Examples:
      >>> import jax.numpy as jnp
      >>> from kdjax import losses
      >>> student_logits = jnp.log(jnp.array([0.6, 0.3, 0.1]))
      >>> teacher_logits = jnp.log(jnp.array([0.6, 0.1, 0.3]))  # All gap in the tail.
      >>> print(losses.adaptive_kl(student_logits, teacher_logits).round(4))
      0.2197

    References:
      Wu et al., `Rethinking Kullback-Leibler Divergence in Knowledge Distillation
      for Large Language Models <https://arxiv.org/abs/2404.02657>`_, COLING 2025,
      section 4.3.
    """
    _checks.check_logits(student_logits=student_logits, teacher_logits=teacher_logits)
    _checks.check_positive(temperature=temperature)
    _checks.check_fraction(head_mass=head_mass)

    student_logits, teacher_logits = _masking.drop_invalid(
        where, student_logits, teacher_logits
    )
    (head_mass,) = _numerics.scalars(student_logits, head_mass)
    student = _numerics.log_probs(student_logits, temperature)
    teacher = _numerics.log_probs(teacher_logits, temperature)
    head_share = jax.lax.stop_gradient(
        _head_share(jnp.exp(student), jnp.exp(teacher), head_mass)
    )
    loss = head_share * _numerics.kl(teacher, student)
    loss += (1 - head_share) * _numerics.kl(student, teacher)
    return _masking.zero_invalid(where, loss)


def _head_share(
    student_probs: jax.Array, teacher_probs: jax.Array, head_mass: jax.Array
) -> jax.Array:
    """The share of the gap between student and teacher that lies in the head."""
    descending = jnp.sort(teacher_probs, axis=-1, descending=True)
    fits = jnp.cumsum(descending, axis=-1) <= head_mass
    # The most probable class that no longer fits: only those above it are in.
    excluded = jnp.max(jnp.where(fits, -1, descending), axis=-1, keepdims=True)
    is_head = (teacher_probs > excluded) | (teacher_probs == descending[..., :1])
    gap = jnp.abs(teacher_probs - student_probs)
    total = jnp.sum(gap, axis=-1)
    head = jnp.sum(jnp.where(is_head, gap, 0), axis=-1)
    # No gap at all: the shares are 0 / 0 and both divergences zero.
    return jnp.where(total > 0, head / jnp.where(total > 0, total, 1), 0.5)
