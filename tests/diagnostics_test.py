"""What is told of each term's gradient is true, and costs nothing untold."""

import functools
import itertools
import json
import pathlib
import runpy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from kdjax import (
    builders,
    features,
    metric_writers,
    networks,
    objectives,
    optimizers,
    parallel,
    schedules,
    steps,
    training,
)
from kdjax.builders._parts import assemble
from kdjax.types import Outputs, UserError

BATCH, CLASSES, SHAPE = 16, 5, (4, 4, 3)
CONFIG = pathlib.Path(__file__).parents[1] / "configs" / "mnist_kd.py"


class Net(nn.Module):
    axis_name: str | None = None

    @nn.compact
    def __call__(self, images, *, train):
        x = nn.Dense(6)(images.reshape(len(images), -1))
        x = nn.BatchNorm(not train, axis_name=self.axis_name)(x)
        return Outputs(nn.Dense(CLASSES)(nn.relu(x)))


def _network(**kwargs):
    return networks.from_linen(
        Net(**kwargs),
        name="net",
        image_shape=SHAPE,
        num_classes=CLASSES,
        mean=(0.5, 0.4, 0.3),
        std=(0.2, 0.2, 0.3),
    )


def _batch(num_valid=11):
    rng = np.random.default_rng(0)
    return {
        "image": jnp.asarray(rng.integers(0, 256, (BATCH, *SHAPE), np.uint8)),
        "label": jnp.asarray(rng.integers(0, CLASSES, BATCH, np.int32)),
        "mask": jnp.arange(BATCH) < num_valid,
        "example_id": jnp.arange(BATCH, dtype=jnp.int32),
    }


def _mse(student, teacher, batch, values):
    error = jnp.mean((student.logits - teacher.logits) ** 2, axis=-1)
    return jnp.where(batch["mask"], error, 0)


def _coupled(student, teacher, batch, values):
    """Sees every other example: the distance to the batch's mean logits."""
    centre = jnp.mean(student.logits, axis=0, keepdims=True)
    error = jnp.sum((student.logits - centre) ** 2, axis=-1)
    return jnp.where(batch["mask"], error, 0)


def _hard(student, teacher, batch, values):
    log_probs = jax.nn.log_softmax(student.logits)
    at_label = jnp.take_along_axis(log_probs, batch["label"][:, None], axis=1)[:, 0]
    return jnp.where(batch["mask"], -at_label, 0)


TERMS = {
    "mse": objectives.Term(_mse, lambda values: values["weight"]),
    "coupled": objectives.Term(_coupled, lambda values: -0.1),
    "hard": objectives.Term(_hard, lambda values: 0.5 * values["weight"]),
}
HPARAMS = {
    "learning_rate": schedules.Constant(0.1),
    "momentum": schedules.Constant(0.0),
    "weight_decay": schedules.Constant(0.0),
    "weight": schedules.Linear(1.0, 2.0, 4),
}


def _steps(network, terms=TERMS, **kwargs):
    def teacher_fn(variables, batch, values):
        return network.apply(variables, batch["image"], train=False)[0]

    train_step = steps.make_train_step(
        network.apply,
        teacher_fn,
        objectives.weighted_sum(terms),
        optimizers.sgd(),
        **kwargs,
    )
    diagnose_step = steps.make_diagnose_step(network.apply, teacher_fn, terms, **kwargs)
    return train_step, diagnose_step


def _state(variables=None):
    variables = variables or _network().init(jax.random.key(1))
    state = steps.init_state(variables, optimizers.sgd(), HPARAMS, jax.random.key(2))
    return state.replace(step=jnp.asarray(2, jnp.int32))  # The weight is 1.5 there.


def _teacher():
    return _network().init(jax.random.key(3))


