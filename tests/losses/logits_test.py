import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from kdjax import losses


@pytest.fixture
def logits():
    """Student's and teacher's, `[5, 7]`, float64, as NumPy arrays."""
    return 3 * np.random.default_rng(0).normal(size=(2, 5, 7))


def _jax(*arrays):
    return (jnp.asarray(x, jnp.float32) for x in arrays)


def _centred(x):
    return x - x.mean(-1, keepdims=True)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, 20.0])
def test_soft_target_loss_is_the_tempered_divergence(logits, temperature):
    student, teacher = special.softmax(logits / temperature, axis=-1)
    expected = temperature**2 * special.rel_entr(teacher, student).sum(-1)
    actual = losses.soft_target_loss(*_jax(*logits), temperature=temperature)
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_the_gradient_of_soft_target_loss_is_the_difference_of_probabilities(logits):
    student, teacher = special.softmax(logits / 4, axis=-1)
    student_logits, teacher_logits = _jax(*logits)
    grad = jax.grad(
        lambda x: losses.soft_target_loss(x, teacher_logits, temperature=4.0).sum()
    )(student_logits)
    np.testing.assert_allclose(grad, 4 * (student - teacher), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("temperature", [1e3, 1e4])
def test_a_high_temperature_loses_no_digits(logits, temperature):
    """Summed as written, float32 is 1 % off at 1e3 and a factor of 5 at 1e4."""
    student, teacher = special.softmax(logits / temperature, axis=-1)
    expected = temperature**2 * special.rel_entr(teacher, student).sum(-1)
    student, teacher = (x.astype(np.float32) for x in logits)
    actual = losses.soft_target_loss(*_jax(*logits), temperature=temperature)
    np.testing.assert_allclose(actual, expected, rtol=1e-3)


def test_the_hot_limit_of_soft_target_loss_is_logit_matching(logits):
    with jax.enable_x64(True):
        inputs = [jnp.asarray(x) for x in logits]
        hot = losses.soft_target_loss(*inputs, temperature=1e5)
        limit = losses.logit_matching_loss(*inputs)
    # The next order is a third moment of the logits over the temperature.
    np.testing.assert_allclose(hot, limit, rtol=1e-3)


def test_the_temperature_is_differentiable_with_an_impossible_class(logits):
    student_logits, teacher_logits = (x.at[:, 2].set(-jnp.inf) for x in _jax(*logits))

    def loss(temperature):
        values = losses.soft_target_loss(
            student_logits, teacher_logits, temperature=temperature
        )
        return values.sum()

    slope = (loss(3.01) - loss(2.99)) / 0.02
    np.testing.assert_allclose(jax.grad(loss)(3.0), slope, rtol=1e-2)


def test_what_only_the_student_excludes_costs_infinitely_much(logits):
    student_logits, teacher_logits = _jax(*logits)
    student_logits = student_logits.at[1, 2].set(-jnp.inf)
    values = losses.soft_target_loss(student_logits, teacher_logits)
    assert np.isposinf(values[1])
    assert np.all(np.isfinite(np.delete(values, 1)))


def test_a_divergence_is_never_negative_however_small():
    key = jax.random.key(0)
    teacher_logits = 3 * jax.random.normal(key, (1000, 7))
    student_logits = teacher_logits + 1e-6 * jax.random.normal(key, (1000, 7))
    values = losses.soft_target_loss(student_logits, teacher_logits)
    assert np.all(values >= 0)
    assert np.all(values < 1e-11)


def test_logit_matching_loss_is_half_the_mean_square(logits):
    student, teacher = _centred(logits)
    expected = ((student - teacher) ** 2).mean(-1) / 2
    actual = losses.logit_matching_loss(*_jax(*logits))
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_fedmd_loss_is_the_mean_absolute_difference(logits):
    expected = np.abs(logits[0] - logits[1]).mean(-1)
    np.testing.assert_allclose(losses.fedmd_loss(*_jax(*logits)), expected, rtol=1e-5)


def test_fedmd_loss_sees_a_shift_and_its_size(logits):
    (student_logits, _) = _jax(*logits)
    shifted = losses.fedmd_loss(student_logits + 2.5, student_logits)
    np.testing.assert_allclose(shifted, 2.5, rtol=1e-6)


def test_fedmd_loss_does_not_pull_on_logits_that_match():
    student_logits, teacher_logits = jnp.array([0.0, 1.0, 2.0]), jnp.array([0.0, 1, 3])
    grad = jax.grad(losses.fedmd_loss)(student_logits, teacher_logits)
    np.testing.assert_allclose(grad, [0, 0, -1 / 3], rtol=1e-6)


def test_consistency_loss_is_the_mean_square_of_probabilities(logits):
    student, teacher = special.softmax(logits, axis=-1)
    expected = ((student - teacher) ** 2).mean(-1)
    actual = losses.consistency_loss(*_jax(*logits))
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-8)


def test_consistency_loss_is_at_most_2_over_the_number_of_classes():
    opposites = 100 * jnp.eye(2, 7)
    actual = losses.consistency_loss(opposites, opposites[::-1])
    np.testing.assert_allclose(actual, 2 / 7, rtol=1e-6)
