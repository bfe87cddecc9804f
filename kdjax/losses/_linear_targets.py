"""Soft targets, and targets on the way to them, from hidden states."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, ScalarLike

from kdjax.losses import _checks, _linear, _masking, _numerics, _transforms


def linear_soft_target_loss(
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
    r"""Divergence from softened targets of a large vocabulary.

    `soft_target_loss` without the logits:

    .. math::
      \ell = \tau^2 \, \mathrm{KL}(p^t \,\|\, p^s), \qquad
      p = \mathrm{softmax}\bigl((W^\top h + b) / \tau\bigr)

    Both sides' logits of `chunk_size` tokens are in memory at a time, and with them the
    gradients are made, so that instead of `[tokens, vocab]` it takes the memory of one
    chunk and of the kernel's gradient. Values and gradients are those of
    `soft_target_loss` of the logits, to rounding.

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
      The loss of each token in nats, `[...]`, in at least float32.

    Raises:
      ValueError: if shapes do not fit, a concrete temperature is not positive, or
        `chunk_size` is less than 1.
      TypeError: if an array is not floating-point, or `where` is not boolean.

    Examples:
      >>> import jax.numpy as jnp
      >>> from kdjax import losses
      >>> student_hidden = jnp.array([[1.0], [0.0]])  # Logits [2, 1, 0] and zeros.
      >>> teacher_hidden = jnp.array([[3.0], [0.0]])
      >>> print(losses.linear_soft_target_loss(
      ...     student_hidden, jnp.array([[2.0, 1.0, 0.0]]),
      ...     teacher_hidden, jnp.array([[1.0, 0.0, 0.0]])).round(4))
      [0.1768 0.    ]

    References:
      Hinton et al., `Distilling the Knowledge in a Neural Network
      <https://arxiv.org/abs/1503.02531>`_, 2015, section 2; in chunks as in Hsu et al.,
      `Liger Kernel <https://arxiv.org/abs/2410.10989>`_, 2024, section 3.2.
    """
    _checks.check_positive(temperature=temperature)
    student = _linear.Head("student", student_hidden, student_kernel, student_bias)
    teacher = _linear.Head("teacher", teacher_hidden, teacher_kernel, teacher_bias)

    def of_token(
        student: jax.Array, teacher: jax.Array, temperature: jax.Array
    ) -> jax.Array:
        return temperature**2 * _numerics.kl(teacher, student)

    return _linear.divergence(
        of_token,
        student,
        teacher,
        temperature,
        temperature=temperature,
        chunk_size=chunk_size,
        axis_name=axis_name,
        where=where,
    )


def linear_taid_loss(
    student_hidden: Float[Array, "*batch student_dim"],
    student_kernel: Float[Array, "student_dim vocab"],
    teacher_hidden: Float[Array, "*batch teacher_dim"],
    teacher_kernel: Float[Array, "teacher_dim vocab"],
    *,
    interpolation: ScalarLike,
    student_bias: Float[Array, " vocab"] | None = None,
    teacher_bias: Float[Array, " vocab"] | None = None,
    chunk_size: int = 256,
    axis_name: _linear.Axis | None = None,
    where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
    r"""Cross-entropy with a target on its way to the teacher's, from hidden states.

    `taid_loss` without the logits:

    .. math::
      \ell = -\sum_c q_c \log p^s_c, \qquad
      q = \mathrm{softmax}\bigl((1 - t) \, \mathrm{sg}[z^s] + t \, z^t\bigr), \qquad
      z = W^\top h + b

    Both sides' logits of `chunk_size` tokens are in memory at a time, and with them the
    gradients are made, so that instead of `[tokens, vocab]` it takes the memory of one
    chunk and of the kernel's gradient. Values and gradients are those of
    `taid_loss` of the logits, to rounding.

    Args:
      student_hidden: the student's last hidden states, `[..., student_dim]`.
      student_kernel: its output matrix, `[student_dim, vocab]`.
      teacher_hidden: the teacher's last hidden states, `[..., teacher_dim]`.
      teacher_kernel: its output matrix, `[teacher_dim, vocab]`.
      interpolation: how far on the way, :math:`t`; from 0 to 1, growing in training.
      student_bias: added to the student's logits, `[vocab]`; none by default.
      teacher_bias: added to the teacher's logits, `[vocab]`; none by default.
      chunk_size: how many tokens have their logits in memory at a time.
      axis_name: of the mesh axis, or axes, that the vocabulary is sharded over, within
        `jax.shard_map`; kernels and biases are then this device's columns, in order.
      where: which tokens are valid, `[...]`. The loss and the gradient of every other
        token are exactly zero, even if its hidden states are not finite.

    Returns:
      The loss of each token in nats, `[...]`, in at least float32.

    Raises:
      ValueError: if shapes do not fit, a concrete `interpolation` is not between 0 and
        1, or `chunk_size` is less than 1.
      TypeError: if an array is not floating-point, or `where` is not boolean.

    Examples:
      >>> import jax.numpy as jnp
      >>> from kdjax import losses
      >>> student_hidden = jnp.array([[1.0], [0.0]])  # Logits [2, 1, 0] and zeros.
      >>> teacher_hidden = jnp.array([[3.0], [0.0]])
      >>> print(losses.linear_taid_loss(
      ...     student_hidden, jnp.array([[2.0, 1.0, 0.0]]),
      ...     teacher_hidden, jnp.array([[1.0, 0.0, 0.0]]),
      ...     interpolation=0.5).round(4))
      [0.6536 1.0986]

    References:
      Shing et al., `TAID: Temporally Adaptive Interpolated Distillation
      <https://arxiv.org/abs/2501.16937>`_, ICLR 2025, equations 3 and 4.
    """
    _checks.check_fraction(interpolation=interpolation)
    student = _linear.Head("student", student_hidden, student_kernel, student_bias)
    teacher = _linear.Head("teacher", teacher_hidden, teacher_kernel, teacher_bias)

    def of_token(student: jax.Array, teacher: jax.Array, share: jax.Array) -> jax.Array:
        # A constant in either side's logits is one in the target's, and cancels.
        target_logits = _transforms.taid_target(student, teacher, interpolation=share)
        target = jnp.exp(_linear.log_probs(target_logits, 1.0, axis_name))
        return _numerics.cross_entropy(target, student)

    return _linear.divergence(
        of_token,
        student,
        teacher,
        interpolation,
        temperature=1.0,
        chunk_size=chunk_size,
        axis_name=axis_name,
        where=where,
    )


def linear_cross_entropy(
    student_hidden: Float[Array, "*batch student_dim"],
    student_kernel: Float[Array, "student_dim vocab"],
    labels: Int[Array, "*batch"],
    *,
    label_smoothing: ScalarLike = 0.0,
    student_bias: Float[Array, " vocab"] | None = None,
    chunk_size: int = 256,
    axis_name: _linear.Axis | None = None,
    where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
    r"""Cross-entropy with integer labels over a large vocabulary, from hidden states.

    `cross_entropy` without the logits:

    .. math::
      \ell = -(1 - \epsilon) \log p^s_y - \frac{\epsilon}{C} \sum_c \log p^s_c,
      \qquad p^s = \mathrm{softmax}(W^\top h + b)

    The logits of `chunk_size` tokens are in memory at a time, and with them the
    gradients are made. A label that is no class, such as -100 for padding, gives NaN:
    say with `where` which tokens are valid.

    Args:
      student_hidden: the student's last hidden states, `[..., student_dim]`.
      student_kernel: its output matrix, `[student_dim, vocab]`.
      labels: integer classes, `[...]`.
      label_smoothing: the share of mass spread over all classes; from 0 to 1.
      student_bias: added to the student's logits, `[vocab]`; none by default.
      chunk_size: how many tokens have their logits in memory at a time.
      axis_name: of the mesh axis, or axes, that the vocabulary is sharded over, within
        `jax.shard_map`; kernel and bias are then this device's columns, in order.
      where: which tokens are valid, `[...]`. The loss and the gradient of every other
        token are exactly zero, whatever its hidden state and label hold.

    Returns:
      The loss of each token in nats, `[...]`, in at least float32.

    Raises:
      ValueError: if shapes do not fit, a concrete `label_smoothing` is not between 0
        and 1, or `chunk_size` is less than 1.
      TypeError: if an array is not floating-point, the labels are not integer, or
        `where` is not boolean.

    Examples:
      >>> import jax.numpy as jnp
      >>> from kdjax import losses
      >>> student_hidden = jnp.array([[1.0], [0.0]])
      >>> student_kernel = jnp.array([[2.0, 0.0, 0.0]])
      >>> labels = jnp.array([0, 1])
      >>> print(losses.linear_cross_entropy(
      ...     student_hidden, student_kernel, labels).round(4))
      [0.2395 1.0986]

    References:
      Wijmans et al., `Cut Your Losses in Large-Vocabulary Language Models
      <https://arxiv.org/abs/2411.09009>`_, ICLR 2025, section 4, on what the logits
      take; in chunks as in Hsu et al., `Liger Kernel
      <https://arxiv.org/abs/2410.10989>`_, 2024, section 3.2.
    """
    _checks.check_fraction(label_smoothing=label_smoothing)
    student = _linear.Head("student", student_hidden, student_kernel, student_bias)
    _linear.check_heads(student)
    _checks.check_labels(student_hidden, labels)

    (student,) = _linear.drop_invalid(where, student)
    labels = _masking.drop_invalid_labels(where, labels)

    def of_token(
        log_probs: jax.Array, label: jax.Array, smoothing: jax.Array
    ) -> jax.Array:
        (at_label,) = _linear.at_classes(log_probs, label, axis_name)
        # Nothing is spread over an impossible class if nothing is spread: not 0 * inf.
        unused = jnp.isneginf(log_probs) & (smoothing == 0)
        spread = _linear.total(jnp.sum(jnp.where(unused, 0, log_probs)), axis_name)
        spread = spread / _linear.num_classes(log_probs, axis_name)
        return -(1 - smoothing) * at_label - smoothing * spread

    return _linear.against_targets(
        of_token,
        student,
        (labels[..., None],),
        label_smoothing,
        temperature=1.0,
        chunk_size=chunk_size,
        axis_name=axis_name,
        where=where,
    )
