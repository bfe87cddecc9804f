"""Noise in place of data: of a seed, a step and an example alone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.data.noise import NoiseLoader

pytestmark = pytest.mark.optimized  # These are laws of equal bits.


def test_noise_is_a_function_of_seed_step_and_example():
    def batch(seeds, step, **part):
        loader = NoiseLoader(seeds, (3, 4), 8, 10)
        draw = jax.jit(functools.partial(loader.batch, **part))
        return draw(next(loader.inputs(step)), jnp.asarray(step))["noise"]

    both = batch((0, 1), 5)
    assert both.shape == (8, 2, 3, 4)
    np.testing.assert_array_equal(both[:, 1:], batch((1,), 5))
    halves = [batch((0, 1), 5, index=i, count=2) for i in range(2)]
    np.testing.assert_array_equal(both, np.concatenate(halves))
    values = np.ravel([batch((0, 1), 5), batch((0, 1), 6)])
    assert len(np.unique(values)) == len(values)
    many = NoiseLoader((0,), (100,), 100, 10)
    values = many.batch(next(many.inputs(0)), jnp.asarray(0))["noise"]
    assert abs(values.mean()) < 0.05
    assert abs(values.std() - 1) < 0.05
