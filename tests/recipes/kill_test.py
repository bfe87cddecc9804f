"""Every way of distilling, killed in the middle and run again, ends with the same bits.

Run as a user runs it: in processes of their own, killed by SIGKILL.
"""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).parents[2]
CONFIGS = (
    "born_again",
    "self_distillation",
    "mutual",
    "ensemble",
    "assistants",
    "data_free",
    "cross_modal",
    "visual_questions",
    "federated",
    "study_why",
    "consistency",
    "cifar_methods",
    "lm_kd",
    "learned_temperature",
)

# Each is a moment that some file betrays, in the order in which they come.
MOMENTS = {
    "in the first training": "**/metrics.jsonl",
    "after a checkpoint": "**/checkpoints/[0-9]*",
    "between two trainings": "**/result.json",
}


def _start(name, workdir):
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "kdjax.main"),
            f"--config=configs/{name}.py:smoke",
            f"--workdir={workdir}",
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


def _kill_when(process, workdir, pattern):
    """Kills the process once a file of the pattern is there; whether it came to that.

    Files of earlier lives do not count.
    """
    before = _found(workdir, pattern)
    deadline = time.monotonic() + 600
    while process.poll() is None and time.monotonic() < deadline:
        if _found(workdir, pattern) - before:
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.01)
    process.communicate()
    return process.returncode == -signal.SIGKILL


def _found(workdir, pattern):
    try:
        return set(workdir.glob(pattern))
    except FileNotFoundError:  # A directory was renamed under way.
        return set()


def _results(workdir):
    """What must not depend on whether the run was interrupted, by path."""
    found = {}
    for path in sorted(workdir.rglob("*")):
        relative = path.relative_to(workdir)
        if "checkpoints" in relative.parts or "report" in relative.parts:
            continue
        if path.name == "result.json":
            found[str(relative)] = _without_seconds(json.loads(path.read_text()))
        elif path.suffix in (".npz", ".safetensors") or path.name == "metrics.jsonl":
            found[str(relative)] = path.read_bytes()
    report = json.loads((workdir / "report" / "report.json").read_text())
    found["report"] = [(arm["name"], arm["values"]) for arm in report["arms"]]
    return found


def _without_seconds(value):
    if isinstance(value, dict):
        return {k: _without_seconds(v) for k, v in value.items() if "seconds" not in k}
    return value


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_killed_and_run_again_equals_uninterrupted(name, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    _finish(_start(name, whole))
    kills = [
        _kill_when(_start(name, killed), killed, pattern)
        for pattern in MOMENTS.values()
    ]
    assert sum(kills) >= 2, f"{name} came to its end before it was killed"
    _finish(_start(name, killed))
    expected, actual = _results(whole), _results(killed)
    assert actual.keys() == expected.keys()
    for path, content in expected.items():
        assert actual[path] == content, f"{path} differs"
