"""ShuffleNet of Zhang et al. 2018, and ShuffleNetV2 of Ma et al. 2018."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from kdjax.models.layers import average_pool_3x3, classify, conv_norm, max_pool_3x3
from kdjax.types import Outputs


def shuffle(x: jax.Array, groups: int) -> jax.Array:
    """Deals the channels of each group out to all groups.

    Examples:
      >>> import jax.numpy as jnp
      >>> shuffle(jnp.arange(6), groups=3).tolist()
      [0, 2, 4, 1, 3, 5]
    """
    parts = x.reshape(*x.shape[:-1], groups, -1)
    return parts.swapaxes(-1, -2).reshape(x.shape)


class GroupedBlock(nn.Module):
    """The ShuffleNet unit: grouped 1x1, shuffle, depthwise 3x3, grouped 1x1.

    With stride 2 the average-pooled input is joined on, otherwise it is added. Returns
    the block's output before its last ReLU.
    """

    width: int
    strides: int
    groups: int
    first_groups: int
    dtype: Any
    axis_name: str | None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        unit = functools.partial(
            conv_norm, train=train, dtype=self.dtype, axis_name=self.axis_name
        )
        halving = self.strides == 2
        width = self.width - x.shape[-1] if halving else self.width
        inside = width // 4
        y = nn.relu(unit(x, inside, 1, groups=self.first_groups))
        y = shuffle(y, self.first_groups)
        # Zhang et al. have no ReLU here; the code that others compare with does.
        y = nn.relu(unit(y, inside, 3, strides=self.strides, groups=inside))
        y = unit(y, width, 1, groups=self.groups)
        if not halving:
            return x + y
        return jnp.concatenate([y, average_pool_3x3(x)], axis=-1)


class ShuffleNetV1(nn.Module):
    """ShuffleNet for small images: a 1x1 stem and three stages (Tian et al. 2020).

    Features: `stem`, `stage1` to `stage3` and their `_preact`, `pooled`.

    Attributes:
      num_classes: the number of logits.
      widths: of the three stages.
      counts: blocks in each stage.
      groups: of the 1x1 convolutions; they divide the widths, and a quarter of them.
      dtype: of the computation; parameters, statistics and logits are float32.
      axis_name: the `pmap` axis, if any.
    """

    num_classes: int
    widths: Sequence[int] = (240, 480, 960)
    counts: Sequence[int] = (4, 8, 4)
    groups: int = 3
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> Outputs:
        x = images.astype(self.dtype)
        x = conv_norm(x, 24, 1, train=train, dtype=self.dtype, axis_name=self.axis_name)
        x = nn.relu(x)
        features = {"stem": x}
        plan = zip(self.widths, self.counts, strict=True)
        for stage, (width, count) in enumerate(plan, start=1):
            for block in range(count):
                preact = GroupedBlock(
                    width,
                    2 if block == 0 else 1,
                    self.groups,
                    # 24 channels are too few to group.
                    1 if stage == 1 and block == 0 else self.groups,
                    self.dtype,
                    self.axis_name,
                )(x, train=train)
                x = nn.relu(preact)
            features |= {f"stage{stage}_preact": preact, f"stage{stage}": x}
        features["pooled"], logits = classify(x, self.num_classes)
        return Outputs(logits, features)


class SplitBlock(nn.Module):
    """The ShuffleNetV2 unit: one half of the channels passes, the other is convolved.

    With stride 2 both halves come from all the channels, each by its convolutions.
    Returns the shuffled output before its last ReLU, which changes only the half that
    was convolved: what passes has seen one already.
    """

    width: int
    strides: int
    dtype: Any
    axis_name: str | None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        unit = functools.partial(
            conv_norm, train=train, dtype=self.dtype, axis_name=self.axis_name
        )
        half = self.width // 2
        if self.strides == 1:
            passed, y = jnp.split(x, 2, axis=-1)
        else:
            passed = unit(x, x.shape[-1], 3, strides=2, groups=x.shape[-1])
            passed, y = unit(passed, half, 1), x
        y = nn.relu(unit(y, half, 1))
        y = unit(y, half, 3, strides=self.strides, groups=half)
        y = unit(y, half, 1)
        return shuffle(jnp.concatenate([passed, y], axis=-1), groups=2)


class ShuffleNetV2(nn.Module):
    """Three stages of split blocks: for ImageNet as in torchvision, and for CIFAR.

    Features: `stem`, before its pooling, `stage1` to `stage3` and their `_preact`,
    `pooled`.

    Attributes:
      num_classes: the number of logits.
      widths: of the three stages and of the last 1x1 convolution.
      counts: blocks in each stage.
      small_images: the stem is one 1x1 convolution (Tian et al. 2020) in place of a 3x3
        one and max-pooling, with stride 2 each.
      dtype: of the computation; parameters, statistics and logits are float32.
      axis_name: the `pmap` axis, if any.
    """

    num_classes: int
    widths: Sequence[int] = (116, 232, 464, 1024)
    counts: Sequence[int] = (4, 8, 4)
    small_images: bool = False
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> Outputs:
        unit = functools.partial(
            conv_norm, train=train, dtype=self.dtype, axis_name=self.axis_name
        )
        size, strides = (1, 1) if self.small_images else (3, 2)
        x = nn.relu(unit(images.astype(self.dtype), 24, size, strides=strides))
        features = {"stem": x}
        if not self.small_images:
            x = max_pool_3x3(x)
        plan = zip(self.widths[:-1], self.counts, strict=True)
        for stage, (width, count) in enumerate(plan, start=1):
            for block in range(count):
                make = SplitBlock(
                    width, 2 if block == 0 else 1, self.dtype, self.axis_name
                )
                preact = make(x, train=train)
                x = nn.relu(preact)
            features |= {f"stage{stage}_preact": preact, f"stage{stage}": x}
        x = nn.relu(unit(x, self.widths[-1], 1))
        features["pooled"], logits = classify(x, self.num_classes)
        return Outputs(logits, features)
