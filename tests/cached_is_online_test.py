"""Promise P1: a cached teacher trains the very student that the online one does."""

import pathlib
import runpy

import jax
import numpy as np
import pytest

from kdjax import builders
from kdjax import teacher_cache as caches

pytestmark = pytest.mark.optimized  # These are laws of equal bits.

ROOT = pathlib.Path(__file__).parents[1]
AUGMENT = {"crop_padding": 1, "flip": True, "cutout": 3, "mixup": 1.0}


def _experiment(**updates):
    path = ROOT / "configs" / "digits_kd.py"
    config = runpy.run_path(str(path))["get_config"]("smoke")
    config.student.train.augment.update(AUGMENT)
    config.update_from_flattened_dict(
        {
            "student.train.num_epochs": 3,
            "student.train.num_views": 2,
            "student.train.batch_size": 240,
            "student.train.optimizer.name": "sgd",
            "cache.temperatures": (4.0,),
            "cache.top_k": 9,
            **updates,
        }
    )
    return builders.build(config)


@pytest.fixture(scope="module")
def teacher():
    return jax.device_get(_experiment().teacher.init(jax.random.key(5)))


def _losses(experiment, teacher, cache):
    """The loss of every step, and the final parameters."""
    training = experiment.student_training(0, teacher, cache)
    state = training.parallel.replicate(training.init())
    variables = training.parallel.replicate(training.constants)
    inputs = training.loader.inputs(0)
    losses = []
    for _ in range(training.num_steps):
        state, metrics = training.programs(1)(
            state, variables, training.hparams, next(inputs)
        )
        losses.append(float(metrics["loss"][0]))
    return np.asarray(losses), jax.device_get(state.params)


def _fill(experiment, teacher, path):
    manifest = experiment.manifest(teacher)
    compute = experiment.compute(teacher)
    caches.write(path, manifest, compute, batch_size=experiment.batch_size)
    return caches.open(path, manifest)


@pytest.fixture(scope="module")
def online(teacher):
    return _losses(_experiment(**{"teacher.source": "online"}), teacher, None)


@pytest.mark.parametrize(
    ("encoding", "streaming", "rtol"),
    [
        ("float32", False, 1e-4),
        ("float32", True, 1e-4),
        # 2**-11 of each logit.
        ("float16", False, 1e-3),
        # 9 of 10 classes and the exact mass of the tenth: nothing is lost.
        ("topk", False, 1e-4),
    ],
)
def test_cached_is_online(tmp_path, teacher, online, encoding, streaming, rtol):
    experiment = _experiment(
        **{"cache.encoding": encoding, "dataset.streaming": streaming}
    )
    cache = _fill(experiment, teacher, tmp_path / "cache")
    losses, params = _losses(experiment, teacher, cache)
    np.testing.assert_allclose(losses, online[0], rtol=rtol)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=10 * rtol, atol=rtol),
        params,
        online[1],
    )


def test_another_view_gives_other_logits(tmp_path, teacher):
    """Without this the law above would hold for a cache that ignores the view."""
    experiment = _experiment()
    cache = _fill(experiment, teacher, tmp_path / "cache")
    ids = np.arange(50)
    first, second = (cache.read(view, ids)["teacher_logits"] for view in (0, 1))
    assert np.mean(np.any(first != second, axis=-1)) > 0.9


def test_the_teacher_sees_the_pixels_that_the_student_sees(teacher):
    experiment = _experiment()
    training = experiment.student_training(0, teacher, None)
    inputs = training.loader.inputs(training.steps_per_epoch)  # The second view.
    step = np.int32(training.steps_per_epoch)
    batch = jax.jit(training.loader.batch)(next(inputs), step)
    batch = {name: np.asarray(x) for name, x in batch.items()}
    expected = experiment.predict["teacher"](teacher, batch["image"])
    actual = experiment.compute(teacher)(batch["example_id"], 1)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)