@functools.cache
def _gradients():
    """Of each weighted term, by `jax.grad` of it alone: the independent way."""
    network, state, teacher, batch = _network(), _state(), _teacher(), _batch()
    known = network.apply(teacher, batch["image"], train=False)[0]

    def mean(params, fn, weight):
        variables = {"params": params, **state.model_state}
        student, _ = network.apply(variables, batch["image"], train=True)
        return weight * jnp.sum(fn(student, known, batch, {})) / 11

    chosen = {"mse": (_mse, 1.5), "coupled": (_coupled, -0.1), "hard": (_hard, 0.75)}

    @jax.jit
    def gradients(params):
        return {name: jax.grad(mean)(params, *chosen[name]) for name in chosen}

    found = jax.device_get(gradients(state.params))
    return {
        name: np.concatenate([np.ravel(x) for x in jax.tree.leaves(found[name])])
        for name in chosen
    }


def _check(found):
    gradients = {name: np.asarray(x, np.float64) for name, x in _gradients().items()}
    norms = {name: np.linalg.norm(x) for name, x in gradients.items()}
    expected = {f"grad_norm/{name}": norm for name, norm in norms.items()}
    for a, b in itertools.combinations(gradients, 2):
        cosine = gradients[a] @ gradients[b] / norms[a] / norms[b]
        expected[f"grad_cosine/{a}/{b}"] = cosine
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert float(found[name]) == pytest.approx(value, rel=2e-4, abs=2e-5), name


def test_norms_and_cosines_are_those_of_each_term_alone():
    _, diagnose_step = _steps(_network())
    _check(jax.jit(diagnose_step)(_state(), _teacher(), _batch(), HPARAMS))


@pytest.mark.parametrize("mode", ["jit", "pmap"])
def test_they_are_the_same_on_eight_devices(mode):
    devices = parallel.create(mode)
    network = _network(axis_name=devices.axis_name)
    _, diagnose_step = _steps(network, axis_name=devices.axis_name)

    def part_of_batch(inputs, step, *, index=0, count=1):
        size = BATCH // count
        return jax.tree.map(
            lambda x: jax.lax.dynamic_slice_in_dim(x, index * size, size), inputs
        )

    program = devices.diagnose_program(diagnose_step, part_of_batch, resident=True)
    state, teacher = devices.replicate((_state(), _teacher()))
    _check(program(state, teacher, HPARAMS, _batch()))


def test_weighted_gradients_sum_to_the_gradient_of_the_train_step():
    r"""|g|^2 = sum |g_i|^2 + 2 sum |g_i| |g_j| cos_ij, of what the two steps report."""
    train_step, diagnose_step = _steps(_network())
    arguments = (_state(), _teacher(), _batch(), HPARAMS)
    found = jax.jit(diagnose_step)(*arguments)
    _, metrics = jax.jit(train_step)(*arguments)
    squared = sum(float(found[f"grad_norm/{name}"]) ** 2 for name in TERMS)
    for a, b in itertools.combinations(TERMS, 2):
        product = found[f"grad_norm/{a}"] * found[f"grad_norm/{b}"]
        squared += 2 * float(product * found[f"grad_cosine/{a}/{b}"])
    assert squared == pytest.approx(float(metrics["grad_norm"]) ** 2, rel=1e-4)


def test_parts_of_a_batch_give_the_gradients_of_the_whole():
    """Of a student that does not normalise over the batch, and terms that don't."""

    class Linear(nn.Module):
        @nn.compact
        def __call__(self, images, *, train):
            return Outputs(nn.Dense(CLASSES)(images.reshape(len(images), -1)))

    network = networks.from_linen(
        Linear(),
        name="linear",
        image_shape=SHAPE,
        num_classes=CLASSES,
        mean=(0.5,) * 3,
        std=(0.2,) * 3,
    )
    terms = {name: TERMS[name] for name in ("mse", "hard")}
    state, teacher = (
        _state(network.init(jax.random.key(1))),
        network.init(jax.random.key(3)),
    )
    whole, parts = (
        jax.jit(_steps(network, terms, num_microbatches=count)[1])(
            state, teacher, _batch(), HPARAMS
        )
        for count in (1, 4)
    )
    for name in whole:
        assert float(parts[name]) == pytest.approx(float(whole[name]), rel=1e-5), name


