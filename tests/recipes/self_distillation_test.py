"""Arms of self-distillation: what each is equal to, and what it never does."""

import dataclasses
import json
import pathlib
import runpy
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from kdjax import features, mean_teacher, schedules, steps
from kdjax.recipes import self_distillation, stages
from kdjax.types import Outputs, UserError

ROOT = pathlib.Path(__file__).parents[2]


def _config(*arms, maps=False, **updates):
    path = ROOT / "configs" / "self_distillation.py"
    config = runpy.run_path(str(path))["get_config"]("smoke")
    config.seeds = (0,)
    config.self_distillation.arms = arms
    for model in (config.teacher, config.student):
        with model.model.unlocked():
            if maps:
                model.model.update(name="lenet5", widths=(2, 3, 7, 5))
            else:
                model.model.update(name="mlp", hidden=(13,))
        model.train.update(num_epochs=1, batch_size=120)
    config.update_from_flattened_dict({"log_every_steps": 1, **updates})
    return config


def _build(*arms, **settings):
    return self_distillation.build(_config(*arms, **settings))


def _steps(training, count):
    """The states after each of the first steps, and their metrics."""
    state, rows = training.init(), []
    states, inputs = [], training.loader.inputs(0)
    for _ in range(count):
        state, row = training.programs(1)(
            jax.tree.map(jnp.copy, state), {}, training.hparams, next(inputs)
        )
        states.append(state)
        rows.append({name: float(x[0]) for name, x in row.items()})
    return states, rows


def _assert_close(a, b, **tolerance):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), a, b)


# The mean teacher.


def test_the_teacher_is_the_hand_rolled_average_of_its_student():
    rng = np.random.default_rng(0)
    past = [(rng.normal(size=3), rng.normal(size=2)) for _ in range(9)]
    past = [(np.float32(x), np.float32(y)) for x, y in past]
    table = jax.tree.map(lambda *x: jnp.stack(x), *past)

    def student_step(state, teacher, batch, hparams):
        del teacher, batch, hparams
        params, stats = jax.tree.map(lambda x: x[state.step + 1], table)
        return state.replace(
            step=state.step + 1,
            params={"w": params},
            model_state={"stats": {"m": stats}},
        ), {}

    first = steps.TrainState(
        step=jnp.int32(0),
        params={"w": jnp.asarray(past[0][0])},
        model_state={"stats": {"m": jnp.asarray(past[0][1])}},
        opt_state=(),
        ema_params=None,
        rng=jax.random.key(0),
    )
    step = jax.jit(mean_teacher.make_train_step(student_step))
    hparams = {"teacher_decay": schedules.Constant(0.75)}
    state, average = mean_teacher.init_state(first), past[0]
    for t in range(1, 9):
        state, _ = step(state, {}, {}, hparams)
        a = min(0.75, 1 - 1 / (t + 1))
        average = [a * x + (1 - a) * y for x, y in zip(average, past[t], strict=True)]
        expected = {"params": {"w": average[0]}, "stats": {"m": average[1]}}
        _assert_close(state.teacher, expected, rtol=1e-5)
        if t <= 3:  # At first the plain mean.
            mean = np.mean([w for w, _ in past[: t + 1]], axis=0)
            np.testing.assert_allclose(state.teacher["params"]["w"], mean, 1e-5)


def test_the_teacher_sees_the_second_view_in_inference_mode():
    seen = []

    def apply_fn(variables, images, *, train, rng=None):
        seen.append((images, train))
        return Outputs(logits=variables["w"] * images), {}

    batch = {"image": jnp.float32(1), "second_image": jnp.float32(2)}
    outputs = mean_teacher.see_second_view(apply_fn)({"w": jnp.float32(3)}, batch, {})
    assert outputs.logits == 6
    assert seen == [(2, False)]


def test_without_consistency_its_student_is_the_plain_one():
    plain, average = _build("plain", "weight_average").arms
    expected, _ = _steps(plain.training(0), 5)
    states, _ = _steps(average.training(0), 5)
    for state, other in zip(states, expected, strict=True):
        _assert_close(state.student.params, other.params, rtol=1e-5, atol=1e-6)


