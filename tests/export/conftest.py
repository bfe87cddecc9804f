"""Small random models, and real digits to try them on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from kdjax import export, models, networks
from kdjax.data import sources
from kdjax.models.layers import (
    average_pool_3x3,
    classify,
    conv_norm,
    max_pool_3x3,
)
from kdjax.types import Outputs

SETTINGS = export.Settings(
    formats=("safetensors", "stablehlo", "onnx", "onnx_int8"),
    pixels="uint8",
    platforms=("cpu", "cuda", "tpu"),
    calibration=64,
    qat_epochs=0,
    qat_learning_rate=0.1,
    test_examples=50,
    batch_size=16,
    runs=3,
    max_seconds=5.0,
)


class Depthwise(nn.Module):
    """A small model with depthwise, strided and 1x1 convolutions, and poolings."""

    num_classes: int

    @nn.compact
    def __call__(self, images, *, train):
        how = dict(train=train, dtype=jnp.float32, axis_name=None)
        x = jnp.clip(conv_norm(images, 8, 3, strides=2, **how), 0, 6)
        x = jnp.clip(conv_norm(x, 8, 3, groups=8, **how), 0, 6)
        x = conv_norm(x, 12, 1, **how)
        x = average_pool_3x3(max_pool_3x3(nn.relu(x)))
        return Outputs(classify(x, self.num_classes)[1])


def network(name, *, image_shape=(8, 8, 1), num_classes=10, **arguments):
    """A network whose mean and standard deviation show whether they are applied."""
    channels = image_shape[-1]
    if name == "depthwise":
        module = Depthwise(num_classes)
    else:
        module = models.create(name, num_classes=num_classes, **arguments)
    return networks.from_linen(
        module,
        name=name,
        image_shape=image_shape,
        num_classes=num_classes,
        mean=(0.3,) * channels,
        std=(0.2,) * channels,
    )


def model(role, name, seed=0, pixels="uint8", **arguments):
    """An exportable model with random weights, its statistics too."""
    net = network(name, **arguments)
    rng = np.random.default_rng(seed)
    # Statistics of a BatchNorm as after a training: not 0 and 1.
    variables = jax.tree.map(
        lambda x: x + 0.1 * rng.uniform(size=x.shape).astype(x.dtype),
        dict(net.init(jax.random.key(seed))),
    )
    return export.of_network(role, net, variables, pixels)


def images(count, image_shape=(8, 8, 1), seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, *image_shape)).astype(np.uint8)


def truth(one, arrays):
    """Logits by the network itself, as training sees it."""

    @jax.jit
    def logits(variables, arrays):
        return one.network.apply(variables, arrays, train=False)[0].logits

    return np.asarray(logits(one.variables, jnp.asarray(arrays)))


@pytest.fixture(scope="session")
def digits():
    return sources.load("digits", validation=0)


@pytest.fixture(scope="session")
def examples(digits):
    test, train = digits.test.take(np.arange(50)), digits.train.take(np.arange(64))
    return export.Examples(
        {"images": test["image"]}, test["label"], {"images": train["image"]}
    )
