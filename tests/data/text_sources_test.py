"""Labelled texts from files, and word pieces of them."""

import sys

import pytest

from kdjax.data import text_sources
from kdjax.types import UserError

TRAIN = ["sentence\tlabel", "good film\tpos", "bad film\tneg", "fine\tpos", "dull\tneg"]


def _write(folder, **files):
    for name, lines in files.items():
        (folder / f"{name}.tsv").write_text("\n".join([*lines, ""]), "utf-8")
    return str(folder)


def _read(folder, validation=0.0):
    return text_sources.read("mine", folder, validation=validation)


def test_a_folder_of_tables(tmp_path):
    test = ["id\tlabel\ttext", "1\tneg\tworse"]
    written = _read(_write(tmp_path, train=TRAIN, test=test))
    pairs = {*zip(written.train.texts, written.train.labels, strict=True)}
    assert pairs == {tuple(line.split("\t")) for line in TRAIN[1:]}
    assert written.class_names == ("neg", "pos")
    assert written.test == text_sources.Labelled(("worse",), ("neg",))
    assert written.validation.texts == ()


@pytest.mark.parametrize("validation", [1, 0.25])
def test_validation_is_cut_from_train_where_no_file_holds_it(tmp_path, validation):
    written = _read(_write(tmp_path, train=TRAIN, dev=TRAIN), validation)
    assert len(written.validation.texts) == 1 == 4 - len(written.train.texts)
    both = {*written.train.texts, *written.validation.texts}
    assert both == {"good film", "bad film", "fine", "dull"}
    assert len(written.test.texts) == 4  # Of dev.tsv, as papers on SST-2 do.


def test_a_file_of_validation_is_used(tmp_path):
    files = dict(train=TRAIN, validation=TRAIN[:2], test=TRAIN[:3])
    written = _read(_write(tmp_path, **files), 0.5)
    assert [
        len(x.texts) for x in (written.train, written.validation, written.test)
    ] == [
        4,
        1,
        2,
    ]


def test_at_most_so_many_of_each_class(tmp_path):
    path = _write(tmp_path, train=TRAIN, test=TRAIN)
    written = text_sources.read("mine", path, validation=0, max_examples=2)
    assert set(written.train.texts) == {"good film", "bad film"}
    assert written.test.labels == ("pos", "neg")


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (dict(train=TRAIN), "a folder with validation.tsv or dev.tsv"),
        (dict(test=TRAIN), "a folder with train.tsv"),
        (dict(train=["a\tb", "x\ty"], test=TRAIN), "names its columns"),
        (dict(train=[*TRAIN, "a\tb\tpos"], test=TRAIN), "3 in line 6"),
        (dict(train=TRAIN[:1], test=TRAIN), "Expected a text in"),
        (dict(train=TRAIN, test=[*TRAIN, "so so\tmeh"]), "got meh too"),
    ],
)
def test_what_is_wrong_with_a_file_is_one_sentence(tmp_path, files, words):
    with pytest.raises(UserError, match=words):
        _read(_write(tmp_path, **files))


def test_a_name_without_a_path_is_refused():
    with pytest.raises(UserError, match=r"dataset\.path"):
        _read(None)


def test_the_embedded_set_is_real_and_the_same_each_time():
    one, two = (text_sources.read("docstrings", None, validation=0.1) for _ in range(2))
    assert one == two
    assert one.class_names == ("numpy", "python", "scipy")
    assert len(one.train.texts) > 800
    assert not set(one.train.texts) & set(one.test.texts)
    assert "Compute the qr factorization of a matrix." in (
        one.train.texts + one.validation.texts + one.test.texts
    )


def test_a_corpus_is_lines_or_a_train_split(tmp_path):
    (tmp_path / "corpus.txt").write_text("one line\n\n  another \n")
    found = text_sources.read_corpus(str(tmp_path / "corpus.txt"))
    assert found == ("one line", "another")
    folder = _write(tmp_path, train=TRAIN)
    assert text_sources.read_corpus(folder)[0] == "good film"
    with pytest.raises(UserError, match="does not read"):
        text_sources.read_corpus(str(tmp_path / "nothing.txt"))


def test_words_that_are_frequent_are_pieces_and_others_are_spelled():
    made = text_sources.tokenizer(None, ["a bad film", "a bad day"], 5 + 2 * 8 + 1)
    assert made.encode("A bad film").tokens == [
        "[CLS]",
        "a",
        "bad",
        *("f", "##i", "##l", "##m"),
        "[SEP]",
    ]
    assert made.encode("zoo").tokens == ["[CLS]", "[UNK]", "[SEP]"]


def test_the_vocabulary_is_a_function_of_the_texts(tmp_path):
    texts = ["the same words", "in another order", "the words"]
    digests = {
        text_sources.digest(text_sources.tokenizer(None, some, 40))
        for some in (texts, texts[::-1], texts)
    }
    assert len(digests) == 1
    other = text_sources.tokenizer(None, texts[:2], 40)
    assert text_sources.digest(other) not in digests


def test_a_tokenizer_of_a_file_is_that_one(tmp_path):
    made = text_sources.tokenizer(None, ["a bad film"], 50)
    path = tmp_path / "tokenizer.json"
    made.save(str(path))
    read = text_sources.tokenizer(str(path), [], 6)
    assert text_sources.digest(read) == text_sources.digest(made)
    path.write_text("{}")
    with pytest.raises(UserError, match=r"tokenizer.json at .* does not read"):
        text_sources.tokenizer(str(path), [], 6)


def test_cut_texts_keep_their_last_token():
    made = text_sources.tokenizer(None, ["a b c d e"], 50)
    written = text_sources.Labelled(("a b c d e", "b"), ("x", "y"))
    texts = text_sources.tokenize(made, written, ("x", "y"), 4)
    assert texts.lengths.tolist() == [4, 3]
    assert texts.tokens[0, -1] == texts.tokens[1, 2] == made.token_to_id("[SEP]")
    assert texts.labels.tolist() == [0, 1]


def test_without_the_library_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(UserError, match=r"pip install 'kdjax\[text\]'"):
        text_sources.tokenizer(None, ["a"], 10)
