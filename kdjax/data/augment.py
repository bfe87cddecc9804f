"""Augmented views: a pure function of (seed, example id, view), exact to the bit.

Pixels stay uint8 and all arithmetic on them is integer; what needs real numbers, such
as the quantiles of a Beta distribution, is looked up in tables made once on the host.
So a view has the same bits in every compiled program, on every device, and a teacher's
stored logits are those of the very pixels that the student sees.
"""

import dataclasses
import functools
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special
from jaxtyping import Array, Int, UInt8

from kdjax.data import order
from kdjax.types import Batch

ALGORITHM = 1  # Part of every description: raise it when any bit of a view changes.
TABLE_SIZE = 4096  # Entries of a table; a power of two, so that bits index it evenly.
UNIT = 256  # Mixing weights are multiples of 1 / 256.
FRACTION_BITS = 8  # Of the fixed-point coordinates of a resized crop.
LONGEST_SIDE = 2048  # Up to here those coordinates fit 32 bits.

Images = UInt8[Array, "batch height width channels"]


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """How views are made. Called with raw examples, it returns a batch.

    The moves are made in the order of the attributes. Those of one example in one view
    derive from the key `fold_in(fold_in(fold_in(key(seed), AUGMENT), id), view)`.

    Attributes:
      seed: of every view.
      num_examples: of the split that ids count, where mixup finds its partners.
      num_classes: of the soft labels that mixup makes.
      resized_crop: a crop of 8 to 100 % of the area, with sides in a ratio of 3:4 to
        4:3, resized to the image's size (Szegedy et al. 2015, section 6).
      flip: mirror left and right, every second time.
      crop_padding: pixels of zeros put around the image, before a crop of its size.
      jitter: shift by up to so many pixels in any direction, filling with zeros
        (Hinton et al. 2015, section 3). The same move as `crop_padding`, under its
        other name: if both are given, their reaches add.
      cutout: side, in pixels, of a square of zeros at a uniform centre; parts of it may
        lie outside of the image (DeVries & Taylor 2017). 0 for none.
      mixup: concentration of the Beta distribution of the mixing weight (Zhang et al.
        2018); 1 is uniform, 0 for none.

    Raises:
      ValueError: if a number is negative.

    Examples:
      >>> import jax.numpy as jnp
      >>> from kdjax.data.augment import Augmentation
      >>> shift = Augmentation(seed=0, num_examples=9, num_classes=10, jitter=1)
      >>> raw = {
      ...     "image": jnp.full((1, 3, 3, 1), 7, jnp.uint8),
      ...     "label": jnp.array([4]),
      ... }
      >>> print(shift(raw, jnp.array([2]), view=0)["image"][0, :, :, 0])
      [[7 7 0]
       [7 7 0]
       [0 0 0]]
    """

    seed: int
    num_examples: int
    num_classes: int
    resized_crop: bool = False
    flip: bool = False
    crop_padding: int = 0
    jitter: int = 0
    cutout: int = 0
    mixup: float = 0.0

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if (value := getattr(self, field.name)) < 0:
                raise ValueError(f"Expected {field.name} >= 0, got {value}.")

    def description(self) -> dict[str, Any]:
        """All that a view depends on beside the examples; JSON-able, for a manifest."""
        # A library's new version may round an entry of a table another way.
        tables = [crop_table()] if self.resized_crop else []
        tables += [beta_table(self.mixup)] if self.mixup else []
        return {
            "algorithm": ALGORITHM,
            "tables": [zlib.crc32(table.tobytes()) for table in tables],
            **dataclasses.asdict(self),
        }

    def partner_ids(
        self, ids: Int[Array, " batch"], view: jax.Array | int
    ) -> Int[Array, " batch"]:
        """Whom mixup mixes each example with in this view."""
        return self._mixing(ids, view)[0]

    def __call__(
        self,
        raw: Mapping[str, jax.Array],
        ids: Int[Array, " batch"],
        view: jax.Array | int,
    ) -> Batch:
        """The batch of these examples in this view.

        Args:
          raw: `image` uint8 `[B, H, W, C]` and `label` `[B]`; with mixup also
            `partner_image` and `partner_label`, of the examples `partner_ids`.
          ids: example ids, `[B]`.
          view: which view, a scalar.

        Returns:
          `image`, `label`, `example_id`, `mask`, and `soft_label` with mixup.
        """
        batch = {
            "label": raw["label"],
            "example_id": ids,
            "mask": jnp.ones(ids.shape, bool),
        }
        if not self.mixup:
            return batch | {"image": self._move(raw["image"], ids, view)}
        partner_ids, weight = self._mixing(ids, view)
        image = self._move(raw["image"], ids, view)
        # The partner as the student sees it in this view, when its own turn comes.
        partner = self._move(raw["partner_image"], partner_ids, view)
        own, other = (
            jax.nn.one_hot(raw[name], self.num_classes, dtype=jnp.float32)
            for name in ("label", "partner_label")
        )
        share = weight.astype(jnp.float32)[:, None] / UNIT
        return batch | {
            "image": mix(image, partner, weight),
            "soft_label": share * own + (1 - share) * other,
        }

    def _mixing(
        self, ids: jax.Array, view: jax.Array | int
    ) -> tuple[jax.Array, jax.Array]:
        """Partners, and the weight of each example itself in 1 / 256."""
        bits = order.example_bits(self.seed, order.Purpose.PARTNER, ids, view, 2)
        partner_ids = (bits[:, 0] % self.num_examples).astype(ids.dtype)
        return partner_ids, jnp.asarray(beta_table(self.mixup))[bits[:, 1] % TABLE_SIZE]

    def _move(self, images: Images, ids: jax.Array, view: jax.Array | int) -> Images:
        """Everything that moves or clears the pixels of one image."""
        reach = self.crop_padding + self.jitter
        if not (self.resized_crop or self.flip or reach or self.cutout):
            return images
        bits = order.example_bits(self.seed, order.Purpose.AUGMENT, ids, view, 8)
        height, width = images.shape[1:3]
        rows, columns = _places(height), _places(width)
        if self.resized_crop:
            images = _resized_crop(images, bits[:, 5], bits[:, 6], bits[:, 7])
        if reach:
            rows = rows + _offset(bits[:, 1:2], reach)
            columns = columns + _offset(bits[:, 2:3], reach)
        if self.flip:  # First a move, so last a change of the place to look at.
            columns = jnp.where(bits[:, 0:1] % 2 == 1, width - 1 - columns, columns)
        if self.flip or reach:
            images = _pixels_at(images, rows, columns)
        if self.cutout:
            images = _cut_out(images, bits[:, 3:4], bits[:, 4:5], self.cutout)
        return images


