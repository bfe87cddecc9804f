"""What single adapters of features do, beyond shapes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from kdjax import adapters, losses

RNG = np.random.default_rng(0)


def _maps(height, width, channels, batch=4):
    return jnp.asarray(RNG.normal(size=(batch, height, width, channels)), jnp.float32)


def _init(module, *inputs):
    # A generator that compiles quickly.
    key = jax.random.key(0, impl="unsafe_rbg")
    return jax.jit(functools.partial(module.init, train=False))(key, *inputs)


def test_regressor_brings_the_hint_loss_down():
    student, hint = _maps(8, 8, 3), nn.relu(_maps(4, 4, 2))
    regressor = adapters.Regressor(hint_shape=hint.shape)
    variables = _init(regressor, student)

    @jax.jit
    def step(params):
        def loss_fn(params):
            guided, _ = regressor.apply(
                {**variables, "params": params},
                student,
                train=True,
                mutable=["batch_stats"],
            )
            return jnp.mean(losses.hint_loss(guided, hint))

        loss, grads = jax.value_and_grad(loss_fn)(params)
        return loss, jax.tree.map(lambda x, g: x - 0.3 * g, params, grads)

    history, params = [], variables["params"]
    for _ in range(30):
        loss, params = step(params)
        history.append(float(loss))
    assert history[-1] < 0.7 * history[0]


def test_transposed_regressor_sees_what_pytorch_s_does():
    """Pixel h goes to rows 2h - 1 to 2h + 2: kernel 4, stride 2, padding 1."""
    regressor = adapters.Regressor(hint_shape=(1, 8, 8, 1), activation=False)
    one = jnp.zeros((1, 4, 4, 1)).at[0, 1, 2, 0].set(1)
    variables = _init(regressor, one)
    image = regressor.apply(variables, one, train=False)[0, :, :, 0]
    rows, columns = np.nonzero(np.asarray(image))
    assert set(rows) == {1, 2, 3, 4}
    assert set(columns) == {3, 4, 5, 6}


def test_connector_is_linear_then_normalised():
    features = _maps(3, 2, 4)
    connector = adapters.Connector(channels=5)
    variables = _init(connector, features)
    kernel = np.asarray(variables["params"]["conv"]["kernel"][0, 0])
    expected = np.asarray(features) @ kernel
    evaluated = connector.apply(variables, features, train=False)
    np.testing.assert_allclose(
        evaluated, expected / np.sqrt(1 + 1e-5), rtol=1e-4, atol=1e-6
    )
    trained, _ = connector.apply(
        variables, features, train=True, mutable=["batch_stats"]
    )
    expected = (expected - expected.mean((0, 1, 2))) / expected.std((0, 1, 2))
    np.testing.assert_allclose(trained, expected, rtol=1e-3, atol=1e-4)
    positive = adapters.Connector(channels=5, activation=True)
    np.testing.assert_array_equal(
        positive.apply(variables, features, train=False), np.maximum(evaluated, 0)
    )


@pytest.mark.parametrize("initial", [5.0, 0.5])
def test_variance_begins_as_published_and_is_learned(initial):
    student, teacher = _maps(3, 2, 4), _maps(3, 2, 5)
    module = adapters.VariationalRegressor(channels=5, initial_variance=initial)
    variables = _init(module, student)
    mean, variance = module.apply(variables, student, train=True)
    np.testing.assert_allclose(variance, initial, rtol=1e-5)
    # The best variance is the mean squared error: too large a one must come down.
    error = jnp.mean((mean - teacher) ** 2, axis=(0, 1, 2))

    def loss_fn(variables):
        return jnp.mean(
            losses.vid_loss(*module.apply(variables, student, train=True), teacher)
        )

    grad = jax.grad(loss_fn)(variables)["params"]["raw_variance"]
    np.testing.assert_array_equal(np.sign(grad), np.sign(variance - error))


def test_paraphraser_s_factor_is_a_translator():
    """The encoder has the same layers, so one's weights fit the other."""
    features = _maps(4, 3, 4)
    paraphraser = adapters.Paraphraser(rate=0.75)
    variables = _init(paraphraser, features)
    apply = jax.jit(functools.partial(paraphraser.apply, train=False))
    factor, _ = apply(variables, features)
    translator = adapters.Translator(factors=3, normalize=False)
    encoder = {"params": {"encoder": variables["params"]["encoder"]}}
    translated = jax.jit(functools.partial(translator.apply, train=False))
    np.testing.assert_allclose(
        translated(encoder, features), factor, rtol=1e-5, atol=1e-6
    )


