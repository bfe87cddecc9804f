"""The contract of the losses of features: of hints, attention, flows, boundaries."""

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

from kdjax.losses import (
    _attention,
    _boundaries,
    _channels,
    _flows,
    _hints,
    _pooling,
    _reviews,
)

pytestmark = pytest.mark.usefixtures("compiled_unfused")

MODULES = (_attention, _boundaries, _channels, _flows, _hints, _pooling, _reviews)

# Shapes after the batch; SMALL does not divide MAP.
VECTOR, LOGITS, MAP, SMALL = (6,), (7,), (5, 4, 3), (3, 6, 2)


class Fixed(NamedTuple):
    """An array that has no batch: a function of normal numbers."""

    shape: tuple[int, ...]
    of: Callable[[np.ndarray], np.ndarray]


class Case(NamedTuple):
    """A loss, its arrays and hyperparameters, and what the mathematics says of it.

    Attributes:
      takes: the shape of each array after the batch; a `Fixed`; or a tuple of these.
      kwargs: numbers, which must work traced.
      static: what no compiled function can be given as an argument.
      couples: whether a value depends on other examples of the batch.
      zero_at_teacher: whether value and student's gradient vanish at equal sides.
      smooth: whether they do so smoothly. A norm that is not squared is as steep next
        to zero, where rounding puts it, as anywhere.
      sides: the places of the student's arrays, and of the teacher's.
    """

    loss_fn: Callable[..., jax.Array]
    takes: tuple
    kwargs: Mapping[str, Any] = {}
    static: Mapping[str, Any] = {}
    couples: bool = False
    zero_at_teacher: bool = True
    smooth: bool = True
    sides: tuple[tuple[int, int], ...] = ((0, 1),)


PAIR, MAPS, SIZES = (VECTOR, VECTOR), (MAP, MAP), (MAP, SMALL)
VARIANCE, MARGINS = Fixed((3,), np.exp), Fixed((3,), lambda x: -np.abs(x))
LAYERS = ((MAP, SMALL, VECTOR), (VECTOR, MAP, SMALL))
AT, CAT = _attention.attention_transfer_loss, _attention.cat_kd_loss
CODE, REPDISTILLER = {"form": "author_code"}, {"form": "repdistiller"}

CASES = {
    "hint": Case(_hints.hint_loss, MAPS),
    "cosine": Case(_hints.cosine_loss, PAIR),
    "vid": Case(
        _hints.vid_loss, (MAP, VARIANCE, MAP), zero_at_teacher=False, sides=((0, 2),)
    ),
    "mgd": Case(_hints.mgd_loss, MAPS),
    "attention": Case(AT, SIZES, {"power": 2.0}, smooth=False),
    "attention_code": Case(AT, SIZES, {"power": 1.5}, CODE),
    "cat_kd": Case(CAT, ((5, 4, 2), SMALL)),
    "cat_kd_code": Case(CAT, ((5, 4, 2), SMALL), {}, {"size": 3, **CODE}),
    "semckd": Case(_attention.semckd_loss, (LAYERS, LAYERS, (2, 3))),
    "fsp": Case(_flows.fsp_loss, (((4, 4, 3), (2, 2, 2)), ((3, 1, 3), (3, 1, 2)))),
    "nst": Case(_flows.nst_loss, SIZES),
    "nst_gaussian": Case(_flows.nst_loss, SIZES, {}, {"kernel": "gaussian"}),
    "factor": Case(_flows.factor_loss, MAPS, smooth=False),
    "factor_other": Case(_flows.factor_loss, SIZES, {}, REPDISTILLER, smooth=False),
    "cwd": Case(_channels.cwd_loss, MAPS, {"temperature": 4.0}),
    "pkd": Case(_channels.pkd_loss, MAPS, couples=True),
    "ab": Case(_boundaries.ab_loss, MAPS, {"margin": 1.5}, zero_at_teacher=False),
    "ofd": Case(_boundaries.ofd_loss, (MAP, MAP, MARGINS)),
    "review": Case(_reviews.review_loss, MAPS),
    "srrl": Case(
        _reviews.srrl_loss,
        (MAP, SMALL[:2] + MAP[2:], LOGITS, LOGITS),
        {"logits_weight": 0.7},
        sides=((0, 1), (2, 3)),
    ),
}

