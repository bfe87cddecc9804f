"""The flags of a sweep, and the files of axes that come with kdjax."""

import pathlib
import runpy
import warnings

import pytest
from absl import flags
from absl.testing import flagsaver

from kdjax import default_config, main
from kdjax.builders import sweep as builder

ROOT = pathlib.Path(__file__).parents[2]
FILES = sorted((ROOT / "configs" / "sweeps").glob("*.py"))
CONFIG = f"--config={ROOT / 'configs' / 'mnist_kd.py'}:smoke"


@pytest.fixture
def run(capsys):
    """Runs the command line in this process; status and what it complained."""

    def run(*arguments):
        with flagsaver.flagsaver(), warnings.catch_warnings():
            # How ml_collections loads a config.
            warnings.simplefilter("ignore", DeprecationWarning)
            main.parse_flags(["kdjax", CONFIG, *arguments])
            status = main.main(["kdjax"])
            workdir = main.default_workdir()
        return status, capsys.readouterr().err, workdir

    yield run
    flags.FLAGS.unparse_flags()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_file_of_axes_says_its_command_and_builds(path, make_config):
    found = runpy.run_path(str(path))
    assert f"--sweep=configs/sweeps/{path.name}" in found["__doc__"]
    assert f"--sweep=configs/sweeps/{path.name}:smoke" in found["__doc__"]
    proposed = path.stem == "proposed"
    for variant in ("", "smoke"):
        axes = found["get_sweep"](variant)
        config = make_config(axes, trials=4 if proposed else 0)
        experiment = builder.build(config)
        assert bool(experiment.groups) != proposed
    with pytest.raises(ValueError, match="variant"):
        found["get_sweep"]("other")


def test_hinton_s_grid_is_all_of_it(make_config):
    path = ROOT / "configs" / "sweeps" / "hinton_grid.py"
    axes = runpy.run_path(str(path))["get_sweep"]()
    config = make_config(axes)
    config.sweep = default_config.axes(axes)
    experiment = builder.build(config)
    assert [len(group.rows) for group in experiment.groups] == [35, 35, 35]
    assert [len(group.rows) for group in experiment.baselines] == [5, 5, 5]
    assert {group.network.description["model"] for group in experiment.groups} == {
        "mlp"
    }


def test_a_file_that_is_no_file_of_axes_is_one_sentence(run, tmp_path):
    for content, words in (("", "KeyError"), ("def get_sweep(v): 1 / 0", "ZeroDiv")):
        path = tmp_path / "axes.py"
        path.write_text(content)
        status, error, _ = run(f"--sweep={path}")
        assert status == 2
        assert "Expected --sweep to be a file with a function get_sweep" in error
        assert words in error
        assert len(error.splitlines()) == 1


def test_a_plan_is_of_a_sweep(run):
    status, error, _ = run("--dry_run")
    assert status == 2
    assert "Expected --dry_run with a sweep" in error


def test_a_sweep_has_a_work_directory_of_its_own(run):
    _, error, workdir = run("--sweep=nowhere/grid.py:800")
    assert "No such file" in error
    assert workdir == pathlib.Path("runs/mnist_kd-smoke-grid-800")
