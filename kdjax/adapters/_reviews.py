"""The student's layers, fused from the last to the first."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from kdjax.adapters import _layers
from kdjax.models.layers import batch_norm

# PyTorch's kaiming_uniform with a slope of 1: in +-sqrt(3/fan_in).
_kaiming_uniform = nn.initializers.variance_scaling(1.0, "fan_in", "uniform")


class ReviewFusion(nn.Module):
    r"""Each layer of the student, fused with all later ones, in the teacher's shapes.

    From the last layer to the first: a 1x1 convolution with BatchNorm brings a layer
    to a common width; what came of the later layers is enlarged, and the two are added
    with weights for each place that a 1x1 convolution and a sigmoid give; a 3x3
    convolution with BatchNorm brings the sum to the teacher's channels. So the early
    layers of the teacher teach the late layers of the student, and not the reverse.

    Compare each output to the teacher's features by `losses.review_loss`.

    Attributes:
      teacher_shapes: of the teacher's features, from the first layer to the last; the
        first axis, the batch, does not matter. Of a vector, an average over all
        places, it is `(batch, channels)`, and so is the output's.
      max_width: the most channels of the common width, which else are the last
        layer's; 512 in the published code.
      dtype: of the computation.
      axis_name: of the devices under `pmap`, for the statistics of BatchNorm.

    Raises:
      ValueError: if there are not as many features as shapes of the teacher's.

    Examples:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from kdjax.adapters import ReviewFusion
      >>> student_features = jnp.ones((2, 8, 8, 4)), jnp.ones((2, 4, 4, 8))
      >>> fusion = ReviewFusion(teacher_shapes=((2, 8, 8, 16), (2, 4, 4, 32)))
      >>> variables = fusion.init(jax.random.key(0), *student_features, train=False)
      >>> fused = fusion.apply(variables, *student_features, train=False)
      >>> print([x.shape for x in fused])
      [(2, 8, 8, 16), (2, 4, 4, 32)]

    References:
      Chen et al., `Distilling Knowledge via Knowledge Review
      <https://arxiv.org/abs/2104.09044>`_, CVPR 2021, section 3.
    """

    teacher_shapes: tuple[tuple[int, ...], ...]
    max_width: int = 512
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(
        self, *features: Float[Array, " batch ..."], train: bool
    ) -> tuple[Float[Array, " batch ..."], ...]:
        if len(features) != len(self.teacher_shapes):
            raise ValueError(
                f"Expected {len(self.teacher_shapes)} features, as teacher_shapes, got "
                f"{len(features)}."
            )
        width = min(self.max_width, features[-1].shape[-1])
        fused: list[jax.Array] = []
        later = None
        for i in reversed(range(len(features))):
            shape = self.teacher_shapes[i]
            size = (shape[1], shape[2]) if len(shape) == 4 else (1, 1)
            fuse = _Fusion(
                width, shape[-1], size, self.dtype, self.axis_name, name=f"fusion{i}"
            )
            output, later = fuse(_layers.as_maps(features[i]), later, train=train)
            fused.insert(0, output if len(shape) == 4 else output[:, 0, 0])
        return tuple(fused)


class _Fusion(nn.Module):
    """One layer with the later ones: the output, and what the earlier ones will see."""

    width: int
    channels: int
    size: tuple[int, int]
    dtype: Any
    axis_name: str | None

    @nn.compact
    def __call__(
        self, x: jax.Array, later: jax.Array | None, *, train: bool
    ) -> tuple[jax.Array, jax.Array]:
        x = self._conv_norm(x, self.width, 1, "in", train)
        if later is not None:
            later = _layers.nearest(later, (x.shape[1], x.shape[2]))
            attention = _layers.conv(
                2, 1, use_bias=True, dtype=self.dtype, name="attention"
            )(jnp.concatenate([x, later], axis=-1))
            weights = nn.sigmoid(attention)
            x = x * weights[..., :1] + later * weights[..., 1:]
        x = _layers.nearest(x, self.size)
        return self._conv_norm(x, self.channels, 3, "out", train), x

    def _conv_norm(
        self, x: jax.Array, channels: int, kernel: int, name: str, train: bool
    ) -> jax.Array:
        x = _layers.conv(
            channels,
            kernel,
            dtype=self.dtype,
            kernel_init=_kaiming_uniform,
            name=f"{name}_conv",
        )(x)
        return batch_norm(train, self.dtype, self.axis_name, name=f"{name}_norm")(x)
