"""The contract of the losses of relations, exits, generators and federations."""

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
    _adversarial,
    _contrastive,
    _crd,
    _data_free,
    _exits,
    _federated,
    _relations,
    _spectral,
)

pytestmark = pytest.mark.usefixtures("compiled_unfused")

MODULES = (
    _adversarial,
    _contrastive,
    _crd,
    _data_free,
    _exits,
    _federated,
    _relations,
    _spectral,
)

# Input kinds: shape after the batch; a stack has its own axis before the batch.
EMBEDDING, WIDE, MAP, SMALL_MAP, LOGITS = (6,), (9,), (3, 5, 4), (2, 3, 4), (7,)


class Stack(NamedTuple):
    """A stack of arrays, `[2, batch, *shape]`."""

    shape: tuple[int, ...]


class Case(NamedTuple):
    """A loss, its arrays and hyperparameters, and what the mathematics says of it.

    Attributes:
      takes: the shape of each array after the batch; a `Stack`; or a tuple of shapes
        for a tuple of arrays.
      kwargs: numbers, which must work traced.
      static: what no compiled function can be given as an argument.
      couples: whether a value depends on other examples of the batch.
      at_teacher: what value and student's gradient are at equal sides: 'zero', or
        'other', or 'none' where sides are no pair of the same shape.
      detaches: the inputs that are not differentiated on purpose.
    """

    loss_fn: Callable[..., jax.Array]
    takes: tuple
    kwargs: Mapping[str, Any] = {}
    static: Mapping[str, Any] = {}
    couples: bool = False
    at_teacher: str = "zero"
    detaches: tuple[int, ...] = ()


def _crd_loss(student, teacher, *, where=None, **kwargs):
    """With a memory that has seen a batch, and fixed indices."""
    batch = student.shape[0]
    memory = _crd.init_crd_memory(jax.random.key(7), num_examples=11, dim=6)
    unset = jnp.float32(2.5)
    memory = memory._replace(
        student_log_normalizer=unset, teacher_log_normalizer=unset + 1
    )
    indices = jnp.broadcast_to(jnp.array([[2, 5, 9, 1]]), (batch, 4))
    return _crd.crd_loss(student, teacher, memory, indices, where=where, **kwargs)


PAIR, PAIR_OF_SIZES, MAPS = (EMBEDDING, EMBEDDING), (EMBEDDING, WIDE), (MAP, SMALL_MAP)
CODE = {"form": "author_code"}

