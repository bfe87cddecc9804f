"""The contract every public loss keeps, checked for all of them at once."""

import functools
import inspect
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from kdjax import losses

pytestmark = pytest.mark.usefixtures("compiled_unfused")

NUM_CLASSES = 7
NUM_TEACHERS = 3


class Case(NamedTuple):
    """A loss, its hyperparameters, and what the mathematics says of it.

    Attributes:
      kwargs: numbers, which must work traced.
      static: what no compiled function can be given as an argument.
      takes: the arrays: `s`tudent and `t`eacher logits, a stack `T` of teachers'
        logits, soft labels `p`, integer `l`abels.
      couples: whether a value depends on other examples of the batch.
      zero_at_teacher: whether value and gradient vanish at equal logits.
      detaches: whether a part is not differentiated on purpose.
      sees_shift: whether a constant added to the logits matters.
      excluded: a class at -inf on all sides 'vanishes', as if deleted; is 'finite',
        as where something is averaged over the classes; or has a 'cost', infinite.
      hot: whether temperature times the squared factor has a limit.
    """

    loss_fn: Callable[..., jax.Array]
    kwargs: Mapping[str, Any] = {}
    static: Mapping[str, Any] = {}
    takes: str = "st"
    couples: bool = False
    zero_at_teacher: bool = True
    detaches: bool = False
    sees_shift: bool = False
    excluded: str = "vanishes"
    hot: bool = False


DIST = {"inter_weight": 0.7, "intra_weight": 1.3, "temperature": 4.0}
DKD = {"target_weight": 0.5, "non_target_weight": 8.0, "temperature": 4.0}
NKD = {"non_target_weight": 1.5, "temperature": 2.0}
USKD = {"target_weight": 1.0, "non_target_weight": 0.4, "weak_weight": 0.3}
VIRTUAL = {"correct_prob": 0.8, "temperature": 5.0}
POOL = {"temperatures": (2.0, 4.0)}
CODE = {"form": "author_code"}
NORMALIZED = {"normalized": True}

