"""What a cache stores of a teacher's logits, and the error that this makes.

An encoding is a pair of pure functions: `encode` maps logits to the named arrays that
are stored, one entry for each example, and `decode` maps those, as they arrive in a
batch, to logits that a loss takes like the teacher's own.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, ScalarLike

from kdjax.teacher_cache.encoding import Encoding, Entries
from kdjax.teacher_cache.tokens import DrawnTokens, TopTokens
from kdjax.types import Outputs, UserError

LOGITS = "teacher_logits"
TOP_LOGITS = "teacher_top_logits"
TOP_INDICES = "teacher_top_indices"
TAIL = "teacher_tail"
RECORD = "teacher_record"


@dataclasses.dataclass(frozen=True)
class _Dense(Encoding):
    """All logits, in some floating-point type."""

    dtype: ClassVar[np.dtype]

    def arrays(self) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        return {LOGITS: ((self.num_classes,), self.dtype)}

    def encode(self, logits: Float[Array, "*batch classes"]) -> dict[str, jax.Array]:
        return {LOGITS: logits.astype(self.dtype)}

    def decode(
        self, entries: Entries, temperature: ScalarLike = 1.0
    ) -> Float[Array, "*batch classes"]:
        del temperature  # Right at each.
        return jnp.asarray(entries[LOGITS]).astype(jnp.float32)

    def deviations(
        self, entries: Entries, logits: Float[Array, "*batch classes"]
    ) -> dict[str, jax.Array]:
        difference = self.decode(entries) - logits.astype(jnp.float32)
        return {LOGITS: jnp.max(jnp.abs(difference), axis=-1)}


@dataclasses.dataclass(frozen=True)
class Float32(_Dense):
    """Every logit in float32: exact, at any temperature. `4 C` bytes an entry.

    Examples:
      >>> from kdjax import teacher_cache
      >>> teacher_cache.Float32(num_classes=10).bytes_per_entry
      40
    """

    name: ClassVar[str] = "float32"
    error: ClassVar[str] = "none"
    dtype: ClassVar[np.dtype] = np.dtype(np.float32)


@dataclasses.dataclass(frozen=True)
class Float16(_Dense):
    """Every logit in float16, at any temperature. `2 C` bytes an entry.

    The error is that of rounding: a logit z comes back within
    max(2^-11 |z|, 2^-25), which is 0.0078 at |z| = 16. Logits beyond the range of
    float16, 65504, are refused.
    """

    name: ClassVar[str] = "float16"
    error: ClassVar[str] = "each logit z within max(2^-11 |z|, 2^-25)"
    dtype: ClassVar[np.dtype] = np.dtype(np.float16)

    def rounding(self, logits: np.ndarray) -> float:
        return max(2.0**-11 * float(np.max(np.abs(logits), initial=0.0)), 2.0**-25)

    def check_logits(self, logits: np.ndarray) -> None:
        super().check_logits(logits)
        largest = float(np.max(np.abs(logits), initial=0.0))
        limit = float(np.finfo(np.float16).max)
        if largest > limit:
            raise UserError(
                f"Expected logits within {limit:.0f} of zero for cache.encoding="
                f"'float16', got {largest:.6g}: use 'float32' or 'topk'."
            )


@dataclasses.dataclass(frozen=True)
class TopK(Encoding):
    r"""The k largest logits, and the mass of the rest at a few temperatures.

    Of the other :math:`C - k` classes the entry keeps, for each temperature
    :math:`\tau` of a small grid, the log-sum-exp of their :math:`z / \tau`. `decode`
    gives that mass to them in equal parts: with the tail :math:`R` each gets the logit

    .. math:: \tau \left(
        \log \sum_{c \in R} e^{z_c / \tau} - \log (C - k)\right)

    so that at every temperature of the grid the probabilities of the k classes and the
    mass of the tail are those of the teacher, to float32 rounding. What is lost is how
    the tail's mass was divided: the divergence KL(teacher || decoded) is exactly the
    tail's mass times what its own distribution lacks to a uniform one in entropy,
    at most `mass * log(C - k)` nats. With `k = C` nothing is lost. Between the
    temperatures of the grid the nearest one's tail is taken.

    `k` logits in float32, as many indices, and a float32 a temperature: 50 bytes for
    k = 5 and 5 temperatures, whatever C is up to 32768; 60 beyond.

    Attributes:
      k: classes kept, between 1 and `num_classes`.
      temperatures: the grid, positive.

    Raises:
      UserError: if `k` or a temperature is out of its range.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from kdjax import teacher_cache
      >>> encoding = teacher_cache.TopK(4, k=1, temperatures=(1.0, 4.0))
      >>> logits = jnp.log(jnp.array([0.1, 0.7, 0.15, 0.05]))
      >>> decoded = encoding.decode(encoding.encode(logits), temperature=1.0)
      >>> print([f"{p:.3f}" for p in jax.nn.softmax(decoded)])
      ['0.100', '0.700', '0.100', '0.100']
    """

    k: int
    temperatures: tuple[float | int, ...]

    name: ClassVar[str] = "topk"
    error: ClassVar[str] = (
        "at the temperatures listed, the k largest probabilities and the mass of the "
        "rest within float32 rounding; the rest in equal parts"
    )

    def __post_init__(self):
        if not 1 <= self.k <= self.num_classes:
            raise UserError(
                f"Expected between 1 and {self.num_classes} classes to keep for "
                f"cache.encoding='topk', got cache.top_k={self.k}."
            )
        if not self.temperatures or not all(
            0 < x < math.inf for x in self.temperatures
        ):
            raise UserError(
                "Expected at least one positive temperature in cache.temperatures, "
                f"got {self.temperatures}."
            )

    def arrays(self) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        float32 = np.dtype(np.float32)
        return {
            TOP_LOGITS: ((self.k,), float32),
            TOP_INDICES: ((self.k,), self._index_dtype),
            TAIL: ((len(self.temperatures),), float32),
        }

    def encode(self, logits: Float[Array, "*batch classes"]) -> dict[str, jax.Array]:
        logits = logits.astype(jnp.float32)
        top_logits, top_indices = jax.lax.top_k(logits, self.k)
        return {
            TOP_LOGITS: top_logits,
            TOP_INDICES: top_indices.astype(self._index_dtype),
            TAIL: self._tail(logits, top_indices),
        }

    def decode(
        self, entries: Entries, temperature: ScalarLike = 1.0
    ) -> Float[Array, "*batch classes"]:
        top_logits, indices, tail = (
            jnp.asarray(entries[name]) for name in (TOP_LOGITS, TOP_INDICES, TAIL)
        )
        rest = max(
            self.num_classes - self.k, 1
        )  # 1: there is none, all is overwritten.
        grid = jnp.asarray(self.temperatures, jnp.float32)
        nearest = jnp.argmin(jnp.abs(grid - temperature))
        tail_logits = grid[nearest] * (
            jnp.take(tail, nearest, axis=-1) - math.log(rest)
        )
        shape = (*tail_logits.shape, self.num_classes)
        logits = jnp.broadcast_to(tail_logits[..., None], shape)
        return jnp.put_along_axis(
            logits, indices.astype(jnp.int32), top_logits, axis=-1, inplace=False
        )

    def deviations(
        self, entries: Entries, logits: Float[Array, "*batch classes"]
    ) -> dict[str, jax.Array]:
        """Of the kept logits, and of the tail beside the classes that were kept.

        Of the indices: by how much the largest logit left out exceeds the smallest
        kept, zero if none does.
        """
        logits = logits.astype(jnp.float32)
        indices = jnp.asarray(entries[TOP_INDICES]).astype(jnp.int32)
        kept = jnp.take_along_axis(logits, indices, axis=-1)
        left_out = jnp.max(self._without(logits, indices), axis=-1)
        tail = jnp.abs(jnp.asarray(entries[TAIL]) - self._tail(logits, indices))
        if self.k == self.num_classes:  # An empty tail: minus infinity, both times.
            tail = jnp.zeros_like(tail)
        return {
            TOP_LOGITS: jnp.max(jnp.abs(jnp.asarray(entries[TOP_LOGITS]) - kept), -1),
            TOP_INDICES: jnp.maximum(left_out - jnp.min(kept, axis=-1), 0),
            TAIL: jnp.max(tail, axis=-1),
        }

    def rounding(self, logits: np.ndarray) -> float:
        largest = float(np.max(np.abs(logits), initial=0.0)) / min(self.temperatures)
        # A log-sum-exp: some rounding in float32, relative to its largest term.
        return 2.0**-22 * (largest + math.log(self.num_classes) + 1.0)

    def check_temperature(self, temperature: float | int) -> None:
        """Raises `UserError` unless `temperature` is one of the grid."""
        if not any(
            math.isclose(temperature, x, rel_tol=1e-6) for x in self.temperatures
        ):
            grid = ", ".join(f"{x:g}" for x in self.temperatures)
            raise UserError(
                f"Expected a temperature out of cache.temperatures ({grid}), where the "
                f"tail of cache.encoding='topk' is exact, got {temperature:g}: add it "
                "there, or use 'float32' or 'float16'."
            )

    @property
    def _index_dtype(self) -> np.dtype:
        return np.dtype(np.int16 if self.num_classes <= 2**15 else np.int32)

    def _without(self, logits: jax.Array, indices: jax.Array) -> jax.Array:
        nothing = jnp.asarray(-jnp.inf, logits.dtype)
        return jnp.put_along_axis(logits, indices, nothing, axis=-1, inplace=False)

    def _tail(self, logits: jax.Array, indices: jax.Array) -> jax.Array:
        rest = self._without(logits, indices)
        return jnp.stack(
            [jax.nn.logsumexp(rest / t, axis=-1) for t in self.temperatures], axis=-1
        )


@dataclasses.dataclass(frozen=True)
class Record(Encoding):
    """Logits and features, all values of an example in one vector.

    Any loss between features then reads the teacher's from the cache. An entry takes
    4 or 2 bytes a value, with the error of `Float32` or `Float16`.

    Attributes:
      features: the name of each feature that is stored, and its shape in one example.
      dtype: `'float32'` or `'float16'`.

    Examples:
      >>> import jax.numpy as jnp
      >>> from kdjax import teacher_cache
      >>> from kdjax.types import Outputs
      >>> encoding = teacher_cache.Record(10, (("stage3", (8, 8, 64)),), "float16")
      >>> encoding.bytes_per_entry  # Two for each of 10 + 4096 values.
      8212
      >>> outputs = Outputs(jnp.ones((5, 10)), {"stage3": jnp.ones((5, 8, 8, 64))})
      >>> entries = encoding.encode(encoding.flatten(outputs))
      >>> encoding.outputs(entries).features["stage3"].shape
      (5, 8, 8, 64)
    """

    features: tuple[tuple[str, tuple[int, ...]], ...]
    dtype: str

    name: ClassVar[str] = "record"
    error: ClassVar[str] = (
        "in float32 none; in float16 each value z within max(2^-11 |z|, 2^-25)"
    )

    @property
    def width(self) -> int:
        """The number of logits and of all values of the features."""
        return self.num_classes + sum(math.prod(shape) for _, shape in self.features)

    def arrays(self) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        return {RECORD: ((self.width,), np.dtype(self.dtype))}

    def flatten(self, outputs: Outputs) -> Float[Array, "*batch width"]:
        batch = outputs.logits.shape[:-1]
        parts = [outputs.logits, *(outputs.features[name] for name, _ in self.features)]
        flat = [part.astype(jnp.float32).reshape(*batch, -1) for part in parts]
        return jnp.concatenate(flat, axis=-1)

    def encode(self, logits: Float[Array, "*batch width"]) -> dict[str, jax.Array]:
        return {RECORD: logits.astype(self.dtype)}

    def decode(
        self, entries: Entries, temperature: ScalarLike = 1.0
    ) -> Float[Array, "*batch classes"]:
        del temperature  # Right at each.
        record = jnp.asarray(entries[RECORD])
        return record[..., : self.num_classes].astype(jnp.float32)

    def outputs(self, entries: Entries, temperature: ScalarLike = 1.0) -> Outputs:
        record = jnp.asarray(entries[RECORD])
        features, start = {}, self.num_classes
        for name, shape in self.features:
            stop = start + math.prod(shape)
            flat = record[..., start:stop].astype(jnp.float32)
            features[name] = flat.reshape(*record.shape[:-1], *shape)
            start = stop
        return Outputs(self.decode(entries, temperature), features)

    def deviations(
        self, entries: Entries, logits: Float[Array, "*batch width"]
    ) -> dict[str, jax.Array]:
        stored = jnp.asarray(entries[RECORD]).astype(jnp.float32)
        return {RECORD: jnp.max(jnp.abs(stored - logits.astype(jnp.float32)), axis=-1)}

    def rounding(self, logits: np.ndarray) -> float:
        if self.dtype == "float32":
            return 0.0
        return Float16(self.num_classes).rounding(logits)

    def check_logits(self, logits: np.ndarray) -> None:
        largest = float(np.max(np.abs(logits), initial=0.0))
        limit = float(np.finfo(self.dtype).max)
        if not largest <= limit:  # Nor is NaN.
            raise UserError(
                f"Expected logits and features of the teacher within {limit:.6g} of "
                f"zero for cache.encoding={self.dtype!r}, got {largest:.6g}: use "
                "'float32', or look at the teacher's checkpoint."
            )


_BY_NAME: dict[str, type[Encoding]] = {
    x.name: x for x in (Float32, Float16, TopK, Record, DrawnTokens, TopTokens)
}


def from_description(description: Mapping[str, Any]) -> Encoding:
    """The encoding of a description.

    Raises:
      ValueError: if there is no such encoding.
    """
    fields = dict(description)
    name = fields.pop("name", None)
    if name not in _BY_NAME:
        raise ValueError(
            f"Expected an encoding out of {sorted(_BY_NAME)}, got {name!r}."
        )
    if "temperatures" in fields:
        fields["temperatures"] = tuple(fields["temperatures"])
    if "features" in fields:
        fields["features"] = tuple((k, tuple(shape)) for k, shape in fields["features"])
    return _BY_NAME[name](**fields)
