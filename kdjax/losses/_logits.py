"""Losses that compare the logits of a student with those of a teacher."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, ScalarLike

from kdjax.losses import _checks, _masking, _numerics


def soft_target_loss(
    student_logits: Float[Array, "*batch classes"],
    teacher_logits: Float[Array, "*batch classes"],
    *,
    temperature: ScalarLike = 1.0,
    where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
    r"""Divergence of the student from the teacher's softened distribution.

    The forward KL divergence between class distributions softened by a
    temperature :math:`\tau`:

    .. math::
      \ell = \tau^2 \, \mathrm{KL}\!\left(
        \mathrm{softmax}(z^t / \tau) \,\|\, \mathrm{softmax}(z^s / \tau)\right)

    The factor :math:`\tau^2` keeps the size of the gradient independent of
    :math:`\tau`, so that the weight of this term need not be retuned with it. As
    :math:`\tau \to \infty` the gradient tends to that of matching zero-mean
    logits, :math:`(z^s - z^t) / C` for :math:`C` classes.

    There is no hard-label term, and no gradient is stopped: compose both outside.

    Args:
      student_logits: unnormalised log-probabilities, `[..., num_classes]`.
      teacher_logits: unnormalised log-probabilities, `[..., num_classes]`.
      temperature: softens both distributions; a positive scalar. Map over this
        argument with `jax.vmap` for one temperature per example.
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
      >>> student_logits = jnp.array([[2.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
      >>> teacher_logits = jnp.array([[3.0, 0.0, 0.0], [1.0, 1.0, 1.0]])
      >>> print(losses.soft_target_loss(
      ...     student_logits, teacher_logits, temperature=4.0).round(4))
      [0.3527 0.    ]

    References:
      Hinton et al., `Distilling the Knowledge in a Neural Network
      <https://arxiv.org/abs/1503.02531>`_, 2015, section 2.
    """
    _checks.check_logits(student_logits=student_logits, teacher_logits=teacher_logits)
    _checks.check_positive(temperature=temperature)

    student_logits, teacher_logits = _masking.drop_invalid(
        where, student_logits, teacher_logits
    )
    (temperature,) = _numerics.scalars(student_logits, temperature)
    divergence = _numerics.kl(
        _numerics.log_probs(teacher_logits, temperature),
        _numerics.log_probs(student_logits, temperature),
    )
    return _masking.zero_invalid(where, temperature**2 * divergence)


def logit_matching_loss(
    student_logits: Float[Array, "*batch classes"],
    teacher_logits: Float[Array, "*batch classes"],
    *,
    where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
    r"""Half the mean squared difference of centred logits.

    Regression on the teacher's logits, each side without its mean over the classes,
    which no prediction depends on:

    .. math::
      \ell = \frac{1}{2C} \sum_c \bigl((z^s_c - \bar z^s) - (z^t_c - \bar z^t)\bigr)^2

    It is the limit of `soft_target_loss` as its temperature grows, constant
    included; the mean squared error is twice this. Classes at -inf on both sides
    are left out, of the count :math:`C` and the means as well.

    Args:
      student_logits: unnormalised log-probabilities, `[..., num_classes]`.
      teacher_logits: unnormalised log-probabilities, `[..., num_classes]`.
      where: which examples are valid, `[...]`. The loss and the gradient of every
        other example are exactly zero, even if its logits are not finite.

    Returns:
      The loss of each example in squared logits, `[...]`, in at least float32.

    Raises:
      ValueError: if the shapes differ, or `where` does not fit them.
      TypeError: if either array is not floating-point, or `where` is not boolean.

    Examples:
      >>> import jax.numpy as jnp
      >>> from kdjax import losses
      >>> student_logits = jnp.array([[2.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
      >>> teacher_logits = jnp.array([[3.0, 0.0, 0.0], [1.0, 1.0, 1.0]])
      >>> print(losses.logit_matching_loss(student_logits, teacher_logits).round(4))
      [0.3333 0.    ]

    References:
      Ba and Caruana, `Do Deep Nets Really Need to be Deep?
      <https://arxiv.org/abs/1312.6184>`_, NeurIPS 2014, section 2.2; centred as in
      Hinton et al., `Distilling the Knowledge in a Neural Network
      <https://arxiv.org/abs/1503.02531>`_, 2015, section 2.1.
    """
    _checks.check_logits(student_logits=student_logits, teacher_logits=teacher_logits)

    student_logits, teacher_logits = _masking.drop_invalid(
        where, student_logits, teacher_logits
    )
    difference, is_class = _difference(student_logits, teacher_logits)
    count = jnp.sum(is_class, axis=-1, keepdims=True, dtype=difference.dtype)
    mean = jnp.sum(difference, axis=-1, keepdims=True) / count
    squares = jnp.where(is_class, difference - mean, 0) ** 2
    loss = 0.5 * jnp.sum(squares, axis=-1) / count[..., 0]
    return _masking.zero_invalid(where, loss)


def fedmd_loss(
    student_logits: Float[Array, "*batch classes"],
    teacher_logits: Float[Array, "*batch classes"],
    *,
    where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
    r"""Mean absolute difference of the logits.

    What a party of a federation minimises in its digest phase; the teacher's logits
    are the consensus, `average_logits` of all parties on public examples:

    .. math:: \ell = \frac{1}{C} \sum_c |z^s_c - z^t_c|

    Unlike the losses of probabilities, it sees a constant added to the logits.
    Classes at -inf on both sides are left out of sum and count.

    Args:
      student_logits: unnormalised log-probabilities, `[..., num_classes]`.
      teacher_logits: unnormalised log-probabilities, `[..., num_classes]`.
      where: which examples are valid, `[...]`. The loss and the gradient of every
        other example are exactly zero, even if its logits are not finite.

    Returns:
      The loss of each example in logits, `[...]`, in at least float32.

    Raises:
      ValueError: if the shapes differ, or `where` does not fit them.
      TypeError: if either array is not floating-point, or `where` is not boolean.

    Examples:
      >>> import jax.numpy as jnp
      >>> from kdjax import losses
      >>> student_logits = jnp.array([2.0, 1.0, 0.0])
      >>> teacher_logits = jnp.array([3.5, 1.0, 0.0])
      >>> print(losses.fedmd_loss(student_logits, teacher_logits))
      0.5

    References:
      Li and Wang, `FedMD: Heterogenous Federated Learning via Model Distillation
      <https://arxiv.org/abs/1910.03581>`_, 2019, algorithm 1; the absolute
      difference is that of the authors' code.
    """
    _checks.check_logits(student_logits=student_logits, teacher_logits=teacher_logits)

    student_logits, teacher_logits = _masking.drop_invalid(
        where, student_logits, teacher_logits
    )
    difference, is_class = _difference(student_logits, teacher_logits)
    count = jnp.sum(is_class, axis=-1, dtype=difference.dtype)
    loss = jnp.sum(_numerics.absolute(difference), axis=-1) / count
    return _masking.zero_invalid(where, loss)


def _difference(
    student_logits: jax.Array, teacher_logits: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Student minus teacher, zero where both are at -inf, and where they are not."""
    is_class = ~(jnp.isneginf(student_logits) & jnp.isneginf(teacher_logits))
    student_logits, teacher_logits = (
        jnp.where(is_class, x, 0) for x in (student_logits, teacher_logits)
    )
    return student_logits - teacher_logits, is_class


def consistency_loss(
    student_logits: Float[Array, "*batch classes"],
    teacher_logits: Float[Array, "*batch classes"],
    *,
    where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
    r"""Mean squared difference of the class probabilities.

    The cost by which a mean teacher, whose weights are a moving average of the
    student's, teaches without labels:

    .. math::
      \ell = \frac{1}{C} \sum_c (p^s_c - p^t_c)^2, \qquad p = \mathrm{softmax}(z)

    Bounded, unlike a divergence, so a confident and wrong teacher does less harm
    early in training; its weight is usually ramped up over the first epochs.

    Args:
      student_logits: unnormalised log-probabilities, `[..., num_classes]`.
      teacher_logits: unnormalised log-probabilities, `[..., num_classes]`.
      where: which examples are valid, `[...]`. The loss and the gradient of every
        other example are exactly zero, even if its logits are not finite.

    Returns:
      The loss of each example in squared probability, `[...]`, in at least float32.

    Raises:
      ValueError: if the shapes differ, or `where` does not fit them.
      TypeError: if either array is not floating-point, or `where` is not boolean.

    Examples:
      >>> import jax.numpy as jnp
      >>> from kdjax import losses
      >>> print(losses.consistency_loss(
      ...     jnp.array([0.0, 0.0]), jnp.array([100.0, 0.0])))
      0.25

    References:
      Tarvainen and Valpola, `Mean teachers are better role models
      <https://arxiv.org/abs/1703.01780>`_, NeurIPS 2017, section 2; the mean over
      classes is that of the authors' code.
    """
    _checks.check_logits(student_logits=student_logits, teacher_logits=teacher_logits)

    student_logits, teacher_logits = _masking.drop_invalid(
        where, student_logits, teacher_logits
    )
    student_probs = jnp.exp(_numerics.log_probs(student_logits))
    teacher_probs = jnp.exp(_numerics.log_probs(teacher_logits))
    loss = jnp.mean((student_probs - teacher_probs) ** 2, axis=-1)
    return _masking.zero_invalid(where, loss)