CASES = {
    "rkd_distance": Case(_relations.rkd_distance_loss, PAIR_OF_SIZES, couples=True),
    "rkd_angle": Case(_relations.rkd_angle_loss, PAIR_OF_SIZES, couples=True),
    "similarity": Case(_relations.similarity_preserving_loss, MAPS, couples=True),
    "pkt": Case(_relations.pkt_loss, PAIR_OF_SIZES, couples=True),
    "pkt_code": Case(_relations.pkt_loss, PAIR_OF_SIZES, {}, CODE, couples=True),
    "correlation": Case(
        _relations.correlation_congruence_loss,
        PAIR_OF_SIZES,
        {"gamma": 0.4},
        {"order": 3},
        couples=True,
    ),
    "correlation_repdistiller": Case(
        _relations.correlation_congruence_loss,
        PAIR,
        {},
        {"form": "repdistiller"},
        couples=True,
    ),
    "cka": Case(_spectral.cka_loss, MAPS, couples=True),
    "cka_debiased": Case(
        _spectral.cka_loss, MAPS, {}, {"debiased": True}, couples=True
    ),
    "ickd": Case(_spectral.ickd_loss, MAPS),
    "ickd_code": Case(_spectral.ickd_loss, MAPS, {}, CODE),
    "kdsvd_2": Case(
        _spectral.kdsvd_loss, ((MAP, MAP), (SMALL_MAP, MAP)), {}, {"num_vectors": 2}
    ),
    "contrastive": Case(
        _contrastive.contrastive_loss,
        PAIR,
        {"temperature": 0.5},
        couples=True,
        at_teacher="other",
    ),
    "crd": Case(_crd_loss, PAIR, {"temperature": 2.0}, at_teacher="other"),
    "byot": Case(
        _exits.byot_loss, (Stack(LOGITS), LOGITS), {"temperature": 3.0}, detaches=(1,)
    ),
    "byot_feature": Case(_exits.byot_feature_loss, (Stack(MAP), MAP), detaches=(1,)),
    "one_hot": Case(_data_free.one_hot_loss, (LOGITS,), at_teacher="none"),
    "activation": Case(_data_free.activation_loss, (MAP,), at_teacher="none"),
    "entropy": Case(
        _data_free.information_entropy_loss, (LOGITS,), couples=True, at_teacher="none"
    ),
    "batch_norm": Case(
        lambda x, **kwargs: _data_free.batch_norm_statistics_loss(
            x, jnp.arange(4.0), 2 + jnp.arange(4.0), **kwargs
        ),
        (MAP,),
        couples=True,
        at_teacher="none",
    ),
    "image_variation": Case(
        _data_free.image_total_variation, (MAP,), at_teacher="none"
    ),
    "image_variation_code": Case(
        _data_free.image_total_variation,
        (MAP,),
        {},
        CODE,
        couples=True,
        at_teacher="none",
    ),
    "dfad_generator": Case(_adversarial.dfad_generator_loss, (LOGITS, LOGITS)),
    "dfad_generator_log": Case(
        _adversarial.dfad_generator_loss,
        (LOGITS, LOGITS),
        {},
        {"form": "log"},
        couples=True,
    ),
    "zskt": Case(
        _adversarial.zskt_loss,
        (LOGITS, LOGITS, (MAP, SMALL_MAP), (MAP, SMALL_MAP)),
        {"attention_weight": 2.5},
        at_teacher="none",
    ),
    "zskt_generator": Case(_adversarial.zskt_generator_loss, (LOGITS, LOGITS)),
    "feddf": Case(_federated.feddf_loss, (LOGITS, Stack(LOGITS))),
    "fedgkd": Case(
        _federated.fedgkd_loss,
        (LOGITS, Stack(LOGITS)),
        {"weights": jnp.array([0.2, 0.5])},
    ),
}

# Behind a wrapper above, or no loss. See their own tests.
OTHERS = {
    _adversarial.dfad_loss,
    _crd.CRDMemory,
    _crd.crd_loss,
    _crd.init_crd_memory,
    _crd.sample_contrast_indices,
    _crd.update_crd_memory,
    _data_free.batch_norm_statistics_loss,
    _federated.federated_average,
    _federated.fedmd_consensus,
}


def _public():
    for module in MODULES:
        for name, x in vars(module).items():
            if (
                not name.startswith("_")
                and getattr(x, "__module__", "") == module.__name__
            ):
                yield x


@pytest.fixture(params=CASES.values(), ids=CASES.keys())
def case(request):
    return request.param


def _inputs(case, batch=5, dtype=jnp.float32, seed=0):
    """Standard normal numbers times 2."""
    keys = iter(jax.random.split(jax.random.key(seed), 8))

    def array(kind):
        if isinstance(kind, Stack):
            shape = (2, batch, *kind.shape)
        elif isinstance(kind[0], tuple):
            return tuple(array(shape) for shape in kind)
        else:
            shape = (batch, *kind)
        return 2 * jax.random.normal(next(keys), shape, dtype)

    return tuple(array(kind) for kind in case.takes)


def _by_batch(fn, case, inputs):
    """Applies `fn` to every array, its batch first."""

    def of(kind, x):
        if isinstance(kind, Stack):
            return jnp.moveaxis(fn(jnp.moveaxis(x, 1, 0)), 0, 1)
        return jax.tree.map(fn, x)

    return tuple(of(kind, x) for kind, x in zip(case.takes, inputs, strict=True))


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
    shape = jax.tree.leaves(inputs[0])[0].shape
    where = np.ones(shape[isinstance(case.takes[0], Stack)], bool)
    if id(case) not in _COMPILED:

        def value_and_grads(inputs, **traced):
            return _value_and_grads(case, inputs, **traced)

        _COMPILED[id(case)] = jax.jit(value_and_grads)
    return _COMPILED[id(case)](inputs, **{"where": where, **traced})


def _assert_close(actual, expected, rtol=2e-5, atol=2e-6):
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=atol),
        actual,
        expected,
    )


def _assert_finite(tree):
    for x in jax.tree.leaves(tree):
        assert np.all(np.isfinite(x)), x


