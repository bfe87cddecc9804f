"""Files and arrays of a cache, on a local disk or an object store, by TensorStore.

    path/
      manifest.json            what the cache holds, written first
      <array>/zarr.json        a Zarr v3 array [V, N, ...] for each of the encoding's
      <array>/c/<view>/<block>/0   one file a shard: chunks, each with its CRC-32C
      done/<view>-<block>      a marker: the shard is on disk, and its SHA-256
      complete.json            all shards are; their digests; written last

Every file is written whole or not at all: TensorStore writes to a lock file beside it,
syncs and renames; an object store does as much by itself.
"""

import contextlib
import json
import math
import os
import pathlib
import re
import shutil
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorstore as ts

from kdjax.teacher_cache.manifest import Manifest, Shard
from kdjax.types import UserError

MANIFEST = "manifest.json"
COMPLETE = "complete.json"
DONE = "done/"

CHUNK_BYTES = 16 * 1024
"""Of an inner chunk, about: the least that is read for one example. Measured at 2 kB an
entry, 256 random ones take 7 ms so, and 42 ms at 128 KiB; smaller compress worse."""

# Its own: a store in memory is then the same for all who name it in this process.
_CONTEXT = ts.Context({"memory_key_value_store": {}})
_SCHEME = re.compile(r"^(file|gs|memory|s3):/+")
_FULL = ("No space left on device", "Disk quota exceeded", "File too large")


class Store:
    """A directory, or a prefix in an object store, by its path or URL.

    Args:
      path: a local path, or a URL of `gs`, `s3`, `memory` or `file`.
    """

    def __init__(self, path: str | os.PathLike[str]):
        text = os.fspath(path)
        scheme = _SCHEME.match(text)
        self.path = text.rstrip("/")
        # pathlib makes one slash of the two of a URL.
        url = scheme and f"{scheme[1]}://{text[scheme.end() :].strip('/')}/"
        self.directory: pathlib.Path | None = None
        if not url or (scheme and scheme[1] == "file"):
            local = "/" + text[scheme.end() :] if scheme else text
            self.directory = pathlib.Path(local).absolute()
        with self.errors("open"):
            spec = url if self.directory is None else self._local_spec()
            self._kvs = ts.KvStore.open(spec, context=_CONTEXT).result()

    def _local_spec(self) -> dict[str, Any]:
        return {"driver": "file", "path": f"{self.directory}/"}

    def read(self, key: str) -> bytes | None:
        """The content of a file, or `None` if there is none."""
        with self.errors("read"):
            found = self._kvs.read(key).result()
        return bytes(found.value) if found.state == "value" else None

    def write(self, key: str, content: bytes) -> None:
        """Writes a file: whole, on disk when this returns, or not at all."""
        with self.errors("write"):
            self._kvs.write(key, content).result()

    def delete(self, *keys: str) -> None:
        """Deletes files; one that is not there is none."""
        with self.errors("write"):
            for future in [self._kvs.write(key, None) for key in keys]:
                future.result()

    def read_json(self, key: str) -> Any | None:
        """The content of a JSON file; `None` if there is none, or it does not parse."""
        content = self.read(key)
        try:
            return None if content is None else json.loads(content)
        except ValueError:
            return None

    def markers(self) -> dict[str, str]:
        """The digests of the shards that are done, by `marker_key`."""
        with self.errors("read"):
            keys = self._kvs.list(ts.KvStore.KeyRange(DONE, DONE[:-1] + "0")).result()
            found = {key.decode(): self._kvs.read(key) for key in keys}
            contents = {key: future.result().value for key, future in found.items()}
        digests = {key: _digest_in(content) for key, content in contents.items()}
        return {key: digest for key, digest in digests.items() if digest}

    def mark(self, shard: Shard, digest: str) -> None:
        """Says that a shard is on disk."""
        self.write(marker_key(shard), json.dumps({"sha256": digest}).encode())

    def is_marked(self, shard: Shard) -> bool:
        """Whether a shard is on disk."""
        return _digest_in(self.read(marker_key(shard)) or b"") is not None

    def clear(self, manifest: Manifest, shard: Shard) -> None:
        """Deletes the data of a shard.

        Before it is written again, since what covers a chunk in part, as the last
        shard may, is merged into the chunk on disk, which then must be readable.
        """
        self.delete(*(data_key(name, shard) for name in manifest.encoding.arrays()))

    def arrays(self, manifest: Manifest, *, create: bool) -> dict[str, ts.TensorStore]:
        """Opens the arrays `[V, N, ...]` of a cache by name, or makes them."""
        with self.errors("write" if create else "read"):
            futures = {
                name: ts.open(
                    self._array_spec(manifest, name),
                    context=_CONTEXT,
                    open=True,
                    create=create,
                )
                for name in manifest.encoding.arrays()
            }
            return {name: future.result() for name, future in futures.items()}

    def _array_spec(self, manifest: Manifest, name: str) -> dict[str, Any]:
        shape, dtype = manifest.encoding.arrays()[name]
        chunk = _chunk_size(manifest.shard_size, math.prod(shape) * dtype.itemsize)
        endian = {"name": "bytes", "configuration": {"endian": "little"}}
        crc = {"name": "crc32c"}
        zstd = {"name": "zstd", "configuration": {"level": 1}}
        sharding = {
            "chunk_shape": [1, chunk, *shape],
            "codecs": [endian, zstd, crc],
            "index_codecs": [endian, crc],
        }
        grid = {"chunk_shape": [1, manifest.shard_size, *shape]}
        metadata = {
            "shape": [manifest.num_views, manifest.num_examples, *shape],
            "data_type": dtype.name,
            # What a lost shard reads as, and no stored entry is.
            "fill_value": _fill_value(dtype),
            "chunk_grid": {"name": "regular", "configuration": grid},
            "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
        }
        kvstore = (self._kvs / f"{name}/").spec().to_json()
        return {
            "driver": "zarr3",
            "kvstore": kvstore,
            "metadata": metadata,
        }

    def free_bytes(self) -> int | None:
        """The room on the disk; `None` where there is no such number."""
        if self.directory is None:
            return None
        existing = next(
            p for p in (self.directory, *self.directory.parents) if p.exists()
        )
        return shutil.disk_usage(existing).free

    def full(self, needed: int) -> UserError:
        """What to say when there is less room than is needed."""
        free = self.free_bytes()
        found = "less" if free is None else f"{_megabytes(free)} free"
        return UserError(
            f"Expected {_megabytes(needed)} of disk space under {self.path} for the "
            f"teacher's logits, found {found}: make space, or choose another "
            "--workdir, and run the same command again; finished shards are kept."
        )

    @contextlib.contextmanager
    def errors(self, verb: str, needed: int | None = None) -> Iterator[None]:
        """Says in a sentence what TensorStore reports in its own words."""
        try:
            yield
        except (UserError, KeyboardInterrupt):
            raise
        except Exception as error:
            text = reason(error)
            if any(sign in text for sign in _FULL):
                raise self.full(needed or CHUNK_BYTES) from error
            raise UserError(
                f"Expected to {verb} the teacher cache {self.path}, but it failed: "
                f"{text}: look at the path and its permissions."
            ) from error


