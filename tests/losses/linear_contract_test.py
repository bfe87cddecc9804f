"""What every loss from hidden states keeps: it is the dense loss of the logits."""

import collections
import functools
import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import losses
from kdjax.losses import (
    _linear_divergences,
    _linear_mixtures,
    _linear_sparse,
    _linear_targets,
)

pytestmark = pytest.mark.usefixtures("compiled_unfused")

MODULES = (_linear_divergences, _linear_mixtures, _linear_targets, _linear_sparse)
VOCAB = 16
TOKENS = 6
STUDENT_DIM, TEACHER_DIM = 3, 5
CHUNK = 3


class Case(NamedTuple):
    """A loss from hidden states, and the same of logits.

    Attributes:
      linear_fn: takes hidden states and kernels.
      dense_fn: takes logits in the place of each pair of them.
      kwargs: numbers, which must work traced.
      static: what no compiled function can be given as an argument.
      takes: what follows the student's: hidden and kernel of the `t`eacher, `l`abels,
        tokens drawn from the teacher `d`, or its `k` largest logits and the tail.
    """

    linear_fn: Callable[..., jax.Array]
    dense_fn: Callable[..., jax.Array]
    kwargs: Mapping[str, Any] = {}
    static: Mapping[str, Any] = {}
    takes: str = "t"


WARM = {"temperature": 2.0}
NORMALIZED = {"normalized": True}

CASES = {
    "forward_kl": Case(losses.linear_forward_kl, losses.forward_kl, WARM),
    "reverse_kl": Case(losses.linear_reverse_kl, losses.reverse_kl, WARM),
    "symmetric_kl": Case(
        losses.linear_symmetric_kl, losses.symmetric_kl, {"reverse_weight": 0.3, **WARM}
    ),
    "total_variation": Case(
        losses.linear_total_variation, losses.total_variation, WARM
    ),
    "jensen_shannon": Case(
        losses.linear_jensen_shannon, losses.jensen_shannon, {"beta": 0.3, **WARM}
    ),
    "jensen_shannon_normalized": Case(
        losses.linear_jensen_shannon, losses.jensen_shannon, {"beta": 0.6}, NORMALIZED
    ),
    "jensen_shannon_at_0": Case(
        losses.linear_jensen_shannon, losses.jensen_shannon, {"beta": 0.0}, NORMALIZED
    ),
    "skew_forward_kl": Case(
        losses.linear_skew_forward_kl, losses.skew_forward_kl, {"skew": 0.1, **WARM}
    ),
    "skew_reverse_kl": Case(
        losses.linear_skew_reverse_kl, losses.skew_reverse_kl, {"skew": 0.2, **WARM}
    ),
    "adaptive_kl": Case(
        losses.linear_adaptive_kl, losses.adaptive_kl, {"head_mass": 0.5, **WARM}
    ),
    "soft_target": Case(losses.linear_soft_target_loss, losses.soft_target_loss, WARM),
    "taid": Case(losses.linear_taid_loss, losses.taid_loss, {"interpolation": 0.4}),
    "cross_entropy": Case(
        losses.linear_cross_entropy,
        losses.cross_entropy,
        {"label_smoothing": 0.2},
        takes="l",
    ),
    "cross_entropy_plain": Case(
        losses.linear_cross_entropy, losses.cross_entropy, takes="l"
    ),
    "sparse_soft_target": Case(
        losses.linear_sparse_soft_target_loss,
        losses.sparse_soft_target_loss,
        WARM,
        takes="d",
    ),
    "sparse_top_k_kl": Case(
        losses.linear_sparse_top_k_kl, losses.sparse_top_k_kl, WARM, takes="k"
    ),
}


# One for each kind of rows; what only depends on the engine is checked for these.
KINDS = [CASES[name] for name in ("forward_kl", "cross_entropy", "sparse_top_k_kl")]
of_each_kind = pytest.mark.parametrize("case", KINDS, ids="tlk")


@pytest.fixture(params=CASES.values(), ids=CASES.keys())
def case(request):
    return request.param


