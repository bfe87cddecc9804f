"""Recomputes a sample of a cache's entries, and says by how much they differ."""

import dataclasses
from collections.abc import Iterator, Mapping

import jax
import numpy as np

from kdjax.teacher_cache.reading import Cache
from kdjax.teacher_cache.writing import Compute, checked, padded_batches
from kdjax.types import UserError

TOLERANCE = 1e-3
"""Of the largest logit: what float32 may differ by between two backends."""


@dataclasses.dataclass(frozen=True)
class VerifyReport:
    """What a sample of a cache's entries is like when computed again.

    Attributes:
      num_samples: entries compared.
      num_entries: entries of the cache.
      deviations: by array, the largest absolute deviation, in units of logits; see
        `Encoding.deviations`.
      rounding: what the encoding itself may make of these logits.
      largest_logit: of the sample, absolute.
    """

    num_samples: int
    num_entries: int
    deviations: Mapping[str, float]
    rounding: float
    largest_logit: float

    @property
    def agrees(self) -> bool:
        """Whether rounding, and another backend's float32, explain the deviations."""
        limit = self.rounding + TOLERANCE * max(self.largest_logit, 1.0)
        return all(x <= limit for x in self.deviations.values())

    def __str__(self) -> str:
        deviations = ", ".join(f"{n} {x:.3g}" for n, x in self.deviations.items())
        verdict = (
            "the cache agrees with the teacher"
            if self.agrees
            else "this is more than rounding: the cache is NOT of this teacher and "
            "data; delete it to recompute"
        )
        return (
            f"Recomputed {self.num_samples} of {self.num_entries} entries of the "
            f"teacher cache: largest deviation {deviations}; the encoding's own error "
            f"{self.rounding:.3g}, largest logit {self.largest_logit:.3g}: {verdict}."
        )


def verify(
    cache: Cache,
    compute: Compute,
    *,
    num_samples: int,
    seed: int,
    batch_size: int | None = None,
) -> VerifyReport:
    """Recomputes entries of random views and examples.

    On the machine that filled the cache, at the same batch size, the deviation is that
    of the encoding alone: zero for float32.

    Args:
      cache: the open cache.
      compute: gives the teacher's logits, as for `write`.
      num_samples: how many; at most all are taken.
      seed: of the sample.
      batch_size: examples of each call of `compute`; by default that of the writer.

    Raises:
      UserError: if there is nothing to compare, or a shard is damaged.
    """
    if num_samples < 1:
        raise UserError(f"Expected at least one entry to verify, got {num_samples}.")
    manifest = cache.manifest
    size = batch_size or int(manifest.environment.get("batch_size", num_samples))
    total = manifest.num_views * manifest.num_examples
    largest, rounding, count = 0.0, 0.0, 0
    deviations = dict.fromkeys(manifest.encoding.arrays(), 0.0)
    deviations_fn = jax.jit(manifest.encoding.deviations)
    for view, ids, real in _samples(cache, num_samples, seed, size):
        logits = checked(manifest.encoding, compute(ids, view), size)
        found = deviations_fn(cache.read(view, ids), logits)
        for name, values in found.items():
            deviations[name] = max(deviations[name], float(np.max(values)))
        largest = max(largest, float(np.max(np.abs(logits))))
        rounding = max(rounding, manifest.encoding.rounding(logits))
        count += real
    return VerifyReport(count, total, deviations, rounding, largest)


def _samples(
    cache: Cache, num_samples: int, seed: int, batch_size: int
) -> Iterator[tuple[int, np.ndarray, int]]:
    """Views, padded ids, and how many of them are real."""
    num_examples = cache.manifest.num_examples
    total = cache.manifest.num_views * num_examples
    rng = np.random.default_rng(seed)
    picked = rng.choice(
        total, size=min(num_samples, total), replace=False, shuffle=False
    )
    views, ids = np.divmod(np.sort(picked), num_examples)
    for view in np.unique(views):
        for batch, real in padded_batches(ids[views == view], batch_size):
            yield int(view), batch, real
