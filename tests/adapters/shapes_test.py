"""Every adapter of features: shapes, parameters, initial values, gradients, modes."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from kdjax import adapters

RNG = np.random.default_rng(0)
KEY = jax.random.key(0, impl="unsafe_rbg")  # It compiles quickly.
RNGS = {"dropout": KEY}


def _maps(height, width, channels):
    return jnp.asarray(RNG.normal(size=(4, height, width, channels)), jnp.float32)


class Case(NamedTuple):
    """An adapter, its inputs, and what a hand has counted.

    Attributes:
      inputs: what the adapter is called with.
      outputs: the shapes of what it returns, in order.
      num_params: weights of convolutions and linear layers, then biases, then two for
        each channel of each BatchNorm.
    """

    module: nn.Module
    inputs: tuple
    outputs: tuple[tuple[int, ...], ...]
    num_params: int


HINTS = (4, 4, 6, 5)
CASES = {
    "regressor, stride 2": Case(
        adapters.Regressor(hint_shape=HINTS),
        (_maps(8, 12, 3),),
        ((4, 4, 6, 5),),
        9 * 3 * 5 + 2 * 5,
    ),
    "regressor, transposed": Case(
        adapters.Regressor(hint_shape=HINTS),
        (_maps(2, 3, 3),),
        ((4, 4, 6, 5),),
        16 * 3 * 5 + 2 * 5,
    ),
    "regressor, sliding": Case(
        adapters.Regressor(hint_shape=HINTS),
        (_maps(6, 7, 3),),
        ((4, 4, 6, 5),),
        3 * 2 * 3 * 5 + 2 * 5,
    ),
    "regressor, 1x1": Case(
        adapters.Regressor(hint_shape=HINTS, activation=False),
        (_maps(4, 6, 3),),
        ((4, 4, 6, 5),),
        3 * 5 + 2 * 5,
    ),
    "regressor of words": Case(
        adapters.Regressor(hint_shape=(4, 6, 5), activation=False),
        (_maps(1, 6, 3)[:, 0],),
        ((4, 6, 5),),
        3 * 5 + 5,
    ),
    "connector": Case(
        adapters.Connector(channels=5),
        (_maps(4, 6, 3),),
        ((4, 4, 6, 5),),
        3 * 5 + 2 * 5,
    ),
    "connector of vectors": Case(
        adapters.Connector(channels=5, activation=True),
        (_maps(1, 1, 3)[:, 0, 0],),
        ((4, 5),),
        3 * 5 + 2 * 5,
    ),
    "variational": Case(
        adapters.VariationalRegressor(channels=5, hidden_channels=4, size=(2, 3)),
        (_maps(4, 6, 3),),
        ((4, 2, 3, 5), (5,)),
        3 * 4 + 4 * 4 + 4 * 5 + 5,
    ),
    "paraphraser": Case(
        adapters.Paraphraser(rate=0.5),
        (_maps(4, 6, 6),),
        ((4, 4, 6, 3), (4, 4, 6, 6)),
        2 * 9 * (6 * 6 + 6 * 3 + 3 * 3) + (6 + 3 + 3) + (3 + 6 + 6),
    ),
    "translator": Case(
        adapters.Translator(factors=5),
        (_maps(4, 6, 3),),
        ((4, 4, 6, 5),),
        9 * (3 * 3 + 3 * 5 + 5 * 5) + 2 * (3 + 5 + 5),
    ),
    "review": Case(
        adapters.ReviewFusion(
            teacher_shapes=((4, 8, 8, 5), (4, 4, 4, 6), (4, 7)), max_width=2
        ),
        (_maps(8, 8, 2), _maps(4, 4, 3), _maps(1, 1, 4)[:, 0, 0]),
        ((4, 8, 8, 5), (4, 4, 4, 6), (4, 7)),
        2 * (2 + 3 + 4) + 9 * 2 * (5 + 6 + 7) + 2 * (4 * 2 + 2)
        # BatchNorm of each width of 2, and of each output.
        + 2 * (3 * 2) + 2 * (5 + 6 + 7),
    ),
    "simkd": Case(
        adapters.SimKDProjector(channels=6, size=(2, 3)),
        (_maps(4, 6, 4),),
        ((4, 2, 3, 6),),
        4 * 3 + 9 * 3 * 3 + 3 * 6 + 2 * (3 + 3 + 6),
    ),
    "generator": Case(
        adapters.MaskedGenerator(channels=5, masked=0.5),
        (_maps(4, 6, 3),),
        ((4, 4, 6, 5),),
        3 * 5 + 5 + 2 * (9 * 5 * 5 + 5),
    ),
    "generator of channels": Case(
        adapters.MaskedGenerator(channels=3, masked=0.5, over="channels"),
        (_maps(4, 6, 3),),
        ((4, 4, 6, 3),),
        2 * (9 * 3 * 3 + 3),
    ),
    "semantic": Case(
        adapters.SemanticAttention(batch_size=8, reduction=2),
        ([_maps(4, 4, 2), _maps(2, 2, 3)], [_maps(2, 4, 5)]),
        ((4, 2, 4, 5), (4, 2, 2, 5), (4, 2, 4, 5), (4, 2, 2, 5), (4, 2, 1)),
        # Two queries and a key: 8 rows, 8 hidden units, of dimension 4.
        3 * (8 * 8 + 8 + 8 * 4 + 4)
        + (2 + 3) * 10 + 2 * (9 * 10 * 10 + 10 * 5 + 2 * (10 + 10)),
    ),
}  # fmt: skip


@pytest.fixture(params=CASES.values(), ids=CASES.keys())
def case(request):
    return request.param


@functools.cache
def _variables(name):
    case = CASES[name]
    init = functools.partial(case.module.init, train=False)
    return jax.jit(init)(KEY, *case.inputs)


def _named(case):
    return next(name for name, x in CASES.items() if x is case)


def _train(case, variables, *inputs):
    """Outputs and new statistics."""
    return case.module.apply(
        variables, *inputs, train=True, rngs=RNGS, mutable=["batch_stats"]
    )


def test_shapes_in_training_and_in_inference(case):
    """In inference nothing is mutable: moving statistics would be an error."""
    variables = _variables(_named(case))
    outputs = jax.eval_shape(
        functools.partial(case.module.apply, train=False), variables, *case.inputs
    )
    assert tuple(x.shape for x in jax.tree.leaves(outputs)) == case.outputs
    trained, _ = jax.eval_shape(
        functools.partial(_train, case), variables, *case.inputs
    )
    assert jax.tree.map(jnp.shape, trained) == jax.tree.map(jnp.shape, outputs)


def test_parameters_are_as_many_as_counted_by_hand(case):
    params = _variables(_named(case))["params"]
    assert sum(x.size for x in jax.tree.leaves(params)) == case.num_params


def test_initial_values(case):
    """Biases zero, scales one, statistics of a standard normal, weights random."""
    variables = _variables(_named(case))
    expected = {"bias": 0, "scale": 1, "mean": 0, "var": 1}
    for path, x in jax.tree_util.tree_leaves_with_path(variables):
        name = path[-1].key
        if name in expected:
            np.testing.assert_array_equal(x, expected[name])
        elif name == "kernel":
            assert len(np.unique(x)) > 1


def test_in_training_every_parameter_has_a_finite_gradient_and_statistics_move(case):
    variables = _variables(_named(case))
    params, stats = variables["params"], variables.get("batch_stats", {})

    @jax.jit
    def grad_fn(params, inputs):
        def loss_fn(params, inputs):
            start = {"params": params, "batch_stats": stats}
            outputs, new = _train(case, start, *inputs)
            leaves = jax.tree.leaves(outputs)
            return sum(jnp.sum(jnp.sin(x + 1)) for x in leaves), new

        return jax.grad(loss_fn, (0, 1), has_aux=True)(params, inputs)

    degenerate, _ = grad_fn(params, jax.tree.map(jnp.zeros_like, case.inputs))
    grads, new = grad_fn(params, case.inputs)
    for x in jax.tree.leaves((degenerate, grads)):
        assert np.all(np.isfinite(x))
    for path, x in jax.tree_util.tree_leaves_with_path(grads[0]):
        # With one key to choose from the attention is 1, whatever queries and keys.
        if not path[0].key.startswith(("query", "key")):
            assert np.any(np.asarray(x) != 0), path
    moved = jax.tree.map(
        lambda x, y: bool(np.any(np.asarray(x) != y)), stats, new.get("batch_stats", {})
    )
    assert all(jax.tree.leaves(moved))


def test_parameters_stay_float32_where_the_computation_is_in_half_precision(case):
    module = case.module.copy(dtype=jnp.bfloat16)
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), case.inputs)
    init = functools.partial(module.init, train=False)
    # Flax's BatchNorm mixes precisions on purpose.
    with jax.numpy_dtype_promotion("standard"):
        variables = jax.eval_shape(init, KEY, *half)
        outputs = jax.eval_shape(
            functools.partial(module.apply, train=False), variables, *half
        )
    assert {x.dtype for x in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    assert jax.tree.leaves(outputs)[0].dtype == jnp.bfloat16


class Init(NamedTuple):
    """A kernel, and the distribution that it is published to begin with."""

    module: nn.Module
    inputs: tuple
    kernel: tuple[str, ...]
    fan: int
    normal: bool = False
    gain: float = 1.0  # The bound is gain / sqrt(fan); the variance gain**2 / fan.


INITS: dict[str, Any] = {
    "PyTorch's convolution": Init(
        adapters.Regressor(hint_shape=(4, 4, 4, 60)),
        (_maps(8, 8, 40),),
        ("conv", "kernel"),
        fan=9 * 40,
    ),
    "PyTorch's transposed convolution": Init(
        adapters.Regressor(hint_shape=(4, 8, 8, 60)),
        (_maps(4, 4, 40),),
        ("conv", "kernel"),
        fan=16 * 60,
    ),
    "paraphraser's decoder": Init(
        adapters.Paraphraser(),
        (_maps(2, 2, 60),),
        ("decoder", "conv1", "kernel"),
        fan=9 * 60,
    ),
    "connector": Init(
        adapters.Connector(channels=90),
        (_maps(2, 2, 60),),
        ("conv", "kernel"),
        fan=90,
        normal=True,
        gain=math.sqrt(2),
    ),
    "review": Init(
        adapters.ReviewFusion(teacher_shapes=((4, 4, 4, 50),)),
        (_maps(4, 4, 40),),
        ("fusion0", "out_conv", "kernel"),
        fan=9 * 40,
        gain=math.sqrt(3),
    ),
}


@pytest.mark.parametrize("init", INITS.values(), ids=INITS.keys())
def test_kernels_begin_with_the_published_distribution(init):
    initialize: Callable = functools.partial(init.module.init, train=False)
    tree = jax.jit(initialize)(KEY, *init.inputs)["params"]
    for name in init.kernel:
        tree = tree[name]
    scale = init.gain / math.sqrt(init.fan)
    if init.normal:
        np.testing.assert_allclose(np.std(tree), scale, rtol=0.05)
        assert np.max(np.abs(tree)) > 3 * scale
    else:
        # The largest of n is short of the bound by 1/n of it: there are over 2000.
        np.testing.assert_allclose(np.max(np.abs(tree)), scale, rtol=0.01)
        np.testing.assert_allclose(np.std(tree), scale / math.sqrt(3), rtol=0.05)