# No losses: maps, matrices, masks. See their own tests.
TRANSFORMS = {
    _attention.class_attention_maps,
    _boundaries.ofd_margins,
    _flows.fsp_matrix,
    _hints.mgd_mask,
    _pooling.adaptive_average_pool,
}


def _public():
    for module in MODULES:
        for name, x in vars(module).items():
            if name[0] != "_" and getattr(x, "__module__", "") == module.__name__:
                yield x


@pytest.fixture(params=CASES.values(), ids=CASES.keys())
def case(request):
    return request.param


def _inputs(case, batch=8, dtype=jnp.float32, seed=0):
    """Standard normal numbers times 2. By NumPy: nothing to compile for each shape."""
    rng = np.random.default_rng(seed)

    def array(kind):
        if isinstance(kind, Fixed):
            return jnp.asarray(kind.of(rng.normal(size=kind.shape)), dtype)
        if isinstance(kind[0], tuple):
            return tuple(array(shape) for shape in kind)
        return jnp.asarray(2 * rng.normal(size=(batch, *kind)), dtype)

    return tuple(array(kind) for kind in case.takes)


def _by_batch(fn, case, inputs):
    """Applies `fn`, of NumPy arrays, to every array that has a batch."""

    def apply(x):
        return jnp.asarray(fn(np.array(x)))

    return tuple(
        x if isinstance(kind, Fixed) else jax.tree.map(apply, x)
        for kind, x in zip(case.takes, inputs, strict=True)
    )


def _loss_fn(case, **traced):
    return functools.partial(case.loss_fn, **case.static, **(case.kwargs | traced))


def _value_and_grads(case, inputs, **traced):
    def total(*inputs):
        values = _loss_fn(case, **traced)(*inputs)
        return jnp.sum(values), values

    grad_fn = jax.value_and_grad(total, tuple(range(len(inputs))), has_aux=True)
    (_, values), grads = grad_fn(*inputs)
    return values, grads


_COMPILED: dict[int, Callable] = {}


def _value_and_grads_jit(case, inputs, **traced):
    """Compiled once for all tests of the case, for each shape; `where` all True."""
    where = np.ones(jax.tree.leaves(inputs[0])[0].shape[0], bool)
    if id(case) not in _COMPILED:

        def value_and_grads(inputs, **traced):
            return _value_and_grads(case, inputs, **traced)

        _COMPILED[id(case)] = jax.jit(value_and_grads)
    return _COMPILED[id(case)](inputs, **{"where": where, **traced})


def _assert_close(actual, expected, rtol=1e-5, atol=2e-6):
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=atol),
        actual,
        expected,
    )


def _assert_finite(tree):
    for x in jax.tree.leaves(tree):
        assert np.all(np.isfinite(x)), x


def test_every_public_function_has_a_case():
    tested = {case.loss_fn for case in CASES.values()}
    assert set(_public()) == tested | TRANSFORMS
    assert not tested & TRANSFORMS


@pytest.mark.parametrize("function", list(_public()), ids=lambda x: x.__name__)
def test_the_documentation_is_complete(function):
    text = inspect.getdoc(function)
    sections = ["Args", "Returns", "Raises", "Examples", "References"]
    assert re.findall(r"^(\w+):$", text, flags=re.MULTILINE) == sections
    arguments = text[text.index("Args:") : text.index("Returns:")]
    for parameter in inspect.signature(function).parameters:
        assert f"\n  {parameter}: " in arguments, parameter
    assert ".. math::" in text


def test_losses_that_couple_examples_say_so(case):
    assert ("Couples examples" in case.loss_fn.__doc__) == case.couples


def test_everything_after_the_arrays_is_keyword_only(case):
    parameters = list(inspect.signature(case.loss_fn).parameters.values())
    positional = [x for x in parameters if x.kind is x.POSITIONAL_OR_KEYWORD]
    assert len(positional) == len(case.takes)
    assert positional[0].name.startswith("student_")
    assert parameters[-1].name == "where"


