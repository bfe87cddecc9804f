"""A table of methods: each is trained as it would be alone, and reported once."""

import dataclasses
import json
import pathlib
import runpy
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from kdjax import builders, default_config, training
from kdjax.builders import methods as builder
from kdjax.data import sources
from kdjax.recipes import methods, offline
from kdjax.types import ADAPTERS, UserError

ROOT = pathlib.Path(__file__).parents[2]
HIDDEN = {"student_features": "hidden1", "teacher_features": "hidden1"}
HINT = {"loss": "hint", "weight": 1.0, **HIDDEN}
TABLE = {
    "kd": {"title": "KD", "distill": {"alpha": 0.9}, "published": 92.0},
    "reused": {
        "distill": {"alpha": 0.0, "terms": {"hint": HINT | {"weight": 50.0}}},
        "classifier": "teacher",
        "note": "by the teacher's classifier",
    },
    "staged": {
        "distill": {
            "alpha": 0.5,
            "from_epoch": 120.0,
            "terms": {"hint": HINT | {"until_epoch": 120.0}},
        }
    },
}


def _config(table=None, **updates):
    config = runpy.run_path(str(ROOT / "configs" / "digits_kd.py"))["get_config"](
        "smoke"
    )
    config.recipe = "methods"
    config.seeds = (3,)
    config.student.model.hidden = (24, 16)
    config.student.train.optimizer.update(name="sgd", weight_decay=0.01)
    config.student.train.learning_rate.update(base=0.05)
    with config.unlocked():
        config.methods = default_config.get_config("methods").methods
    config.methods.table.unlock()
    config.methods.table.update(TABLE if table is None else table)
    config.update_from_flattened_dict(updates)
    return config


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """Two runs that share the work, then a report."""
    directory = tmp_path_factory.mktemp("methods")
    first = builder.build(_config(**{"methods.only": "reused"}))
    methods.run(first, directory, ("teacher", "cache", "baseline", "methods"))
    second = builder.build(_config(**{"methods.only": "kd, staged"}))
    methods.run(second, directory, ("cache", "methods"))
    methods.run(builder.build(_config()), directory, ("report",), command="again")
    return directory


def _result(workdir, name):
    return json.loads((workdir / name / "seed3" / "result.json").read_text())


def test_runs_that_share_the_work_are_in_one_report(workdir):
    report = json.loads((workdir / "report" / "report.json").read_text())
    arms = {arm["name"]: arm for arm in report["arms"]}
    assert report["arms"][0]["name"] == "baseline"
    assert set(arms) == {"baseline", *TABLE}
    baseline = _result(workdir, "baseline")["accuracy"]
    for name in TABLE:
        accuracy = _result(workdir, f"methods/{name}")["accuracy"]
        assert arms[name]["values"] == [accuracy]
        np.testing.assert_allclose(arms[name]["gain"]["mean"], accuracy - baseline)
    figures = {path.stem for path in (workdir / "report" / "figures").iterdir()}
    assert figures == {"arms", "gains", "gain_by_cost"}


def test_a_method_of_the_table_is_the_training_of_offline_distillation(
    workdir, tmp_path
):
    for done in ("teacher", "cache"):
        shutil.copytree(workdir / done, tmp_path / done)
    base = builders.build(_config())
    offline.run(base, tmp_path, ("student",))
    theirs, mine = tmp_path / "student" / "seed3", workdir / "methods" / "kd" / "seed3"
    expected, found = (load_file(x / "variables.safetensors") for x in (theirs, mine))
    assert found.keys() == expected.keys()
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name])
    with np.load(theirs / "predictions.npz") as arrays:
        right = arrays["logits"].argmax(-1) == sources.labels(base.splits.test)
    accuracy = _result(workdir, "methods/kd")["accuracy"]
    np.testing.assert_allclose(accuracy, 100 * right.mean())