def test_consistency_is_between_the_views_and_grows():
    (arm,) = _build(
        "mean_teacher", **{"self_distillation.mean_teacher.warmup_epochs": 0.5}
    ).arms
    training = arm.training(0)
    states, rows = _steps(training, 6)
    network = _build("mean_teacher").network
    batch = jax.jit(training.loader.batch)(next(training.loader.inputs(0)), 3)
    before = states[2]
    probs = [
        scipy.special.softmax(network.apply(v, batch[x], train=False)[0].logits, -1)
        for v, x in (
            (before.student.eval_variables, "image"),
            (before.teacher, "second_image"),
        )
    ]
    expected = np.mean((probs[0] - probs[1]) ** 2)
    np.testing.assert_allclose(rows[3]["consistency"], expected, rtol=1e-3)
    weights = [row["consistency_weight"] for row in rows]
    np.testing.assert_allclose(weights[3:], [80, 100, 100])
    for row in rows:
        total = row["hard"] + row["consistency_weight"] * row["consistency"]
        np.testing.assert_allclose(row["loss"], total, rtol=1e-5)


def test_hidden_labels_are_never_read():
    (arm,) = _build("few_labels_mean_teacher").arms
    training = arm.training(0)
    inputs = next(training.loader.inputs(0))
    hidden = ~np.asarray(inputs["labelled"])
    assert hidden.sum() == 1100
    labels = np.asarray(inputs["label"])
    results = []
    for found in (labels, np.where(hidden, (labels + 1) % 10, labels)):
        state = training.init()
        for _ in range(3):
            state, _ = training.programs(1)(
                state, {}, training.hparams, inputs | {"label": jnp.asarray(found)}
            )
        results.append(jax.device_get((state.student.params, state.teacher)))
    jax.tree.map(np.testing.assert_array_equal, *results)


def test_the_control_of_few_labels_is_the_same_program_with_weight_zero():
    control, taught = _build("few_labels", "few_labels_mean_teacher").arms
    ours, theirs = control.training(0), taught.training(0)
    assert ours.programs is theirs.programs
    batches = [
        jax.jit(x.loader.batch)(next(x.loader.inputs(0)), 0) for x in (ours, theirs)
    ]
    jax.tree.map(np.testing.assert_array_equal, *batches)
    _, rows = _steps(ours, 2)
    assert all(row["loss"] == row["hard"] for row in rows)


class Killed(Exception):
    pass


def test_student_and_teacher_go_on_together(tmp_path):
    experiment = _build("few_labels_mean_teacher", checkpoint_every_steps=4)
    (arm,) = experiment.arms
    place = pathlib.Path("arms") / arm.name / "seed0"
    checkpoint = tmp_path / "killed" / place / "checkpoints" / "4"

    def training(seed):
        made = arm.training(seed)

        def run(state, *arguments):
            if int(state.step) == 6:
                while not checkpoint.exists():  # It is saved beside the training.
                    time.sleep(0.01)
                raise Killed
            return made.programs(1)(state, *arguments)

        return dataclasses.replace(made, programs=lambda count: run)

    broken = dataclasses.replace(
        experiment, arms=(dataclasses.replace(arm, training=training),)
    )
    with pytest.raises(Killed):
        self_distillation.run(broken, tmp_path / "killed", ("arms",))
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    for workdir in (killed, whole):
        self_distillation.run(experiment, workdir, ("arms",))
    for file in ("variables.safetensors", "predictions.npz", "metrics.jsonl"):
        expected = (whole / place / file).read_bytes()
        assert (killed / place / file).read_bytes() == expected, file


# Teachers made of labels.


def test_a_virtual_teacher_at_temperature_one_is_label_smoothing():
    alpha, correct, classes = 0.3, 0.8, 10
    share = alpha * (1 - correct) * classes / (classes - 1)
    settings = {
        "self_distillation.virtual_teacher.form": "paper",
        "self_distillation.virtual_teacher.temperature": 1.0,
        "self_distillation.virtual_teacher.alpha": alpha,
        "self_distillation.virtual_teacher.correct_prob": correct,
        "self_distillation.label_smoothing.share": share,
    }
    arms = _build("virtual_teacher", "label_smoothing", **settings).arms
    (virtual, _), (smooth, _) = (_steps(arm.training(0), 6) for arm in arms)
    _assert_close(virtual[-1].params, smooth[-1].params, rtol=1e-4, atol=1e-6)


# Exits.


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("self_distillation")
    experiment = _build("plain", "byot", maps=True)
    self_distillation.run(experiment, workdir)
    return experiment, workdir


def _rows(workdir, arm):
    path = workdir / "arms" / arm / "seed0" / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_exits_leave_the_inference_of_the_network_alone(finished):
    experiment, workdir = finished
    directory = workdir / "arms" / "byot" / "seed0"
    variables = stages.load_variables(experiment.network, directory)
    images = jnp.asarray(experiment.test.take(np.arange(40))["image"])
    logits = experiment.network.apply(variables, images, train=False)[0].logits
    with np.load(directory / "predictions.npz") as predictions:
        expected = predictions["deepest"][:40]
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)