def reason(error: Exception) -> str:
    """What TensorStore says, without the specification that it appends."""
    return " ".join(str(error).partition(" [tensorstore_spec=")[0].split())


def marker_key(shard: Shard) -> str:
    """The file that says that a shard is done."""
    return f"{DONE}{shard.view:05d}-{shard.block:06d}"


def data_key(name: str, shard: Shard) -> str:
    """The file that holds a shard of an array; entries are vectors."""
    return f"{name}/c/{shard.view}/{shard.block}/0"


def _digest_in(marker: bytes) -> str | None:
    try:
        digest = json.loads(marker)["sha256"]
    except (ValueError, TypeError, KeyError):
        return None
    return digest if re.fullmatch("[0-9a-f]{64}", str(digest)) else None


def _chunk_size(shard_size: int, entry_bytes: int) -> int:
    """Entries of an inner chunk: the best divisor of a shard for `CHUNK_BYTES`."""
    wanted = max(CHUNK_BYTES // entry_bytes, 1)
    divisors = [n for n in range(1, shard_size + 1) if shard_size % n == 0]
    below = max(n for n in divisors if n <= wanted)
    # A prime shard has no small divisor that is worth its overhead.
    return (
        below
        if 4 * below >= min(wanted, shard_size)
        else min(n for n in divisors if n > wanted)
    )


def _megabytes(count: int) -> str:
    return f"{count / 2**20:.1f} MiB" if count < 2**30 else f"{count / 2**30:.1f} GiB"


def _fill_value(dtype: np.dtype) -> int | str:
    if dtype.kind == "u":
        return int(np.iinfo(dtype).max)
    return -1 if dtype.kind == "i" else "NaN"
