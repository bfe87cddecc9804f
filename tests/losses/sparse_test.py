"""Teachers given by a few of their classes."""

import inspect
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from kdjax import losses
from kdjax.losses import _sparse, _sparse_top
from kdjax.teacher_cache import encodings


@pytest.fixture
def logits():
    """Student's and teacher's, `[5, 7]`, float32."""
    return tuple(jnp.asarray(2 * np.random.default_rng(0).normal(size=(2, 5, 7)), "f4"))


MODULES = (_sparse, _sparse_top)
PUBLIC = [
    fn
    for module in MODULES
    for name, fn in inspect.getmembers(module, inspect.isfunction)
    if fn.__module__ == module.__name__ and name in losses.__all__
]


@pytest.mark.parametrize("fn", PUBLIC)
def test_the_documentation_is_complete(fn):
    text = inspect.getdoc(fn)
    found = re.findall(r"^(\w+):$", text, flags=re.MULTILINE)
    assert found == ["Args", "Returns", "Raises", "Examples", "References"]
    assert ".. math::" in text
    arguments = text[text.index("Args:") : text.index("Returns:")]
    assert all(
        f"\n  {name}: " in arguments for name in inspect.signature(fn).parameters
    )


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_drawn_frequencies_are_the_teachers_probabilities(logits, temperature):
    _, teacher = logits
    many = jnp.broadcast_to(teacher, (400, 5, 7))
    ids, counts = jax.jit(_sparse.sample_sparse_targets, static_argnames="num_draws")(
        many, jax.random.key(0), num_draws=20, temperature=temperature
    )
    assert ids.dtype == counts.dtype == jnp.int32
    np.testing.assert_array_equal(jnp.sum(counts, axis=-1), 20)
    frequencies = np.sum(np.eye(7)[ids] * np.asarray(counts)[..., None], (0, 2)) / 8000
    probs = special.softmax(np.asarray(teacher) / temperature, axis=-1)
    # 8000 draws: five standard deviations.
    bound = 5 * np.sqrt(probs * (1 - probs) / 8000)
    assert np.all(np.abs(frequencies - probs) < bound)


def test_classes_are_different_ascending_and_first(logits):
    ids, counts = _sparse.sample_sparse_targets(
        logits[1], jax.random.key(0), num_draws=9
    )
    for row, number in zip(np.asarray(ids), np.asarray(counts), strict=True):
        drawn = row[number > 0]
        assert np.all(np.diff(drawn) > 0)
        np.testing.assert_array_equal(row[len(drawn) :], 0)
        np.testing.assert_array_equal(number[len(drawn) :], 0)


def test_a_class_at_minus_infinity_is_never_drawn(logits):
    teacher = logits[1].at[:, 2].set(-jnp.inf)
    ids, counts = _sparse.sample_sparse_targets(
        teacher, jax.random.key(0), num_draws=100
    )
    assert not np.any((ids == 2) & (counts > 0))


def test_the_packed_form_is_3_bytes_and_goes_back():
    rng = np.random.default_rng(0)
    ids = jnp.asarray(rng.integers(0, _sparse.MAX_VOCAB, (3, 50)), "int32")
    ids = ids.at[0, :2].set(jnp.array([0, _sparse.MAX_VOCAB - 1]))
    counts = jnp.asarray(rng.integers(0, _sparse.MAX_DRAWS + 1, (3, 50)), "int32")
    counts = counts.at[0, :2].set(_sparse.MAX_DRAWS)
    packed = _sparse.pack_sparse_targets(ids, counts)
    assert packed.dtype == jnp.uint8
    assert packed.nbytes == 3 * ids.size
    for actual, expected in zip(
        _sparse.unpack_sparse_targets(packed), (ids, counts), strict=True
    ):
        assert actual.dtype == jnp.int32
        np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_sparse_soft_target_loss(logits, temperature):
    student = np.asarray(logits[0], np.float64)
    ids = np.array([[0, 3], [6, 0], [2, 4], [1, 5], [3, 0]])
    counts = np.array([[2, 1], [3, 0], [1, 3], [2, 2], [0, 0]])
    expected = []
    for row, classes, numbers in zip(student, ids, counts, strict=True):
        log_probs = special.log_softmax(row / temperature)
        cost = -sum(n * log_probs[c] for c, n in zip(classes, numbers, strict=True))
        expected.append(temperature**2 * cost / max(sum(numbers), 1))
    actual = _sparse.sparse_soft_target_loss(
        logits[0], jnp.asarray(ids), jnp.asarray(counts), temperature=temperature
    )
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


def test_the_gradient_over_draws_is_that_of_the_whole_teacher(logits):
    student, teacher = logits
    rngs = jax.random.split(jax.random.key(1), 2000)

    def drawn(student, rng):
        targets = _sparse.sample_sparse_targets(
            teacher, rng, num_draws=20, temperature=2.0
        )
        return jnp.sum(
            _sparse.sparse_soft_target_loss(student, *targets, temperature=2.0)
        )

    grads = jax.jit(jax.vmap(jax.grad(drawn), (None, 0)))(student, rngs)
    expected = jax.grad(
        lambda x: jnp.sum(losses.soft_target_loss(x, teacher, temperature=2.0))
    )(student)
    error = jnp.std(grads, axis=0) / jnp.sqrt(jnp.asarray(len(rngs), jnp.float32))
    assert np.all(jnp.abs(jnp.mean(grads, axis=0) - expected) < 5 * error + 1e-5)