def mix(a: Images, b: Images, weight: Int[Array, " batch"]) -> Images:
    """`weight / 256` of each image of `a` and the rest of `b`, rounded half up."""
    weight = weight.astype(jnp.int32)[:, None, None, None]
    total = weight * a.astype(jnp.int32) + (UNIT - weight) * b.astype(jnp.int32)
    return ((total + UNIT // 2) // UNIT).astype(jnp.uint8)


@functools.cache
def beta_table(concentration: float) -> np.ndarray:
    """Quantiles of the symmetric Beta distribution in units of 1 / 256, int32."""
    middle = (np.arange(TABLE_SIZE) + 0.5) / TABLE_SIZE
    quantiles = scipy.special.betaincinv(concentration, concentration, middle)
    return np.round(UNIT * quantiles).astype(np.int32)


@functools.cache
def crop_table() -> np.ndarray:
    """Heights and widths of crops in 1 / 65536 of the image's, int32 `[4096, 2]`."""
    rng = np.random.default_rng(0)
    sides = np.empty((0, 2))
    while len(sides) < TABLE_SIZE:
        area = rng.uniform(0.08, 1.0, TABLE_SIZE)
        ratio = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3), TABLE_SIZE))
        drawn = np.stack([np.sqrt(area / ratio), np.sqrt(area * ratio)], axis=1)
        sides = np.concatenate([sides, drawn[(drawn <= 1).all(axis=1)]])
    return np.round(65536 * sides[:TABLE_SIZE]).astype(np.int32)


def _places(length: int) -> jax.Array:
    return jnp.arange(length, dtype=jnp.int32)[None, :]


