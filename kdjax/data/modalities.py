"""What a network sees of an image: a pure function of its uint8 pixels.

A teacher and a student of two modalities get the same augmented image, of which each
sees its own part or kind: `apply(variables, modality(images))`. All arithmetic is
integer, so that a modality has the same bits in every program and on every device.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, UInt8

from kdjax.data._source import ArraySource
from kdjax.types import UserError

Images = UInt8[Array, "*batch _ _ _"]  # Height, width, channels.
Modality = Callable[[Images], Images]

_CHUNK = 4096  # Images that are converted at once.
_UNIT = 16  # Bits of the fixed-point weights.


def color(images: Images) -> Images:
    """Everything there is."""
    return images


def left(images: Images) -> Images:
    """The columns left of the middle; of an odd number, one less than `right` has."""
    return images[..., : images.shape[-2] // 2, :]


def right(images: Images) -> Images:
    """The columns from the middle on: all that `left` leaves."""
    return images[..., images.shape[-2] // 2 :, :]


def luminance(images: Images) -> Images:
    r"""Brightness, one channel: Y of JPEG's Y'CbCr, rounded (ITU-R BT.601).

    .. math:: Y = 0.299 R + 0.587 G + 0.114 B

    in units of 1 / 65536, as Pillow's `convert("L")` has it.
    """
    return _weighted(images, (19595, 38470, 7471), 1 << 15)


def chrominance(images: Images) -> Images:
    r"""Colour without brightness, two channels: Cb and Cr of JPEG's Y'CbCr, rounded.

    .. math::
      C_b = 128 - 0.168736 R - 0.331264 G + 0.5 B, \qquad
      C_r = 128 + 0.5 R - 0.418688 G - 0.081312 B

    in units of 1 / 65536. All greys are (128, 128). Tian et al. 2020 take the a and b
    of CIE Lab in their place, which are no integers.
    """
    # One less than a half, as libjpeg has it, so that 255.5 is 255 and not 256.
    offset = (128 << _UNIT) + (1 << (_UNIT - 1)) - 1
    return jnp.concatenate(
        [
            _weighted(images, (-11059, -21709, 32768), offset),
            _weighted(images, (32768, -27439, -5329), offset),
        ],
        axis=-1,
    )


MODALITIES: Mapping[str, Modality] = {
    "color": color,
    "luminance": luminance,
    "chrominance": chrominance,
    "left": left,
    "right": right,
}


def get(name: str, image_shape: tuple[int, int, int]) -> Modality:
    """A modality by name, for images of this shape.

    Raises:
      UserError: if there is none, or these images do not have it.
    """
    if name not in MODALITIES:
        raise UserError(
            f"Expected a modality out of {', '.join(MODALITIES)}, got {name!r}."
        )
    if name in ("luminance", "chrominance") and image_shape[-1] != 3:
        raise UserError(
            f"Expected images of 3 channels for the modality {name!r}, got "
            f"{image_shape[-1]}: use 'left' and 'right', or a set in colour."
        )
    return MODALITIES[name]


def seen_by(source: ArraySource, modality: Modality) -> ArraySource:
    """The examples as a network of this modality sees them, not augmented."""
    program = jax.jit(modality)
    chunks = []
    for start in range(0, len(source), _CHUNK):
        ids = np.arange(start, min(start + _CHUNK, len(source)))
        chunks.append(np.asarray(program(source.take(ids)["image"])))
    return ArraySource(
        np.concatenate(chunks),
        source.labels,
        name=source.name,
        class_names=source.class_names,
    )


def _weighted(images: Images, weights: tuple[int, int, int], offset: int) -> Images:
    """A weighted sum of the channels in 1 / 65536, `[..., 1]`."""
    red, green, blue = (images[..., c : c + 1].astype(jnp.int32) for c in range(3))
    total = weights[0] * red + weights[1] * green + weights[2] * blue + offset
    return (total >> _UNIT).astype(jnp.uint8)
