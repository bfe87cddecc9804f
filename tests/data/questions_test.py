"""Questions about images: who is asked what, and what is right."""

import numpy as np
import pytest

from kdjax.data import questions
from kdjax.types import UserError

DIGITS = questions.about_digits()


@pytest.mark.parametrize("split", [DIGITS.train, DIGITS.test])
def test_answers_about_digits_are_right(split):
    labels = {}  # Of the images: what "what is it" is answered with.
    texts = [DIGITS.text(int(question)) for question in split.question_ids]
    rows = list(zip(split.image_ids, texts, split.answers, strict=True))
    names = split.images.class_names
    for image, text, answer in rows:
        if text == "what is it":
            labels[image] = int(names[answer])
    assert len(labels) == len(split.images)
    truth = {
        "what is it": str,
        "is it what": str,
        "is it even": lambda x: "yes" if x in (0, 2, 4, 6, 8) else "no",
        "is it odd": lambda x: "yes" if x in (1, 3, 5, 7, 9) else "no",
        "is it large": lambda x: "yes" if x >= 5 else "no",
        **{f"is it {k}": lambda x, k=k: "yes" if x == k else "no" for k in range(10)},
    }
    for image, text, answer in rows:
        assert truth[text](labels[image]) == names[answer]


def test_each_image_is_asked_its_own_questions_each_once_and_again():
    split = questions._split(
        "few",
        ("a", "b"),
        np.zeros((3, 4, 4, 1), np.uint8),
        np.arange(6),
        np.array([0, 1, 0, 1, 0, 1]),
        np.array([2, 0, 1, 2, 2, 1]),
    )
    asked = split.asked(6)
    assert asked.shape == (6, 3)
    for image, count in enumerate((1, 2, 3)):
        assert (split.image_ids[asked[:, image]] == image).all()
        assert len(set(asked[:count, image])) == count
        np.testing.assert_array_equal(asked[count:, image], asked[:-count, image])
    # The rows of a pair stay together.
    np.testing.assert_array_equal(split.answers, split.question_ids % 2)
    assert sorted(split.question_ids) == list(range(6))


def test_shares_are_those_of_train():
    assert DIGITS.shares.sum() == pytest.approx(1)
    np.testing.assert_allclose(DIGITS.shares[:5], 1 / 8)


def _arrays(**updates):
    arrays = {
        "questions": np.array([[1, 2], [2, 0]], np.uint8),
        "vocabulary": np.array(["red", "what"]),
        "class_names": np.array(["no", "yes"]),
    }
    for split in ("train", "test"):
        arrays[f"{split}_images"] = np.zeros((2, 4, 4, 3), np.uint8)
        arrays[f"{split}_question_ids"] = np.array([1, 0, 1])
        arrays[f"{split}_answers"] = np.array([0, 1, 1])
        arrays[f"{split}_image_ids"] = np.array([1, 0, 1])
    return {k: x for k, x in (arrays | updates).items() if x is not None}


def _load(tmp_path, **updates):
    np.savez(tmp_path / "few.npz", **_arrays(**updates))
    return questions.load("few", str(tmp_path / "few.npz"))


def test_an_archive_of_questions(tmp_path):
    made = _load(tmp_path)
    assert [made.text(i) for i in (0, 1)] == ["red what", "what"]
    assert made.train.image_ids.tolist() == [0, 1, 1]
    assert made.train.answers[0] == 1
    assert made.test.images.num_classes == 2


@pytest.mark.parametrize(
    ("updates", "words"),
    [
        ({"vocabulary": None}, "lacks vocabulary"),
        ({"test_answers": None}, "lacks test_answers"),
        ({"train_answers": np.array([0, 1])}, "of equal length"),
        ({"train_image_ids": np.array([0, 0, 0])}, "a question or more about each"),
        ({"train_image_ids": np.array([0, 1, 2])}, "a question or more about each"),
        ({"train_answers": np.array([0, 1, 2])}, "answers of .* from 0 to 1"),
        ({"test_question_ids": np.array([0, 1, 2])}, "question_ids of .* from 0 to 1"),
        ({"questions": np.array([[1, 3]])}, "tokens of .* from 0 to 2"),
    ],
)
def test_an_archive_that_does_not_fit_together(tmp_path, updates, words):
    with pytest.raises(UserError, match=words):
        _load(tmp_path, **updates)


def test_without_an_archive_there_are_the_digits_alone():
    with pytest.raises(UserError, match=r"Expected dataset\.path"):
        questions.load("easy_vqa", None)
