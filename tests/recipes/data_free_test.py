"""Distillation without data: who learns from what, and what nobody may touch."""

import dataclasses
import json
import pathlib
import runpy

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import data_free, losses, members, training
from kdjax.builders._data_free_methods import METHODS
from kdjax.builders._parts import assemble
from kdjax.recipes import data_free as recipe
from kdjax.types import Outputs, UserError

ROOT = pathlib.Path(__file__).parents[2]
BATCH = 24
RATE = 0.5
EPSILON = 0.8


def _config(**updates):
    """Two seeds, small networks, and updates that are the rate times the gradient."""
    path = ROOT / "configs" / "data_free.py"
    config = runpy.run_path(str(path))["get_config"]("smoke")
    config.data_free.batch_size = BATCH
    for model in (config.teacher, config.student):
        model.model.hidden = (16,)
        model.train.num_epochs = 4
    with config.unlocked():
        config.data_free.generator = dict(name="mlp", hidden=(24,))
    for method in config.data_free.methods:
        section = config.data_free[method]
        section.update(num_epochs=4, steps_per_epoch=5, norm_epsilon=EPSILON)
        for role in ("student", "generator"):
            optimizer = section[role].optimizer
            optimizer.update(name="sgd", momentum=0.0, weight_decay=0.0)
            section[role].learning_rate.base = RATE
    config.update_from_flattened_dict(updates)
    return config


@pytest.fixture(scope="module")
def experiment():
    return recipe.build(_config())


@pytest.fixture(scope="module")
def teacher(experiment):
    return experiment.teacher.init(jax.random.key(7))


def _start(experiment, arm, teacher):
    """A training, its state, and the batch of its first step."""
    made = experiment.arms[arm].training(teacher)
    batch = made.loader.batch(next(made.loader.inputs(0)), jnp.asarray(0))
    return made, made.init(), batch


def _step(made, state):
    """The state after one more step, and its metrics."""
    # A copy: the program takes the buffers of what it is given.
    state, constants = made.parallel.replicate(
        (jax.tree.map(jnp.copy, state), made.constants)
    )
    inputs = next(made.loader.inputs(0))
    state, rows = made.programs(1)(state, constants, made.hparams, inputs)
    return state, {name: float(x[0]) for name, x in rows.items()}


def _members(state, index):
    return tuple(members.member(x, index) for x in (state.student, state.generator))


def _mlp(params, x, layers=2):
    """Features of the hidden layer and logits, in NumPy's way."""
    x = x.reshape(len(x), -1)
    for i in range(layers - 1):
        dense = params[f"Dense_{i}"]
        x = jnp.maximum(x @ dense["kernel"] + dense["bias"][None], 0)
    dense = params[f"Dense_{layers - 1}"]
    return x, x @ dense["kernel"] + dense["bias"][None]


def _generate(params, noise):
    """The generator of `_config`, with the statistics of the batch."""

    def normalized(x, axis, epsilon):
        centred = x - x.mean(axis, keepdims=True)
        return centred / jnp.sqrt((centred**2).mean(axis, keepdims=True) + epsilon)

    x = noise @ params["Dense_0"]["kernel"]
    norm = params["BatchNorm_0"]
    x = normalized(x, 0, EPSILON) * norm["scale"][None] + norm["bias"][None]
    x = jnp.where(x > 0, x, 0.2 * x)
    x = jnp.tanh(x @ params["Dense_1"]["kernel"] + params["Dense_1"]["bias"][None])
    return normalized(x.reshape(len(x), 8, 8, 1), (0, 1, 2), 1e-5)


def _assert_close(actual, expected, **tolerance):
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, **tolerance),
        jax.device_get(actual),
        jax.device_get(expected),
    )


def _same(tree, other):
    """Whether all arrays have the same bits; keys aside."""
    flat = [
        [
            x
            for x in jax.tree.leaves(y)
            if not jnp.issubdtype(x.dtype, jax.dtypes.extended)
        ]
        for y in (tree, other)
    ]
    return all(np.array_equal(x, y) for x, y in zip(*flat, strict=True))


def test_dafl_is_the_gradient_of_its_losses_on_the_same_images(experiment, teacher):
    made, before, batch = _start(experiment, "dafl", teacher)
    after, metrics = _step(made, before)
    student, maker = (x.params for x in _members(before, 1))
    noise = batch["noise"][:, 1, 0]
    images = _generate(maker, noise)

    def student_loss(params):
        log_p = jax.nn.log_softmax(_mlp(teacher["params"], images)[1])
        log_q = jax.nn.log_softmax(_mlp(params, images)[1])
        return jnp.sum(jnp.exp(log_p) * (log_p - log_q)) / BATCH

    def generator_loss(params):
        features, logits = _mlp(teacher["params"], _generate(params, noise))
        probs = jax.nn.softmax(logits)
        mean = probs.mean(0)
        entropy = jnp.sum(mean * jnp.log10(mean))
        one_hot = -jnp.log(probs.max(-1)).mean()
        return one_hot + 5 * entropy - 0.1 * jnp.abs(features).mean()

    for role, params, loss_fn in (
        (0, student, student_loss),
        (1, maker, generator_loss),
    ):
        grads = jax.jit(jax.grad(loss_fn))(params)
        expected = jax.tree.map(lambda x, g: x - RATE * g, params, grads)
        actual = _members(after, 1)[role].params
        assert not _same(actual, params)
        _assert_close(actual, expected, rtol=1e-4, atol=1e-5)
    assert metrics["loss"] == metrics["student_loss"] > 0


