"""The study of why distillation works: what each experiment is made from."""

import dataclasses
import pathlib
import runpy

import jax
import numpy as np
import pytest
import scipy.special

from kdjax import builders
from kdjax import teacher_cache as caches
from kdjax.builders import study_why as built
from kdjax.data import sources
from kdjax.recipes import _shifts, _study_why_bias, _study_why_report, study_why
from kdjax.recipes.stages import load_variables
from kdjax.training import fit
from kdjax.types import UserError

ROOT = pathlib.Path(__file__).parents[2]


def _config(**updates):
    path = ROOT / "configs" / "study_why.py"
    config = runpy.run_path(str(path))["get_config"]("smoke")
    config.update_from_flattened_dict(
        {
            "student.model.hidden": (7,),
            "student.train.num_epochs": 1,
            "teacher.train.num_epochs": 1,
            **updates,
        }
    )
    return config


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """Experiment, teacher's variables and open cache."""
    workdir = tmp_path_factory.mktemp("study_why")
    experiment = study_why.build(_config())
    study_why.run(experiment, workdir, ("teacher", "cache"))
    variables = load_variables(experiment.offline.teacher, workdir / "teacher")
    manifest = experiment.offline.manifest(variables)
    return experiment, variables, caches.open(workdir / "cache", manifest)


def _inputs(grid):
    return next(grid.training.loader.inputs(0))


@pytest.mark.parametrize(
    ("stage", "kept"),
    [
        ("omit_3", (0, 1, 2, 4, 5, 6, 7, 8, 9)),
        ("only_7_and_8", (7, 8)),
        ("speed", tuple(range(10))),
    ],
)
def test_a_transfer_set_has_all_of_its_classes_and_nothing_else(begun, stage, kept):
    experiment, variables, cache = begun
    (grid,) = experiment.grids[stage](cache)
    inputs = _inputs(grid)
    labels = sources.labels(experiment.offline.splits.train)
    found = np.bincount(inputs["label"], minlength=10)
    expected = np.bincount(labels, minlength=10) * np.isin(np.arange(10), kept)
    np.testing.assert_array_equal(found, expected)
    # The soft labels beside the images are the teacher's of these images.
    images = np.asarray(inputs["image"][:80])
    logits = experiment.offline.predict["teacher"](variables, images)
    np.testing.assert_allclose(inputs["teacher_logits"][0, :80], logits, atol=1e-5)


@pytest.mark.parametrize("counts", [[600] * 10, [592, 674, 596, 613, 584, 542]])
def test_the_few_are_3_percent_of_each_class(counts):
    labels = np.random.default_rng(0).permutation(np.repeat(range(len(counts)), counts))
    amount = round(0.03 * len(labels))
    train, held_out = built.few(labels, amount, 0.1)
    ids = np.concatenate([train, held_out])
    assert len(set(ids)) == len(ids) == amount
    assert len(held_out) == round(0.1 * amount)
    share = 0.03 * np.asarray(counts)
    each = np.bincount(labels[ids])
    if len(set(counts)) == 1:
        np.testing.assert_array_equal(each, 18)
    assert np.all(np.abs(each - share) <= 1)
    assert np.all(np.abs(np.bincount(labels[held_out]) - 0.1 * share) <= 1.1)


def test_a_row_of_a_grid_is_the_student_or_baseline_of_offline_distillation(
    begun, tmp_path
):
    """Soft and hard rows together, against ordinary trainings of one student each."""
    experiment, variables, cache = begun
    (grid,) = experiment.grids["speed"](cache)
    together, saved = fit(grid.training, tmp_path / "grid")
    saved.close()
    offline = builders.build(_config())
    single = {
        "hard": offline.baseline_training,
        "soft": lambda seed: offline.student_training(seed, variables, cache),
    }
    assert {(s.arm, s.seed) for s in grid.students} == {
        (arm, seed) for arm in single for seed in (0, 1)
    }
    for row, student in enumerate(grid.students):
        training = single[student.arm](student.seed)
        state, saved = fit(training, tmp_path / f"{student.arm}{student.seed}")
        saved.close()
        own = jax.tree.map(lambda x, i=row: x[i], together.each.params)
        start = training.init().params
        # As far as Adam's steps go; float32 sums of another order, so not bit by bit.
        for x, y, z in zip(
            *map(jax.tree.leaves, (own, state.params, start)), strict=True
        ):
            assert np.abs(y - z).max() > 0.01
            np.testing.assert_allclose(x, y, atol=2e-4)


