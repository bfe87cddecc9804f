"""Several teachers: how they are combined, who teaches whom, and from where."""

import json
import pathlib
import runpy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from kdjax.builders.ensemble import WAYS, soft_loss
from kdjax.recipes import ensemble, stages
from kdjax.types import UserError

ROOT = pathlib.Path(__file__).parents[2]


def _config(**updates):
    path = ROOT / "configs" / "ensemble.py"
    config = runpy.run_path(str(path))["get_config"]("smoke")
    with config.unlocked():
        for model in (config.teacher, config.student):
            model.model = _mlp(13)
            model.train.update(num_epochs=1, batch_size=120)
        config.ensemble.ways = ("logits", "probs", "losses")
    config.update_from_flattened_dict({"log_every_steps": 1, **updates})
    return config


def _mlp(width):
    return dict(name="mlp", hidden=(width,), dtype="float32")


# Ways of combining, in float64 by the equations.


def _example(teachers=3):
    rng = np.random.default_rng(0)
    student = rng.normal(size=(5, 4)).astype("f4")
    teacher = 2 * rng.normal(size=(teachers, 5, 4)).astype("f4")
    return student, teacher, rng.integers(0, 4, 5)


def _kl(log_p, log_q):
    return np.sum(np.exp(log_p) * (log_p - log_q), axis=-1)


def _by_hand(way, student, teacher, labels, weights, temperature):
    log_s = scipy.special.log_softmax(np.float64(student) / temperature, axis=-1)
    log_t = scipy.special.log_softmax(np.float64(teacher) / temperature, axis=-1)
    weights = np.broadcast_to(np.float64(weights)[:, None], teacher.shape[:2])
    if way == "confidence":
        sharp = scipy.special.log_softmax(np.float64(teacher), axis=-1)
        hard = -sharp[:, np.arange(len(labels)), labels]
        weights = weights * (1 - scipy.special.softmax(hard, axis=0))
    weights = weights / weights.sum(axis=0)
    if way == "logits":
        mean = np.sum(weights[..., None] * np.float64(teacher), axis=0)
        log_m = scipy.special.log_softmax(mean / temperature, axis=-1)
        return temperature**2 * _kl(log_m, log_s)
    if way == "probs":
        log_m = np.log(np.sum(weights[..., None] * np.exp(log_t), axis=0))
        return temperature**2 * _kl(log_m, log_s)
    return temperature**2 * np.sum(weights * _kl(log_t, log_s), axis=0)


def _soft(way, student, teacher, labels, weights, temperature=3.0):
    return soft_loss(
        way,
        jnp.asarray(student),
        jnp.asarray(teacher),
        jnp.asarray(labels),
        jnp.asarray(weights, jnp.float32),
        temperature=jnp.float32(temperature),
        where=jnp.ones(len(student), bool),
    )


@pytest.mark.parametrize("way", WAYS)
def test_ways_of_combining_by_hand(way):
    student, teacher, labels = _example()
    weights = [1.0, 0.5, 2.0]
    expected = _by_hand(way, student, teacher, labels, weights, 3.0)
    actual = _soft(way, student, teacher, labels, weights)
    np.testing.assert_allclose(actual, expected, rtol=2e-5)


@pytest.mark.parametrize("way", [way for way in WAYS if way != "confidence"])
def test_a_teacher_of_weight_zero_is_as_if_absent(way):
    student, teacher, labels = _example()
    actual = _soft(way, student, teacher, labels, [1.0, 0.0, 2.0])
    expected = _soft(way, student, teacher[[0, 2]], labels, [1.0, 2.0])
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_mean_probabilities_and_mean_losses_have_one_gradient():
    student, teacher, labels = _example()

    def total(student, way):
        return jnp.sum(_soft(way, student, teacher, labels, [1.0, 0.5, 2.0]))

    probs, losses, logits = (
        jax.grad(total)(jnp.asarray(student), way)
        for way in ("probs", "losses", "logits")
    )
    np.testing.assert_allclose(probs, losses, rtol=1e-4, atol=1e-5)
    assert np.max(np.abs(probs - logits)) > 1e-2


# Trainings.


def _teachers(experiment):
    keys = jax.random.split(jax.random.key(7), len(experiment.teachers))
    return [
        teacher.network.init(key)
        for teacher, key in zip(experiment.teachers, keys, strict=True)
    ]


def _rows(training, count=3):
    state, rows, inputs = training.init(), [], training.loader.inputs(0)
    for _ in range(count):
        state, row = training.programs(1)(
            state, training.constants, training.hparams, next(inputs)
        )
        rows.append({name: float(x[0]) for name, x in row.items()})
    return rows


@pytest.fixture(scope="module")
def online():
    return ensemble.build(_config(**{"teacher.source": "online"}))


def test_the_first_step_minimises_what_the_arms_name(online):
    variables = _teachers(online)
    training = online.student_training("probs", 2, 0, variables, [])
    batch = jax.jit(training.loader.batch)(next(training.loader.inputs(0)), 0)
    student, *teachers = (
        np.asarray(online.student.apply(x, batch["image"], train=False)[0].logits)
        for x in (training.init().eval_variables, *variables)
    )
    labels = np.asarray(batch["label"])
    soft = np.mean(
        _by_hand("probs", student, np.stack(teachers), labels, [1.0, 1.0], 4.0)
    )
    log_s = scipy.special.log_softmax(np.float64(student), axis=-1)
    hard = -np.mean(log_s[np.arange(len(labels)), labels])
    (row,) = _rows(training, 1)
    np.testing.assert_allclose(row["soft"], soft, rtol=1e-4)
    np.testing.assert_allclose(row["loss"], 0.9 * soft + 0.1 * hard, rtol=1e-4)


