"""Laws of single losses of features, which no loop over an equation shows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import losses

RNG = np.random.default_rng(0)
STUDENT, TEACHER = RNG.normal(size=(2, 2, 5, 4, 3))


def test_the_two_forms_of_attention_transfer_differ_by_a_square_and_the_places():
    maps = jnp.float32(STUDENT), jnp.float32(TEACHER)
    paper = losses.attention_transfer_loss(*maps)
    code = losses.attention_transfer_loss(*maps, form="author_code")
    np.testing.assert_allclose(code, paper**2 / 20, rtol=1e-5)


@pytest.mark.parametrize(
    "loss_fn",
    [
        losses.attention_transfer_loss,
        losses.nst_loss,
        losses.factor_loss,
        losses.cosine_loss,
    ],
)
def test_the_length_of_the_features_does_not_matter(loss_fn):
    maps = jnp.float32(STUDENT), jnp.float32(TEACHER)
    longer = 7 * maps[0], 0.1 * maps[1]
    np.testing.assert_allclose(loss_fn(*longer), loss_fn(*maps), rtol=1e-4)


def test_nst_takes_the_channels_in_any_order_and_number():
    student, teacher = jnp.float32(STUDENT), jnp.float32(TEACHER)
    expected = losses.nst_loss(student, teacher)
    doubled = jnp.concatenate([student[..., ::-1]] * 2, axis=-1)
    np.testing.assert_allclose(losses.nst_loss(doubled, teacher), expected, rtol=1e-5)


def test_pkd_is_one_minus_the_correlation():
    student, teacher = (x.reshape(-1, 3) for x in (STUDENT, TEACHER))
    correlations = [np.corrcoef(student[:, c], teacher[:, c])[0, 1] for c in range(3)]
    loss = np.mean(losses.pkd_loss(jnp.float32(STUDENT), jnp.float32(TEACHER)))
    expected = (1 - np.mean(correlations)) * (1 - 1 / len(student))
    np.testing.assert_allclose(loss, expected, rtol=1e-4)
    scaled = jnp.float32(3 * STUDENT + 5), jnp.float32(0.2 * TEACHER - 1)
    np.testing.assert_allclose(np.mean(losses.pkd_loss(*scaled)), expected, rtol=1e-4)


def test_cwd_sees_no_constant_added_to_a_channel():
    shift = np.array([1.0, -20.0, 300.0])
    values = [
        losses.cwd_loss(jnp.float32(x), jnp.float32(TEACHER))
        for x in (STUDENT, STUDENT + shift)
    ]
    np.testing.assert_allclose(values[1], values[0], rtol=1e-4)


@pytest.mark.parametrize(("scale", "bias"), [(1.0, 0.3), (-2.0, 0.5), (0.5, -4.0)])
def test_margins_are_the_mean_of_a_normal_where_it_is_negative(scale, bias):
    x, step = np.linspace(bias - 12 * abs(scale), 0, 200_001, retstep=True)
    density = np.exp(-(((x - bias) / scale) ** 2) / 2)
    mean = np.trapezoid(x * density, dx=step) / np.trapezoid(density, dx=step)
    margin = losses.ofd_margins(jnp.float32([scale]), jnp.float32([bias]))
    np.testing.assert_allclose(margin, mean, rtol=1e-5)


def test_margins_of_channels_that_are_never_negative_or_never_vary():
    scale, bias = jnp.float32([2.0, -2.0, 0.0, 0.0]), jnp.float32([6.4, 60, -3, 3])
    np.testing.assert_allclose(losses.ofd_margins(scale, bias), [-6, -6, -3, 0])
    grads = jax.grad(lambda *x: jnp.sum(losses.ofd_margins(*x)), (0, 1))(scale, bias)
    assert np.all(np.isfinite(grads))


def test_masks_are_of_places_or_channels_and_fresh_for_each_example():
    for over, shape in (("places", (4, 30, 20, 1)), ("channels", (4, 1, 1, 500))):
        features = jnp.zeros((4, 30, 20, 500))
        mask = losses.mgd_mask(jax.random.key(3), features, masked=0.3, over=over)
        assert mask.shape == shape
        assert mask.dtype == jnp.bool_
        # 500 draws an example: 5 standard deviations are 0.1.
        np.testing.assert_allclose(np.mean(mask, axis=(1, 2, 3)), 0.7, atol=0.1)
        assert len(np.unique(np.reshape(mask, (4, -1)), axis=0)) == 4


def test_class_maps_average_to_the_logits():
    kernel, bias = RNG.normal(size=(3, 7)), RNG.normal(size=7)
    maps = losses.class_attention_maps(*map(jnp.float32, (STUDENT, kernel, bias)))
    expected = np.mean(STUDENT, axis=(1, 2)) @ kernel + bias
    np.testing.assert_allclose(np.mean(maps, axis=(1, 2)), expected, rtol=1e-4)


@pytest.mark.parametrize("power", [0.5, 1.0, 3.0])
def test_attention_of_some_zeros_has_a_finite_gradient_at_any_power(power):
    maps = jnp.float32(STUDENT).at[0, :2].set(0)
    grads = jax.grad(
        lambda *x: jnp.sum(losses.attention_transfer_loss(*x[:2], power=x[2])),
        (0, 1, 2),
    )(maps, jnp.float32(TEACHER), power)
    assert all(np.all(np.isfinite(x)) for x in grads)


def test_zeros_are_at_a_right_angle_to_everything():
    zeros = jnp.zeros((1, 4))
    assert losses.cosine_loss(zeros, jnp.ones((1, 4)))[0] == 1
    assert losses.cosine_loss(zeros, zeros)[0] == 1


@pytest.mark.usefixtures("as_in_production")
@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda s, t: losses.hint_loss(s, t[..., :2]),
            r"student_features \(2, 5, 4, 3\).*\(2, 5, 4, 2\).*an adapter does",
        ),
        (
            lambda s, t: losses.hint_loss(s, t[:, :2]),
            "as losses.adaptive_average_pool does",
        ),
        (
            lambda s, t: losses.fsp_loss((s, s), (t, t[..., :2])),
            r"same channels, got student_features \(3, 3\).*\(3, 2\)",
        ),
        (lambda s, t: losses.fsp_loss((s,), (t, t)), "two layers, got 1"),
        (lambda s, t: losses.nst_loss(s[:, 0], t), r"\[batch, height, width, channels"),
        (lambda s, t: losses.adaptive_average_pool(s, size=(0, 1)), "positive size"),
        (
            lambda s, t: losses.adaptive_average_pool(s[0, 0], size=(1, 1)),
            "height, width",
        ),
        (lambda s, t: losses.ofd_loss(s, t, jnp.ones(4)), r"margins \(3,\).*\(4,\)"),
        (lambda s, t: losses.vid_loss(s, jnp.ones(4), t), r"variance \(3,\).*\(4,\)"),
        (lambda s, t: losses.ofd_margins(s[0, 0, 0], t[0]), "scale and bias"),
        (lambda s, t: losses.cat_kd_loss(s, t[..., :2]), "same classes"),
        (lambda s, t: losses.semckd_loss([[s]], [[t]], s[:, 0]), "teacher's layers"),
        (lambda s, t: losses.mgd_mask(None, s, masked=1.5), "masked between 0 and 1"),
        (lambda s, t: losses.mgd_mask(None, s, over="all"), "over to be one of"),
        (lambda s, t: losses.class_attention_maps(s, t[0, 0]), "kernel"),
        (
            lambda s, t: losses.srrl_loss(s[..., :2], t, s[:, 0, 0], s[:, 0, 0]),
            "same channels",
        ),
    ],
)
def test_misuse_says_what_to_do(call, words):
    with pytest.raises(ValueError, match=words):
        call(jnp.float32(STUDENT), jnp.float32(TEACHER))
