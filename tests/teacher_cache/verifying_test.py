"""Verification: a cache of this teacher agrees, another's does not."""

import numpy as np
import pytest

from kdjax import teacher_cache
from kdjax.teacher_cache import Float16, Float32, Manifest, TopK
from kdjax.types import UserError

ENCODINGS = [Float32(7), Float16(7), TopK(7, 2, (1.0, 4.0)), TopK(7, 7, (1.0,))]


def compute(ids, view):
    position = ids[:, None] * 7.0 + np.arange(7)[None] + 1000.0 * view
    return np.sin(position).astype(np.float32) * 5


def _cache(path, encoding, fn=compute):
    manifest = Manifest(
        num_examples=53,
        num_views=3,
        encoding=encoding,
        shard_size=20,
        teacher_fingerprint="t",
        dataset_fingerprint="d",
        augmentation={},
        preprocessing={},
        seed=0,
    )
    teacher_cache.write(path, manifest, fn, batch_size=16)
    return teacher_cache.open(path, manifest)


@pytest.mark.parametrize("encoding", ENCODINGS, ids=str)
def test_a_cache_of_this_teacher_agrees(tmp_path, encoding):
    cache = _cache(tmp_path, encoding)
    report = teacher_cache.verify(cache, compute, num_samples=50, seed=0)
    assert report.agrees
    assert (report.num_samples, report.num_entries) == (50, 159)
    assert max(report.deviations.values()) <= report.rounding
    assert "50 of 159" in str(report)
    assert "agrees with the teacher" in str(report)
    if isinstance(encoding, Float32):
        assert report.deviations == {"teacher_logits": 0.0}
    if isinstance(encoding, Float16):
        assert report.deviations["teacher_logits"] > 0


@pytest.mark.parametrize("encoding", ENCODINGS, ids=str)
def test_another_teacher_does_not(tmp_path, encoding):
    cache = _cache(tmp_path, encoding)

    def other(ids, view):
        return compute(ids, view) + np.float32(0.25)

    report = teacher_cache.verify(cache, other, num_samples=10, seed=0)
    assert not report.agrees
    assert max(report.deviations.values()) == pytest.approx(0.25, abs=5e-3)
    assert "NOT of this teacher" in str(report)


@pytest.mark.parametrize("encoding", ENCODINGS, ids=str)
def test_another_view_is_noticed(tmp_path, encoding):
    cache = _cache(tmp_path, encoding, lambda ids, view: compute(ids, 0))
    report = teacher_cache.verify(cache, compute, num_samples=30, seed=0)
    assert not report.agrees


def test_a_single_bad_entry_is_found_when_all_are_sampled(tmp_path):
    def nearly(ids, view):
        logits = compute(ids, view)
        logits[(ids == 31) & (view == 2), 4] += np.float32(1)
        return logits

    cache = _cache(tmp_path, Float32(7), nearly)
    report = teacher_cache.verify(cache, compute, num_samples=10_000, seed=0)
    assert report.num_samples == 159
    assert report.deviations["teacher_logits"] == pytest.approx(1, abs=1e-6)


def test_the_writers_batch_size_is_used(tmp_path):
    cache = _cache(tmp_path, Float32(7))
    sizes, seen = set(), set()

    def recorded(ids, view):
        sizes.add(len(ids))
        seen.update((view, int(i)) for i in ids)
        return compute(ids, view)

    teacher_cache.verify(cache, recorded, num_samples=9, seed=1)
    assert sizes == {16}
    assert len(seen) == 9  # Padding repeats, and adds none.
    teacher_cache.verify(cache, recorded, num_samples=9, seed=1, batch_size=4)
    assert sizes == {16, 4}
    with pytest.raises(UserError, match="at least one"):
        teacher_cache.verify(cache, compute, num_samples=0, seed=0)
