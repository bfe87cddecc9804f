"""A model that computes in eight bits: values, gradients and parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from kdjax.models import convolutions, quantized
from kdjax.models.convolutions import Conv


class Net(nn.Module):
    """A convolution, ordinary or depthwise, and a dense layer."""

    groups: int

    @nn.compact
    def __call__(self, images):
        x = Conv(4, (3, 3), feature_group_count=self.groups)(images)
        return nn.Dense(3)(jnp.mean(nn.relu(x), axis=(1, 2)))


@pytest.fixture(params=[1, 4], ids=["ordinary", "depthwise"])
def case(request):
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.normal(size=(2, 6, 6, 4)), jnp.float32)
    net = Net(request.param)
    variables = jax.jit(net.init)(jax.random.key(0), images)
    return net, variables, images


def apply(net, variables, images):
    @jax.jit
    def run(variables, images):
        with convolutions.plain():
            return quantized.rounded(net).apply(variables, images)

    return run(variables, images)


@pytest.mark.parametrize("groups", [1, 4])
def test_inputs_have_one_scale_for_the_array(groups):
    """Beside a huge pixel, the others are rounded away, in all images of the batch."""
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.uniform(-1, 1, (2, 6, 6, 4)), jnp.float32)
    net = Conv(4, (3, 3), feature_group_count=groups)
    variables = jax.jit(net.init)(jax.random.key(0), images)
    first, second = apply(net, variables, images.at[0, 1, 1].set(1000.0))
    exact, _ = net.apply(variables, jnp.zeros_like(images).at[0, 1, 1].set(1000.0))
    np.testing.assert_array_equal(second, 0)
    np.testing.assert_allclose(first, exact, atol=0.02 * np.abs(exact).max())
    plain = apply(net, variables, images)
    expected = net.apply(variables, images)
    np.testing.assert_allclose(plain, expected, atol=0.02 * np.abs(expected).max())
    assert np.abs(plain - expected).max() > 1e-4


@pytest.mark.parametrize("layer", ["convolution", "dense"])
def test_kernels_have_a_scale_for_each_output_channel(layer):
    """A huge entry that meets zeros: its channel vanishes, and no other."""
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.uniform(-1, 1, (2, 6, 6, 4)), jnp.float32)
    images = images.at[..., 0].set(0.0)
    net = Conv(3, (1, 1)) if layer == "convolution" else nn.Dense(3)
    kernel = jnp.asarray(rng.uniform(-1, 1, (1, 1, 4, 3)), jnp.float32)
    kernel = kernel if layer == "convolution" else kernel[0, 0]
    bias = {} if layer == "convolution" else {"bias": jnp.zeros(3)}
    variables = {"params": {"kernel": kernel.at[..., 0, 0].set(1000.0)} | bias}
    found = apply(net, variables, images)
    exact = net.apply({"params": {"kernel": kernel} | bias}, images)
    np.testing.assert_array_equal(found[..., 0], 0)
    np.testing.assert_allclose(found[..., 1:], exact[..., 1:], atol=0.05)
    assert np.abs(exact[..., 0]).max() > 0.5


def test_gradients_pass_through_the_rounding(case):
    net, variables, images = case

    def gradient(fn):
        def loss(params):
            return jnp.sum(fn({"params": params}, images) ** 2)

        leaves = jax.tree.leaves(jax.jit(jax.grad(loss))(variables["params"]))
        return np.concatenate([np.ravel(x) for x in leaves])

    rounded = gradient(lambda v, x: apply(net, v, x))
    exact = gradient(net.apply)
    cosine = rounded @ exact / np.linalg.norm(rounded) / np.linalg.norm(exact)
    assert 0.99 < cosine < 1 - 1e-9


def test_parameters_are_those_of_the_model(case):
    net, variables, images = case
    with convolutions.plain():
        made = jax.eval_shape(quantized.rounded(net).init, jax.random.key(0), images)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), made) == jax.tree.map(
        lambda x: (x.shape, x.dtype), variables
    )


def test_plain_convolutions_are_one_operation_and_the_same(case):
    net, variables, images = case

    def run(images):
        with convolutions.plain():
            return net.apply(variables, images)

    text = str(jax.make_jaxpr(run)(images))
    assert text.count("conv_general_dilated[") == 1
    assert "platform_index" not in text
    assert "platform_index" in str(
        jax.make_jaxpr(lambda x: net.apply(variables, x))(images)
    )
    np.testing.assert_allclose(
        run(images), net.apply(variables, images), rtol=1e-4, atol=1e-5
    )