CASES = {
    "cross_entropy": Case(losses.cross_entropy, {}, takes="sl", zero_at_teacher=False),
    "cross_entropy_smoothed": Case(
        losses.cross_entropy,
        {"label_smoothing": 0.2},
        takes="sl",
        zero_at_teacher=False,
        excluded="cost",
    ),
    "soft_cross_entropy": Case(
        losses.soft_cross_entropy, takes="sp", zero_at_teacher=False
    ),
    "hard_target": Case(losses.hard_target_loss, {}, zero_at_teacher=False),
    "hard_target_smoothed": Case(
        losses.hard_target_loss,
        {"label_smoothing": 0.2},
        zero_at_teacher=False,
        excluded="cost",
    ),
    "virtual_teacher": Case(
        losses.virtual_teacher_loss,
        VIRTUAL,
        takes="sl",
        zero_at_teacher=False,
        excluded="cost",
    ),
    "virtual_teacher_code": Case(
        losses.virtual_teacher_loss,
        VIRTUAL,
        CODE,
        takes="sl",
        zero_at_teacher=False,
        excluded="cost",
    ),
    "soft_target": Case(losses.soft_target_loss),
    "soft_target_tempered": Case(
        losses.soft_target_loss, {"temperature": 4.0}, hot=True
    ),
    "logit_matching": Case(losses.logit_matching_loss),
    "fedmd": Case(losses.fedmd_loss, sees_shift=True),
    "consistency": Case(losses.consistency_loss, excluded="finite"),
    "forward_kl": Case(losses.forward_kl, {"temperature": 2.0}),
    "reverse_kl": Case(losses.reverse_kl, {"temperature": 2.0}),
    "symmetric_kl": Case(
        losses.symmetric_kl, {"reverse_weight": 0.3, "temperature": 2.0}
    ),
    "total_variation": Case(losses.total_variation, {"temperature": 2.0}),
    "top_k_kl": Case(losses.top_k_kl, {"temperature": 2.0}, {"num_kept": 3}),
    "jensen_shannon": Case(losses.jensen_shannon, {"beta": 0.3, "temperature": 2.0}),
    "jensen_shannon_normalized": Case(losses.jensen_shannon, {"beta": 0.3}, NORMALIZED),
    "jensen_shannon_at_0": Case(losses.jensen_shannon, {"beta": 0.0}, NORMALIZED),
    "jensen_shannon_at_1": Case(losses.jensen_shannon, {"beta": 1.0}, NORMALIZED),
    "skew_forward_kl": Case(losses.skew_forward_kl, {"skew": 0.1, "temperature": 2.0}),
    "skew_forward_kl_at_0": Case(losses.skew_forward_kl, {"skew": 0.0}),
    "skew_reverse_kl": Case(losses.skew_reverse_kl, {"skew": 0.1, "temperature": 2.0}),
    "skew_reverse_kl_at_0": Case(losses.skew_reverse_kl, {"skew": 0.0}),
    "adaptive_kl": Case(
        losses.adaptive_kl, {"head_mass": 0.5, "temperature": 2.0}, detaches=True
    ),
    "dkd": Case(losses.dkd_loss, DKD, takes="stl", hot=True),
    "nkd": Case(losses.nkd_loss, NKD, takes="stl", zero_at_teacher=False),
    "uskd": Case(
        losses.uskd_loss,
        USKD,
        takes="stl",
        couples=True,
        zero_at_teacher=False,
        detaches=True,
        excluded="cost",
    ),
    "uskd_code": Case(
        losses.uskd_loss,
        USKD,
        CODE,
        takes="stl",
        couples=True,
        zero_at_teacher=False,
        detaches=True,
        excluded="cost",
    ),
    "wsld": Case(
        losses.wsld_loss,
        {"temperature": 2.0},
        takes="stl",
        zero_at_teacher=False,
        detaches=True,
    ),
    "ttm": Case(losses.ttm_loss, {"temperature": 4.0}, zero_at_teacher=False),
    "ttm_at_1": Case(losses.ttm_loss, {"temperature": 1.0}),
    "wttm": Case(losses.wttm_loss, {"temperature": 4.0}, zero_at_teacher=False),
    "cwtm": Case(losses.cwtm_loss, takes="stl", couples=True, zero_at_teacher=False),
    "dist": Case(losses.dist_loss, DIST, couples=True, excluded="finite"),
    "mlkd": Case(losses.mlkd_loss, POOL, couples=True, excluded="finite"),
    "mlkd_code": Case(losses.mlkd_loss, POOL, CODE, couples=True, excluded="finite"),
    "taid": Case(
        losses.taid_loss,
        {"interpolation": 0.4},
        zero_at_teacher=False,
        detaches=True,
    ),
    "multi_teacher": Case(
        losses.multi_teacher_loss, {"temperature": 4.0}, takes="sT", hot=True
    ),
    "multi_teacher_weighted": Case(
        losses.multi_teacher_loss, {"weights": jnp.array([1.0, 2.0, 0.5])}, takes="sT"
    ),
    "mutual": Case(losses.mutual_loss, {"temperature": 4.0}, takes="sT", hot=True),
}

# Not losses: logits, weights or a gradient in, the like out. See transforms_test.py.
TRANSFORMS = {
    losses.average_logits,
    losses.average_probs,
    losses.confidence_weights,
    losses.permute_non_argmax,
    losses.reverse_gradient,
    losses.standardize_logits,
    losses.taid_target,
}

# Modules of losses between logits; other families have contracts of their own.
MODULES = {
    "batch_relations",
    "decoupled",
    "divergences",
    "labels",
    "logits",
    "mixtures",
    "teachers",
    "transforms",
    "weighted",
}


@pytest.fixture(params=CASES.values(), ids=CASES.keys())
def case(request):
    return request.param


def _inputs(case, batch_shape=(4,), dtype=jnp.float32, seed=0):
    """The arrays that a loss takes: standard normal logits times 3, and labels."""
    keys = iter(jax.random.split(jax.random.key(seed), 4))
    shapes = {
        "s": (*batch_shape, NUM_CLASSES),
        "t": (*batch_shape, NUM_CLASSES),
        "T": (NUM_TEACHERS, *batch_shape, NUM_CLASSES),
        "p": (*batch_shape, NUM_CLASSES),
    }

    def array(kind):
        if kind == "l":
            return jax.random.randint(next(keys), batch_shape, 0, NUM_CLASSES - 1)
        x = 3 * jax.random.normal(next(keys), shapes[kind], dtype)
        return jax.nn.softmax(x) if kind == "p" else x

    return tuple(array(kind) for kind in case.takes)


def _loss_fn(case, **traced):
    return functools.partial(case.loss_fn, **case.static, **(case.kwargs | traced))