def test_earlier_layers_see_later_ones_and_not_the_reverse():
    features = _maps(8, 8, 3), _maps(4, 4, 4), _maps(2, 2, 5)
    module = adapters.ReviewFusion(
        teacher_shapes=((1, 8, 8, 2), (1, 4, 4, 2), (1, 2, 2, 2))
    )
    variables = _init(module, *features)
    apply = jax.jit(functools.partial(module.apply, train=False))
    before = apply(variables, *features)
    for i in range(3):
        changed = [x + 1 if j == i else x for j, x in enumerate(features)]
        after = apply(variables, *changed)
        seen = [bool(jnp.any(x != y)) for x, y in zip(before, after, strict=True)]
        assert seen == [j <= i for j in range(3)]


def test_review_enlarges_by_repeating():
    """With attention for the later layer alone, and no convolution after it."""
    features = jnp.zeros((1, 5, 5, 1)), jnp.arange(9.0).reshape(1, 3, 3, 1)
    module = adapters.ReviewFusion(teacher_shapes=((1, 5, 5, 1), (1, 3, 3, 1)))
    variables = _init(module, *features)
    params = jax.tree.map(jnp.zeros_like, variables["params"])
    for level in params.values():
        level["in_conv"]["kernel"] += 1
        level["out_conv"]["kernel"] = level["out_conv"]["kernel"].at[1, 1].set(1)
        level["in_norm"]["scale"] += 1
        level["out_norm"]["scale"] += 1
    params["fusion0"]["attention"]["bias"] = jnp.array([-100.0, 100.0])
    fused, _ = module.apply({**variables, "params": params}, *features, train=False)
    index = np.floor(np.arange(5) * 3 / 5).astype(int)  # As PyTorch rounds.
    expected = np.arange(9.0).reshape(3, 3)[index][:, index]
    np.testing.assert_allclose(fused[0, :, :, 0], expected, rtol=1e-4)


def test_a_perfect_projection_predicts_as_the_teacher():
    features, kernel, bias = _maps(3, 2, 4), RNG.normal(size=(4, 7)), RNG.normal(size=7)
    expected = np.mean(np.asarray(features), axis=(1, 2)) @ kernel + bias
    arrays = jnp.float32(kernel), jnp.float32(bias)
    np.testing.assert_allclose(
        adapters.classify(features, *arrays), expected, rtol=1e-5, atol=1e-6
    )
    pooled = jnp.mean(features, axis=(1, 2))
    np.testing.assert_allclose(
        adapters.classify(pooled, *arrays), expected, rtol=1e-5, atol=1e-6
    )
    half = adapters.classify(features.astype(jnp.bfloat16), arrays[0])
    assert half.dtype == jnp.float32


def test_the_mask_is_random_in_training_given_or_none():
    features = _maps(4, 3, 2)
    module = adapters.MaskedGenerator(channels=2, masked=0.5)
    variables = _init(module, features)

    def apply(mask=None, seed=0, train=True):
        rngs = {"dropout": jax.random.key(seed)}
        return module.apply(variables, features, mask, train=train, rngs=rngs)

    whole = module.apply(variables, features, train=False)
    everything = jnp.ones((4, 1, 1, 1), bool)
    np.testing.assert_array_equal(apply(everything), whole)
    nothing = apply(~everything)
    # What is generated from nothing is the same for every example.
    np.testing.assert_array_equal(nothing, np.broadcast_to(nothing[:1], nothing.shape))
    assert np.any(apply(seed=1) != apply(seed=2))
    assert np.any(apply(seed=1) != whole)


