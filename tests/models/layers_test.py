"""Layers compute the same on one device, under sharded jit, and under pmap."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import NamedSharding, PartitionSpec

from kdjax.models.layers import Dropout, batch_norm, classify, conv, conv_norm
from kdjax.models.shufflenet import shuffle

NUM_DEVICES = 8


@pytest.fixture(scope="module")
def rows():
    """A sharding of the first axis over all devices."""
    mesh = jax.make_mesh(
        (NUM_DEVICES,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,)
    )
    return NamedSharding(mesh, PartitionSpec("batch"))


def split(x):
    return x.reshape(NUM_DEVICES, -1, *x.shape[1:])


def join(x):
    return x.reshape(-1, *x.shape[2:])


def test_dropout_masks_do_not_depend_on_the_devices(rows):
    x = jnp.ones((16, 5, 3))
    key = jax.random.key(3)

    def drop(x, key, axis_name=None):
        return Dropout(0.4, axis_name).apply({}, x, train=True, rngs={"dropout": key})

    expected = jax.jit(drop)(x, key)
    sharded = jax.jit(drop)(jax.device_put(x, rows), key)
    mapped = jax.pmap(
        functools.partial(drop, axis_name="batch"), "batch", in_axes=(0, None)
    )(split(x), key)
    np.testing.assert_array_equal(sharded, expected)
    np.testing.assert_array_equal(join(mapped), expected)


def test_dropout_keeps_the_mean_and_differs_by_example_and_key():
    x = jnp.ones((64, 1000))

    def drop(key):
        return Dropout(0.25).apply({}, x, train=True, rngs={"dropout": key})

    one, two = (np.asarray(jax.jit(drop)(jax.random.key(n))) for n in (0, 1))
    assert set(np.unique(one)) == {np.float32(0), np.float32(1 / 0.75)}
    # 64,000 draws: five standard deviations of the mean.
    assert abs(one.mean() - 1) < 5 * (0.25 / 0.75 / one.size) ** 0.5
    assert len(np.unique(one, axis=0)) == 64
    assert np.any(one != two)


def test_no_dropout_needs_no_key():
    x = jnp.ones((2, 3))
    for layer, train in ((Dropout(0.5), False), (Dropout(0.0), True)):
        np.testing.assert_array_equal(layer.apply({}, x, train=train), x)


class Tiny(nn.Module):
    """Convolution, BatchNorm, dropout, classifier."""

    axis_name: str | None = None

    @nn.compact
    def __call__(self, x):
        x = conv_norm(x, 8, 3, train=True, dtype=jnp.float32, axis_name=self.axis_name)
        x = Dropout(0.5, self.axis_name)(nn.relu(x), train=True)
        return classify(x, 5)


def test_batch_norm_under_pmap_is_that_of_the_global_batch(rows):
    images = jax.random.normal(jax.random.key(0), (16, 4, 4, 3))
    # A drift along the batch, lest all devices have similar statistics.
    images += jnp.linspace(-1, 1, 16).reshape(16, 1, 1, 1)
    key = jax.random.key(1)
    variables = jax.jit(Tiny().init)({"params": key, "dropout": key}, images)

    def forward(variables, images, key, axis_name=None):
        return Tiny(axis_name).apply(
            variables, images, rngs={"dropout": key}, mutable=["batch_stats"]
        )

    one = jax.jit(forward)(variables, images, key)
    sharded = jax.jit(forward)(variables, jax.device_put(images, rows), key)
    outputs, updates = jax.pmap(
        functools.partial(forward, axis_name="batch"),
        "batch",
        in_axes=(None, 0, None),
    )(variables, split(images), key)
    mapped = jax.tree.map(join, outputs), jax.tree.map(lambda x: x[-1], updates)
    for other in (sharded, mapped):
        for value, expected in zip(*map(jax.tree.leaves, (other, one)), strict=True):
            np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-5)


def test_batch_norm_statistics():
    """Momentum 0.9 and epsilon 1e-5; in float32 even where the images are not."""
    x = jax.random.normal(jax.random.key(0), (64, 2)) * 3 + 100
    module = batch_norm(True, jnp.bfloat16, None)
    # Flax's BatchNorm itself promotes bfloat16 to float32.
    with jax.numpy_dtype_promotion("standard"):
        variables = module.init(jax.random.key(0), x)
        y, updates = module.apply(variables, x, mutable=["batch_stats"])
    assert y.dtype == jnp.bfloat16
    stats = updates["batch_stats"]
    np.testing.assert_allclose(stats["mean"], 0.1 * x.mean(0), rtol=1e-5)
    np.testing.assert_allclose(stats["var"], 0.9 + 0.1 * x.var(0), rtol=1e-2)
    still = batch_norm(False, jnp.float32, None)
    ones = jnp.ones((1, 2))
    np.testing.assert_allclose(still.apply(variables, ones), (1 + 1e-5) ** -0.5)


@pytest.mark.parametrize(
    ("arguments", "shape"),
    [
        ({"size": 3}, (9, 9)),
        ({"size": 3, "strides": 2}, (5, 5)),
        ({"size": 7, "strides": 2}, (5, 5)),
        ({"size": 1, "strides": 2}, (5, 5)),
        ({"size": 5, "padding": 0}, (5, 5)),
    ],
)
def test_conv_pads_as_pytorch_does(arguments, shape):
    """Half the window on every side, unless another padding is given."""
    out = jax.eval_shape(
        lambda key: conv(4, **arguments).init_with_output(key, jnp.ones((1, 9, 9, 2))),
        jax.random.key(0),
    )[0]
    assert out.shape == (1, *shape, 4)


def test_strided_conv_is_centred_on_the_first_pixel():
    x = jnp.zeros((1, 4, 4, 1)).at[0, 0, 0, 0].set(1)
    kernel = jnp.arange(9.0).reshape(3, 3, 1, 1)
    y = conv(1, 3, strides=2).apply({"params": {"kernel": kernel}}, x)
    assert y[0, :, :, 0].tolist() == [[4, 0], [0, 0]]


def test_classify_averages_over_places_in_float32():
    x = jnp.full((2, 32, 32, 3), 1.01, jnp.bfloat16)

    class Head(nn.Module):
        @nn.compact
        def __call__(self, x):
            return classify(x, 5)

    (pooled, logits), variables = Head().init_with_output(jax.random.key(0), x)
    assert pooled.dtype == logits.dtype == jnp.float32
    np.testing.assert_allclose(pooled, np.float32(jnp.bfloat16(1.01)))
    assert set(variables["params"]) == {"Dense_0"}


def test_shuffle_sends_each_group_everywhere():
    x = jnp.arange(12).reshape(1, 1, 1, 12)
    mixed = shuffle(x, groups=3)[0, 0, 0]
    # The first three channels come from the three groups of four.
    assert sorted(set((mixed[:3] // 4).tolist())) == [0, 1, 2]
    np.testing.assert_array_equal(shuffle(shuffle(x, 3), 4), x)
