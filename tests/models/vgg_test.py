"""The VGG of the five poolings, which others train on CIFAR too."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import models
from kdjax.models.vgg import mean_over_parts


def shapes(size, **arguments):
    """Of the features and of the parameters."""
    module = models.create("vgg16", num_classes=10, **arguments)
    images = jnp.zeros((2, size, size, 3))

    def init(rng):
        outputs, variables = module.init_with_output(rng, images, train=False)
        return dict(outputs.features), variables["params"]

    return jax.eval_shape(init, jax.random.key(0))


def test_five_poolings_and_a_hidden_layer():
    """As published with the weights of torch-optim: 14,991,946 parameters."""
    features, params = shapes(32, small_images=False, hidden=(512,))
    assert sum(math.prod(x.shape) for x in jax.tree.leaves(params)) == 14_991_946
    names = ("stem", "stage1", "stage2", "stage3", "stage4")
    sizes = [features[name].shape[1] for name in names]
    assert sizes == [32, 16, 8, 4, 2]
    assert features["pooled"].shape == (2, 512)


@pytest.mark.parametrize(("size", "small_images"), [(7, True), (31, False)])
def test_poolings_that_leave_nothing_are_an_error(size, small_images):
    """Rather than the mean of no values, which is NaN."""
    with pytest.raises(ValueError, match=f"Expected images of {size + 1}x{size + 1}"):
        shapes(size, small_images=small_images)


@pytest.mark.parametrize(("height", "width"), [(14, 7), (10, 8), (3, 1)])
def test_means_over_parts(height, width):
    """Those of PyTorch's adaptive pooling, which overlap where parts do not divide."""
    x = np.random.default_rng(0).normal(size=(2, height, width, 3)).astype(np.float32)
    found = mean_over_parts(jnp.asarray(x), 7)
    for i, j in np.ndindex(7, 7):
        top, bottom = i * height // 7, math.ceil((i + 1) * height / 7)
        left, right = j * width // 7, math.ceil((j + 1) * width / 7)
        expected = x[:, top:bottom, left:right].mean((1, 2))
        np.testing.assert_allclose(found[:, i, j], expected, rtol=1e-5, atol=1e-6)
