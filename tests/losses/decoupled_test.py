import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

from kdjax import losses

LABELS = np.array([3, 0, 6, 5, 3])


@pytest.fixture
def logits():
    """Student's and teacher's, `[5, 7]`, float64, as NumPy arrays."""
    return 3 * np.random.default_rng(0).normal(size=(2, 5, 7))


def _jax(*arrays):
    return (jnp.asarray(x, jnp.float32) for x in arrays)


def _kl(p, q):
    return special.rel_entr(p, q).sum(-1)


def _decouple(logits, label, temperature):
    """The probability of the label, and those of the others among themselves."""
    probs = special.softmax(logits / temperature)
    others = np.delete(probs, label)
    return np.array([probs[label], others.sum()]), others / others.sum()


def test_dkd_loss(logits):
    expected = []
    for student, teacher, label in zip(*logits, LABELS, strict=True):
        binary_s, others_s = _decouple(student, label, 4.0)
        binary_t, others_t = _decouple(teacher, label, 4.0)
        value = 0.5 * _kl(binary_t, binary_s) + 6.0 * _kl(others_t, others_s)
        expected.append(16 * value)
    actual = losses.dkd_loss(
        *_jax(*logits),
        jnp.asarray(LABELS),
        target_weight=0.5,
        non_target_weight=6.0,
        temperature=4.0,
    )
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_dkd_loss_recovers_hintons_with_its_weight_of_the_others(logits):
    student_logits, teacher_logits = _jax(*logits)
    labels = jnp.asarray(LABELS)
    certainty = jax.nn.softmax(teacher_logits / 4)[jnp.arange(5), labels]
    decoupled = jax.vmap(
        lambda s, t, y, w: losses.dkd_loss(
            s, t, y, target_weight=1.0, non_target_weight=w, temperature=4.0
        )
    )(student_logits, teacher_logits, labels, 1 - certainty)
    expected = losses.soft_target_loss(student_logits, teacher_logits, temperature=4.0)
    np.testing.assert_allclose(decoupled, expected, rtol=1e-5)


def test_dkd_loss_survives_the_gap_that_breaks_the_authors_code():
    student_logits = jnp.array([[0.0, 200.0, 0.0]])
    teacher_logits = jnp.array([[200.0, 0.0, 0.0]])

    def loss(student_logits):
        return losses.dkd_loss(
            student_logits,
            teacher_logits,
            jnp.array([0]),
            non_target_weight=1.0,
            temperature=1.0,
        ).sum()

    value, grad = jax.value_and_grad(loss)(student_logits)
    # The label costs 200 nats; the others, evenly (0, 0) against (200, 0), half that.
    np.testing.assert_allclose(value, 300 - np.log(2), rtol=1e-6)
    np.testing.assert_allclose(grad, [[-1.0, 1.5, -0.5]], atol=1e-6)


def test_nkd_loss(logits):
    expected = []
    for student, teacher, label in zip(*logits, LABELS, strict=True):
        target = special.softmax(teacher)[label] * special.log_softmax(student)[label]
        _, others_s = _decouple(student, label, 2.0)
        _, others_t = _decouple(teacher, label, 2.0)
        expected.append(-target - 1.5 * 4 * (others_t * np.log(others_s)).sum())
    actual = losses.nkd_loss(
        *_jax(*logits), jnp.asarray(LABELS), non_target_weight=1.5, temperature=2.0
    )
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_nkd_loss_differs_from_dkd_loss_by_the_entropy_of_the_others(logits):
    """Its second term is DKD's plus a constant: the same gradient."""
    labels = jnp.asarray(LABELS)
    student_logits, teacher_logits = _jax(*logits)

    def grad(loss_fn, **weights):
        def total(x):
            return loss_fn(x, teacher_logits, labels, temperature=2.0, **weights).sum()

        return jax.grad(total)(student_logits)

    both, target = (
        grad(losses.nkd_loss, non_target_weight=weight) for weight in (1.0, 0.0)
    )
    expected = grad(losses.dkd_loss, target_weight=0.0, non_target_weight=1.0)
    np.testing.assert_allclose(both - target, expected, rtol=1e-4, atol=1e-5)


def _uskd(student, weak, form):
    """Soft labels of the definition: weights of the label, `[5]`, of all, `[5, 7]`."""
    rows = np.arange(5)
    strong_probs = special.softmax(student, axis=-1)
    squares = strong_probs[rows, LABELS] ** 2
    soft_target = squares + 1 - squares.mean()
    weak_probs = special.softmax(weak, axis=-1)
    ranked = strong_probs if form == "paper" else np.log(strong_probs)
    score = sum(x / (1 - x[rows, LABELS] + 1e-6)[:, None] for x in (weak_probs, ranked))
    zipf = 1 / stats.rankdata(-score, axis=-1)
    zipf[rows, LABELS] = 0
    return soft_target, zipf / zipf.sum(-1, keepdims=True)


@pytest.mark.parametrize("form", ["paper", "author_code"])
def test_uskd_loss(logits, form):
    student, weak = logits
    soft_target, soft_others = _uskd(student, weak, form)
    log_probs = special.log_softmax(student, axis=-1)
    smoothed = 0.9 * np.eye(7)[LABELS] + 0.1 / 7
    expected = -soft_target * log_probs[np.arange(5), LABELS]
    for i, label in enumerate(LABELS):
        _, others = _decouple(student[i], label, 1.0)
        expected[i] -= 0.1 * (np.delete(soft_others[i], label) * np.log(others)).sum()
    expected -= 0.005 * (smoothed * special.log_softmax(weak, axis=-1)).sum(-1)
    actual = losses.uskd_loss(*_jax(*logits), jnp.asarray(LABELS), form=form)
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_uskd_loss_does_not_differentiate_its_soft_labels(logits):
    soft_target, soft_others = _jax(*_uskd(*logits, "paper"))
    student_logits, weak_logits = _jax(*logits)
    labels = jnp.asarray(LABELS)

    def constant(student_logits):
        is_label = jax.nn.one_hot(labels, 7, dtype=bool)
        others = jax.nn.log_softmax(jnp.where(is_label, -1e4, student_logits))
        loss = soft_target * losses.cross_entropy(student_logits, labels)
        return jnp.sum(loss - 0.1 * jnp.sum(soft_others * others, axis=-1))

    grad, weak_grad = jax.grad(
        lambda *x: losses.uskd_loss(*x, labels, weak_weight=0.0).sum(), (0, 1)
    )(student_logits, weak_logits)
    expected = jax.grad(constant)(student_logits)
    np.testing.assert_allclose(grad, expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(weak_grad, 0)


def test_the_forms_of_uskd_loss_differ(logits):
    paper, code = (
        losses.uskd_loss(*_jax(*logits), jnp.asarray(LABELS), form=form)
        for form in ("paper", "author_code")
    )
    assert np.any(np.abs(paper - code) > 1e-3)
