"""VGG of Simonyan and Zisserman 2015 with BatchNorm, as small images need it."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from kdjax.models.layers import batch_norm, conv_norm, mean_over_places, small_normal
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
    stages share a resolution unless images are 64x64 or larger.

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
      dtype: of the computation; parameters, statistics and logits are float32.
      axis_name: the `pmap` axis, if any.
    """

    num_classes: int
    depth: int = 8
    small_images: bool = True
    hidden: Sequence[int] = ()
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
        unit = functools.partial(
            conv_norm, train=train, dtype=self.dtype, axis_name=self.axis_name
        )
        x = images.astype(self.dtype)
        features: dict[str, jax.Array] = {}
        plan = zip(_WIDTHS, _CONVOLUTIONS[self.depth], strict=True)
        for stage, (width, count) in enumerate(plan):
            keep = self.small_images and min(x.shape[1:3]) < 8
            if 0 < stage < 4 or (stage == 4 and not keep):
                x = nn.max_pool(x, (2, 2), strides=(2, 2))
            for _ in range(count):
                preact = unit(x, width, 3, use_bias=True)
                x = nn.relu(preact)
            name = f"stage{stage}" if stage else "stem"
            features |= {f"{name}_preact": preact, name: x}
        if not self.small_images:
            x = nn.max_pool(x, (2, 2), strides=(2, 2))
        x = features["pooled"] = mean_over_places(x)
        for width in self.hidden:
            x = nn.Dense(width, kernel_init=small_normal)(x)
            x = nn.relu(batch_norm(train, jnp.float32, self.axis_name)(x))
        logits = nn.Dense(self.num_classes, kernel_init=small_normal)(x)
        return Outputs(logits, features)