def test_adapters_do_not_count():
    """Only the student's own parameters; an adapter's gradient is no part of it."""
    adapters = {
        "bridge": features.Adapter(
            _Bridge(), lambda student, teacher, batch, values: (student.logits,)
        )
    }
    through = objectives.Term(
        lambda student, teacher, batch, values: jnp.sum(
            student.features["bridge"] ** 2, axis=-1
        ),
        lambda values: 1.0,
    )
    beside = objectives.Term(  # Reaches the adapter alone.
        lambda student, teacher, batch, values: (
            jnp.sum(
                student.variables["params"]["adapters"]["bridge"]["Dense_0"]["kernel"]
                ** 2
            )
            * jnp.ones(BATCH)
        ),
        lambda values: 1.0,
    )
    terms = {"through": through, "beside": beside}
    teacher = features.describe(_network())
    variables = features.init(jax.random.key(1), _network(), teacher, adapters, {})
    _, diagnose_step = _steps(_network(), terms, adapters=adapters)
    program = jax.jit(diagnose_step)
    found = program(_state(variables), _teacher(), _batch(), HPARAMS)
    assert float(found["grad_norm/through"]) > 0
    assert float(found["grad_norm/beside"]) == 0
    assert np.isnan(found["grad_cosine/through/beside"])  # It has no direction.


class _Bridge(nn.Module):
    @nn.compact
    def __call__(self, logits, *, train):
        return nn.Dense(3)(logits)


def _training(every, **changes):
    """The student of `mnist_kd:smoke`, with its teacher in every step."""
    config = runpy.run_path(str(CONFIG))["get_config"]("smoke")
    config.diagnose_every_steps = every
    config.teacher.source = "online"
    config.student.train.num_epochs = 1
    config.update(changes)
    parts = assemble(config)
    return parts.student_training(0, parts.teacher.init(jax.random.key(0)), None)


def test_off_there_is_no_program_and_on_the_training_program_is_the_same():
    on, off = _training(3), _training(0)
    assert off.diagnose is None
    assert on.diagnose is not None
    texts = []
    for made in (on, off):
        state = made.parallel.replicate(made.init())
        arguments = (state, made.constants, made.hparams, next(made.loader.inputs(0)))
        texts.append(made.programs(1).lower(*arguments).as_text())
    assert texts[0] == texts[1]


def _rows(directory):
    return [json.dumps(row) for row in metric_writers.read(directory)]


@pytest.mark.optimized
def test_a_diagnosed_training_is_the_training_to_the_last_bit(tmp_path):
    states, rows = [], []
    for every in (0, 4):
        directory = tmp_path / str(every)
        state, saved = training.fit(_training(every), directory)
        saved.close()
        states.append(jax.device_get(state.params))
        rows.append(_rows(directory))
    jax.tree.map(np.testing.assert_array_equal, *states)
    told = [row for row in rows[1] if "grad_norm/soft" in row]
    assert [json.loads(row)["step"] for row in told] == [0, 4, 8, 12]
    assert [row for row in rows[1] if row not in told] == rows[0]


@pytest.mark.optimized
@pytest.mark.parametrize("step", [7, 8])
def test_a_killed_training_tells_the_same(tmp_path, step):
    """Killed at a step with a checkpoint and a row, and at one with neither."""
    made = _training(4, checkpoint_every_steps=4)
    _, saved = training.fit(made, tmp_path / "whole")
    saved.close()

    def kill(num_steps):
        program = made.programs(num_steps)

        def run(state, *arguments):
            if int(state.step) == step:
                raise KeyboardInterrupt
            return program(state, *arguments)

        return run

    changed = training.dataclasses.replace(made, programs=kill)
    with pytest.raises(KeyboardInterrupt):
        training.fit(changed, tmp_path / "killed")
    # Nothing is being written still, which a second training here would run into.
    left = [x.name for x in (tmp_path / "killed/checkpoints").iterdir()]
    assert left
    assert all(name.isdecimal() for name in left)
    _, saved = training.fit(made, tmp_path / "killed")
    saved.close()
    assert _rows(tmp_path / "killed") == _rows(tmp_path / "whole")


def test_a_recipe_without_terms_is_refused_by_name():
    config = runpy.run_path(str(CONFIG.with_name("mutual.py")))["get_config"]("smoke")
    config.diagnose_every_steps = 5
    with pytest.raises(UserError, match="diagnose_every_steps=0 with the recipe 'mu"):
        builders.build(config)
