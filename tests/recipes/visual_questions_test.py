"""Visual questions: who sees what, and what the average over questions is."""

import dataclasses
import json
import pathlib
import runpy

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.recipes import visual_questions
from kdjax.types import UserError

ROOT = pathlib.Path(__file__).parents[2]


def _config(**updates):
    path = ROOT / "configs" / "visual_questions.py"
    config = runpy.run_path(str(path))["get_config"]("smoke")
    config.teacher.model.name = "lenet5_half"
    with config.student.model.unlocked():
        config.student.model.update(name="mlp", hidden=(13,))
    for model in (config.teacher, config.student):
        model.train.update(num_epochs=1, batch_size=240)
    config.seeds = (0,)
    config.visual_questions.dim = 11
    config.update_from_flattened_dict(updates)
    return config


@pytest.fixture(scope="module")
def experiment():
    return visual_questions.build(_config())


@pytest.fixture(scope="module")
def teacher(experiment):
    return experiment.teacher.init(jax.random.key(3))


def test_asking_all_at_once_is_asking_one_by_one(experiment, teacher):
    split = experiment.questions.test
    logits = experiment.ask(teacher, split)
    assert logits.shape == (360, 15, 12)
    images = jnp.asarray(split.images.take(split.image_ids[:40])["image"])
    tokens = experiment.questions.questions[split.question_ids[:40]]
    outputs, _ = experiment.teacher.apply(
        teacher, (images, jnp.asarray(tokens)), train=False
    )
    np.testing.assert_allclose(
        logits[split.image_ids[:40], split.question_ids[:40]],
        outputs.logits,
        rtol=1e-4,
        atol=1e-5,
    )


def test_the_teacher_reads_words_and_not_their_padding(experiment, teacher):
    images = jnp.asarray(experiment.questions.test.images.take(np.arange(2))["image"])

    def logits(tokens):
        seen = images, jnp.tile(jnp.array(tokens), (2, 1))
        return experiment.teacher.apply(teacher, seen, train=False)[0].logits

    np.testing.assert_array_equal(logits([2, 3, 0, 0]), logits([2, 3]))
    assert (logits([2, 4]) != logits([2, 3])).any()


def test_no_student_is_given_a_question(experiment):
    shape = experiment.num_views, len(experiment.questions.train.images), 12
    trainings = {
        "teacher": experiment.teacher_training(),
        "baseline": experiment.baseline_training(0),
        "student": experiment.student_training("x", 0, np.zeros(shape, np.float32)),
    }
    given = {
        name: set(next(training.loader.inputs(0))) - {"image", "label", "order"}
        for name, training in trainings.items()
    }
    assert given == {
        "teacher": {"question", "answer"},
        "baseline": {"answer"},
        "student": {"teacher_logits", "answer"},
    }


def test_every_question_is_the_mean_probability():
    logits = np.random.default_rng(0).normal(size=(4, 3, 5))
    shares = np.array([0.5, 0.0, 0.5])
    probs = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    expected = (probs[:, 0] + probs[:, 2]) / 2
    actual = np.exp(visual_questions.every_question(logits, shares))
    np.testing.assert_allclose(actual, expected, rtol=1e-5)
    np.testing.assert_allclose(actual.sum(axis=-1), 1, rtol=1e-5)


def test_targets_are_about_the_question_of_the_view(experiment):
    experiment = dataclasses.replace(experiment, num_views=3)
    split = experiment.questions.train
    logits = np.zeros((len(split.images), 15, 12), np.float32)
    # Each logit says whose it is.
    logits += np.arange(len(split.images))[:, None, None] * 100
    logits += np.arange(15)[:, None]
    targets = visual_questions.TARGETS["same_question"](experiment, logits)
    pairs = split.asked(experiment.num_views)
    expected = 100 * split.image_ids[pairs] + split.question_ids[pairs]
    np.testing.assert_array_equal(targets[..., 0], expected)
    assert targets.shape == (experiment.num_views, len(split.images), 12)


@pytest.mark.slow
def test_a_run_reports_likelihoods_and_distributions(experiment, tmp_path):
    visual_questions.run(experiment, tmp_path)
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    arms = {arm["name"]: arm for arm in report["arms"]}
    assert arms.keys() == {
        *("teacher", "blind", "baseline"),
        *("same_question", "every_question"),
    }
    assert "negative log-likelihood" in report["headline"]
    figures = {path.stem for path in (tmp_path / "report" / "figures").iterdir()}
    assert figures == {"arms", "images", "answers0", "answers1", "answers2"}
    directory = tmp_path / "student" / "every_question" / "seed0"
    with np.load(directory / "predictions.npz") as arrays:
        logits = arrays["logits"].astype(np.float64)
    split = experiment.questions.test
    log_probs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    expected = -log_probs[split.image_ids, split.answers].mean()
    result = json.loads((directory / "result.json").read_text())
    assert result["nll"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("teacher.model.name", "mlp", "with the feature 'pooled'"),
        ("dataset.validation", 0.1, r"dataset\.validation=0"),
        ("student.train.batch_size", 8000, "at most 1437"),
        ("student.train.augment.mixup", 1.0, "mixed"),
        ("distill.terms", {"x": {"loss": "hint", "weight": 1.0}}, "no distill.terms"),
    ],
)
def test_a_mistake_is_one_sentence(key, value, words):
    with pytest.raises(UserError, match=words):
        visual_questions.build(_config(**{key: value}))
