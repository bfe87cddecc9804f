"""Promise P1 for features: stored ones train the very student that online ones do."""

import pathlib
import runpy

import jax
import numpy as np
import pytest

from kdjax import builders
from kdjax import teacher_cache as caches
from kdjax.types import UserError

ROOT = pathlib.Path(__file__).parents[1]
HIDDEN = {"student_features": "hidden1", "teacher_features": "hidden1"}
# A regressor to the teacher, its classifier, and an adapter that sees the teacher.
TERMS = {
    "hint": {"loss": "hint", "weight": 1.0, **HIDDEN},
    "classifier": {"loss": "linear_soft_target", "weight": 1.0, **HIDDEN},
    "crd": {"loss": "crd", "weight": 0.8, "num_negatives": 20, "dim": 8, **HIDDEN},
}


def _config(**updates):
    path = ROOT / "configs" / "digits_kd.py"
    config = runpy.run_path(str(path))["get_config"]("smoke")
    config.distill.terms = TERMS
    config.student.train.augment.update({"crop_padding": 1, "flip": True})
    config.update_from_flattened_dict(
        {
            "student.train.num_epochs": 1,
            "student.train.batch_size": 240,
            "student.train.optimizer.name": "sgd",
            "student.train.learning_rate.base": 0.01,
            **updates,
        }
    )
    return config


@pytest.fixture(scope="module")
def teacher():
    return jax.device_get(builders.build(_config()).teacher.init(jax.random.key(5)))


def _losses(experiment, teacher, cache):
    """All metrics of every step."""
    training = experiment.student_training(0, teacher, cache)
    state = training.parallel.replicate(training.init())
    constants = training.parallel.replicate(training.constants)
    inputs = training.loader.inputs(0)
    rows = []
    for _ in range(3):
        state, metrics = training.programs(1)(
            state, constants, training.hparams, next(inputs)
        )
        rows.append({name: float(metrics[name][0]) for name in ("loss", *TERMS)})
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


@pytest.fixture(scope="module")
def online(teacher):
    config = _config(**{"teacher.source": "online"})
    return _losses(builders.build(config), teacher, None)


@pytest.mark.parametrize(
    ("encoding", "rtol"),
    [
        ("float32", 1e-4),
        pytest.param("float16", 3e-3, marks=pytest.mark.slow),
    ],
)
def test_cached_features_are_online(tmp_path, teacher, online, encoding, rtol):
    experiment = builders.build(_config(**{"cache.encoding": encoding}))
    assert experiment.cached
    manifest = experiment.manifest(teacher)
    assert manifest.encoding.features == (("hidden1", (32,)),)
    compute = experiment.compute(teacher)
    caches.write(tmp_path, manifest, compute, batch_size=experiment.batch_size)
    found = _losses(experiment, teacher, caches.open(tmp_path, manifest))
    for name, expected in online.items():
        np.testing.assert_allclose(found[name], expected, rtol=rtol, err_msg=name)


def test_the_note_says_what_is_stored_and_what_it_takes():
    experiment = builders.build(_config(**{"student.train.num_views": 3}))
    size = 1200 * 3 * (10 + 32) * 4
    assert experiment.teacher_note == (
        "The teacher is read from the cache: logits and hidden1 of 1200 examples in 3 "
        f"views are {size / 1e9:.3g} GB in float32."
    )


def test_what_does_not_fit_runs_online_and_the_note_says_so():
    experiment = builders.build(_config(**{"cache.max_gigabytes": 0.0001}))
    assert not experiment.cached
    assert "runs in every step" in experiment.teacher_note
    assert "more than cache.max_gigabytes=0.0001" in experiment.teacher_note
    alone = _config(**{"cache.max_gigabytes": 0.0, "distill.terms": {}})
    assert builders.build(alone).cached  # Logits always fit.


def test_the_top_k_have_no_features():
    with pytest.raises(UserError, match=r"'float32' or 'float16' .*\(hidden1\)"):
        builders.build(_config(**{"cache.encoding": "topk"}))
    config = _config(**{"cache.encoding": "topk", "teacher.source": "online"})
    assert not builders.build(config).cached


@pytest.mark.parametrize(
    ("side", "pattern"),
    [("student", "hiden1"), ("teacher", "hdden[12]"), ("teacher", "layer1,hidden_1")],
)
def test_a_tap_that_finds_nothing_lists_what_is_near(side, pattern):
    config = _config()
    config.distill.terms.hint = TERMS["hint"] | {f"{side}_features": pattern}
    with pytest.raises(UserError, match=f"feature of {side}, .* hidden1") as error:
        builders.build(config)
    if "," not in pattern:
        assert "Did you mean hidden1?" in str(error.value)
