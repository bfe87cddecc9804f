"""Wide residual networks of Zagoruyko and Komodakis 2016, with pre-activation."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from kdjax.models.layers import Dropout, batch_norm, classify, conv
from kdjax.types import Outputs


class PreactBlock(nn.Module):
    """BatchNorm, ReLU and a 3x3 convolution, twice.

    Returns the sum with the shortcut, and the input after the first BatchNorm: what
    the stage before gives to its ReLU.
    """

    width: int
    strides: int
    dropout: float
    dtype: Any
    axis_name: str | None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> tuple[jax.Array, jax.Array]:
        preact = batch_norm(train, self.dtype, self.axis_name)(x)
        active = nn.relu(preact)
        y = conv(self.width, 3, strides=self.strides, dtype=self.dtype)(active)
        y = nn.relu(batch_norm(train, self.dtype, self.axis_name)(y))
        y = Dropout(self.dropout, self.axis_name)(y, train=train)
        y = conv(self.width, 3, dtype=self.dtype)(y)
        if x.shape != y.shape:
            x = conv(self.width, 1, strides=self.strides, dtype=self.dtype)(active)
        return x + y, preact


class WideResNet(nn.Module):
    """WRN-d-k for small images: three stages of pre-activation blocks.

    Features: `stem`; `stage1` to `stage3`, sums that no ReLU has seen; their
    `_preact`, after the BatchNorm of the block that follows; `pooled`.

    Raises:
      ValueError: when called, if the depth is not 6 n + 4.

    Attributes:
      num_classes: the number of logits.
      depth: 6 n + 4, with n blocks in each stage.
      widen: times 16, 32 and 64 are the widths of the stages.
      dropout: the share of units dropped between the convolutions of a block.
      dtype: of the computation; parameters, statistics and logits are float32.
      axis_name: the `pmap` axis, if any.
    """

    num_classes: int
    depth: int = 16
    widen: int = 1
    dropout: float = 0.0
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> Outputs:
        if self.depth < 10 or self.depth % 6 != 4:
            raise ValueError(f"Expected a depth of 6 n + 4, got {self.depth}.")
        x = conv(16, 3, dtype=self.dtype)(images.astype(self.dtype))
        features = {"stem": x}
        for stage in (1, 2, 3):
            for block in range((self.depth - 4) // 6):
                strides = 2 if stage > 1 and block == 0 else 1
                make = PreactBlock(
                    8 * 2**stage * self.widen,
                    strides,
                    self.dropout,
                    self.dtype,
                    self.axis_name,
                )
                x, preact = make(x, train=train)
                if stage > 1 and block == 0:
                    features[f"stage{stage - 1}_preact"] = preact
            features[f"stage{stage}"] = x
        x = features["stage3_preact"] = batch_norm(train, self.dtype, self.axis_name)(x)
        features["pooled"], logits = classify(nn.relu(x), self.num_classes)
        return Outputs(logits, features)
