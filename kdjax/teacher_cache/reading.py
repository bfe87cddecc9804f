"""Reads a cache, by (view, example id), and repairs one that was damaged."""

import concurrent.futures
import hashlib
import os
from collections.abc import Mapping

import numpy as np
import tensorstore as ts

from kdjax.teacher_cache.manifest import Manifest, Shard
from kdjax.teacher_cache.storage import (
    COMPLETE,
    MANIFEST,
    Store,
    data_key,
    marker_key,
    reason,
)
from kdjax.teacher_cache.writing import digest, read_manifest
from kdjax.types import UserError


class Cache:
    """A complete cache, open for reading; `open` makes it.

    Attributes:
      manifest: what it holds, and what it was made from.
    """

    def __init__(
        self,
        store: Store,
        manifest: Manifest,
        arrays: Mapping[str, ts.TensorStore],
        digests: Mapping[str, str],
    ):
        self.manifest = manifest
        self._store = store
        self._arrays = arrays
        self._digests = digests

    @property
    def nbytes(self) -> int:
        """What `read_all` takes in memory."""
        return self.manifest.nbytes

    def read(self, view: int, ids: np.ndarray) -> dict[str, np.ndarray]:
        """The entries of some examples in one view: for streaming.

        Args:
          view: between 0 and V - 1.
          ids: of the examples, integers `[B]`, in any order, repeated or not.

        Returns:
          The encoding's arrays by name, `[B, ...]`, in the order of `ids`.

        Raises:
          IndexError: if the view or an id is out of range.
          TypeError: if the ids are not integers.
          UserError: if a shard is damaged.
        """
        ids = self._checked(view, np.asarray(ids))
        if not ids.size:
            return {
                n: np.empty((0, *a.shape[2:]), a.dtype.numpy_dtype)
                for n, a in self._arrays.items()
            }
        futures = {name: a[view, ids].read() for name, a in self._arrays.items()}
        try:
            entries = {name: future.result() for name, future in futures.items()}
        except ValueError as error:
            raise self._damage(view, ids, reason(error)) from error
        if any(_is_lost(x).any() for x in entries.values()):
            raise self._damage(view, ids, "a file is missing")
        return entries

    def read_all(self) -> dict[str, np.ndarray]:
        """All entries, the arrays `[V, N, ...]`, each shard held to its SHA-256.

        Raises:
          UserError: if a shard is damaged, naming the first.
        """
        futures = {name: array.read() for name, array in self._arrays.items()}
        try:
            entries = {name: future.result() for name, future in futures.items()}
        except ValueError as error:
            everything = np.arange(self.manifest.num_examples)
            for view in range(self.manifest.num_views):
                self._find_damage(view, everything)
            # The shards are sound now: what failed was the reading of them.
            with self._store.errors("read"):
                raise error

        def is_damaged(shard: Shard) -> bool:
            part = {name: x[_place(shard)] for name, x in entries.items()}
            return digest(part) != self._digests[marker_key(shard)]

        shards = list(self.manifest.shards())
        with concurrent.futures.ThreadPoolExecutor() as pool:
            for shard, damaged in zip(
                shards, pool.map(is_damaged, shards), strict=True
            ):
                if damaged:
                    raise self._error(
                        shard, "its bytes are not those that were written"
                    )
        return entries

    def _checked(self, view: int, ids: np.ndarray) -> np.ndarray:
        size = self.manifest.num_examples
        if ids.ndim != 1 or (ids.size and not np.issubdtype(ids.dtype, np.integer)):
            raise TypeError(
                f"Expected example ids as integers [B], got {ids.dtype} {ids.shape}."
            )
        if not 0 <= view < self.manifest.num_views:
            raise IndexError(
                f"Expected a view between 0 and {self.manifest.num_views - 1}, "
                f"got {view}: the cache holds {self.manifest.num_views}."
            )
        outside = ids[(ids < 0) | (ids >= size)]
        if outside.size:
            raise IndexError(
                f"Expected example ids between 0 and {size - 1}, got {outside[0]}."
            )
        return ids.astype(np.int64)

    def _damage(self, view: int, ids: np.ndarray, text: str) -> UserError:
        """The error that names the shard at fault, among those of these ids."""
        try:
            self._find_damage(view, ids)
        except UserError as error:
            return error
        return UserError(
            f"Expected to read view {view} of the teacher cache {self._store.path}, "
            f"but it failed: {text}: run the same command again."
        )

    def _find_damage(self, view: int, ids: np.ndarray) -> None:
        for block in np.unique(ids // self.manifest.shard_size):
            shard = self.manifest.shard(view, int(block))
            text = damage(self._store, self._arrays, shard, self._digests)
            if text:
                raise self._error(shard, text)

    def _error(self, shard: Shard, text: str) -> UserError:
        path = self._store.path
        return UserError(
            f"Expected the shard of {shard} of the teacher cache {path} to read back, "
            f"but {text}: run `python -m kdjax.teacher_cache repair {path}` and then "
            "the cache stage again (--stages=cache), which computes only what is bad."
        )


def open(path: str | os.PathLike[str], expected: Manifest | None = None) -> Cache:
    """Opens a complete cache.

    Args:
      path: where `write` wrote it.
      expected: what it must hold; `None` takes what there is.

    Raises:
      UserError: if there is no cache, if it was made from something else than
        `expected`, naming each field that differs, if it is not complete, or damaged.
    """
    store = Store(path)
    manifest = read_manifest(store, expected)
    complete = store.read_json(COMPLETE)
    if not isinstance(complete, dict):
        raise _incomplete(store, manifest)
    sha256 = hashlib.sha256(store.read(MANIFEST) or b"").hexdigest()
    digests = complete.get("shards", {})
    keys = {marker_key(shard) for shard in manifest.shards()}
    if complete.get("manifest_sha256") != sha256 or digests.keys() != keys:
        raise UserError(
            f"Expected {MANIFEST} and {COMPLETE} in {path} to belong together, but one "
            f"was changed: run `python -m kdjax.teacher_cache repair {path}` and then "
            "the cache stage again (--stages=cache)."
        )
    arrays = store.arrays(manifest, create=False)
    return Cache(store, manifest, arrays, digests)


def repair(path: str | os.PathLike[str]) -> list[Shard]:
    """Drops the markers of all shards that do not read back as they were written.

    The next `write` computes those again, and no other.

    Returns:
      The shards that were dropped.

    Raises:
      UserError: if there is no cache, or its manifest is beyond repair.
    """
    store = Store(path)
    manifest = read_manifest(store)
    arrays = _reopen(store, manifest)
    markers = store.markers()
    marked = [shard for shard in manifest.shards() if marker_key(shard) in markers]
    bad = [shard for shard in marked if damage(store, arrays, shard, markers)]
    # `write` makes it anew from the markers.
    store.delete(COMPLETE, *(marker_key(shard) for shard in bad))
    return bad


def damage(
    store: Store,
    arrays: Mapping[str, ts.TensorStore],
    shard: Shard,
    digests: Mapping[str, str],
) -> str:
    """Why a shard does not read back as it was written; empty if it does."""
    place = _place(shard)
    try:
        futures = {name: array[place].read() for name, array in arrays.items()}
        entries = {name: future.result() for name, future in futures.items()}
    except ValueError as error:
        return reason(error)
    if digest(entries) == digests[marker_key(shard)]:
        return ""
    missing = [name for name, x in entries.items() if _is_lost(x).all()]
    if missing:
        return f"the file {data_key(missing[0], shard)} is missing"
    return "its bytes are not those that were written"


def _reopen(store: Store, manifest: Manifest) -> dict[str, ts.TensorStore]:
    """Opens the arrays, their metadata written anew where they are bad."""
    try:
        return store.arrays(manifest, create=True)
    except UserError:
        store.delete(*(f"{name}/zarr.json" for name in manifest.encoding.arrays()))
        return store.arrays(manifest, create=True)


def _incomplete(store: Store, manifest: Manifest) -> UserError:
    markers = store.markers()
    total = manifest.num_views * manifest.num_blocks
    missing = sum(marker_key(shard) not in markers for shard in manifest.shards())
    found = (
        f"{missing} of {total} shards are missing"
        if missing
        else (f"{COMPLETE} is missing")
    )
    return UserError(
        f"Expected a complete teacher cache in {store.path}, but {found}: run the "
        "cache stage again (--stages=cache), which computes only those."
    )


def _place(shard: Shard) -> tuple[int, slice]:
    return shard.view, slice(shard.start, shard.stop)


def _is_lost(array: np.ndarray) -> np.ndarray:
    """Where an array has the value of a file that is not there."""
    if array.dtype.kind == "u":  # One value says nothing, a whole entry of it does.
        lost = array == np.iinfo(array.dtype).max
        return lost.reshape(len(array), -1).all(axis=-1)
    return array == -1 if array.dtype.kind == "i" else np.isnan(array)
