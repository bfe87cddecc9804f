"""Losses are small and run a few times: most of the time of a test is compilation."""

import functools

import jax
import pytest


@pytest.fixture(autouse=True)
def compiled_quickly():
    """The same HLO as in production, made into slower code in half the time."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture
def compiled_unfused(monkeypatch):
    """A third of the time, for tests with no `jax.jit` inside of another."""
    options = {"xla_cpu_use_fusion_emitters": False}
    jit = functools.partial(jax.jit, compiler_options=options)
    monkeypatch.setattr(jax, "jit", jit)
