"""A Linen module as a network: pixels reach it scaled, normalised, and resized."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from PIL import Image

from kdjax import networks
from kdjax.types import Outputs


class Sees(nn.Module):
    """Returns what it is shown."""

    @nn.compact
    def __call__(self, images, *, train):
        weight = self.param("weight", nn.initializers.ones, (1, *images.shape[1:]))
        return Outputs(weight * images)


def _seen(images, **kwargs):
    network = networks.from_linen(
        Sees(),
        name="sees",
        image_shape=images.shape[1:],
        num_classes=2,
        mean=(0.0,) * images.shape[-1],
        std=(1 / 255,) * images.shape[-1],
        **kwargs,
    )
    variables = network.init(jax.random.key(0))
    return network, network.apply(variables, jnp.asarray(images), train=False)[0].logits


IMAGES = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), np.uint8)


@pytest.mark.parametrize("side", [20, 5])
def test_images_are_resized_as_pillow_resizes_floats(side):
    network, seen = _seen(IMAGES, resize=side)
    assert seen.shape == (2, side, side, 3)
    assert network.image_shape == (8, 8, 3)  # What it takes.
    for image, row in zip(IMAGES.astype(np.float32), seen, strict=True):
        for channel in range(3):
            whole = Image.fromarray(np.ascontiguousarray(image[..., channel]))
            expected = whole.resize((side, side), Image.Resampling.BILINEAR)
            np.testing.assert_allclose(row[..., channel], expected, atol=1e-3)


def test_without_resizing_images_are_as_they_are():
    np.testing.assert_allclose(_seen(IMAGES)[1], IMAGES, rtol=1e-6)


@pytest.mark.parametrize("resize", [0, 8, 16])
def test_the_description_tells_sizes_apart(resize):
    network, _ = _seen(IMAGES, resize=resize)
    assert network.description.get("resize", 0) == resize


def test_resizing_works_for_a_batch_of_unknown_size():
    network, seen = _seen(IMAGES, resize=16)
    variables = network.init(jax.random.key(0))
    function = jax.jit(lambda x: network.apply(variables, x, train=False)[0].logits)
    (batch,) = jax.export.symbolic_shape("batch")
    spec = jax.ShapeDtypeStruct((batch, 8, 8, 3), jnp.uint8)
    exported = jax.export.export(function)(spec)
    np.testing.assert_allclose(exported.call(jnp.asarray(IMAGES)), seen, rtol=1e-5)
