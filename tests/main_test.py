"""The command line, run as a user runs it: in a process of its own."""

import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parents[1]
SMOKE = "configs/digits_kd.py:smoke"
# What must not depend on whether the run was interrupted.
RESULTS = ("metrics.jsonl", "predictions.npz", "variables.safetensors")


def _command(workdir, *arguments, config=SMOKE):
    return [
        sys.executable,
        *("-m", "kdjax.main"),
        f"--config={config}",
        f"--workdir={workdir}",
        *arguments,
    ]


def _environment():
    return {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"} | {
        "JAX_PLATFORMS": "cpu",
        # Shared by the runs of these tests: most of their time is compilation.
        "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".pytest_cache" / "xla"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
    }


def _run(workdir, *arguments, config=SMOKE):
    return subprocess.run(
        _command(workdir, *arguments, config=config),
        cwd=ROOT,
        env=_environment(),
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("finished")
    done = _run(workdir)
    assert done.returncode == 0, done.stderr
    return workdir, done


def _files(workdir):
    return {
        str(path.relative_to(workdir)): path.read_bytes()
        for role in ("teacher", "student", "baseline")
        for path in sorted((workdir / role).rglob("*"))
        if path.name in RESULTS
    }


def test_one_command_leaves_every_result(finished):
    workdir, done = finished
    assert "Traceback" not in done.stderr
    report = json.loads((workdir / "report" / "report.json").read_text())
    assert set(report["roles"]) == {"teacher", "student", "baseline"}
    assert report["gain"]["last"]["accuracy"]["n"] == 2
    assert report["roles"]["student"]["seeds"] == [0, 1]
    assert (workdir / "report" / "report.html").stat().st_size > 10_000
    assert len(_files(workdir)) == len(RESULTS) * 5
    assert "student" in done.stdout


def test_a_second_run_skips_what_is_done(finished):
    workdir, _ = finished
    before = _files(workdir)
    times = {p: p.stat().st_mtime_ns for p in workdir.rglob("variables.safetensors")}
    assert _run(workdir).returncode == 0
    assert _files(workdir) == before
    assert {p: p.stat().st_mtime_ns for p in times} == times


def test_verify_recomputes_entries_of_the_cache(finished):
    workdir, _ = finished
    done = _run(workdir, "--stages=cache", "--verify=50")
    assert done.returncode == 0, done.stderr
    assert "50" in done.stdout


def test_a_changed_config_is_refused_and_nothing_is_lost(finished):
    workdir, _ = finished
    before = _files(workdir)
    done = _run(workdir, "--config.distill.temperature=8")
    assert done.returncode == 2
    assert "distill.temperature was 4.0, is 8.0" in done.stderr
    assert "Traceback" not in done.stderr
    assert _files(workdir) == before


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            ["--config.distill.temprature=8"],
            "of --config.distill.temprature it has no temprature. Did you mean "
            '"temperature"',
        ),
        (
            ["--config.student.model.widths=(8,16)"],
            "of --config.student.model.widths it has no widths. What a config file "
            "does not set is added in the file.",
        ),
        (["--config.pupil.model.name=mlp"], "it has no pupil."),
        (["--config.distill.temperature=hot"], "hot"),
        (["--config.distill.alpha=1.5"], "Expected distill.alpha to be a number"),
        (["--config.student.model.name=resnet21"], "resnet20"),
        (["--config.teacher.pretrained=/nowhere/x.safetensors"], "/nowhere/x"),
        (["--config.dataset.path=/nowhere/x.npz"], "/nowhere/x.npz"),
        (["--stages=studnt"], "Expected --stages out of"),
        (["--stages=student"], "run the stage that makes it first"),
        (["--nonsense=1"], "nonsense"),
    ],
)
def test_a_mistake_is_one_sentence(tmp_path, arguments, expected):
    done = _run(tmp_path, *arguments)
    assert done.returncode == 2, done.stderr
    assert expected in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.rglob("variables.safetensors"))


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ("configs/nothing.py", "configs/nothing.py"),
        ("configs/digits_kd.py:huge", "Expected variant"),
    ],
)
def test_a_wrong_config_is_one_sentence(tmp_path, config, expected):
    done = _run(tmp_path, config=config)
    assert done.returncode == 2, done.stderr
    assert expected in done.stderr
    assert "Traceback" not in done.stderr


