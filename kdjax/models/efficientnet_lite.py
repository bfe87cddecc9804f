"""EfficientNet-Lite: EfficientNet (Tan and Le 2019) of what every accelerator runs.

Against EfficientNet it has ReLU6 in place of swish, no squeeze and excitation, and a
stem and a head that do not grow. Stochastic depth, with which Google trained it, is
left out.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from kdjax.models.layers import (
    Dropout,
    conv_norm,
    mean_over_places,
    multiple_of_8,
    small_normal,
)
from kdjax.models.mobilenet import InvertedResidual, relu6
from kdjax.types import Outputs

# By group of blocks: their number, kernel, first stride and width; Tan and Le, table 1.
_GROUPS = (
    (1, 3, 1, 16),
    (2, 3, 2, 24),
    (2, 5, 2, 40),
    (3, 3, 2, 80),
    (3, 5, 1, 112),
    (4, 5, 2, 192),
    (1, 3, 1, 320),
)
_STAGES = {1: "stage1", 2: "stage2", 4: "stage3", 6: "stage4"}


class EfficientNetLite(nn.Module):
    """Inverted residual blocks, wider and more of them from lite0 to lite4.

    Features: `stem`; `stage1` to `stage4`, the linear outputs at 1/4, 1/8, 1/16 and
    1/32 of the resolution, without ReLU; `pooled`.

    Attributes:
      num_classes: the number of logits.
      width: factor of the channels of lite0.
      depth: factor of the number of blocks in a group, but the first and the last.
      same_padding: the padding of TensorFlow, which has less before than behind where
        there is a stride; PyTorch's own has the same on both sides.
      epsilon: of the BatchNorm.
      dropout: the share of pooled units dropped before the classifier.
      dtype: of the computation; parameters, statistics and logits are float32.
      axis_name: the `pmap` axis, if any.
    """

    num_classes: int
    width: float = 1.0
    depth: float = 1.0
    same_padding: bool = True
    epsilon: float = 1e-3
    dropout: float = 0.2
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> Outputs:
        unit = functools.partial(
            conv_norm,
            train=train,
            dtype=self.dtype,
            axis_name=self.axis_name,
            epsilon=self.epsilon,
        )
        padding = "SAME" if self.same_padding else None
        x = relu6(unit(images.astype(self.dtype), 32, 3, strides=2, padding=padding))
        features = {"stem": x}
        for group, (count, size, first, width) in enumerate(_GROUPS):
            inner = 0 < group < len(_GROUPS) - 1
            for block in range(math.ceil(count * self.depth) if inner else count):
                x = InvertedResidual(
                    multiple_of_8(width * self.width),
                    first if block == 0 else 1,
                    6 if group else 1,
                    small_images=False,
                    dtype=self.dtype,
                    axis_name=self.axis_name,
                    size=size,
                    padding=padding,
                    epsilon=self.epsilon,
                )(x, train=train)
            if group in _STAGES:
                features[_STAGES[group]] = x
        x = relu6(unit(x, 1280, 1))
        x = features["pooled"] = mean_over_places(x)
        x = Dropout(self.dropout, self.axis_name)(x, train=train)
        logits = nn.Dense(self.num_classes, kernel_init=small_normal)(x)
        return Outputs(logits, features)
