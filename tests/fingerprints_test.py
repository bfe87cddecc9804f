"""Fingerprints: equal for equal trees, and for no others."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import freeze

from kdjax.fingerprints import fingerprint_json, fingerprint_tree

TREE = {"params": {"b": np.zeros(3, np.float32), "a": np.ones((2, 2), np.float32)}}


def test_container_device_and_order_do_not_matter():
    a, b = TREE["params"]["a"], TREE["params"]["b"]
    same = [
        freeze(TREE),
        {"params": {"a": a, "b": b}},
        {"params": {"a": jnp.asarray(a), "b": np.asfortranarray(b)}},
        {"params": {"a": np.asfortranarray(a), "b": b}},
    ]
    assert {fingerprint_tree(tree) for tree in same} == {fingerprint_tree(TREE)}


@pytest.mark.parametrize(
    "params",
    [
        {"a": np.ones((2, 2), np.float32), "b": np.float32([0, 0, -0.0])},
        {"a": np.ones(4, np.float32), "b": np.zeros(3, np.float32)},
        {"a": np.ones((2, 2), np.float32), "b": np.zeros(3, np.int32)},
        {"a": np.ones((2, 2), np.float32), "c": np.zeros(3, np.float32)},
        {"a": np.ones((2, 2), np.float32)},
        {"b": np.ones((2, 2), np.float32), "a": np.zeros(3, np.float32)},
    ],
)
def test_any_difference_matters(params):
    assert fingerprint_tree({"params": params}) != fingerprint_tree(TREE)


def test_json_does_not_depend_on_the_order_of_keys():
    assert fingerprint_json({"a": 1, "b": [2]}) == fingerprint_json({"b": [2], "a": 1})
    assert fingerprint_json({"a": 1}) != fingerprint_json({"a": 2})
    with pytest.raises(ValueError, match="JSON"):
        fingerprint_json(float("nan"))


def test_leaves_of_one_path_all_count():
    first = {"a/b": np.zeros(2), "a": {"b": np.ones(2)}}
    second = {"a/b": np.zeros(2), "a": {"b": np.full(2, 7.0)}}
    third = {"a/b": np.full(2, 7.0), "a": {"b": np.ones(2)}}
    assert len({fingerprint_tree(tree) for tree in (first, second, third)}) == 3
