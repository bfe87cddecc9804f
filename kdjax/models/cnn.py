"""The convolutional network of federated learning, fast under `jax.vmap` too."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from kdjax.models.layers import torch_uniform
from kdjax.types import Outputs


class CNN(nn.Module):
    """5x5 convolutions, each with ReLU and 2x2 max-pooling, and one hidden layer.

    With the default widths that of McMahan et al. 2017, section 3, for MNIST:
    1,663,370 parameters for gray images of 28x28 pixels and ten classes.

    Convolutions are products of a matrix with the stacked 5x5 patches. Under
    `jax.vmap` over the parameters of many clients they stay such products, where
    others become convolutions in groups, which no backend does well.

    Features: `stage1` and `stage2` before pooling, and `pooled`, which the classifier
    sees: here the hidden layer.

    Attributes:
      num_classes: the number of logits.
      widths: of the convolutions.
      hidden: of the layer after them.
      dtype: of the computation; parameters and logits are float32.
      axis_name: the `pmap` axis, if any.
    """

    num_classes: int
    widths: Sequence[int] = (32, 64)
    hidden: int = 512
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> Outputs:
        del train  # Nothing here behaves differently in training.
        x = images.astype(self.dtype)
        features: dict[str, jax.Array] = {}
        for stage, width in enumerate(self.widths, start=1):
            convolve = nn.Dense(width, dtype=self.dtype, kernel_init=torch_uniform)
            x = features[f"stage{stage}"] = nn.relu(convolve(_patches(x, 5)))
            x = nn.max_pool(x, window_shape=(2, 2), strides=(2, 2))
        x = x.reshape(x.shape[0], -1)
        dense = nn.Dense(self.hidden, dtype=self.dtype, kernel_init=torch_uniform)
        features["pooled"] = x = nn.relu(dense(x)).astype(jnp.float32)
        logits = nn.Dense(self.num_classes, kernel_init=torch_uniform)(x)
        return Outputs(logits, features)


def _patches(images: jax.Array, size: int) -> jax.Array:
    """What a `size` x `size` kernel sees at each pixel: `[B, H, W, size^2 * C]`."""
    _, height, width, _ = images.shape
    pad = (size // 2, size // 2)
    padded = jnp.pad(images, ((0, 0), pad, pad, (0, 0)))
    shifts = [
        padded[:, i : i + height, j : j + width]
        for i in range(size)
        for j in range(size)
    ]
    return jnp.concatenate(shifts, axis=-1)
