"""A sweep that is killed and run again ends with the same bits as one that was not."""

import json
import shutil

import pytest

SWEEP = """
def get_sweep(variant=""):
    return {
        "distill.temperature": (1.0, 2.0, 4.0, 8.0),
        "student.train.learning_rate.base": (1e-3, 4e-3),
        "student.train.num_epochs": (6,),
        "seed": range(3),
    }
"""
# Each is a moment that some file betrays, in the order in which they come.
MOMENTS = ("student0/**/metrics.jsonl", "student0/**/checkpoints/[0-9]*", "rows.json")
CONFIG = "--config=configs/mnist_kd.py:smoke"


def _results(directory):
    found = {}
    for path in sorted(directory.rglob("*")):
        name = str(path.relative_to(directory))
        if path.name in ("rows.json", "result.json"):
            content = json.loads(path.read_text())
            found[name] = {k: content.get(k) for k in ("rows", "baseline_rows")}
        elif path.name == "metrics.jsonl":
            found[name] = path.read_bytes()
    return found


@pytest.mark.slow
@pytest.mark.parametrize("form", ["vmap", "loop"])
def test_killed_and_run_again_equals_uninterrupted(form, runs, tmp_path):
    sweep = tmp_path / "axes.py"
    sweep.write_text(SWEEP)

    def start(workdir):
        return runs.start(
            CONFIG,
            "--config.eval_every_epochs=1",
            f"--config.sweep_options.form={form}",
            "--config.sweep_options.rungs=(1,3)",
            "--config.sweep_options.max_students=12",
            f"--sweep={sweep}",
            f"--workdir={workdir}",
            "--stages=sweep",
        )

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    flags = f"--sweep={sweep}", f"--workdir={whole}", "--stages=teacher,cache"
    runs.finish(runs.start(CONFIG, *flags))
    shutil.copytree(whole, killed)
    runs.finish(start(whole))
    kills = [
        runs.kill_when(start(killed), killed / "sweep", pattern) for pattern in MOMENTS
    ]
    assert sum(kills) >= 2, "the sweep came to its end before it was killed"
    runs.finish(start(killed))
    expected, found = _results(whole / "sweep"), _results(killed / "sweep")
    assert len(expected["rows.json"]["rows"]) == 24
    assert found.keys() == expected.keys()
    for name, content in expected.items():
        assert found[name] == content, f"{name} differs"