def test_every_public_function_has_a_case():
    tested = {case.loss_fn for case in CASES.values()} | OTHERS
    assert set(_public()) <= tested


@pytest.mark.parametrize("function", list(_public()), ids=lambda x: x.__name__)
def test_the_documentation_is_complete(function):
    if inspect.isclass(function):
        assert "Attributes:" in function.__doc__
        return
    text = inspect.getdoc(function)
    sections = ["Args", "Returns", "Raises", "Examples", "References"]
    assert re.findall(r"^(\w+):$", text, flags=re.MULTILINE) == sections
    arguments = text[text.index("Args:") : text.index("Returns:")]
    for parameter in inspect.signature(function).parameters:
        assert f"\n  {parameter}: " in arguments, parameter
    assert ".. math::" in text


def test_losses_that_couple_examples_say_so():
    for function in _public():
        cases = [case for case in CASES.values() if case.loss_fn is function]
        if cases:
            couples = any(case.couples for case in cases)
            assert ("ouples examples" in function.__doc__) == couples, function


@pytest.mark.parametrize("batch", [1, 4, 5])
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

    halves, same = (
        compiled(
            inputs, jax.tree.map(lambda x, f=f: jnp.asarray(f * x), {**case.kwargs})
        )
        for f in (0.5, 1.0)
    )
    _assert_close(same, _value_and_grads_jit(case, inputs)[0])
    assert np.any(halves != same)
    assert traces == 1


def test_vmap_agrees_with_a_loop(case):
    batches = [_inputs(case, seed=seed) for seed in range(2)]
    stacked = jax.tree.map(lambda *xs: jnp.stack(xs), *batches)
    expected = [_value_and_grads_jit(case, batch)[0] for batch in batches]
    actual = jax.jit(jax.vmap(_loss_fn(case)))(*stacked)
    _assert_close(actual, jnp.stack(expected))


def test_half_precision_inputs_are_computed_in_float32(case):
    half = _inputs(case, dtype=jnp.bfloat16)
    full = jax.tree.map(lambda x: x.astype(jnp.float32), half)
    values = jax.jit(_loss_fn(case))(*half)
    assert values.dtype == jnp.float32
    # 30 times finer than bfloat16 would be.
    _assert_close(values, _value_and_grads_jit(case, full)[0])


def test_double_precision_is_kept_and_gradients_match_finite_differences(case):
    with jax.enable_x64(True):
        inputs, direction = (_inputs(case, 4, jnp.float64, seed) for seed in range(2))
        values, grads = _value_and_grads_jit(case, inputs)
        assert values.dtype == jnp.float64

        def moved(step):
            along = jax.tree.map(lambda x, v: x + step * v, inputs, direction)
            return tuple(
                x if i in case.detaches else y
                for i, (x, y) in enumerate(zip(inputs, along, strict=True))
            )

        above, below = (
            np.sum(_value_and_grads_jit(case, moved(step))[0]) for step in (1e-6, -1e-6)
        )
        slope = sum(map(np.vdot, *map(jax.tree.leaves, (grads, direction))))
        np.testing.assert_allclose(slope, (above - below) / 2e-6, rtol=1e-6)


def test_what_the_method_detaches_has_no_gradient(case):
    _, grads = _value_and_grads_jit(case, _inputs(case))
    for i, grad in enumerate(grads):
        for x in jax.tree.leaves(grad):
            assert np.any(x != 0) == (i not in case.detaches)


def test_invalid_examples_are_as_if_absent(case):
    inputs = _inputs(case)
    where = jnp.array([True, False, True, True, True])

    def poison(x):
        mask = where.reshape(-1, *[1] * (x.ndim - 1))
        return jnp.where(jnp.broadcast_to(mask, x.shape), x, jnp.nan)

    poisoned = _by_batch(poison, case, inputs)
    values, grads = _value_and_grads_jit(case, poisoned, where=where)
    kept = _by_batch(lambda x: x[where], case, inputs)
    expected, expected_grads = _value_and_grads_jit(case, kept)
    np.testing.assert_array_equal(values[~where], 0)
    _assert_close(values[where], expected)
    others = _by_batch(lambda x: x[~where], case, grads)
    assert all(np.all(x == 0) for x in jax.tree.leaves(others))
    _assert_close(_by_batch(lambda x: x[where], case, grads), expected_grads)


