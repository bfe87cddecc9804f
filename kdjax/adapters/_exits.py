"""A classifier on the features of a middle layer."""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from kdjax import losses
from kdjax.adapters import _layers
from kdjax.models.layers import batch_norm, classify


class Exit(nn.Module):
    r"""A student's middle layer mapped to its last one, and classified.

    A 3x3 convolution with BatchNorm and a ReLU to the channels of the last layer, of
    maps averaged to its size, then a mean over the places and a linear layer: the
    exits of `losses.byot_loss` and `losses.byot_feature_loss`, and the weak head of
    `losses.uskd_loss`. The published exits are deeper, with one bottleneck for each
    stage that is skipped.

    Attributes:
      channels: of the last layer.
      size: its height and width.
      num_classes: the number of logits.
      dtype: of the computation.
      axis_name: of the devices under `pmap`, for the statistics of BatchNorm.

    Examples:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from kdjax.adapters import Exit
      >>> student_features = jnp.ones((2, 8, 8, 16))
      >>> module = Exit(channels=64, size=(4, 4), num_classes=10)
      >>> variables = module.init(jax.random.key(0), student_features, train=False)
      >>> features, logits = module.apply(variables, student_features, train=False)
      >>> print(features.shape, logits.shape)
      (2, 4, 4, 64) (2, 10)

    References:
      Zhang et al., `Be Your Own Teacher <https://arxiv.org/abs/1905.08094>`_, ICCV
      2019, section 3.
    """

    channels: int
    size: tuple[int, int]
    num_classes: int
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(
        self, features: Float[Array, "batch height width channels"], *, train: bool
    ) -> tuple[Float[Array, "batch _ _ _"], Float[Array, "batch classes"]]:
        x = losses.adaptive_average_pool(features, size=self.size)
        x = _layers.conv(self.channels, 3, dtype=self.dtype, name="conv")(x)
        x = nn.relu(batch_norm(train, self.dtype, self.axis_name, name="norm")(x))
        return x, classify(x, self.num_classes)[1]