def test_dfad_s_student_takes_its_steps_before_the_generator_looks_at_it(
    experiment, teacher
):
    made, before, batch = _start(experiment, "dfad", teacher)
    assert batch["noise"].shape == (BATCH, 2, 3, 100)  # Two for the student.
    after, _ = _step(made, before)

    def distance(params, images):
        logits = _mlp(params, images)[1], _mlp(teacher["params"], images)[1]
        return jnp.abs(logits[0] - logits[1]).mean()

    student, maker = (x.params for x in _members(before, 1))
    noise = batch["noise"][:, 1]
    of_student = jax.jit(jax.grad(lambda p, x: distance(p, _generate(maker, x))))
    for i in range(2):
        grads = of_student(student, noise[:, i])
        student = jax.tree.map(lambda x, g: x - RATE * g, student, grads)
    _assert_close(_members(after, 1)[0].params, student, rtol=1e-4, atol=1e-5)

    # Its running averages are of its own updates alone.
    hidden = noise[:, 2] @ maker["Dense_0"]["kernel"]
    stats = _members(after, 1)[1].model_state["batch_stats"]["BatchNorm_0"]
    np.testing.assert_allclose(stats["mean"], 0.1 * hidden.mean(0), rtol=1e-4)
    of_maker = jax.jit(jax.grad(lambda p, x: -distance(student, _generate(p, x))))
    grads = of_maker(maker, noise[:, 2])
    maker = jax.tree.map(lambda x, g: x - RATE * g, maker, grads)
    _assert_close(_members(after, 1)[1].params, maker, rtol=1e-4, atol=1e-5)


def test_zskt_reads_the_attention_maps_that_the_config_names():
    config = runpy.run_path(str(ROOT / "configs" / "data_free.py"))["get_config"](
        "lenet"
    )
    config.dataset.update(name="digits", validation=237)
    for model in (config.teacher, config.student):
        model.train.batch_size = 80
    parts = assemble(config)
    assert parts.student.name == "lenet5_half"
    method = METHODS["zskt"](parts, config.data_free.zskt)
    rng = np.random.default_rng(0)
    sides = []
    for channels in (2, 3):
        maps = {
            f"stage{i}": jnp.asarray(rng.normal(size=(4, 5, 5, channels)), jnp.float32)
            for i in (1, 2)
        }
        logits = jnp.asarray(rng.normal(size=(4, 10)), jnp.float32)
        sides.append(Outputs(logits, maps))
    student, teacher = sides
    made = method.student(student, teacher, {}, {"attention": jnp.asarray(3.0)})
    expected = losses.zskt_loss(
        student.logits,
        teacher.logits,
        tuple(student.features[x] for x in ("stage1", "stage2")),
        tuple(teacher.features[x] for x in ("stage1", "stage2")),
        attention_weight=3.0,
    )
    np.testing.assert_array_equal(made["loss"], expected)
    made = method.generator(student, teacher, {}, {})["loss"]
    expected = losses.zskt_generator_loss(student.logits, teacher.logits)
    np.testing.assert_array_equal(made, expected)
    assert (method.student_steps, method.num_draws) == (10, 11)


@pytest.mark.parametrize("frozen", ["student", "generator"])
def test_one_s_update_leaves_the_other_alone(experiment, teacher, frozen):
    made, before, _ = _start(experiment, "dfad", teacher)
    none = {
        f"{frozen}/learning_rate": jax.tree.map(
            lambda x: 0.0, made.hparams[f"{frozen}/learning_rate"]
        )
    }
    made = dataclasses.replace(made, hparams={**made.hparams, **none})
    after, _ = _step(made, before)
    for role in ("student", "generator"):
        same = _same(getattr(after, role).params, getattr(before, role).params)
        assert same == (role == frozen)
    assert after.generator.step.tolist() == [1, 1]
    assert after.student.step.tolist() == [2, 2]


def test_the_control_has_no_generator_and_sees_normal_images(experiment, teacher):
    made, before, batch = _start(experiment, "dfad_noise", teacher)
    assert before.generator.params == {}
    assert batch["noise"].shape == (BATCH, 2, 2, 8, 8, 1)
    after, metrics = _step(made, before)
    assert _same(after.generator, before.generator)
    assert not _same(after.student.params, before.student.params)
    assert not [name for name in metrics if name.startswith("generator")]

    known = {"mean": (0.3,), "std": (0.2,)}
    images = data_free.normal_images((8, 8, 1), **known)
    pixels, _ = images.apply({}, batch["noise"][:, 0, 0], train=True)
    seen = (pixels / 255 - 0.3) / 0.2  # As a network normalises pixels.
    np.testing.assert_allclose(seen, batch["noise"][:, 0, 0], atol=1e-5)