def test_a_batch_without_a_valid_example_is_zero(case):
    inputs = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), _inputs(case))
    values, grads = _value_and_grads_jit(case, inputs, where=jnp.zeros(5, bool))
    for x in jax.tree.leaves((values, grads)):
        np.testing.assert_array_equal(x, 0)


def test_nan_of_a_valid_example_is_not_hidden(case):
    inputs = _by_batch(lambda x: x.at[2].set(jnp.nan), case, _inputs(case))
    assert np.isnan(_value_and_grads_jit(case, inputs)[0][2])


def test_zeros_and_coincident_examples_have_finite_gradients(case):
    inputs = _inputs(case)
    zeros = jax.tree.map(jnp.zeros_like, inputs)
    repeated = _by_batch(lambda x: x.at[1:3].set(x[:1]), case, inputs)
    for degenerate in (
        zeros,
        repeated,
        (zeros[0], *inputs[1:]),
        (inputs[0], *zeros[1:]),
    ):
        _assert_finite(_value_and_grads_jit(case, degenerate))


def test_zero_at_the_teacher(case):
    if case.at_teacher == "none":
        pytest.skip("no two sides of one kind")
    teacher = _inputs(case)[0 if not isinstance(case.takes[0], Stack) else 1]

    def like(kind):
        return jnp.stack([teacher] * 2) if isinstance(kind, Stack) else teacher

    inputs = tuple(like(kind) for kind in case.takes)
    values, grads = _value_and_grads_jit(case, inputs)
    if case.at_teacher == "other":
        assert np.all(values > 1e-3)
        return
    for x in jax.tree.leaves((values, grads[0])):
        np.testing.assert_allclose(x, 0, atol=1e-4)


def test_micro_batches_add_up(case):
    inputs = _inputs(case)
    parts = [
        _by_batch(lambda x, rows=rows: x[rows], case, inputs)
        for rows in (slice(0, 1), slice(1, None))
    ]
    values = jnp.concatenate([_value_and_grads_jit(case, part)[0] for part in parts])
    whole = _value_and_grads_jit(case, inputs)[0]
    if case.couples:
        assert np.any(np.abs(values - whole) > 1e-4)
    else:
        _assert_close(values, whole)


def test_sharding_the_batch_over_devices_changes_nothing(case):
    if not case.couples:
        pytest.skip("each example on its own")
    assert jax.device_count() == 8
    inputs, where = _inputs(case, 8), jnp.arange(8) != 5
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))

    def put(kind, x):
        spec = PartitionSpec(*[None] * isinstance(kind, Stack), "data")
        return jax.device_put(x, NamedSharding(mesh, spec))

    sharded = tuple(put(*x) for x in zip(case.takes, inputs, strict=True))
    loss_fn = jax.jit(_loss_fn(case))
    values = loss_fn(*sharded, where=put(None, where))
    _assert_close(values, loss_fn(*inputs, where=where))


@pytest.mark.usefixtures("as_in_production")
def test_misuse_says_what_was_expected(case):
    inputs = _inputs(case)
    loss_fn = _loss_fn(case)
    integers = jax.tree.map(lambda x: x.astype(jnp.int32), inputs[0])
    with pytest.raises(TypeError, match=r"Expected floating-point \w+, got int32\."):
        loss_fn(integers, *inputs[1:])
    if len(inputs) > 1:
        fewer = _by_batch(lambda x: x[:3], case, inputs)
        with pytest.raises(ValueError, match=r"Expected .*got"):
            loss_fn(fewer[0], *inputs[1:])
    with pytest.raises(TypeError, match="Expected boolean where, got float32"):
        loss_fn(*inputs, where=jnp.ones(5))
    with pytest.raises(ValueError, match=r"Expected where \(5,\).*got \(5, 7\)"):
        loss_fn(*inputs, where=jnp.ones((5, 7), bool))
    if "form" in inspect.signature(case.loss_fn).parameters:
        with pytest.raises(ValueError, match=r"Expected form to be one of .*'neither'"):
            case.loss_fn(*inputs, form="neither")
    for name in {"temperature", "gamma"} & set(case.kwargs):
        with pytest.raises(ValueError, match=f"Expected {name} > 0, got 0.0"):
            _loss_fn(case, **{name: 0.0})(*inputs)
