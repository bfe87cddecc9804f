"""Generators: from normal noise to images, for distillation without data.

Every generator is called as `generator(latents, train=...)`, with latents
`[B, latent_dim]`, and returns *normalised* images `[B, height, width, C]`, of mean 0
and variance 1 in each channel: what a network sees once it has normalised its pixels.

The last layers of all are tanh and a BatchNorm without scale and shift, which gives the
images these moments. In training the moments are those of the batch, otherwise running
averages, so that the image of a latent no longer depends on its neighbours.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from kdjax.models.convolutions import Conv
from kdjax.models.layers import torch_uniform
from kdjax.types import UserError


class MLPGenerator(nn.Module):
    """Linear layers with BatchNorm and leaky ReLU: the cheap one, also on CPU.

    Attributes:
      image_shape: of one image, `(height, width, channels)`.
      hidden: the width of each hidden layer.
      norm_epsilon: added to the variances of the hidden layers' BatchNorm.
    """

    image_shape: Sequence[int]
    hidden: Sequence[int] = (512, 1024)
    norm_epsilon: float = 1e-5

    @nn.compact
    def __call__(self, latents: jax.Array, *, train: bool) -> jax.Array:
        x = latents
        for width in self.hidden:
            x = _linear(width)(x)
            x = _leaky_relu(_batch_norm(train, self.norm_epsilon)(x))
        height, width, channels = self.image_shape
        x = nn.Dense(height * width * channels, kernel_init=torch_uniform)(x)
        return _standardized(x.reshape(len(x), *self.image_shape), train)


class ConvGenerator(nn.Module):
    """A linear layer, then twice nearest neighbours and a 3x3 convolution.

    That of Chen et al. 2019, section 4.1 and code, for images whose sides divide by 4;
    of others the margin is cut off. Their code has 0.8 as `norm_epsilon` (an argument
    meant as momentum, by its value), Fang et al. 2019 the usual 1e-5.

    Attributes:
      image_shape: of one image, `(height, width, channels)`.
      width: channels of the first convolution; the second has half of them.
      norm_epsilon: added to the variances of the convolutions' BatchNorm.
    """

    image_shape: Sequence[int]
    width: int = 128
    norm_epsilon: float = 1e-5

    @nn.compact
    def __call__(self, latents: jax.Array, *, train: bool) -> jax.Array:
        height, width, channels = self.image_shape
        rows, columns = -(-height // 4), -(-width // 4)
        x = _linear(rows * columns * self.width)(latents)
        x = x.reshape(len(x), rows, columns, self.width)
        x = _batch_norm(train, 1e-5)(x)
        for features in (self.width, self.width // 2):
            x = _conv(features, use_bias=False)(_twice_as_large(x))
            x = _leaky_relu(_batch_norm(train, self.norm_epsilon)(x))
        return _standardized(_conv(channels)(x)[:, :height, :width], train)


GENERATORS: dict[str, type[nn.Module]] = {
    "mlp": MLPGenerator,
    "conv": ConvGenerator,
}


def create(name: str, *, image_shape: Sequence[int], **kwargs: Any) -> nn.Module:
    """A generator by name.

    Args:
      name: one of `GENERATORS`.
      image_shape: of one image, `(height, width, channels)`.
      **kwargs: the generator's own attributes.

    Raises:
      UserError: if there is no such generator, or it has no such attribute.

    Examples:
      >>> create("conv", image_shape=(28, 28, 1), width=64).width
      64
    """
    if name not in GENERATORS:
        raise UserError(
            f"Expected a generator out of {', '.join(GENERATORS)}, got {name!r}."
        )
    module = GENERATORS[name]
    allowed = [x for x in module.__annotations__ if x not in ("image_shape", "parent")]
    for unexpected in kwargs.keys() - set(allowed):
        raise UserError(
            f"Expected for the generator {name!r} no arguments but "
            f"{', '.join(allowed)}, got {unexpected!r}."
        )
    return module(image_shape=tuple(image_shape), **kwargs)


def _batch_norm(train: bool, epsilon: float, **kwargs: Any) -> nn.BatchNorm:
    return nn.BatchNorm(
        use_running_average=not train,
        momentum=0.9,
        epsilon=epsilon,
        use_fast_variance=False,  # Not exact beside a large mean, as DAFL's rate makes.
        **kwargs,
    )


def _linear(features: int) -> nn.Dense:
    """Without bias, which the BatchNorm after it would subtract again."""
    return nn.Dense(features, use_bias=False, kernel_init=torch_uniform)


def _conv(features: int, *, use_bias: bool = True) -> Conv:
    return Conv(features, (3, 3), use_bias=use_bias, kernel_init=torch_uniform)


def _leaky_relu(x: jax.Array) -> jax.Array:
    return nn.leaky_relu(x, 0.2)


def _twice_as_large(x: jax.Array) -> jax.Array:
    """Each pixel four times; the gradient is a sum, not a scatter."""
    batch, height, width, channels = x.shape
    x = x[:, :, None, :, None]
    x = jnp.broadcast_to(x, (batch, height, 2, width, 2, channels))
    return x.reshape(batch, 2 * height, 2 * width, channels)


def _standardized(x: jax.Array, train: bool) -> jax.Array:
    """Of mean 0 and variance 1 in each channel, over batch and places."""
    return _batch_norm(train, 1e-5, use_scale=False, use_bias=False)(jnp.tanh(x))
