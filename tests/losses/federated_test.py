"""The losses and averages of federations, against loops in NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from kdjax.losses import _federated

STUDENT = 3 * np.random.default_rng(0).normal(size=(4, 7))
CLIENTS = 3 * np.random.default_rng(1).normal(size=(3, 4, 7))
SIZES = np.array([10.0, 70.0, 20.0])


def _values(loss_fn, *inputs, **kwargs):
    with jax.enable_x64(True):
        inputs = jax.tree.map(jnp.asarray, inputs)
        if "weights" in kwargs:
            kwargs["weights"] = jnp.asarray(kwargs["weights"])
        return np.asarray(jax.jit(functools.partial(loss_fn, **kwargs))(*inputs))


def _divergence(probs, logits):
    return special.rel_entr(probs, special.softmax(logits, axis=-1)).sum(-1)


def test_feddf_weighs_what_it_averages_by_the_clients_sizes():
    shares, probs = SIZES / 100, special.softmax(CLIENTS, axis=-1)
    each = [_divergence(p, STUDENT) for p in probs]
    mean_logits = sum(w * z for w, z in zip(shares, CLIENTS, strict=True))
    mean_probs = sum(w * p for w, p in zip(shares, probs, strict=True))
    expected = {
        "losses": sum(w * x for w, x in zip(shares, each, strict=True)),
        "logits": _divergence(special.softmax(mean_logits, axis=-1), STUDENT),
        "probs": _divergence(mean_probs, STUDENT),
    }
    for average, values in expected.items():
        actual = _values(
            _federated.feddf_loss, STUDENT, CLIENTS, average=average, weights=SIZES
        )
        np.testing.assert_allclose(actual, values, rtol=1e-9)


@pytest.mark.usefixtures("as_in_production")
def test_an_unknown_average_is_refused():
    with pytest.raises(ValueError, match="Expected average to be one of"):
        _federated.feddf_loss(jnp.zeros(3), jnp.zeros((2, 3)), average="votes")


def test_the_consensus_of_fedmd_is_the_plain_mean():
    actual = _values(_federated.fedmd_consensus, CLIENTS)
    np.testing.assert_allclose(actual, CLIENTS.mean(0), rtol=1e-12)


def test_fedgkd_is_half_of_what_its_coefficients_say():
    each = [_divergence(p, STUDENT) for p in special.softmax(CLIENTS, axis=-1)]
    expected = sum(w * x / 2 for w, x in zip((0.1, 0.4, 0.0), each, strict=True))
    weights = np.array([0.1, 0.4, 0.0])
    actual = _values(_federated.fedgkd_loss, STUDENT, CLIENTS, weights=weights)
    np.testing.assert_allclose(actual, expected, rtol=1e-9)
    actual = _values(_federated.fedgkd_loss, STUDENT, CLIENTS[:1])
    np.testing.assert_allclose(actual, 0.1 * each[0], rtol=1e-9)


def test_fedgkd_of_weights_that_are_all_zero_is_zero_and_so_is_its_gradient():
    def total(student_logits):
        return jnp.sum(
            _federated.fedgkd_loss(
                student_logits, jnp.asarray(CLIENTS), weights=jnp.zeros(len(CLIENTS))
            )
        )

    value, grad = jax.value_and_grad(total)(jnp.asarray(STUDENT))
    np.testing.assert_array_equal(value, 0)
    np.testing.assert_array_equal(grad, 0)


def test_federated_average_is_leaf_by_leaf_in_the_leafs_dtype():
    kernel = np.random.default_rng(2).normal(size=(3, 2, 2))
    stacked = {
        "kernel": jnp.asarray(kernel, jnp.float32),
        "scale": jnp.ones(3, "bfloat16"),
    }
    average = jax.jit(_federated.federated_average)
    found = average(stacked, weights=jnp.asarray(SIZES, jnp.float32))
    expected = np.tensordot(SIZES / 100, kernel, axes=1)
    np.testing.assert_allclose(found["kernel"], expected, rtol=1e-5)
    assert found["scale"].dtype == jnp.bfloat16
    assert found["scale"].shape == ()
    np.testing.assert_allclose(
        average(stacked)["kernel"], kernel.mean(0), rtol=1e-5, atol=1e-7
    )


def test_bfloat16_parameters_are_averaged_in_float32():
    """In bfloat16, 256 + 1 is 256: the sum of 257 ones would not grow beyond."""
    stacked = jnp.ones((1000, 1), jnp.bfloat16)
    np.testing.assert_array_equal(_federated.federated_average(stacked), 1)


@pytest.mark.usefixtures("as_in_production")
def test_clients_that_do_not_match_are_refused():
    average = _federated.federated_average
    with pytest.raises(TypeError, match=r"Expected floating-point .*got int32"):
        average({"step": jnp.arange(3)})
    for tree, weights in (
        ({"a": jnp.ones((2, 1)), "b": jnp.ones((3, 1))}, None),
        ({"a": jnp.ones((2, 1))}, jnp.ones(3)),
        ({"a": jnp.ones(())}, None),
        ({}, None),
    ):
        with pytest.raises(ValueError, match="as many clients"):
            average(tree, weights=weights)