@pytest.mark.parametrize("num_kept", [1, 3, 6])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_stored_top_logits_give_the_loss_of_the_whole_teacher(
    logits, num_kept, temperature
):
    """As the cache stores them: the law of defect 15, the exact mass of the tail."""
    student, teacher = logits
    encoding = encodings.TopK(7, k=num_kept, temperatures=(1.0, 2.0))
    entries = encoding.encode(teacher)
    tail = entries[encodings.TAIL][..., encoding.temperatures.index(temperature)]
    stored = (
        entries[encodings.TOP_LOGITS],
        entries[encodings.TOP_INDICES],
        tail,
    )

    def from_store(student):
        return _sparse_top.sparse_top_k_kl(student, *stored, temperature=temperature)

    def from_teacher(student):
        return losses.top_k_kl(
            student, teacher, num_kept=num_kept, temperature=temperature
        )

    np.testing.assert_allclose(
        from_store(student), from_teacher(student), rtol=1e-5, atol=1e-6
    )
    actual, expected = (
        jax.vjp(fn, student)[1](jnp.ones(5))[0] for fn in (from_store, from_teacher)
    )
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-6)


def test_no_tail_at_all_is_the_forward_divergence(logits):
    student, teacher = logits
    indices = jnp.broadcast_to(jnp.arange(7), (5, 7))
    tail = jnp.full(5, -jnp.inf)

    def total(student):
        values = _sparse_top.sparse_top_k_kl(student, teacher, indices, tail)
        return jnp.sum(values), values

    grad, values = jax.grad(total, has_aux=True)(student)
    np.testing.assert_allclose(values, losses.forward_kl(student, teacher), rtol=1e-5)
    assert np.all(np.isfinite(grad))


def test_a_class_out_of_range_is_not_scored_unless_its_count_is_0(logits):
    ids = jnp.array([[0, 7], [0, -1], [0, 7], [0, 1], [0, 1]])
    counts = jnp.array([[1, 1], [1, 1], [1, 0], [1, 1], [1, 1]])
    values = _sparse.sparse_soft_target_loss(logits[0], ids, counts)
    np.testing.assert_array_equal(np.isnan(values), [True, True, False, False, False])
    top = jnp.ones((5, 2))
    values = _sparse_top.sparse_top_k_kl(logits[0], top, ids, top[:, 0])
    np.testing.assert_array_equal(np.isnan(values), [True, True, True, False, False])


def test_invalid_examples_are_as_if_absent(logits):
    student, _ = logits
    where = jnp.arange(5) != 1
    student = jnp.where(where[:, None], student, jnp.nan)
    ids = jnp.where(where[:, None], jnp.array([[0, 3]]), -100)
    counts = jnp.broadcast_to(jnp.array([[2, 1]]), (5, 2))
    top = jnp.where(where[:, None], jnp.ones((5, 2)), jnp.nan)
    for loss_fn, targets in (
        (_sparse.sparse_soft_target_loss, (ids, counts)),
        (_sparse_top.sparse_top_k_kl, (top, ids, top[:, 0])),
    ):
        values, grad = _value_and_grad(loss_fn, student, *targets, where=where)
        assert values[1] == 0
        np.testing.assert_array_equal(grad[1], 0)
        kept = [x[2:] for x in (student, *targets)]
        expected, expected_grad = _value_and_grad(loss_fn, *kept)
        np.testing.assert_allclose(values[2:], expected, rtol=1e-6)
        np.testing.assert_allclose(grad[2:], expected_grad, rtol=1e-5, atol=1e-7)


def _value_and_grad(loss_fn, student, *targets, **kwargs):
    values, vjp_fn = jax.vjp(lambda x: loss_fn(x, *targets, **kwargs), student)
    return values, vjp_fn(jnp.ones_like(values))[0]


@pytest.mark.usefixtures("as_in_production")
def test_misuse_says_what_was_expected(logits):
    student, teacher = logits
    ids = jnp.zeros((5, 2), jnp.int32)
    with pytest.raises(ValueError, match="num_draws of at least 1, got 0"):
        _sparse.sample_sparse_targets(teacher, jax.random.key(0), num_draws=0)
    with pytest.raises(TypeError, match="Expected integer target_counts, got float32"):
        _sparse.sparse_soft_target_loss(student, ids, ids.astype(jnp.float32))
    with pytest.raises(ValueError, match=r"Expected \(5, 'K'\).*target_ids \(4, 2\)"):
        _sparse.sparse_soft_target_loss(student, ids[:4], ids[:4])
    with pytest.raises(ValueError, match="a count for each class"):
        _sparse.pack_sparse_targets(ids, ids[:4])
    with pytest.raises(TypeError, match="Expected uint8 packed, got int32"):
        _sparse.unpack_sparse_targets(ids)
    with pytest.raises(ValueError, match=r"Expected packed \[\.\.\., num_draws, 3\]"):
        _sparse.unpack_sparse_targets(ids.astype(jnp.uint8))
    with pytest.raises(ValueError, match="an index for each"):
        _sparse_top.sparse_top_k_kl(student, jnp.zeros((5, 3)), ids, jnp.zeros(5))
    with pytest.raises(TypeError, match="floating-point teacher_tail, got int32"):
        _sparse_top.sparse_top_k_kl(student, jnp.zeros((5, 2)), ids, ids[:, 0])
    with pytest.raises(ValueError, match="Expected temperature > 0, got 0"):
        _sparse.sparse_soft_target_loss(student, ids, ids, temperature=0)
