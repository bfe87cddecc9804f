import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import test_util
from scipy import special

from kdjax import losses

LABELS = np.array([3, 0, 6, 5, 3])
WEIGHTS = np.array([1.0, 2.0, 0.5])
WHERE = jnp.array([False, True, True, True, True])


@pytest.fixture
def student():
    return 3 * np.random.default_rng(0).normal(size=(5, 7))


@pytest.fixture
def teachers():
    return 3 * np.random.default_rng(1).normal(size=(3, 5, 7))


def _jax(*arrays):
    return (jnp.asarray(x, jnp.float32) for x in arrays)


def test_average_logits_is_the_weighted_mean(teachers):
    expected = np.average(teachers, axis=0, weights=WEIGHTS)
    actual = losses.average_logits(*_jax(teachers), weights=next(_jax(WEIGHTS)))
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


def test_average_probs_is_that_of_the_softened_probabilities(teachers):
    probs = special.softmax(teachers / 3, axis=-1)
    expected = np.average(probs, axis=0, weights=WEIGHTS)
    ensemble = losses.average_probs(
        *_jax(teachers), temperature=3.0, weights=next(_jax(WEIGHTS))
    )
    np.testing.assert_allclose(jax.nn.softmax(ensemble / 3), expected, rtol=1e-5)


def test_the_three_averages_of_one_teacher_are_that_teacher(student, teachers):
    student_logits, teacher_logits = _jax(student, teachers[0])
    stack = jnp.stack([teacher_logits] * 3)
    expected = losses.soft_target_loss(student_logits, teacher_logits, temperature=3.0)
    for actual in (
        losses.soft_target_loss(
            student_logits, losses.average_logits(stack), temperature=3.0
        ),
        losses.soft_target_loss(
            student_logits,
            losses.average_probs(stack, temperature=3.0),
            temperature=3.0,
        ),
        losses.multi_teacher_loss(student_logits, stack, temperature=3.0),
        losses.mutual_loss(student_logits, stack, temperature=3.0),
    ):
        np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_multi_teacher_loss_is_the_weighted_mean_of_losses(student, teachers):
    divergences = special.rel_entr(
        special.softmax(teachers / 3, axis=-1), special.softmax(student / 3, axis=-1)
    ).sum(-1)
    expected = 9 * np.average(divergences, axis=0, weights=WEIGHTS)
    student_logits, teacher_logits, weights = _jax(student, teachers, WEIGHTS)
    actual = losses.multi_teacher_loss(
        student_logits, teacher_logits, temperature=3.0, weights=weights
    )
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_mutual_loss_is_the_mean_over_the_peers(student, teachers):
    divergences = special.rel_entr(
        special.softmax(teachers, axis=-1), special.softmax(student, axis=-1)
    ).sum(-1)
    student_logits, peer_logits = _jax(student, teachers)
    actual = losses.mutual_loss(student_logits, peer_logits)
    np.testing.assert_allclose(actual, divergences.mean(0), rtol=1e-5)


def test_the_mean_of_losses_has_the_gradient_of_the_mean_of_probabilities(
    student, teachers
):
    student_logits, teacher_logits = _jax(student, teachers)
    ensemble = losses.average_probs(teacher_logits, temperature=3.0)

    def of_losses(x):
        return losses.multi_teacher_loss(x, teacher_logits, temperature=3.0).sum()

    def of_probs(x):
        return losses.soft_target_loss(x, ensemble, temperature=3.0).sum()

    assert of_losses(student_logits) > of_probs(student_logits) + 1
    np.testing.assert_allclose(
        jax.grad(of_losses)(student_logits),
        jax.grad(of_probs)(student_logits),
        rtol=1e-4,
        atol=1e-5,
    )


def test_weights_of_each_example_are_used_there(student, teachers):
    weights = np.random.default_rng(2).uniform(size=(3, 5))
    expected = np.sum(weights[..., None] * teachers, 0) / weights.sum(0)[:, None]
    teacher_logits, weights = _jax(teachers, weights)
    actual = losses.average_logits(teacher_logits, weights=weights)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


def test_a_teacher_of_weight_0_is_not_heard(student, teachers):
    student_logits, teacher_logits = _jax(student, teachers)
    weights = jnp.array([1.0, 0.0, 2.0])
    others, kept = teacher_logits[jnp.array([0, 2])], weights[jnp.array([0, 2])]
    excluded = teacher_logits.at[1, :, 3].set(-jnp.inf)
    for average in (losses.average_logits, losses.average_probs):
        np.testing.assert_allclose(
            average(excluded, weights=weights),
            average(others, weights=kept),
            rtol=1e-5,
            atol=1e-6,
        )
    np.testing.assert_allclose(
        losses.multi_teacher_loss(student_logits, teacher_logits, weights=weights),
        losses.multi_teacher_loss(student_logits, others, weights=kept),
        rtol=1e-5,
    )