def test_masks_do_not_depend_on_how_many_devices_there_are():
    features = _maps(4, 3, 2, batch=8)
    module = adapters.MaskedGenerator(channels=2, masked=0.5)
    variables, rngs = _init(module, features), {"dropout": jax.random.key(3)}
    expected = module.apply(variables, features, train=True, rngs=rngs)
    module = module.copy(axis_name="devices")
    apply = functools.partial(module.apply, train=True)
    actual = jax.pmap(lambda x: apply(variables, x, rngs=rngs), axis_name="devices")(
        features.reshape(4, 2, *features.shape[1:])
    )
    np.testing.assert_allclose(
        actual.reshape(features.shape), expected, rtol=1e-5, atol=1e-6
    )


def test_attention_is_a_distribution_over_the_teacher_s_layers():
    students, teachers = (
        [_maps(4, 4, 2), _maps(2, 2, 3)],
        [_maps(4, 2, 5), _maps(2, 2, 4)],
    )
    module = adapters.SemanticAttention(batch_size=6, reduction=2)
    variables = _init(module, students, teachers)
    apply = jax.jit(functools.partial(module.apply, train=False))
    values, targets, attention = apply(variables, students, teachers)
    np.testing.assert_allclose(jnp.sum(attention, axis=-1), 1, rtol=1e-6)
    assert np.all(np.std(attention, axis=0) > 0)
    for i, student in enumerate(students):
        for j, teacher in enumerate(teachers):
            size = tuple(min(student.shape[k], teacher.shape[k]) for k in (1, 2))
            expected = losses.adaptive_average_pool(teacher, size=size)
            np.testing.assert_allclose(targets[i][j], expected, rtol=1e-5, atol=1e-6)
            assert values[i][j].shape == expected.shape
    assert losses.semckd_loss(values, targets, attention).shape == (4,)


def test_attention_does_not_depend_on_how_many_devices_there_are():
    students, teachers = [_maps(2, 2, 2, batch=8)], [_maps(2, 2, 3, batch=8)] * 2
    module = adapters.SemanticAttention(batch_size=8)
    variables = _init(module, students, teachers)
    expected = module.apply(variables, students, teachers, train=False)
    parallel = module.copy(axis_name="devices")
    actual = jax.pmap(
        lambda *x: parallel.apply(variables, *x, train=False), axis_name="devices"
    )(*jax.tree.map(lambda x: x.reshape(4, 2, *x.shape[1:]), (students, teachers)))
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(
            x.reshape(y.shape), y, rtol=1e-4, atol=1e-5
        ),
        actual,
        expected,
    )


@pytest.mark.usefixtures("as_in_production")
def test_misuse_says_what_was_expected():
    key = jax.random.key(0)
    small = _maps(2, 2, 3)
    with pytest.raises(ValueError, match=r"half the hint's height.*\(5, 5\), twice"):
        adapters.Regressor(hint_shape=(4, 5, 5, 3)).init(key, small, train=False)
    with pytest.raises(ValueError, match=r"hint_shape \[batch, height.*got \(4, 3\)"):
        adapters.Regressor(hint_shape=(4, 3)).init(key, small, train=False)
    with pytest.raises(
        ValueError, match="Expected 2 features, as teacher_shapes, got 1"
    ):
        adapters.ReviewFusion(teacher_shapes=((4, 2), (4, 3))).init(
            key, small, train=False
        )
    with pytest.raises(ValueError, match="at most batch_size = 3 examples, got 4"):
        adapters.SemanticAttention(batch_size=3).init(
            key, [small], [small], train=False
        )
    with pytest.raises(ValueError, match=r"Expected kernel .*got \(5, 7\)"):
        adapters.classify(small, jnp.ones((5, 7)))
