"""Strict JAX: ambiguity that production tolerates is an error under test."""

import itertools
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import jaxtyping
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_num_cpu_devices", 8)

# Check every annotated shape and dtype in kdjax; must precede its import.
jaxtyping.install_import_hook("kdjax", "beartype.beartype")


def pytest_addoption(parser):
    parser.addoption(
        "--optimized", action="store_true", help="Compile all as in production."
    )


def pytest_runtest_setup(item):
    """Lets programs that run once be compiled in half the time.

    LLVM's optimizations take longer than what they save here, and change no law but
    those of equal bits: tests of these have the mark `optimized`.
    """
    optimized = item.get_closest_marker("optimized") is not None
    optimized = optimized or item.config.getoption("--optimized")
    jax.config.update("jax_disable_most_optimizations", not optimized)


jax.config.update("jax_disable_most_optimizations", True)  # Of doctests.

_torn_down = itertools.count(1)


def pytest_runtest_teardown():
    """Drops compiled programs, which nobody calls any more, every 400 tests.

    Each keeps some 10 memory maps. Linux allows a process 65,530, and XLA crashes at
    the next one: so did a worker after 2,700 tests.
    """
    if next(_torn_down) % 400 == 0:
        jax.clear_caches()


@pytest.fixture
def as_in_production():
    """Turns the type checker off, to see the errors that users see."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


class Runs:
    """Runs as users start them, each in a process of its own, which can be killed."""

    root = pathlib.Path(__file__).parents[1]

    def __init__(self):
        self._processes = []

    def start(self, *flags):
        """Starts `python -m kdjax.main`, on one device."""
        cache = str(self.root / ".pytest_cache" / "xla")
        environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"} | {
            "JAX_PLATFORMS": "cpu",
            "JAX_COMPILATION_CACHE_DIR": cache,
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
        }
        process = subprocess.Popen(
            [sys.executable, "-m", "kdjax.main", *flags],
            cwd=self.root,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._processes.append(process)
        return process

    def finish(self, process):
        """Waits for a run that should come to its end."""
        output, _ = process.communicate(timeout=900)
        assert process.returncode == 0, output
        assert "Traceback" not in output

    def kill_when(self, process, directory, pattern):
        """Kills the run when a new file is there; returns whether it came to that."""
        before, deadline = _found(directory, pattern), time.monotonic() + 600
        while process.poll() is None and time.monotonic() < deadline:
            if _found(directory, pattern) - before:
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(0.005)
        process.communicate()
        return process.returncode == -signal.SIGKILL

    def end(self):
        for process in self._processes:
            if process.poll() is None:
                process.kill()
                process.communicate()


def _found(directory, pattern):
    try:
        return set(directory.glob(pattern))
    except FileNotFoundError:  # A directory was renamed under way.
        return set()


@pytest.fixture
def runs():
    """Starts runs, and leaves none behind."""
    made = Runs()
    yield made
    made.end()
