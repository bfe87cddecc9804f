"""What a cache stores of a language model: some classes of each token of a text.

The logits of a text are `length * num_classes` values, and never given to a cache;
what it stores is computed on the device, see `flatten`.
"""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, ScalarLike

from kdjax import losses
from kdjax.teacher_cache.encoding import Encoding, Entries
from kdjax.types import UserError

DRAWS = "teacher_draws"
TOP_LOGITS = "teacher_top_logits"
TOP_INDICES = "teacher_top_indices"
TAIL = "teacher_tail"

MAX_CLASSES = 2**17
MAX_DRAWS = 2**7 - 1


@dataclasses.dataclass(frozen=True)
class DrawnTokens(Encoding):
    """Classes drawn from the teacher, for each token; 3 bytes a different class.

    17 bits of the class and 7 of its count, which is exact. What the cache is given of
    a text is `[length * num_draws]`, these 24 bits as one float32 each.

    Attributes:
      num_classes: the size of the vocabulary, at most 131072.
      length: tokens of a text.
      num_draws: for each token, at most 127; an entry has room for as many classes.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from kdjax import losses, teacher_cache
      >>> encoding = teacher_cache.DrawnTokens(1000, length=4, num_draws=8)
      >>> ids, counts = losses.sample_sparse_targets(
      ...     jnp.zeros((1, 4, 1000)), jax.random.key(0), num_draws=8)
      >>> entries = encoding.encode(encoding.words(ids, counts))
      >>> back, _ = losses.unpack_sparse_targets(entries["teacher_draws"])
      >>> bool((back == ids).all()), entries["teacher_draws"].dtype
      (True, dtype('uint8'))
    """

    length: int
    num_draws: int

    name: ClassVar[str] = "drawn_tokens"
    error: ClassVar[str] = "none, of the draws"

    def __post_init__(self):
        if self.num_classes > MAX_CLASSES or not 1 <= self.num_draws <= MAX_DRAWS:
            raise UserError(
                f"Expected at most {MAX_CLASSES} tokens in the vocabulary and from 1 "
                f"to {MAX_DRAWS} draws (lm.draws), for 3 bytes each, got "
                f"{self.num_classes} and {self.num_draws}."
            )

    @property
    def width(self) -> int:
        return self.length * self.num_draws

    def arrays(self) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        return {DRAWS: ((self.length, self.num_draws, 3), np.dtype(np.uint8))}

    def draw(self, logits: jax.Array, rng: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Classes and counts `[..., num_draws]`, of logits over the temperature."""
        return losses.sample_sparse_targets(logits, rng, num_draws=self.num_draws)

    def words(self, target_ids: jax.Array, target_counts: jax.Array) -> jax.Array:
        """What `encode` takes, of draws `[..., length, num_draws]`."""
        packed = losses.pack_sparse_targets(target_ids, target_counts)
        low, middle, high = jnp.moveaxis(packed.astype(jnp.float32), -1, 0)
        words = low + 2.0**8 * middle + 2.0**16 * high  # Below 2^24: exact.
        return words.reshape(*words.shape[:-2], self.width)

    def encode(self, logits: Float[Array, "*batch width"]) -> dict[str, jax.Array]:
        words = logits.reshape(*logits.shape[:-1], self.length, self.num_draws)
        words = words.astype(jnp.int32)
        parts = [((words >> n) & 255).astype(jnp.uint8) for n in (0, 8, 16)]
        return {DRAWS: jnp.stack(parts, axis=-1)}

    def decode(
        self, entries: Entries, temperature: ScalarLike = 1.0
    ) -> Float[Array, "*batch length classes"]:
        """Logs of the frequencies, at the temperature of the draws."""
        del temperature
        ids, counts = losses.unpack_sparse_targets(jnp.asarray(entries[DRAWS]))
        rows = jax.vmap(lambda i, n: jnp.zeros(self.num_classes).at[i].add(n))
        flat = rows(
            ids.reshape(-1, self.num_draws),
            counts.reshape(-1, self.num_draws).astype(jnp.float32),
        )
        return jnp.log(flat.reshape(*ids.shape[:-1], -1) / self.num_draws)

    def deviations(
        self, entries: Entries, logits: Float[Array, "*batch width"]
    ) -> dict[str, jax.Array]:
        """The share of the classes that are not the same, or not as often."""
        stored = jnp.asarray(entries[DRAWS])
        different = jnp.any(stored != self.encode(logits)[DRAWS], axis=-1)
        return {DRAWS: jnp.mean(different.astype(jnp.float32), axis=(-2, -1))}


@dataclasses.dataclass(frozen=True)
class TopTokens(Encoding):
    """The largest logits of each token, and the log-sum-exp of all others.

    The logits in float16, relative to the log-sum-exp of all, so that they are
    log-probabilities, within 2^-11 of their size; the tail in float32. A class takes 4
    bytes, beyond 65536 classes 6, and a token 4 more.

    Attributes:
      num_classes: the size of the vocabulary.
      length: tokens of a text.
      k: classes kept of each token.

    Examples:
      >>> from kdjax import teacher_cache
      >>> teacher_cache.TopTokens(49152, length=1, k=12).bytes_per_entry
      52
    """

    length: int
    k: int

    name: ClassVar[str] = "top_tokens"
    error: ClassVar[str] = "each log-probability z within 2^-11 |z|"

    def __post_init__(self):
        if not 1 <= self.k <= self.num_classes:
            raise UserError(
                f"Expected lm.top_k from 1 to the {self.num_classes} tokens of the "
                f"vocabulary, got {self.k}."
            )

    @property
    def width(self) -> int:
        return self.length * (2 * self.k + 1)

    def arrays(self) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        index = np.dtype(np.uint16 if self.num_classes <= 2**16 else np.uint32)
        return {
            TOP_LOGITS: ((self.length, self.k), np.dtype(np.float16)),
            TOP_INDICES: ((self.length, self.k), index),
            TAIL: ((self.length,), np.dtype(np.float32)),
        }

    def values(self, logits: jax.Array) -> jax.Array:
        """What `encode` takes, of logits `[..., length, num_classes]`.

        They are divided by the temperature already.
        """
        log_probs = jax.nn.log_softmax(logits)
        top, indices = jax.lax.top_k(log_probs, self.k)
        rest = jnp.put_along_axis(log_probs, indices, -jnp.inf, axis=-1, inplace=False)
        tail = jax.nn.logsumexp(rest, axis=-1, keepdims=True)
        tail = jnp.maximum(tail, jnp.finfo(jnp.float32).min)  # A cache is finite.
        both = jnp.concatenate([top, indices.astype(jnp.float32), tail], axis=-1)
        return both.reshape(*both.shape[:-2], self.width)

    def encode(self, logits: Float[Array, "*batch width"]) -> dict[str, jax.Array]:
        values = logits.reshape(*logits.shape[:-1], self.length, 2 * self.k + 1)
        parts = values[..., : self.k], values[..., self.k : -1], values[..., -1]
        arrays = zip(self.arrays().items(), parts, strict=True)
        return {name: part.astype(dtype) for (name, (_, dtype)), part in arrays}

    def decode(
        self, entries: Entries, temperature: ScalarLike = 1.0
    ) -> Float[Array, "*batch length classes"]:
        """Log-probabilities at the temperature stored; the tail in equal parts."""
        del temperature
        top, indices, tail = (
            jnp.asarray(entries[name]) for name in (TOP_LOGITS, TOP_INDICES, TAIL)
        )
        rest = max(self.num_classes - self.k, 1)
        logits = jnp.broadcast_to(
            (tail - jnp.log(float(rest)))[..., None], (*tail.shape, self.num_classes)
        )
        return jnp.put_along_axis(
            logits,
            indices.astype(jnp.int32),
            top.astype(jnp.float32),
            axis=-1,
            inplace=False,
        )

    def deviations(
        self, entries: Entries, logits: Float[Array, "*batch width"]
    ) -> dict[str, jax.Array]:
        """Of the sorted log-probabilities and of the tail; of the indices, a share."""
        fresh = self.encode(logits)
        return {
            name: jnp.max(self._gap(name, entries[name], x), axis=-1)
            for name, x in fresh.items()
        }

    def rounding(self, logits: np.ndarray) -> float:
        rows = logits.reshape(-1, 2 * self.k + 1)
        return 2.0**-11 * float(np.max(np.abs(rows[:, : self.k]), initial=0.0))

    def _gap(self, name: str, stored: Any, fresh: jax.Array) -> jax.Array:
        stored = jnp.asarray(stored)
        if name == TOP_INDICES:
            return jnp.mean((stored != fresh).astype(jnp.float32), axis=-1)
        gap = jnp.abs(stored.astype(jnp.float32) - fresh.astype(jnp.float32))
        return gap if name == TAIL else jnp.max(gap, axis=-1)
