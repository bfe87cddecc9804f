"""Maps from a layer of the student to one of the teacher, position by position."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from kdjax import losses
from kdjax.adapters import _layers
from kdjax.models.layers import batch_norm, he_normal, torch_uniform


class Regressor(nn.Module):
    r"""A convolution from the student's features to the shape of a hint.

    Its kernel is set by the shapes: of size 3 and stride 2 where the student's maps
    are twice the hint's height and width; of size 4, stride 2 and transposed where they
    are half; else just so large that it slides into the hint's shape, 1 where the maps
    are of one size. BatchNorm follows, which leaves a bias nothing to do, then a ReLU.
    Features that are no maps have a linear layer, with a bias and no BatchNorm.

    For `losses.hint_loss`, and without the activation for `losses.ab_loss`.

    Attributes:
      hint_shape: of the teacher's features; the first axis, the batch, does not
        matter.
      activation: whether a ReLU is last.
      dtype: of the computation.
      axis_name: of the devices under `pmap`, for the statistics of BatchNorm.

    Raises:
      ValueError: if the student's maps can't be brought to the hint's shape.

    Examples:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from kdjax.adapters import Regressor
      >>> student_features = jnp.ones((2, 8, 8, 16))
      >>> regressor = Regressor(hint_shape=(2, 4, 4, 32))
      >>> variables = regressor.init(jax.random.key(0), student_features, train=False)
      >>> print(regressor.apply(variables, student_features, train=False).shape)
      (2, 4, 4, 32)

    References:
      Romero et al., `FitNets: Hints for Thin Deep Nets
      <https://arxiv.org/abs/1412.6550>`_, ICLR 2015, section 2.2; the kernels are
      those of Tian et al., `Contrastive Representation Distillation
      <https://arxiv.org/abs/1910.10699>`_, ICLR 2020, in their code.
    """

    hint_shape: tuple[int, ...]
    activation: bool = True
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(
        self, features: Float[Array, " batch *shape"], *, train: bool
    ) -> Float[Array, " batch *hint_shape"]:
        if features.ndim == 4:
            x = self._convolution(features.shape)(features)
            x = batch_norm(train, self.dtype, self.axis_name, name="norm")(x)
        else:
            x = nn.Dense(
                self.hint_shape[-1],
                dtype=self.dtype,
                kernel_init=torch_uniform,
                name="linear",
            )(features)
        return nn.relu(x) if self.activation else x

    def _convolution(self, shape: tuple[int, ...]) -> nn.Module:
        if len(self.hint_shape) != 4:
            raise ValueError(
                f"Expected hint_shape [batch, height, width, channels] for features "
                f"{shape}, got {self.hint_shape}."
            )
        (height, width), channels = self.hint_shape[1:3], self.hint_shape[3]
        if shape[1:3] == (2 * height, 2 * width):
            return _layers.conv(
                channels, 3, strides=2, padding=1, dtype=self.dtype, name="conv"
            )
        if (2 * shape[1], 2 * shape[2]) == (height, width):
            return nn.ConvTranspose(
                channels,
                (4, 4),
                strides=(2, 2),
                use_bias=False,
                dtype=self.dtype,
                kernel_init=_layers.transposed_uniform,
                name="conv",
            )
        size = 1 + shape[1] - height, 1 + shape[2] - width
        if min(size) < 1:
            raise ValueError(
                f"Expected features of at least half the hint's height and width "
                f"{(height, width)}, twice that or more, got {shape}: average the "
                "teacher's by losses.adaptive_average_pool first."
            )
        return _layers.conv(channels, size, padding=0, dtype=self.dtype, name="conv")


class Connector(nn.Module):
    r"""A linear map of the channels at each place, then BatchNorm.

    .. math:: r(f) = \mathrm{BN}(W f)

    Without the activation it is the student's side of `losses.ab_loss` and
    `losses.ofd_loss`, which look at features before the ReLU; with it, on the averaged
    features or on the maps, that of `losses.srrl_loss`. The initial weights are normal
    with a variance of :math:`2 / C_t`.

    Attributes:
      channels: of the teacher's features.
      activation: whether a ReLU is last.
      dtype: of the computation.
      axis_name: of the devices under `pmap`, for the statistics of BatchNorm.

    Examples:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from kdjax.adapters import Connector
      >>> student_features = jnp.ones((2, 8, 8, 16))
      >>> connector = Connector(channels=32)
      >>> variables = connector.init(jax.random.key(0), student_features, train=False)
      >>> print(connector.apply(variables, student_features, train=False).shape)
      (2, 8, 8, 32)

    References:
      Heo et al., `A Comprehensive Overhaul of Feature Distillation
      <https://arxiv.org/abs/1904.01866>`_, ICCV 2019, section 3.
    """

    channels: int
    activation: bool = False
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(
        self, features: Float[Array, " batch *shape"], *, train: bool
    ) -> Float[Array, " batch *mapped"]:
        x = _layers.conv(
            self.channels, 1, dtype=self.dtype, kernel_init=he_normal, name="conv"
        )(_layers.as_maps(features))
        x = batch_norm(train, self.dtype, self.axis_name, name="norm")(x)
        x = x.reshape(*features.shape[:-1], self.channels)
        return nn.relu(x) if self.activation else x


class VariationalRegressor(nn.Module):
    r"""Mean and variance of the teacher's features, given the student's.

    Three linear maps of the channels at each place, with ReLUs between and no biases,
    predict the mean; the variance of each channel is a parameter of its own,

    .. math:: \sigma_c^2 = \log(1 + e^{\rho_c}) + 10^{-5}

    Give both to `losses.vid_loss`. The mean need not have a size: where the student's
    maps are larger than the teacher's, they are averaged first.

    Attributes:
      channels: of the teacher's features.
      hidden_channels: between the maps; as many as `channels` unless given.
      size: the height and width to average the student's maps to, if given.
      initial_variance: of every channel; 5 in the published code.
      dtype: of the mean's computation.

    Examples:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from kdjax.adapters import VariationalRegressor
      >>> student_features = jnp.ones((2, 8, 8, 16))
      >>> regressor = VariationalRegressor(channels=3)
      >>> variables = regressor.init(jax.random.key(0), student_features, train=False)
      >>> mean, variance = regressor.apply(variables, student_features, train=False)
      >>> print(mean.shape, variance.round(2))
      (2, 8, 8, 3) [5. 5. 5.]

    References:
      Ahn et al., `Variational Information Distillation for Knowledge Transfer
      <https://arxiv.org/abs/1904.05835>`_, CVPR 2019, section 2.
    """

    channels: int
    hidden_channels: int | None = None
    size: tuple[int, int] | None = None
    initial_variance: float = 5.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, features: Float[Array, " batch *shape"], *, train: bool
    ) -> tuple[Float[Array, " batch *mapped"], Float[Array, " channels"]]:
        del train  # Nothing here depends on it.
        if self.size is not None:
            features = losses.adaptive_average_pool(features, size=self.size)
        hidden = self.hidden_channels or self.channels
        x = _layers.as_maps(features)
        for i, width in enumerate((hidden, hidden, self.channels)):
            x = nn.relu(x) if i else x
            x = _layers.conv(width, 1, dtype=self.dtype, name=f"conv{i}")(x)
        raw = math.log(math.expm1(self.initial_variance - 1e-5))
        raw_variance = self.param(
            "raw_variance", nn.initializers.constant(raw), (self.channels,), jnp.float32
        )
        mean = x.reshape(*features.shape[:-1], self.channels)
        return mean, jax.nn.softplus(raw_variance) + 1e-5
