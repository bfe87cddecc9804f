"""A function of tokens in chunks, against the same of all at once."""

import collections
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import losses
from kdjax.losses import _linear_chunks

TOKENS, DIM, VOCAB = 7, 3, 16
CHUNK = 3  # Does not divide them: the last chunk is filled up.
EQUAL, UNEQUAL = np.full(TOKENS, 0.3, "f"), np.arange(1, 1 + TOKENS, dtype="f")
NOT_THE_SECOND = np.arange(TOKENS) != 1


def _of_token(own, kernel):
    """All that a loss has: rows, a number, a kernel; no slope where a row is zero."""
    (hidden, target), (temperature,), valid = own
    logits = hidden @ kernel
    logits = logits if valid is None else jnp.where(valid, logits, 1)
    return temperature * jnp.log(jnp.sum(logits**2)) - target[0]


def _chunked(hidden, target, temperature, kernel, where=None, fn=_of_token):
    return _linear_chunks.over_tokens(
        fn,
        (hidden, target),
        (temperature,),
        kernel,
        chunk_size=CHUNK,
        axis_name=None,
        where=where,
    )


def _at_once(hidden, target, temperature, kernel, where=None):
    temperatures = jnp.full(len(hidden), temperature)
    own = (hidden, target), (temperatures,), where
    values = jax.vmap(_of_token, in_axes=(0, None))(own, kernel)
    return values if where is None else jnp.where(where, values, 0)


def _arrays():
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = (TOKENS, DIM), (TOKENS, 1), (DIM, VOCAB)
    hidden, target, kernel = map(jax.random.normal, keys, shapes)
    return hidden, target, jnp.float32(2), kernel


@functools.partial(jax.jit, static_argnums=0)
def _values_and_grads(fn, arrays, weights, where):
    """Values, and what the weights pull back to all arrays."""
    values, pull = jax.vjp(lambda *arrays: fn(*arrays, where), *arrays)
    return values, pull(weights)


def _assert_close(actual, expected, rtol=1e-6):
    """To `rtol` of the largest entry of each array."""

    def check(x, y):
        atol = rtol * np.max(np.abs(np.nan_to_num(y)), initial=1.0)
        np.testing.assert_allclose(x, y, rtol=0, atol=atol)

    jax.tree.map(check, actual, expected)


@pytest.mark.parametrize("weights", [EQUAL, UNEQUAL], ids=["equal", "unequal"])
@pytest.mark.parametrize("where", [None, NOT_THE_SECOND], ids=["all", "masked"])
def test_whatever_the_cotangents_are_the_gradients_are_those_at_once(weights, where):
    where = None if where is None else jnp.asarray(where)
    args = _arrays(), jnp.asarray(weights), where
    expected = _values_and_grads(_at_once, *args)
    _assert_close(_values_and_grads(_chunked, *args), expected)


def test_without_a_valid_token_the_gradients_are_zero():
    nothing = jnp.zeros(TOKENS, bool)
    for weights in (EQUAL, UNEQUAL, np.full(TOKENS, np.nan, "f")):
        args = _arrays(), jnp.asarray(weights), nothing
        results = _values_and_grads(_chunked, *args)
        jax.tree.map(lambda x: np.testing.assert_array_equal(x, 0), results)


@pytest.mark.parametrize("of_all", [False, True])
def test_a_nan_among_the_cotangents_is_not_hidden(of_all):
    weights = (
        jnp.full(TOKENS, jnp.nan) if of_all else jnp.ones(TOKENS).at[4].set(jnp.nan)
    )
    _, grads = _values_and_grads(_chunked, _arrays(), weights, None)
    hidden, target, temperature, kernel = map(np.isnan, grads)
    for rows in (hidden, target):
        is_nan = rows.all(axis=1)
        np.testing.assert_array_equal(is_nan, np.isnan(weights))
        np.testing.assert_array_equal(rows.any(axis=1), is_nan)
    assert temperature
    assert kernel.all()


def test_an_invalid_token_may_have_any_cotangent():
    weights = jnp.where(NOT_THE_SECOND, 0.5, jnp.nan)
    where = jnp.asarray(NOT_THE_SECOND)
    actual = _values_and_grads(_chunked, _arrays(), weights, where)
    halves = jnp.full(TOKENS, 0.5)
    _assert_close(actual, _values_and_grads(_at_once, _arrays(), halves, where))


@pytest.mark.parametrize(
    ("weights", "kernel_is_trained", "passes"),
    [(EQUAL, True, 1), (UNEQUAL, True, 2), (UNEQUAL, False, 1)],
)
def test_how_often_the_logits_are_made(weights, kernel_is_trained, passes):
    made = 0

    def counted(own, kernel):
        nonlocal made
        made += 1  # Traced once a pass.
        return _of_token(own, kernel)

    def values(hidden, trained_kernel):
        _, *others, kernel = _arrays()
        kernel = trained_kernel if kernel_is_trained else kernel
        where = jnp.arange(TOKENS) != 0
        return _chunked(hidden, *others, kernel, where, fn=counted)

    _, pull = jax.vjp(values, _arrays()[0], _arrays()[-1])
    with jax.disable_jit():  # Of two branches only the one taken is traced.
        pull(jnp.asarray(weights))
    assert made == passes


