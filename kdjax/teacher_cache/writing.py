"""The teacher pass: fills a cache shard by shard, and goes on where it was stopped."""

import dataclasses
import functools
import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol, TypeAlias, runtime_checkable

import jax
import numpy as np
import tensorstore as ts

from kdjax.teacher_cache import processes as _processes
from kdjax.teacher_cache.encoding import Encoding
from kdjax.teacher_cache.manifest import Manifest, Shard, from_json
from kdjax.teacher_cache.processes import Processes
from kdjax.teacher_cache.storage import COMPLETE, MANIFEST, Store, marker_key
from kdjax.types import UserError

_log = logging.getLogger(__name__)

Compute: TypeAlias = Callable[[np.ndarray, int], np.ndarray | jax.Array | None]
"""Maps example ids, int32 `[B]`, and a view to the teacher's logits, `[B, C]`, or
what else `Encoding.flatten` makes of its outputs.

B is the same in every call. `None` is an answer where the process stores nothing.
"""


@runtime_checkable
class ProgressFn(Protocol):
    """Is told how many entries are done, those of earlier runs too, and of how many."""

    def __call__(self, done: int, total: int, /) -> object: ...


def write(
    path: str | os.PathLike[str],
    manifest: Manifest,
    compute: Compute,
    *,
    batch_size: int,
    progress: ProgressFn | None = None,
    processes: Processes | None = None,
) -> int:
    """Computes and stores every entry that the cache lacks.

    The unit of work is the shard. One counts as done when its marker is on disk, and
    the marker is written after the data are: a pass that was killed, at whatever
    moment, goes on with the shards without one, and leaves the same bytes as a pass
    that was not. A batch never reaches over the end of a shard; what it lacks is
    filled by its last id again and trimmed, so that `compute` sees one shape.

    Args:
      path: a directory, or a URL of an object store; made if it is not there.
      manifest: what the cache is to hold. A cache that exists keeps its `shard_size`.
      compute: gives the teacher's logits.
      batch_size: examples of each call of `compute`.
      progress: is called at the start and after every batch.
      processes: this process among others; by default, as JAX knows it.

    Returns:
      The number of shards that were computed.

    Raises:
      UserError: if the cache at `path` is of something else, or damaged; if the disk
        has no room; if the logits are not finite, not of the encoding's classes or
        range; if the path cannot be written.
    """
    if batch_size < 1:
        raise UserError(f"Expected batch_size > 0, got {batch_size}.")
    procs = processes or _processes.current()
    store = Store(path)
    procs.on_decider(lambda: _begin(store, manifest, batch_size))
    manifest = procs.together(lambda: read_manifest(store, manifest))
    missing = procs.together(lambda: _missing(store, manifest, procs))
    marked = procs.from_first(missing)
    todo = [shard for shard in manifest.shards() if marked[shard.index]]
    work = _Pass(store, manifest, compute, batch_size, procs, progress)
    computed = work.run(todo)
    procs.on_decider(lambda: _complete(store, manifest))
    return computed


def read_manifest(store: Store, expected: Manifest | None = None) -> Manifest:
    """The manifest on disk.

    Raises:
      UserError: if there is none, it does not parse, or it is of something else than
        `expected`, naming each field that differs.
    """
    content = store.read(MANIFEST)
    if content is None:
        raise UserError(
            f"Expected a teacher cache in {store.path}, found no {MANIFEST}: run the "
            "cache stage first (--stages=cache), on a disk that all processes share."
        )
    try:
        found = from_json(content)
    except ValueError as error:
        raise UserError(
            f"Expected {MANIFEST} in {store.path} to describe the cache, but it does "
            f"not parse ({error}): delete {store.path} to recompute."
        ) from error
    if expected is None:
        return found
    differences = expected.differences(found)
    if differences:
        raise UserError(
            f"Expected the teacher cache of this run in {store.path}, but that one was "
            f"made from something else: {'; '.join(differences)}. Choose another "
            f"--workdir, or delete {store.path} to recompute."
        )
    for note in expected.notes(found):
        _log.warning("The teacher cache %s was made elsewhere: %s.", store.path, note)
    return found


def _begin(store: Store, manifest: Manifest, batch_size: int) -> None:
    """Makes manifest and arrays where there are none."""
    if store.read(MANIFEST) is not None:
        manifest = read_manifest(store, manifest)
    elif store.markers():
        raise UserError(
            f"Expected {MANIFEST} beside the shards in {store.path}, found none: "
            f"restore it, or delete {store.path} to recompute."
        )
    else:
        _check_room(store, manifest.nbytes)
        environment = {**manifest.environment, "batch_size": batch_size}
        manifest = dataclasses.replace(manifest, environment=environment)
        store.write(MANIFEST, manifest.to_json().encode())
    store.arrays(manifest, create=True)


def _missing(store: Store, manifest: Manifest, procs: Processes) -> np.ndarray:
    """Which shards are to be computed, bool `[num_shards]`."""
    num_shards = manifest.num_views * manifest.num_blocks
    missing = np.zeros(num_shards, bool)
    if not procs.decides:
        return missing
    markers = store.markers()
    for shard in manifest.shards():
        missing[shard.index] = marker_key(shard) not in markers
        if not procs.lockstep:
            missing[shard.index] &= procs.owns(shard.index)
    if missing.any():
        store.delete(COMPLETE)
        sizes = (shard.size for shard in manifest.shards() if missing[shard.index])
        _check_room(store, sum(sizes) * manifest.encoding.bytes_per_entry)
    return missing


