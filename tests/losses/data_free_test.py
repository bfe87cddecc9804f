"""The losses of data-free distillation, against loops and published numbers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from kdjax.losses import _adversarial, _data_free

STUDENT, TEACHER = 3 * np.random.default_rng(0).normal(size=(2, 4, 7))
IMAGES = np.random.default_rng(1).normal(size=(3, 4, 5, 2))


def _mean(loss_fn, *inputs, **kwargs):
    with jax.enable_x64(True):
        inputs = jax.tree.map(jnp.asarray, inputs)
        return float(jnp.mean(jax.jit(functools.partial(loss_fn, **kwargs))(*inputs)))


def test_one_hot_loss_of_published_code_is_the_same():
    """The authors' code on 3 cos(0.3 n), `[4, 10]`: value and length of gradient."""
    with jax.enable_x64(True):
        n = jnp.arange(1.0, 41.0).reshape(4, 10)
        grad_fn = jax.value_and_grad(lambda z: jnp.mean(_data_free.one_hot_loss(z)))
        value, grad = jax.jit(grad_fn)(3 * jnp.cos(0.3 * n))
    np.testing.assert_allclose(value, 0.875772959, rtol=2e-9)
    np.testing.assert_allclose(np.linalg.norm(grad), 0.336980967, rtol=2e-9)


def test_activation_loss_is_a_sum_or_a_mean():
    size = np.abs(IMAGES).sum() / 3
    np.testing.assert_allclose(_mean(_data_free.activation_loss, IMAGES), -size)
    actual = _mean(_data_free.activation_loss, IMAGES, form="author_code")
    np.testing.assert_allclose(actual, -size / 40)


def test_information_entropy_loss_is_of_the_mean_of_the_batch():
    mean = special.softmax(TEACHER, axis=1).mean(0)
    loss_fn = _data_free.information_entropy_loss
    actual = _mean(loss_fn, TEACHER)
    np.testing.assert_allclose(actual, np.sum(mean * np.log(mean)) / 7, rtol=1e-9)
    actual = _mean(loss_fn, TEACHER, form="author_code")
    np.testing.assert_allclose(actual, np.sum(mean * np.log10(mean)), rtol=1e-9)


def test_information_entropy_loss_is_least_for_balanced_classes():
    loss_fn = jax.jit(_data_free.information_entropy_loss)
    balanced, collapsed = 1e4 * jnp.eye(5), 1e4 * jnp.eye(5)[jnp.zeros(5, int)]
    np.testing.assert_allclose(loss_fn(balanced), -np.log(5) / 5, rtol=1e-6)
    np.testing.assert_allclose(loss_fn(collapsed), 0, atol=1e-6)


def test_a_class_that_is_impossible_has_no_part_in_the_entropy():
    logits = jnp.asarray(TEACHER, jnp.float32).at[:, 2].set(-jnp.inf)
    loss_fn = functools.partial(_data_free.information_entropy_loss, form="author_code")
    value_and_grad = jax.jit(jax.value_and_grad(lambda z: jnp.mean(loss_fn(z))))
    value, grad = value_and_grad(logits)
    expected = _mean(loss_fn, np.delete(TEACHER, 2, axis=1))
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    assert np.all(np.isfinite(grad))


def test_batch_norm_statistics_are_compared_by_length():
    mean, var = np.arange(2.0), 1 + np.arange(2.0)
    flat = IMAGES.reshape(-1, 2)
    expected = np.sqrt(np.sum((flat.mean(0) - mean) ** 2))
    expected += np.sqrt(np.sum((flat.var(0) - var) ** 2))
    actual = _mean(_data_free.batch_norm_statistics_loss, IMAGES, mean, var)
    np.testing.assert_allclose(actual, expected, rtol=1e-9)


