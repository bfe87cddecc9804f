import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import test_util
from scipy import special

from kdjax import losses


@pytest.fixture
def logits():
    """Student's and teacher's, `[5, 7]`, float64, as NumPy arrays."""
    return 3 * np.random.default_rng(0).normal(size=(2, 5, 7))


def _jax(*arrays):
    return (jnp.asarray(x, jnp.float32) for x in arrays)


def _poison(x):
    return x.at[0].set(jnp.nan)


WHERE = jnp.array([False, True, True, True, True])


def test_standardize_logits_is_the_unbiased_z_score(logits):
    expected = (logits[0] - logits[0].mean(-1, keepdims=True)) / logits[0].std(
        -1, ddof=1, keepdims=True
    )
    actual = losses.standardize_logits(next(_jax(*logits)))
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


def test_standardize_logits_makes_losses_blind_to_range_and_offset(logits):
    student_logits, teacher_logits = _jax(*logits)

    def loss(student_logits):
        return losses.soft_target_loss(
            losses.standardize_logits(student_logits),
            losses.standardize_logits(teacher_logits),
            temperature=2.0,
        )

    np.testing.assert_allclose(
        loss(0.2 * student_logits + 3), loss(student_logits), rtol=1e-4
    )


def test_standardize_logits_differentiates_mean_and_deviation(logits):
    with jax.enable_x64(True):
        test_util.check_grads(
            jax.jit(losses.standardize_logits),
            (jnp.asarray(logits[0]),),
            1,
            modes=("rev",),
        )


def test_equal_logits_standardize_to_zeros_without_a_gradient():
    def total(x):
        return jnp.sum(jnp.arange(7.0) * losses.standardize_logits(x))

    value, grad = jax.value_and_grad(total)(jnp.full(7, 3.0))
    assert value == 0
    assert np.all(np.isfinite(grad))


def test_standardize_logits_leaves_impossible_classes_out(logits):
    (x, _) = _jax(*logits)
    actual = losses.standardize_logits(x.at[:, 2].set(-jnp.inf))
    assert np.all(np.isneginf(actual[:, 2]))
    np.testing.assert_allclose(
        np.delete(actual, 2, axis=-1),
        losses.standardize_logits(jnp.delete(x, 2, axis=-1)),
        rtol=1e-5,
    )


def test_standardize_logits_masks_value_and_gradient(logits):
    (x, _) = _jax(*logits)
    poisoned = _poison(x)

    def total(x):
        return jnp.sum(losses.standardize_logits(x, where=WHERE) ** 3)

    values = losses.standardize_logits(poisoned, where=WHERE)
    np.testing.assert_array_equal(values[0], 0)
    np.testing.assert_array_equal(values[1:], losses.standardize_logits(x[1:]))
    grad = jax.grad(total)(poisoned)
    np.testing.assert_array_equal(grad[0], 0)
    assert np.all(np.isfinite(grad))


def test_reverse_gradient_is_the_identity_with_a_turned_gradient():
    x = jnp.arange(3.0)
    np.testing.assert_array_equal(losses.reverse_gradient(x, scale=0.3), x)

    @jax.jit
    def grad(scale):
        def total(x):
            return jnp.sum(losses.reverse_gradient(x, scale=scale) ** 2)

        return jax.grad(total)(x)

    np.testing.assert_allclose(grad(0.3), -0.3 * 2 * x, rtol=1e-6)
    np.testing.assert_array_equal(grad(0.0), 0)


def test_reverse_gradient_ascends_while_the_student_descends():
    """Both signs at once, through the temperature and its square in front."""
    student_logits, teacher_logits = 3 * jax.random.normal(jax.random.key(0), (2, 5, 7))

    def loss(theta, reverse):
        theta = losses.reverse_gradient(theta) if reverse else theta
        temperature = 1 + 20 * jax.nn.sigmoid(theta)
        values = losses.soft_target_loss(
            student_logits, teacher_logits, temperature=temperature
        )
        return values.sum()

    ascent, descent = (jax.grad(loss)(0.1, reverse) for reverse in (True, False))
    assert ascent == -descent != 0


def test_taid_target_goes_from_the_student_to_the_teacher(logits):
    student_logits, teacher_logits = _jax(*logits)
    for interpolation in (0.0, 0.3, 1.0):
        target = losses.taid_target(
            student_logits, teacher_logits, interpolation=interpolation
        )
        expected = (1 - interpolation) * logits[0] + interpolation * logits[1]
        np.testing.assert_allclose(target, expected, rtol=1e-5, atol=1e-6)


