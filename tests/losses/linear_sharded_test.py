"""A vocabulary that eight devices share gives what one device gives."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from kdjax.losses import (
    _linear_divergences,
    _linear_mixtures,
    _linear_sparse,
    _linear_targets,
)

P = PartitionSpec
TOKENS, DIM, VOCAB = 5, 3, 16
KERNEL, BIAS, ROWS = P(None, "model"), P("model"), P()

TEACHER = ("hidden", "kernel")
TARGETS = ("ids", "counts")
TOP = ("top_logits", "top_indices", "tail")

CASES = {
    "forward_kl": (_linear_divergences.linear_forward_kl, TEACHER, {}),
    "reverse_kl": (_linear_divergences.linear_reverse_kl, TEACHER, {}),
    "total_variation": (_linear_divergences.linear_total_variation, TEACHER, {}),
    "jensen_shannon": (_linear_mixtures.linear_jensen_shannon, TEACHER, {"beta": 0.3}),
    "skew_forward_kl": (_linear_mixtures.linear_skew_forward_kl, TEACHER, {}),
    "soft_target": (
        _linear_targets.linear_soft_target_loss,
        TEACHER,
        {"temperature": 2.0},
    ),
    "taid": (_linear_targets.linear_taid_loss, TEACHER, {"interpolation": 0.4}),
    "cross_entropy": (
        _linear_targets.linear_cross_entropy,
        ("labels",),
        {"label_smoothing": 0.2},
    ),
    "sparse": (_linear_sparse.linear_sparse_soft_target_loss, TARGETS, {}),
    "sparse_top_k": (_linear_sparse.linear_sparse_top_k_kl, TOP, {}),
}


def _arrays():
    keys = jax.random.split(jax.random.key(0), 8)
    normal = jax.random.normal
    return {
        "student_hidden": normal(keys[0], (TOKENS, DIM)),
        "student_kernel": normal(keys[1], (DIM, VOCAB)),
        "student_bias": normal(keys[2], (VOCAB,)),
        "hidden": normal(keys[3], (TOKENS, DIM)),
        "kernel": normal(keys[4], (DIM, VOCAB)),
        "labels": jnp.array([0, 15, 7, 8, 3]),
        "ids": jnp.array([[0, 15], [3, 0], [8, 9], [1, 14], [7, 0]]),
        "counts": jnp.array([[2, 1], [3, 0], [1, 2], [2, 2], [4, 1]]),
        "top_logits": normal(keys[5], (TOKENS, 2)),
        "top_indices": jnp.array([[0, 15], [3, 0], [8, 9], [1, 14], [7, 0]]),
        "tail": normal(keys[6], (TOKENS,)),
    }


def _spec(name):
    return {"kernel": KERNEL, "student_kernel": KERNEL, "student_bias": BIAS}.get(
        name, ROWS
    )


@pytest.fixture(params=CASES)
def setting(request):
    """The loss of arrays by name, the arrays, and a mesh."""
    loss_fn, names, kwargs = CASES[request.param]
    names = ("student_hidden", "student_kernel", *names)
    arrays = _arrays()
    arrays = {name: arrays[name] for name in (*names, "student_bias")}
    assert jax.device_count() == 8
    mesh = jax.make_mesh((8,), ("model",), axis_types=(AxisType.Auto,))

    def fn(arrays, axis_name=None):
        positional = (arrays[name] for name in names)
        bias = arrays["student_bias"]
        where = jnp.arange(TOKENS) != 1
        return loss_fn(
            *positional,
            **kwargs,
            student_bias=bias,
            chunk_size=2,
            axis_name=axis_name,
            where=where,
        )

    return fn, arrays, mesh


def _value_and_grads(fn, arrays):
    floats = {k: x for k, x in arrays.items() if x.dtype == jnp.float32}
    weights = 1 + jnp.sin(jnp.arange(1.0, 1 + TOKENS))

    def total(floats):
        values = fn(arrays | floats)
        return jnp.sum(weights * values), values

    (_, values), grads = jax.value_and_grad(total, has_aux=True)(floats)
    return values, grads


def _assert_close(actual, expected):
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=2e-6),
        actual,
        expected,
    )


def test_a_named_axis_of_the_vocabulary(setting):
    fn, arrays, mesh = setting
    specs = {name: _spec(name) for name in arrays}
    grad_specs = {k: specs[k] for k, x in arrays.items() if x.dtype == jnp.float32}
    sharded = jax.shard_map(
        lambda arrays: _value_and_grads(
            functools.partial(fn, axis_name="model"), arrays
        ),
        mesh=mesh,
        in_specs=(specs,),
        out_specs=(P(), grad_specs),
    )
    expected = jax.jit(functools.partial(_value_and_grads, fn))(arrays)
    _assert_close(jax.jit(sharded)(arrays), expected)


@pytest.mark.parametrize("setting", ["forward_kl"], indirect=True)
def test_differentiated_from_outside(setting):
    fn, arrays, mesh = setting
    outside = jax.shard_map(
        functools.partial(fn, axis_name="model"),
        mesh=mesh,
        in_specs=({name: _spec(name) for name in arrays},),
        out_specs=P(),
    )
    step = jax.jit(lambda x: _value_and_grads(outside, x))
    expected = jax.jit(functools.partial(_value_and_grads, fn))(arrays)
    _assert_close(step(arrays), expected)


@pytest.mark.parametrize("setting", ["reverse_kl", "cross_entropy"], indirect=True)
def test_a_sharded_kernel_under_jit(setting):
    fn, arrays, mesh = setting
    put = {
        name: jax.device_put(x, NamedSharding(mesh, _spec(name)))
        for name, x in arrays.items()
    }
    step = jax.jit(functools.partial(_value_and_grads, fn))
    _assert_close(step(put), step(arrays))
