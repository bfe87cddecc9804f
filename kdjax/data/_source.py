"""One split of a data set: in memory, or decoded on demand."""

import concurrent.futures
import dataclasses
import functools
import hashlib
import os
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from kdjax.data import _images

SAMPLE_SIZE = 64  # Examples that stand for a split too large to hash.


@runtime_checkable
class Source(Protocol):
    """One split of a data set, by example id: decoded, never augmented.

    Attributes:
      name: of the data set.
      num_classes: how many classes there are.
      class_names: their names, by label.
      image_shape: height, width and channels of every image.
    """

    name: str
    num_classes: int
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]

    def __len__(self) -> int: ...

    def take(self, ids: np.ndarray) -> dict[str, np.ndarray]:
        """`image` uint8 `[n, H, W, C]` and `label` int32 `[n]` of these examples.

        An id is the example's place in the split.
        """
        ...

    def fingerprint(self) -> str:
        """A digest of the content, in hexadecimal."""
        ...


class ArraySource:
    """A split in memory: the form that small sets take, decoded once.

    Args:
      images: uint8 `[N, H, W, C]`.
      labels: integers `[N]`.
      name: of the data set.
      class_names: by label.
    """

    def __init__(
        self,
        images: np.ndarray,
        labels: np.ndarray,
        *,
        name: str,
        class_names: Sequence[str],
    ):
        self.name = name
        self.class_names = tuple(class_names)
        self.num_classes = len(self.class_names)
        height, width, channels = images.shape[1:]
        self.image_shape = (height, width, channels)
        self.labels = labels.astype(np.int32)
        self._images = images

    def __len__(self) -> int:
        return len(self._images)

    def take(self, ids: np.ndarray) -> dict[str, np.ndarray]:
        return {"image": self._images[ids], "label": self.labels[ids]}

    def fingerprint(self) -> str:
        """SHA-256 of shape, pixels and labels, whatever the name."""
        return self._digest

    @functools.cached_property
    def _digest(self) -> str:
        digest = hashlib.sha256(repr((self._images.shape, self.num_classes)).encode())
        digest.update(_bytes(self._images))
        digest.update(_bytes(self.labels))
        return digest.hexdigest()

    def subset(self, ids: np.ndarray) -> "ArraySource":
        """The examples with these ids, numbered anew."""
        return ArraySource(
            self._images[ids],
            self.labels[ids],
            name=self.name,
            class_names=self.class_names,
        )


@dataclasses.dataclass(frozen=True)
class Records:
    """Where a split's encoded images lie.

    Attributes:
      read: maps a place to the encoded image, the label, and a name for messages.
      size: how many there are.
      identity: name and version, or whatever else tells two of them apart.
      labels: of all, `[N]`, where they are known without reading.
    """

    read: Callable[[int], tuple[bytes, int, str]]
    size: int
    identity: tuple[Any, ...]
    labels: np.ndarray | None = None


class RecordSource:
    """A split that stays on disk: an image is read and decoded when it is asked for.

    Images of another size than `image_shape` are resized on the shorter side, and
    cropped to the centre on the longer one.

    Args:
      records: where the images lie.
      name: of the data set.
      class_names: by label.
      image_shape: height, width and channels that all images are brought to.
      resize: whether images of another size are; else they are refused.
      ids: which records the split has; all of them by default.
    """

    def __init__(
        self,
        records: Records,
        *,
        name: str,
        class_names: Sequence[str],
        image_shape: tuple[int, int, int],
        resize: bool,
        ids: np.ndarray | None = None,
    ):
        self.name = name
        self.class_names = tuple(class_names)
        self.num_classes = len(self.class_names)
        self.image_shape = image_shape
        self._records = records
        self._resize = resize
        self._ids = np.arange(records.size) if ids is None else ids

    @property
    def labels(self) -> np.ndarray | None:
        """All labels, int32 `[N]`; `None` where only reading would tell them."""
        labels = self._records.labels
        return None if labels is None else labels[self._ids].astype(np.int32)

    def __len__(self) -> int:
        return len(self._ids)

    def take(self, ids: np.ndarray) -> dict[str, np.ndarray]:
        images = np.empty((len(ids), *self.image_shape), np.uint8)
        labels = np.empty(len(ids), np.int32)
        for row, record in enumerate(self._ids[ids]):
            encoded, labels[row], name = self._records.read(int(record))
            image = _images.decode(encoded, self.image_shape[2], name)
            images[row] = _images.fit(image, self.image_shape, self._resize, name)
        return {"image": images, "label": labels}

    def fingerprint(self) -> str:
        """SHA-256 of name, version, size, ids, and 64 decoded examples spread evenly.

        To hash every image would take as long as an epoch.
        """
        return self._digest

    @functools.cached_property
    def _digest(self) -> str:
        identity = (*self._records.identity, self.image_shape, self.class_names)
        digest = hashlib.sha256(repr(identity).encode())
        digest.update(_bytes(self._ids.astype(np.int64)))
        sample = self.take(spread(len(self), SAMPLE_SIZE))
        digest.update(_bytes(sample["image"]))
        digest.update(_bytes(sample["label"]))
        return digest.hexdigest()

    def subset(self, ids: np.ndarray) -> "RecordSource":
        """The examples with these ids, numbered anew."""
        return RecordSource(
            self._records,
            name=self.name,
            class_names=self.class_names,
            image_shape=self.image_shape,
            resize=self._resize,
            ids=self._ids[ids],
        )

    def in_memory(self) -> ArraySource:
        """The same examples, all decoded now, on all cores."""
        images = np.empty((len(self), *self.image_shape), np.uint8)
        labels = np.empty(len(self), np.int32)

        def read(ids: np.ndarray) -> None:
            examples = self.take(ids)
            images[ids], labels[ids] = examples["image"], examples["label"]

        chunks = np.array_split(np.arange(len(self)), len(self) // 256 + 1)
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(read, chunks))
        return ArraySource(images, labels, name=self.name, class_names=self.class_names)


def _bytes(array: np.ndarray) -> memoryview:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def spread(size: int, count: int) -> np.ndarray:
    """At most `count` places below `size`, spread evenly."""
    return np.unique(np.linspace(0, size - 1, min(size, count)).astype(np.int64))
