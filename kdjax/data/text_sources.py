"""Labelled texts, and the tokenizers that cut them into word pieces."""

import collections
import dataclasses
import hashlib
import importlib
import inspect
import pathlib
import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from kdjax.data.text import Texts, from_rows
from kdjax.types import UserError

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")

# The embedded set: whose functions a sentence of documentation describes.
DOCUMENTED = {
    "numpy": ("numpy", "numpy.linalg", "numpy.fft", "numpy.random"),
    "scipy": ("scipy.special", "scipy.linalg", "scipy.ndimage", "scipy.signal"),
    "python": ("os", "shutil", "pathlib", "datetime", "subprocess", "logging", "re"),
}

# Files of a folder, the first that is there; papers on SST-2 report on its validation.
_TRAIN, _VALIDATION = ("train.tsv",), ("validation.tsv", "dev.tsv")
_TEXT_COLUMNS, _LABEL_COLUMNS = ("sentence", "text"), ("label",)


@dataclasses.dataclass(frozen=True)
class Labelled:
    """Texts as they were written, with the names of their classes."""

    texts: tuple[str, ...]
    labels: tuple[str, ...]

    def subset(self, ids: Iterable[int]) -> "Labelled":
        """Some of them."""
        ids = list(ids)
        return Labelled(*(tuple(x[i] for i in ids) for x in (self.texts, self.labels)))


@dataclasses.dataclass(frozen=True)
class Written:
    """A data set before it is cut into word pieces; validation may be empty."""

    train: Labelled
    validation: Labelled
    test: Labelled

    @property
    def class_names(self) -> tuple[str, ...]:
        """All labels of the train split, sorted."""
        return tuple(sorted(set(self.train.labels)))


def read(
    name: str, path: str | None, *, validation: float | int, max_examples: int = 0
) -> Written:
    """A data set of texts: the embedded one, or a folder of tab-separated files.

    Args:
      name: `'docstrings'` is the embedded set.
      path: of a folder with `train.tsv`, `test.tsv` and perhaps `validation.tsv`, each
        with a header that names the columns `sentence` (or `text`) and `label`.
        Without `test.tsv`, `validation.tsv` (or `dev.tsv`) is the test split.
      validation: cut from the end of the shuffled train split, where there is no
        `validation.tsv`: a count, or a fraction below 1.
      max_examples: of the train split, before validation is cut from it, and of the
        test split; of each class the first, and as many of each. 0: all.

    Raises:
      UserError: if there is no such set, or a file does not read.
    """
    if path is not None:
        train, held_out, test = _folder(pathlib.Path(path))
    elif name == "docstrings":
        train, held_out, test = _docstrings()
    else:
        raise UserError(
            "Expected dataset.name='docstrings' (the embedded texts) or dataset.path "
            f"of a folder with train.tsv and test.tsv, got {name!r} without a path."
        )
    if max_examples:
        train, test = _at_most(max_examples, train), _at_most(max_examples, test)
    if held_out is None:
        count = round(validation if validation >= 1 else validation * len(train.texts))
        if not 0 <= count < len(train.texts):
            raise UserError(
                f"Expected dataset.validation below the {len(train.texts)} texts of "
                f"the train split, got {validation}."
            )
        mixed = np.random.default_rng(0).permutation(len(train.texts)).tolist()
        last = len(mixed) - count
        train, held_out = train.subset(mixed[:last]), train.subset(mixed[last:])
    written = Written(train, held_out, test)
    unknown = {*held_out.labels, *test.labels} - set(written.class_names)
    if unknown:
        raise UserError(
            f"Expected the labels {', '.join(written.class_names)} of the train split "
            f"in the others, got {', '.join(sorted(unknown))} too."
        )
    return written


