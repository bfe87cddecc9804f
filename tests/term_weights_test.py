"""When a term counts, and by how much: from the config to the weighted sum."""

import pathlib
import runpy

import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import features, models, networks, steps
from kdjax.builders._objectives import Sides, distill_objective
from kdjax.builders._terms import Setting
from kdjax.types import Outputs, UserError

DIGITS = pathlib.Path(__file__).parents[1] / "configs" / "digits_kd.py"
NUM_EPOCHS, NUM_STEPS = 10, 100


def _network():
    module = models.create("resnet8", num_classes=10)
    unit = {"mean": (0.0,), "std": (1.0,)}
    return networks.from_linen(
        module, name="net", image_shape=(8, 8, 1), num_classes=10, **unit
    )


@pytest.fixture(scope="module")
def described():
    return features.describe(_network())


def _built(described, **distill):
    config = runpy.run_path(str(DIGITS))["get_config"]("smoke")
    config.distill.update(distill)
    config.student.train.num_epochs = NUM_EPOCHS
    setting = Setting(4, lambda: np.zeros(4, int))
    sides = Sides(described, described, setting)
    return distill_objective(config.distill, config.student.train, NUM_STEPS, sides)


def _some(rng, *shape):
    return jnp.asarray(rng.normal(size=shape), jnp.float32)


def _losses(built, step, adapted):
    """What the objective reports, given what the adapters made."""
    rng = np.random.default_rng(0)
    student, teacher = (
        Outputs(_some(rng, 4, 10), {"stage3": _some(rng, 4, 2, 2, 64)})
        for _ in range(2)
    )
    student = student.replace(features={**student.features, **adapted})
    batch = {"label": jnp.arange(4), "mask": jnp.ones(4, bool)}
    values = steps.hyperparameters(built.hparams, jnp.int32(step))
    found = built.objective(student, teacher, batch, values)
    return {name: np.asarray(x, np.float64) for name, x in found.items()}


def test_each_term_counts_in_its_own_epochs_and_no_others(described):
    timing = {"from_epoch": 2.0, "until_epoch": 6.0, "warmup_epochs": 1.0}
    terms = {
        "early": {"loss": "dist", "weight": 3.0, "until_epoch": 4.0},
        "middle": {"loss": "forward_kl", "weight": 5.0, **timing},
    }
    built = _built(described, alpha=0.25, from_epoch=4.0, terms=terms)
    assert built.staged
    for step, early, middle, begun in (
        (0, 3, 0, 0),
        (19, 3, 0, 0),
        (20, 3, 0.5, 0),  # The first of ten steps of warming up.
        (29, 3, 5, 0),
        (39, 3, 5, 0),
        (40, 0, 5, 1),
        (59, 0, 5, 1),
        (60, 0, 0, 1),
        (99, 0, 0, 1),
    ):
        x = _losses(built, step, {})
        expected = early * x["early"] + middle * x["middle"]
        expected += begun * (0.25 * x["soft"] + 0.75 * x["hard"])
        np.testing.assert_allclose(x["loss"], expected, rtol=1e-5)


def test_without_stages_nothing_is_spared_and_no_schedule_is_added(described):
    built = _built(described, terms={"early": {"loss": "dist", "weight": 3.0}})
    assert not built.staged
    assert "begun" not in built.hparams


def test_what_the_paraphraser_learns_from_has_a_weight_of_its_own(described):
    term = {"loss": "factor", "weight": 200.0, "form": "paper", "until_epoch": 5.0}
    term |= {"paraphrase_epochs": 3.0}
    built = _built(described, alpha=0.0, from_epoch=3.0, terms={"ft": term})
    assert built.teacher_taps == ("stage3",)
    rng = np.random.default_rng(1)
    adapted = {
        "ft/translator": _some(rng, 4, 2, 2, 32),
        "ft/paraphraser": (_some(rng, 4, 2, 2, 32), _some(rng, 4, 2, 2, 64)),
    }
    for step, early, weight in ((0, True, 1), (35, False, 1), (55, False, 0)):
        x = _losses(built, step, adapted | {"ft/is_early": jnp.asarray(early)})
        expected = weight * (200 * x["ft"] + x["ft_beside"]) + (not early) * x["hard"]
        np.testing.assert_allclose(x["loss"], expected, rtol=1e-5)
        # Early there is no target yet, and later nothing to rebuild.
        assert np.all((x["ft"] == 0) == early)
        assert np.all((x["ft_beside"] > 0) == early)


@pytest.mark.parametrize(
    "timing",
    [
        {"from_epoch": -1.0},
        {"from_epoch": 5.0, "until_epoch": 5.0},
        {"warmup_epochs": -0.5},
    ],
)
def test_a_wrong_timing_is_told(described, timing):
    terms = {"x": {"loss": "dist", "weight": 1.0, **timing}}
    with pytest.raises(UserError, match="x to have 0 <= from_epoch < until_epoch"):
        _built(described, terms=terms)
