"""Strict JAX: ambiguity that production tolerates is an error under test."""

import jax
import jaxtyping
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_num_cpu_devices", 8)

# Check every annotated shape and dtype in kdjax; must precede its import.
jaxtyping.install_import_hook("kdjax", "beartype.beartype")


@pytest.fixture
def as_in_production():
    """Turns the type checker off, to see the errors that users see."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
