"""What the adapters have in common."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from kdjax.models.convolutions import Conv
from kdjax.models.layers import torch_uniform

# PyTorch's fan-in of a transposed convolution is that of its outputs.
transposed_uniform = nn.initializers.variance_scaling(1 / 3, "fan_out", "uniform")


def conv(
    features: int,
    size: int | tuple[int, int],
    *,
    strides: int = 1,
    padding: int | None = None,
    use_bias: bool = False,
    dtype: Any = jnp.float32,
    kernel_init: nn.initializers.Initializer = torch_uniform,
    name: str | None = None,
) -> Conv:
    """A convolution, initialised as PyTorch does; its bias, if any, begins at zero."""
    height, width = (size, size) if isinstance(size, int) else size
    # Half the kernel on every side, unless told.
    down, across = (
        (x - 1) // 2 if padding is None else padding for x in (height, width)
    )
    return Conv(
        features,
        (height, width),
        strides=strides,
        padding=((down, down), (across, across)),
        use_bias=use_bias,
        dtype=dtype,
        kernel_init=kernel_init,
        name=name,
    )


def as_maps(features: jax.Array) -> jax.Array:
    """Features `[B, C]` or `[B, ..., C]` as maps `[B, H, W, C]`, which stay so."""
    if features.ndim == 4:
        return features
    return features.reshape(features.shape[0], -1, 1, features.shape[-1])


def nearest(maps: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Maps resized by repeating or skipping; rounds down, as PyTorch does."""
    for axis, length in ((1, size[0]), (2, size[1])):
        index = jnp.arange(length) * maps.shape[axis] // length
        maps = jnp.take(maps, index, axis=axis)
    return maps


def unit(x: jax.Array) -> jax.Array:
    """Rows of length 1; a row of zeros stays so and has no gradient."""
    squares = jnp.sum(x**2, axis=-1, keepdims=True)
    is_zero = squares == 0
    return x / jnp.sqrt(jnp.where(is_zero, 1, squares))
