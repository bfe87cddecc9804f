"""A row of a sweep is the run by itself, in either form, on one device or on eight."""

import jax
import numpy as np
import pytest

from kdjax import builders, teacher_cache
from kdjax.builders import sweep as builder
from kdjax.recipes import stages
from kdjax.sweep import pool
from kdjax.sweep.trainer import Chunk, chunks
from kdjax.training import fit

AXES = {
    "distill.temperature": (1.0, 6.0),
    ("distill.alpha", "student.train.optimizer.weight_decay"): ((0.3, 0.0), (1.0, 0.1)),
    "student.train.learning_rate.base": (1e-3, 4e-3),
    "seed": (3, 0),
}


def _params(trainer, chunk, directory):
    training = trainer.training(chunk, num_steps=chunk.group.num_steps)
    state, saved = fit(training, directory)
    saved.close()
    return [state.params for state, _ in pool.unstack(jax.device_get(state))]


def _single(config, values, seed, teacher_dir, directory):
    """The student that offline distillation trains with these values."""
    for path, value in values.items():
        *sections, key = path.split(".")
        section = config
        for name in sections:
            section = section[name]
        section[key] = value
    experiment = builders.build(config)
    variables = stages.load_variables(experiment.teacher, teacher_dir / "teacher")
    cache = teacher_cache.open(teacher_dir / "cache", experiment.manifest(variables))
    training = experiment.student_training(seed, variables, cache)
    state, saved = fit(training, directory)
    saved.close()
    return state.params


def _close(found, expected):
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5),
        found,
        expected,
    )


@pytest.mark.parametrize("form", ["vmap", "loop"])
def test_a_row_equals_the_run_by_itself(
    form, make_config, make_trainer, teacher_dir, tmp_path, on_one_device
):
    experiment = builder.build(make_config(AXES))
    (group,) = experiment.groups
    assert len(group.rows) == 16
    rows = [0, 5, 6, 15] if form == "loop" else range(16)
    (chunk,) = chunks(group, rows, form, 0, 1)
    found = _params(make_trainer(experiment), chunk, tmp_path / "sweep")
    for place in (0, len(chunk.rows) // 2, len(chunk.rows) - 1):
        row = group.rows[chunk.rows[place]]
        single = _single(
            make_config({}), row.values, row.seed, teacher_dir, tmp_path / str(place)
        )
        _close(found[place], single)


def test_both_forms_chunks_and_devices_give_the_same(
    make_config, make_trainer, tmp_path
):
    experiment = builder.build(make_config(AXES))
    (group,) = experiment.groups
    trainer = make_trainer(experiment)
    assert trainer.num_devices == 8
    rows = [0, 1, 2, 3, 9, 10]
    (whole,) = chunks(group, rows, "vmap", 0, 8)
    assert len(whole.rows) == 8  # Two more, to give each device one.
    parts = [whole, Chunk(group, tuple(rows), "loop")]
    parts += chunks(group, rows, "vmap", 4, 1)
    found = [_params(trainer, x, tmp_path / str(i)) for i, x in enumerate(parts)]
    expected = dict(zip(rows, found[1], strict=True))
    assert sorted(parts[2].rows + parts[3].rows) == rows
    for part, own in zip(parts, found, strict=True):
        # What only fills the devices comes last, and is not trained.
        for row, params in list(zip(part.rows, own, strict=True))[: len(rows)]:
            _close(params, expected[row])


def test_students_are_split_over_the_devices(make_config, make_trainer):
    experiment = builder.build(make_config(AXES))
    (group,) = experiment.groups
    (chunk,) = chunks(group, range(16), "vmap", 0, 8)
    training = make_trainer(experiment).training(chunk, num_steps=3)
    state = training.parallel.replicate(training.init())
    arguments = training.parallel.replicate((training.constants, training.hparams))
    state, _ = training.programs(1)(state, *arguments, next(training.loader.inputs(0)))
    (kernel, *_) = [x for x in jax.tree.leaves(state.each.params) if x.ndim == 4]
    assert kernel.shape[:2] == (2, 8)  # Two seeds, and eight students of each.
    assert kernel.sharding.shard_shape(kernel.shape)[:2] == (2, 1)


@pytest.mark.slow
def test_teacher_that_runs_gives_what_the_cache_gives(
    make_config, make_trainer, tmp_path, on_one_device
):
    axes = {"distill.temperature": (2.0, 4.0)}
    found = []
    for source, form in (("cached", "vmap"), ("online", "vmap"), ("online", "loop")):
        config = make_config(axes)
        config.teacher.source = source
        experiment = builder.build(config)
        (group,) = experiment.groups
        chunk = Chunk(group, tuple(range(len(group.rows))), form)
        place = tmp_path / f"{source} {form}"
        found.append(_params(make_trainer(experiment), chunk, place))
    for other in found[1:]:
        for own, expected in zip(other, found[0], strict=True):
            _close(own, expected)
