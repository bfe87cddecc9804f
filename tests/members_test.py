"""Several networks as one tree, mapped over as `jax.vmap` does, whatever runs it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import members

SIZE = 3


def _trees():
    keys = jax.random.split(jax.random.key(0), SIZE)
    return [
        {"kernel": jax.random.normal(key, (3, 3, 2, 4)), "rng": key} for key in keys
    ]


def _loss(tree, images, labels, scale):
    """A convolution, and a draw of the member's own."""
    x = jax.lax.conv_general_dilated(
        images,
        tree["kernel"],
        window_strides=(1, 1),
        padding="SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    noise = jax.random.normal(tree["rng"], labels.shape)
    return {"loss": jnp.mean((x.mean((1, 2)) - labels + noise) ** 2) * scale}


def _arguments():
    labels = jax.random.normal(jax.random.key(1), (5, SIZE, 4))
    images = jax.random.normal(jax.random.key(2), (SIZE, 5, 6, 6, 2))
    return images, labels, 2.0


def _assert_same(actual, expected):
    def equal(x, y):
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        np.testing.assert_array_equal(x, y)

    jax.tree.map(equal, actual, expected)


def test_each_member_comes_back_as_it_was():
    trees = _trees()
    stacked = members.stack(trees)
    assert stacked["kernel"].shape == (SIZE, 3, 3, 2, 4)
    for i, tree in enumerate(trees):
        _assert_same(members.member(stacked, i), tree)


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
def test_members_are_mapped_over_as_by_themselves(backend, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    images, labels, scale = _arguments()
    mapped = members.vmap(_loss, (0, 0, 1, None))
    actual = jax.jit(mapped)(members.stack(_trees()), images, labels, scale)
    for i, tree in enumerate(_trees()):
        expected = _loss(tree, images[i], labels[:, i], scale)
        np.testing.assert_allclose(actual["loss"][i], expected["loss"], rtol=1e-5)


@pytest.mark.parametrize(("backend", "grouped"), [("cpu", False), ("gpu", True)])
def test_on_cpu_no_convolution_is_one_in_groups(backend, grouped, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    mapped = members.vmap(_loss, (0, 0, 1, None))
    program = str(jax.make_jaxpr(mapped)(members.stack(_trees()), *_arguments()))
    assert ("feature_group_count=3" in program) == grouped
    assert program.count("conv_general_dilated[") == (1 if grouped else SIZE)
