"""Teachers and students start from the weights in a file, and say so."""

import importlib
import pathlib
import runpy

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import builders, default_config, models, pretrained
from kdjax.builders._checks import RANDOM
from kdjax.recipes import offline
from kdjax.types import ADAPTERS, UserError
from kdjax.workdir import read_json

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"


def _config(**changes):
    config = default_config.smoke(default_config.get_config())
    for role in (config.teacher, config.student):
        role.model.name = "mlp"
        role.model.hidden = (12,)
        role.train.num_epochs = 1
    config.seeds = (0,)
    config.update_from_flattened_dict(changes)
    return config


def _save(path, num_classes=10, seed=3):
    """Random weights of the model of `_config`, in a file."""
    module = models.create("mlp", num_classes=num_classes, hidden=(12,))
    images = jnp.zeros((1, 8, 8, 1))
    variables = module.init(jax.random.key(seed), images, train=False)
    # Random biases too.
    variables = jax.tree.map(lambda x: np.asarray(x) + np.float32(0.01), variables)
    pretrained.save_safetensors(path, variables)
    return variables["params"]


def assert_equal(one, two):
    assert jax.tree.structure(one) == jax.tree.structure(two)
    jax.tree.map(np.testing.assert_array_equal, one, two)


ROLES = pytest.mark.parametrize("role", ["teacher", "student", "baseline"])


def _started(tmp_path, role, num_classes, **changes):
    """The state before the first step, and the weights of the file."""
    path = tmp_path / "weights.safetensors"
    weights = _save(path, num_classes)
    key = "teacher" if role == "teacher" else "student"
    changes |= {f"{key}.pretrained": str(path), "teacher.finetune": key == "teacher"}
    experiment = builders.build(_config(**{"teacher.source": "online"} | changes))
    if role == "student":
        variables = experiment.teacher.init(jax.random.key(9))
        return experiment.student_training(0, variables, None).init(), weights
    if role == "teacher":
        return experiment.teacher_training().init(), weights
    return experiment.baseline_training(0).init(), weights


@ROLES
def test_training_begins_at_the_weights(tmp_path, role, capsys):
    state, weights = _started(tmp_path, role, num_classes=10)
    assert_equal(jax.device_get(state.params), weights)
    said = capsys.readouterr().out
    assert f"The {role} starts from the weights in {tmp_path}" in said
    assert "classifier included." in said


@ROLES
def test_a_classifier_of_other_classes_is_new_and_that_is_said(tmp_path, role, capsys):
    state, weights = _started(tmp_path, role, num_classes=7)
    assert_equal(state.params["Dense_0"], weights["Dense_0"])
    fresh = builders.build(_config(**{"teacher.source": "online"}))
    own = (
        fresh.teacher_training().init()
        if role == "teacher"
        else fresh.baseline_training(0).init()
    )
    assert_equal(state.params["Dense_1"], own.params["Dense_1"])
    assert np.ptp(state.params["Dense_1"]["kernel"]) > 0
    said = capsys.readouterr().out
    assert "a new classifier of 10 classes (params/Dense_1)." in said
    assert said.count("starts from") == 1


def test_a_file_without_a_classifier_but_with_all_else(tmp_path):
    path = tmp_path / "weights.safetensors"
    weights = _save(path)
    layers = {"params": {"Dense_0": weights["Dense_0"]}}
    pretrained.save_safetensors(path, layers)
    config = _config(**{"student.pretrained": str(path)})
    state = builders.build(config).baseline_training(0).init()
    assert_equal(jax.device_get(state.params["Dense_0"]), weights["Dense_0"])
    pretrained.save_safetensors(path, {"params": {"Dense_1": weights["Dense_1"]}})
    with pytest.raises(UserError, match=r"2 are missing .* params/Dense_0/bias"):
        builders.build(config).baseline_training(0).init()


