"""The VGG of the five poolings, which others train on CIFAR too."""

import math

import jax
import jax.numpy as jnp
import pytest

from kdjax import models


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