def _inputs(case, batch_shape=(TOKENS,), dtype=jnp.float32, seed=0):
    """The arrays by name, and the rest by position: student's first."""
    keys = iter(jax.random.split(jax.random.key(seed), 8))

    def normal(*shape):
        return jax.random.normal(next(keys), shape).astype(dtype)

    def head(dim):  # Of logits of size 1.
        return normal(*batch_shape, dim), normal(dim, VOCAB) / dim**0.5

    student, (teacher_hidden, teacher_kernel) = head(STUDENT_DIM), head(TEACHER_DIM)
    biases = {"student_bias": normal(VOCAB)}
    teacher_logits = teacher_hidden @ teacher_kernel
    if case.takes == "t":
        biases["teacher_bias"] = normal(VOCAB)
        return (*student, teacher_hidden, teacher_kernel), biases
    if case.takes == "l":
        return (*student, jnp.argmax(teacher_logits, axis=-1)), biases
    if case.takes == "d":
        targets = losses.sample_sparse_targets(
            teacher_logits, jax.random.key(1), num_draws=6
        )
        return (*student, *targets), biases
    top, indices = jax.lax.top_k(teacher_logits, 4)
    others = jnp.put_along_axis(
        teacher_logits, indices, -jnp.inf, axis=-1, inplace=False
    )
    return (*student, top, indices, jax.nn.logsumexp(others / 2, axis=-1)), biases


def _linear(case, arrays, biases, **kwargs):
    kwargs = {"chunk_size": CHUNK, **case.static, **case.kwargs, **kwargs}
    return case.linear_fn(*arrays, **biases, **kwargs)


def _dense(case, arrays, biases, **kwargs):
    """The logits, at once, and the loss of them, in float32 at least."""
    arrays, biases = jax.tree.map(
        lambda x: x.astype(jnp.float32) if x.dtype == jnp.bfloat16 else x,
        (arrays, biases),
    )
    hidden, kernel, *others = arrays
    logits = [hidden @ kernel + _row(biases["student_bias"], hidden)]
    if case.takes == "t":
        hidden, kernel, *others = others
        logits.append(hidden @ kernel + _row(biases["teacher_bias"], hidden))
    return case.dense_fn(*logits, *others, **{**case.static, **case.kwargs, **kwargs})


def _row(bias, like):
    return jnp.reshape(bias, (1,) * (like.ndim - 1) + bias.shape)


def _floats(tree):
    """The leaves with a gradient, and how to put others in their place."""
    leaves, treedef = jax.tree.flatten(tree)
    places = [i for i, x in enumerate(leaves) if jnp.issubdtype(x.dtype, jnp.floating)]

    def restore(floats):
        new = list(leaves)
        for i, x in zip(places, floats, strict=True):
            new[i] = x
        return jax.tree.unflatten(treedef, new)

    return [leaves[i] for i in places], restore


_TRACES: collections.Counter = collections.Counter()


@functools.cache
def _compiled(name, side, static=()):
    """Values, and gradients of their sum with weights, in all arrays and numbers."""
    case, fn = CASES[name], {"linear": _linear, "dense": _dense}[side]

    @jax.jit
    def value_and_grads(arrays, biases, kwargs, weights, where=None):
        _TRACES[name, side, static] += 1
        floats, restore = _floats((arrays, biases))

        def total(floats, kwargs):
            values = fn(case, *restore(floats), **kwargs, **dict(static), where=where)
            return jnp.sum(weights * values), values

        grad_fn = jax.value_and_grad(total, argnums=(0, 1), has_aux=True)
        (_, values), grads = grad_fn(floats, kwargs)
        return values, grads

    return value_and_grads


def _kwargs(case, factor=1.0):
    return {name: jnp.asarray(factor * x) for name, x in case.kwargs.items()}


def _name(case):
    return next(name for name, x in CASES.items() if x is case)


def _run(case, side, arrays, biases, where=True, factor=1.0, vary=1.0, **static):
    """With a `where` by default, so that one compiled function is for most tests."""
    fn = _compiled(_name(case), side, tuple(static.items()))
    shape = arrays[0].shape[:-1]
    weights = vary * np.sin(np.arange(np.prod(shape, dtype=int))).reshape(shape)
    weights = jnp.asarray(1 + weights, jnp.float32)
    where = None if where is None else jnp.broadcast_to(where, shape)
    return fn(arrays, biases, _kwargs(case, factor), weights, where)


