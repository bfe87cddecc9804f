"""Laws of the order of examples."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.data import order


@pytest.mark.parametrize("epoch", [0, 1, 40])
def test_every_id_once_in_every_epoch(epoch):
    ids = np.asarray(order.permutation(3, epoch, 1009))
    assert ids.dtype == np.int32
    np.testing.assert_array_equal(np.sort(ids), np.arange(1009))


def test_seeds_and_epochs_give_different_orders():
    orders = [
        tuple(np.asarray(order.permutation(seed, epoch, 53)).tolist())
        for seed in (0, 1, 2**31 + 5)
        for epoch in (0, 1, 2)
    ]
    assert len(set(orders)) == len(orders)


def test_the_order_is_the_same_in_every_program():
    eager = np.asarray(order.permutation(7, 5, 101))
    traced = jax.jit(lambda epoch: order.permutation(7, epoch, 101))(jnp.int32(5))
    np.testing.assert_array_equal(traced, eager)
    with jax.enable_x64(True):
        np.testing.assert_array_equal(order.permutation(7, 5, 101), eager)


def test_positions_are_uniform():
    # The first id of 2000 orders of 4: each expected 500 times, sd 19.
    first = [int(order.permutation(0, epoch, 4)[0]) for epoch in range(2000)]
    counts = np.bincount(first, minlength=4)
    assert np.all(np.abs(counts - 500) < 5 * 19)


def test_steps_per_epoch_leaves_the_remainder_out():
    assert order.steps_per_epoch(10, 4) == 2
    assert order.steps_per_epoch(4, 4) == 1
    for batch_size in (0, 5):
        with pytest.raises(ValueError, match=f"4 examples there are, got {batch_size}"):
            order.steps_per_epoch(4, batch_size)


def test_purposes_ids_views_and_seeds_have_bits_of_their_own():
    ids = jnp.arange(5)
    rows = [
        tuple(row)
        for seed in (0, 1)
        for purpose in order.Purpose
        for view in (0, 1, 2)
        for row in np.asarray(order.example_bits(seed, purpose, ids, view, 2)).tolist()
    ]
    assert len(set(rows)) == len(rows)


def test_the_bits_do_not_depend_on_the_default_generator():
    bits = order.example_bits(0, order.Purpose.AUGMENT, jnp.arange(3), 1, 4)
    with jax.default_prng_impl("rbg"):
        again = order.example_bits(0, order.Purpose.AUGMENT, jnp.arange(3), 1, 4)
    np.testing.assert_array_equal(bits, again)


def test_the_bits_are_those_of_nested_folds():
    key = jax.random.key(9, impl="threefry2x32")
    for part in (order.Purpose.PARTNER, 4, 2):
        key = jax.random.fold_in(key, part)
    bits = order.example_bits(9, order.Purpose.PARTNER, jnp.array([4]), 2, 3)
    np.testing.assert_array_equal(bits[0], jax.random.bits(key, (3,), jnp.uint32))
