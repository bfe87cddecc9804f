"""Patience and consistency: which of its images the teacher speaks of."""

import pathlib
import runpy

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import teacher_cache as caches
from kdjax.builders.consistency import read_clean
from kdjax.recipes import consistency
from kdjax.recipes.stages import load_variables
from kdjax.training import fit
from kdjax.types import UserError

ROOT = pathlib.Path(__file__).parents[2]


def _config(**updates):
    path = ROOT / "configs" / "consistency.py"
    config = runpy.run_path(str(path))["get_config"]("smoke")
    with config.teacher.model.unlocked():
        config.teacher.model.update(name="mlp", hidden=(11,))
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
    """Experiment, teacher's variables and open caches."""
    workdir = tmp_path_factory.mktemp("consistency")
    experiment = consistency.build(_config())
    consistency.run(experiment, workdir, ("teacher", "cache"))
    variables = load_variables(experiment.offline.teacher, workdir / "teacher")
    opened = {
        name: caches.open(workdir / "cache" / name, stored.manifest(variables))
        for name, stored in experiment.stored.items()
    }
    return experiment, variables, opened


def _trained(begun, arm, directory):
    """The parameters of all students of an arm after its shortest schedule."""
    state, saved = fit(begun[0].grid(arm, 1, *begun[1:]).training, directory)
    saved.close()
    return state.each.params


def test_replayed_equals_online(begun, tmp_path):
    """Cached logits are of the very views that the students see."""
    online, replayed = (
        _trained(begun, arm, tmp_path / arm) for arm in ("consistent", "replayed")
    )
    for x, y in zip(*map(jax.tree.leaves, (online, replayed)), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-5)


def test_the_clean_cache_is_of_clean_images_and_the_other_of_views(begun):
    experiment, variables, opened = begun
    source = experiment.offline.splits.train
    predict = experiment.offline.predict["teacher"]
    clean = predict(variables, source.take(np.arange(80))["image"])
    stored = {name: x.read_all()["teacher_logits"] for name, x in opened.items()}
    assert len(stored["clean"]) == 1
    assert len(stored["views"]) == 3
    np.testing.assert_allclose(stored["clean"][0, :80], clean, atol=1e-5)
    for view in stored["views"]:
        assert np.abs(view[:80] - clean).max() > 0.1


def test_a_fixed_teacher_says_the_same_of_every_view(begun):
    experiment, variables, opened = begun
    training = experiment.grid("fixed", 1, variables, opened).training
    inputs = next(training.loader.inputs(0))
    stored = jax.tree.map(jnp.asarray, training.constants["teacher"])
    encoding = opened["clean"].manifest.encoding
    batch_fn = jax.jit(training.loader.batch)
    images = []
    for view in (0, 1):  # The same order of the examples, in two epochs.
        batch = batch_fn(inputs, jnp.int32(15 * view))
        own = {name: x[:, 0] for name, x in batch.items()}
        said = read_clean(encoding, stored, own, {"temperature": jnp.float32(1)})
        ids = np.asarray(inputs["order"][0, :80])
        np.testing.assert_array_equal(said.logits, stored["teacher_logits"][ids])
        images.append(own["image"])
    assert np.any(images[0] != images[1])


def test_function_matching_mixes_images_and_no_other_arm_does(begun):
    experiment, variables, opened = begun
    for arm in ("fixed", "consistent", "replayed", "funmatch"):
        loader = experiment.grid(arm, 1, variables, opened).training.loader
        batch = jax.eval_shape(
            loader.batch, next(loader.inputs(0)), jax.ShapeDtypeStruct((), jnp.int32)
        )
        assert ("soft_label" in batch) == (arm == "funmatch")
        assert batch["image"].shape == (80, 2, 8, 8, 1)


def test_schedules_of_an_arm_share_a_program_and_end_at_their_own_end(begun):
    experiment, variables, opened = begun
    short, long = (
        experiment.grid("fixed", multiple, variables, opened).training
        for multiple in (1, 2)
    )
    assert short.programs is long.programs
    assert (short.num_steps, long.num_steps) == (15, 30)
    for training in (short, long):
        rate = jax.vmap(lambda x: x)(training.hparams["learning_rate"])
        np.testing.assert_allclose(rate.num_steps, training.num_steps)


@pytest.mark.parametrize(
    ("updates", "expected"),
    [
        ({"teacher.source": "online"}, "teacher.source to be 'cached'"),
        ({"student.train.num_views": 0}, "student.train.num_views to be a positive"),
        ({"student.train.augment.mixup": 1.0}, "student.train.augment.mixup to be 0"),
        ({"distill.alpha": 0.5}, "distill.alpha to be 1"),
        ({"consistency.mixup": 0.0}, "consistency.mixup to be a positive"),
        ({"consistency.multiples": (4, 4)}, "consistency.multiples to be different"),
    ],
)
def test_a_mistake_is_one_sentence(updates, expected):
    with pytest.raises(UserError, match=expected):
        consistency.build(_config(**updates))


@pytest.mark.slow
def test_every_stage_runs_is_skipped_and_reported(tmp_path):
    experiment = consistency.build(_config())
    consistency.run(experiment, tmp_path)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("predictions.npz")}
    assert len(before) == 1 + 4 * 2
    text = (tmp_path / "report" / "report.json").read_text()
    for words in ("function matching, 2 epochs", "standard errors", "76.95"):
        assert words in text
    figures = {p.stem for p in (tmp_path / "report" / "figures").iterdir()}
    assert figures == {"arms", "schedules", "validation_accuracy"}
    consistency.run(experiment, tmp_path)
    assert before == {p: p.stat().st_mtime_ns for p in before}
