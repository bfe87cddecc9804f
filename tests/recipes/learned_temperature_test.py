"""Learned numbers against a grid: the same program, and a verdict that is honest."""

import pathlib
import runpy

import jax
import numpy as np
import pytest

from kdjax import training
from kdjax.builders._parts import assemble
from kdjax.recipes import learned_temperature
from kdjax.report import study
from kdjax.types import UserError

CONFIG = pathlib.Path(__file__).parents[2] / "configs" / "learned_temperature.py"


def _config(**updates):
    config = runpy.run_path(str(CONFIG))["get_config"]("smoke")
    train = config.student.train
    train.update(num_epochs=1, batch_size=120)
    config.teacher.source = "online"
    config.update_from_flattened_dict({"log_every_steps": 1, **updates})
    return config


@pytest.fixture(scope="module")
def experiment():
    return learned_temperature.build(_config())


@pytest.fixture(scope="module")
def teacher(experiment):
    return experiment.base.teacher.init(jax.random.key(5))


def _fit(made, directory):
    state, saved = training.fit(made, directory)
    saved.close()
    return jax.device_get(state)


def test_a_cell_of_the_grid_has_the_schedules_of_a_config_with_its_numbers(
    experiment, teacher
):
    made = experiment.fixed_training(20.0, 0.1, 3, teacher, None)
    config = _config(**{"distill.temperature": 20.0, "distill.alpha": 0.1})
    single = assemble(config).student_training(3, teacher, None)
    assert made.hparams == single.hparams


@pytest.mark.slow
@pytest.mark.optimized
def test_a_cell_of_the_grid_is_the_student_of_a_config_with_its_numbers(
    experiment, teacher, tmp_path
):
    made = experiment.fixed_training(20.0, 0.1, 3, teacher, None)
    config = _config(**{"distill.temperature": 20.0, "distill.alpha": 0.1})
    single = assemble(config).student_training(3, teacher, None)
    states = [_fit(x, tmp_path / str(i)) for i, x in enumerate((made, single))]
    jax.tree.map(np.testing.assert_array_equal, *(state.params for state in states))


@pytest.mark.slow
def test_learning_at_rate_zero_is_the_student_with_fixed_numbers(teacher, tmp_path):
    """The step through which the gradient goes is the step that is taken."""
    experiment = learned_temperature.build(
        _config(**{"learned_temperature.learning_rate": 1e-30})
    )
    learned = experiment.learned_training(1, teacher, None)
    fixed = experiment.fixed_training(*experiment.start, 1, teacher, None)
    states = [_fit(x, tmp_path / str(i)) for i, x in enumerate((learned, fixed))]
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-4, atol=2e-5),
        states[0].student.params,
        states[1].params,
    )


def test_the_grid_shares_a_program_and_covers_all_pairs(experiment, teacher):
    assert set(experiment.cells) == {(2.0, 0.5), (2.0, 0.9), (4.0, 0.5), (4.0, 0.9)}
    first, second = (
        experiment.fixed_training(*cell, 0, teacher, None)
        for cell in experiment.cells[:2]
    )
    assert first.programs is second.programs


@pytest.mark.parametrize(
    ("updates", "words"),
    [
        ({"student.train.optimizer.name": "adamw"}, "'sgd', for the update of Adam"),
        ({"distill.alpha": 1.0}, "between 0 and 1, neither"),
        ({"distill.temperature_schedule": "linear"}, "'constant'"),
        ({"learned_temperature.learn": ("beta",)}, "some of"),
        ({"learned_temperature.b2": 1.0}, "from 0 to below 1"),
        ({"learned_temperature.num_terms": 0}, "num_terms to be a positive number"),
        ({"learned_temperature.alphas": (0.5, 1.5)}, "from 0 to 1"),
        ({"dataset.validation": 0}, "a validation split to learn on"),
        ({"student.train.ema_decay": 0.9}, "ema_decay=0"),
        ({"parallel": "pmap"}, "parallel to be 'jit'"),
    ],
)
def test_a_config_that_cannot_learn_is_refused(updates, words):
    with pytest.raises(UserError, match=words):
        learned_temperature.build(_config(**updates))


@pytest.mark.parametrize(
    ("learned", "verdict"),
    [
        ([91.0, 92.1, 93.0], "Yes"),
        ([89.0, 90.1, 91.0], "No"),
        ([90.5, 90.0, 93.0], "Not shown"),
        ([91.0], "One seed"),
    ],
)
def test_the_verdict_is_that_of_the_interval(learned, verdict):
    median = dict(enumerate([90.0, 91.0, 92.0]))
    arms = [
        study.Arm("median", "Median", median),
        study.Arm("learned", "Learned", dict(enumerate(learned)), against="median"),
    ]
    assert learned_temperature._headline(arms).startswith(f"{verdict}: ")


def test_the_median_is_over_settings_and_the_choice_by_validation(experiment):
    """Of each seed's own students; the best on test is not the one that is chosen."""
    seeds = experiment.base.seeds
    cells = {
        cell: {
            seed: {
                "test": 80.0 + i + seed - 40 * (i == 3),
                "validation": 90 - abs(i - 1),
            }
            for seed in seeds
        }
        for i, cell in enumerate(experiment.cells)
    }
    plain = {seed: 85.0 for seed in seeds}
    arms = learned_temperature._arms(experiment, plain, plain, cells)
    by_name = {arm.name: arm for arm in arms}
    assert by_name["median"].values == {seed: 80.5 + seed for seed in seeds}
    assert by_name["chosen"].values == {seed: 81.0 + seed for seed in seeds}
    start = experiment.cells.index(experiment.start)
    assert by_name["start"].values == {seed: 80.0 + start + seed for seed in seeds}
    assert by_name["learned"].against == "median"
