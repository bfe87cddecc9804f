"""The self-attention that transformers of images and of texts have in common."""

from collections.abc import Callable

import jax
import jax.numpy as jnp


def check_heads(dim: int, heads: int) -> None:
    """Raises `ValueError` unless the heads divide the dimension."""
    if dim % heads:
        raise ValueError(f"Expected heads that divide dim {dim}, got {heads}.")


def attend(
    queries: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    *,
    heads: int,
    mask: jax.Array | None = None,
    drop: Callable[[jax.Array], jax.Array] = lambda weights: weights,
) -> tuple[jax.Array, jax.Array]:
    """Values averaged by the softmax of scores, and the scores.

    Args:
      queries: of all heads, one after the other, `[B, L, dim]`.
      keys: likewise.
      values: likewise.
      heads: how many there are.
      mask: which tokens are attended to, `[B, L]`; all by default.
      drop: dropout of the softmax.

    Returns:
      `[B, L, dim]`, and the scores before mask and softmax, `[B, heads, L, L]`.
    """
    q, k, v = (x.reshape(*x.shape[:-1], heads, -1) for x in (queries, keys, values))
    scores = jnp.einsum("bqhd,bkhd->bhqk", q * q.shape[-1] ** -0.5, k)
    masked = scores.astype(jnp.float32)
    if mask is not None:
        # Finite, for the rows of a text without a token, which fills up a batch.
        lowest = jnp.finfo(jnp.float32).min
        masked = jnp.where(mask[:, None, None], masked, lowest)
    weights = drop(jax.nn.softmax(masked)).astype(scores.dtype)
    attended = jnp.einsum("bhqk,bkhd->bqhd", weights, v)
    return attended.reshape(queries.shape), scores
