"""The contract of the losses of encoders and of sequences of tokens."""

import functools
import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from kdjax.losses import _encoders, _relations_of_tokens, _sequences

pytestmark = pytest.mark.usefixtures("compiled_unfused")

MODULES = (_encoders, _relations_of_tokens, _sequences)
BATCH, LENGTH, HEADS, CLASSES = 4, 3, 2, 5

SHAPES = {
    "h": (BATCH, LENGTH, 4),  # Hidden states, of either side.
    "H": (BATCH, LENGTH, 6),
    "a": (BATCH, HEADS, LENGTH, LENGTH),
    "z": (BATCH, LENGTH, CLASSES),
    "Z": (BATCH, LENGTH, 7),
}


class Case(NamedTuple):
    """A loss, its hyperparameters, and what the mathematics says of it.

    Attributes:
      kwargs: numbers, which must work traced.
      static: what no compiled function can be given as an argument.
      takes: the arrays, by the letters of `SHAPES`, and integer `l`abels.
      zero_at_teacher: whether value and gradient vanish where both sides are equal.
      detaches: whether a part is not differentiated on purpose.
      averages: whether it is a mean that counts padding, or impossible classes.
    """

    loss_fn: Callable[..., jax.Array]
    kwargs: Mapping[str, Any] = {}
    static: Mapping[str, Any] = {}
    takes: str = "hh"
    zero_at_teacher: bool = True
    detaches: bool = False
    averages: bool = False


CODE = {"form": "author_code"}
TEMPERATURES = {"student_temperature": 1.5, "teacher_temperature": 2.0}
ATTENTION = _encoders.tinybert_attention_loss
PREDICTION = _encoders.tinybert_prediction_loss

CASES = {
    "tinybert_hidden": Case(_encoders.tinybert_hidden_loss),
    "tinybert_attention": Case(ATTENTION, takes="aa"),
    "tinybert_attention_code": Case(ATTENTION, {}, CODE, takes="aa", averages=True),
    "tinybert_prediction": Case(
        PREDICTION, {"temperature": 2.0}, takes="zz", zero_at_teacher=False
    ),
    "tinybert_prediction_code": Case(
        PREDICTION, {}, CODE, takes="zz", zero_at_teacher=False, averages=True
    ),
    "patient": Case(_encoders.patient_loss),
    "hidden_cosine": Case(_encoders.hidden_cosine_loss),
    "minilm": Case(
        _relations_of_tokens.minilm_loss, {}, {"num_heads": 2}, takes="hhhHHH"
    ),
    "minilm_relation": Case(
        _relations_of_tokens.minilm_relation_loss,
        {},
        {"num_relation_heads": 2},
        takes="hhhHHH",
    ),
    "minillm_step": Case(
        _sequences.minillm_step_loss,
        {"teacher_share": 0.2},
        takes="zzl",
        detaches=True,
    ),
    "uld": Case(_sequences.uld_loss, TEMPERATURES, takes="zZ"),
    "mft": Case(
        _sequences.mft_loss,
        {"margin": 0.2, "temperature": 2.0},
        takes="zzl",
        zero_at_teacher=False,
        detaches=True,
    ),
}
OF_LOGITS = [name for name, case in CASES.items() if case.takes[0] == "z"]


@pytest.fixture(params=CASES.values(), ids=CASES.keys())
def case(request):
    return request.param


@pytest.fixture(params=OF_LOGITS)
def case_of_logits(request):
    return CASES[request.param]


def _inputs(case, dtype=jnp.float32, seed=0):
    """Normal numbers times 2, and labels short of the last class."""
    rng = np.random.default_rng(seed)

    def array(kind):
        if kind == "l":
            labels = rng.integers(0, CLASSES - 1, (BATCH, LENGTH))
            return jnp.asarray(labels, jnp.int32)
        return jnp.asarray(2 * rng.normal(size=SHAPES[kind]), dtype)

    return tuple(map(array, case.takes))


def _map(fn, case, inputs):
    """Applies `fn`, of a letter and a NumPy array, to every input but labels."""
    return tuple(
        x if kind == "l" else jnp.asarray(fn(kind, np.array(x)), x.dtype)
        for kind, x in zip(case.takes, inputs, strict=True)
    )


def _loss_fn(case, **traced):
    return functools.partial(case.loss_fn, **case.static, **(case.kwargs | traced))


def _floats(case):
    return tuple(i for i, kind in enumerate(case.takes) if kind != "l")