@pytest.mark.parametrize("batch", [1, 8])
def test_one_value_per_example(case, batch):
    values, grads = _value_and_grads_jit(case, _inputs(case, batch))
    assert values.shape == (batch,)
    assert values.dtype == jnp.float32
    _assert_finite((values, grads))


def test_traced_hyperparameters_are_as_good_as_numbers_without_another_trace(case):
    if not case.kwargs:
        pytest.skip("no hyperparameters")
    inputs = _inputs(case)
    traces = 0

    @jax.jit
    def compiled(inputs, kwargs):
        nonlocal traces
        traces += 1
        return _loss_fn(case, **kwargs)(*inputs)

    for factor in (0.5, 1.0):
        numbers = {name: factor * x for name, x in case.kwargs.items()}
        arrays = {name: jnp.asarray(x) for name, x in numbers.items()}
        _assert_close(compiled(inputs, arrays), _loss_fn(case, **numbers)(*inputs))
    assert traces == 1


def test_vmap_agrees_with_a_loop(case):
    batches = [_inputs(case, seed=seed) for seed in range(2)]
    stacked = jax.tree.map(lambda *xs: np.stack(xs), *batches)
    expected = [_value_and_grads_jit(case, batch)[0] for batch in batches]
    _assert_close(jax.jit(jax.vmap(_loss_fn(case)))(*stacked), np.stack(expected))


def test_half_precision_inputs_are_computed_in_float32(case):
    half = _inputs(case, dtype=jnp.bfloat16)
    full = jax.tree.map(lambda x: jnp.asarray(np.asarray(x, np.float32)), half)
    loss_fn = jax.jit(_loss_fn(case))
    values = loss_fn(*half)
    assert values.dtype == jnp.float32
    _assert_close(values, _value_and_grads_jit(case, full)[0])
    # Of sides of different precision too, which strict promotion would not mix.
    mixed = jax.eval_shape(_loss_fn(case), half[0], *full[1:])
    assert mixed.dtype == jnp.float32


def test_double_precision_is_kept_and_gradients_match_finite_differences(case):
    with jax.enable_x64(True):
        inputs, direction = (_inputs(case, 3, jnp.float64, seed) for seed in range(2))
        values, grads = _value_and_grads_jit(case, inputs)
        assert values.dtype == jnp.float64
        moved = (
            jax.tree.map(
                lambda x, v, step=step: np.asarray(x) + step * v, inputs, direction
            )
            for step in (1e-6, -1e-6)
        )
        above, below = (np.sum(_value_and_grads_jit(case, x)[0]) for x in moved)
        slope = sum(map(np.vdot, *map(jax.tree.leaves, (grads, direction))))
        np.testing.assert_allclose(slope, (above - below) / 2e-6, rtol=1e-6)


def test_invalid_examples_are_as_if_absent(case):
    inputs = _inputs(case)
    where = np.arange(8) != 1

    def poison(x):
        x[~where] = np.nan
        return x

    poisoned = _by_batch(poison, case, inputs)
    values, grads = _value_and_grads_jit(case, poisoned, where=jnp.asarray(where))
    kept = _by_batch(lambda x: x[where], case, inputs)
    expected, expected_grads = _value_and_grads_jit(case, kept)
    np.testing.assert_array_equal(np.asarray(values)[~where], 0)
    _assert_close(np.asarray(values)[where], expected)
    others = [
        np.asarray(x)[~where]
        for kind, tree in zip(case.takes, grads, strict=True)
        if not isinstance(kind, Fixed)
        for x in jax.tree.leaves(tree)
    ]
    assert all(np.all(x == 0) for x in others)
    _assert_close(_by_batch(lambda x: x[where], case, grads), expected_grads)


def test_a_batch_without_a_valid_example_is_zero(case):
    inputs = _by_batch(lambda x: np.full_like(x, np.nan), case, _inputs(case))
    values, grads = _value_and_grads_jit(case, inputs, where=jnp.zeros(8, bool))
    for x in jax.tree.leaves((values, grads)):
        np.testing.assert_array_equal(x, 0)


