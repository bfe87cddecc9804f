"""Texts in batches of a few lengths: what is in them, and in which order."""

import collections
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.data import text

LENGTHS, BUCKETS, SIZE = np.array([3, 7, 5, 9, 2, 4, 6, 9, 3, 8, 5, 4, 8]), (4, 6, 9), 3


@pytest.fixture(scope="module")
def texts():
    rows = [
        list(range(10 * i + 1, 10 * i + 1 + length)) for i, length in enumerate(LENGTHS)
    ]
    return text.from_rows(rows, np.arange(len(LENGTHS)) % 2, ("bad", "good"))


def _plan(**changes):
    return text.plan(LENGTHS, BUCKETS, SIZE, **{"seed": 0, "epoch": 0, **changes})


@pytest.mark.parametrize("epoch", [0, 1, 5])
def test_every_text_comes_once_in_a_bucket_that_holds_it(epoch):
    batches = _plan(epoch=epoch)
    ids = np.concatenate([ids for _, ids in batches])
    assert len(set(ids)) == len(ids) == len(LENGTHS) // SIZE * SIZE
    assert all(LENGTHS[ids].max() <= length for length, ids in batches)
    left_out = set(range(len(LENGTHS))) - set(ids.tolist())
    assert all(LENGTHS[i] > BUCKETS[1] for i in left_out)


def test_what_is_left_of_a_bucket_is_in_the_next():
    counts = collections.Counter(length for length, _ in _plan())
    # 5, 3 and 5 texts: 2 go from 4 to 6, and 2 from 6 to 9.
    assert counts == {4: 1, 6: 1, 9: 2}
    assert counts == collections.Counter(length for length, _ in _plan(epoch=3))


def test_the_order_is_of_seed_and_epoch_alone():
    def flat(**changes):
        return np.concatenate([ids for _, ids in _plan(**changes)]).tolist()

    def lengths(**changes):
        return [length for length, _ in _plan(**changes)]

    assert flat() == flat()
    assert len({tuple(flat(epoch=i)) for i in range(4)}) == 4
    assert flat(seed=1) != flat()
    assert len({tuple(lengths(epoch=i)) for i in range(8)}) > 1


def test_a_longer_text_is_cut(texts):
    rows = texts.rows(np.array([3, 4]), 4)
    assert rows["tokens"].tolist() == [[31, 32, 33, 34], [41, 42, 0, 0]]
    assert rows["token_mask"].tolist() == [[True] * 4, [True, True, False, False]]
    assert rows["label"].tolist() == [1, 0]


def test_a_loader_begins_at_any_step(texts):
    loader = text.TextLoader(texts, BUCKETS, SIZE, 2, place=lambda x: x)
    assert loader.steps_per_epoch == 4
    rows = list(itertools.islice(loader.inputs(0), 11))
    for start in (1, 4, 7):
        again = itertools.islice(loader.inputs(start), 11 - start)
        for one, other in zip(rows[start:], again, strict=True):
            jax.tree.map(np.testing.assert_array_equal, one, other)


def test_a_batch_holds_what_belongs_to_its_texts(texts):
    logits = np.arange(2.0 * len(texts)).reshape(-1, 2)
    loader = text.TextLoader(texts, BUCKETS, SIZE, 0, extras={"teacher_logits": logits})
    for step, inputs in enumerate(itertools.islice(loader.inputs(0), 4)):
        batch = loader.batch(inputs, jnp.asarray(step))
        ids = batch["example_id"]
        assert batch["mask"].tolist() == [True] * SIZE
        np.testing.assert_array_equal(batch["teacher_logits"], logits[ids])
        np.testing.assert_array_equal(batch["label"], ids % 2)
        np.testing.assert_array_equal(batch["token_mask"].sum(1), LENGTHS[ids])
        first = np.asarray(batch["tokens"])[:, 0]
        np.testing.assert_array_equal(first, 10 * ids + 1)


def test_logits_come_in_the_order_of_the_texts(texts):
    """From a model that says the first token and how many are valid."""

    def program(variables, inputs):
        assert inputs["tokens"].shape[0] == 4
        assert inputs["tokens"].shape[1] in BUCKETS
        first, count = inputs["tokens"][:, 0], inputs["mask"].sum(1)
        return np.stack([first, count], axis=1) + variables["bias"]

    found = text.predict(program, {"bias": 0.5}, texts, BUCKETS, 4)
    expected = np.stack([10 * np.arange(len(texts)) + 1, LENGTHS], axis=1) + 0.5
    np.testing.assert_array_equal(found, expected)


def test_a_batch_larger_than_the_set_is_refused(texts):
    with pytest.raises(ValueError, match="batch_size"):
        text.TextLoader(texts, BUCKETS, 14, 0)


def test_processes_share_a_batch(texts):
    def rows(**share):
        loader = text.TextLoader(texts, BUCKETS, 4, 0, place=lambda x: x, **share)
        return next(loader.inputs(0))

    shares = [rows(process_index=i, process_count=2) for i in range(2)]
    for name, whole in rows().items():
        together = np.concatenate([share[name] for share in shares])
        np.testing.assert_array_equal(together, whole)