def _value_and_grads(case, inputs, kwargs, where=None):
    """Values, and gradients in the arrays and in the hyperparameters."""
    labels = inputs[len(_floats(case)) :]

    def total(floats, kwargs):
        values = _loss_fn(case, **kwargs)(*floats, *labels, where=where)
        return jnp.sum(values), values

    grad_fn = jax.value_and_grad(total, (0, 1), has_aux=True)
    (_, values), grads = grad_fn(inputs[: len(_floats(case))], kwargs)
    return values, *grads


_TRACES: dict[tuple, int] = {}


@functools.cache
def _compiled(name):
    """The loss with its gradients, compiled once for all tests of the case."""
    case = CASES[name]

    @jax.jit
    def value_and_grads(inputs, kwargs, where):
        seen = name, *(x.shape for x in inputs), inputs[0].dtype
        _TRACES[seen] = _TRACES.get(seen, 0) + 1
        return _value_and_grads(case, inputs, kwargs, where)

    return value_and_grads


def _run(case, inputs, where=True, factor=1.0):
    """Values and gradients in the arrays, hyperparameters traced, times `factor`."""
    return _run_all(case, inputs, where, factor)[:2]


def _run_all(case, inputs, where=True, factor=1.0):
    name = next(name for name, x in CASES.items() if x is case)
    where = np.broadcast_to(where, (inputs[0].shape[0], inputs[0].shape[-2]))
    kwargs = {name: jnp.asarray(factor * x) for name, x in case.kwargs.items()}
    return _compiled(name)(inputs, kwargs, jnp.asarray(where))


def _assert_close(actual, expected, rtol=1e-5, atol=1e-6):
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=atol),
        actual,
        expected,
    )


def _assert_zero(tree):
    jax.tree.map(lambda x: np.testing.assert_array_equal(x, 0), tree)


def _assert_finite(tree):
    for x in jax.tree.leaves(tree):
        assert np.all(np.isfinite(x)), x


def test_every_public_function_has_a_case():
    public = {
        fn
        for module in MODULES
        for name, fn in inspect.getmembers(module, inspect.isfunction)
        if fn.__module__ == module.__name__ and not name.startswith("_")
    }
    assert public == {case.loss_fn for case in CASES.values()}


def test_the_documentation_is_complete(case):
    text = inspect.getdoc(case.loss_fn)
    found = re.findall(r"^(\w+):$", text, flags=re.MULTILINE)
    assert found == ["Args", "Returns", "Raises", "Examples", "References"]
    assert ".. math::" in text
    assert "Couples examples" not in text
    arguments = text[text.index("Args:") : text.index("Returns:")]
    parameters = inspect.signature(case.loss_fn).parameters
    assert all(f"\n  {name}: " in arguments for name in parameters)
    positional = [x for x in parameters.values() if x.kind is x.POSITIONAL_OR_KEYWORD]
    assert len(positional) == len(case.takes)
    assert positional[0].name.startswith("student_")
    assert list(parameters)[-1] == "where"


def test_one_value_per_token(case):
    values, grads = _run(case, _inputs(case))
    assert values.shape == (BATCH, LENGTH)
    assert values.dtype == jnp.float32
    _assert_finite((values, grads))


def test_numbers_are_as_good_as_traced_ones_which_compile_once(case):
    """And a run operation by operation is as good as a compiled one."""
    inputs = _inputs(case)
    for factor in (0.5, 1.0):
        numbers = {name: factor * x for name, x in case.kwargs.items()}
        values, _ = _run(case, inputs, factor=factor)
        if case.kwargs or factor == 1.0:
            _assert_close(values, _loss_fn(case, **numbers)(*inputs))
    assert set(_TRACES.values()) == {1}


def test_vmap_agrees_with_a_loop(case):
    inputs = _inputs(case)
    mapped = jax.jit(jax.vmap(_loss_fn(case)))(*inputs)
    _assert_close(mapped, _run(case, inputs)[0])


def test_half_precision_is_computed_in_float32(case):
    half = _inputs(case, jnp.bfloat16)
    full = tuple(
        x if x.dtype == jnp.int32 else jnp.asarray(np.asarray(x, np.float32))
        for x in half
    )
    values = jax.jit(_loss_fn(case))(*half)
    assert values.dtype == jnp.float32
    _assert_close(values, _run(case, full)[0])
    # Of sides of different precision too, which strict promotion would not mix.
    mixed = jax.eval_shape(_loss_fn(case), half[0], *full[1:])
    assert mixed.dtype == jnp.float32


