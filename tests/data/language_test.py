"""Running text: every token predicted once, and batches a function of the step."""

import itertools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.data import language, order
from kdjax.types import UserError

TEXT = "".join(
    f"line {i} says that {i * i} is a square — naïvely\n" for i in range(400)
)


@pytest.fixture(scope="module")
def tokenizer():
    return language.train_tokenizer(TEXT, 300)


def test_a_tokenizer_gives_every_text_back_exactly(tokenizer):
    other = "Ünïcode, tabs\tand  spaces\r\n\n and what it never saw: ⚗\n"
    for text in (TEXT, other):
        tokens = language.encode(tokenizer, text)
        assert tokens.dtype == np.int32
        assert tokenizer.decode(tokens.tolist()) == text
    assert tokenizer.get_vocab_size() == 300
    assert len(language.encode(tokenizer, TEXT)) < len(TEXT.encode()) / 2


def test_the_same_text_makes_the_same_tokenizer(tokenizer, tmp_path):
    again = language.train_tokenizer(TEXT, 300)
    assert again.to_str() == tokenizer.to_str()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    read = language.read_tokenizer(str(tmp_path / "tokenizer.json"))
    np.testing.assert_array_equal(
        language.encode(read, TEXT), language.encode(tokenizer, TEXT)
    )


@pytest.mark.parametrize(("count", "expected"), [(13, 4), (12, 3), (3, 0)])
def test_each_token_is_predicted_once(count, expected):
    found = language.windows(np.arange(count), 3)
    assert found.shape == (expected, 4)
    np.testing.assert_array_equal(found[:, 1:].ravel(), np.arange(1, 3 * expected + 1))
    np.testing.assert_array_equal(found[:, 0], 3 * np.arange(expected))


def test_the_embedded_corpus_is_text_in_three_parts():
    corpus = language.load(language.EMBEDDED)
    sizes = [len(getattr(corpus, split)) for split in language.SPLITS]
    assert sizes[0] > 15 * max(sizes[1:])
    assert min(sizes) > 10_000
    assert "statement" in corpus.train


def test_a_file_and_a_folder_are_corpora(tmp_path):
    (tmp_path / "a.txt").write_text(TEXT, "utf-8")
    corpus = language.load("mine", str(tmp_path / "a.txt"))
    assert corpus.train + corpus.validation + corpus.test == TEXT
    assert all(getattr(corpus, split).endswith("\n") for split in language.SPLITS)
    assert 0.89 < len(corpus.train) / len(TEXT) < 0.91
    folder = tmp_path / "corpus"
    folder.mkdir()
    for split in language.SPLITS:
        (folder / f"{split}.txt").write_text(split + " é\n", "utf-8")
    corpus = language.load("mine", str(folder))
    assert (corpus.validation, corpus.test) == ("validation é\n", "test é\n")


def test_what_is_no_corpus_is_told(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"dataset.path for the corpus 'wikitext2'"):
        language.load("wikitext2")
    with pytest.raises(UserError, match=r"a folder with train.txt.*does not read"):
        language.load("mine", str(tmp_path))
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="all in UTF-8"):
        language.load("mine", str(tmp_path / "binary.txt"))
    with pytest.raises(UserError, match=r"tokenizer.json at .*binary.txt"):
        language.read_tokenizer(str(tmp_path / "binary.txt"))
    with pytest.raises(UserError, match="vocab_size above 256"):
        language.train_tokenizer(TEXT, 256)
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(UserError, match=r"pip install 'kdjax\[text\]'"):
        language.train_tokenizer(TEXT, 300)


WINDOWS = np.arange(23 * 5).reshape(23, 5).astype(np.int32)
EXTRA = np.random.default_rng(0).normal(size=(23, 2)).astype(np.float32)


def _loader(windows=WINDOWS):
    return language.WindowLoader(windows, 4, 3, extras={"extra": EXTRA})


def _batches(loader, start, count):
    inputs = itertools.islice(loader.inputs(start), count)
    return [
        jax.tree.map(np.asarray, loader.batch(x, jnp.asarray(start + i)))
        for i, x in enumerate(inputs)
    ]


def test_batches_are_a_function_of_the_step():
    loader = _loader()
    assert loader.steps_per_epoch == 5
    whole, late = _batches(loader, 0, 12), _batches(loader, 7, 5)
    for a, b in zip(whole[7:], late, strict=True):
        jax.tree.map(np.testing.assert_array_equal, a, b)


def test_a_batch_is_windows_their_next_tokens_and_what_belongs_to_them():
    batches = _batches(_loader(), 0, 10)
    for epoch in (0, 1):
        ids = np.concatenate([x["example_id"] for x in batches[5 * epoch :][:5]])
        np.testing.assert_array_equal(ids, order.permutation(3, epoch, 23)[:20])
    for batch in batches:
        rows = WINDOWS[batch["example_id"]]
        np.testing.assert_array_equal(batch["tokens"], rows[:, :-1])
        np.testing.assert_array_equal(batch["label"], rows[:, 1:])
        np.testing.assert_array_equal(batch["extra"], EXTRA[batch["example_id"]])
        assert batch["mask"].all()


def test_devices_share_a_batch():
    loader = _loader()
    inputs = next(loader.inputs(2))
    step = jnp.asarray(2)
    whole = loader.batch(inputs, step)["example_id"]
    parts = [loader.batch(inputs, step, index=i, count=2) for i in (0, 1)]
    found = jnp.concatenate([part["example_id"] for part in parts])
    np.testing.assert_array_equal(found, whole)
