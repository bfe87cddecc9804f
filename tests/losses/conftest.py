"""Losses are small and run a few times: most of the time of a test is compilation."""

import jax
import pytest


@pytest.fixture(autouse=True)
def compiled_quickly():
    """The same HLO as in production, made into slower code in half the time."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