def _assert_close(actual, expected, tol=1e-6):
    """To `tol` of the largest entry, or of 1; ten times that for a sum over all."""

    def check(x, y):
        x, y = (np.asarray(v, np.float64) for v in (x, y))
        size = max(1.0, np.max(np.abs(np.nan_to_num(y)), initial=0.0))
        atol = (tol if y.ndim else 10 * tol) * size
        np.testing.assert_allclose(x, y, rtol=0, atol=atol)

    jax.tree.map(check, actual, expected)


def test_every_public_function_has_a_case():
    public = {
        fn
        for module in MODULES
        for name, fn in inspect.getmembers(module, inspect.isfunction)
        if fn.__module__ == module.__name__ and not name.startswith("_")
    }
    assert public == {case.linear_fn for case in CASES.values()}


def test_the_documentation_is_complete(case):
    text = inspect.getdoc(case.linear_fn)
    found = re.findall(r"^(\w+):$", text, flags=re.MULTILINE)
    assert found == ["Args", "Returns", "Raises", "Examples", "References"]
    assert ".. math::" in text
    arguments = text[text.index("Args:") : text.index("Returns:")]
    parameters = inspect.signature(case.linear_fn).parameters
    for name, parameter in parameters.items():
        assert f"\n  {name}: " in arguments, name
        first = name.startswith("student_") or name in ("labels", "target_ids")
        if parameter.kind is parameter.POSITIONAL_OR_KEYWORD:
            assert first or name.startswith(("teacher_", "target_"))
    assert list(parameters)[-1] == "where"


def test_values_and_all_gradients_are_those_of_the_logits(case):
    arrays, biases = _inputs(case)
    for factor, vary in ((1.0, 1.0), (0.5, 0.0)):  # Traced: compiled once.
        args = arrays, biases, True, factor, vary
        actual = _run(case, "linear", *args)
        assert actual[0].dtype == jnp.float32
        _assert_close(actual, _run(case, "dense", *args))
    assert _TRACES[_name(case), "linear", ()] == 1


@of_each_kind
@pytest.mark.parametrize("shape", [(), (2, 3)])
def test_any_shape_of_the_batch_and_no_where(case, shape):
    arrays, biases = _inputs(case, shape)
    actual = _run(case, "linear", arrays, biases, where=None)
    assert actual[0].shape == shape
    _assert_close(actual, _run(case, "dense", arrays, biases, where=None))


@of_each_kind
@pytest.mark.parametrize("chunk_size", [1, 4, 1000])
def test_the_size_of_a_chunk_does_not_matter(case, chunk_size):
    arrays, biases = _inputs(case)
    actual = _run(case, "linear", arrays, biases, chunk_size=chunk_size)
    _assert_close(actual, _run(case, "linear", arrays, biases))


@of_each_kind
def test_half_precision_is_computed_in_float32(case):
    arrays, biases = _inputs(case, dtype=jnp.bfloat16)
    values, grads = _run(case, "linear", arrays, biases)
    assert values.dtype == jnp.float32
    expected, expected_grads = _run(case, "dense", arrays, biases)
    _assert_close(values, expected)
    # Gradients come back rounded to the dtype of the inputs: 8 bits.
    _assert_close(grads, expected_grads, tol=2.0**-8)


@of_each_kind
def test_double_precision_is_kept_and_agrees_with_finite_differences(case):
    with jax.enable_x64(True):
        floats, restore = _floats(_inputs(case, dtype=jnp.float64))

        def total(floats):
            return jnp.sum(_linear(case, *restore(floats)))

        value_and_grads = jax.jit(jax.value_and_grad(total))
        steps = [1e-4 * jnp.cos(3 * x) for x in floats]
        ahead, _ = value_and_grads(jax.tree.map(jnp.add, floats, steps))
        behind, _ = value_and_grads(jax.tree.map(jnp.subtract, floats, steps))
        _, grads = value_and_grads(floats)
        slope = sum(jax.tree.leaves(jax.tree.map(jnp.vdot, grads, steps)))
        assert ahead.dtype == jnp.float64
        np.testing.assert_allclose((ahead - behind) / 2, slope, rtol=1e-6)


