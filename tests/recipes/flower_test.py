"""Flower, for real: a SuperLink, a SuperNode for each client, and the same model."""

import contextlib
import json
import os
import pathlib
import runpy
import shutil
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from kdjax.recipes import federated, stages

ROOT = pathlib.Path(__file__).parents[2]
CLIENTS, ROUNDS = 3, 2
CONFIG = f"""
import runpy

def get_config(variant=""):
    config = runpy.run_path({str(ROOT / "configs" / "federated.py")!r})["get_config"](
        "smoke"
    )
    config.seeds = (0,)
    config.federated.update(
        methods=(variant,), levels=(1.0,), num_clients={CLIENTS}, rounds={ROUNDS},
        participation=0.67, dropout=0.0)
    return config
"""


def _free_ports(count):
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


@pytest.fixture
def federation(tmp_path):
    """A SuperLink and three SuperNodes, in processes of their own."""
    pytest.importorskip("flwr")
    programs = pathlib.Path(sys.executable).parent
    link, *nodes = _free_ports(1 + CLIENTS)
    (tmp_path / "config.toml").write_text(
        '[superlink]\ndefault = "here"\n\n[superlink.here]\n'
        f'address = "127.0.0.1:{link}"\ninsecure = true\n'
    )
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"} | {
        "FLWR_HOME": str(tmp_path),
        "FLWR_TELEMETRY_ENABLED": "0",
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".pytest_cache" / "xla"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
    }
    commands = [
        [
            *("flower-superlink", "--insecure", f"--port={link}"),
            "--disable-runtime-dependency-installation",
        ]
    ] + [
        [
            *("flower-supernode", "--insecure", f"--superlink=127.0.0.1:{link}"),
            *(f"--port={port}", f"--node-config=partition-id={client}"),
        ]
        for client, port in enumerate(nodes)
    ]
    processes = []
    for i, command in enumerate(commands):
        with (tmp_path / f"process{i}.log").open("w") as log:
            command[0] = str(programs / command[0])
            processes.append(
                subprocess.Popen(
                    command, env=environment, stdout=log, stderr=log, cwd=tmp_path
                )
            )
        time.sleep(3.0 if i == 0 else 0.0)  # The SuperLink must listen.
    yield programs, environment
    for process in reversed(processes):
        process.terminate()
    for process in processes:
        process.wait(timeout=60)


def _logs(directory):
    return "\n".join(x.read_text()[-4000:] for x in directory.glob("process*.log"))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fedavg", "fedgkd"])
def test_flower_comes_to_the_model_of_the_recipe(method, federation, tmp_path):
    programs, environment = federation
    path = tmp_path / "config.py"
    path.write_text(CONFIG)
    shutil.copytree(ROOT / "flower", tmp_path / "app")
    settings = dict(
        config=f"{path}:{method}",
        method=method,
        level="dirichlet_1.0",
        workdir=str(tmp_path / "server"),
    )
    pairs = " ".join(f'{name}="{value}"' for name, value in settings.items())
    subprocess.run(
        [str(programs / "flwr"), "run", str(tmp_path / "app"), "here", "-c", pairs],
        env=environment,
        check=True,
        timeout=120,
    )
    result = tmp_path / "server" / "result.json"
    deadline = time.monotonic() + 900
    while not result.exists():
        assert time.monotonic() < deadline, _logs(tmp_path)
        time.sleep(0.5)
    found = json.loads(result.read_text())
    assert found["arrived"] == [2] * ROUNDS

    experiment = federated.build(runpy.run_path(str(path))["get_config"](method))
    federated.run(experiment, tmp_path / "recipe", ("rounds",))
    cell = tmp_path / "recipe" / "rounds" / "dirichlet_1.0" / method / "seed0"
    expected = stages.load_variables(experiment.network, cell)
    (tmp_path / "server" / "inputs.json").write_text("{}")
    variables = stages.load_variables(experiment.network, tmp_path / "server")
    for x, y in zip(*map(jax.tree.leaves, (variables, expected)), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)
    accuracy = json.loads((cell / "result.json").read_text())["accuracy"]
    assert found["accuracy"] == pytest.approx(accuracy, abs=0.6)