def _at_most(count: int, split: Labelled) -> Labelled:
    share = max(count // len(set(split.labels)), 1)
    seen = collections.Counter[str]()
    kept = []
    for i, label in enumerate(split.labels):
        seen[label] += 1
        if seen[label] <= share:
            kept.append(i)
    return split.subset(kept)


def read_corpus(path: str) -> tuple[str, ...]:
    """Unlabelled texts: the lines of a `.txt`, or the train split of a folder.

    Raises:
      UserError: if there is nothing, or it does not read.
    """
    place = pathlib.Path(path)
    if place.is_dir():
        return _table(_first(place, _TRAIN)).texts
    lines = [line.strip() for line in _lines(place)]
    return tuple(line for line in lines if line)


def _folder(folder: pathlib.Path) -> tuple[Labelled, Labelled | None, Labelled]:
    train = _table(_first(folder, _TRAIN))
    test, held_out = folder / "test.tsv", None
    if not test.exists():
        test = _first(folder, _VALIDATION)
    elif any((folder / name).exists() for name in _VALIDATION):
        held_out = _table(_first(folder, _VALIDATION))
    return train, held_out, _table(test)


def _first(folder: pathlib.Path, names: Sequence[str]) -> pathlib.Path:
    for name in names:
        if (folder / name).exists():
            return folder / name
    raise UserError(
        f"Expected a folder with {' or '.join(names)}, got {folder}: fetch one by "
        "python benchmarks/fetch_data.py rotten_tomatoes, or write your own, with a "
        "header line 'sentence<TAB>label'."
    )


def _table(path: pathlib.Path) -> Labelled:
    header, *lines = _lines(path) or [""]
    columns = header.split("\t")
    places = [
        next((columns.index(x) for x in names if x in columns), None)
        for names in (_TEXT_COLUMNS, _LABEL_COLUMNS)
    ]
    if None in places:
        raise UserError(
            f"Expected {path} to begin with a line that names its columns, among them "
            f"'sentence' and 'label', separated by tabs, got {header[:60]!r}."
        )
    rows = [line.split("\t") for line in lines if line.strip()]
    for number, row in enumerate(rows, start=2):
        if len(row) != len(columns):
            raise UserError(
                f"Expected {len(columns)} columns in each line of {path}, got "
                f"{len(row)} in line {number}: replace tabs inside of texts."
            )
    texts, labels = (tuple(row[place or 0] for row in rows) for place in places)
    if not rows:
        raise UserError(f"Expected a text in {path}, got none.")
    return Labelled(texts, labels)


def _lines(path: pathlib.Path) -> list[str]:
    try:
        return path.read_text("utf-8").rstrip("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"Expected texts in UTF-8 at {path}, but it does not read ({error})."
        ) from error


def _docstrings() -> tuple[Labelled, None, Labelled]:
    """Sentences of the documentation that is installed, every fifth for the test."""
    found: dict[str, set[str]] = {}
    for label, modules in DOCUMENTED.items():
        for module in map(importlib.import_module, modules):
            for name in sorted(vars(module)):
                for sentence in _sentences(getattr(module, name)):
                    found.setdefault(sentence, set()).add(label)
    # Not those of two classes: SciPy has functions of NumPy.
    pairs = [(x, *labels) for x, labels in found.items() if len(labels) == 1]
    test = set(range(0, len(pairs), 5))
    everything = Labelled(*zip(*pairs, strict=True))
    train = everything.subset(i for i in range(len(pairs)) if i not in test)
    return train, None, everything.subset(sorted(test))


def _sentences(thing: Any) -> list[str]:
    """The first sentences that document a function or a class, if of four words."""
    if not (inspect.isroutine(thing) or inspect.isclass(thing)):
        return []
    paragraphs = (inspect.getdoc(thing) or "").split("\n\n")[:2]
    paragraphs = [x for x in paragraphs if "---" not in x]  # None with its heading.
    sentences = [re.split(r"(?<=\.)\s", " ".join(x.split()))[0] for x in paragraphs]
    return [x for x in sentences if x.endswith(".") and 4 <= len(x.split()) <= 60]


def tokenizer(path: str | None, texts: Sequence[str], vocabulary_size: int) -> Any:
    """A WordPiece tokenizer: that of a file, or one made of these texts.

    Args:
      path: of a `tokenizer.json`, or None.
      texts: to make one of, in lower case.
      vocabulary_size: the most word pieces of it.

    Raises:
      UserError: if the package `tokenizers` is missing, or the file does not read.
    """
    library = _library()
    if path is None:
        return _made_of(library, texts, vocabulary_size)
    try:
        made = library.Tokenizer.from_file(str(path))
    except Exception as error:  # The library raises nothing more special.
        raise UserError(
            f"Expected a tokenizer.json at {path}, but it does not read ({error})."
        ) from error
    made.no_padding()
    return made


def _made_of(library: Any, texts: Sequence[str], vocabulary_size: int) -> Any:
    """All characters and the most frequent words; the library's trainer draws lots."""
    normalizer = library.normalizers.BertNormalizer(lowercase=True)
    splitter = library.pre_tokenizers.BertPreTokenizer()
    counts = collections.Counter(
        word
        for text in texts
        for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text))
    )
    letters = sorted({letter for word in counts for letter in word})
    by_count = sorted(counts, key=lambda word: (-counts[word], word))
    pieces = [*SPECIAL, *letters, *(f"##{x}" for x in letters), *by_count]
    pieces = list(dict.fromkeys(pieces))[:vocabulary_size]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    made = library.Tokenizer(library.models.WordPiece(vocabulary, unk_token="[UNK]"))
    made.normalizer, made.pre_tokenizer = normalizer, splitter
    made.post_processor = library.processors.BertProcessing(
        ("[SEP]", vocabulary["[SEP]"]), ("[CLS]", vocabulary["[CLS]"])
    )
    return made


def _library() -> Any:
    try:
        import tokenizers
    except ImportError as error:
        raise UserError(
            "Expected the package tokenizers, which cuts texts into word pieces, but "
            "it is not installed: pip install 'kdjax[text]'."
        ) from error
    return tokenizers


def tokenize(
    made: Any, written: Labelled, class_names: Sequence[str], longest: int
) -> Texts:
    """Texts as tokens, the last of which is the tokenizer's own, even if cut."""
    made.enable_truncation(longest)
    rows = [encoding.ids for encoding in made.encode_batch(list(written.texts))]
    labels = [class_names.index(label) for label in written.labels]
    return from_rows(rows, np.asarray(labels, np.int32), class_names)


def digest(made: Any) -> str:
    """Of the vocabulary, by which tokens are what they are."""
    vocabulary = sorted(made.get_vocab().items())
    return hashlib.sha256(repr(vocabulary).encode()).hexdigest()