def test_the_teachers_classifier_predicts_from_the_adapted_features(workdir):
    """Written out in NumPy, from the files."""
    base = builders.build(_config())
    student = load_file(workdir / "methods/reused/seed3/variables.safetensors")
    teacher = load_file(workdir / "teacher" / "variables.safetensors")
    test = base.splits.test.take(np.arange(len(base.splits.test)))
    norm = base.student.description
    pixels = (test["image"] / 255.0 - norm["mean"]) / norm["std"]

    def layer(x, variables, name):
        (kernel,) = (v for k, v in variables.items() if k.endswith(f"{name}/kernel"))
        (bias,) = (v for k, v in variables.items() if k.endswith(f"{name}/bias"))
        return x @ kernel + bias

    own = {k: v for k, v in student.items() if ADAPTERS not in k}
    extra = {k: v for k, v in student.items() if ADAPTERS in k}
    hidden = np.maximum(layer(pixels.reshape(len(pixels), -1), own, "Dense_0"), 0)
    made = np.maximum(layer(hidden, extra, "linear"), 0)
    right = layer(made, teacher, "Dense_1").argmax(-1) == test["label"]
    assert abs(_result(workdir, "methods/reused")["accuracy"] - 100 * right.mean()) < 1
    assert 100 * right.mean() > 15  # Of ten classes: better than by chance.


def test_a_finished_method_is_not_trained_again(workdir, monkeypatch):
    def fit(*args):
        raise AssertionError("Trained again.")

    monkeypatch.setattr("kdjax.recipes.stages.fit", fit)
    before = (workdir / "methods" / "kd" / "seed3" / "result.json").read_bytes()
    methods.run(builder.build(_config()), workdir, methods.run.stages)
    after = (workdir / "methods" / "kd" / "seed3" / "result.json").read_bytes()
    assert after == before


def _steps(made, num_steps):
    """The state before and after each step, and all metrics."""
    state = made.parallel.replicate(made.init())
    constants = made.parallel.replicate(made.constants)
    inputs = made.loader.inputs(0)
    states, rows = [jax.device_get(state)], []
    for _ in range(num_steps):
        state, metrics = made.programs(1)(state, constants, made.hparams, next(inputs))
        states.append(jax.device_get(state))
        rows.append({name: float(x[0]) for name, x in metrics.items()})
    return states, rows


def test_the_first_stage_trains_up_to_the_hint_and_the_second_goes_on_from_it():
    experiment = builder.build(_config())
    (method,) = (m for m in experiment.methods if m.name == "staged")
    teacher = experiment.base.teacher.init(jax.random.key(1))
    made = method.training(0, teacher, None)
    half = made.num_steps // 2  # 120 of 240 epochs.
    assert half == made.steps_per_epoch
    states, rows = _steps(made, half + 2)

    def moved(name, start, end):
        old, new = (states[i].params[name]["kernel"] for i in (start, end))
        return float(np.max(np.abs(new - old)))

    assert moved("Dense_0", 0, half) > 1e-3
    for above in ("Dense_1", "Dense_2"):  # Neither trained nor decayed.
        assert moved(above, 0, half) == 0
        assert moved(above, half, half + 1) > 1e-5
    for row in rows[:half]:
        np.testing.assert_allclose(row["loss"], row["hint"], rtol=1e-6)
    for row in rows[half:]:
        mean = 0.5 * row["soft"] + 0.5 * row["hard"]
        np.testing.assert_allclose(row["loss"], mean, rtol=1e-5)
    assert all(row["hint.weight"] == 1 for row in rows[:half])
    assert all(row["hint.weight"] == 0 for row in rows[half:])


@pytest.mark.slow
def test_terms_of_the_second_stage_do_not_reach_into_the_first():
    """The first stage is that of a training which never comes to its second."""
    alone = TABLE["staged"] | {
        "distill": {"from_epoch": 240.0, "terms": {"hint": HINT}}
    }
    states = []
    for table in (TABLE, {"staged": alone}):
        experiment = builder.build(_config(table))
        (method,) = (m for m in experiment.methods if m.name == "staged")
        teacher = experiment.base.teacher.init(jax.random.key(1))
        made = method.training(0, teacher, None)
        states.append(_steps(made, made.steps_per_epoch)[0][-1].params)
    jax.tree.map(np.testing.assert_array_equal, *states)


