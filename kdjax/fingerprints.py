"""Digests that say whether two trees, or two descriptions, are the same."""

import hashlib
import json
from typing import Any

import jax
import numpy as np


def fingerprint_tree(tree: Any) -> str:
    """SHA-256 of a tree of arrays: paths, shapes, dtypes and bytes of its leaves.

    The same on every backend and in every container type, so that variables have one
    fingerprint as a dictionary, frozen or restored.
    """
    digest = hashlib.sha256()
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    # Pairs, not a dictionary: {"a/b": x, "a": {"b": y}} has one path twice.
    named = [
        (jax.tree_util.keystr(path, simple=True, separator="/"), leaf)
        for path, leaf in leaves
    ]
    for path, leaf in sorted(named, key=lambda pair: pair[0]):
        array = np.asarray(leaf)
        digest.update(f"{path}:{array.dtype.name}:{array.shape};".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def fingerprint_json(value: Any) -> str:
    """SHA-256 of a JSON-able value, whatever the order of its keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
