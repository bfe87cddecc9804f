"""A sweep that is killed and run again ends with the same bits as one that was not."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).parents[2]
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


def _start(workdir, sweep, form):
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "kdjax.main"),
            "--config=configs/mnist_kd.py:smoke",
            "--config.eval_every_epochs=1",
            f"--config.sweep_options.form={form}",
            "--config.sweep_options.rungs=(1,3)",
            "--config.sweep_options.max_students=12",
            f"--sweep={sweep}",
            f"--workdir={workdir}",
            "--stages=sweep",
        ],
        cwd=ROOT,
        env={k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
        | {
            "JAX_PLATFORMS": "cpu",
            "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".pytest_cache" / "xla"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _finish(process):
    output, _ = process.communicate(timeout=900)
    assert process.returncode == 0, output
    assert "Traceback" not in output


def _kill_after(process, directory, pattern):
    """Kills the process once a new file of the pattern is there; whether it did."""
    before = set(directory.glob(pattern))
    while process.poll() is None:
        if set(directory.glob(pattern)) - before:
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.005)
    process.communicate()
    return process.returncode == -signal.SIGKILL


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
def test_killed_and_run_again_equals_uninterrupted(form, tmp_path):
    sweep = tmp_path / "axes.py"
    sweep.write_text(SWEEP)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for workdir in (whole, killed):
        workdir.mkdir()
    process = subprocess.run(
        [
            *(sys.executable, "-m", "kdjax.main"),
            "--config=configs/mnist_kd.py:smoke",
            f"--sweep={sweep}",
            f"--workdir={whole}",
            "--stages=teacher,cache",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    shutil.rmtree(killed)
    shutil.copytree(whole, killed)
    _finish(_start(whole, sweep, form))
    kills = [
        _kill_after(_start(killed, sweep, form), killed / "sweep", pattern)
        for pattern in MOMENTS
    ]
    assert sum(kills) >= 2, "the sweep came to its end before it was killed"
    _finish(_start(killed, sweep, form))
    expected, found = _results(whole / "sweep"), _results(killed / "sweep")
    assert len(expected["rows.json"]["rows"]) == 24
    assert found.keys() == expected.keys()
    for name, content in expected.items():
        assert found[name] == content, f"{name} differs"
