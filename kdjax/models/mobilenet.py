"""MobileNetV2 of Sandler et al. 2018."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from kdjax.models.layers import Dropout, conv_norm, mean_over_places, small_normal
from kdjax.types import Outputs

# Sandler et al., table 2, by group of blocks. On CIFAR the second group keeps its
# resolution and, as the stem still halves it, 32x32 images end at 2x2.
_COUNTS = (1, 2, 3, 4, 3, 3, 1)
_STRIDES = (1, 2, 2, 2, 1, 2, 1)
_STRIDES_SMALL = (1, 1, 2, 2, 1, 2, 1)

# The last groups at one resolution.
_STAGES = {1: "stage1", 2: "stage2", 4: "stage3", 6: "stage4"}


def relu6(x: jax.Array) -> jax.Array:
    """ReLU, at most 6."""
    return jnp.clip(x, 0, 6)


class InvertedResidual(nn.Module):
    """1x1 convolution to more channels, depthwise, linear 1x1 to `width`.

    Attributes:
      width: the channels of the output.
      strides: of the depthwise convolution.
      expansion: channels inside by channels of the input.
      small_images: ReLU in place of ReLU6, and the first 1x1 even if it doesn't expand.
      dtype: of the computation.
      axis_name: the `pmap` axis, if any.
      size: of the depthwise kernel.
      padding: as `layers.conv` has it.
      epsilon: of the BatchNorm.
    """

    width: int
    strides: int
    expansion: int
    small_images: bool
    dtype: Any
    axis_name: str | None
    size: int = 3
    padding: str | None = None
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        unit = functools.partial(
            conv_norm,
            train=train,
            dtype=self.dtype,
            axis_name=self.axis_name,
            epsilon=self.epsilon,
        )
        activation = nn.relu if self.small_images else relu6
        inside = x.shape[-1] * self.expansion
        y = x
        if self.expansion > 1 or self.small_images:
            y = activation(unit(y, inside, 1))
        y = unit(
            y,
            inside,
            self.size,
            strides=self.strides,
            padding=self.padding,
            groups=inside,
        )
        y = unit(activation(y), self.width, 1)
        return x + y if x.shape == y.shape and self.strides == 1 else y


class MobileNetV2(nn.Module):
    """Inverted residual blocks with linear outputs.

    Two forms: for ImageNet as in torchvision; for small images as in Tian et al. 2020,
    with ReLU, one halving of resolution less, an expanding convolution in the first
    block too, and no dropout.

    Features: `stem`; `stage1` to `stage4`, the linear outputs at 1/4, 1/8, 1/16 and
    1/32 of the resolution (small images: 1/2 to 1/16), without ReLU; `pooled`.

    Attributes:
      num_classes: the number of logits.
      widths: of the stem and of the seven groups of blocks.
      last_width: of the last 1x1 convolution.
      small_images: the form for CIFAR.
      dropout: the share of pooled units dropped before the classifier.
      dtype: of the computation; parameters, statistics and logits are float32.
      axis_name: the `pmap` axis, if any.
    """

    num_classes: int
    widths: Sequence[int] = (32, 16, 24, 32, 64, 96, 160, 320)
    last_width: int = 1280
    small_images: bool = False
    dropout: float = 0.2
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> Outputs:
        unit = functools.partial(
            conv_norm, train=train, dtype=self.dtype, axis_name=self.axis_name
        )
        activation = nn.relu if self.small_images else relu6
        x = images.astype(self.dtype)
        x = activation(unit(x, self.widths[0], 3, strides=2))
        features = {"stem": x}
        all_strides = _STRIDES_SMALL if self.small_images else _STRIDES
        plan = zip(self.widths[1:], _COUNTS, all_strides, strict=True)
        for group, (width, count, first) in enumerate(plan):
            for block in range(count):
                x = InvertedResidual(
                    width,
                    first if block == 0 else 1,
                    6 if group else 1,
                    self.small_images,
                    self.dtype,
                    self.axis_name,
                )(x, train=train)
            if group in _STAGES:
                features[_STAGES[group]] = x
        x = activation(unit(x, self.last_width, 1))
        x = features["pooled"] = mean_over_places(x)
        x = Dropout(self.dropout, self.axis_name)(x, train=train)
        logits = nn.Dense(self.num_classes, kernel_init=small_normal)(x)
        return Outputs(logits, features)
