import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from kdjax import losses

LABELS = np.array([3, 0, 6, 5, 3])


@pytest.fixture
def logits():
    """Student's and teacher's, `[5, 7]`, float64, as NumPy arrays."""
    return 3 * np.random.default_rng(0).normal(size=(2, 5, 7))


def _jax(*arrays):
    return (jnp.asarray(x, jnp.float32) for x in arrays)


def _wsld_weights(logits):
    student, teacher = -special.log_softmax(logits, axis=-1)[:, np.arange(5), LABELS]
    return 1 - np.exp(-student / (teacher + 1e-7))


def test_wsld_loss(logits):
    log_student = special.log_softmax(logits[0] / 2, axis=-1)
    teacher = special.softmax(logits[1] / 2, axis=-1)
    expected = -4 * _wsld_weights(logits) * (teacher * log_student).sum(-1)
    actual = losses.wsld_loss(*_jax(*logits), jnp.asarray(LABELS), temperature=2.0)
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_wsld_loss_does_not_differentiate_its_weights(logits):
    (weights,) = _jax(_wsld_weights(logits))

    def constant(student_logits, teacher_logits):
        target = jax.nn.softmax(teacher_logits / 2)
        values = losses.soft_cross_entropy(student_logits / 2, target)
        return jnp.sum(weights * 4 * values)

    def loss(*logits):
        return losses.wsld_loss(*logits, jnp.asarray(LABELS), temperature=2.0).sum()

    grads = jax.grad(loss, (0, 1))(*_jax(*logits))
    expected = jax.grad(constant, (0, 1))(*_jax(*logits))
    np.testing.assert_allclose(grads, expected, rtol=1e-4, atol=1e-5)


def test_wsld_loss_fades_where_the_student_knows_the_label():
    teacher_logits = jnp.array([1.0, 0.0, 0.0])
    weights = []
    for margin in (-2.0, 0.0, 2.0, 20.0):
        student_logits = jnp.array([margin, 0.0, 0.0])
        value = losses.wsld_loss(
            student_logits, teacher_logits, jnp.array(0), temperature=1.0
        )
        target = jax.nn.softmax(teacher_logits)
        weights.append(value / losses.soft_cross_entropy(student_logits, target))
    assert np.all(np.diff(weights) < 0)
    assert 0 <= weights[-1] < 1e-6


def test_ttm_loss(logits):
    teacher = special.softmax(logits[1], axis=-1) ** (1 / 3)
    teacher /= teacher.sum(-1, keepdims=True)
    student = special.softmax(logits[0], axis=-1)
    expected = special.rel_entr(teacher, student).sum(-1)
    actual = losses.ttm_loss(*_jax(*logits), temperature=3.0)
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_ttm_loss_is_least_at_the_softened_teacher(logits):
    (_, teacher_logits) = _jax(*logits)
    value, grad = jax.value_and_grad(
        lambda x: losses.ttm_loss(x, teacher_logits, temperature=3.0).sum()
    )(teacher_logits / 3)
    np.testing.assert_allclose(value, 0, atol=1e-6)
    np.testing.assert_allclose(grad, 0, atol=1e-6)


def test_wttm_loss_is_weighted_by_the_power_sum(logits):
    powers = (special.softmax(logits[1], axis=-1) ** (1 / 3)).sum(-1)
    actual = losses.wttm_loss(*_jax(*logits), temperature=3.0)
    expected = powers * losses.ttm_loss(*_jax(*logits), temperature=3.0)
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_wttm_loss_weighs_doubt_between_1_and_its_bound():
    student_logits = jnp.array([1.0, 0.0, 0.0, -1.0])
    for teacher_logits, weight in ((200 * jnp.eye(4)[2], 1.0), (jnp.zeros(4), 2.0)):
        logits = (student_logits, teacher_logits)
        actual = losses.wttm_loss(*logits, temperature=2.0)
        expected = weight * losses.ttm_loss(*logits, temperature=2.0)
        np.testing.assert_allclose(actual, expected, rtol=1e-6)


def test_cwtm_loss(logits):
    confidence = special.softmax(logits[1], axis=-1).max(-1)
    hard = -special.log_softmax(logits[0], axis=-1)[np.arange(5), LABELS]
    expected = 5 * confidence / confidence.sum() * hard
    actual = losses.cwtm_loss(*_jax(*logits), jnp.asarray(LABELS))
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_cwtm_loss_of_an_equally_sure_teacher_is_cross_entropy(logits):
    (student_logits, _) = _jax(*logits)
    labels = jnp.asarray(LABELS)
    teacher_logits = 4 * jax.nn.one_hot(labels[::-1], 7)
    np.testing.assert_allclose(
        losses.cwtm_loss(student_logits, teacher_logits, labels),
        losses.cross_entropy(student_logits, labels),
        rtol=1e-6,
    )
