"""What a loss does not reach stays as it is, where that is asked for."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kdjax import optimizers

VALUES = {
    name: jnp.float32(value)
    for name, value in dict(
        learning_rate=0.1, momentum=0.9, weight_decay=0.3, b1=0.9, b2=0.999
    ).items()
}
PARAMS = {"reached": jnp.array([1.0, -2.0]), "unreached": jnp.array([3.0, 4.0])}
# One element of what is reached has no gradient either: it is decayed all the same.
GRADS = {"reached": jnp.array([0.5, 0.0]), "unreached": jnp.zeros(2)}


def _train(optimizer_fn, num_steps=3):
    optimizer, params = optimizer_fn(VALUES), PARAMS
    state = optimizer.init(params)
    for _ in range(num_steps):
        updates, state = optimizer.update(GRADS, state, params)
        params = optax.apply_updates(params, updates)
    return params, state


@pytest.mark.parametrize("make", [optimizers.sgd, optimizers.adamw])
def test_an_array_without_any_gradient_is_spared_and_no_other(make):
    spared, spared_state = _train(make(spare_unreached=True))
    usual, usual_state = _train(make())
    np.testing.assert_array_equal(spared["unreached"], PARAMS["unreached"])
    assert np.all(usual["unreached"] < PARAMS["unreached"])
    np.testing.assert_array_equal(spared["reached"], usual["reached"])
    assert usual["reached"][1] > PARAMS["reached"][1]  # Decayed towards zero.
    assert jax.tree.structure(spared_state) == jax.tree.structure(usual_state)