def test_the_ensemble_of_exits_averages_probabilities(finished):
    _, workdir = finished
    with np.load(workdir / "arms" / "byot" / "seed0" / "predictions.npz") as found:
        probs = {k: scipy.special.softmax(np.float64(x), -1) for k, x in found.items()}
    expected = (probs["exit1"] + probs["deepest"]) / 2
    np.testing.assert_allclose(probs["ensemble"], expected, rtol=1e-4, atol=1e-6)
    assert not np.allclose(probs["exit1"], probs["deepest"])


def test_byot_weighs_its_terms_as_published(finished):
    _, workdir = finished
    for row in _rows(workdir, "byot"):
        total = 0.9 * row["hard"] + 0.1 * row["exits"] + 120e-6 * row["features"]
        np.testing.assert_allclose(row["loss"], total, rtol=1e-5)


def test_all_arms_start_from_the_same_network(finished):
    experiment, _ = finished
    plain, byot = (arm.training(0).init() for arm in experiment.arms)
    own, extra = features.split({"params": byot.params})
    jax.tree.map(np.testing.assert_array_equal, own["params"], plain.params)
    assert extra["params"].keys() == {"exit1"}


def test_an_exit_costs_the_layers_up_to_it(finished):
    experiment, _ = finished
    shares = self_distillation.exit_shares(experiment, experiment.arms[1])
    # Multiply-accumulates of LeNet-5 on 32x32, with 2, 3, 7 and 5 channels.
    first = 28 * 28 * 25 * 2
    rest = 10 * 10 * 25 * 2 * 3 + 5 * 5 * 3 * 7 + 7 * 5 + 5 * 10
    pooling = 10 * 28 * 28 * 2 + 10 * 10 * 28 * 2  # 28 to 10, as two products.
    exit1 = pooling + 10 * 10 * 9 * 2 * 3 + 3 * 10
    whole = first + rest
    expected = {"deepest": whole, "exit1": first + exit1, "ensemble": whole + exit1}
    assert shares == pytest.approx({k: 100 * x / whole for k, x in expected.items()})


def test_the_report_has_every_classifier_and_the_figure_of_exits(finished):
    _, workdir = finished
    report = json.loads((workdir / "report" / "report.json").read_text())
    arms = {arm["name"]: arm["against"] for arm in report["arms"]}
    assert arms == {
        "plain": None,
        **dict.fromkeys(("byot", "byot/exit1", "byot/ensemble"), "plain"),
    }
    result = workdir / "arms" / "byot" / "seed0" / "result.json"
    accuracy = json.loads(result.read_text())["test_accuracy"]["exit1"]
    assert report["arms"][2]["values"] == [pytest.approx(accuracy)]
    assert (workdir / "report" / "figures" / "exits.png").exists()


def test_an_arm_alone_is_compared_with_nothing(tmp_path):
    experiment = _build("label_smoothing")
    self_distillation.run(experiment, tmp_path)
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert [arm["against"] for arm in report["arms"]] == [None]


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("self_distillation.arms", ("plian",), "some of plain, label_smoothing"),
        ("student.train.label_smoothing", 0.1, "it is an arm"),
        ("student.train.augment.mixup", 1.0, "not mixed"),
        ("dataset.streaming", True, "on the device"),
        ("self_distillation.byot.alpha", 1.5, "between 0 and 1"),
        ("self_distillation.uskd.form", "papre", "author_code"),
        ("self_distillation.few_labels.num_labels", 5000, "below the 1200"),
        ("self_distillation.few_labels.batch_size", 120, "below the 120"),
    ],
)
def test_a_mistake_is_one_sentence(key, value, expected):
    with pytest.raises(UserError, match=expected):
        _build("plain", **{key: value})


@pytest.mark.parametrize(
    ("arm", "key", "value", "expected"),
    [
        ("byot", "byot.features", "stage1", "two layers or more"),
        ("byot", "byot.features", "stage?,pooled", "to be maps"),
        ("uskd", "uskd.features", "stage[12]", "name one feature"),
        ("uskd", "uskd.features", "stgae2", "mean stage2"),
    ],
)
def test_exits_that_do_not_fit_are_one_sentence(arm, key, value, expected):
    with pytest.raises(UserError, match=expected):
        _build(arm, maps=True, **{f"self_distillation.{key}": value})


def test_a_report_needs_an_arm(tmp_path):
    with pytest.raises(UserError, match="--stages=arms first"):
        self_distillation.run(_build("plain"), tmp_path, ("report",))
