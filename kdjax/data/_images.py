"""Encoded images to uint8 arrays; by Pillow alone, so that all get the same bits."""

import io

import numpy as np
from PIL import Image

from kdjax.types import UserError

# What Pillow says of damage: broken headers, streams, checksums, or sizes.
_DAMAGE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)
# More than 8 bits, which a conversion would clip in silence.
_DEEP_MODES = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")


def decode(encoded: bytes, channels: int, name: str) -> np.ndarray:
    """The pixels of an image, grey (1 channel) or RGB (3), uint8 `[H, W, C]`.

    Raises:
      UserError: if it can't be read, or has more than 8 bits a channel.
    """
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            mode = image.mode
            pixels = np.asarray(image.convert("L" if channels == 1 else "RGB"))
    except _DAMAGE as error:
        raise unreadable(name, error) from error
    if mode in _DEEP_MODES:
        raise UserError(
            f"Expected 8 bits a channel, got {name} of mode {mode!r}: convert it first."
        )
    return pixels.reshape(*pixels.shape[:2], channels)


def is_grey(encoded: bytes, name: str) -> bool:
    """Whether an image has brightness alone."""
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            return image.mode in ("1", "L", *_DEEP_MODES)
    except _DAMAGE as error:
        raise unreadable(name, error) from error


def unreadable(name: str, error: Exception) -> UserError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return UserError(
        f"Expected an image that can be read, got {name} ({reason}): replace or remove "
        "the file."
    )


def fit(
    image: np.ndarray, shape: tuple[int, int, int], resize: bool, name: str
) -> np.ndarray:
    """Brings an image to a shape: shorter side resized, longer side cut at both ends.

    Raises:
      UserError: if it has another shape, and `resize` is not set.
    """
    if image.shape == shape:
        return image
    if not resize:
        raise UserError(
            f"Expected images of one size, {shape[0]}x{shape[1]}, got {name} of "
            f"{image.shape[0]}x{image.shape[1]}: set dataset.image_size to bring them "
            "to one."
        )
    (height, width), target = image.shape[:2], shape[:2]
    scale = max(target[0] / height, target[1] / width)
    size = [
        max(round(scale * x), y) for x, y in zip((height, width), target, strict=True)
    ]
    # Channel by channel, which is what Pillow does too; antialiased, in fixed point.
    resized = np.stack(
        [
            np.asarray(
                Image.fromarray(np.ascontiguousarray(image[..., c])).resize(
                    (size[1], size[0]), Image.Resampling.BILINEAR
                )
            )
            for c in range(image.shape[2])
        ],
        axis=-1,
    )
    top, left = (size[0] - target[0]) // 2, (size[1] - target[1]) // 2
    return resized[top : top + target[0], left : left + target[1]]
