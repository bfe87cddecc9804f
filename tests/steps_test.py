"""One pure step gives the same numbers however it is run."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from kdjax import features, networks, objectives, optimizers, parallel, schedules, steps
from kdjax.types import Outputs

BATCH, CLASSES, SHAPE = 16, 5, (4, 4, 3)


class Net(nn.Module):
    """A convolution, perhaps BatchNorm, and a linear layer."""

    norm: bool = True
    axis_name: str | None = None

    @nn.compact
    def __call__(self, images, *, train):
        x = nn.Conv(6, (3, 3))(images)
        if self.norm:
            x = nn.BatchNorm(not train, axis_name=self.axis_name)(x)
        return Outputs(nn.Dense(CLASSES)(nn.relu(x).mean((1, 2))))


def _network(**kwargs):
    return networks.from_linen(
        Net(**kwargs),
        name="net",
        image_shape=SHAPE,
        num_classes=CLASSES,
        mean=(0.5, 0.4, 0.3),
        std=(0.2, 0.2, 0.3),
    )


def _batch(seed=0, num_valid=BATCH):
    rng = np.random.default_rng(seed)
    return {
        "image": jnp.asarray(rng.integers(0, 256, (BATCH, *SHAPE), np.uint8)),
        "label": jnp.asarray(rng.integers(0, CLASSES, BATCH, np.int32)),
        "mask": jnp.arange(BATCH) < num_valid,
        "example_id": jnp.arange(BATCH, dtype=jnp.int32),
    }


def _mse(student, teacher, batch, values):
    del values
    error = jnp.mean((student.logits - teacher.logits) ** 2, axis=-1)
    return jnp.where(batch["mask"], error, 0)


def _coupled(student, teacher, batch, values):
    """Sees every other example: the distance to the batch's mean logits."""
    del teacher, values
    centre = jnp.mean(student.logits, axis=0, keepdims=True)
    error = jnp.sum((student.logits - centre) ** 2, axis=-1)
    return jnp.where(batch["mask"], error, 0)


OBJECTIVE = objectives.weighted_sum(
    {
        "mse": objectives.Term(_mse, lambda values: values["mse_weight"]),
        "coupled": objectives.Term(_coupled, lambda values: 0.1),
    }
)
UNCOUPLED = objectives.weighted_sum({"mse": objectives.Term(_mse, lambda values: 1.0)})
HPARAMS = {
    "learning_rate": schedules.Constant(0.1),
    "momentum": schedules.Constant(0.9),
    "weight_decay": schedules.Constant(1e-3),
    "mse_weight": schedules.Constant(2.0),
    "ema_decay": schedules.Constant(0.5),
}


def _make(network, objective=OBJECTIVE, **kwargs):
    def teacher_fn(variables, batch, values):
        del values
        return network.apply(variables, batch["image"], train=False)[0]

    return steps.make_train_step(
        network.apply, teacher_fn, objective, optimizers.sgd(), **kwargs
    )


def _init(network, **kwargs):
    variables = network.init(jax.random.key(1))
    return steps.init_state(
        variables, optimizers.sgd(), HPARAMS, jax.random.key(2), **kwargs
    )


def _teacher():
    return _network().init(jax.random.key(3))


def _run(program, state, teacher, num_steps=3, num_valid=BATCH):
    history = []
    for step in range(num_steps):
        state, metrics = program(state, teacher, _batch(step, num_valid))
        history.append(metrics)
    return state, history


def _assert_close(actual, expected, rtol=2e-5, atol=1e-6):
    actual, expected = jax.device_get((actual, expected))
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=atol),
        actual,
        expected,
    )


def _part_of_batch(inputs, step, *, index=0, count=1):
    del step
    size = BATCH // count
    return jax.tree.map(
        lambda x: jax.lax.dynamic_slice_in_dim(x, index * size, size), inputs
    )


def _params_and_metrics(result):
    state, history = result
    return state.params, state.model_state, history


@pytest.mark.parametrize("mode", ["jit", "pmap"])
@pytest.mark.parametrize("num_valid", [BATCH, 11])
def test_eight_devices_equal_one(mode, num_valid):
    devices = parallel.create(mode)
    assert devices.num_devices == 8
    single = jax.jit(_make(_network()))
    expected = _run(
        lambda s, t, b: single(s, t, b, HPARAMS),
        _init(_network()),
        _teacher(),
        num_valid=num_valid,
    )
    step = _make(_network(axis_name=devices.axis_name), axis_name=devices.axis_name)

    program = devices.train_program(step, _part_of_batch, resident=True)(1)
    state, history = _run(
        lambda s, t, b: program(s, t, HPARAMS, b),
        devices.replicate(_init(_network())),
        devices.replicate(_teacher()),
        num_valid=num_valid,
    )
    history = [jax.tree.map(lambda x: x[0], metrics) for metrics in history]
    _assert_close(_params_and_metrics((state, history)), _params_and_metrics(expected))