def test_nan_of_a_valid_example_is_not_hidden(case):
    inputs = _inputs(case)
    leaves, structure = jax.tree.flatten(inputs)
    for i, leaf in enumerate(leaves):
        if leaf.shape[0] != 8:
            continue  # It has no batch.
        broken = np.array(leaf)
        broken[2].flat[0] = np.nan
        changed = [*leaves[:i], jnp.asarray(broken), *leaves[i + 1 :]]
        values, _ = _value_and_grads_jit(case, jax.tree.unflatten(structure, changed))
        assert np.isnan(values[2])


def test_zeros_and_equal_examples_have_finite_gradients(case):
    inputs = _inputs(case)
    zeros = _by_batch(np.zeros_like, case, inputs)
    equal = _by_batch(lambda x: np.broadcast_to(x[:1], x.shape), case, inputs)
    constant = _by_batch(np.ones_like, case, inputs)
    no_student, no_teacher = (zeros[0], *inputs[1:]), (inputs[0], *zeros[1:])
    for degenerate in (zeros, equal, constant, no_student, no_teacher):
        _assert_finite(_value_and_grads_jit(case, degenerate))


@pytest.mark.parametrize("size", [1e4, 1e-4])
def test_huge_and_tiny_features_are_finite(case, size):
    inputs = _by_batch(lambda x: size * x, case, _inputs(case))
    _assert_finite(_value_and_grads_jit(case, inputs))


def test_zero_at_the_teacher(case):
    inputs = list(_inputs(case))
    for student, teacher in case.sides:
        inputs[student] = inputs[teacher]
    values, grads = _value_and_grads_jit(case, tuple(inputs))
    if not case.zero_at_teacher:
        assert np.all(np.abs(values) > 1e-3)
        return
    students = [grads[student] for student, _ in case.sides if case.smooth]
    for x in jax.tree.leaves((values, students)):
        np.testing.assert_allclose(x, 0, atol=2e-6)


def test_micro_batches_add_up(case):
    inputs = _inputs(case)
    parts = [
        _by_batch(lambda x, rows=rows: x[rows], case, inputs)
        for rows in (slice(0, 1), slice(1, None))
    ]
    values = np.concatenate([_value_and_grads_jit(case, part)[0] for part in parts])
    whole, _ = _value_and_grads_jit(case, inputs)
    if case.couples:
        assert np.any(np.abs(values - whole) > 1e-4)
    else:
        _assert_close(values, whole)


def test_sharding_the_batch_over_devices_changes_nothing(case):
    assert jax.device_count() == 8
    inputs, where = _inputs(case), jnp.arange(8) != 5
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))

    def put(x):
        return jax.device_put(x, NamedSharding(mesh, PartitionSpec("data")))

    values = jax.jit(_loss_fn(case))(*_by_batch(put, case, inputs), where=put(where))
    _assert_close(values, _value_and_grads_jit(case, inputs, where=where)[0])


@pytest.mark.usefixtures("as_in_production")
def test_misuse_says_what_was_expected(case):
    inputs = _inputs(case)
    loss_fn = _loss_fn(case)
    for i, x in enumerate(inputs):
        integers = jax.tree.map(lambda x: jnp.asarray(np.asarray(x, np.int32)), x)
        with pytest.raises(TypeError, match=r"Expected floating-point \S+, got int32"):
            loss_fn(*inputs[:i], integers, *inputs[i + 1 :])
        fewer = jax.tree.map(lambda x: jnp.asarray(np.asarray(x)[:2]), x)
        with pytest.raises(ValueError, match=r"Expected .*got"):
            loss_fn(*inputs[:i], fewer, *inputs[i + 1 :])
    with pytest.raises(TypeError, match="Expected boolean where, got float32"):
        loss_fn(*inputs, where=jnp.ones(8))
    with pytest.raises(ValueError, match=r"Expected where \(8,\).*got \(8, 7\)"):
        loss_fn(*inputs, where=jnp.ones((8, 7), bool))
    for name in {"form", "kernel"} & set(inspect.signature(case.loss_fn).parameters):
        with pytest.raises(ValueError, match=rf"Expected {name} to be one of .*'not'"):
            case.loss_fn(*inputs, **{name: "not"})
    for name in {"temperature", "power", "margin"} & set(case.kwargs):
        with pytest.raises(ValueError, match=f"Expected {name} > 0, got 0.0"):
            _loss_fn(case, **{name: 0.0})(*inputs)