def test_temperatures_of_a_grid_reach_their_rows(begun):
    experiment, _, cache = begun
    narrow, wide = experiment.grids["width_temperature"](cache)
    arms = [(s.arm, s.seed, s.alpha, s.temperature) for s in wide.students]
    assert arms == [(f"{t}", s, 1.0, t) for t in (1, 20) for s in (0, 1)]
    hparams = wide.training.hparams
    np.testing.assert_array_equal(hparams["temperature"].value, [1, 1, 20, 20])
    kernels = [
        jax.eval_shape(grid.training.init).each.params["Dense_0"]["kernel"].shape
        for grid in (narrow, wide)
    ]
    assert kernels == [(4, 64, 8), (4, 64, 30)]


def test_resumed_equals_uninterrupted(begun, tmp_path):
    experiment, _, cache = begun
    (grid,) = experiment.grids["few_labels"](cache)
    assert grid.training.num_steps == 8
    training = dataclasses.replace(grid.training, checkpoint_every_steps=3)
    whole, saved = fit(training, tmp_path / "whole")
    saved.close()
    _, saved = fit(dataclasses.replace(training, num_steps=3), tmp_path / "cut")
    saved.close()
    resumed, saved = fit(training, tmp_path / "cut")
    saved.close()
    assert np.all(np.asarray(whole.curve) >= 0)
    key = jax.random.key_data
    for state in (whole, resumed):
        state.each.__dict__["rng"] = key(state.each.rng)
    jax.tree.map(np.testing.assert_array_equal, whole, resumed)
    # Early stopping took its copy before the end, or at it.
    best = whole.best["params"]["Dense_0"]["kernel"]
    last_look = len(whole.curve) - 1
    for row, at in enumerate(last_look - np.argmax(whole.curve[::-1], axis=0)):
        last = whole.each.params["Dense_0"]["kernel"][row]
        assert np.array_equal(best[row], last) == (at == last_look)


def test_held_out_examples_are_not_trained_on(begun):
    experiment, _, cache = begun
    (grid,) = experiment.grids["few_labels"](cache)
    train = np.asarray(_inputs(grid)["image"])
    held_out = np.asarray(grid.training.constants["held_out"]["image"])
    assert (len(train), len(held_out)) == (180, 20)
    assert not {x.tobytes() for x in train} & {x.tobytes() for x in held_out}


def _judge(change_test=False, change_train=False):
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(3, 150, 10)).astype(np.float32)
    train, test = (
        dict(zip((4, 7, 9), x, strict=True)) for x in (logits[:, :100], logits[:, 100:])
    )
    train_labels, labels = rng.integers(0, 10, 100), rng.integers(0, 10, 50)
    if change_test:
        labels, test = rng.permutation(labels), {k: x[::-1] for k, x in test.items()}
    if change_train:
        train_labels = rng.integers(0, 4, 100)
    return _study_why_bias.judge(train, test, (3,), train_labels, labels)


def test_the_bias_by_frequency_is_of_the_train_split_alone():
    judged, other = _judge(), _judge(change_test=True)
    assert judged.shifts["matched"] == other.shifts["matched"]
    assert judged.shifts["best"] != other.shifts["best"]
    assert judged.shifts["matched"] != _judge(change_train=True).shifts["matched"]
    assert set(judged.shifts[""].values()) == {0.0}


