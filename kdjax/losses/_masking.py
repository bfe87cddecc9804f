"""The one implementation of the `where` convention."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from kdjax.losses import _checks


def drop_invalid(
    where: Bool[Array, "*batch"] | None, *arrays: Float[Array, "*batch _"]
) -> tuple[jax.Array, ...]:
    """Returns `arrays` in one dtype of at least float32, zero where `where` is False.

    Losses call this first. Replacing the *inputs*, rather than only the loss, is
    what keeps a NaN in a padded row out of the gradient as well as the value.

    Raises:
      TypeError: if `where` is not boolean.
      ValueError: if `where` has not the shape of the arrays without their last axis.
    """
    _checks.check_where(where, arrays[0].shape[:-1])
    wide = any(jnp.finfo(x.dtype).bits > 32 for x in arrays)
    dtype = jnp.float64 if wide else jnp.float32
    arrays = tuple(x.astype(dtype) for x in arrays)
    if where is None:
        return arrays
    return tuple(jnp.where(where[..., None], x, 0) for x in arrays)


def drop_invalid_labels(
    where: Bool[Array, "*batch"] | None, labels: Int[Array, "*batch"]
) -> Int[Array, "*batch"]:
    """Returns `labels`, class 0 where `where` is False: -100 and the like are gone."""
    return labels if where is None else jnp.where(where, labels, 0)


def zero_invalid(
    where: Bool[Array, "*batch"] | None, values: Float[Array, "*batch"]
) -> Float[Array, "*batch"]:
    """Returns `values`, zero where `where` is False. Losses call this last."""
    return values if where is None else jnp.where(where, values, 0)


def num_valid(where: Bool[Array, " batch"] | None, like: jax.Array) -> jax.Array:
    """The number of valid rows of `like`, at least 1, as a scalar of its dtype."""
    if where is None:
        return jnp.asarray(like.shape[0], like.dtype)
    return jnp.maximum(jnp.sum(where.astype(like.dtype)), 1)
