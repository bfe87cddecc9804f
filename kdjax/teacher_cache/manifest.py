"""What a cache holds and was made from, and how it is cut into shards."""

import dataclasses
import importlib.metadata
import json
from collections.abc import Iterator, Mapping
from typing import Any

import jax

from kdjax.teacher_cache.encoding import Encoding
from kdjax.teacher_cache.encodings import from_description
from kdjax.types import UserError

FORMAT = 1


@dataclasses.dataclass(frozen=True)
class Shard:
    """The unit of work: consecutive examples in one view.

    Attributes:
      index: its place in the order of all shards.
      view: the view of the examples.
      block: its place among the shards of that view.
      start: the first example id.
      stop: the id after the last.
    """

    index: int
    view: int
    block: int
    start: int
    stop: int

    def __str__(self) -> str:
        return f"view {self.view}, ids {self.start} to {self.stop - 1}"

    @property
    def size(self) -> int:
        """The number of examples."""
        return self.stop - self.start


def environment() -> dict[str, Any]:
    """Versions and backend: noted in a manifest, and no reason to refuse a cache."""
    return {
        "kdjax": importlib.metadata.version("kdjax"),
        "jax": jax.__version__,
        "backend": jax.default_backend(),
        "device": jax.devices()[0].device_kind,
    }


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What a cache holds, and what it was made from.

    Attributes:
      num_examples: N, of the data set.
      num_views: V; example i at epoch e is seen in view e modulo V.
      encoding: how logits are stored.
      shard_size: examples of a shard. A layout, not part of what the cache is: one
        that exists keeps its own.
      teacher_fingerprint: of the teacher's variables, `fingerprint_tree`.
      dataset_fingerprint: of the examples.
      augmentation: what the views are made by; JSON-able.
      preprocessing: what the teacher does to pixels, and which function it is;
        JSON-able.
      seed: of the views.
      environment: versions and backend; JSON-able, not compared.
    """

    num_examples: int
    num_views: int
    encoding: Encoding
    shard_size: int
    teacher_fingerprint: str
    dataset_fingerprint: str
    augmentation: Mapping[str, Any]
    preprocessing: Mapping[str, Any]
    seed: int
    environment: Mapping[str, Any] = dataclasses.field(default_factory=environment)

    def __post_init__(self):
        for name in ("num_examples", "num_views", "shard_size"):
            if getattr(self, name) < 1:
                raise UserError(f"Expected {name} > 0, got {getattr(self, name)}.")

    @property
    def num_blocks(self) -> int:
        """The number of shards of one view."""
        return -(-self.num_examples // self.shard_size)

    @property
    def nbytes(self) -> int:
        """The size of all entries before compression."""
        return self.num_views * self.num_examples * self.encoding.bytes_per_entry

    def shards(self) -> Iterator[Shard]:
        """All shards, in order."""
        for index in range(self.num_views * self.num_blocks):
            yield self.shard(*divmod(index, self.num_blocks))

    def shard(self, view: int, block: int) -> Shard:
        """One shard by its place."""
        start = block * self.shard_size
        stop = min(start + self.shard_size, self.num_examples)
        return Shard(view * self.num_blocks + block, view, block, start, stop)

    def identity(self) -> dict[str, Any]:
        """All that must be equal for two caches to hold the same, as JSON gives it."""
        fields = {
            "format": FORMAT,
            "num_examples": self.num_examples,
            "num_views": self.num_views,
            "encoding": self.encoding.description(),
            "teacher_fingerprint": self.teacher_fingerprint,
            "dataset_fingerprint": self.dataset_fingerprint,
            "augmentation": dict(self.augmentation),
            "preprocessing": dict(self.preprocessing),
            "seed": self.seed,
        }
        return json.loads(json.dumps(fields))

    def differences(self, found: "Manifest") -> list[str]:
        """Which fields of the identity differ, and how; empty if none does."""
        return list(_differences(self.identity(), found.identity()))

    def notes(self, found: "Manifest") -> list[str]:
        """How the environment of `found` differs, as far as this one names it."""
        found_environment = {
            name: found.environment.get(name) for name in self.environment
        }
        return list(_differences(dict(self.environment), found_environment))

    def to_json(self) -> str:
        """The content of `manifest.json`."""
        layout = {"shard_size": self.shard_size, "environment": dict(self.environment)}
        error = {"encoding_error": self.encoding.error}
        return json.dumps(self.identity() | layout | error, indent=2, sort_keys=True)


def from_json(text: str | bytes) -> Manifest:
    """The manifest that `Manifest.to_json` wrote.

    Raises:
      ValueError: if it is none, or of a format that this version does not read.
    """
    fields = json.loads(text)
    if not isinstance(fields, dict):
        raise ValueError(f"Expected an object, got {type(fields).__name__}.")
    found = fields.pop("format", None)
    if found != FORMAT:
        raise ValueError(f"Expected format {FORMAT}, got {found!r}.")
    fields.pop("encoding_error", None)
    try:
        fields["encoding"] = from_description(fields["encoding"])
        return Manifest(**fields)
    except (KeyError, TypeError, AttributeError, UserError) as error:
        raise ValueError(f"Expected the fields of a manifest: {error}.") from error


_ABSENT = "nothing"


def _differences(expected: Any, found: Any, path: str = "") -> Iterator[str]:
    if isinstance(expected, dict) and isinstance(found, dict):
        for key in sorted(expected.keys() | found.keys()):
            name = f"{path}.{key}" if path else key
            yield from _differences(
                expected.get(key, _ABSENT), found.get(key, _ABSENT), name
            )
    elif expected != found:
        yield f"{path} (expected {_short(expected)}, found {_short(found)})"


def _short(value: Any) -> str:
    text = value if value is _ABSENT else repr(value)
    return text if len(text) <= 48 else text[:20] + "..." + text[-8:]
