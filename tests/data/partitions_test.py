"""Who holds what: every example once, as unequal as asked for, the same every time."""

import numpy as np
import pytest

from kdjax.data import partitions
from kdjax.types import UserError

LABELS = np.random.default_rng(0).permutation(np.arange(3000) % 10)


@pytest.mark.parametrize(
    ("divide", "level"), [(partitions.dirichlet, 0.3), (partitions.shards, 3)]
)
def test_everything_is_held_once_and_by_the_seed_alone(divide, level):
    parts = divide(LABELS, 8, level, seed=4)
    assert sorted(np.concatenate(parts)) == list(range(3000))
    again, other = divide(LABELS, 8, level, seed=4), divide(LABELS, 8, level, seed=5)
    assert all(np.array_equal(x, y) for x, y in zip(parts, again, strict=True))
    assert not all(np.array_equal(x, y) for x, y in zip(parts, other, strict=True))


def test_concentration_says_how_alike_clients_are():
    """The variance of a share is (1/K)(1 - 1/K) / (K alpha + 1)."""
    clients = 5
    for alpha in (0.5, 5.0, 500.0):
        shares = []
        for seed in range(30):
            parts = partitions.dirichlet(LABELS, clients, alpha, seed)
            counts = partitions.label_counts(LABELS, parts, 10)
            shares.append(counts / counts.sum(axis=0))
        expected = (1 / clients) * (1 - 1 / clients) / (clients * alpha + 1)
        np.testing.assert_allclose(np.var(shares), expected, rtol=0.15)


def test_every_client_has_ten_examples():
    for seed in range(20):
        parts = partitions.dirichlet(LABELS, 8, 0.1, seed)
        assert min(len(ids) for ids in parts) >= 10
    with pytest.raises(UserError, match="fewer in every draw"):
        partitions.dirichlet(LABELS[:90], 10, 0.1, seed=0)
    with pytest.raises(UserError, match="fewer in every draw"):
        partitions.dirichlet(LABELS[:200], 15, 0.01, seed=0)


def test_shards_hold_few_classes():
    parts = partitions.shards(LABELS, 10, 2, seed=0)
    counts = partitions.label_counts(LABELS, parts, 10)
    assert set(counts.sum(axis=1)) == {300}
    assert (counts > 0).sum(axis=1).max() <= 2
    with pytest.raises(UserError, match="at most as many shards"):
        partitions.shards(LABELS[:10], 6, 2, seed=0)


def test_a_few_examples_of_some_classes():
    parts = partitions.few(LABELS, 6, (1, 4, 7), classes_per_client=2, count=5, seed=0)
    ids = np.concatenate(parts)
    assert len(set(ids)) == len(ids) == 60
    counts = partitions.label_counts(LABELS, parts, 10)
    assert (np.sort(counts)[:, -2:] == 5).all()
    assert set(np.flatnonzero(counts.sum(axis=0))) == {1, 4, 7}
    assert len({tuple(row) for row in counts}) > 1  # Not all know the same.
    with pytest.raises(UserError, match="too few of class"):
        partitions.few(LABELS, 9, (1,), classes_per_client=1, count=40, seed=0)


def test_padding_leaves_ids_in_front():
    ids, sizes = partitions.pad([np.array([3, 1]), np.array([], int), np.array([7])])
    np.testing.assert_array_equal(ids, [[3, 1], [0, 0], [7, 0]])
    np.testing.assert_array_equal(sizes, [2, 0, 1])
