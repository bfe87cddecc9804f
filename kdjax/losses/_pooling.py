"""Averages of maps over parts of them."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from kdjax.losses import _masking


def adaptive_average_pool(
    features: Float[Array, "*batch height width channels"],
    *,
    size: tuple[int, int],
) -> Float[Array, "*batch _ _ channels"]:
    r"""Averages of a map's places to a given height and width.

    Part :math:`i` of :math:`n` takes the rows from :math:`\lfloor i H / n \rfloor` up
    to, not including, :math:`\lceil (i + 1) H / n \rceil`, and columns likewise:

    .. math::
      y_{ij} = \frac{1}{|R_i| \, |S_j|} \sum_{h \in R_i} \sum_{w \in S_j} x_{hw}

    Parts share a row where the sizes are no multiples. This is what PyTorch calls
    `adaptive_avg_pool2d`, by which published codes bring maps of two nets to one
    size. A larger size repeats rows and columns.

    Args:
      features: maps, `[..., height, width, channels]`.
      size: the height and width to average to; positive.

    Returns:
      The averages, `[..., *size, channels]`, in at least float32.

    Raises:
      ValueError: if `size` is not positive, or there are no three axes.
      TypeError: if `features` are not floating-point.

    Examples:
      >>> import jax.numpy as jnp
      >>> from kdjax import losses
      >>> features = jnp.arange(5.0).reshape(1, 5, 1)
      >>> print(losses.adaptive_average_pool(features, size=(1, 3)).squeeze())
      [0.5 2.  3.5]

    References:
      He et al., `Spatial Pyramid Pooling in Deep Convolutional Networks for Visual
      Recognition <https://arxiv.org/abs/1406.4729>`_, ECCV 2014, appendix A: the
      rounding.
    """
    if not jnp.issubdtype(features.dtype, jnp.floating):
        raise TypeError(f"Expected floating-point features, got {features.dtype}.")
    if features.ndim < 3:
        raise ValueError(
            f"Expected features [..., height, width, channels], got {features.shape}."
        )
    if min(size) < 1:
        raise ValueError(f"Expected a positive size, got {size}.")

    (features,) = _masking.drop_invalid(None, features)
    features = _pool_axis(features, size[0], -3)
    return _pool_axis(features, size[1], -2)


def _pool_axis(x: jax.Array, parts: int, axis: int) -> jax.Array:
    length = x.shape[axis]
    if length == parts:
        return x
    x = jnp.moveaxis(x, axis, -1)
    if length % parts == 0:
        pooled = jnp.mean(x.reshape(*x.shape[:-1], parts, length // parts), axis=-1)
    else:
        ranges = [
            (i * length // parts, -(-(i + 1) * length // parts)) for i in range(parts)
        ]
        weights = jnp.array(
            [
                [1 / (end - start) if start <= j < end else 0 for j in range(length)]
                for start, end in ranges
            ],
            x.dtype,
        )
        pooled = jnp.matmul(x, weights.T, precision=jax.lax.Precision.HIGHEST)
    return jnp.moveaxis(pooled, -1, axis)
