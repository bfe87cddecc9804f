"""Residual networks: the CIFAR and the ImageNet families of He et al. 2016."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from kdjax.models.layers import (
    batch_norm,
    classify,
    conv,
    conv_norm,
    max_pool_3x3,
)
from kdjax.types import Outputs


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut; 1x1 convolution where shapes change.

    Returns the block's output before its last ReLU.
    """

    width: int
    strides: int
    dtype: Any
    axis_name: str | None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        y = conv(self.width, 3, strides=self.strides, dtype=self.dtype)(x)
        y = nn.relu(batch_norm(train, self.dtype, self.axis_name)(y))
        y = conv(self.width, 3, dtype=self.dtype)(y)
        y = batch_norm(train, self.dtype, self.axis_name)(y)
        if x.shape != y.shape:
            x = conv(self.width, 1, strides=self.strides, dtype=self.dtype)(x)
            x = batch_norm(train, self.dtype, self.axis_name)(x)
        return x + y


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions around a shortcut; the stride is on the 3x3.

    He et al. have the stride on the first 1x1; this form, of torchvision and others,
    is about half a point better on ImageNet. Returns the output before its last ReLU.

    Attributes:
      width: of the 3x3 convolution, a quarter of the output's.
      strides: of the block.
      dtype: of the computation.
      axis_name: the `pmap` axis, if any.
      keras: the form of Keras: the stride on the first 1x1, convolutions with biases.
      epsilon: of the BatchNorm.
    """

    width: int
    strides: int
    dtype: Any
    axis_name: str | None
    keras: bool = False
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        unit = functools.partial(
            conv_norm,
            train=train,
            dtype=self.dtype,
            axis_name=self.axis_name,
            epsilon=self.epsilon,
            use_bias=self.keras,
        )
        first, second = (self.strides, 1) if self.keras else (1, self.strides)
        y = nn.relu(unit(x, self.width, 1, strides=first))
        y = nn.relu(unit(y, self.width, 3, strides=second))
        y = unit(y, 4 * self.width, 1)
        if x.shape != y.shape:
            x = unit(x, 4 * self.width, 1, strides=self.strides)
        return x + y


class CifarResNet(nn.Module):
    """The ResNet of small images: three stages of 3x3 blocks, He et al. section 4.2.

    Features: `stem`, `stage1` to `stage3` and their `_preact`, `pooled`.

    Raises:
      ValueError: when called, if the depth is not 6 n + 2.

    Attributes:
      num_classes: the number of logits.
      depth: 6 n + 2, with n blocks in each stage.
      widths: of the stem and of the three stages.
      dtype: of the computation; parameters, statistics and logits are float32.
      axis_name: the `pmap` axis, if any.
    """

    num_classes: int
    depth: int = 20
    widths: Sequence[int] = (16, 16, 32, 64)
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> Outputs:
        if self.depth < 8 or self.depth % 6 != 2:
            raise ValueError(f"Expected a depth of 6 n + 2, got {self.depth}.")
        x = conv(self.widths[0], 3, dtype=self.dtype)(images.astype(self.dtype))
        x = nn.relu(batch_norm(train, self.dtype, self.axis_name)(x))
        features = {"stem": x}
        for stage, width in enumerate(self.widths[1:], start=1):
            for block in range((self.depth - 2) // 6):
                strides = 2 if stage > 1 and block == 0 else 1
                preact = BasicBlock(width, strides, self.dtype, self.axis_name)(
                    x, train=train
                )
                x = nn.relu(preact)
            features |= {f"stage{stage}_preact": preact, f"stage{stage}": x}
        features["pooled"], logits = classify(x, self.num_classes)
        return Outputs(logits, features)


_BLOCKS = {
    18: (BasicBlock, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
    101: (Bottleneck, (3, 4, 23, 3)),
    152: (Bottleneck, (3, 8, 36, 3)),
}


class ResNet(nn.Module):
    """The ResNet of ImageNet: four stages, He et al. table 1, as in torchvision.

    Features: `stem`, before its pooling, `stage1` to `stage4` and their `_preact`,
    `pooled`.

    Raises:
      ValueError: when called, if the depth is not 18, 34, 50, 101 or 152, or less than
        50 in the form of Keras.

    Attributes:
      num_classes: the number of logits.
      depth: 18, 34, 50, 101 or 152.
      small_images: the stem is one 3x3 convolution, as for CIFAR, in place of a 7x7
        one and max-pooling, with stride 2 each.
      keras: the form of Keras, as of He et al.: a block's stride is on its first 1x1
        convolution; and all convolutions have biases.
      epsilon: of the BatchNorm, added to variances; in Keras 1e-3 until 2019.
      dtype: of the computation; parameters, statistics and logits are float32.
      axis_name: the `pmap` axis, if any.
    """

    num_classes: int
    depth: int = 18
    small_images: bool = False
    keras: bool = False
    epsilon: float = 1e-5
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> Outputs:
        make_block, num_blocks = self._blocks()
        size, strides = (3, 1) if self.small_images else (7, 2)
        x = conv_norm(
            images.astype(self.dtype),
            64,
            size,
            strides=strides,
            train=train,
            dtype=self.dtype,
            axis_name=self.axis_name,
            epsilon=self.epsilon,
            use_bias=self.keras,
        )
        x = nn.relu(x)
        features = {"stem": x}
        if not self.small_images:
            x = max_pool_3x3(x)
        for stage, count in enumerate(num_blocks, start=1):
            for block in range(count):
                strides = 2 if stage > 1 and block == 0 else 1
                make = make_block(32 * 2**stage, strides, self.dtype, self.axis_name)
                preact = make(x, train=train)
                x = nn.relu(preact)
            features |= {f"stage{stage}_preact": preact, f"stage{stage}": x}
        features["pooled"], logits = classify(x, self.num_classes)
        return Outputs(logits, features)

    def _blocks(self) -> tuple[Callable[..., nn.Module], Sequence[int]]:
        """What makes a block of this depth, and how many there are in each stage."""
        if self.depth not in _BLOCKS:
            raise ValueError(f"Expected a depth of {list(_BLOCKS)}, got {self.depth}.")
        block, counts = _BLOCKS[self.depth]
        if block is Bottleneck:
            make = functools.partial(block, keras=self.keras, epsilon=self.epsilon)
            return make, counts
        if self.keras or self.epsilon != 1e-5:
            raise ValueError(
                "Expected keras=False and epsilon=1e-5 for basic blocks, got "
                f"{self.keras} and {self.epsilon}."
            )
        return block, counts