def _map(fn, case, inputs, labels=lambda x: x, probs=None):
    """Applies `fn` to logits, `labels` to labels, `probs` to soft labels."""
    by_kind = {"l": labels, "p": probs or fn}
    return tuple(
        by_kind.get(kind, fn)(x) for kind, x in zip(case.takes, inputs, strict=True)
    )


def _rows(case, inputs, rows):
    """The examples `rows` of every input; a stack of teachers keeps all teachers."""
    return tuple(
        x[:, rows] if kind == "T" else x[rows]
        for kind, x in zip(case.takes, inputs, strict=True)
    )


def _floats(case):
    """The places of the inputs with a gradient."""
    return tuple(i for i, kind in enumerate(case.takes) if kind != "l")


def _value_and_grads(case, inputs, **traced):
    def total(*inputs):
        values = _loss_fn(case, **traced)(*inputs)
        return jnp.sum(values), values

    grad_fn = jax.value_and_grad(total, argnums=_floats(case), has_aux=True)
    (_, values), grads = grad_fn(*inputs)
    return values, grads


_COMPILED: dict[int, Callable] = {}
_TRACES: list[int] = []


def _run(case, inputs, where=None, **changed):
    """Values and gradients, of one program for all tests of the case and each shape.

    Hyperparameters are traced, and so is `where`, all True if absent. Taken where a
    test is not about eager execution, which compiles each operation.
    """
    if id(case) not in _COMPILED:

        def value_and_grads(inputs, kwargs, where):
            _TRACES.append(id(case))
            return _value_and_grads(case, inputs, where=where, **kwargs)

        _COMPILED[id(case)] = jax.jit(value_and_grads)
    kwargs = jax.tree.map(jnp.asarray, {**case.kwargs, **changed})
    where = np.ones(inputs[0].shape[:-1], bool) if where is None else where
    return _COMPILED[id(case)](inputs, kwargs, where)


def _scaled(kwargs, factor):
    """The same, each number times `factor`, as arrays: what a trace sees."""
    return jax.tree.map(lambda x: jnp.asarray(factor * x), dict(kwargs))


def _assert_close(actual, expected, rtol=1e-5, atol=1e-6):
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=atol),
        actual,
        expected,
    )


def _assert_finite(tree):
    for x in jax.tree.leaves(tree):
        assert np.all(np.isfinite(x)), x


def test_every_public_function_of_logits_has_a_case():
    functions = [getattr(losses, name) for name in losses.__all__]
    public = {x for x in functions if x.__module__.rpartition("._")[2] in MODULES}
    tested = {case.loss_fn for case in CASES.values()}
    assert public == tested | TRANSFORMS
    assert not tested & TRANSFORMS


def test_every_module_of_losses_has_a_contract():
    """In the `MODULES` of a file that has a case, or tests, for all that they offer."""
    modules = {getattr(losses, name).__module__ for name in losses.__all__}
    texts = [x.read_text() for x in pathlib.Path(__file__).parent.glob("*_test.py")]
    pattern = re.compile(r"^MODULES = [({](.*?)[)}]$", re.M | re.S)
    listed = " ".join(match for text in texts for match in pattern.findall(text))
    contracts = {name.lstrip("_") for name in re.findall(r"\w+", listed)}
    assert {name.rpartition("._")[2] for name in modules} == contracts


@pytest.mark.parametrize(
    "name", [x for x in losses.__all__ if inspect.isfunction(getattr(losses, x))]
)
def test_the_documentation_is_complete(name):
    function = getattr(losses, name)
    text = inspect.getdoc(function)
    sections = ["Args", "Returns", "Raises", "Examples", "References"]
    found = re.findall(r"^(\w+):$", text, flags=re.MULTILINE)
    assert found == sections
    arguments = text[text.index("Args:") : text.index("Returns:")]
    for parameter in inspect.signature(function).parameters:
        assert f"\n  {parameter}: " in arguments, parameter
    if name != "permute_non_argmax":  # A shuffle is no equation.
        assert ".. math::" in text


def test_losses_that_couple_examples_say_so(case):
    assert ("Couples examples" in case.loss_fn.__doc__) == case.couples


