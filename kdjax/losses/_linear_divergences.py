"""The divergences of two distributions, from hidden states."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, ScalarLike

from kdjax.losses import _checks, _linear, _numerics


def linear_forward_kl(
    student_hidden: Float[Array, "*batch student_dim"],
    student_kernel: Float[Array, "student_dim vocab"],
    teacher_hidden: Float[Array, "*batch teacher_dim"],
    teacher_kernel: Float[Array, "teacher_dim vocab"],
    *,
    temperature: ScalarLike = 1.0,
    student_bias: Float[Array, " vocab"] | None = None,
    teacher_bias: Float[Array, " vocab"] | None = None,
    chunk_size: int = 256,
    axis_name: _linear.Axis | None = None,
    where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
    r"""Forward divergence of a large vocabulary, from hidden states.

    `forward_kl` without the logits:

    .. math::
      \ell = \mathrm{KL}(p^t \,\|\, p^s), \qquad
      p = \mathrm{softmax}\bigl((W^\top h + b) / \tau\bigr)

    Both sides' logits of `chunk_size` tokens are in memory at a time, and with them the
    gradients are made, so that instead of `[tokens, vocab]` it takes the memory of one
    chunk and of the kernel's gradient. Values and gradients are those of
    `forward_kl` of the logits, to rounding.

    Args:
      student_hidden: the student's last hidden states, `[..., student_dim]`.
      student_kernel: its output matrix, `[student_dim, vocab]`.
      teacher_hidden: the teacher's last hidden states, `[..., teacher_dim]`.
      teacher_kernel: its output matrix, `[teacher_dim, vocab]`.
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
      ValueError: if shapes do not fit, a concrete temperature is not positive, or
        `chunk_size` is less than 1.
      TypeError: if an array is not floating-point, or `where` is not boolean.

    Examples:
      >>> import jax.numpy as jnp
      >>> from kdjax import losses
      >>> student_hidden = jnp.array([[1.0], [0.0]])  # Logits [2, 1, 0] and zeros.
      >>> teacher_hidden = jnp.array([[3.0], [0.0]])
      >>> print(losses.linear_forward_kl(
      ...     student_hidden, jnp.array([[2.0, 1.0, 0.0]]),
      ...     teacher_hidden, jnp.array([[1.0, 0.0, 0.0]])).round(4))
      [0.1768 0.    ]

    References:
      Hsu et al., `Liger Kernel: Efficient Triton Kernels for LLM Training
      <https://arxiv.org/abs/2410.10989>`_, 2024, section 3.2, on chunks of tokens.
    """
    _checks.check_positive(temperature=temperature)
    student = _linear.Head("student", student_hidden, student_kernel, student_bias)
    teacher = _linear.Head("teacher", teacher_hidden, teacher_kernel, teacher_bias)

    def of_token(student: jax.Array, teacher: jax.Array) -> jax.Array:
        return _numerics.kl(teacher, student)

    return _linear.divergence(
        of_token,
        student,
        teacher,
        temperature=temperature,
        chunk_size=chunk_size,
        axis_name=axis_name,
        where=where,
    )


def linear_reverse_kl(
    student_hidden: Float[Array, "*batch student_dim"],
    student_kernel: Float[Array, "student_dim vocab"],
    teacher_hidden: Float[Array, "*batch teacher_dim"],
    teacher_kernel: Float[Array, "teacher_dim vocab"],
    *,
    temperature: ScalarLike = 1.0,
    student_bias: Float[Array, " vocab"] | None = None,
    teacher_bias: Float[Array, " vocab"] | None = None,
    chunk_size: int = 256,
    axis_name: _linear.Axis | None = None,
    where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
    r"""Reverse divergence of a large vocabulary, from hidden states.

    `reverse_kl` without the logits:

    .. math::
      \ell = \mathrm{KL}(p^s \,\|\, p^t), \qquad
      p = \mathrm{softmax}\bigl((W^\top h + b) / \tau\bigr)

    Both sides' logits of `chunk_size` tokens are in memory at a time, and with them the
    gradients are made, so that instead of `[tokens, vocab]` it takes the memory of one
    chunk and of the kernel's gradient. Values and gradients are those of
    `reverse_kl` of the logits, to rounding.

    Args:
      student_hidden: the student's last hidden states, `[..., student_dim]`.
      student_kernel: its output matrix, `[student_dim, vocab]`.
      teacher_hidden: the teacher's last hidden states, `[..., teacher_dim]`.
      teacher_kernel: its output matrix, `[teacher_dim, vocab]`.
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
      ValueError: if shapes do not fit, a concrete temperature is not positive, or
        `chunk_size` is less than 1.
      TypeError: if an array is not floating-point, or `where` is not boolean.

    Examples:
      >>> import jax.numpy as jnp
      >>> from kdjax import losses
      >>> student_hidden = jnp.array([[1.0], [0.0]])  # Logits [2, 1, 0] and zeros.
      >>> teacher_hidden = jnp.array([[3.0], [0.0]])
      >>> print(losses.linear_reverse_kl(
      ...     student_hidden, jnp.array([[2.0, 1.0, 0.0]]),
      ...     teacher_hidden, jnp.array([[1.0, 0.0, 0.0]])).round(4))
      [0.2668 0.    ]

    References:
      Hsu et al., `Liger Kernel: Efficient Triton Kernels for LLM Training
      <https://arxiv.org/abs/2410.10989>`_, 2024, section 3.2, on chunks of tokens.
    """
    _checks.check_positive(temperature=temperature)
    student = _linear.Head("student", student_hidden, student_kernel, student_bias)
    teacher = _linear.Head("teacher", teacher_hidden, teacher_kernel, teacher_bias)

    def of_token(student: jax.Array, teacher: jax.Array) -> jax.Array:
        return _numerics.kl(student, teacher)

    return _linear.divergence(
        of_token,
        student,
        teacher,
        temperature=temperature,
        chunk_size=chunk_size,
        axis_name=axis_name,
        where=where,
    )


def linear_symmetric_kl(
    student_hidden: Float[Array, "*batch student_dim"],
    student_kernel: Float[Array, "student_dim vocab"],
    teacher_hidden: Float[Array, "*batch teacher_dim"],
    teacher_kernel: Float[Array, "teacher_dim vocab"],
    *,
    reverse_weight: ScalarLike = 0.5,
    temperature: ScalarLike = 1.0,
    student_bias: Float[Array, " vocab"] | None = None,
    teacher_bias: Float[Array, " vocab"] | None = None,
    chunk_size: int = 256,
    axis_name: _linear.Axis | None = None,
    where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
    r"""Weighted mean of both divergences of a large vocabulary.

    `symmetric_kl` without the logits:

    .. math::
      \ell = (1 - \lambda) \, \mathrm{KL}(p^t \,\|\, p^s)
      + \lambda \, \mathrm{KL}(p^s \,\|\, p^t), \qquad
      p = \mathrm{softmax}\bigl((W^\top h + b) / \tau\bigr)

    Both sides' logits of `chunk_size` tokens are in memory at a time, and with them the
    gradients are made, so that instead of `[tokens, vocab]` it takes the memory of one
    chunk and of the kernel's gradient. Values and gradients are those of
    `symmetric_kl` of the logits, to rounding.

    Args:
      student_hidden: the student's last hidden states, `[..., student_dim]`.
      student_kernel: its output matrix, `[student_dim, vocab]`.
      teacher_hidden: the teacher's last hidden states, `[..., teacher_dim]`.
      teacher_kernel: its output matrix, `[teacher_dim, vocab]`.
      reverse_weight: the share :math:`\lambda` of the reverse divergence; from 0 to 1.
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
        concrete `reverse_weight` is not between 0 and 1, or `chunk_size` is less than
        1.
      TypeError: if an array is not floating-point, or `where` is not boolean.

    Examples:
      >>> import jax.numpy as jnp
      >>> from kdjax import losses
      >>> student_hidden = jnp.array([[1.0], [0.0]])  # Logits [2, 1, 0] and zeros.
      >>> teacher_hidden = jnp.array([[3.0], [0.0]])
      >>> print(losses.linear_symmetric_kl(
      ...     student_hidden, jnp.array([[2.0, 1.0, 0.0]]),
      ...     teacher_hidden, jnp.array([[1.0, 0.0, 0.0]])).round(4))
      [0.2218 0.    ]

    References:
      Hsu et al., `Liger Kernel: Efficient Triton Kernels for LLM Training
      <https://arxiv.org/abs/2410.10989>`_, 2024, section 3.2, on chunks of tokens.
    """
    _checks.check_fraction(reverse_weight=reverse_weight)
    _checks.check_positive(temperature=temperature)
    student = _linear.Head("student", student_hidden, student_kernel, student_bias)
    teacher = _linear.Head("teacher", teacher_hidden, teacher_kernel, teacher_bias)

    def of_token(
        student: jax.Array, teacher: jax.Array, weight: jax.Array
    ) -> jax.Array:
        forward = _numerics.kl(teacher, student)
        return (1 - weight) * forward + weight * _numerics.kl(student, teacher)

    return _linear.divergence(
        of_token,
        student,
        teacher,
        reverse_weight,
        temperature=temperature,
        chunk_size=chunk_size,
        axis_name=axis_name,
        where=where,
    )


def linear_total_variation(
    student_hidden: Float[Array, "*batch student_dim"],
    student_kernel: Float[Array, "student_dim vocab"],
    teacher_hidden: Float[Array, "*batch teacher_dim"],
    teacher_kernel: Float[Array, "teacher_dim vocab"],
    *,
    temperature: ScalarLike = 1.0,
    student_bias: Float[Array, " vocab"] | None = None,
    teacher_bias: Float[Array, " vocab"] | None = None,
    chunk_size: int = 256,
    axis_name: _linear.Axis | None = None,
    where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
    r"""Total variation distance over a large vocabulary, from hidden states.

    `total_variation` without the logits:

    .. math::
      \ell = \frac{1}{2} \sum_c |p^s_c - p^t_c|, \qquad
      p = \mathrm{softmax}\bigl((W^\top h + b) / \tau\bigr)

    Both sides' logits of `chunk_size` tokens are in memory at a time, and with them the
    gradients are made, so that instead of `[tokens, vocab]` it takes the memory of one
    chunk and of the kernel's gradient. Values and gradients are those of
    `total_variation` of the logits, to rounding.

    Args:
      student_hidden: the student's last hidden states, `[..., student_dim]`.
      student_kernel: its output matrix, `[student_dim, vocab]`.
      teacher_hidden: the teacher's last hidden states, `[..., teacher_dim]`.
      teacher_kernel: its output matrix, `[teacher_dim, vocab]`.
      temperature: softens both distributions; a positive scalar.
      student_bias: added to the student's logits, `[vocab]`; none by default.
      teacher_bias: added to the teacher's logits, `[vocab]`; none by default.
      chunk_size: how many tokens have their logits in memory at a time.
      axis_name: of the mesh axis, or axes, that the vocabulary is sharded over, within
        `jax.shard_map`; kernels and biases are then this device's columns, in order.
      where: which tokens are valid, `[...]`. The loss and the gradient of every other
        token are exactly zero, even if its hidden states are not finite.

    Returns:
      The distance of each token, from 0 to 1, `[...]`, in at least float32.

    Raises:
      ValueError: if shapes do not fit, a concrete temperature is not positive, or
        `chunk_size` is less than 1.
      TypeError: if an array is not floating-point, or `where` is not boolean.

    Examples:
      >>> import jax.numpy as jnp
      >>> from kdjax import losses
      >>> student_hidden = jnp.array([[1.0], [0.0]])  # Logits [2, 1, 0] and zeros.
      >>> teacher_hidden = jnp.array([[3.0], [0.0]])
      >>> distances = losses.linear_total_variation(
      ...     student_hidden, jnp.array([[2.0, 1.0, 0.0]]),
      ...     teacher_hidden, jnp.array([[1.0, 0.0, 0.0]]))
      >>> print([f"{x:.3f}" for x in distances])
      ['0.244', '0.000']

    References:
      Hsu et al., `Liger Kernel: Efficient Triton Kernels for LLM Training
      <https://arxiv.org/abs/2410.10989>`_, 2024, section 3.2, on chunks of tokens.
    """
    _checks.check_positive(temperature=temperature)
    student = _linear.Head("student", student_hidden, student_kernel, student_bias)
    teacher = _linear.Head("teacher", teacher_hidden, teacher_kernel, teacher_bias)

    def of_token(student: jax.Array, teacher: jax.Array) -> jax.Array:
        difference = jnp.exp(student) - jnp.exp(teacher)
        return 0.5 * jnp.sum(_numerics.absolute(difference), axis=-1)

    return _linear.divergence(
        of_token,
        student,
        teacher,
        temperature=temperature,
        chunk_size=chunk_size,
        axis_name=axis_name,
        where=where,
    )