def _of_gradients(fn, arrays, weights):
    """The square of the gradient of the square of the weighted sum."""

    def total(arrays):
        return jnp.sum(weights * fn(*arrays)) ** 2

    return sum(jnp.sum(x**2) for x in jax.grad(total)(arrays))


@pytest.mark.parametrize("weights", [EQUAL, UNEQUAL], ids=["equal", "unequal"])
def test_gradients_have_derivatives_in_both_modes(weights):
    """Also in weights that are equal: these need not stay so."""
    arrays = _arrays(), jnp.asarray(weights)
    tangents = jax.tree.map(lambda x: jnp.cos(3 * x), arrays)

    def both_modes(fn):
        fn = functools.partial(_of_gradients, fn)
        _, moved = jax.jvp(fn, arrays, tangents)
        return moved, jax.grad(fn, argnums=(0, 1))(*arrays)

    expected = jax.jit(functools.partial(both_modes, _at_once))()
    actual = jax.jit(functools.partial(both_modes, _chunked))()
    _assert_close(actual, expected, rtol=1e-5)


def test_values_have_no_derivative_in_forward_mode():
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(_chunked, _arrays(), _arrays())


def test_gradients_of_a_batch_of_batches():
    """Where whether the cotangents are equal is one question for each."""
    stacked = jax.tree.map(lambda x: jnp.stack([x, 2 * x]), _arrays())
    weights = jnp.stack([EQUAL, UNEQUAL])

    def grads(fn):
        one = functools.partial(_values_and_grads, fn, where=None)
        return jax.vmap(one)(stacked, weights)

    _assert_close(grads(_chunked), grads(_at_once))


def test_no_token_at_all():
    hidden, target, temperature, kernel = _arrays()
    arrays = hidden[:0], target[:0], temperature, kernel
    values, grads = _values_and_grads(_chunked, arrays, jnp.zeros(0), None)
    assert values.shape == (0,)
    jax.tree.map(lambda x: np.testing.assert_array_equal(x, 0), grads)


def _equations(jaxpr):
    """Those of a jaxpr and of all within it."""
    for equation in jaxpr.eqns:
        yield equation
        for x in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")
        ):
            if hasattr(x, "eqns"):
                yield from _equations(getattr(x, "jaxpr", x))


@pytest.mark.parametrize("student_kernel", [False, True])
def test_what_a_gradient_in_the_student_makes(student_kernel):
    """Nothing as large as all logits, and no product for a kernel that needs none."""
    tokens, student, teacher, vocab = 10, 3, 5, 16
    shapes = (tokens, student), (student, vocab), (tokens, teacher), (teacher, vocab)

    def total(*arrays):
        return jnp.sum(losses.linear_forward_kl(*arrays, chunk_size=2))

    grad_fn = jax.grad(total, argnums=(0, 1) if student_kernel else 0)
    jaxpr = jax.make_jaxpr(grad_fn)(*(jnp.ones(shape) for shape in shapes))
    results = [
        (x.primitive.name, v.aval) for x in _equations(jaxpr.jaxpr) for v in x.outvars
    ]
    assert max(aval.size for _, aval in results) < tokens * vocab
    products = collections.Counter(
        tuple(sorted(aval.shape)) for name, aval in results if name == "dot_general"
    )
    # Logits of both sides and the hidden state's gradient; also, with the kernel's,
    # what a second pass takes: no hidden state's.
    expected = {(2, vocab): 2, (2, student): 1}
    if student_kernel:
        expected |= {(2, vocab): 4, (student, vocab): 2}
    assert products == expected


def _temporary(fn, *shapes):
    """The bytes that a compiled function takes beside its arguments and results."""
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    compiled = jax.jit(fn).lower(*arrays).compile()
    return compiled.memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("argnums", [(0, 1), (0,)])
def test_the_logits_are_never_stored(argnums, order):
    """At a size where those of one side would take 8 times what is allowed."""
    tokens, dim, vocab = 4096, 8, 1024

    def total(*arrays):
        return jnp.mean(losses.linear_forward_kl(*arrays, chunk_size=16))

    def of_gradients(*arrays):
        return sum(jnp.sum(x**2) for x in jax.grad(total, argnums)(*arrays))

    fn = jax.value_and_grad(total if order == 1 else of_gradients, argnums)
    assert _temporary(fn, *2 * [(tokens, dim), (dim, vocab)]) < 4 * tokens * vocab / 8
