"""Strict JAX: ambiguity that production tolerates is an error under test."""

import itertools

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