def test_batch_norm_statistics_of_the_training_data_cost_nothing():
    images = jnp.asarray(IMAGES, jnp.float32)
    mean, var = jnp.mean(images, (0, 1, 2)), jnp.var(images, (0, 1, 2))
    grad_fn = jax.value_and_grad(
        lambda x: jnp.mean(_data_free.batch_norm_statistics_loss(x, mean, var))
    )
    value, grad = jax.jit(grad_fn)(images)
    np.testing.assert_allclose(value, 0, atol=1e-6)
    assert np.all(np.isfinite(grad))


@pytest.mark.usefixtures("as_in_production")
def test_statistics_of_other_channels_are_refused():
    images = jnp.asarray(IMAGES, jnp.float32)
    with pytest.raises(ValueError, match=r"Expected running_var \(2,\).*got \(3,\)"):
        _data_free.batch_norm_statistics_loss(images, jnp.zeros(2), jnp.zeros(3))
    with pytest.raises(ValueError, match=r"Expected images .*got \(3, 4, 5\)"):
        _data_free.image_total_variation(images[..., 0])


def test_image_total_variation_has_four_directions():
    squares = np.zeros((4, 3))
    for b, i, j in np.ndindex(3, 4, 5):
        for d, (di, dj) in enumerate(((0, 1), (1, 0), (1, 1), (1, -1))):
            if i + di < 4 and 0 <= j + dj < 5:
                pixels = IMAGES[b, i, j], IMAGES[b, i + di, j + dj]
                squares[d, b] += np.sum((pixels[0] - pixels[1]) ** 2)
    loss_fn = _data_free.image_total_variation
    expected = np.sqrt(squares).sum(0).mean()
    np.testing.assert_allclose(_mean(loss_fn, IMAGES), expected, rtol=1e-9)
    expected = np.sqrt(squares.sum(1)).sum()
    actual = _mean(loss_fn, IMAGES, form="author_code")
    np.testing.assert_allclose(actual, expected, rtol=1e-9)


def test_dfad_is_a_game_of_the_mean_absolute_difference():
    difference = np.abs(STUDENT - TEACHER).mean()
    generator = _adversarial.dfad_generator_loss
    for actual, expected in (
        (_mean(_adversarial.dfad_loss, STUDENT, TEACHER), difference),
        (_mean(generator, STUDENT, TEACHER), -difference),
        (_mean(generator, STUDENT, TEACHER, form="log"), -np.log(1 + difference)),
    ):
        np.testing.assert_allclose(actual, expected, rtol=1e-9)


@pytest.mark.parametrize("form", ["paper", "author_code"])
def test_zskt_is_a_divergence_and_a_distance_of_attention(form):
    p, q = (special.softmax(x, axis=1) for x in (TEACHER, STUDENT))
    divergence = special.rel_entr(p, q).sum(1).mean()
    divergence /= 1 if form == "paper" else 7
    maps = np.random.default_rng(2).normal(size=(2, 4, 2, 3, 5))
    attention = (maps**2).mean(-1).reshape(2, 4, 6)
    attention /= np.linalg.norm(attention, axis=-1, keepdims=True)
    squares = (attention[0] - attention[1]) ** 2
    distance = np.sqrt(squares.sum(-1)).mean() if form == "paper" else squares.mean()
    student = _mean(
        _adversarial.zskt_loss, STUDENT, TEACHER, (maps[0],), (maps[1],), form=form
    )
    np.testing.assert_allclose(student, divergence + 250 * distance, rtol=1e-9)
    generator = _mean(_adversarial.zskt_generator_loss, STUDENT, TEACHER, form=form)
    np.testing.assert_allclose(generator, -divergence, rtol=1e-9)


@pytest.mark.usefixtures("as_in_production")
def test_layers_that_do_not_fit_are_refused():
    logits, maps = jnp.zeros((2, 3)), (jnp.zeros((2, 4, 4, 1)),)
    with pytest.raises(ValueError, match=r"as many .*got 1 and 0\."):
        _adversarial.zskt_loss(logits, logits, maps, ())
    with pytest.raises(ValueError, match="equal heights and widths, got"):
        _adversarial.zskt_loss(logits, logits, maps, (jnp.zeros((2, 2, 2, 1)),))
