"""Train, validation and test, and how validation is cut from train."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from kdjax.data._source import ArraySource, RecordSource, Source
from kdjax.types import UserError

_SEED = 0  # Of every cut; not the run's, so that all runs hold out the same examples.


@dataclasses.dataclass(frozen=True)
class Splits:
    """What a data set is divided into; tuning never sees `test`.

    Attributes:
      train: what models are fitted to.
      validation: what they are chosen by; may be empty.
      test: what they are judged by.
    """

    train: Source
    validation: Source
    test: Source


def cut(labels: np.ndarray, amount: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids of the larger and of the smaller part, the classes evenly in both.

    A pure function of the labels: each class is shuffled by a fixed seed, and all are
    interleaved, so that a class has its share of the smaller part to within one.

    Args:
      labels: integers `[N]`.
      amount: how many go to the smaller part.

    Returns:
      Two sorted arrays of ids, which together have each id once.
    """
    shuffled = np.random.default_rng(_SEED).permutation(len(labels))
    rank = np.empty(len(labels))
    for label in np.unique(labels):
        members = shuffled[labels[shuffled] == label]
        rank[members] = (np.arange(len(members)) + 0.5) / len(members)
    by_rank = shuffled[np.argsort(rank[shuffled], kind="stable")]
    return np.sort(by_rank[amount:]), np.sort(by_rank[:amount])


def few(source: ArraySource | RecordSource, count: int) -> ArraySource | RecordSource:
    """At most `count` examples, the classes evenly; 0: all of them."""
    if count < 0:
        raise UserError(f"Expected dataset.max_examples >= 0, got {count}.")
    return source.subset(cut(_labels(source), count)[1]) if count else source


def _labels(source: ArraySource | RecordSource) -> np.ndarray:
    """What a cut is made by.

    Where labels are known only to whoever reads every record, all are equal: classes
    are left to chance, which is even enough in a set so large.
    """
    if source.labels is None:
        return np.zeros(len(source), np.int32)
    return source.labels


def divide(
    parts: Mapping[str, ArraySource | RecordSource], validation: int | float
) -> Splits:
    """Makes the three splits of those that a data set has.

    A validation split of its own is taken as it is; without a test split it becomes
    the test, as is the custom for ImageNet.

    Raises:
      UserError: if nothing can be the test split, or too much is asked for.
    """
    train = parts["train"]
    own = parts.get("validation") if "test" in parts else None
    test = parts.get("test", parts.get("validation"))
    if test is None:
        raise UserError(
            f"Expected a test split, or a validation split in its place, got only the "
            f"train split of {train.name}: supply a test split."
        )
    if own is not None:
        return Splits(train, own, test)
    amount = _amount(validation, len(train))
    train_ids, validation_ids = cut(_labels(train), amount)
    return Splits(train.subset(train_ids), train.subset(validation_ids), test)


def _amount(validation: int | float, size: int) -> int:
    """How many examples a count, or a fraction, of `size` is."""
    amount = round(validation * size) if 0 < validation < 1 else int(validation)
    if validation < 0 or (validation >= 1 and amount != validation):
        raise UserError(
            "Expected dataset.validation to be a count, or a fraction below 1, got "
            f"{validation}."
        )
    if amount >= size:
        raise UserError(
            f"Expected dataset.validation to leave something to train on, got {amount} "
            f"of {size} examples: set it lower."
        )
    return amount