@pytest.mark.parametrize("classes", [(3,), (7, 8)])
def test_the_matching_bias_gives_the_classes_their_share(classes):
    logits = np.random.default_rng(0).normal(size=(200, 10)).astype(np.float32) * 4
    bias = _shifts.matching_shift(logits, classes, 0.37)
    moved = logits.astype(np.float64)
    moved[:, list(classes)] += bias
    probabilities = scipy.special.softmax(moved, axis=-1)
    np.testing.assert_allclose(probabilities[:, list(classes)].sum(-1).mean(), 0.37)
    np.testing.assert_allclose(
        _shifts.shifted(logits, classes, bias), moved, rtol=1e-5, atol=1e-5
    )


def test_the_best_bias_has_the_least_errors_and_is_the_smallest_of_equals():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(60, 4)).astype(np.float32), rng.integers(0, 4, 60)
    logits[:, 2] -= 3  # What a bias of about 3 mends.
    best = _shifts.best_shift(logits, labels, (2,))
    wrong = {}
    for shift in np.arange(-150, 151) / 10:
        moved = logits + np.float32([0, 0, shift, 0])
        wrong[shift] = np.sum(moved.argmax(-1) != labels)
    least = [shift for shift, count in wrong.items() if count == min(wrong.values())]
    assert best == pytest.approx(min(least, key=abs))
    assert _shifts.best_shift(logits, logits.argmax(-1), (2,)) == 0


def test_steps_to_an_accuracy_count_from_the_first_look():
    curve = np.asarray([[10, 50, 97], [97, 60, 10], [99, 70, 10]])
    assert _study_why_report.steps_to(curve, 97.0, 50) == [100, 50]
    assert _study_why_report.steps_to(curve, 100.0, 50) == []


@pytest.mark.parametrize(
    ("updates", "expected"),
    [
        ({"teacher.source": "online"}, "teacher.source to be 'cached'"),
        ({"student.train.augment.jitter": 1}, "student.train.augment.jitter to be off"),
        ({"student.train.num_views": 2}, "student.train.num_views to be 1"),
        ({"distill.alpha": 0.9}, "distill.alpha to be 1"),
        ({"cache.encoding": "topk"}, "cache.encoding to be 'float32'"),
        ({"dataset.validation": 0}, "dataset.validation to be above 0"),
        ({"student.model.name": "resnet8"}, "student.model.name to be 'mlp'"),
        ({"study_why.few_labels.held_out": 1.0}, "held_out to be a fraction"),
        ({"study_why.few_labels.num_labels": 5000}, "num_labels"),
        ({"study_why.omit_3.num_epochs": 0}, "omit_3.num_epochs to be a positive"),
        ({"study_why.width_temperature.widths": (8, 8)}, "widths to be different"),
    ],
)
def test_a_mistake_is_one_sentence(updates, expected):
    with pytest.raises(UserError, match=expected):
        study_why.build(_config(**updates))


@pytest.mark.parametrize(
    ("updates", "stage", "expected"),
    [
        ({"study_why.speed.look_every": 16}, "speed", "at most 15 steps"),
        ({"study_why.few_labels.num_labels": 60}, "few_labels", "of at most 54"),
    ],
)
def test_a_stage_without_enough_steps_is_one_sentence(begun, updates, stage, expected):
    *_, cache = begun
    experiment = study_why.build(_config(**updates))
    with pytest.raises(UserError, match=expected):
        experiment.grids[stage](cache)


@pytest.mark.slow
def test_every_stage_runs_is_skipped_and_reported(tmp_path):
    experiment = study_why.build(_config())
    study_why.run(experiment, tmp_path)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("predictions.npz")}
    assert len(before) == 1 + 4 + 2
    text = (tmp_path / "report" / "report.json").read_text()
    for words in ("180", "never seen", "chosen on the test split", "Steps to 30 %"):
        assert words in text
    figures = {p.stem for p in (tmp_path / "report" / "figures").iterdir()}
    assert figures == {"arms", *study_why.EXPERIMENTS}
    study_why.run(experiment, tmp_path)
    assert before == {p: p.stat().st_mtime_ns for p in before}