def test_only_average_probs_keeps_a_class_that_one_teacher_excludes(teachers):
    (teacher_logits,) = _jax(teachers)
    excluded = teacher_logits.at[1, :, 3].set(-jnp.inf)
    assert np.all(np.isneginf(losses.average_logits(excluded)[:, 3]))
    assert np.all(np.isfinite(losses.average_probs(excluded)[:, 3]))
    by_all = teacher_logits.at[:, :, 3].set(-jnp.inf)
    grad = jax.grad(
        lambda x: losses.soft_target_loss(
            jnp.zeros((5, 7)), losses.average_probs(x)
        ).sum()
    )(by_all)
    assert np.all(np.isneginf(losses.average_probs(by_all)[:, 3]))
    assert np.all(np.isfinite(grad))


def test_confidence_weights(teachers):
    hard = -special.log_softmax(teachers, axis=-1)[:, np.arange(5), LABELS]
    expected = (1 - special.softmax(hard, axis=0)) / 2
    actual = losses.confidence_weights(*_jax(teachers), jnp.asarray(LABELS))
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(jnp.sum(actual, axis=0), 1, rtol=1e-6)


def test_confidence_weights_favour_who_knows_the_label(teachers):
    (teacher_logits,) = _jax(teachers)
    labels = jnp.asarray(LABELS)
    knowing = teacher_logits.at[1].add(20 * jax.nn.one_hot(labels, 7))
    weights = losses.confidence_weights(knowing, labels)
    assert np.all(np.argmax(weights, axis=0) == 1)


@pytest.mark.parametrize("average", [losses.average_logits, losses.average_probs])
def test_averages_mask_value_and_gradient(teachers, average):
    (teacher_logits,) = _jax(teachers)
    poisoned = teacher_logits.at[:, 0].set(jnp.nan)
    weights = jnp.ones((3, 5)).at[:, 0].set(jnp.nan)

    def total(x):
        values = average(x, weights=weights, where=WHERE)
        return jnp.sum(values**2), values

    grad, values = jax.grad(total, has_aux=True)(poisoned)
    np.testing.assert_array_equal(grad[:, 0], 0)
    assert np.all(np.isfinite(values))
    np.testing.assert_allclose(values[0], values[0, 0], rtol=1e-6)
    np.testing.assert_allclose(values[1:], average(teacher_logits[:, 1:]), rtol=1e-5)
    assert np.all(np.isfinite(grad))


def test_confidence_weights_mask_value_and_gradient(teachers):
    (teacher_logits,) = _jax(teachers)
    poisoned = teacher_logits.at[:, 0].set(jnp.nan)
    labels = jnp.asarray(LABELS).at[0].set(-100)

    def total(x):
        values = losses.confidence_weights(x, labels, where=WHERE)
        return jnp.sum(values**2), values

    grad, values = jax.grad(total, has_aux=True)(poisoned)
    np.testing.assert_allclose(values[:, 0], 1 / 3, rtol=1e-6)
    np.testing.assert_array_equal(grad[:, 0], 0)
    assert np.all(np.isfinite(grad))


@pytest.mark.parametrize("average", [losses.average_logits, losses.average_probs])
def test_averages_match_finite_differences(teachers, average):
    with jax.enable_x64(True):
        inputs = (jnp.asarray(teachers),)
        test_util.check_grads(jax.jit(average), inputs, 1, modes=("rev",))


def test_averages_compute_in_float32_whatever_comes_in(teachers):
    half = jnp.asarray(teachers, jnp.bfloat16)
    for average in (losses.average_logits, losses.average_probs):
        assert average(half).dtype == jnp.float32
        np.testing.assert_array_equal(average(half), average(half.astype(jnp.float32)))


@pytest.mark.usefixtures("as_in_production")
def test_misuse_says_what_was_expected(teachers):
    (teacher_logits,) = _jax(teachers)
    labels = jnp.asarray(LABELS)
    with pytest.raises(ValueError, match=r"weights \(3,\) or \(3, 5\).*\(2,\)"):
        losses.average_logits(teacher_logits, weights=jnp.ones(2))
    with pytest.raises(ValueError, match=r"at least 2 teachers, got \(1, 5, 7\)"):
        losses.confidence_weights(teacher_logits[:1], labels)
    with pytest.raises(ValueError, match=r"student_logits \(5, 6\)"):
        losses.multi_teacher_loss(jnp.zeros((5, 6)), teacher_logits)
