"""MobileNetV3 of Howard et al. 2019."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from kdjax.models.layers import (
    Dropout,
    conv,
    conv_norm,
    mean_over_places,
    multiple_of_8,
    small_normal,
)
from kdjax.types import Outputs


class _Row(NamedTuple):
    """A block of the paper's tables 1 and 2."""

    size: int  # Of the depthwise kernel.
    inside: int
    width: int
    squeezes: bool
    hard: bool  # Hard swish in place of ReLU.
    strides: int


_LARGE = (
    _Row(3, 16, 16, False, False, 1),
    _Row(3, 64, 24, False, False, 2),
    _Row(3, 72, 24, False, False, 1),
    _Row(5, 72, 40, True, False, 2),
    _Row(5, 120, 40, True, False, 1),
    _Row(5, 120, 40, True, False, 1),
    _Row(3, 240, 80, False, True, 2),
    _Row(3, 200, 80, False, True, 1),
    _Row(3, 184, 80, False, True, 1),
    _Row(3, 184, 80, False, True, 1),
    _Row(3, 480, 112, True, True, 1),
    _Row(3, 672, 112, True, True, 1),
    _Row(5, 672, 160, True, True, 2),
    _Row(5, 960, 160, True, True, 1),
    _Row(5, 960, 160, True, True, 1),
)
_SMALL = (
    _Row(3, 16, 16, True, False, 2),
    _Row(3, 72, 24, False, False, 2),
    _Row(3, 88, 24, False, False, 1),
    _Row(5, 96, 40, True, True, 2),
    _Row(5, 240, 40, True, True, 1),
    _Row(5, 240, 40, True, True, 1),
    _Row(5, 120, 48, True, True, 1),
    _Row(5, 144, 48, True, True, 1),
    _Row(5, 288, 96, True, True, 2),
    _Row(5, 576, 96, True, True, 1),
    _Row(5, 576, 96, True, True, 1),
)
_EPSILON = 1e-3  # Of the BatchNorm, as in TensorFlow and torchvision.


def hard_sigmoid(x: jax.Array) -> jax.Array:
    """A sigmoid of three pieces, 0 below -3 and 1 above 3."""
    return jnp.clip(x + 3, 0, 6) / 6


def hard_swish(x: jax.Array) -> jax.Array:
    """Its input times its hard sigmoid."""
    return x * hard_sigmoid(x)


class SqueezingResidual(nn.Module):
    """1x1 to more channels, depthwise, channels weighed by their means, linear 1x1.

    Attributes:
      row: what the paper says of the block.
      dtype: of the computation.
      axis_name: the `pmap` axis, if any.
    """

    row: _Row
    dtype: Any
    axis_name: str | None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        row = self.row
        unit = functools.partial(
            conv_norm,
            train=train,
            dtype=self.dtype,
            axis_name=self.axis_name,
            epsilon=_EPSILON,
        )
        activation = hard_swish if row.hard else nn.relu
        y = x
        if row.inside != x.shape[-1]:
            y = activation(unit(y, row.inside, 1))
        y = unit(y, row.inside, row.size, strides=row.strides, groups=row.inside)
        y = activation(y)
        if row.squeezes:
            y = self._weighed(y)
        y = unit(y, row.width, 1)
        return x + y if x.shape == y.shape and row.strides == 1 else y

    def _weighed(self, x: jax.Array) -> jax.Array:
        """Channels times weights between 0 and 1, that all their means decide."""
        dense = functools.partial(conv, size=1, dtype=self.dtype, use_bias=True)
        means = mean_over_places(x)[:, None, None].astype(x.dtype)
        squeezed = nn.relu(dense(multiple_of_8(x.shape[-1] // 4))(means))
        return x * hard_sigmoid(dense(x.shape[-1])(squeezed))


class MobileNetV3(nn.Module):
    """Inverted residual blocks that weigh channels, and hard swish.

    Features: `stem`; `stage1`, `stage2`... the linear outputs at 1/4, 1/8, 1/16 and
    1/32 of the resolution, without ReLU; `pooled`, the hidden layer before the last.

    Attributes:
      num_classes: the number of logits.
      small: the small one of the paper's two.
      dropout: the share of hidden units dropped before the classifier.
      dtype: of the computation; parameters, statistics and logits are float32.
      axis_name: the `pmap` axis, if any.
    """

    num_classes: int
    small: bool = False
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
            epsilon=_EPSILON,
        )
        x = hard_swish(unit(images.astype(self.dtype), 16, 3, strides=2))
        features, stage = {"stem": x}, 0
        for row in _SMALL if self.small else _LARGE:
            x = SqueezingResidual(row, self.dtype, self.axis_name)(x, train=train)
            stage += row.strides - 1
            if stage:
                features[f"stage{stage}"] = x
        x = hard_swish(unit(x, 6 * x.shape[-1], 1))
        hidden = nn.Dense(1024 if self.small else 1280, kernel_init=small_normal)
        x = features["pooled"] = hard_swish(hidden(mean_over_places(x)))
        x = Dropout(self.dropout, self.axis_name)(x, train=train)
        logits = nn.Dense(self.num_classes, kernel_init=small_normal)(x)
        return Outputs(logits, features)
