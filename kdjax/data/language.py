"""Running text for language models: corpora, tokens, and windows of them."""

import dataclasses
import importlib
import itertools
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kdjax.data import order
from kdjax.types import Batch, UserError

SPLITS = ("train", "validation", "test")
EMBEDDED = "python_docs"
"""The reference manual that comes with Python: real text without a download."""

PAGES = "pydoc_data.topics"
_MISSING = (
    "Expected the package tokenizers, which makes tokens of text: "
    "pip install 'kdjax[text]'."
)


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Running text in three splits."""

    train: str
    validation: str
    test: str


def load(name: str, path: str | None = None) -> Corpus:
    """A corpus by name, or from a file.

    Args:
      name: `'python_docs'`, the embedded one; any other needs a path.
      path: a folder with `train.txt`, `validation.txt` and `test.txt` in UTF-8, as
        `benchmarks/fetch_data.py` writes it; or one text file, of which the last
        twentieth is for the test and that before it for validation.

    Raises:
      UserError: if there is no such corpus, or the file does not read.
    """
    if path is None and name == EMBEDDED:
        return _python_docs()
    if path is None:
        raise UserError(
            f"Expected dataset.path for the corpus {name!r}, a folder or a text file, "
            f"got none: fetch one with benchmarks/fetch_data.py, or use {EMBEDDED!r}."
        )
    file = pathlib.Path(path)
    try:
        if file.is_dir():
            return Corpus(*((file / f"{x}.txt").read_text("utf-8") for x in SPLITS))
        return _cut(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"Expected a corpus in {path}, a folder with train.txt, validation.txt and "
            f"test.txt or a text file, all in UTF-8, but it does not read: {error}."
        ) from error


def _python_docs() -> Corpus:
    topics = importlib.import_module(PAGES).topics
    return _cut("\n\n".join(topics[name] for name in sorted(topics)))


def _cut(text: str) -> Corpus:
    """Nine tenths for training, and a twentieth for each other split, at line ends."""
    first, second = (
        text.find("\n", len(text) * share // 20) + 1 or len(text) for share in (18, 19)
    )
    return Corpus(text[:first], text[first:second], text[second:])


def train_tokenizer(text: str, vocab_size: int) -> Any:
    """A byte-level BPE of this text; the text of every token is exact.

    Args:
      text: to learn the merges from.
      vocab_size: of all tokens; 256 of them are the bytes.

    Returns:
      A `tokenizers.Tokenizer`.

    Raises:
      UserError: if `tokenizers` is not there, or the vocabulary has no room.
    """
    tokenizers = _tokenizers()
    if vocab_size <= 256:
        raise UserError(
            f"Expected lm.vocab_size above 256, the bytes that each tokenizer has, got "
            f"{vocab_size}."
        )
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(
        add_prefix_space=False
    )
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size,
        show_progress=False,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(text.splitlines(keepends=True), trainer)
    return tokenizer


def read_tokenizer(path: str) -> Any:
    """The `tokenizers.Tokenizer` in a `tokenizer.json`."""
    tokenizers = _tokenizers()
    try:
        return tokenizers.Tokenizer.from_file(path)
    except Exception as error:  # The library raises nothing more special.
        raise UserError(
            f"Expected a tokenizer.json at {path}, but it does not read: {error}."
        ) from error


def encode(tokenizer: Any, text: str) -> np.ndarray:
    """The tokens of a text, int32; line by line, without special ones."""
    lines = text.splitlines(keepends=True)
    encoded = tokenizer.encode_batch_fast(lines, add_special_tokens=False)
    chained = itertools.chain.from_iterable(line.ids for line in encoded)
    return np.fromiter(chained, np.int32)


def windows(tokens: np.ndarray, length: int) -> np.ndarray:
    """Windows `[N, length + 1]`: the last token of one is the first of the next.

    So each token but the first is predicted once; what does not fill a window is left
    out.

    Examples:
      >>> import numpy as np
      >>> from kdjax.data import language
      >>> language.windows(np.arange(8), 3)
      array([[0, 1, 2, 3],
             [3, 4, 5, 6]])
    """
    starts = np.arange(0, len(tokens) - length, length)
    return tokens[starts[:, None] + np.arange(length + 1)]


class WindowLoader:
    """Batches of windows as a function of the step: a `loaders.Loader`.

    All windows live on the device; the order is that of `kdjax.data.order`.

    Args:
      windows: tokens, `[N, L + 1]`.
      batch_size: over all devices.
      seed: of the order.
      extras: further arrays `[N, ...]` to gather into the batch, by name: a cached
        teacher's entries.
      place: puts host arrays on the devices.
    """

    def __init__(
        self,
        windows: np.ndarray,
        batch_size: int,
        seed: int,
        *,
        extras: Mapping[str, np.ndarray] | None = None,
        place: Callable[[Any], Any] = jax.device_put,
    ):
        self.steps_per_epoch = order.steps_per_epoch(len(windows), batch_size)
        self._windows = windows
        self._batch_size = batch_size
        self._seed = seed
        self._extras = dict(extras or {})
        self._place = place

    def inputs(self, start_step: int) -> Iterator[Mapping[str, Any]]:
        """The same arrays for every step of an epoch; only `order` ever changes."""
        arrays = self._place({"window": self._windows, **self._extras})
        first, position = order.locate(start_step, self.steps_per_epoch)
        for epoch in itertools.count(first):
            ids = order.permutation(self._seed, epoch, len(self._windows))
            ids = self._place(np.asarray(ids))
            for _ in range(position, self.steps_per_epoch):
                yield {**arrays, "order": ids}
            position = 0

    def batch(
        self,
        inputs: Mapping[str, Any],
        step: jax.Array,
        *,
        index: jax.Array | int = 0,
        count: int = 1,
    ) -> Batch:
        """`tokens` and `label`, the next ones, `[B, L]`, `example_id` and extras."""
        _, position = order.locate(step, self.steps_per_epoch)
        size = self._batch_size // count
        start = position * self._batch_size + index * size
        ids = jax.lax.dynamic_slice_in_dim(inputs["order"], start, size)
        rows = inputs["window"][ids]
        extras = {name: inputs[name][ids] for name in self._extras}
        batch = {"tokens": rows[:, :-1], "label": rows[:, 1:], "example_id": ids}
        return {**batch, "mask": jnp.ones(ids.shape, bool), **extras}


def _tokenizers() -> Any:
    try:
        tokenizers = importlib.import_module("tokenizers")
    except ImportError as error:
        raise UserError(_MISSING) from error
    return tokenizers
