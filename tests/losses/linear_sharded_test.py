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
EQUAL, UNEQUAL = np.full(TOKENS, 0.3, "f"), np.arange(1, 1 + TOKENS, dtype="f")

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
        "student_kernel": normal(keys[1], (DIM, VOCAB)) / DIM**0.5,
        "student_bias": normal(keys[2], (VOCAB,)),
        "hidden": normal(keys[3], (TOKENS, DIM)),
        "kernel": normal(keys[4], (DIM, VOCAB)) / DIM**0.5,
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


def _value_and_grads(fn, arrays, weights):
    floats = {k: x for k, x in arrays.items() if x.dtype == jnp.float32}

    def total(floats):
        values = fn(arrays | floats)
        return jnp.sum(weights * values), values

    (_, values), grads = jax.value_and_grad(total, has_aux=True)(floats)
    return values, grads


def _assert_close(actual, expected):
    """To rounding of the largest entry of each array, of sums in another order."""

    def check(x, y):
        atol = 3e-6 * max(1.0, np.max(np.abs(y)))
        np.testing.assert_allclose(x, y, rtol=0, atol=atol)

    jax.tree.map(check, actual, expected)


def _assert_as_on_one_device(step, fn, arrays):
    """Whether the cotangents are equal or not: traced, so compiled once."""
    expected_step = jax.jit(functools.partial(_value_and_grads, fn))
    for weights in (EQUAL, UNEQUAL):
        _assert_close(step(arrays, weights), expected_step(arrays, weights))


def test_a_named_axis_of_the_vocabulary(setting):
    fn, arrays, mesh = setting
    specs = {name: _spec(name) for name in arrays}
    grad_specs = {k: specs[k] for k, x in arrays.items() if x.dtype == jnp.float32}
    sharded = jax.shard_map(
        functools.partial(_value_and_grads, functools.partial(fn, axis_name="model")),
        mesh=mesh,
        in_specs=(specs, ROWS),
        out_specs=(ROWS, grad_specs),
    )
    _assert_as_on_one_device(jax.jit(sharded), fn, arrays)


@pytest.mark.parametrize("setting", ["forward_kl"], indirect=True)
def test_differentiated_from_outside(setting):
    fn, arrays, mesh = setting
    outside = jax.shard_map(
        functools.partial(fn, axis_name="model"),
        mesh=mesh,
        in_specs=({name: _spec(name) for name in arrays},),
        out_specs=P(),
    )
    step = jax.jit(functools.partial(_value_and_grads, outside))
    _assert_as_on_one_device(step, fn, arrays)


@pytest.mark.parametrize("setting", ["reverse_kl", "cross_entropy"], indirect=True)
def test_a_sharded_kernel_under_jit(setting):
    fn, arrays, mesh = setting
    put = {
        name: jax.device_put(x, NamedSharding(mesh, _spec(name)))
        for name, x in arrays.items()
    }
    step = jax.jit(functools.partial(_value_and_grads, fn))
    _assert_as_on_one_device(lambda _, weights: step(put, weights), fn, arrays)


@pytest.mark.parametrize("typed", [True, False])
def test_tokens_and_vocabulary_over_two_axes(typed):
    """Also if cotangents are equal on each device, and not of all devices.

    Without types (`check_vma=False`) a device differentiates what all devices add up:
    here the first of each vocabulary has its loss, the others nothing.
    """
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=2 * (AxisType.Auto,))
    names = "student_hidden", "student_kernel", "hidden", "kernel"
    specs = tuple(KERNEL if name.endswith("kernel") else P("data") for name in names)
    arrays = tuple(_arrays()[name] for name in names)
    arrays = tuple(
        x if spec == KERNEL else jnp.concatenate([x, -x])
        for x, spec in zip(arrays, specs, strict=True)
    )

    def grads(weights, *arrays, axis_name=None):
        def total(*arrays):
            values = _linear_targets.linear_soft_target_loss(
                *arrays, temperature=2.0, chunk_size=2, axis_name=axis_name
            )
            return jnp.sum(weights * values)

        if typed or axis_name is None:
            return jax.grad(total, argnums=(0, 1, 2, 3))(*arrays)
        weights = jnp.where(jax.lax.axis_index(axis_name) == 0, weights, 0)
        local = jax.grad(total, argnums=(0, 1, 2, 3))(*arrays)
        return tuple(map(jax.lax.psum, local, 2 * ("model", "data")))

    step = jax.jit(
        jax.shard_map(
            functools.partial(grads, axis_name="model"),
            mesh=mesh,
            in_specs=(P("data"), *specs),
            out_specs=specs,
            check_vma=typed,
        )
    )
    expected_step = jax.jit(grads)
    for second in (EQUAL, 2 * EQUAL, UNEQUAL):
        weights = np.concatenate([EQUAL, second])
        _assert_close(step(weights, *arrays), expected_step(weights, *arrays))


def test_devices_share_the_tokens_of_a_sharded_batch():
    """Each makes its part of the logits of a chunk, from hidden states it has."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    rows, kernel = (NamedSharding(mesh, spec) for spec in (P("data"), P()))
    shapes = ((64, DIM), rows), ((DIM, VOCAB), kernel)
    arrays = [
        jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding)
        for shape, sharding in 2 * shapes
    ]

    def total(*arrays):
        values = _linear_divergences.linear_forward_kl(*arrays, chunk_size=16)
        return jnp.sum(values)

    step = jax.jit(jax.grad(total, argnums=(0, 1))).lower(*arrays).compile()
    text = step.as_text()
    assert f"f32[2,{VOCAB}]" in text
    assert f"f32[16,{VOCAB}]" not in text
    assert "all-gather" not in text