def test_everything_after_the_arrays_is_keyword_only(case):
    parameters = list(inspect.signature(case.loss_fn).parameters.values())
    positional = [x for x in parameters if x.kind is x.POSITIONAL_OR_KEYWORD]
    assert len(positional) == len(case.takes)
    assert positional[0].name == "student_logits"
    assert parameters[-1].name == "where"


def test_one_value_per_example(case):
    """Of one, of a batch, and of any number of axes where examples are on their own."""
    shapes = [(1,), (4,)] if case.couples else [(1,), (4,), (), (2, 3)]
    results = [_run(case, _inputs(case, shape)) for shape in shapes[:2]]
    others = [_inputs(case, shape) for shape in shapes[2:]]
    results += jax.jit(lambda xs: [_value_and_grads(case, x) for x in xs])(others)
    for shape, (values, grads) in zip(shapes, results, strict=True):
        assert values.shape == shape
        assert values.dtype == jnp.float32
        _assert_finite((values, grads))


def test_jit_grad_and_new_traced_hyperparameters_agree_with_eager(case):
    inputs = _inputs(case)
    traces = 0
    for factor in (0.5, 1.0):
        kwargs = _scaled(case.kwargs, factor)
        actual = _run(case, inputs, **kwargs)
        _assert_close(actual, _value_and_grads(case, inputs, **kwargs))
        assert traces in (0, len(_TRACES))
        traces = len(_TRACES)


def test_vmap_agrees_with_a_loop(case):
    batches = [_inputs(case, seed=seed) for seed in range(2)]
    stacked = jax.tree.map(lambda *xs: np.stack(xs), *batches)
    expected = [_run(case, batch)[0] for batch in batches]
    _assert_close(jax.jit(jax.vmap(_loss_fn(case)))(*stacked), np.stack(expected))


def test_vmap_over_hyperparameters_agrees_with_a_loop(case):
    if not case.kwargs:
        pytest.skip("no hyperparameters")
    inputs = _inputs(case)
    rows = [_scaled(case.kwargs, factor) for factor in (1.0, 0.5)]
    stacked = jax.tree.map(lambda *xs: np.stack(xs), *rows)
    mapped = jax.jit(jax.vmap(lambda kwargs: _loss_fn(case, **kwargs)(*inputs)))
    expected = np.stack([_run(case, inputs, **kwargs)[0] for kwargs in rows])
    _assert_close(mapped(stacked), expected)


def test_scan_agrees_with_a_loop(case):
    batches = [_inputs(case, seed=seed) for seed in range(2)]
    stacked = jax.tree.map(lambda *xs: np.stack(xs), *batches)
    kwargs = jax.tree.map(jnp.asarray, dict(case.kwargs))

    def body(kwargs, inputs):
        return kwargs, _loss_fn(case, **kwargs)(*inputs)

    _, values = jax.lax.scan(body, kwargs, stacked)
    _assert_close(values, np.stack([_run(case, batch)[0] for batch in batches]))


def test_half_precision_and_mixed_inputs_are_computed_in_float32(case):
    half = _inputs(case, dtype=jnp.bfloat16)
    mixed = (half[0], *_inputs(case)[1:])

    def compare(*inputs):
        full = _map(lambda x: x.astype(jnp.float32), case, inputs)
        return _loss_fn(case)(*inputs), _loss_fn(case)(*full)

    both = jax.jit(lambda half, mixed: (compare(*half), compare(*mixed)))
    for values, expected in both(half, mixed):
        assert values.dtype == jnp.float32
        np.testing.assert_array_equal(values, expected)


def test_invalid_examples_are_as_if_absent(case):
    inputs = _inputs(case)
    where = jnp.array([False, True, True, True])

    def poison(x):
        return jnp.where(jnp.broadcast_to(where[:, None], x.shape), x, jnp.nan)

    poisoned = _map(poison, case, inputs, lambda x: x.at[0].set(-100))
    values, grads = _run(case, poisoned, where)
    expected, expected_grads = _run(case, _rows(case, inputs, slice(1, None)))
    assert values[0] == 0
    _assert_close(values[1:], expected)
    for i, grad, other in zip(_floats(case), grads, expected_grads, strict=True):
        axis = 1 if case.takes[i] == "T" else 0
        grad, other = (np.moveaxis(x, axis, 0) for x in (grad, other))
        np.testing.assert_array_equal(grad[0], 0)
        _assert_close(grad[1:], other)