@pytest.mark.slow
def test_one_that_diverges_leaves_the_others_done(workdir, tmp_path):
    wild = {"distill": {"terms": {"hint": HINT | {"weight": 1e30}}}}
    table = {"a_wild": wild, "kd": TABLE["kd"]}
    experiment = builder.build(_config(table))
    stages = ("teacher", "cache", "methods")
    with pytest.raises(UserError, match=r"1 did not.* a_wild: Expected a finite loss"):
        methods.run(experiment, tmp_path, stages)
    assert (
        _result(tmp_path, "methods/kd")["accuracy"]
        == (_result(workdir, "methods/kd")["accuracy"])
    )


@pytest.mark.parametrize(
    ("table", "updates", "expected"),
    [
        (None, {"methods.only": "stagd"}, r"'stagd'.* Did you mean staged\?"),
        ({}, {}, "methods.table with at least one"),
        ({"kd": {"tittle": "KD"}}, {}, "methods.table.kd to set some of .*got tittle"),
        ({"kd": {"distill": {"alhpa": 1.0}}}, {}, "alhpa"),
        (
            {"kd": {"distill": {}, "classifier": "teacher"}},
            {},
            "kd to have one adapter.*got 0",
        ),
        (
            {"x": {"distill": {"terms": {"hint": HINT | {"until_epoch": 0.0}}}}},
            {},
            "hint to have 0 <= from_epoch < until_epoch",
        ),
    ],
)
def test_a_mistake_is_one_sentence(table, updates, expected):
    with pytest.raises(UserError, match=expected):
        builder.build(_config(table, **updates))


def test_every_method_of_the_config_builds_and_only_features_are_online():
    path = ROOT / "configs" / "cifar_methods.py"
    config = runpy.run_path(str(path))["get_config"]("smoke")
    experiment = builder.build(config)
    assert len(experiment.methods) >= 15
    cached = {method.name for method in experiment.methods if method.cached}
    assert cached == {"kd", "logits", "dkd", "dist", "lskd"}
    for method in experiment.methods:
        distill = method.inputs["distill"]
        for term in distill["terms"].values():
            # 20 or 30 of 240 epochs are as much of two.
            assert term.get("warmup_epochs", 20 / 120) == 20 / 120
            assert term.get("until_epoch", 30 / 120) == 30 / 120


@pytest.mark.parametrize("variant", ["", "short"])
def test_a_training_on_an_accelerator_is_one_program(variant):
    """Every dispatch is one epoch: another length would be compiled for itself."""
    path = ROOT / "configs" / "cifar_methods.py"
    config = runpy.run_path(str(path))["get_config"](variant)
    num_examples = 50_000 - int(config.dataset.validation)
    per_epoch = num_examples // config.student.train.batch_size
    (method, *_) = builder.build(_config()).methods
    made = dataclasses.replace(
        method.training(0, {}, None),
        num_steps=per_epoch * config.student.train.num_epochs,
        steps_per_epoch=per_epoch,
        steps_per_dispatch=config.steps_per_dispatch,
        log_every_steps=config.log_every_steps,
        eval_every_epochs=config.eval_every_epochs,
        checkpoint_every_steps=config.checkpoint_every_steps,
    )
    step, lengths = 0, set()
    while step < made.num_steps:
        stop = made.next_stop(step)
        lengths.add(stop - step)
        step = stop
    assert lengths == {per_epoch}


def test_fit_is_what_the_recipe_trains_by():
    """Else the test that nothing is trained again would watch the wrong door."""
    from kdjax.recipes import stages

    assert stages.fit is training.fit