def test_adapters_stay_what_they_would_be(tmp_path):
    seen = {"student_features": "hidden1", "teacher_features": "hidden1"}
    term = {"loss": "hint", "weight": 1.0} | seen

    def state(**more):
        config = _config(**{"teacher.source": "online"})
        config.distill.terms.hint = term
        config.update_from_flattened_dict(more)
        experiment = builders.build(config)
        variables = experiment.teacher.init(jax.random.key(9))
        return experiment.student_training(0, variables, None).init()

    weights = _save(tmp_path / "weights.safetensors")
    started = state(**{"student.pretrained": str(tmp_path / "weights.safetensors")})
    params = dict(started.params)
    assert_equal(params.pop(ADAPTERS), state().params[ADAPTERS])
    assert_equal(jax.device_get(params), weights)


def test_a_teacher_as_it_is_or_trained_further(tmp_path):
    path = tmp_path / "weights.safetensors"
    weights = _save(path)
    left = {}
    for finetune in (False, True):
        changes = {"teacher.pretrained": str(path), "teacher.finetune": finetune}
        workdir = tmp_path / str(finetune)
        offline.run(builders.build(_config(**changes)), workdir, ["teacher"])
        result = read_json(workdir / "teacher" / "result.json")
        assert (result["steps"] > 0) == finetune
        file = workdir / "teacher" / "variables.safetensors"
        left[finetune] = pretrained.load(file, {"params": weights})["params"]
    assert_equal(left[False], weights)
    moved = jax.tree.map(lambda x, y: np.abs(x - y).max(), left[True], weights)
    assert 0 < max(jax.tree.leaves(moved)) < 1


def test_other_weights_in_the_same_file_are_refused_and_the_same_elsewhere_are_not(
    tmp_path,
):
    path, moved = tmp_path / "weights.safetensors", tmp_path / "moved.safetensors"
    _save(path)
    changes = {"teacher.pretrained": str(path), "student.pretrained": str(path)}
    stages = ["teacher", "baseline"]
    offline.run(builders.build(_config(**changes)), tmp_path / "run", stages)
    path.rename(moved)
    again = {key: str(moved) for key in changes}
    offline.run(builders.build(_config(**again)), tmp_path / "run", stages)
    before = (tmp_path / "run/teacher/variables.safetensors").read_bytes()
    _save(path, seed=4)
    for stage in stages:
        with pytest.raises(UserError, match="this config differs: pretrained was"):
            offline.run(builders.build(_config(**changes)), tmp_path / "run", [stage])
    assert (tmp_path / "run/teacher/variables.safetensors").read_bytes() == before


def test_other_classes_without_finetuning_are_an_error_that_tells_of_it(tmp_path):
    path = tmp_path / "weights.safetensors"
    _save(path, num_classes=7)
    experiment = builders.build(_config(**{"teacher.pretrained": str(path)}))
    with pytest.raises(UserError, match=r"number of classes \(teacher.finetune=True"):
        offline.run(experiment, tmp_path / "run", ["teacher"])


def test_weights_of_another_model_are_an_error(tmp_path):
    path = tmp_path / "weights.safetensors"
    _save(path)
    experiment = builders.build(
        _config(**{"student.pretrained": str(path), "student.model.hidden": (13,)})
    )
    with pytest.raises(UserError, match=r"Dense_0/bias of shape \(13,\), got \(12,\)"):
        experiment.baseline_training(0).init()


@pytest.mark.parametrize(
    ("recipe", "role"), [(recipe, role) for recipe in RANDOM for role in RANDOM[recipe]]
)
def test_a_recipe_that_makes_its_own_weights_refuses_those_of_a_file(recipe, role):
    file = {"encoders": "tinybert", "lm": "lm_kd"}.get(recipe, recipe)
    config = runpy.run_path(str(CONFIGS / f"{file}.py"))["get_config"]("smoke")
    config[role].pretrained = "/nowhere/x.pth"
    module = importlib.import_module(f"kdjax.builders.{recipe}")
    expected = f"Expected no {role}.pretrained with the recipe '{recipe}'"
    with pytest.raises(UserError, match=expected):
        module.build(config)


def test_finetuning_needs_weights():
    with pytest.raises(UserError, match=r"Expected teacher.pretrained where"):
        builders.build(_config(**{"teacher.finetune": True}))


def test_weights_that_are_not_there_are_said_before_anything_runs():
    for key in ("teacher.pretrained", "student.pretrained"):
        with pytest.raises(UserError, match="Expected weights at /nowhere/x"):
            builders.build(_config(**{key: "/nowhere/x.pth"}))
