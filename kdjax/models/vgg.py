"""VGG of Simonyan and Zisserman 2015, and as small images need it."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from kdjax.models.layers import (
    Dropout,
    batch_norm,
    conv,
    mean_over_places,
    small_normal,
)
from kdjax.types import Outputs

_WIDTHS = (64, 128, 256, 512, 512)
_CONVOLUTIONS = {  # By stage; 8 is the student of Tian et al. 2020.
    8: (1, 1, 1, 1, 1),
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}


class VGG(nn.Module):
    """Stages of 3x3 convolutions between poolings, one linear layer on the mean.

    The CIFAR form of the distillation literature (Tian et al. 2020): the depth counts
    the three linear layers of the original although one is left, and the last two
    stages share a resolution unless images are 64x64 or larger. The original form has
    the three, on the means over 7x7 parts of the image, as torchvision does.

    Features: `stem` and `stage1` to `stage4`, before pooling, and their `_preact`;
    `pooled`.

    Raises:
      ValueError: when called, if the depth is not 8, 11, 13, 16 or 19, or poolings
        leave nothing of the images.

    Attributes:
      num_classes: the number of logits.
      depth: 8, 11, 13, 16 or 19.
      small_images: False for the five poolings of the original, one after each stage.
      hidden: widths of linear layers, each with BatchNorm and ReLU, before the last.
      original: the form of ImageNet, which needs `small_images=False`.
      use_batch_norm: whether a BatchNorm follows each convolution.
      dropout: of the hidden layers, in the original form.
      dtype: of the computation; parameters, statistics and logits are float32.
      axis_name: the `pmap` axis, if any.
    """

    num_classes: int
    depth: int = 8
    small_images: bool = True
    hidden: Sequence[int] = ()
    original: bool = False
    use_batch_norm: bool = True
    dropout: float = 0.5
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> Outputs:
        if self.depth not in _CONVOLUTIONS:
            raise ValueError(
                f"Expected a depth of {list(_CONVOLUTIONS)}, got {self.depth}."
            )
        least = 8 if self.small_images else 32
        if min(images.shape[1:3]) < least:
            raise ValueError(
                f"Expected images of {least}x{least} or larger, got {images.shape}."
            )
        x = images.astype(self.dtype)
        features: dict[str, jax.Array] = {}
        plan = zip(_WIDTHS, _CONVOLUTIONS[self.depth], strict=True)
        for stage, (width, count) in enumerate(plan):
            keep = self.small_images and min(x.shape[1:3]) < 8
            if 0 < stage < 4 or (stage == 4 and not keep):
                x = nn.max_pool(x, window_shape=(2, 2), strides=(2, 2))
            for _ in range(count):
                preact = conv(width, 3, dtype=self.dtype, use_bias=True)(x)
                if self.use_batch_norm:
                    preact = batch_norm(train, self.dtype, self.axis_name)(preact)
                x = nn.relu(preact)
            name = f"stage{stage}" if stage else "stem"
            features |= {f"{name}_preact": preact, name: x}
        if not self.small_images:
            x = nn.max_pool(x, window_shape=(2, 2), strides=(2, 2))
        x, features["pooled"] = self._hidden(x, train=train)
        logits = nn.Dense(self.num_classes, kernel_init=small_normal)(x)
        return Outputs(logits, features)

    def _hidden(self, x: jax.Array, *, train: bool) -> tuple[jax.Array, jax.Array]:
        """What the last linear layer sees, with dropout; and the feature `pooled`."""
        if self.original:
            x = mean_over_parts(x.astype(jnp.float32), 7).reshape(len(x), -1)
            for _ in range(2):
                pooled = nn.relu(nn.Dense(4096, kernel_init=small_normal)(x))
                x = Dropout(self.dropout, self.axis_name)(pooled, train=train)
            return x, pooled
        x = pooled = mean_over_places(x)
        for width in self.hidden:
            x = nn.Dense(width, kernel_init=small_normal)(x)
            x = nn.relu(batch_norm(train, jnp.float32, self.axis_name)(x))
        return x, pooled


def mean_over_parts(x: jax.Array, parts: int) -> jax.Array:
    """Activations `[B, H, W, C]` to means `[B, parts, parts, C]`.

    Part i of n rows has those from floor(i n / parts) to ceil((i + 1) n / parts), so
    that parts overlap where they don't divide n, as in PyTorch.
    """
    rows, columns = (_averages(size, parts) for size in x.shape[1:3])
    return jnp.einsum("ph,qw,bhwc->bpqc", rows, columns, x)


def _averages(size: int, parts: int) -> np.ndarray:
    """Weights `[parts, size]` of means."""
    weights = np.zeros((parts, size), np.float32)
    for i, row in enumerate(weights):
        first, last = i * size // parts, -(-(i + 1) * size // parts)
        row[first:last] = 1 / (last - first)
    return weights
