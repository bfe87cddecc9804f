"""Losses of how the tokens of a sequence relate in self-attention: MiniLM, 1 and 2."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from kdjax.losses import _checks, _masking, _numerics


def minilm_loss(
    student_queries: Float[Array, "*batch length student_dim"],
    student_keys: Float[Array, "*batch length student_dim"],
    student_values: Float[Array, "*batch length student_dim"],
    teacher_queries: Float[Array, "*batch length teacher_dim"],
    teacher_keys: Float[Array, "*batch length teacher_dim"],
    teacher_values: Float[Array, "*batch length teacher_dim"],
    *,
    num_heads: int,
    where: Bool[Array, "*batch length"] | None = None,
) -> Float[Array, "*batch length"]:
    r"""Divergences of attention distributions and of relations between values.

    The last layer's self-attention is taught, and no layer need be matched to another:
    for query :math:`i`, over :math:`H` heads :math:`a`,

    .. math::
      \ell_i = \frac{1}{H} \sum_a \mathrm{KL}\bigl(R(Q^t_a, K^t_a)_i \,\|\,
        R(Q^s_a, K^s_a)_i\bigr) + \mathrm{KL}\bigl(R(V^t_a, V^t_a)_i \,\|\,
        R(V^s_a, V^s_a)_i\bigr), \qquad
      R(X, Y) = \mathrm{softmax}\!\left(\frac{X Y^\top}{\sqrt{d}}\right)

    Here :math:`d` is a head's dimension on its own side, so student and teacher may
    differ in it; their number of heads is the same. The mean over all valid queries
    is the paper's value. Couples the tokens of a sequence, but not the examples.

    Args:
      student_queries: of all heads, one after the other, `[..., length, student_dim]`.
      student_keys: likewise.
      student_values: likewise.
      teacher_queries: of all heads, `[..., length, teacher_dim]`.
      teacher_keys: likewise.
      teacher_values: likewise.
      num_heads: of both, :math:`H`; divides both dimensions.
      where: which tokens are valid, as queries and as keys, `[..., length]`. The loss
        of every other query and the gradient in its vectors are exactly zero, even if
        they are not finite.

    Returns:
      The loss of each query in nats, `[..., length]`, in at least float32.

    Raises:
      ValueError: if shapes do not fit, or `num_heads` does not divide a dimension.
      TypeError: if an array is not floating-point, or `where` is not boolean.

    Examples:
      >>> import jax.numpy as jnp
      >>> from kdjax import losses
      >>> none, some = jnp.zeros((2, 1)), jnp.array([[1.0], [0.0]])
      >>> print(losses.minilm_loss(
      ...     none, none, none, some, some, none, num_heads=1).round(4))
      [0.1109 0.    ]

    References:
      Wang et al., `MiniLM: Deep Self-Attention Distillation for Task-Agnostic
      Compression of Pre-Trained Transformers <https://arxiv.org/abs/2002.10957>`_,
      NeurIPS 2020, section 3.
    """
    student = _split(
        num_heads,
        "num_heads",
        where,
        student_queries=student_queries,
        student_keys=student_keys,
        student_values=student_values,
    )
    teacher = _split(
        num_heads,
        "num_heads",
        where,
        teacher_queries=teacher_queries,
        teacher_keys=teacher_keys,
        teacher_values=teacher_values,
    )
    _check_lengths(student_queries, teacher_queries)

    loss = _divergence(student[0], student[1], teacher[0], teacher[1], where)
    loss = loss + _divergence(student[2], student[2], teacher[2], teacher[2], where)
    return _masking.zero_invalid(where, loss)


def minilm_relation_loss(
    student_queries: Float[Array, "*batch length student_dim"],
    student_keys: Float[Array, "*batch length student_dim"],
    student_values: Float[Array, "*batch length student_dim"],
    teacher_queries: Float[Array, "*batch length teacher_dim"],
    teacher_keys: Float[Array, "*batch length teacher_dim"],
    teacher_values: Float[Array, "*batch length teacher_dim"],
    *,
    num_relation_heads: int,
    where: Bool[Array, "*batch length"] | None = None,
) -> Float[Array, "*batch length"]:
    r"""Mean divergence of the relations of queries, of keys and of values.

    All heads' vectors are concatenated and split anew into :math:`H` relation heads,
    so that neither the heads of the two models nor their dimensions need agree: for
    token :math:`i`,

    .. math::
      \ell_i = \frac{1}{3 H} \sum_{X \in \{Q, K, V\}} \sum_a \mathrm{KL}\bigl(
        R(X^t_a)_i \,\|\, R(X^s_a)_i\bigr), \qquad
      R(X) = \mathrm{softmax}\!\left(\frac{X X^\top}{\sqrt{d}}\right)

    The paper takes 48 relation heads (64 for large teachers), a layer of the teacher
    above the middle, such as 21 of 24, the student's last, and equal weights. The mean
    over all valid tokens is its value. Couples the tokens of a sequence, but not the
    examples.

    Args:
      student_queries: of all heads, one after the other, `[..., length, student_dim]`.
      student_keys: likewise.
      student_values: likewise.
      teacher_queries: of all heads, `[..., length, teacher_dim]`.
      teacher_keys: likewise.
      teacher_values: likewise.
      num_relation_heads: :math:`H`; divides both dimensions.
      where: which tokens are valid, as queries and as keys, `[..., length]`. The loss
        of every other token and the gradient in its vectors are exactly zero, even if
        they are not finite.

    Returns:
      The loss of each token in nats, `[..., length]`, in at least float32.

    Raises:
      ValueError: if shapes do not fit, or `num_relation_heads` does not divide a
        dimension.
      TypeError: if an array is not floating-point, or `where` is not boolean.

    Examples:
      >>> import jax.numpy as jnp
      >>> from kdjax import losses
      >>> none, some = jnp.zeros((2, 1)), jnp.array([[1.0], [0.0]])
      >>> print(losses.minilm_relation_loss(
      ...     none, none, none, some, some, some, num_relation_heads=1).round(4))
      [0.1109 0.    ]

    References:
      Wang et al., `MiniLMv2: Multi-Head Self-Attention Relation Distillation
      <https://arxiv.org/abs/2012.15828>`_, ACL Findings 2021, section 3.
    """
    student = _split(
        num_relation_heads,
        "num_relation_heads",
        where,
        student_queries=student_queries,
        student_keys=student_keys,
        student_values=student_values,
    )
    teacher = _split(
        num_relation_heads,
        "num_relation_heads",
        where,
        teacher_queries=teacher_queries,
        teacher_keys=teacher_keys,
        teacher_values=teacher_values,
    )
    _check_lengths(student_queries, teacher_queries)

    losses = [
        _divergence(s, s, t, t, where) for s, t in zip(student, teacher, strict=True)
    ]
    return _masking.zero_invalid(where, sum(losses[1:], losses[0]) / 3)


def _divergence(
    student_x: jax.Array,
    student_y: jax.Array,
    teacher_x: jax.Array,
    teacher_y: jax.Array,
    where: jax.Array | None,
) -> jax.Array:
    """KL of the relations of each row of `x` with those of `y`, mean over heads."""
    student = _log_relation(student_x, student_y, where)
    teacher = _log_relation(teacher_x, teacher_y, where)
    dtype = jnp.promote_types(student.dtype, teacher.dtype)
    divergence = _numerics.kl(teacher.astype(dtype), student.astype(dtype))
    return jnp.mean(divergence, axis=-2)


def _log_relation(x: jax.Array, y: jax.Array, where: jax.Array | None) -> jax.Array:
    """Log-probabilities over the valid keys, `[..., heads, length, length]`."""
    # At full precision: an accelerator's default rounds to 10 bits.
    scores = jnp.einsum("...qhd,...khd->...hqk", x, y, precision="highest")
    scores = scores / jnp.sqrt(jnp.asarray(x.shape[-1], x.dtype))
    if where is not None:
        # Of a sequence without a valid key, any finite distribution: none counts.
        valid = where | ~jnp.any(where, axis=-1, keepdims=True)
        scores = jnp.where(valid[..., None, None, :], scores, -jnp.inf)
    return _numerics.log_probs(scores)


def _split(
    num_heads: int, argument: str, where: jax.Array | None, **arrays: jax.Array
) -> tuple[jax.Array, ...]:
    """The arrays as `[..., length, heads, dim]`, in float32 at least, zero if invalid.

    Raises:
      TypeError: if an array is not floating-point.
      ValueError: if shapes differ, or the heads do not divide the dimension.
    """
    for name, x in arrays.items():
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise TypeError(f"Expected floating-point {name}, got {x.dtype}.")
    shapes = {x.shape for x in arrays.values()}
    shape = next(iter(shapes))
    if len(shapes) > 1 or len(shape) < 2:
        found = ", ".join(f"{name} {x.shape}" for name, x in arrays.items())
        raise ValueError(
            f"Expected [..., length, dim], one shape for all, got {found}."
        )
    if num_heads < 1 or shape[-1] % num_heads:
        raise ValueError(
            f"Expected {argument} to divide {shape[-1]}, the dimension of "
            f"{next(iter(arrays))} {shape}, got {num_heads}."
        )
    _checks.check_where(where, shape[:-1])
    dropped = _masking.drop_invalid(where, *arrays.values())
    heads = (num_heads, shape[-1] // num_heads)
    return tuple(x.reshape(*shape[:-1], *heads) for x in dropped)


def _check_lengths(student: jax.Array, teacher: jax.Array) -> None:
    """Raises `ValueError` unless the two have the same tokens."""
    if student.shape[:-1] != teacher.shape[:-1]:
        raise ValueError(
            "Expected student and teacher of the same tokens, got student_queries "
            f"{student.shape} and teacher_queries {teacher.shape}: do they share a "
            "tokenizer?"
        )