class Bridge(nn.Module):
    """A linear map with BatchNorm and a memory of the last logits; draws a mask."""

    @nn.compact
    def __call__(self, logits, labels, *, train):
        memory = self.variable("memory", "logits", jnp.zeros, (BATCH, CLASSES))
        past = memory.value
        if train:
            memory.value = jax.lax.stop_gradient(logits)
        x = nn.BatchNorm(not train)(nn.Dense(CLASSES)(logits))
        x = nn.Dropout(0.5, deterministic=not train)(x)
        return x + nn.Embed(CLASSES, CLASSES)(labels), past


def _bridged(student, teacher, batch, values):
    del values
    bridged, past = student.features["bridge"]
    kernel = student.variables["params"]["Dense_0"]["kernel"]
    other = teacher.variables["params"]["Dense_0"]["kernel"]
    error = jnp.sum((bridged - teacher.logits) ** 2 + past * student.logits, axis=-1)
    error += jnp.sum((kernel - other) ** 2)
    return jnp.where(batch["mask"], error, 0)


@pytest.mark.parametrize("mode", ["jit", "pmap"])
def test_adapters_and_losses_of_variables_on_eight_devices_equal_one(mode):
    """An adapter with statistics, a memory and dropout; a loss of both classifiers."""
    adapters = {
        "bridge": features.Adapter(
            Bridge(),
            lambda student, teacher, batch, values: (student.logits, batch["label"]),
        )
    }
    objective = objectives.weighted_sum(
        {"bridged": objectives.Term(_bridged, lambda values: 0.1)}
    )
    teacher = features.describe(_network())
    variables = features.init(jax.random.key(1), _network(), teacher, adapters, {})
    zeros = jax.tree.map(
        lambda x: jnp.zeros((BATCH, CLASSES)), variables["memory"]["adapters"]
    )
    variables = {**variables, "memory": {"adapters": zeros}}

    def init():
        copy = jax.tree.map(jnp.copy, variables)
        return steps.init_state(copy, optimizers.sgd(), HPARAMS, jax.random.key(2))

    single = jax.jit(_make(_network(), objective, adapters=adapters))
    expected = _run(
        lambda s, t, b: single(s, t, b, HPARAMS), init(), _teacher(), num_valid=11
    )
    devices = parallel.create(mode)
    step = _make(
        _network(axis_name=devices.axis_name),
        objective,
        adapters=adapters,
        axis_name=devices.axis_name,
    )
    program = devices.train_program(step, _part_of_batch, resident=True)(1)
    state, history = _run(
        lambda s, t, b: program(s, t, HPARAMS, b),
        devices.replicate(init()),
        devices.replicate(_teacher()),
        num_valid=11,
    )
    history = [jax.tree.map(lambda x: x[0], metrics) for metrics in history]
    _assert_close(_params_and_metrics((state, history)), _params_and_metrics(expected))
    assert set(state.eval_variables) == {"params", "batch_stats"}


def test_several_steps_in_one_dispatch_equal_as_many_dispatches():
    devices = parallel.create("jit")
    make = devices.train_program(
        _make(_network()), lambda inputs, step, **_: inputs, resident=True
    )
    batch, teacher = _batch(), _teacher()
    state = devices.replicate(_init(_network()))
    rows = []
    for _ in range(3):
        state, row = make(1)(state, teacher, HPARAMS, batch)
        rows.append(row)
    again, stacked = make(3)(
        devices.replicate(_init(_network())), teacher, HPARAMS, batch
    )
    _assert_close(again.params, state.params)
    expected = jax.tree.map(lambda *xs: np.concatenate(xs), *rows)
    _assert_close(stacked, expected)


@pytest.mark.parametrize("num_microbatches", [2, 4, 16])
def test_accumulation_does_not_change_the_update(num_microbatches):
    network = _network(norm=False)
    teacher = network.init(jax.random.key(3))
    results = []
    for count in (1, num_microbatches):
        step = _make(network, UNCOUPLED, num_microbatches=count)
        program = jax.jit(functools.partial(step, hparams=HPARAMS))
        results.append(_run(program, _init(network), teacher, num_valid=13))
    _assert_close(_params_and_metrics(results[1]), _params_and_metrics(results[0]))


def test_padding_leaves_no_trace_without_batch_norm():
    network = _network(norm=False)
    step = jax.jit(functools.partial(_make(network), hparams=HPARAMS))
    teacher = network.init(jax.random.key(3))
    padded = _batch(num_valid=11)
    poisoned = padded | {
        "image": jnp.where(
            padded["mask"][:, None, None, None], padded["image"], jnp.uint8(255)
        )
    }
    objective = UNCOUPLED
    step = jax.jit(functools.partial(_make(network, objective), hparams=HPARAMS))
    small = jax.tree.map(lambda x: x[:11], padded)
    expected, expected_metrics = step(_init(network), teacher, small)
    state, metrics = step(_init(network), teacher, poisoned)
    _assert_close(state.params, expected.params)
    _assert_close(metrics, expected_metrics)