def test_of_one_teacher_all_ways_are_the_same(online):
    variables = _teachers(online)
    rows = [
        _rows(online.student_training(way, 1, 1, variables, [])) for way in online.ways
    ]
    for other in rows[1:]:
        for a, b in zip(rows[0], other, strict=True):
            np.testing.assert_allclose(a["loss"], b["loss"], rtol=1e-5)


def test_students_of_other_seeds_have_other_teachers(online):
    assert [online.chosen(1, seed) for seed in (0, 1)] == [(0,), (1,)]
    assert [online.chosen(2, seed) for seed in (0, 1)] == [(0, 1), (1, 0)]
    training = online.student_training("logits", 1, 1, _teachers(online), [])
    weights = [float(training.hparams[f"teacher{i}.weight"](0)) for i in (0, 1)]
    assert weights == [0.0, 1.0]


def test_no_student_begins_as_a_teacher_did(online):
    student = online.baseline_training(0).init().params
    for teacher in online.teachers:
        first = teacher.training().init().params
        assert np.any(first["Dense_0"]["kernel"] != student["Dense_0"]["kernel"])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("ensemble")
    experiment = ensemble.build(_config(**{"ensemble.ways": ("logits", "losses")}))
    ensemble.run(experiment, workdir)
    return experiment, workdir


def test_read_from_their_caches_they_teach_what_they_teach_online(finished, online):
    experiment, workdir = finished
    assert experiment.cached
    assert {p.name for p in (workdir / "cache").iterdir()} == {"teacher0", "teacher1"}
    variables = [
        stages.load_variables(teacher.network, workdir / "teacher" / f"teacher{i}")
        for i, teacher in enumerate(experiment.teachers)
    ]
    expected = _rows(online.student_training("losses", 2, 1, variables, []), 9)
    path = workdir / "student" / "losses2" / "seed1" / "metrics.jsonl"
    for row, text in zip(expected, path.read_text().splitlines(), strict=False):
        np.testing.assert_allclose(json.loads(text)["loss"], row["loss"], rtol=1e-5)


def test_the_report_has_teachers_their_ensemble_and_students(finished):
    experiment, workdir = finished
    report = json.loads((workdir / "report" / "report.json").read_text())
    arms = {arm["name"]: arm for arm in report["arms"]}
    assert {"baseline", "one", "logits2", "losses2"} <= set(arms)
    logits = []
    for i in range(2):
        with np.load(workdir / "teacher" / f"teacher{i}" / "predictions.npz") as arrays:
            logits.append(np.float64(arrays["logits"]))
    test = experiment.splits.test
    labels = test.take(np.arange(len(test)))["label"]
    mean = np.mean(scipy.special.softmax(logits, axis=-1), axis=0)
    expected = 100 * np.mean(mean.argmax(axis=-1) == labels)
    np.testing.assert_allclose(arms["teachers2"]["values"], [expected] * 2)
    each = [100 * np.mean(x.argmax(axis=-1) == labels) for x in logits]
    np.testing.assert_allclose(arms["teachers1"]["values"], each)
    assert arms["logits2"]["against"] == "one"
    assert (workdir / "report" / "figures" / "accuracy_by_count.png").exists()


def test_a_second_run_changes_nothing(finished):
    experiment, workdir = finished
    files = [*workdir.rglob("variables.safetensors"), *workdir.rglob("result.json")]
    times = {path: path.stat().st_mtime_ns for path in files}
    ensemble.run(experiment, workdir, ("teacher", "cache", "student", "baseline"))
    assert {path: path.stat().st_mtime_ns for path in files} == times


def test_teachers_of_several_architectures():
    config = _config(**{"teacher.source": "online"})
    with config.unlocked():
        config.ensemble.models = {"narrow": _mlp(11), "wide": _mlp(17)}
    experiment = ensemble.build(config)
    variables = _teachers(experiment)
    widths = [x["params"]["Dense_0"]["kernel"].shape[1] for x in variables]
    assert widths == [11, 17]
    rows = _rows(experiment.student_training("logits", 2, 0, variables, []))
    assert rows[-1]["soft"] < rows[0]["soft"]
    first = [teacher.inputs["model"]["hidden"] for teacher in experiment.teachers]
    assert first == [[11], [17]]


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("ensemble.counts", (1,), "at least 2"),
        ("ensemble.counts", (0, 2), "at least 2"),
        ("ensemble.ways", ("mean",), "some of"),
        ("ensemble.weights", (1.0, 2.0, 3.0), "one entry for each of the 2"),
        ("ensemble.weights", (1.0, 0.0), "positive"),
        ("teacher.pretrained", "/nowhere/x.pth", "begins from random weights"),
        ("distill.from_epoch", 1.0, "from_epoch"),
    ],
)
def test_a_mistake_is_one_sentence(key, value, expected):
    config = _config()
    config.update_from_flattened_dict({key: value})
    with pytest.raises(UserError, match=expected):
        ensemble.build(config)