def _check_room(store: Store, needed: int) -> None:
    free = store.free_bytes()
    if free is not None and free < needed:
        raise store.full(needed)


def _complete(store: Store, manifest: Manifest) -> None:
    """Says that all shards are there, if they are."""
    markers = store.markers()
    keys = {marker_key(shard): shard for shard in manifest.shards()}
    if not keys.keys() <= markers.keys():
        return
    content = {
        "manifest_sha256": hashlib.sha256(store.read(MANIFEST) or b"").hexdigest(),
        "shards": {key: markers[key] for key in keys},
    }
    if store.read_json(COMPLETE) != content:
        store.write(COMPLETE, json.dumps(content, indent=0).encode())


def digest(entries: Mapping[str, np.ndarray]) -> str:
    """SHA-256 of the arrays of a shard, in the order of their names."""
    result = hashlib.sha256()
    for name in sorted(entries):
        result.update(np.ascontiguousarray(entries[name]).data)
    return result.hexdigest()


class _Pass:
    """One pass over the shards: computes one while the last one is written."""

    def __init__(
        self,
        store: Store,
        manifest: Manifest,
        compute: Compute,
        batch_size: int,
        procs: Processes,
        progress: ProgressFn | None,
    ):
        self._store = store
        self._manifest = manifest
        self._compute = compute
        self._batch_size = batch_size
        self._procs = procs
        self._progress = progress
        self._encode = jax.jit(manifest.encoding.encode)
        self._arrays = store.arrays(manifest, create=False)
        self._pending: tuple[Shard, str, list[ts.WriteFutures]] | None = None
        self._bytes_left = 0

    def run(self, todo: Sequence[Shard]) -> int:
        """Computes these shards; returns how many it was."""
        self._total = self._manifest.num_views * self._manifest.num_examples
        self._done = self._total - sum(shard.size for shard in todo)
        self._bytes_left = (
            sum(shard.size for shard in todo) * self._manifest.encoding.bytes_per_entry
        )
        self._tell()
        computed = 0
        for shard in todo:
            if not self._procs.lockstep and self._store.is_marked(shard):
                self._tick(shard.size)  # By another process, in the meantime.
                continue
            self._procs.together(functools.partial(self._one, shard))
            computed += 1
        self._procs.together(self._finish)
        return computed

    def _one(self, shard: Shard) -> None:
        batches = list(self._batches(shard))
        if not self._procs.lockstep or self._procs.owns(shard.index):
            names = self._manifest.encoding.arrays()
            self._start(
                shard, {n: np.concatenate([b[n] for b in batches]) for n in names}
            )

    def _batches(self, shard: Shard) -> Iterator[dict[str, np.ndarray]]:
        """Computes a shard; in lockstep only its owner looks at the result."""
        mine = not self._procs.lockstep or self._procs.owns(shard.index)
        for ids, size in padded_batches(
            np.arange(shard.start, shard.stop), self._batch_size
        ):
            logits = self._compute(ids, shard.view)
            if mine:
                logits = checked(self._manifest.encoding, logits, len(ids))
                entries = self._encode(logits)
                yield {name: np.asarray(x)[:size] for name, x in entries.items()}
            self._tick(size)

    def _start(self, shard: Shard, entries: dict[str, np.ndarray]) -> None:
        """Begins to write a shard, when the one before it is on disk."""
        self._finish()
        if not self._procs.lockstep and self._store.is_marked(shard):
            return
        self._store.clear(self._manifest, shard)
        futures = [
            self._arrays[name][shard.view, shard.start : shard.stop].write(x)
            for name, x in entries.items()
        ]
        self._pending = (shard, digest(entries), futures)

    def _finish(self) -> None:
        """Waits until the shard being written is on disk, and marks it."""
        if self._pending is None:
            return
        (shard, sha256, futures), self._pending = self._pending, None
        with self._store.errors("write", self._bytes_left):
            for future in futures:
                future.result()
        self._store.mark(shard, sha256)
        self._bytes_left -= shard.size * self._manifest.encoding.bytes_per_entry

    def _tick(self, size: int) -> None:
        self._done += size
        self._tell()

    def _tell(self) -> None:
        if self._progress is not None:
            self._progress(self._done, self._total)


def padded_batches(
    ids: np.ndarray, batch_size: int
) -> Iterator[tuple[np.ndarray, int]]:
    """Batches of one size, int32, the last id repeated; and how many are real."""
    for start in range(0, len(ids), batch_size):
        batch = ids[start : start + batch_size].astype(np.int32)
        yield np.pad(batch, (0, batch_size - len(batch)), mode="edge"), len(batch)


def checked(
    encoding: Encoding, logits: np.ndarray | jax.Array | None, size: int
) -> np.ndarray:
    """Logits on the host in float32, after the checks that users need.

    Raises:
      UserError: if there are not `size` rows of the encoding's classes, or the
        encoding cannot hold them.
    """
    array = np.asarray(logits)
    expected = (size, encoding.width)
    if array.shape != expected:
        raise UserError(
            f"Expected logits of {size} examples and {encoding.width} classes, "
            f"{expected}, from the teacher, got {array.shape}: give teacher and "
            "dataset the same classes."
        )
    array = array.astype(np.float32)
    encoding.check_logits(array)
    return array