def test_double_precision_is_kept_and_gradients_match_finite_differences(case):
    with jax.enable_x64(True):
        inputs, direction = (_inputs(case, jnp.float64, seed) for seed in range(2))
        values, grads, of_kwargs = _run_all(case, inputs)
        assert values.dtype == jnp.float64
        if case.detaches:
            return  # A part is constant by definition: see its own test.
        above, below = (
            np.sum(
                _run(
                    case,
                    tuple(x + step * v for x, v in zip(inputs, direction, strict=True)),
                    factor=1 + step,
                )[0]
            )
            for step in (1e-6, -1e-6)
        )
        slope = sum(map(np.vdot, grads, direction))
        slope += sum(case.kwargs[name] * grad for name, grad in of_kwargs.items())
        np.testing.assert_allclose(slope, (above - below) / 2e-6, rtol=1e-6)


def _poisoned(case, inputs, where):
    """NaN and -100 at all tokens but those of `where`."""

    def poison(kind, x):
        if kind == "a":  # As a query or as a key.
            valid = where[:, None, :, None] & where[:, None, None]
        else:
            valid = where[..., None]
        return np.where(valid, x, np.nan)

    labels = (jnp.where(where, x, -100) for x in inputs[len(_floats(case)) :])
    return (*_map(poison, case, inputs)[: len(_floats(case))], *labels)


def test_invalid_tokens_are_as_if_absent(case):
    """Padding at the end of all sequences is as sequences without it."""
    inputs = _inputs(case)
    where = np.broadcast_to(np.arange(LENGTH) < 2, (BATCH, LENGTH))
    values, grads, of_kwargs = _run_all(case, _poisoned(case, inputs, where), where)

    def cut(kind, x):
        return x[:, :, :2, :2] if kind == "a" else x[:, :2]

    shorter = tuple(map(cut, case.takes, inputs))
    expected, expected_grads, expected_of_kwargs = _run_all(case, shorter)
    scale = 2 / 3 if case.averages and "a" in case.takes else 1.0
    _assert_close(values[:, :2], scale * expected)
    _assert_close(of_kwargs, expected_of_kwargs)
    _assert_zero(values[:, 2:])
    for i, grad, other in zip(_floats(case), grads, expected_grads, strict=True):
        kept = cut(case.takes[i], grad)
        _assert_close(kept, scale * other)
        assert np.count_nonzero(grad) == np.count_nonzero(kept)


def test_nothing_valid_is_zero(case):
    nothing = np.zeros((BATCH, LENGTH), bool)
    _assert_zero(_run_all(case, _poisoned(case, _inputs(case), nothing), nothing))


def test_what_is_invalid_makes_no_nan_on_the_way(case):
    """So that `jax_debug_nans` finds those that matter. One sequence is all padding."""
    where = np.arange(LENGTH) < np.array([2, 0, 3, 1])[:, None]
    poisoned = _poisoned(case, _inputs(case), where)
    with jax.debug_nans(True):
        _loss_fn(case)(*poisoned, where=jnp.asarray(where))


def test_nan_is_not_hidden_and_stays_in_its_sequence(case):
    inputs = _inputs(case)
    for i in _floats(case):
        broken = np.array(inputs[i])
        broken[2, ..., 1, 0] = np.nan
        for others in (inputs, tuple(map(jnp.zeros_like, inputs))):
            changed = (*others[:i], jnp.asarray(broken), *others[i + 1 :])
            values, _ = _run(case, changed)
            assert np.any(np.isnan(values[2]))
            assert not np.any(np.isnan(np.delete(values, 2, axis=0)))


def test_zero_at_the_teacher(case):
    """Both sides of the student's shapes, where their shapes may differ."""
    of_student = len(_floats(case)) // 2
    inputs = _inputs(case)
    inputs = (*inputs[:of_student] * 2, *inputs[2 * of_student :])
    if case.takes == "zZ":
        case = case._replace(kwargs={})  # Its temperatures differ.
        values, grads, _ = jax.jit(lambda x: _value_and_grads(case, x, {}))(inputs)
    else:
        values, grads = _run(case, inputs)
    if case.zero_at_teacher:
        for x in (values, *grads[:of_student]):
            np.testing.assert_allclose(x, 0, atol=1e-6)
    else:
        assert np.all(values > 1e-3)


