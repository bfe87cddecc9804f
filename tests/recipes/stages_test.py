"""Tests of recipes/stages.py."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import default_config, pretrained
from kdjax.builders import _parts
from kdjax.recipes import stages
from kdjax.types import UserError


@pytest.fixture
def seen():
    return []


@pytest.fixture
def runner(seen):
    return stages.Runner(
        {
            "teacher": lambda experiment, workdir: seen.append(("teacher", experiment)),
            "student": lambda experiment, workdir: seen.append(("student", workdir)),
        },
        lambda experiment, workdir, command: seen.append(("report", command)),
    )


def test_all_stages_run_in_their_order_and_the_report_gets_the_command(
    runner, seen, tmp_path
):
    runner("experiment", tmp_path / "run", command="again")
    assert seen == [
        ("teacher", "experiment"),
        ("student", tmp_path / "run"),
        ("report", "again"),
    ]
    assert runner.stages == ("teacher", "student", "report")


@pytest.mark.parametrize("wanted", [("student",), ("report",), ("report", "teacher")])
def test_only_the_wanted_stages_run_in_the_recipes_order(
    runner, seen, tmp_path, wanted
):
    runner("experiment", tmp_path, wanted)
    assert [name for name, _ in seen] == [x for x in runner.stages if x in wanted]


def test_what_stages_take_is_added_up_but_for_the_report(runner, tmp_path):
    runner("experiment", tmp_path, ("teacher", "report"))
    first = json.loads((tmp_path / stages.SECONDS).read_text())
    runner("experiment", tmp_path)
    both = json.loads((tmp_path / stages.SECONDS).read_text())
    assert first.keys() == {"teacher"}
    assert both.keys() == {"teacher", "student"}
    assert both["teacher"] > first["teacher"] > 0


def test_an_optional_stage_runs_when_it_is_named_after_all_others(
    runner, seen, tmp_path
):
    def export(experiment, workdir, command):
        seen.append(("export", command))

    runner = dataclasses.replace(runner, optional={"export": export})
    runner("experiment", tmp_path)
    assert [name for name, _ in seen] == list(runner.stages)
    assert "export" not in runner.stages
    seen.clear()
    runner("experiment", tmp_path, ("export", "report", "teacher"), command="again")
    assert [name for name, _ in seen] == ["teacher", "report", "export"]
    assert seen[-1] == ("export", "again")
    with pytest.raises(UserError, match="teacher, student, report, export, got exprt"):
        runner("experiment", tmp_path, ("exprt",))


def test_an_unknown_stage_is_one_sentence_and_nothing_runs(runner, seen, tmp_path):
    with pytest.raises(UserError, match="out of teacher, student, report, got studnt"):
        runner("experiment", tmp_path, ("teacher", "studnt"))
    assert not seen


@pytest.fixture(scope="module")
def parts():
    return _parts.assemble(default_config.smoke(default_config.get_config()))


def test_a_model_is_imported_once_and_what_is_kept_is_in_its_result(parts, tmp_path):
    variables = jax.device_get(parts.teacher.init(jax.random.key(3)))
    checkpoint = str(tmp_path / "teacher.safetensors")
    pretrained.save_safetensors(tmp_path / "teacher.safetensors", variables)
    kept = []

    def keep(imported, directory):
        kept.append(directory)
        jax.tree.map(np.testing.assert_array_equal, imported, variables)
        return {"accuracy": 12.0}

    directory = tmp_path / "teacher"
    arguments = (parts.teacher, checkpoint, directory)
    made = stages.import_model(*arguments, {"from": "a"}, keep)
    again = stages.import_model(*arguments, {"from": "a"}, keep)
    assert kept == [directory]
    assert made == again == json.loads((directory / "result.json").read_text())
    assert made["accuracy"] == 12.0
    assert made["steps"] == 0
    with pytest.raises(UserError, match="from was 'a', is 'b'"):
        stages.import_model(*arguments, {"from": "b"}, keep)


def test_test_accuracy_is_the_share_of_test_images_that_are_right_in_percent(parts):
    variables = parts.student.init(jax.random.key(0))
    test = parts.splits.test.take(np.arange(len(parts.splits.test)))
    images = jnp.asarray(test["image"])
    outputs, _ = parts.student.apply(variables, images, train=False)
    right = np.argmax(outputs.logits, axis=-1) == test["label"]
    measured = parts.test_accuracy("student", variables)
    assert measured == pytest.approx(100 * np.mean(right))
    assert measured > 1  # Per cent, not a fraction: chance is 10.
