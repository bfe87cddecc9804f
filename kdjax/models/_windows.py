"""Where the kernel of a convolution moves: checks made while tracing."""

from collections.abc import Sequence
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jax import lax

Pads: TypeAlias = tuple[tuple[int, int], tuple[int, int]]
Padding: TypeAlias = str | Sequence[tuple[int, int]]


def check_arrays(images: jax.Array, kernel: jax.Array, groups: int) -> None:
    """Raises unless images, kernel and groups fit each other.

    Raises:
      ValueError: if the shapes or the groups don't fit.
      TypeError: if the dtypes differ or are not floating-point.
    """
    if images.ndim != 4 or kernel.ndim != 4:
        raise ValueError(
            "Expected images [B, H, W, C] and a kernel [height, width, C / groups, "
            f"features], got shapes {images.shape} and {kernel.shape}."
        )
    if images.dtype != kernel.dtype or not jnp.issubdtype(images.dtype, jnp.floating):
        raise TypeError(
            "Expected images and kernel of one floating-point dtype, got "
            f"{images.dtype} and {kernel.dtype}."
        )
    channels, (_, _, seen, features) = images.shape[-1], kernel.shape
    if groups < 1 or seen * groups != channels or features % groups:
        raise ValueError(
            "Expected channels = groups * the kernel's channels, and features "
            f"divisible by groups, got {channels} channels, {groups} groups and a "
            f"kernel {kernel.shape}."
        )


def explicit_pads(
    images: jax.Array,
    kernel: jax.Array,
    strides: tuple[int, int],
    padding: Padding,
) -> Pads:
    """The rows and columns of zeros to add.

    Raises:
      ValueError: if strides or padding are none, or leave less than one window.
    """
    if len(strides) != 2 or min(strides) < 1:
        raise ValueError(f"Expected two strides of at least 1, got {strides}.")
    size, kernel_size = images.shape[1:3], kernel.shape[:2]
    if isinstance(padding, str):
        if padding not in ("SAME", "VALID"):
            raise ValueError(
                "Expected padding 'SAME', 'VALID' or ((top, bottom), (left, right)), "
                f"got {padding!r}."
            )
        padding = lax.padtype_to_pads(size, kernel_size, strides, padding)
    pads = tuple((int(low), int(high)) for low, high in padding)
    if len(pads) != 2 or min(sum(pads, ())) < 0:
        raise ValueError(
            "Expected padding ((top, bottom), (left, right)) of no less than 0, got "
            f"{padding}."
        )
    padded = tuple(n + sum(pad) for n, pad in zip(size, pads, strict=True))
    if padded[0] < kernel_size[0] or padded[1] < kernel_size[1]:
        raise ValueError(
            f"Expected images no smaller than the kernel {kernel_size}, got {size}, "
            f"or {padded} with padding."
        )
    return pads[0], pads[1]