def test_all_arms_begin_as_the_student_of_real_images(experiment, teacher):
    real = experiment.real_training(1, teacher).init()
    for arm in ("dafl", "dfad_noise"):
        started = experiment.arms[arm].training(teacher).init()
        assert _same(_members(started, 1)[0].params, real.params)


def test_pixels_may_be_floats_and_have_a_gradient(experiment, teacher):
    pixels = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 1), np.uint8)
    pixels = jnp.asarray(pixels)
    floats = pixels.astype(jnp.float32)

    def logits(images):
        return experiment.teacher.apply(teacher, images, train=False)[0].logits

    np.testing.assert_array_equal(logits(pixels), logits(floats))
    assert np.abs(jax.grad(lambda x: logits(x).sum())(floats)).max() > 0


def test_dafl_s_generator_gets_better(experiment, teacher):
    made, state, _ = _start(experiment, "dafl", teacher)
    found = []
    for _ in range(20):
        state, metrics = _step(made, state)
        found.append(metrics["generator_loss"])
    assert np.mean(found[-5:]) < np.mean(found[:5]) - 0.2


def test_seeds_together_equal_seeds_alone(experiment, teacher):
    both, state, _ = _start(experiment, "dafl", teacher)
    single, alone, _ = _start(recipe.build(_config(seeds=(1,))), "dafl", teacher)
    for _ in range(3):
        state, _ = _step(both, state)
        alone, _ = _step(single, alone)
    for together, apart in zip(_members(state, 1), _members(alone, 0), strict=True):
        _assert_close(together.params, apart.params, rtol=1e-4, atol=1e-5)


def test_interrupted_and_resumed_is_uninterrupted(experiment, teacher, tmp_path):
    made = experiment.arms["dfad"].training(teacher)
    whole, saved = training.fit(made, tmp_path / "whole")
    saved.close()
    half = dataclasses.replace(made, num_steps=10)
    training.fit(half, tmp_path / "parts")[1].close()
    resumed, saved = training.fit(made, tmp_path / "parts")
    saved.close()
    assert int(resumed.step) == 20
    assert _same(whole, resumed)
    rows = [(tmp_path / x / "metrics.jsonl").read_text() for x in ("whole", "parts")]
    assert rows[0] == rows[1]


@pytest.mark.slow
def test_a_run_leaves_a_report_and_the_teacher_as_it_was(tmp_path):
    config = _config(**{"data_free.methods": ("dafl",), "seeds": (1,)})
    experiment = recipe.build(config)
    recipe.run(experiment, tmp_path, ("teacher",))
    teacher = (tmp_path / "teacher" / "variables.safetensors").read_bytes()
    recipe.run(experiment, tmp_path, command="python -m kdjax.main")
    assert (tmp_path / "teacher" / "variables.safetensors").read_bytes() == teacher

    report = json.loads((tmp_path / "report" / "report.json").read_text())
    names = [arm["name"] for arm in report["arms"]]
    assert names == ["teacher", "real", "dafl", "dafl_noise"]
    assert report["arms"][2]["gain"]["n"] == 1
    for figure in ("generated_dafl", "validation_accuracy", "student_agreement"):
        assert (tmp_path / "report" / "figures" / f"{figure}.png").exists()
    sheets = sorted((tmp_path / "dafl" / "generated").glob("*.npz"))
    assert [path.stem for path in sheets] == ["00000010", "00000020"]
    images = np.load(sheets[0])["images"]
    assert (images.dtype, images.shape) == (np.uint8, (10, 8, 8, 1))
    assert images.std() > 10

    # Nothing is chosen by real images: no checkpoint is the best by validation.
    rows = (tmp_path / "dafl" / "metrics.jsonl").read_text()
    assert '"validation_accuracy_seed1"' in rows
    assert '"validation_accuracy"' not in rows
    before = (tmp_path / "dafl" / "result.json").stat().st_mtime_ns
    recipe.run(experiment, tmp_path, ("generated",))
    assert (tmp_path / "dafl" / "result.json").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("parallel", "pmap", "'jit' for data-free"),
        ("teacher.source", "cached", "'online'"),
        ("teacher.normalize", "unit", "normalised images"),
        ("data_free.methods", ("dafl", "gan"), "some of"),
        ("data_free.batch_size", 20, "to divide over 8 devices, got 20"),
        ("data_free.latent_dim", 0, "a positive number"),
        ("data_free.dfad.student_steps", 0, "a positive number"),
        ("data_free.dafl.features", "hidden7", "hidden1"),
        ("data_free.generator.name", "gan", "out of mlp, conv"),
    ],
)
def test_a_mistake_is_one_sentence(key, value, expected):
    with pytest.raises(UserError, match=expected):
        recipe.build(_config(**{key: value}))
