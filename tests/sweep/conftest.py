"""A small sweep on the digits, with its teacher and cache in place."""

import importlib.util
import json
import pathlib
import shutil

import jax
import pytest
from jax.sharding import AxisType, Mesh

from kdjax import default_config, parallel, sweep
from kdjax import teacher_cache as caches
from kdjax.recipes import offline, stages
from kdjax.recipes import sweep as recipe

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="session")
def make_config():
    """Makes the config of perceptrons on digits that a sweep is of."""
    path = ROOT / "configs" / "mnist_kd.py"
    spec = importlib.util.spec_from_file_location("mnist_kd", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def make(axes, **options):
        config = module.get_config("smoke")
        config.student.model.hidden = (13,)
        config.student.train.num_epochs = 1
        config.student.train.num_views = 2
        config.log_every_steps = 10
        config.sweep = default_config.axes(axes)
        config.sweep_options.update(options)
        return config

    return make


@pytest.fixture
def on_one_device(monkeypatch):
    """As on a machine with one device."""
    mesh = Mesh(jax.devices()[:1], (parallel.AXIS,), axis_types=(AxisType.Auto,))
    monkeypatch.setattr(parallel, "create", lambda mode: parallel.Parallel(mode, mesh))


@pytest.fixture(scope="session")
def teacher_dir(make_config, tmp_path_factory):
    """A work directory with a teacher and its cache."""
    workdir = tmp_path_factory.mktemp("teacher")
    offline.run(offline.build(make_config({})), workdir, ["teacher", "cache"])
    return workdir


@pytest.fixture
def make_trainer(teacher_dir):
    """Makes the trainer of a sweep, from the teacher and cache that are there."""

    def make(experiment):
        variables = stages.load_variables(
            experiment.offline.teacher, teacher_dir / "teacher"
        )

        def stored(which):
            return caches.open(
                teacher_dir / which.name, which.manifest(variables)
            ).read_all()

        return sweep.Trainer(experiment, variables, stored)

    return make


@pytest.fixture
def run_sweep(teacher_dir, tmp_path):
    """Runs the stage `sweep` of a config in a work directory of its own."""

    def run(config, name="sweep"):
        workdir = tmp_path / name
        if not workdir.exists():
            shutil.copytree(teacher_dir, workdir)
        recipe.run(recipe.build(config), workdir, ["sweep"])
        return json.loads((workdir / "sweep" / "rows.json").read_text())

    return run