def _offset(bits: jax.Array, reach: int) -> jax.Array:
    """A uniform integer in [-reach, reach]; 2**32 is close enough to a multiple."""
    return (bits % (2 * reach + 1)).astype(jnp.int32) - reach


def _pixels_at(images: Images, rows: jax.Array, columns: jax.Array) -> Images:
    """Pixels at rows `[B or 1, H]` and columns `[B or 1, W]`; zero outside.

    One gather by indices: on CPU as fast as a dynamic slice (0.2 ms at 128x32x32x3),
    where selecting by one-hot products takes 2 ms, and it flips in the same go.
    """
    height, width = images.shape[1:3]
    inside_rows = (rows >= 0) & (rows < height)
    inside_columns = (columns >= 0) & (columns < width)
    taken = jax.vmap(lambda image, r, c: image[r[:, None], c[None, :]])(
        images,
        jnp.broadcast_to(jnp.clip(rows, 0, height - 1), (len(images), height)),
        jnp.broadcast_to(jnp.clip(columns, 0, width - 1), (len(images), width)),
    )
    inside = inside_rows[:, :, None] & inside_columns[:, None, :]
    return jnp.where(inside[..., None], taken, jnp.uint8(0))


def _cut_out(
    images: Images, row_bits: jax.Array, column_bits: jax.Array, size: int
) -> Images:
    """Zeros in a square around a uniform pixel; it may reach over the border."""
    height, width = images.shape[1:3]

    def covered(bits: jax.Array, length: int) -> jax.Array:
        start = (bits % length).astype(jnp.int32) - size // 2
        place = _places(length)
        return (place >= start) & (place < start + size)

    hole = covered(row_bits, height)[:, :, None] & covered(column_bits, width)[:, None]
    return jnp.where(hole[..., None], jnp.uint8(0), images)


def _resized_crop(
    images: Images, box_bits: jax.Array, row_bits: jax.Array, column_bits: jax.Array
) -> Images:
    """A box of each image, resized to the image's size by bilinear interpolation.

    A box is never larger than the image, so that pixels are only ever spread, and
    nothing aliases.
    """
    boxes = jnp.asarray(crop_table())[box_bits % TABLE_SIZE]
    for axis, bits in ((1, row_bits), (2, column_bits)):
        length = images.shape[axis]
        if length > LONGEST_SIDE:
            raise ValueError(f"Expected sides <= {LONGEST_SIDE}, got {length}.")
        # Whole pixels, rounded; below 2**15 pixels the product fits 32 bits.
        size = (boxes[:, axis - 1] // 2 * length + (1 << 14)) >> 15
        size = jnp.maximum(size, 1)
        start = (bits % (length - size + 1).astype(jnp.uint32)).astype(jnp.int32)
        images = _stretch(images, start, size, axis)
    return images


def _stretch(images: Images, start: jax.Array, size: jax.Array, axis: int) -> Images:
    """Stretches `size` pixels from `start` to the whole axis, in fixed point.

    Output pixel i has its centre at (i + 1/2) * size / length of the crop; it mixes the
    two pixels around that place in 1 / 256, rounded. Beyond the first and the last
    centre, those pixels alone.
    """
    length, unit = images.shape[axis], 1 << FRACTION_BITS
    centre = (2 * _places(length) + 1) * size[:, None]
    # centre * 256 / (2 * length), without the product that would overflow.
    whole, rest = centre // (2 * length), centre % (2 * length)
    place = whole * unit + rest * unit // (2 * length) - unit // 2
    place = jnp.clip(place, 0, (size[:, None] - 1) * unit)
    low, fraction = place >> FRACTION_BITS, place & (unit - 1)
    high = jnp.minimum(low + 1, size[:, None] - 1)
    shape = [len(images), 1, 1, 1]
    shape[axis] = length

    def take(index: jax.Array) -> jax.Array:
        index = (start[:, None] + index).reshape(shape)
        pixels = jnp.take_along_axis(images, index, axis, mode="clip")
        return pixels.astype(jnp.int32)

    weight = fraction.reshape(shape)
    mixed = (unit - weight) * take(low) + weight * take(high)
    return ((mixed + unit // 2) >> FRACTION_BITS).astype(jnp.uint8)
