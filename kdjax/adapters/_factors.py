"""The two halves of factor transfer."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from kdjax.adapters import _layers
from kdjax.models.layers import batch_norm, torch_uniform


class _Leaky(nn.Module):
    """3x3 convolutions with leaky ReLUs; a bias where no BatchNorm would undo it."""

    widths: tuple[int, ...]
    normalize: bool
    dtype: Any
    axis_name: str | None
    kernel_init: nn.initializers.Initializer = torch_uniform

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        for i, width in enumerate(self.widths):
            x = _layers.conv(
                width,
                3,
                use_bias=not self.normalize,
                dtype=self.dtype,
                kernel_init=self.kernel_init,
                name=f"conv{i}",
            )(x)
            if self.normalize:
                x = batch_norm(train, self.dtype, self.axis_name, name=f"norm{i}")(x)
            x = nn.leaky_relu(x, 0.1)
        return x


class Paraphraser(nn.Module):
    r"""A convolutional autoencoder of the teacher's features.

    Three 3x3 convolutions to the factor, with a fraction of the channels, and three
    transposed ones back, each with a leaky ReLU of slope 0.1. It is trained before the
    student, to reconstruct the teacher's features by `losses.hint_loss`; then the
    factor is for `losses.factor_loss`, and nothing of it is trained any more. Without
    a stride a transposed convolution is one, so all six are.

    Attributes:
      rate: the factor's channels over the teacher's; 0.5 in the paper.
      normalize: whether BatchNorm follows each convolution; not in the published code.
      dtype: of the computation.
      axis_name: of the devices under `pmap`, for the statistics of BatchNorm.

    Examples:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from kdjax.adapters import Paraphraser
      >>> teacher_features = jnp.ones((2, 8, 8, 16))
      >>> paraphraser = Paraphraser()
      >>> variables = paraphraser.init(
      ...     jax.random.key(0), teacher_features, train=False)
      >>> factor, reconstruction = paraphraser.apply(
      ...     variables, teacher_features, train=False)
      >>> print(factor.shape, reconstruction.shape)
      (2, 8, 8, 8) (2, 8, 8, 16)

    References:
      Kim et al., `Paraphrasing Complex Network: Network Compression via Factor
      Transfer <https://arxiv.org/abs/1802.04977>`_, NeurIPS 2018, section 3.
    """

    rate: float = 0.5
    normalize: bool = False
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(
        self, features: Float[Array, "batch height width channels"], *, train: bool
    ) -> tuple[
        Float[Array, "batch height width factors"],
        Float[Array, "batch height width channels"],
    ]:
        channels = features.shape[-1]
        factors = round(channels * self.rate)
        encoder = _Leaky(
            (channels, factors, factors),
            self.normalize,
            self.dtype,
            self.axis_name,
            name="encoder",
        )
        decoder = _Leaky(
            (factors, channels, channels),
            self.normalize,
            self.dtype,
            self.axis_name,
            kernel_init=_layers.transposed_uniform,
            name="decoder",
        )
        factor = encoder(features, train=train)
        return factor, decoder(factor, train=train)


class Translator(nn.Module):
    r"""Three convolutions from the student's features to a factor.

    As the encoder of `Paraphraser`, trained along with the student for
    `losses.factor_loss`.

    Attributes:
      factors: the factor's channels, as many as the paraphraser's.
      normalize: whether BatchNorm follows each convolution, as in RepDistiller; not in
        the authors' code.
      dtype: of the computation.
      axis_name: of the devices under `pmap`, for the statistics of BatchNorm.

    Examples:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from kdjax.adapters import Translator
      >>> student_features = jnp.ones((2, 8, 8, 4))
      >>> translator = Translator(factors=8)
      >>> variables = translator.init(jax.random.key(0), student_features, train=False)
      >>> print(translator.apply(variables, student_features, train=False).shape)
      (2, 8, 8, 8)

    References:
      Kim et al., `Paraphrasing Complex Network: Network Compression via Factor
      Transfer <https://arxiv.org/abs/1802.04977>`_, NeurIPS 2018, section 3.
    """

    factors: int
    normalize: bool = True
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(
        self, features: Float[Array, "batch height width channels"], *, train: bool
    ) -> Float[Array, "batch height width factors"]:
        widths = features.shape[-1], self.factors, self.factors
        encoder = _Leaky(
            widths, self.normalize, self.dtype, self.axis_name, name="encoder"
        )
        return encoder(features, train=train)
