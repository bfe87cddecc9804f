"""What losses of feature maps have in common."""

import jax
import jax.numpy as jnp

from kdjax.losses import _embeddings, _pooling


def check_maps(**arrays: jax.Array) -> None:
    """Raises, naming every argument, unless all are floating maps of one batch.

    Raises:
      TypeError: if an array is not floating-point.
      ValueError: if one is not `[batch, height, width, channels]`, or the batches
        differ.
    """
    _embeddings.check_batches(**arrays)
    for name, x in arrays.items():
        if x.ndim != 4:
            raise ValueError(
                f"Expected {name} [batch, height, width, channels], got {x.shape}."
            )


def check_same_features(**arrays: jax.Array) -> None:
    """Raises, naming every argument, unless all are floating and of one shape.

    Raises:
      TypeError: if an array is not floating-point.
      ValueError: if one has no axis besides the batch's, or the shapes differ.
    """
    _embeddings.check_batches(**arrays)
    shapes = {x.shape for x in arrays.values()}
    if len(shapes) > 1:
        found = ", ".join(f"{name} {x.shape}" for name, x in arrays.items())
        sizes = len({shape[-1] for shape in shapes}) == 1
        how = "losses.adaptive_average_pool" if sizes else "an adapter"
        raise ValueError(
            f"Expected arguments of one shape, got {found}: map one to the other "
            f"first, as {how} does."
        )


def drop_invalid(
    where: jax.Array | None, *features: jax.Array
) -> tuple[jax.Array, ...]:
    """Returns features in at least float32, zero where invalid, their shapes kept.

    Raises:
      TypeError: if `where` is not boolean.
      ValueError: if `where` has not the shape of the batch.
    """
    flat = _embeddings.flatten_valid(where, *features)
    return tuple(
        x.reshape(feature.shape) for x, feature in zip(flat, features, strict=True)
    )


def match_sizes(*maps: jax.Array) -> tuple[jax.Array, ...]:
    """Maps `[B, H, W, C]`, averaged to the least height and width of all."""
    size = min(x.shape[1] for x in maps), min(x.shape[2] for x in maps)
    return tuple(_pooling.adaptive_average_pool(x, size=size) for x in maps)


def places(features: jax.Array) -> jax.Array:
    """Features `[B, ..., C]` as `[B, places, C]`."""
    return features.reshape(features.shape[0], -1, features.shape[-1])


def example_mean(x: jax.Array) -> jax.Array:
    """The mean of each example's elements, `[B]`."""
    return jnp.mean(x.reshape(x.shape[0], -1), axis=-1)


def example_sum(x: jax.Array) -> jax.Array:
    """The sum of each example's elements, `[B]`."""
    return jnp.sum(x.reshape(x.shape[0], -1), axis=-1)