def test_the_teacher_is_never_changed_and_gets_no_gradient():
    network, teacher = _network(), _teacher()
    before = jax.device_get(teacher)
    program = jax.jit(functools.partial(_make(network), hparams=HPARAMS))
    _run(program, _init(network), teacher)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(teacher), before)


def test_a_new_number_does_not_recompile():
    traces = 0
    network = _network()

    def counting(*args, **kwargs):
        nonlocal traces
        traces += 1
        return _make(network)(*args, **kwargs)

    program = jax.jit(counting)
    for rate in (0.1, 0.2):
        hparams = HPARAMS | {"learning_rate": schedules.Constant(rate)}
        program(_init(network), _teacher(), _batch(), hparams)
    assert traces == 1


def test_students_of_a_vmapped_step_equal_single_ones():
    network, rates = _network(), jnp.asarray([0.05, 0.1, 0.2])
    step = _make(network)
    hparams = HPARAMS | {"learning_rate": schedules.Constant(rates)}
    axes = jax.tree.map(lambda _: None, HPARAMS) | {
        "learning_rate": schedules.Constant(0)
    }
    mapped, _ = jax.jit(jax.vmap(step, in_axes=(None, None, None, axes)))(
        _init(network), _teacher(), _batch(), hparams
    )
    for i, rate in enumerate(rates):
        single, _ = step(
            _init(network),
            _teacher(),
            _batch(),
            HPARAMS | {"learning_rate": schedules.Constant(rate)},
        )
        _assert_close(jax.tree.map(lambda x, i=i: x[i], mapped.params), single.params)


def test_the_running_average_follows_its_formula():
    network = _network()
    program = jax.jit(functools.partial(_make(network), hparams=HPARAMS))
    state = _init(network, ema=True)
    average = jax.device_get(state.params)
    for step in range(3):
        state, _ = program(state, _teacher(), _batch(step))
        average = jax.tree.map(
            lambda a, x: 0.5 * a + 0.5 * np.asarray(x), average, state.params
        )
    _assert_close(state.ema_params, average)
    _assert_close(state.eval_variables["params"], average)


def test_sgd_is_that_of_the_formula():
    network = _network(norm=False)
    teacher = network.init(jax.random.key(3))
    state = _init(network)
    params, velocity = jax.device_get(state.params), None
    step = _make(network, UNCOUPLED)

    def loss(params, batch):
        student = network.apply({"params": params}, batch["image"], train=True)[0]
        target = network.apply(teacher, batch["image"], train=False)[0]
        return jnp.mean((student.logits - target.logits) ** 2)

    for i in range(3):
        grads = jax.grad(loss)(params, _batch(i))
        grads = jax.tree.map(lambda g, w: g + 1e-3 * w, grads, params)
        velocity = (
            grads
            if velocity is None
            else jax.tree.map(lambda v, g: 0.9 * v + g, velocity, grads)
        )
        params = jax.tree.map(lambda w, v: w - 0.1 * v, params, velocity)
        state, _ = step(state, teacher, _batch(i), HPARAMS)
    _assert_close(state.params, params)


def test_grad_norm_and_values_are_reported():
    network = _network()
    _, metrics = _make(network)(_init(network), _teacher(), _batch(), HPARAMS)
    assert metrics["learning_rate"] == np.float32(0.1)
    assert metrics["grad_norm"] > 0
    total = 2 * metrics["mse"] + 0.1 * metrics["coupled"]
    np.testing.assert_allclose(metrics["loss"], total, rtol=1e-5)


def test_max_norm_projects_units_beyond_the_ball_and_no_others():
    params = {"kernel": jnp.asarray([[3.0, 0.3], [4.0, 0.4]]), "bias": jnp.ones(2)}
    updates = jax.tree.map(lambda x: 0.1 * jnp.ones_like(x), params)
    projected, _ = optimizers.project_max_norm(1.0).update(
        updates, optax.EmptyState(), params
    )
    kernel = params["kernel"] + projected["kernel"]
    np.testing.assert_allclose(jnp.linalg.norm(kernel[:, 0]), 1.0, rtol=1e-6)
    np.testing.assert_array_equal(projected["kernel"][:, 1], updates["kernel"][:, 1])
    np.testing.assert_array_equal(projected["bias"], updates["bias"])


@pytest.mark.parametrize("make", [optimizers.sgd, optimizers.adamw])
def test_clipping_bounds_the_gradient_that_the_optimizer_sees(make):
    values = {
        name: jnp.asarray(value)
        for name, value in {
            "learning_rate": 1.0,
            "momentum": 0.0,
            "weight_decay": 0.0,
            "b1": 0.0,
            "b2": 0.0,
            "clip_norm": 0.5,
        }.items()
    }
    params = {"w": jnp.zeros(2)}
    grads = {"w": jnp.asarray([30.0, 40.0])}
    optimizer = make(clip=True)(values)
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    expected = [-0.3, -0.4] if make is optimizers.sgd else [-1.0, -1.0]
    np.testing.assert_allclose(updates["w"], expected, rtol=1e-5)
