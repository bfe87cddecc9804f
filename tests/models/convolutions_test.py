"""`convolutions` computes what XLA's own convolution does, in every form it takes."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import export, lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from kdjax.models import convolutions

NONE, HALF = ((0, 0), (0, 0)), ((1, 1), (1, 1))
UNEVEN = ((0, 2), (1, 0))

# Image size, channels, features, kernel, strides, padding, groups.
CASES = {
    "depthwise": ((7, 6), 5, 5, (3, 3), (1, 1), HALF, 5),
    "depthwise, strides": ((7, 6), 5, 5, (3, 3), (2, 2), HALF, 5),
    "depthwise, uneven": ((8, 7), 4, 4, (2, 3), (3, 2), UNEVEN, 4),
    "depthwise, strides past the kernel": ((9, 9), 3, 3, (2, 1), (3, 4), NONE, 3),
    "depthwise, row unread": ((6, 6), 3, 3, (3, 3), (2, 2), NONE, 3),
    "one channel": ((6, 6), 1, 1, (5, 5), (1, 1), "SAME", 1),
    "1x1": ((5, 4), 6, 3, (1, 1), (1, 1), NONE, 1),
    "1x1, strides": ((5, 4), 6, 3, (1, 1), (2, 3), NONE, 1),
    "1x1, groups": ((5, 4), 6, 9, (1, 1), (1, 2), NONE, 3),
    "1x1, padded": ((5, 4), 6, 3, (1, 1), (1, 1), HALF, 1),
    "dense": ((8, 7), 3, 4, (3, 3), (1, 1), HALF, 1),
    "dense, strides": ((8, 7), 3, 4, (3, 2), (2, 1), UNEVEN, 1),
    "dense, groups": ((8, 7), 4, 6, (3, 3), (1, 1), "VALID", 2),
    "channel multiplier": ((6, 6), 3, 6, (3, 3), (1, 1), "SAME", 3),
}


@pytest.fixture(params=CASES.values(), ids=CASES.keys())
def case(request):
    return request.param


def _inputs(case, batch=2, dtype=jnp.float32):
    size, channels, features, kernel, _, _, groups = case
    rng = np.random.default_rng(0)
    images = rng.normal(size=(batch, *size, channels))
    kernel = rng.normal(size=(*kernel, channels // groups, features))
    return jnp.asarray(images, dtype), jnp.asarray(kernel, dtype)


def _ours(case):
    *_, strides, padding, groups = case
    return functools.partial(
        convolutions.conv, strides=strides, padding=padding, feature_group_count=groups
    )


def _stock(case):
    *_, strides, padding, groups = case
    return functools.partial(
        lax.conv_general_dilated,
        window_strides=strides,
        padding=padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def _value_and_grads(conv):
    """Features, and gradients of a sum of them weighted unevenly."""

    @jax.jit
    def fn(images, kernel):
        def total(images, kernel):
            features = conv(images, kernel)
            weights = jnp.cos(jnp.arange(features.size, dtype=features.dtype))
            return jnp.sum(features * weights.reshape(features.shape)), features

        grads, features = jax.grad(total, (0, 1), has_aux=True)(images, kernel)
        return features, grads

    return fn


def _assert_close(actual, expected, rtol=1e-5, atol=1e-5):
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=atol),
        actual,
        expected,
    )


def test_values_and_gradients_are_those_of_xla(case):
    with jax.enable_x64(True):
        inputs = _inputs(case, dtype=jnp.float64)
        actual = _value_and_grads(_ours(case))(*inputs)
        expected = _value_and_grads(_stock(case))(*inputs)
        assert actual[0].dtype == jnp.float64
        _assert_close(actual, expected, rtol=1e-12, atol=1e-12)


def test_values_are_those_of_the_definition(case):
    """Pixel by pixel, in NumPy."""
    size, channels, features, kernel_size, strides, padding, groups = case
    images, kernel = (np.asarray(x, np.float64) for x in _inputs(case, batch=1))
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(size, kernel_size, strides, padding)
    padded = np.pad(images[0], (*padding, (0, 0)))
    actual = _ours(case)(*_inputs(case, batch=1))[0]
    seen, made = channels // groups, features // groups
    for h, w, o in np.ndindex(*actual.shape):
        rows = slice(h * strides[0], h * strides[0] + kernel_size[0])
        columns = slice(w * strides[1], w * strides[1] + kernel_size[1])
        first = o // made * seen
        window = padded[rows, columns, first : first + seen]
        expected = np.sum(window * kernel[..., o])
        np.testing.assert_allclose(actual[h, w, o], expected, rtol=1e-4, atol=1e-5)


def test_half_precision_is_rounded_once(case):
    half = _inputs(case, dtype=jnp.bfloat16)
    wide = tuple(x.astype(jnp.float32) for x in half)
    actual = _ours(case)(*half)
    assert actual.dtype == jnp.bfloat16
    # One rounding to 8 bits, and what the order of sums moves across its edge.
    expected = _stock(case)(*wide)
    _assert_close(actual.astype(jnp.float32), expected, rtol=2**-8, atol=2**-8)


def test_it_maps_over_images_and_over_kernels(case):
    conv = _value_and_grads(_ours(case))
    images, kernel = _inputs(case)
    several = jnp.stack([images, 2 * images, images[::-1]])
    kernels = jnp.stack([kernel, -kernel, kernel[::-1]])
    mapped = jax.vmap(conv)(several, kernels)
    looped = [conv(x, k) for x, k in zip(several, kernels, strict=True)]
    _assert_close(mapped, jax.tree.map(lambda *xs: jnp.stack(xs), *looped))


def test_a_batch_sharded_over_devices_gives_the_same(case):
    images, kernel = _inputs(case, batch=8)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    sharded = jax.device_put(images, NamedSharding(mesh, PartitionSpec("data")))
    fn = _value_and_grads(_ours(case))
    _assert_close(fn(sharded, kernel), fn(images, kernel))


def test_an_accelerator_gets_xlas_own_convolution_and_nothing_else(case):
    inputs = _inputs(case)
    lowered = export.export(jax.jit(_ours(case)), platforms=["cuda"])(*inputs)
    operations = re.findall(r"stablehlo\.(\w+)", lowered.mlir_module())
    assert operations.count("convolution") == 1
    # The choice of the platform is by a constant, which XLA folds.
    assert set(operations) == {"convolution", "case", "constant", "return"}


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float64])
def test_materialize_changes_no_bit(dtype):
    with jax.enable_x64(True):
        x = jnp.array([0.0, -0.0, 1.1, -3e38, 1e-30, jnp.inf, -jnp.inf], dtype)
        expected = np.asarray(x).tobytes()
        assert np.asarray(jax.jit(convolutions.materialize)(x)).tobytes() == expected
        assert np.isnan(convolutions.materialize(jnp.asarray(jnp.nan, dtype)))


@pytest.mark.parametrize(
    "kwargs",
    [
        dict(features=6, kernel_size=(3, 3), strides=2, padding=HALF, use_bias=True),
        dict(features=4, kernel_size=(3, 3), feature_group_count=4),
        dict(features=6, kernel_size=(1, 1), use_bias=True),
    ],
)
def test_the_layer_is_that_of_flax(kwargs):
    images = jax.random.normal(jax.random.key(0), (2, 8, 8, 4))
    kwargs = {"use_bias": False} | kwargs
    ours, theirs = convolutions.Conv(**kwargs), nn.Conv(**kwargs)
    variables = ours.init(jax.random.key(1), images)
    jax.tree.map(
        np.testing.assert_array_equal, variables, theirs.init(jax.random.key(1), images)
    )
    _assert_close(ours.apply(variables, images), theirs.apply(variables, images))


def _zeros(*shape, dtype=jnp.float32):
    return jnp.zeros(shape, dtype)


@pytest.mark.parametrize(
    ("images", "kernel", "kwargs", "error", "text"),
    [
        (_zeros(4, 4, 2), _zeros(3, 3, 2, 1), {}, ValueError, r"got shapes \(4, 4, 2"),
        (
            _zeros(1, 4, 4, 2),
            _zeros(3, 3, 2, 1, dtype=jnp.bfloat16),
            {},
            TypeError,
            "of one floating-point dtype, got float32 and bfloat16",
        ),
        (
            _zeros(1, 4, 4, 2),
            _zeros(3, 3, 3, 1),
            {},
            ValueError,
            "got 2 channels, 1 groups",
        ),
        (
            _zeros(1, 4, 4, 4),
            _zeros(3, 3, 2, 3),
            dict(feature_group_count=2),
            ValueError,
            "features divisible by groups",
        ),
        (
            _zeros(1, 4, 4, 2),
            _zeros(3, 3, 2, 1),
            dict(strides=(0, 1)),
            ValueError,
            "two strides of at least 1",
        ),
        (
            _zeros(1, 4, 4, 2),
            _zeros(3, 3, 2, 1),
            dict(padding="same"),
            ValueError,
            "got 'same'",
        ),
        (
            _zeros(1, 4, 4, 2),
            _zeros(3, 3, 2, 1),
            dict(padding=((-1, 0), (0, 0))),
            ValueError,
            "no less than 0",
        ),
        (
            _zeros(1, 2, 4, 2),
            _zeros(3, 3, 2, 1),
            dict(padding="VALID"),
            ValueError,
            r"no smaller than the kernel \(3, 3\), got \(2, 4\)",
        ),
    ],
)
def test_misuse_says_what_was_expected(images, kernel, kwargs, error, text):
    with pytest.raises(error, match=text):
        convolutions.conv(images, kernel, **kwargs)
