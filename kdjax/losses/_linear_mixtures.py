"""The divergences from a mixture, from hidden states."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, ScalarLike

from kdjax.losses import _checks, _linear, _mixtures, _numerics


def linear_jensen_shannon(
    student_hidden: Float[Array, "*batch student_dim"],
    student_kernel: Float[Array, "student_dim vocab"],
    teacher_hidden: Float[Array, "*batch teacher_dim"],
    teacher_kernel: Float[Array, "teacher_dim vocab"],
    *,
    beta: ScalarLike = 0.5,
    normalized: bool = False,
    temperature: ScalarLike = 1.0,
    student_bias: Float[Array, " vocab"] | None = None,
    teacher_bias: Float[Array, " vocab"] | None = None,
    chunk_size: int = 256,
    axis_name: _linear.Axis | None = None,
    where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
    r"""Generalised Jensen-Shannon divergence of a large vocabulary.

    `jensen_shannon` without the logits:

    .. math::
      \ell = \beta \, \mathrm{KL}(p^t \,\|\, m)
        + (1 - \beta) \, \mathrm{KL}(p^s \,\|\, m),
      \qquad m = \beta p^t + (1 - \beta) p^s, \qquad
      p = \mathrm{softmax}\bigl((W^\top h + b) / \tau\bigr)

    At its ends it is zero or, if `normalized`, `forward_kl` and `reverse_kl`.

    Both sides' logits of `chunk_size` tokens are in memory at a time, and with them the
    gradients are made, so that instead of `[tokens, vocab]` it takes the memory of one
    chunk and of the kernel's gradient. Values and gradients are those of
    `jensen_shannon` of the logits, to rounding.

    Args:
      student_hidden: the student's last hidden states, `[..., student_dim]`.
      student_kernel: its output matrix, `[student_dim, vocab]`.
      teacher_hidden: the teacher's last hidden states, `[..., teacher_dim]`.
      teacher_kernel: its output matrix, `[teacher_dim, vocab]`.
      beta: the teacher's share of the mixture; from 0 to 1.
      normalized: whether to divide by `beta * (1 - beta)`.
      temperature: softens both distributions; a positive scalar.
      student_bias: added to the student's logits, `[vocab]`; none by default.
      teacher_bias: added to the teacher's logits, `[vocab]`; none by default.
      chunk_size: how many tokens have their logits in memory at a time.
      axis_name: of the mesh axis, or axes, that the vocabulary is sharded over, within
        `jax.shard_map`; kernels and biases are then this device's columns, in order.
      where: which tokens are valid, `[...]`. The loss and the gradient of every other
        token are exactly zero, even if its hidden states are not finite.

    Returns:
      The divergence of each token in nats, `[...]`, in at least float32.

    Raises:
      ValueError: if shapes do not fit, a concrete temperature is not positive, a
        concrete `beta` is not between 0 and 1, or `chunk_size` is less than 1.
      TypeError: if an array is not floating-point, or `where` is not boolean.

    Examples:
      >>> import jax.numpy as jnp
      >>> from kdjax import losses
      >>> student_hidden = jnp.array([[1.0], [0.0]])  # Logits [2, 1, 0] and zeros.
      >>> teacher_hidden = jnp.array([[3.0], [0.0]])
      >>> print(losses.linear_jensen_shannon(
      ...     student_hidden, jnp.array([[2.0, 1.0, 0.0]]),
      ...     teacher_hidden, jnp.array([[1.0, 0.0, 0.0]])).round(4))
      [0.051 0.   ]

    References:
      Agarwal et al., `On-Policy Distillation of Language Models
      <https://arxiv.org/abs/2306.13649>`_, ICLR 2024, section 2; in chunks as in Hsu
      et al., `Liger Kernel <https://arxiv.org/abs/2410.10989>`_, 2024, section 3.2.
    """
    _checks.check_fraction(beta=beta)
    _checks.check_positive(temperature=temperature)
    student = _linear.Head("student", student_hidden, student_kernel, student_bias)
    teacher = _linear.Head("teacher", teacher_hidden, teacher_kernel, teacher_bias)

    def of_token(student: jax.Array, teacher: jax.Array, share: jax.Array) -> jax.Array:
        # At its ends the mixture is one of the two, and what follows 0 or 0 / 0.
        inner = jnp.where((share > 0) & (share < 1), share, 0.5)
        mixture = _numerics.log_mixture(student, teacher, inner)
        loss = inner * _numerics.kl(teacher, mixture)
        loss += (1 - inner) * _numerics.kl(student, mixture)
        if not normalized:
            return jnp.where(inner == share, loss, 0)
        loss /= inner * (1 - inner)
        loss = jnp.where(share <= 0, _numerics.kl(teacher, student), loss)
        return jnp.where(share >= 1, _numerics.kl(student, teacher), loss)

    return _linear.divergence(
        of_token,
        student,
        teacher,
        beta,
        temperature=temperature,
        chunk_size=chunk_size,
        axis_name=axis_name,
        where=where,
    )


def linear_skew_forward_kl(
    student_hidden: Float[Array, "*batch student_dim"],
    student_kernel: Float[Array, "student_dim vocab"],
    teacher_hidden: Float[Array, "*batch teacher_dim"],
    teacher_kernel: Float[Array, "teacher_dim vocab"],
    *,
    skew: ScalarLike = 0.1,
    temperature: ScalarLike = 1.0,
    student_bias: Float[Array, " vocab"] | None = None,
    teacher_bias: Float[Array, " vocab"] | None = None,
    chunk_size: int = 256,
    axis_name: _linear.Axis | None = None,
    where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
    r"""Forward divergence from a mixture, of a large vocabulary.

    `skew_forward_kl` without the logits:

    .. math::
      \ell = \mathrm{KL}(p^t \,\|\, \lambda p^t + (1 - \lambda) p^s), \qquad
      p = \mathrm{softmax}\bigl((W^\top h + b) / \tau\bigr)

    Both sides' logits of `chunk_size` tokens are in memory at a time, and with them the
    gradients are made, so that instead of `[tokens, vocab]` it takes the memory of one
    chunk and of the kernel's gradient. Values and gradients are those of
    `skew_forward_kl` of the logits, to rounding.

    Args:
      student_hidden: the student's last hidden states, `[..., student_dim]`.
      student_kernel: its output matrix, `[student_dim, vocab]`.
      teacher_hidden: the teacher's last hidden states, `[..., teacher_dim]`.
      teacher_kernel: its output matrix, `[teacher_dim, vocab]`.
      skew: the teacher's share :math:`\lambda` of the mixture; from 0 to 1.
      temperature: softens both distributions; a positive scalar.
      student_bias: added to the student's logits, `[vocab]`; none by default.
      teacher_bias: added to the teacher's logits, `[vocab]`; none by default.
      chunk_size: how many tokens have their logits in memory at a time.
      axis_name: of the mesh axis, or axes, that the vocabulary is sharded over, within
        `jax.shard_map`; kernels and biases are then this device's columns, in order.
      where: which tokens are valid, `[...]`. The loss and the gradient of every other
        token are exactly zero, even if its hidden states are not finite.

    Returns:
      The divergence of each token in nats, `[...]`, in at least float32.

    Raises:
      ValueError: if shapes do not fit, a concrete temperature is not positive, a
        concrete `skew` is not between 0 and 1, or `chunk_size` is less than 1.
      TypeError: if an array is not floating-point, or `where` is not boolean.

    Examples:
      >>> import jax.numpy as jnp
      >>> from kdjax import losses
      >>> student_hidden = jnp.array([[1.0], [0.0]])  # Logits [2, 1, 0] and zeros.
      >>> teacher_hidden = jnp.array([[3.0], [0.0]])
      >>> print(losses.linear_skew_forward_kl(
      ...     student_hidden, jnp.array([[2.0, 1.0, 0.0]]),
      ...     teacher_hidden, jnp.array([[1.0, 0.0, 0.0]])).round(4))
      [0.1502 0.    ]

    References:
      Ko et al., `DistiLLM: Towards Streamlined Distillation for Large Language
      Models <https://arxiv.org/abs/2402.03898>`_, ICML 2024, section 3.1; in chunks as
      in Hsu et al., `Liger Kernel <https://arxiv.org/abs/2410.10989>`_, 2024.
    """
    _checks.check_fraction(skew=skew)
    _checks.check_positive(temperature=temperature)
    student = _linear.Head("student", student_hidden, student_kernel, student_bias)
    teacher = _linear.Head("teacher", teacher_hidden, teacher_kernel, teacher_bias)

    def of_token(student: jax.Array, teacher: jax.Array, skew: jax.Array) -> jax.Array:
        mixture = _numerics.log_mixture(student, teacher, skew)
        return _numerics.kl(teacher, mixture)

    return _linear.divergence(
        of_token,
        student,
        teacher,
        skew,
        temperature=temperature,
        chunk_size=chunk_size,
        axis_name=axis_name,
        where=where,
    )


def linear_skew_reverse_kl(
    student_hidden: Float[Array, "*batch student_dim"],
    student_kernel: Float[Array, "student_dim vocab"],
    teacher_hidden: Float[Array, "*batch teacher_dim"],
    teacher_kernel: Float[Array, "teacher_dim vocab"],
    *,
    skew: ScalarLike = 0.1,
    temperature: ScalarLike = 1.0,
    student_bias: Float[Array, " vocab"] | None = None,
    teacher_bias: Float[Array, " vocab"] | None = None,
    chunk_size: int = 256,
    axis_name: _linear.Axis | None = None,
    where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
    r"""Reverse divergence from a mixture, of a large vocabulary.

    `skew_reverse_kl` without the logits:

    .. math::
      \ell = \mathrm{KL}(p^s \,\|\, (1 - \lambda) p^t + \lambda p^s), \qquad
      p = \mathrm{softmax}\bigl((W^\top h + b) / \tau\bigr)

    Both sides' logits of `chunk_size` tokens are in memory at a time, and with them the
    gradients are made, so that instead of `[tokens, vocab]` it takes the memory of one
    chunk and of the kernel's gradient. Values and gradients are those of
    `skew_reverse_kl` of the logits, to rounding.

    Args:
      student_hidden: the student's last hidden states, `[..., student_dim]`.
      student_kernel: its output matrix, `[student_dim, vocab]`.
      teacher_hidden: the teacher's last hidden states, `[..., teacher_dim]`.
      teacher_kernel: its output matrix, `[teacher_dim, vocab]`.
      skew: the student's share :math:`\lambda` of the mixture; from 0 to 1.
      temperature: softens both distributions; a positive scalar.
      student_bias: added to the student's logits, `[vocab]`; none by default.
      teacher_bias: added to the teacher's logits, `[vocab]`; none by default.
      chunk_size: how many tokens have their logits in memory at a time.
      axis_name: of the mesh axis, or axes, that the vocabulary is sharded over, within
        `jax.shard_map`; kernels and biases are then this device's columns, in order.
      where: which tokens are valid, `[...]`. The loss and the gradient of every other
        token are exactly zero, even if its hidden states are not finite.

    Returns:
      The divergence of each token in nats, `[...]`, in at least float32.

    Raises:
      ValueError: if shapes do not fit, a concrete temperature is not positive, a
        concrete `skew` is not between 0 and 1, or `chunk_size` is less than 1.
      TypeError: if an array is not floating-point, or `where` is not boolean.

    Examples:
      >>> import jax.numpy as jnp
      >>> from kdjax import losses
      >>> student_hidden = jnp.array([[1.0], [0.0]])  # Logits [2, 1, 0] and zeros.
      >>> teacher_hidden = jnp.array([[3.0], [0.0]])
      >>> print(losses.linear_skew_reverse_kl(
      ...     student_hidden, jnp.array([[2.0, 1.0, 0.0]]),
      ...     teacher_hidden, jnp.array([[1.0, 0.0, 0.0]])).round(4))
      [0.1871 0.    ]

    References:
      Ko et al., `DistiLLM: Towards Streamlined Distillation for Large Language
      Models <https://arxiv.org/abs/2402.03898>`_, ICML 2024, section 3.1; in chunks as
      in Hsu et al., `Liger Kernel <https://arxiv.org/abs/2410.10989>`_, 2024.
    """
    _checks.check_fraction(skew=skew)
    _checks.check_positive(temperature=temperature)
    student = _linear.Head("student", student_hidden, student_kernel, student_bias)
    teacher = _linear.Head("teacher", teacher_hidden, teacher_kernel, teacher_bias)

    def of_token(student: jax.Array, teacher: jax.Array, skew: jax.Array) -> jax.Array:
        mixture = _numerics.log_mixture(teacher, student, skew)
        return _numerics.kl(student, mixture)

    return _linear.divergence(
        of_token,
        student,
        teacher,
        skew,
        temperature=temperature,
        chunk_size=chunk_size,
        axis_name=axis_name,
        where=where,
    )


def linear_adaptive_kl(
    student_hidden: Float[Array, "*batch student_dim"],
    student_kernel: Float[Array, "student_dim vocab"],
    teacher_hidden: Float[Array, "*batch teacher_dim"],
    teacher_kernel: Float[Array, "teacher_dim vocab"],
    *,
    head_mass: ScalarLike = 0.5,
    temperature: ScalarLike = 1.0,
    student_bias: Float[Array, " vocab"] | None = None,
    teacher_bias: Float[Array, " vocab"] | None = None,
    chunk_size: int = 256,
    where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
    r"""Forward and reverse divergence of a large vocabulary, weighed by the gap.

    `adaptive_kl` without the logits:

    .. math::
      \ell = \frac{g_h}{g_h + g_t} \, \mathrm{KL}(p^t \,\|\, p^s)
        + \frac{g_t}{g_h + g_t} \, \mathrm{KL}(p^s \,\|\, p^t),
      \qquad g = \sum_c |p^t_c - p^s_c|

    The shares are not differentiated. They sort the vocabulary, which takes most of
    the time and is why it cannot be sharded over devices here.

    Both sides' logits of `chunk_size` tokens are in memory at a time, and with them the
    gradients are made, so that instead of `[tokens, vocab]` it takes the memory of one
    chunk and of the kernel's gradient. Values and gradients are those of
    `adaptive_kl` of the logits, to rounding.

    Args:
      student_hidden: the student's last hidden states, `[..., student_dim]`.
      student_kernel: its output matrix, `[student_dim, vocab]`.
      teacher_hidden: the teacher's last hidden states, `[..., teacher_dim]`.
      teacher_kernel: its output matrix, `[teacher_dim, vocab]`.
      head_mass: the largest probability of a head of more than one class; from 0 to 1.
      temperature: softens both distributions; a positive scalar.
      student_bias: added to the student's logits, `[vocab]`; none by default.
      teacher_bias: added to the teacher's logits, `[vocab]`; none by default.
      chunk_size: how many tokens have their logits in memory at a time.
      where: which tokens are valid, `[...]`. The loss and the gradient of every other
        token are exactly zero, even if its hidden states are not finite.

    Returns:
      The divergence of each token in nats, `[...]`, in at least float32.

    Raises:
      ValueError: if shapes do not fit, a concrete temperature is not positive, a
        concrete `head_mass` is not between 0 and 1, or `chunk_size` is less than 1.
      TypeError: if an array is not floating-point, or `where` is not boolean.

    Examples:
      >>> import jax.numpy as jnp
      >>> from kdjax import losses
      >>> student_hidden = jnp.array([[1.0], [0.0]])  # Logits [2, 1, 0] and zeros.
      >>> teacher_hidden = jnp.array([[3.0], [0.0]])
      >>> print(losses.linear_adaptive_kl(
      ...     student_hidden, jnp.array([[2.0, 1.0, 0.0]]),
      ...     teacher_hidden, jnp.array([[1.0, 0.0, 0.0]])).round(4))
      [0.2218 0.    ]

    References:
      Wu et al., `Rethinking Kullback-Leibler Divergence in Knowledge Distillation
      for Large Language Models <https://arxiv.org/abs/2404.02657>`_, COLING 2025,
      section 4.3.
    """
    _checks.check_fraction(head_mass=head_mass)
    _checks.check_positive(temperature=temperature)
    student = _linear.Head("student", student_hidden, student_kernel, student_bias)
    teacher = _linear.Head("teacher", teacher_hidden, teacher_kernel, teacher_bias)

    def of_token(student: jax.Array, teacher: jax.Array, mass: jax.Array) -> jax.Array:
        # Log-probabilities, softened already, are logits of the same distribution.
        return _mixtures.adaptive_kl(student, teacher, head_mass=mass)

    return _linear.divergence(
        of_token,
        student,
        teacher,
        head_mass,
        temperature=temperature,
        chunk_size=chunk_size,
        axis_name=None,
        where=where,
    )