def test_a_batch_that_does_not_divide_over_the_devices(tmp_path):
    done = subprocess.run(
        _command(tmp_path, "--config.student.train.batch_size=81"),
        cwd=ROOT,
        env=_environment() | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 2
    assert "to divide over 8 devices, got 81" in done.stderr
    assert "such as 80" in done.stderr


def test_a_diverging_run_stops_with_step_and_term_named(tmp_path):
    done = _run(
        tmp_path,
        "--config.teacher.train.optimizer.name=sgd",
        "--config.teacher.train.learning_rate.base=1e30",
    )
    assert done.returncode == 2
    assert re.search(r"Expected a finite loss, got .*hard=.* at step \d+", done.stderr)
    assert "Traceback" not in done.stderr


def _kill_when(process, condition, number, timeout=200):
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline and process.poll() is None:
        if condition():
            process.send_signal(number)
            process.wait()
            return True
        time.sleep(0.002)
    process.kill()
    process.wait()
    return False


def _start(workdir):
    return subprocess.Popen(
        _command(workdir),
        cwd=ROOT,
        env=_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


# Each condition is a moment that some state on disk betrays.
MOMENTS = {
    "before the first checkpoint": lambda w: (w / "teacher" / "metrics.jsonl").exists(),
    "in the middle of a save": lambda w: any(
        (w / "teacher" / "checkpoints").glob("*tmp*")
    ),
    "in the teacher pass": lambda w: any((w / "cache").rglob("*")),
    "while a student trains": lambda w: any(
        (w / "student" / "seed0" / "checkpoints").glob("[0-9]*")
    ),
    "between two seeds": lambda w: (w / "student" / "seed0" / "result.json").exists(),
    "while a baseline trains": lambda w: (
        w / "baseline" / "seed1" / "metrics.jsonl"
    ).exists(),
}


def test_killed_anywhere_and_run_again_equals_uninterrupted(finished, tmp_path):
    kills = 0
    for name, condition in MOMENTS.items():
        process = _start(tmp_path)
        kills += _kill_when(process, lambda c=condition: c(tmp_path), signal.SIGKILL)
        process.stdout.close()
        assert not (tmp_path / "report").exists(), f"too late to kill {name}"
    assert kills == len(MOMENTS)
    done = _run(tmp_path)
    assert done.returncode == 0, done.stderr
    expected, actual = _files(finished[0]), _files(tmp_path)
    assert actual.keys() == expected.keys()
    for name in expected:
        assert actual[name] == expected[name], f"{name} differs"


def test_sigterm_saves_and_exits_clean(finished, tmp_path):
    process = _start(tmp_path)
    metrics = tmp_path / "teacher" / "metrics.jsonl"
    assert _kill_when(
        process, lambda: metrics.exists() and metrics.read_bytes(), signal.SIGTERM
    )
    output = process.stdout.read()
    process.stdout.close()
    assert process.returncode == 0, output
    step = re.search(r"is saved at step (\d+)", output)
    assert step, output
    assert (tmp_path / "teacher" / "checkpoints" / step[1]).is_dir()
    assert "Traceback" not in output
    done = _run(tmp_path, "--stages=teacher")
    assert done.returncode == 0, done.stderr
    name = "teacher/variables.safetensors"
    assert _files(tmp_path)[name] == _files(finished[0])[name]


def test_a_damaged_checkpoint_is_named_and_left_alone(finished, tmp_path):
    shutil.copytree(finished[0], tmp_path / "copy")
    directory = tmp_path / "copy" / "student" / "seed1"
    (directory / "result.json").unlink()
    newest = max((directory / "checkpoints").glob("[0-9]*"), key=lambda p: int(p.name))
    largest = max(
        (p for p in (newest / "state").rglob("*") if p.is_file()),
        key=lambda p: p.stat().st_size,
    )
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(bytes(content))
    done = _run(tmp_path / "copy")
    assert done.returncode == 2
    assert str(newest) in done.stderr
    assert "Traceback" not in done.stderr
    assert largest.read_bytes() == bytes(content)


def test_predictions_are_those_of_the_saved_variables(finished):
    workdir, _ = finished
    with np.load(workdir / "student" / "seed0" / "predictions.npz") as arrays:
        logits = arrays["logits"]
    report = json.loads((workdir / "report" / "report.json").read_text())
    from kdjax.data import sources

    test = sources.load("digits", validation=237).test
    labels = test.take(np.arange(len(test)))["label"]
    accuracy = 100 * np.mean(logits.argmax(-1) == labels)
    values = report["roles"]["student"]["last"]["accuracy"]["values"]
    np.testing.assert_allclose(values[0], accuracy, rtol=1e-6)
