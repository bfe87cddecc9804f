"""Losses from hidden states whose teacher is given by a few of its classes."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, ScalarLike

from kdjax.losses import _checks, _linear, _masking, _numerics, _sparse, _sparse_top


def linear_sparse_soft_target_loss(
    student_hidden: Float[Array, "*batch student_dim"],
    student_kernel: Float[Array, "student_dim vocab"],
    target_ids: Int[Array, "*batch draws"],
    target_counts: Int[Array, "*batch draws"],
    *,
    temperature: ScalarLike = 1.0,
    student_bias: Float[Array, " vocab"] | None = None,
    chunk_size: int = 256,
    axis_name: _linear.Axis | None = None,
    where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
    r"""Cross-entropy with classes drawn from the teacher, from hidden states.

    `sparse_soft_target_loss` without the logits:

    .. math::
      \ell = -\tau^2 \sum_c \frac{n_c}{\sum_{c'} n_{c'}} \log p^s_c, \qquad
      p^s = \mathrm{softmax}\bigl((W^\top h + b) / \tau\bigr)

    The logits of `chunk_size` tokens are in memory at a time, and with them the
    gradients are made; the teacher costs 3 bytes an entry, see `pack_sparse_targets`.

    Args:
      student_hidden: the student's last hidden states, `[..., student_dim]`.
      student_kernel: its output matrix, `[student_dim, vocab]`.
      target_ids: the classes drawn, `[..., num_draws]`. One that is no class gives
        NaN, unless its count is 0.
      target_counts: how often each was drawn, not negative, `[..., num_draws]`.
      temperature: what the classes were drawn at; softens the student as well.
      student_bias: added to the student's logits, `[vocab]`; none by default.
      chunk_size: how many tokens have their logits in memory at a time.
      axis_name: of the mesh axis, or axes, that the vocabulary is sharded over, within
        `jax.shard_map`; kernel and bias are then this device's columns, in order.
      where: which tokens are valid, `[...]`. The loss and the gradient of every other
        token are exactly zero, whatever its entries hold.

    Returns:
      The loss of each token in nats, `[...]`, in at least float32; 0 if nothing was
      drawn.

    Raises:
      ValueError: if shapes do not fit, a concrete temperature is not positive, or
        `chunk_size` is less than 1.
      TypeError: if hidden states or kernel are not floating-point, classes and counts
        not integer, or `where` not boolean.

    Examples:
      >>> import jax.numpy as jnp
      >>> from kdjax import losses
      >>> student_hidden = jnp.array([1.0])
      >>> student_kernel = jnp.array([[2.0, 0.0, 0.0]])
      >>> ids, counts = jnp.array([0, 2, 0]), jnp.array([2, 2, 0])
      >>> loss = losses.linear_sparse_soft_target_loss(
      ...     student_hidden, student_kernel, ids, counts)
      >>> print(f"{loss:.4f}")
      1.2395

    References:
      Anshumann et al., `Sparse Logit Sampling: Accelerating Knowledge Distillation in
      LLMs <https://arxiv.org/abs/2503.16870>`_, ACL 2025, section 4.
    """
    _checks.check_positive(temperature=temperature)
    student = _linear.Head("student", student_hidden, student_kernel, student_bias)
    _linear.check_heads(student)
    _sparse.check_targets(
        student_hidden, target_ids=target_ids, target_counts=target_counts
    )

    (student,) = _linear.drop_invalid(where, student)
    targets = _sparse.drop_targets(where, target_ids, target_counts)

    def of_token(
        log_probs: jax.Array,
        ids: jax.Array,
        counts: jax.Array,
        temperature: jax.Array,
    ) -> jax.Array:
        at_targets = _linear.at_classes(log_probs, ids, axis_name)
        return temperature**2 * _sparse.mean_cost(at_targets, counts)

    return _linear.against_targets(
        of_token,
        student,
        targets,
        temperature,
        temperature=temperature,
        chunk_size=chunk_size,
        axis_name=axis_name,
        where=where,
    )


def linear_sparse_top_k_kl(
    student_hidden: Float[Array, "*batch student_dim"],
    student_kernel: Float[Array, "student_dim vocab"],
    teacher_top_logits: Float[Array, "*batch kept"],
    teacher_top_indices: Int[Array, "*batch kept"],
    teacher_tail: Float[Array, "*batch"],
    *,
    temperature: ScalarLike = 1.0,
    student_bias: Float[Array, " vocab"] | None = None,
    chunk_size: int = 256,
    axis_name: _linear.Axis | None = None,
    where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
    r"""Divergence from stored top logits and the rest's mass, from hidden states.

    `sparse_top_k_kl` without the student's logits:

    .. math::
      \ell = \mathrm{KL}(\tilde p^t \,\|\, \tilde p^s), \qquad
      \tilde p = \bigl(p_c \text{ for } c \in K,\ 1 - \textstyle\sum_K p_c\bigr),
      \qquad p^s = \mathrm{softmax}\bigl((W^\top h + b) / \tau\bigr)

    The logits of `chunk_size` tokens are in memory at a time, and with them the
    gradients are made.

    Args:
      student_hidden: the student's last hidden states, `[..., student_dim]`.
      student_kernel: its output matrix, `[student_dim, vocab]`.
      teacher_top_logits: of the classes kept, not divided by the temperature,
        `[..., num_kept]`.
      teacher_top_indices: which classes these are, all different, `[..., num_kept]`.
        One that is no class gives NaN.
      teacher_tail: log-sum-exp of all other logits divided by `temperature`, `[...]`;
        -inf if there is none.
      temperature: softens both distributions; a positive scalar.
      student_bias: added to the student's logits, `[vocab]`; none by default.
      chunk_size: how many tokens have their logits in memory at a time.
      axis_name: of the mesh axis, or axes, that the vocabulary is sharded over, within
        `jax.shard_map`; kernel and bias are then this device's columns, in order.
      where: which tokens are valid, `[...]`. The loss and the gradient of every other
        token are exactly zero, whatever its entries hold.

    Returns:
      The divergence of each token in nats, `[...]`, in at least float32.

    Raises:
      ValueError: if shapes do not fit, a concrete temperature is not positive, or
        `chunk_size` is less than 1.
      TypeError: if hidden states, kernel, logits or tail are not floating-point, the
        indices not integer, or `where` not boolean.

    Examples:
      >>> import jax.numpy as jnp
      >>> from kdjax import losses
      >>> student_hidden, student_kernel = jnp.zeros(1), jnp.zeros((1, 4))
      >>> half = jnp.log(0.5)  # Of the mass on class 2, and half on all others.
      >>> loss = losses.linear_sparse_top_k_kl(
      ...     student_hidden, student_kernel, half[None], jnp.array([2]), half)
      >>> print(f"{loss:.4f}")
      0.1438

    References:
      Anshumann et al., `Sparse Logit Sampling: Accelerating Knowledge Distillation in
      LLMs <https://arxiv.org/abs/2503.16870>`_, ACL 2025, section 3.
    """
    _checks.check_positive(temperature=temperature)
    student = _linear.Head("student", student_hidden, student_kernel, student_bias)
    _linear.check_heads(student)
    _sparse_top.check_entries(
        student_hidden, teacher_top_logits, teacher_top_indices, teacher_tail
    )

    (student,) = _linear.drop_invalid(where, student)
    top_logits, tail = _masking.drop_invalid(
        where, teacher_top_logits, teacher_tail[..., None]
    )
    teacher = _sparse_top.bucketed(top_logits, tail, temperature)
    (indices,) = _sparse.drop_targets(where, teacher_top_indices)

    def of_token(
        log_probs: jax.Array, teacher: jax.Array, indices: jax.Array
    ) -> jax.Array:
        top = _linear.at_classes(log_probs, indices, axis_name)
        rest = _linear.log_mass_without(log_probs, indices, axis_name)
        return _numerics.kl(teacher, jnp.append(top, rest))

    return _linear.against_targets(
        of_token,
        student,
        (teacher.astype(student.hidden.dtype), indices),
        temperature=temperature,
        chunk_size=chunk_size,
        axis_name=axis_name,
        where=where,
    )
