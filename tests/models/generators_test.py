"""Generators: what their images are like, and how mistakes are told."""

import jax
import numpy as np
import pytest

from kdjax.models import generators
from kdjax.types import UserError


def _generated(module, latents):
    """Variables at the start, images in training, and the new statistics."""

    @jax.jit
    def run(latents):
        variables = module.init(jax.random.key(1), latents, train=False)
        changed = module.apply(variables, latents, train=True, mutable=["batch_stats"])
        return variables, *changed

    return run(latents)


@pytest.mark.parametrize(
    ("name", "arguments"), [("mlp", {"hidden": (9,)}), ("conv", {"width": 6})]
)
def test_generated_images_are_as_normalised_ones(name, arguments):
    shape = (10, 7, 3)  # Does not divide by 4.
    module = generators.create(name, image_shape=shape, **arguments)
    latents = jax.random.normal(jax.random.key(0), (64, 5))
    variables, images, state = _generated(module, latents)
    assert images.shape == (64, *shape)
    np.testing.assert_allclose(images.mean((0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(images.var((0, 1, 2)), 1, rtol=1e-2)

    trained = {"params": variables["params"], **state}
    infer = jax.jit(lambda x: module.apply(trained, x, train=False))
    one, all_at_once = infer(latents[:1]), infer(latents)
    np.testing.assert_allclose(one, all_at_once[:1], rtol=1e-4, atol=1e-4)
    last = max(variables["batch_stats"])
    assert last not in variables["params"]  # No scale and no shift.


def test_a_larger_epsilon_tempers_the_hidden_layers():
    latents = jax.random.normal(jax.random.key(0), (64, 5))
    made = []
    for epsilon in (1e-5, 0.8):
        module = generators.create(
            "mlp", image_shape=(8, 8, 1), hidden=(6,), norm_epsilon=epsilon
        )
        made.append(_generated(module, latents)[1])
    assert np.abs(made[0] - made[1]).max() > 0.1


def test_a_wrong_argument_of_a_generator_is_one_sentence():
    with pytest.raises(UserError, match=r"no arguments but hidden, norm_epsilon"):
        generators.create("mlp", image_shape=(8, 8, 1), width=3)
