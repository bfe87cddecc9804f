"""What losses of embeddings, and of the relations between them, have in common."""

import jax
import jax.numpy as jnp

from kdjax.losses import _masking, _numerics


def check_batches(**arrays: jax.Array) -> None:
    """Raises, naming every argument, unless all are floating, of one batch.

    Raises:
      TypeError: if an array is not floating-point.
      ValueError: if one has no axis besides the batch's, or the batches differ.
    """
    for name, x in arrays.items():
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise TypeError(f"Expected floating-point {name}, got {x.dtype}.")
        if x.ndim < 2 or 0 in x.shape[1:]:
            raise ValueError(f"Expected {name} [batch, ...], got {x.shape}.")
    if len({x.shape[0] for x in arrays.values()}) > 1:
        raise ValueError(
            f"Expected arguments of one batch, got {_shapes(arrays)}: are they of the "
            "same examples?"
        )


def check_embeddings(**arrays: jax.Array) -> None:
    """Raises unless all are floating, `[batch, dim]`, of one shape.

    Raises:
      TypeError: if an array is not floating-point.
      ValueError: if one is no matrix, or the shapes differ.
    """
    check_batches(**arrays)
    for name, x in arrays.items():
        if x.ndim != 2:
            raise ValueError(f"Expected {name} [batch, dim], got {x.shape}.")
    if len({x.shape for x in arrays.values()}) > 1:
        raise ValueError(
            f"Expected arguments of one shape, got {_shapes(arrays)}: map both to "
            "one dimension first, as adapters.Embed does."
        )


def _shapes(arrays: dict[str, jax.Array]) -> str:
    return ", ".join(f"{name} {x.shape}" for name, x in arrays.items())


def flatten_valid(
    where: jax.Array | None, *features: jax.Array
) -> tuple[jax.Array, ...]:
    """Returns features as `[batch, dim]` of at least float32, zero where invalid.

    Raises:
      TypeError: if `where` is not boolean.
      ValueError: if `where` has not the shape of the batch.
    """
    flat = (x.reshape(x.shape[0], -1) for x in features)
    return _masking.drop_invalid(where, *flat)


def is_valid(where: jax.Array | None, like: jax.Array) -> jax.Array:
    """Which examples of `like` are valid, `[batch]`: all of them without `where`."""
    return jnp.ones(like.shape[0], jnp.bool_) if where is None else where


def pairs(where: jax.Array | None, like: jax.Array) -> jax.Array:
    """Which ordered pairs are two different valid examples, `[batch, batch]`."""
    valid = is_valid(where, like)
    return valid[:, None] & valid[None] & ~jnp.eye(len(valid), dtype=jnp.bool_)


def unit(x: jax.Array) -> jax.Array:
    """Rows of length 1; a row of zeros stays so and has no gradient."""
    length = _numerics.norm(x)[..., None]
    return x / jnp.where(length > 0, length, 1)


def inner(x: jax.Array, y: jax.Array) -> jax.Array:
    """Inner products of the rows of `x` with those of `y`.

    At full precision: an accelerator's default rounds to 10 bits, and what a relation
    measures is a difference of products.
    """
    return jnp.matmul(x, jnp.swapaxes(y, -1, -2), precision=jax.lax.Precision.HIGHEST)
