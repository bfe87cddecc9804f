"""Where examples come from: one interface for every kind of data set.

splits = sources.load("digits", validation=0.1)
splits.train.take(np.arange(3))   # {"image": uint8 [3, 8, 8, 1], "label": [3]}
"""

import math
import pathlib
from collections.abc import Mapping

import numpy as np

from kdjax.data import _files, _images, _tfds
from kdjax.data._source import ArraySource, Records, RecordSource, Source, spread
from kdjax.data._splits import Splits, cut, divide, few
from kdjax.types import UserError

__all__ = [
    "ArraySource",
    "RecordSource",
    "Records",
    "Source",
    "Splits",
    "channel_statistics",
    "cut",
    "labels",
    "load",
]

_CHUNK = 256  # Images whose sums are taken at once.


def load(
    name: str,
    *,
    path: str | None = None,
    image_size: int | None = None,
    validation: int | float = 0,
    max_examples: int = 0,
    data_dir: str | None = None,
    in_memory_limit_bytes: int = 2**31,
) -> Splits:
    """The splits of a data set.

    Args:
      name: `'digits'`, the embedded set, or a name of TensorFlow Datasets; with a
        `path`, merely what the set is called.
      path: an .npz file with `train_images` (uint8), `train_labels`, `test_images`,
        `test_labels`, and optionally `validation_images`, `validation_labels` and
        `class_names`; or a folder `train/<class>/*.png` or `.jpg`, `test/...`, and
        optionally `validation/...` or `val/...`.
      image_size: side in pixels that images are brought to: the shorter side resized,
        the longer one cut at both ends. Needed where images vary in size.
      validation: how many examples of train, or which fraction, become the validation
        split: the same ones in every run, the classes evenly among them. A set that
        has train, validation and test is taken as it is; one without a labelled test
        split, such as ImageNet, is judged by its validation split.
      max_examples: of train, and of each other split, at most so many are taken, the
        classes evenly, always the same ones; 0: all.
      data_dir: where TensorFlow Datasets keeps its sets.
      in_memory_limit_bytes: sets that decode to no more are decoded once, here; larger
        ones stay on disk.

    Returns:
      Train, validation and test.

    Raises:
      UserError: if the data can't be read, or do not fit together.

    Examples:
      >>> from kdjax.data import sources
      >>> splits = sources.load("digits", validation=237)
      >>> len(splits.train), len(splits.validation), len(splits.test)
      (1200, 237, 360)
    """
    if image_size is not None and image_size < 1:
        raise UserError(f"Expected dataset.image_size >= 1, got {image_size}.")
    parts: Mapping[str, ArraySource | RecordSource]
    if path is not None:
        parts = _read_path(pathlib.Path(path).expanduser(), name, image_size)
    elif name == "digits":
        parts = _files.digits()
    else:
        parts = _tfds.read_tfds(name, data_dir, image_size)
    parts = {
        split: _sized(few(source, max_examples), image_size)
        for split, source in parts.items()
    }
    bytes_ = sum(len(x) * math.prod(x.image_shape) for x in parts.values())
    if bytes_ <= in_memory_limit_bytes:
        parts = {
            split: source.in_memory() if isinstance(source, RecordSource) else source
            for split, source in parts.items()
        }
    return divide(parts, validation)


def _read_path(
    path: pathlib.Path, name: str, image_size: int | None
) -> Mapping[str, ArraySource | RecordSource]:
    if path.is_dir():
        return _files.read_folder(path, name, image_size)
    if not path.exists():
        raise UserError(
            f"Expected a data set at {path}, but there is nothing: set dataset.path to "
            "an .npz file or a folder of images."
        )
    return _files.read_npz(path, name)


def _sized(
    source: ArraySource | RecordSource, image_size: int | None
) -> ArraySource | RecordSource:
    """Arrays brought to `image_size`; records are, when they are read."""
    shape = (image_size or 0, image_size or 0, source.image_shape[2])
    if image_size is None or source.image_shape == shape:
        return source
    examples = source.take(np.arange(len(source)))
    images = [_images.fit(x, shape, True, source.name) for x in examples["image"]]
    return ArraySource(
        np.stack(images),
        examples["label"],
        name=source.name,
        class_names=source.class_names,
    )


def labels(source: Source) -> np.ndarray:
    """The classes of all examples, `[examples]`."""
    return source.take(np.arange(len(source)))["label"]


def channel_statistics(
    source: Source, limit: int = 10_000
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each channel, pixels in units of [0, 1].

    Integer sums, so exact, and independent of the order: over every image of a set in
    memory, else over `limit` images spread evenly.

    Args:
      source: the examples.
      limit: how many images of a set on disk are read.

    Returns:
      Means and standard deviations, float64 `[C]`; a channel that never changes has a
      standard deviation of 1, so that dividing by it is safe.

    Raises:
      ValueError: if there are no examples.
    """
    if not len(source):
        raise ValueError("Expected examples to take statistics of, got none.")
    in_memory = isinstance(source, ArraySource)
    ids = spread(len(source), len(source) if in_memory else limit)
    total = np.zeros(source.image_shape[2], np.int64)
    squares = np.zeros_like(total)
    for start in range(0, len(ids), _CHUNK):
        images = source.take(ids[start : start + _CHUNK])["image"]
        # A channel's pixels side by side: 7 times as fast to sum.
        pixels = np.ascontiguousarray(images.reshape(-1, images.shape[-1]).T)
        pixels = pixels.astype(np.uint32)
        total += pixels.sum(axis=1, dtype=np.int64)
        squares += (pixels * pixels).sum(axis=1, dtype=np.int64)
    count = len(ids) * math.prod(source.image_shape[:2])
    # In Python's integers: count * squares may not fit 64 bits.
    variance = [
        (count * int(q) - int(s) ** 2) / count**2
        for s, q in zip(total, squares, strict=True)
    ]
    std = np.sqrt(np.asarray(variance)) / 255
    return total / count / 255, np.where(std > 0, std, 1.0)
