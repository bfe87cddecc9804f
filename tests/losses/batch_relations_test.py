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


def _pairs(x, y):
    return zip(x, y, strict=True)


def _pearson(x, y):
    x, y = x - x.mean(), y - y.mean()
    return (x * y).sum() / (np.linalg.norm(x) * np.linalg.norm(y) + 1e-8)


def test_the_mean_of_dist_loss_is_the_papers_value(logits):
    student, teacher = special.softmax(logits / 4, axis=-1)
    inter = 1 - np.mean([_pearson(*rows) for rows in _pairs(student, teacher)])
    columns = _pairs(student.T, teacher.T)
    intra = 1 - np.mean([_pearson(*column) for column in columns])
    actual = losses.dist_loss(
        *_jax(*logits), inter_weight=0.5, intra_weight=2.0, temperature=4.0
    )
    expected = 16 * (0.5 * inter + 2.0 * intra)
    np.testing.assert_allclose(jnp.mean(actual), expected, rtol=1e-5)


def test_dist_loss_of_one_example_is_its_own_relation_between_classes(logits):
    student, teacher = special.softmax(logits, axis=-1)
    expected = [1 - _pearson(*rows) for rows in _pairs(student, teacher)]
    actual = losses.dist_loss(*_jax(*logits), intra_weight=0.0)
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_dist_loss_needs_proportions_only():
    """A student half as far from uniform as its teacher has nothing to learn."""
    key = jax.random.key(0)
    teacher = jax.nn.softmax(jax.random.normal(key, (5, 7)))
    student = 0.5 * teacher + 0.5 / 7
    relations = losses.dist_loss(jnp.log(student), jnp.log(teacher))
    np.testing.assert_allclose(relations, 0, atol=1e-5)
    assert np.all(losses.forward_kl(jnp.log(student), jnp.log(teacher)) > 1e-2)


def test_dist_loss_of_an_undecided_teacher_has_no_gradient():
    """Its rows and columns are constant: correlations of 0, none of them NaN."""
    student_logits = jax.random.normal(jax.random.key(0), (5, 7))
    for arguments in (
        (student_logits, jnp.zeros((5, 7))),
        (jnp.zeros((5, 7)), student_logits),
        (student_logits[:1], student_logits[:1]),
    ):
        values, grad = jax.value_and_grad(lambda *x: losses.dist_loss(*x).sum())(
            *arguments
        )
        assert np.isfinite(values)
        assert np.all(np.isfinite(grad))
    undecided = losses.dist_loss(student_logits, jnp.zeros((5, 7)))
    np.testing.assert_allclose(undecided, 2, rtol=1e-6)


def _mlkd(student_logits, teacher_logits, temperatures, form):
    """The mean over the batch, with loops, by the definition."""
    teacher_probs = special.softmax(teacher_logits, axis=-1)
    confidence, mass = teacher_probs.max(-1), teacher_probs.sum(0)
    examples = 1.0 * (confidence <= np.percentile(confidence, 50))
    classes = 1.0 * (mass <= np.percentile(mass, 50))
    total = 0.0
    for temperature in temperatures:
        p, q = special.softmax(
            np.stack([student_logits, teacher_logits]) / temperature, axis=-1
        )
        instance = temperature**2 * special.rel_entr(q, p).sum(-1)
        of_examples = ((p @ p.T - q @ q.T) ** 2).sum(-1)
        of_classes = ((p.T @ p - q.T @ q) ** 2).sum(-1)
        if form == "paper":
            total += (examples * (instance + of_examples)).mean()
            total += (classes * of_classes).mean()
        else:
            # A mean over the batch already, times the mask, averaged again.
            total += ((instance + of_examples).mean() * examples).mean()
            total += (of_classes.mean() * classes).mean()
    return total


@pytest.mark.parametrize("form", ["paper", "author_code"])
def test_the_mean_of_mlkd_loss_is_the_definitions_value(logits, form):
    temperatures = (2.0, 4.0, 6.0)
    actual = losses.mlkd_loss(*_jax(*logits), temperatures=temperatures, form=form)
    expected = _mlkd(*logits, temperatures, form)
    np.testing.assert_allclose(jnp.mean(actual), expected, rtol=1e-5)


def test_mlkd_loss_leaves_the_sure_half_to_the_classes(logits):
    """All that a confident teacher's example gets is the term common to all."""
    _, teacher_logits = logits
    sure = special.softmax(teacher_logits, axis=-1).max(-1).argmax()
    values = losses.mlkd_loss(*_jax(*logits))
    np.testing.assert_allclose(values[sure], np.min(values), rtol=1e-6)
    assert np.max(values) > 2 * values[sure]


def test_mlkd_loss_over_more_temperatures_is_the_sum(logits):
    pool = [
        losses.mlkd_loss(*_jax(*logits), temperatures=temperatures)
        for temperatures in ((2.0, 5.0), (2.0,), (5.0,))
    ]
    np.testing.assert_allclose(pool[0], pool[1] + pool[2], rtol=1e-5)
