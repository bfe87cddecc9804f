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


@pytest.mark.parametrize("normalized", [False, True])
@pytest.mark.parametrize("beta", [0.1, 0.5, 0.9])
def test_jensen_shannon(logits, beta, normalized):
    student, teacher = special.softmax(logits / 2, axis=-1)
    mixture = beta * teacher + (1 - beta) * student
    expected = beta * _kl(teacher, mixture) + (1 - beta) * _kl(student, mixture)
    if normalized:
        expected /= beta * (1 - beta)
    actual = losses.jensen_shannon(
        *_jax(*logits), beta=beta, temperature=2.0, normalized=normalized
    )
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_jensen_shannon_is_symmetric_at_a_half_and_bounded():
    student_logits, teacher_logits = 20 * jax.random.normal(
        jax.random.key(0), (2, 1000, 7)
    )
    values = losses.jensen_shannon(student_logits, teacher_logits)
    swapped = losses.jensen_shannon(teacher_logits, student_logits)
    np.testing.assert_allclose(values, swapped, rtol=1e-5, atol=1e-6)
    assert np.all(values <= np.log(2) + 1e-6)
    assert np.max(values) > np.log(2) - 1e-3


@pytest.mark.parametrize(
    ("beta", "near", "divergence"),
    [(0.0, 1e-7, losses.forward_kl), (1.0, 1 - 1e-7, losses.reverse_kl)],
)
def test_normalized_jensen_shannon_has_no_jump_at_its_ends(
    logits, beta, near, divergence
):
    with jax.enable_x64(True):
        inputs = [jnp.asarray(x) for x in logits]

        def loss(beta):
            return losses.jensen_shannon(*inputs, beta=beta, normalized=True)

        expected = divergence(*inputs)
        np.testing.assert_allclose(loss(beta), expected, rtol=1e-12)
        np.testing.assert_allclose(jax.jit(loss)(jnp.float64(beta)), expected, 1e-12)
        # First order in the distance, times a ratio of probabilities of some 10,000.
        np.testing.assert_allclose(loss(near), expected, rtol=0.01)


def test_plain_jensen_shannon_vanishes_at_its_ends(logits):
    for beta in (0.0, 1.0):
        np.testing.assert_array_equal(
            losses.jensen_shannon(*_jax(*logits), beta=beta), 0
        )


def test_skew_kl(logits):
    student, teacher = special.softmax(logits / 2, axis=-1)
    forward = losses.skew_forward_kl(*_jax(*logits), skew=0.2, temperature=2.0)
    reverse = losses.skew_reverse_kl(*_jax(*logits), skew=0.2, temperature=2.0)
    expected = _kl(teacher, 0.2 * teacher + 0.8 * student)
    np.testing.assert_allclose(forward, expected, rtol=1e-5)
    expected = _kl(student, 0.8 * teacher + 0.2 * student)
    np.testing.assert_allclose(reverse, expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("skewed", "divergence"),
    [
        (losses.skew_forward_kl, losses.forward_kl),
        (losses.skew_reverse_kl, losses.reverse_kl),
    ],
)
def test_skew_0_is_the_divergence_and_skew_1_is_zero(logits, skewed, divergence):
    values = skewed(*_jax(*logits), skew=0.0)
    np.testing.assert_allclose(values, divergence(*_jax(*logits)), rtol=1e-6)
    np.testing.assert_allclose(skewed(*_jax(*logits), skew=1.0), 0, atol=1e-6)


@pytest.mark.parametrize("skewed", [losses.skew_forward_kl, losses.skew_reverse_kl])
def test_skew_kl_is_bounded_by_the_skew(skewed):
    logits = 100 * jax.random.normal(jax.random.key(0), (2, 1000, 7))
    values = skewed(*logits, skew=0.1)
    assert np.all(values <= -np.log(0.1) + 1e-5)
    assert np.max(values) > -np.log(0.1) - 1e-3


def _adaptive_kl(student, teacher, head_mass):
    """By the words of the definition, one example at a time."""
    order = np.argsort(-teacher)
    head = [order[0]]
    for count in range(1, len(order) + 1):
        if teacher[order[:count]].sum() <= head_mass:
            head = order[:count]
    gap = np.abs(student - teacher)
    share = gap[head].sum() / gap.sum()
    return share * _kl(teacher, student) + (1 - share) * _kl(student, teacher), share


@pytest.mark.parametrize("head_mass", [0.1, 0.5, 0.8])
def test_adaptive_kl(logits, head_mass):
    student, teacher = special.softmax(logits / 2, axis=-1)
    expected = [
        _adaptive_kl(s, t, head_mass)[0] for s, t in zip(student, teacher, strict=True)
    ]
    actual = losses.adaptive_kl(*_jax(*logits), head_mass=head_mass, temperature=2.0)
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_adaptive_kl_does_not_differentiate_its_shares(logits):
    student, teacher = special.softmax(logits, axis=-1)
    shares = jnp.array(
        [_adaptive_kl(s, t, 0.5)[1] for s, t in zip(student, teacher, strict=True)],
        jnp.float32,
    )

    def constant(student_logits, teacher_logits):
        loss = shares * losses.forward_kl(student_logits, teacher_logits)
        loss += (1 - shares) * losses.reverse_kl(student_logits, teacher_logits)
        return loss.sum()

    grads = jax.grad(lambda *x: losses.adaptive_kl(*x).sum(), (0, 1))(*_jax(*logits))
    expected = jax.grad(constant, (0, 1))(*_jax(*logits))
    np.testing.assert_allclose(grads, expected, rtol=1e-4, atol=1e-6)


def test_adaptive_kl_puts_equals_on_one_side():
    """Which of two equal classes fills the head is not for their order to decide."""
    teacher_logits = jnp.log(jnp.array([0.3, 0.3, 0.3, 0.1]))
    student_logits = jnp.log(jnp.array([0.1, 0.3, 0.2, 0.4]))
    values = [
        losses.adaptive_kl(student_logits[order], teacher_logits[order])
        for order in (jnp.array([0, 1, 2, 3]), jnp.array([1, 2, 0, 3]))
    ]
    np.testing.assert_allclose(values[0], values[1], rtol=1e-6)
