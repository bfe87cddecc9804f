"""Transfer between modalities: who sees what, who reads labels, and how it goes on."""

import dataclasses
import itertools
import json
import pathlib
import runpy

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.data import modalities
from kdjax.recipes import cross_modal, stages
from kdjax.training import fit
from kdjax.types import UserError

ROOT = pathlib.Path(__file__).parents[2]


def _config(**updates):
    path = ROOT / "configs" / "cross_modal.py"
    config = runpy.run_path(str(path))["get_config"]("smoke")
    for model in (config.teacher, config.student):
        model.model.hidden = (13,)
        model.train.update(num_epochs=1, batch_size=120)
    config.cross_modal.methods.crd.num_negatives = 50
    config.cross_modal.update(labels=(2, 12), compare_at=12, scratch_epochs=1)
    config.seeds = (0,)
    config.update_from_flattened_dict(updates)
    return config


@pytest.fixture(scope="module")
def experiment():
    return cross_modal.build(_config())


@pytest.fixture(scope="module")
def finished(experiment, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("cross_modal")
    cross_modal.run(experiment, workdir)
    return workdir


def _teacher(experiment):
    return experiment.teacher.init(jax.random.key(7))


def _params(training, directory):
    state, saved = fit(training, directory)
    saved.close()
    return jax.device_get(state.params)


def _two_steps(training):
    """The parameters after two steps, without checkpoints."""
    state = training.parallel.replicate(training.init())
    fixed = training.parallel.replicate((training.constants, training.hparams))
    for inputs in itertools.islice(training.loader.inputs(0), 2):
        state, _ = training.programs(1)(state, *fixed, inputs)
    return jax.device_get(state.params)


def _assert_equal(actual, expected):
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


@pytest.mark.parametrize("role", ["teacher", "student"])
def test_a_network_sees_one_modality_and_nothing_else(experiment, role):
    network = getattr(experiment, role)
    variables = network.init(jax.random.key(0))
    images = jnp.asarray(experiment.test.take(np.arange(9))["image"])
    noise = jax.random.randint(jax.random.key(1), images.shape, 0, 256, jnp.uint8)

    def logits(left, right):
        halves = modalities.left(left), modalities.right(right)
        whole = jnp.concatenate(halves, axis=2)
        return network.apply(variables, whole, train=False)[0].logits

    expected = logits(images, images)
    own, other = logits(images, noise), logits(noise, images)
    if role == "student":  # Of the right halves.
        own, other = other, own
    np.testing.assert_array_equal(own, expected)
    assert (other != expected).any()


def test_shuffled_labels_give_the_same_student_to_the_bit():
    """Even by a loss that asks for labels."""
    config = _config()
    config.cross_modal.methods.labelled = dict(loss="dkd", weight=1.0)
    experiment = cross_modal.build(config)
    teacher, labels = _teacher(experiment), experiment.pairs.labels

    def params():
        return {
            method: _two_steps(experiment.transfer_training(method, 0, teacher))
            for method in ("crd", "kd", "labelled", "regression")
        }

    expected = params()
    labels[:] = np.random.default_rng(0).permutation(labels)  # In place.
    _assert_equal(params(), expected)


def test_which_examples_are_pairs_does_not_depend_on_labels(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {
        "train_images": rng.integers(0, 256, (400, 8, 8), np.uint8),
        "test_images": np.zeros((10, 8, 8), np.uint8),
        "test_labels": np.arange(10),
    }
    pairs = []
    for name in ("one", "other"):
        labels = rng.permutation(np.arange(400) % 10)
        path = str(tmp_path / f"{name}.npz")
        np.savez(path, train_labels=labels, **arrays)
        config = _config(**{"dataset.validation": 0})
        config.dataset.path = path
        pairs.append(cross_modal.build(config).pairs.take(np.arange(200))["image"])
    np.testing.assert_array_equal(*pairs)


def test_no_metric_of_transfer_is_made_of_labels(finished):
    for path in finished.glob("transfer/*/seed0/metrics.jsonl"):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        assert rows
        assert not {"accuracy", "hard", "soft"} & rows[-1].keys()


def test_students_of_all_kinds_start_alike(experiment):
    teacher = _teacher(experiment)
    trainings = [experiment.transfer_training(m, 1, teacher) for m in ("kd", "crd")]
    trainings += [experiment.scratch_training(2, 1), experiment.supervised_training(1)]
    own = [training.init().eval_variables for training in trainings]
    for other in own[1:]:
        _assert_equal(other, own[0])


def test_few_labels_are_even_nested_and_the_seeds_own(experiment):
    few, more = (experiment.few_labels(count, 0) for count in (2, 12))
    assert np.bincount(few.labels).tolist() == [2] * 10
    assert np.bincount(more.labels).tolist() == [12] * 10
    pixels = [
        {image.tobytes() for image in x.take(np.arange(len(x)))["image"]}
        for x in (few, more, experiment.pairs, experiment.few_labels(2, 1))
    ]
    assert pixels[0] < pixels[1] < pixels[2]
    assert pixels[0] != pixels[3]


def test_pairs_are_none_of_the_teachers_examples(experiment):
    loader = experiment.teacher_training().loader
    images = np.asarray(next(loader.inputs(0))["image"])
    assert len(images) + len(experiment.pairs) == 1200
    seen = {image.tobytes() for image in images}
    pairs = experiment.pairs.take(np.arange(len(experiment.pairs)))["image"]
    assert not seen & {image.tobytes() for image in pairs}


def test_all_numbers_of_labels_train_as_long_by_one_program(experiment):
    trainings = [experiment.scratch_training(n, s) for n in (2, 12) for s in (0, 1)]
    assert len({training.num_steps for training in trainings}) == 1
    assert len({id(training.programs) for training in trainings}) == 1
    labels = np.asarray(next(trainings[0].loader.inputs(0))["label"])
    assert np.bincount(labels).tolist() == [12] * 10


def test_fine_tuning_differs_from_scratch_only_in_where_it_starts(experiment):
    scratch = experiment.scratch_training(12, 0)
    state = scratch.init()
    same = experiment.finetune_training(12, 0, state.eval_variables)
    _assert_equal(same.init().replace(rng=None), state.replace(rng=None))
    assert same.programs is scratch.programs
    other = experiment.student.init(jax.random.key(5))
    begun = experiment.finetune_training(12, 0, other).init()
    _assert_equal(begun.eval_variables, other)
    _assert_equal(begun.opt_state, state.opt_state)


def test_a_training_leaves_the_others_as_they_are():
    """They differ in numbers of epochs and terms of one config."""
    config = _config(**{"cross_modal.scratch_epochs": 3})
    unchanged = config.to_json()
    experiment = cross_modal.build(config)
    before = experiment.supervised_training(0).num_steps
    experiment.scratch_training(2, 0)
    experiment.transfer_training("kd", 0, _teacher(experiment))
    assert experiment.supervised_training(0).num_steps == before
    assert experiment.scratch_training(12, 0).num_steps == 3 * before / 5
    assert config.to_json() == unchanged


def test_a_resumed_transfer_equals_an_uninterrupted_one(experiment, tmp_path):
    """With the memory of CRD, which is part of the state."""
    training = experiment.transfer_training("crd", 0, _teacher(experiment))
    whole = _params(training, tmp_path / "whole")
    _params(dataclasses.replace(training, num_steps=2), tmp_path / "parts")
    again = experiment.transfer_training("crd", 0, _teacher(experiment))
    _assert_equal(_params(again, tmp_path / "parts"), whole)


def test_a_run_reports_every_arm(experiment, finished):
    report = json.loads((finished / "report" / "report.json").read_text())
    arms = {arm["name"]: arm for arm in report["arms"]}
    assert arms.keys() == {
        *("teacher", "scratch", "random_probe", "kd_own", "supervised"),
        *(f"{m}_{way}" for m in experiment.methods for way in ("finetune", "probe")),
    }
    assert arms["crd_probe"]["against"] == "scratch"
    assert arms["crd_finetune"]["gain"]["n"] == 1
    figures = {path.stem for path in (finished / "report" / "figures").iterdir()}
    assert figures == {"arms", "finetune", "probe"}
    probed = json.loads((finished / "probe/kd/seed0/result.json").read_text())
    assert arms["kd_probe"]["values"][0] == probed["accuracy"]["12"]


def test_a_probe_is_of_the_student_that_was_kept(experiment, finished):
    variables = stages.load_variables(
        experiment.student, finished / "transfer" / "crd" / "seed0"
    )
    outputs, _ = experiment.student.apply(
        variables, jnp.asarray(experiment.test.take(np.arange(9))["image"]), train=False
    )
    seen = experiment.features(variables, experiment.test)
    expected = outputs.features["hidden1"]
    np.testing.assert_allclose(seen[:9], expected, rtol=1e-5, atol=1e-6)


def test_a_second_run_skips_what_is_done(experiment, finished):
    before = {p: p.stat().st_mtime_ns for p in finished.rglob("result.json")}
    cross_modal.run(experiment, finished, cross_modal.run.stages[:-1])
    assert {p: p.stat().st_mtime_ns for p in before} == before


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("teacher_sees", "sound", "Expected a modality out of"),
        ("student_sees", "chrominance", "3 channels"),
        ("labels", (12, 2), "positive numbers, ascending"),
        ("labels", (2, 12, 1000), "at most"),
        ("compare_at", 7, "one of"),
        ("pairs", 1200, "leave the teacher something"),
        ("probe.features", "stage*", "to match a feature"),
        ("probe.weight_decay", 0.0, "a positive number"),
        ("methods.kd.loss", "nothing", "a loss out of"),
    ],
)
def test_a_mistake_is_one_sentence(key, value, words):
    with pytest.raises(UserError, match=words):
        cross_modal.build(_config(**{f"cross_modal.{key}": value}))