@pytest.mark.parametrize("size", [0.0, 50.0, 1e4])
def test_zeros_and_large_numbers_are_finite(case, size):
    inputs = _map(lambda kind, x: size * np.sign(x), case, _inputs(case))
    _assert_finite(_run(case, inputs))
    for i in _floats(case):
        zero = (*inputs[:i], jnp.zeros_like(inputs[i]), *inputs[i + 1 :])
        _assert_finite(_run(case, zero))


def test_micro_batches_add_up_and_shards_agree(case):
    inputs = _inputs(case)
    values, _ = expected = _run(case, inputs)
    one = jax.jit(_loss_fn(case))(*(x[:1] for x in inputs))
    _assert_close(one, values[:1])
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    sharded = tuple(jax.device_put(x, sharding) for x in inputs)
    _assert_close(_run(case, sharded), expected)


def test_a_constant_and_the_order_of_the_classes_do_not_matter(case_of_logits):
    case = case_of_logits
    inputs = _inputs(case)
    expected, _ = _run(case, inputs)
    shifted = _map(lambda kind, x: x + (5 if kind == "z" else -8), case, inputs)
    _assert_close(_run(case, shifted)[0], expected, rtol=2e-5)
    order = np.array([3, 0, 2, 1, 4])
    permuted = _map(lambda kind, x: x[..., order] if kind == "z" else x, case, inputs)
    floats = len(_floats(case))
    labels = (jnp.asarray(np.argsort(order)[x], x.dtype) for x in inputs[floats:])
    _assert_close(_run(case, (*permuted[:floats], *labels))[0], expected)


def test_a_class_that_is_impossible_on_all_sides_is_as_if_deleted(case_of_logits):
    case = case_of_logits

    def exclude(kind, x):
        x[..., -1] = -np.inf
        return x

    excluded = _map(exclude, case, _inputs(case))
    values, grads = _run(case, excluded)
    _assert_finite((values, grads))
    for grad in grads:
        _assert_zero(grad[..., -1])
    deleted = _map(lambda kind, x: x[..., :-1], case, excluded)
    expected = jax.jit(_loss_fn(case))(*deleted)
    scale = (CLASSES - 1) / CLASSES if case.averages else 1.0
    _assert_close(values, scale * expected)


@pytest.mark.parametrize("name", [x for x in OF_LOGITS if "l" in CASES[x].takes])
def test_a_label_that_is_no_class_is_not_scored(name):
    case = CASES[name]
    *logits, labels = _inputs(case)
    for label in (-1, -100, CLASSES):
        values, _ = _run(case, (*logits, labels.at[1, 2].set(label)))
        assert np.isnan(values[1, 2])
        assert np.count_nonzero(np.isnan(values)) == 1


@pytest.mark.usefixtures("as_in_production")
def test_misuse_says_what_was_expected(case):
    inputs = _inputs(case)
    loss_fn = _loss_fn(case)
    for i in _floats(case):
        integers = jnp.asarray(np.array(inputs[i]), jnp.int32)
        with pytest.raises(TypeError, match=r"Expected floating-point \w+, got int32"):
            loss_fn(*inputs[:i], integers, *inputs[i + 1 :])
        fewer = jnp.asarray(np.array(inputs[i])[:3])
        with pytest.raises(ValueError, match=r"Expected .*got .*\(3, "):
            loss_fn(*inputs[:i], fewer, *inputs[i + 1 :])
    with pytest.raises(TypeError, match="Expected boolean where, got float32"):
        loss_fn(*inputs, where=jnp.ones((BATCH, LENGTH)))
    with pytest.raises(ValueError, match=r"Expected where \(4, 3\).*got \(4,\)"):
        loss_fn(*inputs, where=jnp.ones(4, bool))
    if "l" in case.takes:
        with pytest.raises(TypeError, match="Expected integer labels, got float32"):
            loss_fn(*inputs[:-1], jnp.ones((BATCH, LENGTH)))
    if "form" in case.static:
        with pytest.raises(ValueError, match="Expected form to be one of"):
            _loss_fn(case._replace(static={"form": "mine"}))(*inputs)
    for name in case.static:
        if "heads" in name:
            with pytest.raises(ValueError, match=f"Expected {name} to divide 4"):
                _loss_fn(case._replace(static={name: 3}))(*inputs)
    for name in case.kwargs:
        bad, words = (0.0, "> 0") if "temperature" in name else (1.5, "between 0 and 1")
        with pytest.raises(ValueError, match=f"Expected {name} {words}, got {bad}"):
            _loss_fn(case, **{name: bad})(*inputs)
