"""Modalities: exact, against Pillow and against the real-valued formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from kdjax.data import modalities
from kdjax.data.sources import ArraySource
from kdjax.types import UserError

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 6, 7, 3), np.uint8)


def test_luminance_is_pillows_to_the_bit():
    expected = [np.asarray(Image.fromarray(x).convert("L")) for x in IMAGES]
    actual = modalities.luminance(jnp.asarray(IMAGES))
    np.testing.assert_array_equal(actual[..., 0], np.stack(expected))


def test_chrominance_is_the_rounded_formula():
    red, green, blue = np.moveaxis(IMAGES.astype(np.float64), -1, 0)
    # As fractions of the luminance's weights: ITU-R BT.601, full range.
    luminance = 0.299 * red + 0.587 * green + 0.114 * blue
    expected = 128 + np.stack(
        [(blue - luminance) / (2 - 2 * 0.114), (red - luminance) / (2 - 2 * 0.299)], -1
    )
    actual = np.asarray(modalities.chrominance(jnp.asarray(IMAGES)), np.float64)
    # Half a unit of rounding, and that of the weights: 255 / 65536.
    assert np.abs(actual - expected).max() <= 0.5 + 2 * 255 / 65536


@pytest.mark.parametrize(
    ("pixel", "expected"),  # By hand: 0.299, 0.587, 0.114 of 255, and so on.
    [
        ((255, 0, 0), (76, 85, 255)),
        ((0, 255, 0), (150, 44, 21)),
        ((0, 0, 255), (29, 255, 107)),
        ((77, 77, 77), (77, 128, 128)),
    ],
)
def test_known_colours(pixel, expected):
    image = jnp.asarray([[pixel]], jnp.uint8)
    actual = [modalities.luminance(image), modalities.chrominance(image)]
    assert tuple(np.concatenate(actual, axis=-1)[0, 0]) == expected


@pytest.mark.parametrize("width", [6, 7])
def test_halves_are_disjoint_and_together_everything(width):
    images = jnp.asarray(IMAGES[:, :, :width])
    halves = modalities.left(images), modalities.right(images)
    np.testing.assert_array_equal(jnp.concatenate(halves, axis=2), images)
    assert halves[0].shape[2] == 3


@pytest.mark.parametrize("name", modalities.MODALITIES)
def test_a_modality_is_of_each_image_and_the_same_when_compiled(name):
    modality = modalities.get(name, (6, 7, 3))
    whole = modality(jnp.asarray(IMAGES))
    assert whole.dtype == jnp.uint8
    np.testing.assert_array_equal(jax.jit(modality)(IMAGES), whole)
    np.testing.assert_array_equal(jax.vmap(modality)(jnp.asarray(IMAGES)), whole)


def test_a_source_as_it_is_seen():
    source = ArraySource(IMAGES, np.arange(5), name="few", class_names="abcde")
    seen = modalities.seen_by(source, modalities.chrominance)
    assert seen.image_shape == (6, 7, 2)
    np.testing.assert_array_equal(seen.labels, source.labels)
    expected = modalities.chrominance(jnp.asarray(IMAGES[3:4]))
    np.testing.assert_array_equal(seen.take(np.array([3]))["image"], expected)


@pytest.mark.parametrize(
    ("name", "shape", "words"),
    [
        ("sound", (8, 8, 3), "out of color, luminance"),
        ("luminance", (8, 8, 1), "3 channels"),
        ("chrominance", (8, 8, 1), "3 channels"),
    ],
)
def test_a_modality_that_is_not_there(name, shape, words):
    with pytest.raises(UserError, match=words):
        modalities.get(name, shape)