def test_invalid_tokens_are_as_if_absent(case):
    arrays, biases = _inputs(case)
    where = jnp.arange(TOKENS) % 3 != 1

    def poison(x):
        bad = jnp.nan if jnp.issubdtype(x.dtype, jnp.floating) else -100
        valid = where.reshape(-1, *[1] * (x.ndim - 1))
        return jnp.where(valid, x, jnp.asarray(bad, x.dtype))

    def rows(fn):
        return tuple(fn(x) if x.shape[:1] == (TOKENS,) else x for x in arrays)

    values, grads = _run(case, "linear", rows(poison), biases, where=where)
    expected, expected_grads = _run(case, "dense", arrays, biases, where=where)
    np.testing.assert_array_equal(values[~where], 0)
    _assert_close((values, grads), (expected, expected_grads))
    for grad in grads[0]:
        if grad.shape[:1] == (TOKENS,):
            np.testing.assert_array_equal(grad[~where], 0)
    # Of which one class is impossible: infinitely far from the teacher.
    biases["student_bias"] = biases["student_bias"].at[0].set(-jnp.inf)
    nothing = _run(case, "linear", rows(poison), biases, where=jnp.zeros_like(where))
    jax.tree.map(lambda x: np.testing.assert_array_equal(x, 0), nothing)


def test_nan_of_a_valid_token_is_not_hidden(case):
    (hidden, *others), biases = _inputs(case)
    values, _ = _run(case, "linear", (hidden.at[2, 1].set(jnp.nan), *others), biases)
    np.testing.assert_array_equal(np.isnan(values), np.arange(TOKENS) == 2)


@pytest.mark.parametrize("name", ["cross_entropy", "sparse_soft_target"])
@pytest.mark.parametrize("no_class", [-1, VOCAB])
def test_what_is_no_class_gives_nan(name, no_class):
    case = CASES[name]
    (hidden, kernel, classes, *others), biases = _inputs(case)
    arrays = hidden, kernel, classes.at[2].set(no_class), *others
    values, _ = _run(case, "linear", arrays, biases)
    np.testing.assert_array_equal(np.isnan(values), np.arange(TOKENS) == 2)


@of_each_kind
def test_vmap_agrees_with_a_loop(case):
    inputs = [_inputs(case, seed=seed) for seed in range(2)]
    stacked = jax.tree.map(lambda *xs: jnp.stack(xs), *inputs)
    expected = jnp.stack([_run(case, "linear", *x)[0] for x in inputs])
    fn = jax.jit(jax.vmap(lambda arrays, biases: _linear(case, arrays, biases)))
    _assert_close(fn(*stacked), expected)


@pytest.mark.usefixtures("as_in_production")
def test_misuse_says_what_was_expected(case):
    (hidden, kernel, *others), biases = _inputs(case)

    def loss(hidden=hidden, kernel=kernel, others=others, biases=biases, **kwargs):
        return _linear(case, (hidden, kernel, *others), biases, **kwargs)

    with pytest.raises(TypeError, match="floating-point student_hidden, got int32"):
        loss(hidden=hidden.astype(jnp.int32))
    with pytest.raises(TypeError, match="floating-point student_bias, got int32"):
        loss(biases=biases | {"student_bias": jnp.zeros(VOCAB, jnp.int32)})
    with pytest.raises(ValueError, match=r"\(6, 3\) and \(16, 3\): transpose"):
        loss(kernel=kernel.T)
    with pytest.raises(ValueError, match=r"student_bias \(16,\).*got \(3,\)"):
        loss(biases=biases | {"student_bias": jnp.zeros(3)})
    with pytest.raises(ValueError, match="chunk_size of at least 1, got 0"):
        loss(chunk_size=0)
    with pytest.raises(TypeError, match="Expected boolean where, got float32"):
        loss(where=jnp.ones(TOKENS))
    with pytest.raises(ValueError, match=r"Expected where \(6,\).*got \(3,\)"):
        loss(where=jnp.ones(3, bool))
    with pytest.raises(ValueError, match=r"Expected .*got .*\(5,"):
        loss(others=(others[0][:5], *others[1:]))
    if case.takes == "t":
        with pytest.raises(ValueError, match=r"\(3, 9\).*padded vocabulary"):
            loss(kernel=kernel[:, :9], biases={})
    for name in case.kwargs:
        bad, words = (0.0, "> 0") if name == "temperature" else (1.5, "between 0 and 1")
        with pytest.raises(ValueError, match=f"Expected {name} {words}, got {bad}"):
            loss(**{name: bad})
