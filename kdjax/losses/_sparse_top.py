"""The divergence from a teacher given by its largest logits and the tail's mass."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, ScalarLike

from kdjax.losses import _checks, _masking, _numerics, _sparse


def sparse_top_k_kl(
    student_logits: Float[Array, "*batch classes"],
    teacher_top_logits: Float[Array, "*batch kept"],
    teacher_top_indices: Int[Array, "*batch kept"],
    teacher_tail: Float[Array, "*batch"],
    *,
    temperature: ScalarLike = 1.0,
    where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
    r"""Forward divergence from stored top logits and the exact mass of the rest.

    With :math:`K` the classes kept and :math:`\tilde p` the probabilities of these
    and, as one class more, of all others together:

    .. math::
      \ell = \mathrm{KL}(\tilde p^t \,\|\, \tilde p^s), \qquad
      \tilde p = \bigl(p_c \text{ for } c \in K,\ 1 - \textstyle\sum_K p_c\bigr),
      \qquad p = \mathrm{softmax}(z / \tau)

    It is `top_k_kl` of a teacher of whom only the top logits and the log-sum-exp of
    the other :math:`z^t / \tau` were stored, which is exact at that temperature and
    no other: scaling or renormalising instead puts ten times the mass where it is not
    at :math:`\tau = 2` and 32,000 classes. An entry of `teacher_cache.TopK` has the
    three arrays. Log-probabilities are logits too; the tail is then the log of their
    missing mass, at :math:`\tau = 1`.

    Args:
      student_logits: unnormalised log-probabilities, `[..., num_classes]`.
      teacher_top_logits: of the classes kept, not divided by the temperature,
        `[..., num_kept]`.
      teacher_top_indices: which classes these are, all different, `[..., num_kept]`.
        One that is no class gives NaN.
      teacher_tail: log-sum-exp of all other logits divided by `temperature`, `[...]`;
        -inf if there is none.
      temperature: softens both distributions; a positive scalar.
      where: which examples are valid, `[...]`. The loss and the gradient of every
        other example are exactly zero, whatever its entries hold.

    Returns:
      The divergence of each example in nats, `[...]`, in at least float32.

    Raises:
      ValueError: if shapes do not fit, or a concrete temperature is not positive.
      TypeError: if logits or tail are not floating-point, the indices not integer, or
        `where` not boolean.

    Examples:
      >>> import jax.numpy as jnp
      >>> from kdjax import losses
      >>> student_logits = jnp.zeros(4)
      >>> half = jnp.log(0.5)  # Of the mass on class 2, and half on all others.
      >>> loss = losses.sparse_top_k_kl(
      ...     student_logits, half[None], jnp.array([2]), half)
      >>> print(f"{loss:.4f}")
      0.1438

    References:
      Anshumann et al., `Sparse Logit Sampling: Accelerating Knowledge Distillation in
      LLMs <https://arxiv.org/abs/2503.16870>`_, ACL 2025, section 3, on what
      truncation without the tail does.
    """
    _checks.check_logits(student_logits=student_logits)
    check_entries(student_logits, teacher_top_logits, teacher_top_indices, teacher_tail)
    _checks.check_positive(temperature=temperature)

    student_logits, top_logits, tail = _masking.drop_invalid(
        where, student_logits, teacher_top_logits, teacher_tail[..., None]
    )
    (indices,) = _sparse.drop_targets(where, teacher_top_indices)
    log_probs = _numerics.log_probs(student_logits, temperature)
    num_classes = student_logits.shape[-1]
    is_class = (indices >= 0) & (indices < num_classes)
    indices = jnp.clip(indices, 0, num_classes - 1)
    top = jnp.take_along_axis(log_probs, indices, axis=-1)
    others = jnp.put_along_axis(log_probs, indices, -jnp.inf, axis=-1, inplace=False)
    student = jnp.concatenate(
        [jnp.where(is_class, top, jnp.nan), _numerics.log_sum(others)[..., None]], -1
    )
    teacher = bucketed(top_logits, tail, temperature)
    return _masking.zero_invalid(where, _numerics.kl(teacher, student))


def bucketed(
    top_logits: jax.Array, tail: jax.Array, temperature: ScalarLike
) -> jax.Array:
    """The teacher's log-probabilities of the classes kept, and of the tail, last."""
    (temperature,) = _numerics.scalars(top_logits, temperature)
    # Normalised together; the tail is divided already.
    return _numerics.log_probs(jnp.concatenate([top_logits / temperature, tail], -1))


def check_entries(
    like: jax.Array, top_logits: jax.Array, top_indices: jax.Array, tail: jax.Array
) -> None:
    """Raises unless the stored arrays fit each other and the rows of `like`.

    Raises:
      TypeError: if logits or tail are not floating-point, or the indices not integer.
      ValueError: if shapes do not fit.
    """
    _checks.check_logits(teacher_top_logits=top_logits)
    if not jnp.issubdtype(tail.dtype, jnp.floating):
        raise TypeError(f"Expected floating-point teacher_tail, got {tail.dtype}.")
    _sparse.check_targets(like, teacher_top_indices=top_indices)
    if top_logits.shape != top_indices.shape or tail.shape != top_logits.shape[:-1]:
        raise ValueError(
            "Expected an index for each of teacher_top_logits and one teacher_tail a "
            f"row, got teacher_top_logits {top_logits.shape}, teacher_top_indices "
            f"{top_indices.shape} and teacher_tail {tail.shape}."
        )