def test_a_batch_without_a_valid_example_is_zero(case):
    inputs = _map(lambda x: jnp.full_like(x, jnp.nan), case, _inputs(case))
    values, grads = _run(case, inputs, where=jnp.zeros(4, bool))
    for x in (values, *grads):
        np.testing.assert_array_equal(x, 0)


def test_nan_of_a_valid_example_is_not_hidden(case):
    inputs = _inputs(case)
    inputs = (inputs[0].at[2, 3].set(jnp.nan), *inputs[1:])
    assert np.isnan(_run(case, inputs)[0][2])


def test_double_precision_is_kept_and_gradients_match_finite_differences(case):
    with jax.enable_x64(True):
        inputs, direction = (
            _inputs(case, dtype=jnp.float64, seed=seed) for seed in range(2)
        )
        values, grads = _run(case, inputs)
        assert values.dtype == jnp.float64
        if case.detaches:
            return  # A part is constant by definition: see its own test.
        # In forward mode too, of which the reverse mode is the transposition.
        number = len(grads)
        jax.eval_shape(
            lambda *floats: jax.jvp(
                lambda *floats: _loss_fn(case)(*floats, *inputs[number:]),
                floats,
                direction[:number],
            ),
            *inputs[:number],
        )

        def moved(step):
            return tuple(
                x + step * v if i < number else x
                for i, (x, v) in enumerate(zip(inputs, direction, strict=True))
            )

        above, below = (np.sum(_run(case, moved(x))[0]) for x in (1e-6, -1e-6))
        slope = sum(map(np.vdot, grads, direction))
        np.testing.assert_allclose(slope, (above - below) / 2e-6, rtol=1e-6, atol=1e-8)


def test_zero_at_the_teacher(case):
    student, *others = _inputs(case)
    others = _map(
        lambda x: jnp.broadcast_to(student, x.shape), case, (student, *others)
    )
    others = others[1:]
    if "p" in case.takes or case.takes == "sl":
        pytest.skip("no teacher")
    values, grads = _run(case, (student, *others))
    if case.zero_at_teacher:
        # DIST adds 1e-8 to its denominators, times 16 for the temperature.
        _assert_close(
            (values, grads[0]),
            jax.tree.map(jnp.zeros_like, (values, grads[0])),
            atol=5e-5,
        )
    else:
        assert np.all(values > 1e-3)


def test_the_order_of_the_classes_does_not_matter(case):
    inputs = _inputs(case)
    order = jnp.array([3, 0, 6, 2, 5, 1, 4])
    permuted = _map(
        lambda x: x[..., order], case, inputs, lambda x: jnp.argsort(order)[x]
    )
    _assert_close(_run(case, permuted)[0], _run(case, inputs)[0])


def test_a_constant_added_to_the_logits_does_not_matter(case):
    inputs = _inputs(case)
    shifted = _map(lambda x: x + 5, case, inputs, probs=lambda x: x)
    shifted = (shifted[0] - 8, *shifted[1:])
    values, expected = _run(case, shifted)[0], _run(case, inputs)[0]
    if case.sees_shift:
        assert np.all(np.abs(values - expected) > 1e-2)
    else:
        _assert_close(values, expected, atol=1e-5)


def test_the_limit_of_a_high_temperature_is_reached(case):
    if not case.hot:
        pytest.skip("no factor of the squared temperature, or a cross-entropy")
    inputs = _inputs(case)
    hot = _run(case, inputs, temperature=1e3)
    hotter = _run(case, inputs, temperature=1e4)
    # The next order is a few of the logits' range over the temperature: 1 %, of the
    # largest where entries cancel.
    largest = max(float(jnp.max(jnp.abs(x))) for x in jax.tree.leaves(hot))
    _assert_close(hotter, hot, rtol=0.02, atol=2e-3 * max(largest, 1.0))
    assert np.all(hot[0] > 1e-2)


@pytest.mark.parametrize("size", [1e4, -1e4])
def test_huge_logits_are_finite(case, size):
    inputs = _inputs(case)
    for place in _floats(case):
        if case.takes[place] == "p":
            continue
        huge = inputs[place].at[..., 0, 2].set(size).at[..., 1, 4].set(-size)
        changed = (*inputs[:place], huge, *inputs[place + 1 :])
        _assert_finite(_run(case, changed))