def test_taid_loss(logits):
    target = special.softmax(0.7 * logits[0] + 0.3 * logits[1], axis=-1)
    expected = -(target * special.log_softmax(logits[0], axis=-1)).sum(-1)
    actual = losses.taid_loss(*_jax(*logits), interpolation=0.3)
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_taid_does_not_differentiate_the_students_part_of_the_target(logits):
    student, target = special.softmax(
        [logits[0], 0.7 * logits[0] + 0.3 * logits[1]], axis=-1
    )
    student_logits, teacher_logits = _jax(*logits)

    def loss(student_logits, interpolation):
        return losses.taid_loss(
            student_logits, teacher_logits, interpolation=interpolation
        ).sum()

    grad = jax.grad(loss)(student_logits, 0.3)
    np.testing.assert_allclose(grad, student - target, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(jax.grad(loss)(student_logits, 0.0), 0, atol=1e-6)


def test_taid_target_excludes_what_a_side_with_a_share_excludes(logits):
    student_logits, teacher_logits = _jax(*logits)
    teacher_logits = teacher_logits.at[:, 2].set(-jnp.inf)
    for interpolation, excluded in ((0.0, False), (0.5, True), (1.0, True)):
        target = jax.jit(losses.taid_target)(
            student_logits, teacher_logits, interpolation=jnp.float32(interpolation)
        )
        assert np.all(np.isneginf(target[:, 2]) == excluded)
        assert not np.any(np.isnan(target))


def test_taid_target_at_the_teacher_is_possible_where_only_the_student_is_not(logits):
    student_logits, teacher_logits = _jax(*logits)
    student_logits = student_logits.at[:, 2].set(-jnp.inf)
    for interpolation, excluded in ((0.0, True), (0.5, True), (1.0, False)):
        target = losses.taid_target(
            student_logits, teacher_logits, interpolation=interpolation
        )
        assert np.all(np.isneginf(target[:, 2]) == excluded)


def test_taid_target_has_no_gradient_of_the_student(logits):
    student_logits, teacher_logits = _jax(*logits)

    def total(student_logits):
        return losses.taid_target(
            student_logits, teacher_logits, interpolation=0.3
        ).sum()

    np.testing.assert_array_equal(jax.grad(total)(student_logits), 0)


def test_taid_target_masks_value_and_gradient(logits):
    student_logits, teacher_logits = (_poison(x) for x in _jax(*logits))

    def total(teacher_logits):
        target = losses.taid_target(
            student_logits, teacher_logits, interpolation=0.3, where=WHERE
        )
        return jnp.sum(target**2), target

    grad, target = jax.grad(total, has_aux=True)(teacher_logits)
    np.testing.assert_array_equal(target[0], 0)
    np.testing.assert_array_equal(grad[0], 0)
    assert np.all(np.isfinite(grad))


def test_permute_non_argmax_keeps_the_prediction_and_the_multiset(logits):
    (_, teacher_logits) = _jax(*logits)
    permuted = losses.permute_non_argmax(teacher_logits, jax.random.key(0))
    np.testing.assert_array_equal(
        np.argmax(permuted, axis=-1), np.argmax(teacher_logits, axis=-1)
    )
    np.testing.assert_array_equal(np.sort(permuted), np.sort(teacher_logits))
    assert np.all(np.sum(permuted != teacher_logits, axis=-1) > 0)


def test_permute_non_argmax_draws_every_permutation_equally_often():
    teacher_logits = jnp.broadcast_to(jnp.array([1.0, 9.0, 2.0, 3.0]), (6000, 4))
    permuted = losses.permute_non_argmax(teacher_logits, jax.random.key(0))
    drawn, counts = np.unique(permuted, axis=0, return_counts=True)
    expected = {(a, 9.0, b, c) for a, b, c in itertools.permutations((1.0, 2.0, 3.0))}
    assert {tuple(row) for row in drawn.tolist()} == expected
    # 1000 each, with a standard deviation of 29.
    assert np.all(np.abs(counts - 1000) < 150)


def test_permute_non_argmax_takes_any_batch_shape():
    teacher_logits = jax.random.normal(jax.random.key(0), (2, 3, 7))
    permuted = losses.permute_non_argmax(teacher_logits, jax.random.key(1))
    assert permuted.shape == (2, 3, 7)
    np.testing.assert_array_equal(np.sort(permuted), np.sort(teacher_logits))
