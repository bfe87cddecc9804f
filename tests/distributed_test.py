"""Two real processes on one machine train what one process trains."""

import os
import pathlib
import socket
import subprocess
import sys

import numpy as np
import pytest
import safetensors.numpy

ROOT = pathlib.Path(__file__).parents[1]


def _free_port():
    with socket.socket() as server:
        server.bind(("localhost", 0))
        return server.getsockname()[1]


def _start(workdir, num_devices, *arguments):
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={num_devices}",
        "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".pytest_cache" / "xla"),
    }
    return subprocess.Popen(
        [
            sys.executable,
            *("-m", "kdjax.main", "--config=configs/digits_kd.py:smoke"),
            "--config.seeds=(0,)",
            # Adam turns the rounding of a gradient that is zero into whole steps.
            "--config.teacher.train.optimizer.name=sgd",
            "--config.student.train.optimizer.name=sgd",
            f"--workdir={workdir}",
            *arguments,
        ],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _finish(*processes):
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    for process, output in zip(processes, outputs, strict=True):
        assert process.returncode == 0, output
    return outputs


STREAMING = "--config.dataset.streaming=True"


@pytest.mark.parametrize(
    "arguments", [(), pytest.param((STREAMING,), marks=pytest.mark.slow)]
)
def test_two_processes_equal_one(tmp_path, arguments):
    address = f"localhost:{_free_port()}"
    processes = [
        _start(
            tmp_path / "two",
            2,
            *("--distributed", f"--coordinator={address}"),
            *("--num_processes=2", f"--process_id={index}"),
            *arguments,
        )
        for index in range(2)
    ]
    outputs = _finish(*processes)
    _finish(_start(tmp_path / "one", 4, *arguments))
    for role in ("teacher", "student/seed0", "baseline/seed0"):
        one, two = (
            safetensors.numpy.load_file(tmp_path / n / role / "variables.safetensors")
            for n in ("one", "two")
        )
        assert one.keys() == two.keys()
        for name in one:
            np.testing.assert_allclose(two[name], one[name], rtol=2e-4, atol=2e-5)
    assert (tmp_path / "two" / "report" / "report.json").exists()
    # Only the first process prints.
    assert "student" in outputs[0]
    assert "student" not in outputs[1]
