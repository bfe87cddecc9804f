"""LeNet-5 of LeCun et al. 1998, and the half-size student made of it."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from kdjax.models.layers import conv, torch_uniform
from kdjax.types import Outputs

_SIZE = 32  # LeCun et al. centre the 28x28 digits on 32x32.


class LeNet5(nn.Module):
    """Two unpadded 5x5 convolutions and three linear layers, with ReLU and max-pooling.

    Images of less than 32x32 pixels are centred on 32x32 zeros first, so that these
    have the published size whatever the data: 61,706 parameters for gray images and
    ten classes, 15,738 with half the widths (the student of Chen et al. 2019).

    Features: `stage1` and `stage2`, before pooling, and their `_preact`; `hidden1`;
    and `pooled`, which the classifier sees: here the second hidden layer.

    Attributes:
      num_classes: the number of logits.
      widths: of the two convolutions and the two hidden layers.
      dtype: of the computation; parameters and logits are float32.
      axis_name: the `pmap` axis, if any.
    """

    num_classes: int
    widths: Sequence[int] = (6, 16, 120, 84)
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> Outputs:
        del train  # Nothing here behaves differently in training.
        x = _at_least_32x32(images.astype(self.dtype))
        features: dict[str, jax.Array] = {}
        for stage, width in enumerate(self.widths[:2], start=1):
            preact = conv(width, 5, padding=0, use_bias=True, dtype=self.dtype)(x)
            x = nn.relu(preact)
            features |= {f"stage{stage}_preact": preact, f"stage{stage}": x}
            x = nn.max_pool(x, window_shape=(2, 2), strides=(2, 2))
        x = x.reshape(x.shape[0], -1)
        for name, width in zip(("hidden1", "pooled"), self.widths[2:], strict=True):
            dense = nn.Dense(width, dtype=self.dtype, kernel_init=torch_uniform)
            x = features[name] = nn.relu(dense(x))
        features["pooled"] = x = x.astype(jnp.float32)
        logits = nn.Dense(self.num_classes, kernel_init=torch_uniform)(x)
        return Outputs(logits, features)


def _at_least_32x32(images: jax.Array) -> jax.Array:
    missing = [max(0, _SIZE - size) for size in images.shape[1:3]]
    pads = [(n // 2, n - n // 2) for n in missing]
    return jnp.pad(images, ((0, 0), *pads, (0, 0)))
