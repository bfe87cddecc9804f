"""Questions about images: each image has several, each with one answer.

A question is a row of tokens, of which 0 is padding. Examples are images: epoch e asks
each image its question e, and begins anew after its last, so that a question is what a
view is elsewhere.
"""

import dataclasses
import pathlib

import numpy as np
from jaxtyping import Int

from kdjax.data import _files
from kdjax.data._source import ArraySource
from kdjax.types import UserError


@dataclasses.dataclass(frozen=True)
class QuestionSplit:
    """Images, and what is asked about them.

    Attributes:
      images: the label of one is the answer to its first question.
      question_ids: the text of each pair of image and question, `[pairs]`.
      answers: of each pair, `[pairs]`.
      image_ids: of each pair, ascending, `[pairs]`.
    """

    images: ArraySource
    question_ids: np.ndarray
    answers: np.ndarray
    image_ids: np.ndarray

    def asked(self, num_views: int) -> Int[np.ndarray, "views images"]:
        """Which pair each image is asked in each view."""
        count = np.bincount(self.image_ids, minlength=len(self.images))
        first = np.cumsum(count) - count
        return first + np.arange(num_views)[:, None] % count


@dataclasses.dataclass(frozen=True)
class VisualQuestions:
    """A set for visual question answering.

    Attributes:
      train: what models are fitted to.
      test: what they are judged by.
      questions: the tokens of each text, 0 for none, `[texts, length]`.
      vocabulary: the words; token i is `vocabulary[i - 1]`.
    """

    train: QuestionSplit
    test: QuestionSplit
    questions: np.ndarray
    vocabulary: tuple[str, ...]

    def text(self, question_id: int) -> str:
        """The words of a question."""
        tokens = self.questions[question_id]
        return " ".join(self.vocabulary[token - 1] for token in tokens if token)

    @property
    def shares(self) -> np.ndarray:
        """How often each text is asked in train, `[texts]`, with a sum of 1."""
        ids = self.train.question_ids
        return np.bincount(ids, minlength=len(self.questions)) / len(ids)


def load(name: str, path: str | None) -> VisualQuestions:
    """Questions out of an .npz archive, or about the embedded digits.

    Args:
      name: `'digits'`, or with a path merely what the set is called.
      path: an archive with `questions` (tokens, `[texts, length]`), `vocabulary`,
        `class_names` (the answers), and for train and test `images`, `question_ids`,
        `answers` and `image_ids`, as `benchmarks/fetch_data.py easy_vqa` writes it.

    Raises:
      UserError: if the archive can't be read, or arrays do not fit together.
    """
    if path is None:
        if name != "digits":
            raise UserError(
                f"Expected dataset.path, an archive of questions and answers, for "
                f"{name!r}, got none: see benchmarks/fetch_data.py."
            )
        return about_digits()
    arrays = _files.load_npz(pathlib.Path(path).expanduser())
    parts = ("images", "question_ids", "answers", "image_ids")
    keys = [f"{split}_{part}" for split in ("train", "test") for part in parts]
    if missing := [
        key
        for key in ("questions", "vocabulary", "class_names", *keys)
        if key not in arrays
    ]:
        raise UserError(
            f"Expected {path} to have questions about images, but it lacks "
            f"{', '.join(missing)}: see benchmarks/fetch_data.py."
        )
    answers = tuple(str(x) for x in arrays["class_names"])
    train, test = (
        _split(name, answers, *(arrays[f"{split}_{part}"] for part in parts))
        for split in ("train", "test")
    )
    vocabulary = tuple(str(x) for x in arrays["vocabulary"])
    questions = arrays["questions"].astype(np.int32)
    for what, found, count in (
        ("tokens", questions, len(vocabulary) + 1),
        *(("question_ids", x.question_ids, len(questions)) for x in (train, test)),
        *(("answers", x.answers, len(answers)) for x in (train, test)),
    ):
        if found.min() < 0 or found.max() >= count:
            raise UserError(
                f"Expected {what} of {path} from 0 to {count - 1}, as many as it "
                f"lists, got {found.min()} to {found.max()}: make the archive again."
            )
    return VisualQuestions(train, test, questions, vocabulary)


def _split(
    name: str,
    answer_names: tuple[str, ...],
    images: np.ndarray,
    question_ids: np.ndarray,
    answers: np.ndarray,
    image_ids: np.ndarray,
) -> QuestionSplit:
    """Pairs by image, those of one image in an order of chance, but always the same."""
    lengths = {len(question_ids), len(answers), len(image_ids)}
    if len(lengths) > 1 or set(np.unique(image_ids)) != set(range(len(images))):
        raise UserError(
            "Expected question_ids, answers and image_ids of equal length, and a "
            f"question or more about each of {len(images)} images, got lengths "
            f"{sorted(lengths)} and questions about {len(np.unique(image_ids))} images."
        )
    # Questions come sorted by kind: without this, so would the epochs.
    chance = np.random.default_rng(0).permutation(len(image_ids))
    order = np.lexsort((chance, image_ids))
    image_ids, answers = image_ids[order], answers[order].astype(np.int32)
    first = answers[np.searchsorted(image_ids, np.arange(len(images)))]
    source = ArraySource(images, first, name=name, class_names=answer_names)
    return QuestionSplit(source, question_ids[order], answers, image_ids)


def about_digits() -> VisualQuestions:
    """Eight questions about each of the embedded digits; answers are digits, yes, no.

    What digit it is, in two wordings; whether it is even, odd, or above four; and
    whether it is each of three that chance names.
    """
    digits = [str(digit) for digit in range(10)]
    vocabulary = ("what", "is", "it", "even", "odd", "large", *digits)
    words = ["what is it", "is it what", "is it even", "is it odd", "is it large"]
    texts = [text.split() for text in words] + [["is", "it", d] for d in digits]
    questions = np.asarray([[vocabulary.index(w) + 1 for w in x] for x in texts])
    yes, no = 10, 11

    def split(images: ArraySource) -> QuestionSplit:
        label = images.labels
        rng = np.random.default_rng(0)
        named = rng.permuted(np.tile(np.arange(10), (len(label), 1)), axis=1)[:, :3]
        fixed = np.tile(np.arange(5), (len(label), 1))
        ids = np.concatenate([fixed, 5 + named], axis=1)
        true = np.stack([label % 2 == 0, label % 2 == 1, label > 4], axis=1)
        true = np.concatenate([true, named == label[:, None]], axis=1)
        what = np.stack([label, label], axis=1)
        answers = np.concatenate([what, np.where(true, yes, no)], axis=1)
        image_ids = np.repeat(np.arange(len(label)), ids.shape[1])
        pixels = images.take(np.arange(len(label)))["image"]
        flat = ids.ravel(), answers.ravel(), image_ids
        return _split("digits", (*digits, "yes", "no"), pixels, *flat)

    parts = _files.digits()
    train, test = split(parts["train"]), split(parts["test"])
    return VisualQuestions(train, test, questions, vocabulary)
