"""Texts as rows of tokens, in batches of a few lengths, a compiled program for each.

A text's bucket is the shortest of the given lengths that holds it; a longer text is
cut. A batch is of one length. Which texts are together, and in which order the batches
come, is a pure function of the seed and the epoch, so the step number is the whole
state of the data.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kdjax import fingerprints
from kdjax.data import order
from kdjax.data.loaders import Inputs
from kdjax.types import Batch, Variables


@dataclasses.dataclass(frozen=True)
class Texts:
    """Tokenised texts with labels.

    Attributes:
      tokens: int32 `[N, longest]`, the rest of a row zeros.
      lengths: how many of a row are tokens, `[N]`.
      labels: int32 `[N]`; zeros, if nobody labelled them.
      class_names: of the labels.
    """

    tokens: np.ndarray
    lengths: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, ids: np.ndarray) -> "Texts":
        """Some of the texts, in the order of `ids`."""
        return Texts(
            self.tokens[ids], self.lengths[ids], self.labels[ids], self.class_names
        )

    def rows(self, ids: np.ndarray, length: int) -> dict[str, np.ndarray]:
        """The texts of these ids, cut or padded to a length.

        Returns:
          `tokens`, `token_mask`, both `[B, length]`, and `label`.
        """
        tokens = self.tokens[ids, :length]
        tokens = np.pad(tokens, [(0, 0), (0, length - tokens.shape[1])])
        mask = np.arange(length) < self.lengths[ids, None]
        return {"tokens": tokens, "token_mask": mask, "label": self.labels[ids]}

    def fingerprint(self) -> str:
        """A digest of tokens and labels."""
        return fingerprints.fingerprint_tree((self.tokens, self.lengths, self.labels))


def from_rows(
    rows: Sequence[Sequence[int]], labels: np.ndarray, class_names: Sequence[str]
) -> Texts:
    """Texts of lists of tokens."""
    lengths = np.asarray([len(row) for row in rows], np.int32)
    tokens = np.zeros((len(rows), max(lengths, default=1)), np.int32)
    for row, length, target in zip(rows, lengths, tokens, strict=True):
        target[:length] = row
    return Texts(tokens, lengths, np.asarray(labels, np.int32), tuple(class_names))


def plan(
    texts_lengths: np.ndarray,
    lengths: Sequence[int],
    batch_size: int,
    *,
    seed: int,
    epoch: int,
) -> list[tuple[int, np.ndarray]]:
    """The batches of an epoch, each with its length, in their order.

    What is left of a bucket after its whole batches goes into the next longer one, so
    that of all texts less than a batch is left out, of the longest ones, others in
    every epoch. The number of batches of each length is the same in all epochs.

    Args:
      texts_lengths: of each text, in tokens, `[N]`.
      lengths: of the buckets, rising.
      batch_size: texts in a batch.
      seed: of the order.
      epoch: counted from 0.

    Returns:
      Pairs of a length and the ids `[batch_size]` of a batch.

    Examples:
      >>> import numpy as np
      >>> from kdjax.data import text
      >>> batches = text.plan(np.array([2, 9, 3, 2, 9]), (4, 9), 2, seed=0, epoch=0)
      >>> sorted(length for length, _ in batches)
      [4, 9]
    """
    ids = _host(order.permutation, seed, epoch, len(texts_lengths))
    buckets = np.searchsorted(lengths[:-1], texts_lengths[ids])
    batches, rest = [], ids[:0]
    for bucket, length in enumerate(lengths):
        rest = np.concatenate([rest, ids[buckets == bucket]])
        whole = len(rest) // batch_size * batch_size
        batches += [(length, x) for x in rest[:whole].reshape(-1, batch_size)]
        rest = rest[whole:]
    return [batches[i] for i in _host(_batch_order, seed, epoch, len(batches))]


def _batch_order(seed: int, epoch: int, num_batches: int) -> jax.Array:
    key = jax.random.fold_in(order.purpose_key(seed, order.Purpose.ORDER), epoch)
    key = jax.random.fold_in(key, 1)  # Another than that of the texts.
    return jax.random.permutation(key, num_batches)


class TextLoader:
    """Batches of texts, each of one of a few lengths, gathered on the host.

    Args:
      texts: the examples.
      lengths: of the buckets, rising; longer texts are cut.
      batch_size: over all devices.
      seed: of the order.
      extras: further arrays `[N, ...]` to gather into the batch, by name: a teacher's
        logits.
      place: puts this process's rows of a batch on the devices.
      process_index: of this process, which gathers its contiguous share of the batch.
      process_count: of all that train together.
    """

    def __init__(
        self,
        texts: Texts,
        lengths: Sequence[int],
        batch_size: int,
        seed: int,
        *,
        extras: Mapping[str, np.ndarray] | None = None,
        place: Callable[[Any], Any] = jax.device_put,
        process_index: int = 0,
        process_count: int = 1,
    ):
        self.steps_per_epoch = order.steps_per_epoch(len(texts), batch_size)
        self._texts = texts
        self._extras = dict(extras or {})
        self._place = place
        size = batch_size // process_count
        self._share = slice(process_index * size, (process_index + 1) * size)
        self._plan = functools.partial(
            plan, texts.lengths, tuple(lengths), batch_size, seed=seed
        )

    def inputs(self, start_step: int) -> Iterator[Inputs]:
        """The rows of each step; their shapes are those of its bucket."""
        first, position = order.locate(start_step, self.steps_per_epoch)
        for epoch in itertools.count(first):
            for length, whole in self._plan(epoch=epoch)[position:]:
                ids = whole[self._share]
                rows = self._texts.rows(ids, length)
                extras = {name: x[ids] for name, x in self._extras.items()}
                yield self._place({**rows, **extras, "example_id": ids})
            position = 0

    def batch(
        self,
        inputs: Inputs,
        step: jax.Array,
        *,
        index: jax.Array | int = 0,
        count: int = 1,
    ) -> Batch:
        """The inputs are this device's share of the batch, and all valid."""
        del step, index, count
        return {**inputs, "mask": jnp.ones(len(inputs["label"]), bool)}


def predict(
    program: Callable[[Variables, Any], np.ndarray],
    variables: Variables,
    texts: Texts,
    lengths: Sequence[int],
    batch_size: int,
) -> np.ndarray:
    """Logits `[N, num_classes]` of all texts, in their order.

    Args:
      program: from variables and a model's inputs to logits.
      variables: of the model.
      texts: the examples.
      lengths: of the buckets, rising.
      batch_size: of inference; the last batch of a bucket is filled up.
    """
    buckets = np.searchsorted(lengths[:-1], texts.lengths)
    found: dict[int, np.ndarray] = {}
    for bucket, length in enumerate(lengths):
        ids = np.flatnonzero(buckets == bucket)
        for start in range(0, len(ids), batch_size):
            some = ids[start : start + batch_size]
            rows = texts.rows(np.resize(some, batch_size), length)
            logits = program(variables, inputs_of(rows))
            found |= dict(zip(some.tolist(), logits[: len(some)], strict=True))
    return np.stack([found[i] for i in range(len(texts))])


def inputs_of(batch: Mapping[str, Any]) -> dict[str, Any]:
    """What a model of texts is given of a batch."""
    return {"tokens": batch["tokens"], "mask": batch["token_mask"]}


def _host(fn: Callable[..., jax.Array], *args: Any) -> np.ndarray:
    """Runs `fn` on the CPU: on an accelerator it would wait behind queued steps."""
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        return np.asarray(fn(*args))
