"""What of a teacher is stored, from the `cache` section of a config."""

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import numpy as np
from ml_collections import ConfigDict

from kdjax import teacher_cache as caches
from kdjax.types import UserError


@runtime_checkable
class Stored(Protocol):
    """What a loader reads of a cache, or of several."""

    def read(self, view: int, ids: np.ndarray) -> dict[str, np.ndarray]: ...

    def read_all(self) -> dict[str, np.ndarray]: ...


def encoding(
    config: ConfigDict, num_classes: int, stored: Mapping[str, tuple[int, ...]]
) -> caches.Encoding:
    """The encoding of logits, and of the features `stored` by name and shape.

    Raises:
      UserError: if it does not go with the temperature, or with features.
    """
    cache = config.cache
    if stored and cache.encoding == "topk":
        raise UserError(
            "Expected cache.encoding 'float32' or 'float16' for terms between features "
            f"({', '.join(stored)}), got 'topk': use one of those, or "
            "--config.teacher.source=online."
        )
    if stored:
        return caches.Record(num_classes, tuple(stored.items()), cache.encoding)
    if cache.encoding == "float32":
        return caches.Float32(num_classes)
    if cache.encoding == "float16":
        return caches.Float16(num_classes)
    top = caches.TopK(num_classes, cache.top_k, tuple(cache.temperatures))
    if config.distill.temperature_schedule != "constant":
        raise UserError(
            "Expected a constant distill.temperature with cache.encoding='topk', "
            "whose tail is exact at a few temperatures only, got a schedule: use "
            "'float32' or 'float16'."
        )
    top.check_temperature(config.distill.temperature)
    return top


def fits(config: ConfigDict, encoding: caches.Encoding, num_entries: int) -> bool:
    """Whether the features, if there are any, are within `cache.max_gigabytes`."""
    if not isinstance(encoding, caches.Record):
        return True
    size = num_entries * encoding.bytes_per_entry
    return size <= 1e9 * config.cache.max_gigabytes


def note(
    config: ConfigDict, encoding: caches.Encoding, num_examples: int, num_views: int
) -> str:
    """A sentence on where a student's steps have the teacher's outputs from."""
    size = num_examples * num_views * encoding.bytes_per_entry
    what = "logits"
    if isinstance(encoding, caches.Record):
        what = f"logits and {', '.join(name for name, _ in encoding.features)}"
    asked = (
        f"{what} of {num_examples} examples in {num_views} views are {size / 1e9:.3g} "
        f"GB in {config.cache.encoding}"
    )
    if fits(config, encoding, num_examples * num_views):
        return f"The teacher is read from the cache: {asked}."
    return (
        f"The teacher runs in every step: {asked}, more than "
        f"cache.max_gigabytes={config.cache.max_gigabytes:g}. Fewer "
        "student.train.num_views or cache.encoding=float16 take less."
    )
