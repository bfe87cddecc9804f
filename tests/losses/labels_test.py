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


def _one_hot(labels):
    return np.eye(7)[labels]


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_cross_entropy_is_that_with_smoothed_labels(logits, smoothing):
    target = (1 - smoothing) * _one_hot(LABELS) + smoothing / 7
    expected = -(target * special.log_softmax(logits[0], axis=-1)).sum(-1)
    (student_logits, _) = _jax(*logits)
    actual = losses.cross_entropy(
        student_logits, jnp.asarray(LABELS), label_smoothing=smoothing
    )
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_cross_entropy_has_the_gradient_of_the_probabilities(logits):
    (student_logits, _) = _jax(*logits)
    grad = jax.grad(lambda x: losses.cross_entropy(x, jnp.asarray(LABELS)).sum())(
        student_logits
    )
    expected = special.softmax(logits[0], axis=-1) - _one_hot(LABELS)
    np.testing.assert_allclose(grad, expected, rtol=1e-4, atol=1e-6)


def test_no_smoothing_ignores_impossible_classes_that_are_no_label(logits):
    (student_logits, _) = _jax(*logits)
    student_logits = student_logits.at[:, 2].set(-jnp.inf)
    values = jax.jit(losses.cross_entropy)(
        student_logits, jnp.asarray(LABELS), label_smoothing=jnp.float32(0)
    )
    kept = np.delete(logits[0], 2, axis=-1)
    labels = LABELS - (LABELS > 2)
    expected = -special.log_softmax(kept, axis=-1)[np.arange(5), labels]
    np.testing.assert_allclose(values, expected, rtol=1e-5)


def test_soft_cross_entropy_is_that_with_probabilities(logits):
    soft_labels = special.softmax(logits[1], axis=-1)
    expected = -(soft_labels * special.log_softmax(logits[0], axis=-1)).sum(-1)
    actual = losses.soft_cross_entropy(*_jax(logits[0], soft_labels))
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_soft_cross_entropy_of_mixed_labels_is_the_mix_of_cross_entropies(logits):
    (student_logits, _) = _jax(*logits)
    labels, others = jnp.asarray(LABELS), jnp.asarray(LABELS[::-1].copy())
    soft_labels = 0.3 * jax.nn.one_hot(labels, 7) + 0.7 * jax.nn.one_hot(others, 7)
    actual = losses.soft_cross_entropy(student_logits, soft_labels)
    expected = 0.3 * losses.cross_entropy(student_logits, labels)
    expected += 0.7 * losses.cross_entropy(student_logits, others)
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_a_class_of_no_mass_may_be_impossible(logits):
    soft_labels = jnp.asarray(_one_hot(LABELS), jnp.float32)
    (student_logits, _) = _jax(*logits)
    student_logits = student_logits.at[:, 2].set(-jnp.inf)
    values = losses.soft_cross_entropy(student_logits, soft_labels)
    np.testing.assert_allclose(
        values, losses.cross_entropy(student_logits, jnp.asarray(LABELS)), rtol=1e-6
    )


def test_hard_target_loss_is_cross_entropy_with_the_prediction(logits):
    predicted = logits[1].argmax(-1)
    target = 0.9 * _one_hot(predicted) + 0.1 / 7
    expected = -(target * special.log_softmax(logits[0], axis=-1)).sum(-1)
    actual = losses.hard_target_loss(*_jax(*logits), label_smoothing=0.1)
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_hard_target_loss_takes_nothing_but_the_decision_from_the_teacher(logits):
    student_logits, teacher_logits = _jax(*logits)
    grad = jax.grad(lambda x: losses.hard_target_loss(student_logits, x).sum())(
        teacher_logits
    )
    np.testing.assert_array_equal(grad, 0)
    np.testing.assert_array_equal(
        losses.hard_target_loss(student_logits, 100 * teacher_logits),
        losses.hard_target_loss(student_logits, teacher_logits),
    )


@pytest.mark.parametrize("form", ["paper", "author_code"])
def test_virtual_teacher_loss_is_the_divergence_from_it(logits, form):
    probs = np.where(_one_hot(LABELS) == 1, 0.9, 0.1 / 6)
    if form == "paper":
        teacher = probs ** (1 / 20)
        teacher /= teacher.sum(-1, keepdims=True)
        student = special.softmax(logits[0] / 20, axis=-1)
    else:
        teacher = special.softmax(probs / 20, axis=-1)
        student = special.softmax(logits[0], axis=-1)
    expected = special.rel_entr(teacher, student).sum(-1)
    (student_logits, _) = _jax(*logits)
    actual = losses.virtual_teacher_loss(
        student_logits,
        jnp.asarray(LABELS),
        correct_prob=0.9,
        temperature=20.0,
        form=form,
    )
    np.testing.assert_allclose(actual, expected, rtol=1e-4)


def test_a_virtual_teacher_without_doubt_is_the_label(logits):
    (student_logits, _) = _jax(*logits)
    labels = jnp.asarray(LABELS)
    sure = losses.virtual_teacher_loss(
        student_logits, labels, correct_prob=1.0, temperature=4.0
    )
    expected = losses.cross_entropy(student_logits / 4, labels)
    np.testing.assert_allclose(sure, expected, rtol=1e-5)


@pytest.mark.usefixtures("as_in_production")
def test_an_unknown_form_is_refused():
    with pytest.raises(ValueError, match=r"Expected form to be one of .*'paper'"):
        losses.virtual_teacher_loss(jnp.zeros((2, 3)), jnp.array([0, 1]), form="papr")


@pytest.mark.usefixtures("as_in_production")
def test_one_class_is_too_few_to_tell_from_others():
    with pytest.raises(ValueError, match=r"at least 2 classes, got \(2, 1\)"):
        losses.virtual_teacher_loss(jnp.zeros((2, 1)), jnp.array([0, 0]))
