"""Layers that compute the same on one device, under sharded jit, and under pmap."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from kdjax.models.convolutions import Conv

# He et al. 2015, as PyTorch's reference models initialise their convolutions.
he_normal = nn.initializers.variance_scaling(2.0, "fan_out", "normal")

# As PyTorch's linear layers: uniform in +-1/sqrt(fan_in).
torch_uniform = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")

# The classifiers of VGG and MobileNetV2.
small_normal = nn.initializers.normal(0.01)


def batch_norm(
    train: bool,
    dtype: Any,
    axis_name: str | None,
    *,
    epsilon: float = 1e-5,
    **kwargs: Any,
) -> nn.BatchNorm:
    """BatchNorm over the global batch, statistics in float32."""
    return nn.BatchNorm(
        use_running_average=not train,
        momentum=0.9,
        epsilon=epsilon,
        dtype=dtype,
        axis_name=axis_name,
        **kwargs,
    )


def conv(
    features: int,
    size: int,
    *,
    strides: int = 1,
    groups: int = 1,
    padding: int | str | None = None,
    dtype: Any = jnp.float32,
    **kwargs: Any,
) -> Conv:
    """A convolution without bias, padded by (size - 1) / 2 on every side.

    With strides, padding='SAME' is another: that of TensorFlow, with less before.
    """
    pad = (size - 1) // 2 if padding is None else padding
    return Conv(
        features,
        (size, size),
        strides=strides,
        padding=pad if isinstance(pad, str) else ((pad, pad), (pad, pad)),
        feature_group_count=groups,
        dtype=dtype,
        kernel_init=he_normal,
        **kwargs,
    )


def conv_norm(
    x: jax.Array,
    features: int,
    size: int,
    *,
    train: bool,
    dtype: Any,
    axis_name: str | None,
    epsilon: float = 1e-5,
    **kwargs: Any,
) -> jax.Array:
    """A convolution and BatchNorm, both submodules of the calling module."""
    x = conv(features, size, dtype=dtype, **kwargs)(x)
    return batch_norm(train, dtype, axis_name, epsilon=epsilon)(x)


def multiple_of_8(number: int | float) -> int:
    """The nearest one, at least 8, and not less than nine tenths of the number.

    Examples:
      >>> [multiple_of_8(x) for x in (3, 18, 42, 44)]
      [8, 24, 40, 48]
    """
    nearest = max(8, int(number + 4) // 8 * 8)
    return nearest + 8 if nearest < 0.9 * number else nearest


def mean_over_places(x: jax.Array) -> jax.Array:
    """Activations `[B, H, W, C]` to `[B, C]`, in float32."""
    return jnp.mean(x.astype(jnp.float32), axis=(1, 2))


def classify(x: jax.Array, num_classes: int) -> tuple[jax.Array, jax.Array]:
    """Mean over places `[B, C]` and logits `[B, num_classes]`, both in float32.

    The linear layer is a submodule of the calling module.
    """
    pooled = mean_over_places(x)
    return pooled, nn.Dense(num_classes, kernel_init=torch_uniform)(pooled)


def max_pool_3x3(x: jax.Array) -> jax.Array:
    """The 3x3 max-pooling with stride 2 after the stems of ImageNet models.

    Of values that are not negative, such as those of a ReLU: padded by zeros.
    """
    return nn.max_pool(_padded(x), window_shape=(3, 3), strides=(2, 2))


def average_pool_3x3(x: jax.Array) -> jax.Array:
    """3x3 average-pooling with stride 2, the zeros of the padding counted as values."""
    sums = nn.pooling.pool(_padded(x), 0.0, jax.lax.add, (3, 3), (2, 2), "VALID")
    return sums / 9  # nn.avg_pool divides by an integer, which strict JAX refuses.


def _padded(x: jax.Array) -> jax.Array:
    """Zeros on every side: jax2onnx 0.17 forgets the padding of a pooling itself."""
    return jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))


class Dropout(nn.Module):
    """Dropout with a key for each example of the global batch.

    Device-independent: `nn.Dropout` draws one mask for the array it sees, which under
    `pmap` is a device's share.
    """

    rate: float
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        if not train or self.rate == 0:
            return x
        first: int | jax.Array = 0
        if self.axis_name is not None:
            first = jax.lax.axis_index(self.axis_name) * len(x)
        fold = functools.partial(jax.random.fold_in, self.make_rng("dropout"))
        keys = jax.vmap(fold)(first + jnp.arange(len(x)))
        keep = 1 - self.rate
        draw = functools.partial(jax.random.bernoulli, p=keep, shape=x.shape[1:])
        return jnp.where(jax.vmap(draw)(keys), x / keep, jnp.zeros_like(x))
