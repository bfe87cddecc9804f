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


def _kl(p, q):
    return special.rel_entr(p, q).sum(-1)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_forward_kl(logits, temperature):
    student, teacher = special.softmax(logits / temperature, axis=-1)
    actual = losses.forward_kl(*_jax(*logits), temperature=temperature)
    np.testing.assert_allclose(actual, _kl(teacher, student), rtol=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_reverse_kl(logits, temperature):
    student, teacher = special.softmax(logits / temperature, axis=-1)
    actual = losses.reverse_kl(*_jax(*logits), temperature=temperature)
    np.testing.assert_allclose(actual, _kl(student, teacher), rtol=1e-5)


def test_symmetric_kl(logits):
    student, teacher = special.softmax(logits / 3, axis=-1)
    expected = 0.1 * _kl(teacher, student) + 0.9 * _kl(student, teacher)
    actual = losses.symmetric_kl(*_jax(*logits), reverse_weight=0.9, temperature=3.0)
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_total_variation(logits):
    student, teacher = special.softmax(logits / 3, axis=-1)
    expected = np.maximum(student - teacher, 0).sum(-1)
    actual = losses.total_variation(*_jax(*logits), temperature=3.0)
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


@pytest.mark.parametrize("num_kept", [1, 3, 6])
def test_top_k_kl(logits, num_kept):
    student, teacher = special.softmax(logits / 3, axis=-1)
    expected = []
    for s, t in zip(student, teacher, strict=True):
        kept = np.argsort(-t)[:num_kept]
        s, t = (np.append(x[kept], np.delete(x, kept).sum()) for x in (s, t))
        expected.append(_kl(t, s))
    actual = losses.top_k_kl(*_jax(*logits), num_kept=num_kept, temperature=3.0)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-7)


def test_reverse_kl_is_forward_kl_of_the_swapped(logits):
    student_logits, teacher_logits = _jax(*logits)
    np.testing.assert_array_equal(
        losses.reverse_kl(student_logits, teacher_logits),
        losses.forward_kl(teacher_logits, student_logits),
    )


def test_symmetric_kl_is_symmetric_at_a_half_and_one_divergence_at_each_end(logits):
    student_logits, teacher_logits = _jax(*logits)
    np.testing.assert_allclose(
        losses.symmetric_kl(student_logits, teacher_logits),
        losses.symmetric_kl(teacher_logits, student_logits),
        rtol=1e-6,
    )
    for weight, end in ((0.0, losses.forward_kl), (1.0, losses.reverse_kl)):
        actual = losses.symmetric_kl(
            student_logits, teacher_logits, reverse_weight=weight
        )
        np.testing.assert_allclose(actual, end(student_logits, teacher_logits), 1e-6)


def test_total_variation_keeps_pinskers_inequality():
    student_logits, teacher_logits = 5 * jax.random.normal(
        jax.random.key(0), (2, 1000, 7)
    )
    distance = losses.total_variation(student_logits, teacher_logits)
    divergence = losses.forward_kl(student_logits, teacher_logits)
    assert np.all(distance <= np.sqrt(divergence / 2) + 1e-6)
    assert np.all(distance <= 1)


def test_keeping_fewer_classes_never_adds_divergence():
    """Data processing: lumping classes together loses information."""
    logits = 5 * jax.random.normal(jax.random.key(0), (2, 1000, 7))
    whole = losses.forward_kl(*logits)
    previous = jnp.zeros(1000)
    for num_kept in range(1, 7):
        kept = losses.top_k_kl(*logits, num_kept=num_kept)
        assert np.all(previous <= kept + 1e-5)
        previous = kept
    # With one class in it, the bucket is that class.
    np.testing.assert_allclose(previous, whole, rtol=1e-5, atol=1e-6)


def test_top_k_kl_is_the_whole_where_the_student_is_proportional_on_the_tail(logits):
    (_, teacher_logits) = _jax(*logits)
    kept = jnp.argsort(-teacher_logits)[:, :3]
    changed = jnp.take_along_axis(teacher_logits, kept, -1) + jnp.array([[1.0, -2, 3]])
    student_logits = jnp.put_along_axis(
        teacher_logits, kept, changed, axis=-1, inplace=False
    )
    np.testing.assert_allclose(
        losses.top_k_kl(student_logits, teacher_logits, num_kept=3),
        losses.forward_kl(student_logits, teacher_logits),
        rtol=1e-5,
    )


def test_a_tail_of_nearly_no_mass_keeps_its_digits():
    """As 1 minus the rest, a tail of e**-30 would be zero in float32."""
    teacher_logits = jnp.array([30.0, 0.0, -1.0])
    student_logits = jnp.array([0.0, 30.0, -1.0])
    grad = jax.grad(losses.reverse_kl)(student_logits, teacher_logits)
    lumped = losses.top_k_kl(teacher_logits, student_logits, num_kept=1)
    student, teacher = (
        special.softmax(np.float64(x)) for x in (student_logits, teacher_logits)
    )
    expected = student[1] * np.log(student[1] / teacher[1])
    rest = 1 - student[1]
    np.testing.assert_allclose(lumped, expected, rtol=1e-5)
    assert rest < 1e-12
    assert np.all(np.isfinite(grad))


@pytest.mark.usefixtures("as_in_production")
@pytest.mark.parametrize("num_kept", [0, 7])
def test_top_k_kl_refuses_to_keep_none_or_all(num_kept):
    with pytest.raises(ValueError, match=f"Expected num_kept from 1 to 6.*{num_kept}"):
        losses.top_k_kl(jnp.zeros((2, 7)), jnp.zeros((2, 7)), num_kept=num_kept)
