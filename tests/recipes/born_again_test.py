"""Generations: who teaches whom, what is alike between them, and how they go on."""

import dataclasses
import json
import pathlib
import runpy
import shutil
import time

import jax
import numpy as np
import pytest
import scipy.special

from kdjax.recipes import born_again, stages
from kdjax.types import UserError

ROOT = pathlib.Path(__file__).parents[2]


def _config(**updates):
    path = ROOT / "configs" / "born_again.py"
    config = runpy.run_path(str(path))["get_config"]("smoke")
    for model in (config.teacher, config.student):
        with model.model.unlocked():
            model.model.update(name="mlp", hidden=(13,))
        model.train.update(num_epochs=1, batch_size=120)
    config.update_from_flattened_dict({"log_every_steps": 1, **updates})
    return config


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A whole run, and the teachers that its trainings were given."""
    workdir = tmp_path_factory.mktemp("born_again")
    experiment = born_again.build(_config())
    teachers = {}

    def training(seed, generation, teacher):
        if teacher is not None:
            teachers[seed, generation] = teacher
        return experiment.training(seed, generation, teacher)

    born_again.run(dataclasses.replace(experiment, training=training), workdir)
    return experiment, workdir, teachers


def _variables(experiment, workdir, seed, generation, kind="generations"):
    directory = workdir / kind / f"seed{seed}" / str(generation)
    return stages.load_variables(experiment.network, directory)


def _rows(workdir, seed, generation):
    path = workdir / "generations" / f"seed{seed}" / str(generation) / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


def _batch(training):
    return jax.jit(training.loader.batch)(next(training.loader.inputs(0)), 0)


def test_a_teacher_is_exactly_the_student_before(finished):
    experiment, workdir, teachers = finished
    assert teachers.keys() == {(s, g) for s in (0, 1) for g in (1, 2)}
    for (seed, generation), teacher in teachers.items():
        former = _variables(experiment, workdir, seed, generation - 1)
        jax.tree.map(np.testing.assert_array_equal, teacher, former)


def test_the_first_step_minimises_labels_and_divergence_from_the_teacher(finished):
    experiment, workdir, teachers = finished
    training = experiment.training(0, 1, teachers[0, 1])
    batch = _batch(training)
    student, teacher = (
        np.float64(experiment.network.apply(x, batch["image"], train=False)[0].logits)
        for x in (training.init().eval_variables, teachers[0, 1])
    )
    log_s, log_t = (scipy.special.log_softmax(x, axis=-1) for x in (student, teacher))
    soft = np.mean(np.sum(np.exp(log_t) * (log_t - log_s), axis=-1))
    hard = -np.mean(log_s[np.arange(len(log_s)), batch["label"]])
    first = _rows(workdir, 0, 1)[0]
    assert first["step"] == 1
    np.testing.assert_allclose(first["soft"], soft, rtol=1e-4)
    np.testing.assert_allclose(first["loss"], (soft + hard) / 2, rtol=1e-4)


def test_a_control_has_its_generations_weights_and_batches(finished):
    experiment, _, teachers = finished
    born = experiment.training(1, 2, teachers[1, 2])
    control = experiment.training(1, 2, None)
    of_both = (x.init().params for x in (born, control))
    jax.tree.map(np.testing.assert_array_equal, *of_both)
    np.testing.assert_array_equal(*(_batch(x)["image"] for x in (born, control)))


def test_generations_start_from_other_weights(finished):
    experiment, _, _ = finished
    kernels = [
        np.ravel(jax.tree.leaves(experiment.training(seed, g, None).init().params)[-1])
        for seed in (0, 1)
        for g in (0, 1, 2)
    ]
    assert len({kernel.tobytes() for kernel in kernels}) == 6


def test_the_report_holds_the_ensemble_of_mean_probabilities(finished):
    experiment, workdir, _ = finished
    report = json.loads((workdir / "report" / "report.json").read_text())
    values = {arm["name"]: arm["values"] for arm in report["arms"]}
    test = experiment.test.take(np.arange(len(experiment.test)))
    for seed in (0, 1):
        logits = [
            np.load(
                workdir / "generations" / f"seed{seed}" / str(g) / "predictions.npz"
            )
            for g in (0, 1, 2)
        ]
        probs = [scipy.special.softmax(x["logits"], axis=-1) for x in logits]
        right = np.mean(probs, axis=0).argmax(axis=-1) == test["label"]
        np.testing.assert_allclose(values["ensemble"][seed], 100 * right.mean(), 1e-6)
        single = [100 * np.mean(p.argmax(-1) == test["label"]) for p in probs]
        np.testing.assert_allclose(values["best"][seed], max(single), 1e-6)
        np.testing.assert_allclose(values["generation2"][seed], single[2], 1e-6)
    assert (workdir / "report" / "figures" / "generations.png").exists()


class Killed(Exception):
    pass


def _results(workdir):
    return {
        str(path.relative_to(workdir)): path.read_bytes()
        for path in sorted(workdir.rglob("*"))
        if path.suffix in (".safetensors", ".npz") or path.name == "metrics.jsonl"
    }


def test_interrupted_and_run_again_equals_uninterrupted(finished, tmp_path):
    workdir = finished[1]
    experiment = born_again.build(_config(checkpoint_every_steps=4))
    checkpoint = tmp_path / "generations" / "seed0" / "2" / "checkpoints" / "4"

    def training(seed, generation, teacher):
        made = experiment.training(seed, generation, teacher)

        def run(state, *arguments):
            if (seed, generation, int(state.step)) == (0, 2, 6):
                while not checkpoint.exists():  # It is saved beside the training.
                    time.sleep(0.01)
                raise Killed
            return made.programs(1)(state, *arguments)

        return dataclasses.replace(made, programs=lambda count: run)

    with pytest.raises(Killed):
        born_again.run(dataclasses.replace(experiment, training=training), tmp_path)
    assert not (checkpoint.parents[1] / "result.json").exists()
    born_again.run(experiment, tmp_path, ("generations", "controls"))
    expected = _results(workdir)
    assert len(expected) == 3 * 10
    assert _results(tmp_path) == expected


def test_a_report_needs_every_generation(tmp_path):
    with pytest.raises(UserError, match="--stages=generations first"):
        born_again.run(born_again.build(_config()), tmp_path, ("report",))


def test_the_best_single_generation_may_be_any(finished, tmp_path):
    experiment, workdir, _ = finished
    shutil.copytree(workdir / "generations", tmp_path / "generations")
    test = experiment.test.take(np.arange(len(experiment.test)))
    for seed, generation in ((0, 1), (1, 2)):
        path = tmp_path / "generations" / f"seed{seed}" / str(generation)
        perfect = np.eye(10, dtype=np.float32)[test["label"]]
        np.savez(path / "predictions.npz", logits=perfect)
    born_again.run(experiment, tmp_path, ("report",))
    arms = json.loads((tmp_path / "report" / "report.json").read_text())["arms"]
    assert next(arm["values"] for arm in arms if arm["name"] == "best") == [100, 100]
    # There are no controls here: the first network is what others are compared with.
    against = {arm["name"]: arm["against"] for arm in arms}
    assert against["generation2"] == "generation0"
    assert "controls" not in against


@pytest.mark.parametrize("loss", ["cwtm", "dkpp"])
def test_other_losses_take_the_place_of_the_soft_one(loss):
    config = _config()
    config.distill.terms.soft = dict(loss=loss, weight=0.5)
    experiment = born_again.build(config)
    teacher = experiment.network.init(jax.random.key(0))
    hparams = experiment.training(0, 1, teacher).hparams
    assert hparams["soft.weight"](0) == 0.5


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("born_again.num_generations", 0, "positive number below 1000"),
        ("teacher.source", "cached", "'online'"),
    ],
)
def test_a_mistake_is_one_sentence(key, value, expected):
    with pytest.raises(UserError, match=expected):
        born_again.build(_config(**{key: value}))