def test_certain_teachers_are_finite(case):
    inputs = _inputs(case)
    classes = jnp.array([0, 3, 3, 5])
    certain = 200 * jax.nn.one_hot(classes, NUM_CLASSES)
    inputs = _map(
        lambda x: jnp.broadcast_to(certain, x.shape),
        case,
        inputs,
        lambda x: classes,
        lambda x: jax.nn.one_hot(classes, NUM_CLASSES),
    )
    _assert_finite(_run(case, (_inputs(case)[0], *inputs[1:])))
    _assert_finite(_run(case, inputs))


def test_a_class_that_is_impossible_on_all_sides(case):
    inputs = _inputs(case)
    last = NUM_CLASSES - 1  # No label.
    excluded = _map(
        lambda x: x.at[..., last].set(-jnp.inf),
        case,
        inputs,
        probs=lambda x: x.at[..., last].set(0),
    )
    values, grads = _run(case, excluded)
    if case.excluded == "cost":
        assert np.all(np.isposinf(values))
        return
    _assert_finite((values, grads[0]))
    np.testing.assert_array_equal(grads[0][..., last], 0)
    if case.excluded == "vanishes":
        deleted = _map(lambda x: x[..., :last], case, excluded)
        _assert_close(values, jax.jit(_loss_fn(case))(*deleted))


def test_micro_batches_add_up(case):
    inputs = _inputs(case)
    parts = [_rows(case, inputs, rows) for rows in (slice(0, 1), slice(1, None))]
    values = jnp.concatenate([_run(case, part)[0] for part in parts])
    whole = _run(case, inputs)[0]
    if case.couples:
        assert np.any(np.abs(values - whole) > 1e-4)
    else:
        _assert_close(values, whole)


def test_sharding_the_batch_over_devices_changes_nothing(case):
    assert jax.device_count() == 8
    inputs = _inputs(case, (8,))
    where = np.arange(8) != 5
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))

    def put(x, axis=0):
        spec = PartitionSpec(*[None] * axis, "data")
        return jax.device_put(x, NamedSharding(mesh, spec))

    sharded = tuple(
        put(x, axis=1 if kind == "T" else 0)
        for kind, x in zip(case.takes, inputs, strict=True)
    )
    _assert_close(_run(case, sharded, put(where)), _run(case, inputs, where))


@pytest.mark.usefixtures("as_in_production")
def test_misuse_says_what_was_expected(case):
    inputs = _inputs(case)
    loss_fn = _loss_fn(case)
    with pytest.raises(TypeError, match=r"Expected floating-point \w+, got int32\."):
        loss_fn(inputs[0].astype(jnp.int32), *inputs[1:])
    with pytest.raises(
        ValueError, match=r"Expected .*\(5, 7\).*got|Expected .*got .*\(5, 7\)"
    ):
        loss_fn(jnp.zeros((5, 7)), *inputs[1:])
    with pytest.raises(TypeError, match="Expected boolean where, got float32"):
        loss_fn(*inputs, where=jnp.ones(4))
    with pytest.raises(ValueError, match=r"Expected where \(4,\).*got \(4, 7\)"):
        loss_fn(*inputs, where=jnp.ones((4, 7), bool))
    if "l" in case.takes:
        with pytest.raises(TypeError, match="Expected integer labels, got float32"):
            loss_fn(*inputs[:-1], inputs[-1].astype(jnp.float32))
    if case.takes in ("st", "stl"):
        with pytest.raises(ValueError, match="more classes") as error:
            loss_fn(inputs[0], jnp.zeros((4, 8)), *inputs[2:])
        assert "background class" in str(error.value)


@pytest.mark.usefixtures("as_in_production")
def test_numbers_out_of_range_are_refused(case):
    for name, value in case.kwargs.items():
        if "temperature" in name:
            refused, words = 0.0, f"Expected {name} > 0, got 0.0"
        elif "weight" not in name or name == "reverse_weight":
            refused, words = 1.5, f"Expected {name} between 0 and 1, got 1.5"
        else:
            continue
        refused = (refused,) if isinstance(value, tuple) else refused
        with pytest.raises(ValueError, match=words):
            _loss_fn(case, **{name: refused})(*_inputs(case))


def test_a_label_that_is_no_class_is_not_scored(case):
    if "l" not in case.takes:
        pytest.skip("no labels")
    *inputs, labels = _inputs(case)
    for label in (-1, -100, NUM_CLASSES):
        assert np.isnan(_run(case, (*inputs, labels.at[1].set(label)))[0][1])
