"""The losses of encoders against loops over the papers' equations, and their laws."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from kdjax import losses


def _normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def _f32(*arrays):
    return [jnp.asarray(x, jnp.float32) for x in arrays]


def test_tinybert_hidden_loss():
    student, teacher = _normal(2, 3, 4, 5)
    expected = np.zeros((3, 4))
    for b in range(3):
        for i in range(4):
            total = sum((student[b, i, d] - teacher[b, i, d]) ** 2 for d in range(5))
            expected[b, i] = total / 5
    actual = losses.tinybert_hidden_loss(*_f32(student, teacher))
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


@pytest.mark.parametrize("form", ["paper", "author_code"])
def test_tinybert_attention_loss_of_padded_sequences(form):
    student, teacher = _normal(2, 2, 3, 4, 4)
    lengths = (4, 2)
    where = np.arange(4) < np.array(lengths)[:, None]
    # As BERT masks: -10000 added to the keys of padding.
    student, teacher = (x - 1e4 * ~where[:, None, None] for x in (student, teacher))
    expected = np.zeros((2, 4))
    for b, length in enumerate(lengths):
        for i in range(4 if form == "author_code" else length):
            entries = [
                (student[b, a, i, j] - teacher[b, a, i, j]) ** 2
                for a in range(3)
                for j in range(length)
            ]
            count = 3 * 4 if form == "author_code" else len(entries)
            expected[b, i] = sum(entries) / count
    actual = losses.tinybert_attention_loss(
        *_f32(student, teacher),
        form=form,
        where=jnp.asarray(where) if form == "paper" else None,
    )
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_authors_threshold_of_tinybert_attention_loss_is_minus_100_not_0():
    """A negative score counts; some ports set all of them to zero."""
    student = jnp.full((1, 1, 1, 1), -3.0)
    for form in ("paper", "author_code"):
        loss = losses.tinybert_attention_loss(student, 0 * student, form=form)
        np.testing.assert_allclose(loss, [[9.0]])
    for score, expected in ((-100.0, 0.0), (-99.0, 99.0**2)):
        scores = jnp.full((1, 1, 1, 1), score)
        loss = losses.tinybert_attention_loss(scores, 0 * scores, form="author_code")
        np.testing.assert_allclose(loss, [[expected]])


def test_keys_masked_on_both_sides_are_left_out_of_tinybert_attention_loss():
    student, teacher = (
        jnp.where(jnp.tri(3, dtype=bool), x, -jnp.inf)[None]
        for x in _f32(*_normal(2, 1, 3, 3))
    )

    def total(student):
        return jnp.sum(losses.tinybert_attention_loss(student, teacher))

    value, grad = jax.jit(jax.value_and_grad(total))(student)
    expected = sum(
        np.mean((student[0, 0, i, : i + 1] - teacher[0, 0, i, : i + 1]) ** 2)
        for i in range(3)
    )
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    assert np.all(np.isfinite(grad))


@pytest.mark.parametrize(("form", "scale"), [("paper", 10.0), ("author_code", 1.0)])
def test_tinybert_prediction_loss_of_the_authors(form, scale):
    """The closed form of golden_test.py, by the code of the authors: over classes."""
    with jax.enable_x64(True):
        n = jnp.arange(1, 41, dtype=jnp.float64).reshape(4, 10)
        student, teacher = 3 * jnp.sin(0.7 * n), 3 * jnp.cos(0.3 * n)

        def published(student):
            return jnp.mean(
                losses.tinybert_prediction_loss(student, teacher, form=form)
            )

        value, grad = jax.jit(jax.value_and_grad(published))(student)
        norm = np.linalg.norm(grad)
    np.testing.assert_allclose(value, scale * 0.256629207, rtol=2e-8)
    np.testing.assert_allclose(norm, scale * 0.024246809, rtol=4e-8)


def test_tinybert_prediction_loss_at_a_temperature():
    student, teacher = _normal(2, 3, 5)
    expected = [
        -sum(special.softmax(t / 3) * special.log_softmax(s / 3))
        for s, t in zip(student, teacher, strict=True)
    ]
    actual = losses.tinybert_prediction_loss(*_f32(student, teacher), temperature=3.0)
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_tinybert_hidden_loss_of_a_sequence_is_the_hint_loss():
    student, teacher = _f32(*_normal(2, 3, 4, 5))
    np.testing.assert_allclose(
        jnp.mean(losses.tinybert_hidden_loss(student, teacher), axis=-1),
        losses.hint_loss(student, teacher),
        rtol=1e-5,
    )


def test_tinybert_prediction_loss_is_a_divergence_and_the_teachers_entropy():
    student, teacher = _f32(*_normal(2, 3, 5))
    loss = losses.tinybert_prediction_loss(student, teacher, temperature=2.0)
    of_teacher = losses.tinybert_prediction_loss(teacher, teacher, temperature=2.0)
    divergence = losses.forward_kl(student, teacher, temperature=2.0)
    np.testing.assert_allclose(loss - of_teacher, divergence, rtol=1e-4, atol=1e-6)


def test_patient_loss_and_hidden_cosine_loss():
    student, teacher = _normal(2, 6, 5)
    cosines = [
        s @ t / np.sqrt((s @ s) * (t @ t))
        for s, t in zip(student, teacher, strict=True)
    ]
    patient = losses.patient_loss(*_f32(student, teacher))
    np.testing.assert_allclose(patient, 2 - 2 * np.array(cosines), rtol=1e-5)
    cosine = losses.hidden_cosine_loss(*_f32(student, teacher))
    np.testing.assert_allclose(cosine, 1 - np.array(cosines), rtol=1e-5)


DIRECTIONS = [losses.patient_loss, losses.hidden_cosine_loss]


@pytest.mark.parametrize("loss_fn", DIRECTIONS)
def test_a_state_of_zeros_has_no_direction_in_patient_and_cosine_loss(loss_fn):
    """0 is not cos: a distance of 1 from all directions."""
    teacher = jnp.array([1.0, 2.0])
    value, grads = jax.value_and_grad(loss_fn, argnums=(0, 1))(jnp.zeros(2), teacher)
    np.testing.assert_allclose(value, 1.0, rtol=1e-6)
    np.testing.assert_array_equal(grads[0], 0)
    np.testing.assert_allclose(grads[1], 0, atol=1e-7)


@pytest.mark.parametrize("loss_fn", DIRECTIONS)
def test_the_size_of_a_state_does_not_matter_in_patient_and_cosine_loss(loss_fn):
    student, teacher = _f32(*_normal(2, 6, 5))
    expected = loss_fn(student, teacher)
    np.testing.assert_allclose(loss_fn(7 * student, 0.1 * teacher), expected, rtol=1e-5)


def _relation(x, y, num_heads, valid):
    """Distributions over the valid keys: `[heads][query][key]`."""
    size = x.shape[-1] // num_heads
    result = []
    for a in range(num_heads):
        part = slice(a * size, (a + 1) * size)
        rows = []
        for i in range(len(x)):
            keys = [j for j in range(len(x)) if valid[j]]
            scores = [x[i, part] @ y[j, part] / np.sqrt(size) for j in keys]
            rows.append(special.softmax(scores))
        result.append(rows)
    return result


def _mean_kl(teacher, student, i):
    return np.mean(
        [
            special.rel_entr(t[i], s[i]).sum()
            for t, s in zip(teacher, student, strict=True)
        ]
    )


def _projections():
    student, teacher = _normal(3, 2, 4, 6), _normal(3, 2, 4, 8, seed=1)
    where = np.array([[True] * 4, [True, True, False, True]])
    return student, teacher, where


def test_minilm_loss():
    student, teacher, where = _projections()
    expected = np.zeros((2, 4))
    for b in range(2):
        s, t = student[:, b], teacher[:, b]
        for i in np.flatnonzero(where[b]):
            for x, y in ((0, 1), (2, 2)):
                relations = (_relation(v[x], v[y], 2, where[b]) for v in (t, s))
                expected[b, i] += _mean_kl(*relations, i)
    actual = losses.minilm_loss(
        *_f32(*student, *teacher), num_heads=2, where=jnp.asarray(where)
    )
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-6)


def test_minilm_relation_loss():
    student, teacher, where = _projections()
    expected = np.zeros((2, 4))
    for b in range(2):
        s, t = student[:, b], teacher[:, b]
        for i in np.flatnonzero(where[b]):
            for x in range(3):
                relations = (_relation(v[x], v[x], 2, where[b]) for v in (t, s))
                expected[b, i] += _mean_kl(*relations, i) / 3
    actual = losses.minilm_relation_loss(
        *_f32(*student, *teacher), num_relation_heads=2, where=jnp.asarray(where)
    )
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("size", [1.0, 1e3])
def test_minilm_losses_are_zero_at_the_teacher_and_finite(size):
    projections = _f32(*(size * _normal(3, 2, 4, 6)))

    def total(projections, loss_fn, **kwargs):
        return jnp.sum(
            loss_fn(*projections, *_f32(*(size * _normal(3, 2, 4, 6))), **kwargs)
        )

    for loss_fn, name in (
        (losses.minilm_loss, "num_heads"),
        (losses.minilm_relation_loss, "num_relation_heads"),
    ):
        at_itself = functools.partial(total, loss_fn=loss_fn, **{name: 3})
        value, grads = jax.jit(jax.value_and_grad(at_itself))(projections)
        np.testing.assert_allclose(value, 0, atol=1e-6)
        for grad in grads:
            np.testing.assert_allclose(grad, 0, atol=1e-6 * size)


def test_minilm_loss_does_not_see_a_constant_in_the_keys():
    """It adds the same to all scores of a query, and a softmax takes it out."""
    student, teacher, _ = _projections()
    queries, keys, values = _f32(*student)
    expected, shifted = (
        losses.minilm_loss(queries, x, values, *_f32(*teacher), num_heads=2)
        for x in (keys, keys + jnp.arange(6.0).reshape(1, 1, 6))
    )
    np.testing.assert_allclose(shifted, expected, rtol=1e-4, atol=1e-6)


def test_minilm_relation_loss_sees_neither_width_nor_basis_of_the_teacher():
    """Of one relation head: a rotation into 12 dimensions keeps all angles."""
    student, teacher, where = _projections()
    basis = np.linalg.qr(_normal(12, 8, seed=2))[0].T
    wider = teacher @ basis * (12 / 8) ** 0.25  # For the division by a larger root.
    expected, actual = (
        losses.minilm_relation_loss(
            *_f32(*student, *x), num_relation_heads=1, where=jnp.asarray(where)
        )
        for x in (teacher, wider)
    )
    assert np.all(expected[where] > 1e-2)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-6)


def test_minilm_losses_follow_the_order_of_the_tokens():
    student, teacher, where = _projections()
    order = np.array([2, 0, 3, 1])
    for loss_fn, heads in (
        (losses.minilm_loss, {"num_heads": 2}),
        (losses.minilm_relation_loss, {"num_relation_heads": 2}),
    ):
        expected = loss_fn(*_f32(*student, *teacher), **heads, where=jnp.asarray(where))
        permuted = loss_fn(
            *_f32(*student[:, :, order], *teacher[:, :, order]),
            **heads,
            where=jnp.asarray(where[:, order]),
        )
        np.testing.assert_allclose(permuted, expected[:, order], rtol=1e-4, atol=1e-6)


@pytest.mark.usefixtures("as_in_production")
def test_sides_that_do_not_fit_are_refused_with_the_likely_cause():
    student, teacher = jnp.zeros((2, 4, 6)), jnp.zeros((2, 5, 6))
    with pytest.raises(ValueError, match="share a tokenizer"):
        losses.minilm_loss(*[student] * 3, *[teacher] * 3, num_heads=2)
    scores = jnp.zeros((2, 3, 4, 4))
    with pytest.raises(ValueError, match="minilm_relation_loss takes any number"):
        losses.tinybert_attention_loss(scores, scores[:, :2])
    with pytest.raises(
        ValueError, match=r"num_heads, length, length\], got \(2, 3, 4, 3"
    ):
        losses.tinybert_attention_loss(scores[..., :3], scores[..., :3])
    with pytest.raises(ValueError, match="map the student to the teacher's dimension"):
        losses.tinybert_hidden_loss(student, teacher[:, :4, :5])
