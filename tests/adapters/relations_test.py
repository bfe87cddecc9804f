import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import losses
from kdjax.adapters import _relations as adapters
from kdjax.losses import _crd

FEATURES = jax.random.normal(jax.random.key(1), (3, 4, 5, 2))
STUDENT, TEACHER = 3 * jax.random.normal(jax.random.key(2), (2, 4, 7))


def test_embed_is_linear_then_of_length_1():
    embed = adapters.Embed(dim=5)
    variables = embed.init(jax.random.key(0), FEATURES)
    linear = jax.tree.map(np.asarray, variables["params"]["linear"])
    expected = np.asarray(FEATURES).reshape(3, -1) @ linear["kernel"] + linear["bias"]
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    actual = jax.jit(embed.apply)(variables, FEATURES)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


def test_embed_without_normalisation_is_the_linear_map():
    plain = adapters.Embed(dim=5, normalize=False)
    variables = plain.init(jax.random.key(0), FEATURES)
    embedding = plain.apply(variables, FEATURES)
    unit = adapters.Embed(dim=5).apply(variables, FEATURES)
    length = jnp.linalg.norm(embedding, axis=1, keepdims=True)
    np.testing.assert_allclose(unit * length, embedding, rtol=1e-5)
    assert np.all(np.abs(length - 1) > 1e-2)


def test_embed_of_zeros_has_a_finite_gradient():
    embed = adapters.Embed(dim=5)
    variables = embed.init(jax.random.key(0), FEATURES)  # The biases are zeros.
    zeros = jnp.zeros_like(FEATURES)
    np.testing.assert_array_equal(embed.apply(variables, zeros), 0)
    grads = jax.grad(lambda v: jnp.sum(embed.apply(v, zeros)))(variables)
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(grads))


def test_embed_of_bfloat16_has_length_1_in_float32():
    embed = adapters.Embed(dim=5, dtype=jnp.bfloat16)
    variables = embed.init(jax.random.key(0), FEATURES)
    embedding = embed.apply(variables, FEATURES.astype(jnp.bfloat16))
    assert embedding.dtype == jnp.float32
    np.testing.assert_allclose(jnp.linalg.norm(embedding, axis=1), 1, rtol=1e-6)


def test_crd_trains_the_embeddings_of_both_sides():
    embed = adapters.Embed(dim=4)
    variables = [embed.init(jax.random.key(i), FEATURES) for i in range(2)]
    memory = _crd.init_crd_memory(jax.random.key(2), num_examples=6, dim=4)
    indices = jnp.array([[0, 4, 5], [1, 4, 5], [2, 4, 5]])

    def loss_fn(variables):
        embeddings = [embed.apply(v, FEATURES) for v in variables]
        return jnp.mean(_crd.crd_loss(*embeddings, memory, indices))

    for grads in jax.grad(loss_fn)(variables):
        assert np.all(np.any(grads["params"]["linear"]["kernel"] != 0, axis=1))


def _loss(learned, variables, reversal):
    """The mean loss at the learned temperature of each example."""
    temperature = learned.apply(variables, STUDENT, TEACHER, reversal=reversal)
    temperature = jnp.broadcast_to(temperature, STUDENT.shape[:1])
    each = jax.vmap(lambda s, t, x: losses.soft_target_loss(s, t, temperature=x))
    return jnp.mean(each(STUDENT, TEACHER, temperature))


@pytest.mark.parametrize("instance_wise", [False, True])
def test_the_temperature_climbs_where_the_student_descends(instance_wise):
    """A step against the gradient that the optimizer sees raises the loss."""
    learned = adapters.LearnedTemperature(instance_wise=instance_wise, hidden_dim=8)
    variables = learned.init(jax.random.key(0), STUDENT, TEACHER)
    loss_fn = jax.jit(lambda v, x: _loss(learned, v, x))
    grad_fn = jax.jit(jax.grad(lambda v, x: _loss(learned, v, x)))
    grads = grad_fn(variables, 1.0)
    stepped = jax.tree.map(lambda x, g: x - 0.1 * g, variables, grads)
    assert loss_fn(stepped, 1.0) > loss_fn(variables, 1.0)
    # Half the reversal is half the gradient, none is none; -1 is the plain one.
    for factor in (0.5, 0.0, -1.0):
        scaled = jax.tree.map(lambda x, factor=factor: factor * x, grads)
        jax.tree.map(
            lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-7),
            grad_fn(variables, factor),
            scaled,
        )


def test_the_plain_gradient_is_the_derivative():
    learned = adapters.LearnedTemperature()
    variables = learned.init(jax.random.key(0), STUDENT, TEACHER)
    slope = jax.grad(lambda v: _loss(learned, v, -1.0))(variables)["params"]["theta"]
    step = 1e-2
    shifted = [
        _loss(learned, {"params": {"theta": jnp.float32(1 + d)}}, 1.0)
        for d in (step, -step)
    ]
    np.testing.assert_allclose(slope, (shifted[0] - shifted[1]) / (2 * step), rtol=1e-3)


def test_one_temperature_or_one_for_each_example():
    for instance_wise, shape in ((False, ()), (True, (4,))):
        learned = adapters.LearnedTemperature(instance_wise=instance_wise)
        variables = learned.init(jax.random.key(0), STUDENT, TEACHER)
        temperature = learned.apply(variables, STUDENT, TEACHER)
        assert temperature.shape == shape
        np.testing.assert_allclose(temperature, 1 + 20 / (1 + np.exp(-1)), rtol=1e-6)


def test_temperatures_differ_and_keep_their_bounds():
    learned = adapters.LearnedTemperature(instance_wise=True, start=2.0, scale=3.0)
    variables = learned.init(jax.random.key(0), STUDENT, TEACHER)
    random = jax.tree.map(
        lambda x: jax.random.normal(jax.random.key(x.size), x.shape), variables
    )
    temperature = learned.apply(random, STUDENT, TEACHER)
    assert np.all((temperature >= 2) & (temperature <= 5))
    assert len(np.unique(temperature)) > 1


def test_no_gradient_reaches_the_logits_by_way_of_the_temperature():
    learned = adapters.LearnedTemperature(instance_wise=True)
    variables = learned.init(jax.random.key(0), STUDENT, TEACHER)
    variables = jax.tree.map(lambda x: x + 0.1, variables)
    grad = jax.grad(lambda s: jnp.sum(learned.apply(variables, s, TEACHER)))(STUDENT)
    np.testing.assert_array_equal(grad, 0)


def test_reversal_rises_by_half_a_cosine():
    for epoch in (0, 1, 3, 5, 9, 10, 11, 240):
        cosine = np.cos(np.pi * min(epoch, 10) / 10)
        published = 0.5 * (cosine + 1) * (0 - (-1)) + (-1)  # Decays from 0 to -1.
        actual = jax.jit(adapters.ctkd_reversal)(epoch)
        np.testing.assert_allclose(actual, -published, atol=1e-6)
    np.testing.assert_allclose(adapters.ctkd_reversal(5, num_epochs=5), 1, rtol=1e-6)


@pytest.mark.usefixtures("as_in_production")
def test_a_rise_of_no_epochs_is_refused():
    with pytest.raises(ValueError, match="Expected num_epochs > 0, got 0"):
        adapters.ctkd_reversal(0, num_epochs=0)
