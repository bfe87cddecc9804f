"""The losses of sequences of tokens against loops over the papers' equations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from kdjax import losses


@pytest.fixture
def logits():
    """Student's and teacher's, `[5, 7]`, float64, as NumPy arrays."""
    return 2 * np.random.default_rng(0).normal(size=(2, 5, 7))


LABELS = np.array([0, 6, 3, 2, 2])


def _f32(*arrays):
    return [jnp.asarray(x, jnp.float32) for x in arrays]


@pytest.mark.parametrize("share", [0.0, 0.2, 1.0])
def test_minillm_step_loss(logits, share):
    expected = []
    for student, teacher, label in zip(
        *special.softmax(logits, -1), LABELS, strict=True
    ):
        weight = student[label] / (
            share * teacher[label] + (1 - share) * student[label]
        )
        divergence = sum(
            s * np.log(s / t) for s, t in zip(student, teacher, strict=True)
        )
        expected.append(weight * divergence)
    actual = losses.minillm_step_loss(
        *_f32(*logits), jnp.asarray(LABELS), teacher_share=share
    )
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_minillm_step_loss_does_not_differentiate_its_weight(logits):
    student, teacher = _f32(*logits)
    labels = jnp.asarray(LABELS)

    def grads(fn):
        grad_fn = jax.grad(lambda *x: jnp.sum(fn(*x)), argnums=(0, 1))
        return jax.jit(grad_fn)(student, teacher)

    reverse = losses.reverse_kl(student, teacher)
    weight = losses.minillm_step_loss(student, teacher, labels) / reverse
    actual = grads(lambda s, t: losses.minillm_step_loss(s, t, labels))
    expected = grads(lambda s, t: weight * losses.reverse_kl(s, t))
    for x, y in zip(actual, expected, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6)
    share = jax.grad(
        lambda a: jnp.sum(
            losses.minillm_step_loss(student, teacher, labels, teacher_share=a)
        )
    )
    assert share(0.2) == 0


def test_minillm_step_loss_of_the_students_own_text_is_the_reverse_divergence(logits):
    student, teacher = _f32(*logits)

    def of_own_text(student):
        return losses.minillm_step_loss(
            student, teacher, jnp.asarray(LABELS), teacher_share=0.0
        )

    def reverse(student):
        return losses.reverse_kl(student, teacher)

    np.testing.assert_allclose(of_own_text(student), reverse(student), rtol=1e-6)
    for x, y in zip(
        *(_value_and_grad(fn, student) for fn in (of_own_text, reverse)), strict=True
    ):
        np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-7)


def _value_and_grad(fn, x):
    """Of a sum, as one compiled program."""
    return jax.jit(jax.value_and_grad(lambda x: jnp.sum(fn(x))))(x)


@pytest.mark.parametrize("sizes", [(7, 4), (4, 7), (5, 5)])
def test_uld_loss(logits, sizes):
    student, teacher = (x[:, :n] for x, n in zip(logits, sizes, strict=True))
    expected = []
    for s, t in zip(
        special.softmax(student / 2, -1), special.softmax(teacher, -1), strict=True
    ):
        s, t = sorted(s, reverse=True), sorted(t, reverse=True)
        s, t = (x + [0.0] * (max(sizes) - len(x)) for x in (s, t))
        expected.append(sum(abs(a - b) for a, b in zip(s, t, strict=True)))
    actual = losses.uld_loss(*_f32(student, teacher), student_temperature=2.0)
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_uld_loss_sees_no_names_of_classes(logits):
    student, teacher = _f32(*logits)
    order = jnp.array([3, 0, 6, 2, 5, 1, 4])
    expected = losses.uld_loss(student, teacher)
    for renamed in ((student[:, order], teacher), (student, teacher[:, order])):
        np.testing.assert_allclose(losses.uld_loss(*renamed), expected, rtol=1e-6)
    np.testing.assert_allclose(
        losses.uld_loss(student[:, order], student), 0, atol=1e-6
    )


def test_uld_loss_is_at_most_2_and_a_metric_of_spreads():
    certain, even = jnp.array([60.0] + [0.0] * 999), jnp.zeros(1000)
    half = jnp.array([60.0, 60.0] + [0.0] * 998)
    far = losses.uld_loss(certain, even)
    np.testing.assert_allclose(far, 2 - 2 / 1000, rtol=1e-6)
    assert far <= losses.uld_loss(certain, half) + losses.uld_loss(half, even)
    # More classes that are impossible do not matter.
    padded = jnp.concatenate([even, jnp.full(24, -jnp.inf)])
    np.testing.assert_allclose(losses.uld_loss(certain, padded), far, rtol=1e-6)


def test_uld_loss_is_zero_at_the_teacher_in_value_and_gradient(logits):
    (student,) = _f32(logits[0])

    def at_itself(x):
        return losses.uld_loss(x, jax.lax.stop_gradient(x))

    value, grad = _value_and_grad(at_itself, student)
    np.testing.assert_array_equal(value, 0)
    np.testing.assert_array_equal(grad, 0)


def _corrected(teacher, label, margin):
    top = int(np.argmax(teacher))
    if top != label:
        share = (teacher[top] - teacher[label] + margin) / (
            1 + teacher[top] - teacher[label] + 1e-7
        )
    else:
        goal = 1.0 if teacher[label] > 1 - margin else teacher[label] + margin
        share = (goal - teacher[top]) / (1 - teacher[top] + 1e-7)
    target = (1 - share) * teacher
    target[label] += share
    return target


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_mft_loss(logits, temperature):
    labels = LABELS.copy()
    labels[:2] = np.argmax(logits[1, :2], axis=-1)  # Some the teacher gets right.
    students, teachers = special.softmax(logits / temperature, axis=-1)
    expected = []
    for student, teacher, label in zip(students, teachers, labels, strict=True):
        target = _corrected(teacher, label, 0.2)
        expected.append(temperature**2 * special.rel_entr(target, student).sum())
    actual = losses.mft_loss(
        *_f32(*logits), jnp.asarray(labels), temperature=temperature
    )
    np.testing.assert_allclose(actual, expected, rtol=2e-5)


def test_mft_loss_has_a_target_that_wins_by_the_margin():
    """The student at the corrected target, by hand: 0.8, 0.2 to 0.4, 0.6."""
    teacher = jnp.log(jnp.array([[0.8, 0.2], [0.3, 0.7], [0.05, 0.95]]))
    student = jnp.log(jnp.array([[0.4, 0.6], [0.1, 0.9], [1e-6, 1.0]]))
    loss = losses.mft_loss(student, teacher, jnp.array([1, 1, 1]))
    np.testing.assert_allclose(loss, 0, atol=2e-6)


def test_mft_loss_without_a_margin_corrects_only_wrong_teachers(logits):
    student, teacher = _f32(*logits)
    right = jnp.argmax(teacher, axis=-1)
    np.testing.assert_allclose(
        losses.mft_loss(student, teacher, right, margin=0.0),
        losses.forward_kl(student, teacher),
        rtol=1e-5,
    )
    # With the least change, the label draws level with the teacher's choice.
    level = jnp.log(jnp.array([0.4, 0.4, 0.2]))
    wrong = jnp.log(jnp.array([0.6, 0.1, 0.3]))
    loss = losses.mft_loss(level, wrong, jnp.array(1), margin=0.0)
    np.testing.assert_allclose(loss, 0, atol=1e-6)


def test_mft_loss_does_not_differentiate_its_target(logits):
    student, teacher = _f32(*logits)

    def total(teacher, margin):
        return jnp.sum(
            losses.mft_loss(student, teacher, jnp.asarray(LABELS), margin=margin)
        )

    for grad in jax.jit(jax.grad(total, argnums=(0, 1)))(teacher, 0.2):
        np.testing.assert_array_equal(grad, 0)


def test_certain_teachers_and_impossible_classes_are_finite():
    student = jnp.array([[0.0, 1.0, -jnp.inf], [0.0, 1.0, 2.0]])
    teacher = jnp.array([[200.0, 0.0, -jnp.inf], [0.0, 0.0, 200.0]])
    labels = jnp.array([1, 2])
    for loss_fn in (
        lambda s: losses.mft_loss(s, teacher, labels),
        lambda s: losses.minillm_step_loss(s, teacher, labels),
        lambda s: losses.uld_loss(s, teacher),
    ):
        for x in _value_and_grad(loss_fn, student):
            assert np.all(np.isfinite(x))


@pytest.mark.usefixtures("as_in_production")
def test_answers_of_different_lengths_are_refused():
    with pytest.raises(ValueError, match="shorter one"):
        losses.uld_loss(jnp.zeros((4, 7)), jnp.zeros((5, 9)))
