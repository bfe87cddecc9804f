"""Chains: who teaches whom, what paths share, and where the teacher is read from."""

import dataclasses
import functools
import json
import pathlib
import runpy

import jax
import numpy as np
import pytest

from kdjax.builders import assistants as builder
from kdjax.builders._parts import assemble
from kdjax.recipes import assistants, stages
from kdjax.types import UserError

ROOT = pathlib.Path(__file__).parents[2]


def _config(**updates):
    path = ROOT / "configs" / "assistants.py"
    config = runpy.run_path(str(path))["get_config"]("smoke")
    for model in (config.teacher, config.student):
        model.train.update(num_epochs=1, batch_size=120)
    config.seeds = (3,)
    config.update_from_flattened_dict({"log_every_steps": 5, **updates})
    return config


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A whole run, and the teachers that its trainings were given, by directory."""
    workdir = tmp_path_factory.mktemp("assistants")
    experiment = assistants.build(_config())
    taught = []

    @functools.cache
    def link(above, below):
        made = experiment.link(above, below)

        def training(seed, variables, cache):
            assert cache is not None
            taught.append((above, below, seed, variables))
            return made.training(seed, variables, cache)

        return dataclasses.replace(made, training=training)

    assistants.run(dataclasses.replace(experiment, link=link), workdir)
    return experiment, workdir, taught


def _load(experiment, name, directory):
    return stages.load_variables(experiment.networks[name], directory)


def _equal(a, b):
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.array_equal(x, y) for x, y in pairs)


def test_every_choice_of_assistants_is_a_path():
    assert builder._paths(("a", "b", "c")) == (
        (),
        *(("a",), ("b",), ("c",)),
        *(("a", "b"), ("a", "c"), ("b", "c")),
        ("a", "b", "c"),
    )


def test_each_network_learns_from_the_one_before_it(finished):
    experiment, workdir, taught = finished
    sources = {
        ("teacher", "large"): ["teacher"],
        ("teacher", "small"): ["teacher"],
        ("large", "small"): ["assistant/large/seed{}"],
        ("teacher", "student"): ["teacher"],
        ("large", "student"): ["assistant/large/seed{}"],
        ("small", "student"): [
            "assistant/small/seed{}",
            "assistant/large-small/seed{}",
        ],
    }
    expected = [
        (above, below, 3, place.format(3))
        for (above, below), places in sources.items()
        for place in places
    ]
    assert len(taught) == len(expected)  # What paths have in common is trained once.
    for above, below, seed, place in expected:
        teacher = _load(experiment, above, workdir / place)
        matches = [
            _equal(teacher, variables)
            for *who, variables in taught
            if who == [above, below, seed]
        ]
        assert sum(matches) == 1, (above, below, seed, place)


def test_the_direct_student_is_that_of_offline_distillation(finished):
    experiment, workdir, _ = finished
    teacher = _load(experiment, "teacher", workdir / "teacher")
    parts = assemble(_config(**{"teacher.source": "online"}))
    training = parts.student_training(3, teacher, None)
    state, inputs = training.init(), training.loader.inputs(0)
    for _ in range(training.num_steps):
        state, _ = training.programs(1)(
            state, training.constants, training.hparams, next(inputs)
        )
    kept = _load(experiment, "student", workdir / "student" / "direct" / "seed3")
    for a, b in zip(
        jax.tree.leaves(kept), jax.tree.leaves(state.eval_variables), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_the_report_compares_each_path_with_the_direct_one(finished):
    experiment, workdir, _ = finished
    report = json.loads((workdir / "report" / "report.json").read_text())
    against = {arm["name"]: arm["against"] for arm in report["arms"]}
    assert against == {
        "teacher": None,
        "assistant/large": None,
        "assistant/small": None,
        "assistant/large-small": None,
        "baseline": None,
        "direct": "baseline",
        "large": "direct",
        "small": "direct",
        "large-small": "direct",
    }
    arms = {arm["name"]: arm for arm in report["arms"]}
    test = experiment.splits.test
    examples = test.take(np.arange(len(test)))
    variables = _load(experiment, "student", workdir / "student" / "large" / "seed3")
    logits = experiment.predict["student"](variables, examples["image"])
    accuracy = 100 * np.mean(logits.argmax(axis=-1) == examples["label"])
    np.testing.assert_allclose(arms["large"]["values"], [accuracy], rtol=1e-5)
    assert (workdir / "report" / "figures" / "accuracy_by_length.png").exists()


def test_a_second_run_changes_nothing(finished):
    experiment, workdir, _ = finished
    files = [*workdir.rglob("variables.safetensors"), *workdir.rglob("result.json")]
    times = {path: path.stat().st_mtime_ns for path in files}
    done = ("teacher", "assistant", "student", "baseline")
    assistants.run(experiment, workdir, done)
    assert {path: path.stat().st_mtime_ns for path in files} == times


def test_another_teacher_is_refused(finished, tmp_path):
    _, workdir, _ = finished
    experiment = assistants.build(_config(**{"distill.temperature": 2.0}))
    with pytest.raises(UserError, match=r"distill\.temperature was 4\.0, is 2\.0"):
        assistants.run(experiment, workdir, ("assistant",))


@pytest.mark.parametrize(
    ("models", "expected"),
    [
        ({}, "one or more models"),
        ({"student": dict(name="mlp", dtype="float32")}, "none of"),
        ({"large": dict(name="mpl", dtype="float32")}, "did you mean mlp"),
    ],
)
def test_a_mistake_is_one_sentence(models, expected):
    config = _config()
    with config.unlocked():
        config.assistants.models = models
    config.assistants.chain = tuple(models)
    with pytest.raises(UserError, match=expected):
        assistants.build(config)


@pytest.mark.parametrize("chain", [(), ("large", "large"), ("huge",)])
def test_a_chain_names_models_each_once(chain):
    with pytest.raises(UserError, match="name some of"):
        assistants.build(_config(**{"assistants.chain": chain}))


def test_a_chain_is_in_its_own_order():
    """Sections of a config are in the order of their names."""
    experiment = assistants.build(_config(**{"assistants.chain": ("small", "large")}))
    assert experiment.paths[-1] == ("small", "large")


def test_pretrained_weights_of_the_teacher_are_refused():
    with pytest.raises(UserError, match=r"teacher\.pretrained"):
        assistants.build(_config(**{"teacher.pretrained": "/nowhere/x.pth"}))
