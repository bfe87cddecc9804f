"""Each config is data: it loads without a device, says what it is, and runs."""

import ast
import dataclasses
import pathlib
import re
import runpy
import subprocess
import sys

import jax
import numpy as np
import pytest
from ml_collections import config_dict
from PIL import Image

from kdjax import builders, default_config
from kdjax.data import augment
from kdjax.export import formats
from kdjax.recipes import RECIPES, offline
from kdjax.types import UserError

ROOT = pathlib.Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "configs").glob("*.py"))


@pytest.fixture(params=CONFIGS, ids=lambda path: path.stem)
def path(request):
    return request.param


def _load(path, variant=""):
    return runpy.run_path(str(path))["get_config"](variant)


def _keys(config, prefix=""):
    for name, value in config.items():
        yield prefix + name
        if isinstance(value, config_dict.ConfigDict):
            yield from _keys(value, f"{prefix}{name}.")


def test_loading_a_config_touches_no_device(path):
    code = (
        f"import runpy, sys; runpy.run_path({str(path)!r})['get_config'](); "
        "sys.exit('jax' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_the_docstring_is_a_notebook(path):
    notes = ast.get_docstring(ast.parse(path.read_text()))
    assert f"--config=configs/{path.name}" in notes
    assert f"--config=configs/{path.name}:smoke" in notes
    assert "Published" in notes


def test_unknown_keys_fail(path):
    config = _load(path)
    with pytest.raises(AttributeError):
        config.distill.temprature = 8.0


def test_smoke_shrinks_values_and_adds_no_key(path):
    model_arguments = re.compile(r"(teacher|student)\.model\.")
    full, smoke = (
        {k for k in _keys(_load(path, v)) if not model_arguments.match(k)}
        for v in ("", "smoke")
    )
    assert smoke == full


def test_an_unknown_variant_is_refused(path):
    with pytest.raises(ValueError, match="Expected variant"):
        _load(path, "huge")


def test_every_key_of_the_defaults_is_read():
    """A key that nothing reads would be a promise that nothing keeps."""
    files = [*(ROOT / "kdjax" / "builders").glob("*.py")]
    files.append(ROOT / "kdjax" / "recipes" / "offline.py")
    # The sections `augment` and `export` are handed over whole.
    whole = (augment.Augmentation, formats.Settings)
    names = [field.name for each in whole for field in dataclasses.fields(each)]
    code = " ".join([*names, *(path.read_text() for path in files)])
    for key in _keys(default_config.get_config()):
        name = key.split(".")[-1]
        assert re.search(rf"\b{name}\b", code), key


@pytest.mark.slow
def test_smoke_runs_whole(path, tmp_path):
    config = _load(path, "smoke")
    recipe = RECIPES[config.recipe]
    with jax.numpy_dtype_promotion("standard"):  # For Flax's BatchNorm in bfloat16.
        recipe.run(recipe.build(config), tmp_path)
    assert (tmp_path / "report" / "report.html").exists()


@pytest.mark.slow
def test_imagenet_runs_on_a_few_images(tmp_path):
    """The published models and augmentation, streamed from a folder of images."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 6), ("validation", 2), ("test", 3)):
        for label in ("ant", "bee"):
            folder = tmp_path / "images" / split / label
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 256, (70 + i, 80, 3), np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")
    config = _load(ROOT / "configs" / "resnet50_mobilenetv2.py", "imagenet")
    config.dataset.update(path=str(tmp_path / "images"), image_size=64, validation=0)
    config.teacher.pretrained = None
    for model in (config.teacher, config.student):
        model.train.update(num_epochs=1, batch_size=8)
    experiment = builders.build(config)
    with jax.numpy_dtype_promotion("standard"):  # For Flax's BatchNorm in bfloat16.
        offline.run(experiment, tmp_path / "run")
    assert (tmp_path / "run" / "report" / "report.html").exists()


def _digits(**updates):
    config = _load(ROOT / "configs" / "digits_kd.py", "smoke")
    config.update_from_flattened_dict(updates)
    return config


def test_schedules_of_temperature_and_alpha_reach_the_step():
    config = _digits(
        **{
            "distill.temperature_schedule": "linear",
            "distill.temperature_final": 1.0,
            "distill.alpha_schedule": "cosine",
            "distill.alpha_final": 0.0,
            "teacher.source": "online",
        }
    )
    experiment = builders.build(config)
    teacher = experiment.teacher.init(jax.random.key(0))
    built = experiment.student_training(0, teacher, None)
    temperature, alpha = (built.hparams[k] for k in ("temperature", "alpha"))
    assert (temperature(0), temperature(built.num_steps)) == (4.0, 1.0)
    assert alpha(0) == pytest.approx(0.9)
    assert alpha(built.num_steps) == pytest.approx(0.0, abs=1e-6)


def test_more_terms_join_the_objective(tmp_path):
    config = _digits()
    config.distill.terms.extra = dict(loss="soft_target", weight=0.5, temperature=2.0)
    experiment = builders.build(config)
    assert experiment.loss_terms == ("hard", "soft", "extra")
    offline.run(experiment, tmp_path, ("teacher", "cache", "student"))
    rows = (tmp_path / "student" / "seed0" / "metrics.jsonl").read_text()
    assert '"extra"' in rows
    assert '"extra.weight": 0.5' in rows


@pytest.mark.parametrize(
    ("term", "expected"),
    [
        (dict(loss="soft_targt", weight=1.0), "soft_target"),
        (dict(loss="soft_target"), "weight"),
        (dict(loss="soft_target", weight=1.0, temprature=2.0), "temprature"),
    ],
)
def test_a_mistaken_term_is_one_sentence(term, expected):
    config = _digits()
    config.distill.terms.extra = term
    with pytest.raises(UserError, match=expected):
        builders.build(config)


def _feature_config(**term):
    config = _digits(**{"teacher.source": "online", "distill.alpha": 0.0})
    for model in (config.teacher, config.student):
        for key in set(model.model) - {"name", "dtype"}:
            del model.model[key]
        model.model.name = "resnet8"
    config.student.train.update(num_epochs=2, batch_size=120)
    config.distill.terms.extra = dict(weight=1.0, **term)
    return config


@pytest.mark.parametrize(
    ("term", "expected"),
    [
        (dict(loss="hint", student_features="stgae2"), "mean stage2"),
        (dict(loss="hint", teacher_features="stage[12]"), "as many features"),
    ],
)
def test_features_that_do_not_fit_are_one_sentence(term, expected):
    with pytest.raises(UserError, match=expected):
        builders.build(_feature_config(**term))


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("seeds", (0, 0), "different numbers"),
        ("student.train.optimizer.momentum", 1.0, "below 1"),
        ("student.train.num_microbatches", 7, "to divide into"),
        ("cache.encoding", "float8", "one of"),
        ("student.normalize", "imagenet", "3 channels"),
        ("student.train.batch_size", 8000, "at most 1200"),
    ],
)
def test_a_value_out_of_range_is_one_sentence(key, value, expected):
    with pytest.raises(UserError, match=expected):
        builders.build(_digits(**{key: value}))


def test_accumulation_is_refused_where_batch_norm_would_change_the_result():
    config = _digits(**{"student.train.num_microbatches": 2})
    config.student.model.name = "resnet8"
    del config.student.model.hidden
    experiment = builders.build(config)
    with pytest.raises(UserError, match="BatchNorm"):
        experiment.baseline_training(0).init()
