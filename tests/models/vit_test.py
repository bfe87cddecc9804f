"""The vision transformer against its equations in NumPy, and laws of its own."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from kdjax import losses, models
from kdjax.models import layers_of, vit

DIM, HEADS, PATCH, CLASSES = 8, 2, 2, 5
MODULE = models.create(
    "vit", num_classes=CLASSES, patch_size=PATCH, dim=DIM, depth=2, heads=HEADS
)
PIXELS = np.random.default_rng(0).normal(size=(3, 6, 4, 3))
IMAGES = jnp.asarray(PIXELS, jnp.float32)
KEY = jax.random.key(0, impl="unsafe_rbg")  # It compiles quickly.
TOKENS = 1 + 3 * 2


@pytest.fixture(scope="module")
def variables():
    return _random(MODULE)


def _random(module):
    """Variables random in every entry, so that no bias or scale is trivial."""
    init = functools.partial(module.init, train=False)
    shapes = jax.eval_shape(init, KEY, IMAGES)
    rng = np.random.default_rng(1)
    return jax.tree.map(
        lambda x: jnp.asarray(0.3 * rng.normal(size=x.shape), x.dtype), shapes
    )


@functools.cache
def _apply():
    return jax.jit(functools.partial(MODULE.apply, train=False))


def _norm(x, params):
    centred = x - x.mean(-1, keepdims=True)
    unit = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)
    return unit * params["scale"] + params["bias"]


def _dense(x, params):
    return x @ params["kernel"] + params["bias"]


def _gelu(x):
    return x * special.ndtr(x)


def _attention(x, params):
    """Of one image, head by head, and its scores."""
    queries, keys, values = np.split(_dense(x, params), 3, axis=-1)
    outputs, scores = [], []
    for a in range(HEADS):
        part = slice(a * DIM // HEADS, (a + 1) * DIM // HEADS)
        scores.append(queries[:, part] @ keys[:, part].T / np.sqrt(DIM / HEADS))
        outputs.append(special.softmax(scores[-1], axis=-1) @ values[:, part])
    return np.concatenate(outputs, axis=-1), (queries, keys, values, np.stack(scores))


def _oracle(image, params):
    """The logits and features of one image, in float64."""
    rows = [
        image[i : i + PATCH, j : j + PATCH].ravel()
        for i in range(0, image.shape[0], PATCH)
        for j in range(0, image.shape[1], PATCH)
    ]
    conv = params["Conv_0"]
    patches = np.stack(rows) @ conv["kernel"].reshape(-1, DIM) + conv["bias"]
    x = np.concatenate([params["class_token"][0], patches]) + params["positions"][0]
    features = {"embeddings": x}
    for i in (1, 2):
        block = params[f"Block_{i - 1}"]
        attended, inner = _attention(_norm(x, block["LayerNorm_0"]), block["Dense_0"])
        x = x + _dense(attended, block["Dense_1"])
        hidden = _gelu(_dense(_norm(x, block["LayerNorm_1"]), block["Dense_2"]))
        x = x + _dense(hidden, block["Dense_3"])
        for name, value in zip(
            ("queries", "keys", "values", "scores"), inner, strict=True
        ):
            features[f"block{i}_{name}"] = value
        features[f"block{i}"] = x
    features["pooled"] = _norm(x[0], params["LayerNorm_0"])
    return _dense(features["pooled"], params["Dense_0"]), features


@pytest.mark.parametrize("size", [1.0, 1e-3])
def test_values_are_those_of_the_equations(variables, size):
    """Small tokens too, of which LayerNorm's epsilon is a part."""
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), variables["params"])
    for name in ("Conv_0", "class_token", "positions"):
        params[name] = jax.tree.map(lambda x: size * x, params[name])
    outputs = _apply()({"params": jax.tree.map(jnp.float32, params)}, IMAGES)
    for i, image in enumerate(PIXELS):
        logits, features = _oracle(image, params)
        np.testing.assert_allclose(outputs.logits[i], logits, rtol=1e-4, atol=1e-5)
        for name, value in features.items():
            np.testing.assert_allclose(
                outputs.features[name][i], value, rtol=1e-4, atol=1e-5, err_msg=name
            )


def test_names_and_shapes_of_features(variables):
    features = dict(_apply()(variables, IMAGES).features)
    assert features.pop("pooled").shape == (3, DIM)
    assert features.pop("embeddings").shape == (3, TOKENS, DIM)
    for block in ("block1", "block2"):
        assert features.pop(block).shape == (3, TOKENS, DIM)
        for name in ("queries", "keys", "values"):
            assert features.pop(f"{block}_{name}").shape == (3, TOKENS, DIM)
        assert features.pop(f"{block}_scores").shape == (3, HEADS, TOKENS, TOKENS)
    assert not features


def test_without_positions_the_order_of_the_patches_does_not_matter(variables):
    order = np.array([4, 0, 5, 2, 1, 3])
    patches = PIXELS.reshape(3, 3, PATCH, 2, PATCH, 3).swapaxes(2, 3)
    patches = patches.reshape(3, 6, PATCH, PATCH, 3)[:, order]
    patches = patches.reshape(3, 3, 2, PATCH, PATCH, 3).swapaxes(2, 3)
    permuted = jnp.asarray(patches.reshape(PIXELS.shape), jnp.float32)
    params = dict(variables["params"])
    assert np.any(
        np.abs(
            _apply()(variables, IMAGES).logits - _apply()(variables, permuted).logits
        )
        > 1e-3
    )
    params["positions"] = jnp.zeros_like(params["positions"])
    before, after = (_apply()({"params": params}, x) for x in (IMAGES, permuted))
    np.testing.assert_allclose(after.logits, before.logits, rtol=1e-4, atol=1e-5)
    tokens = np.array([0, *(1 + order)])
    for name in ("embeddings", "block2", "block2_values"):
        np.testing.assert_allclose(
            after.features[name],
            before.features[name][:, tokens],
            rtol=1e-4,
            atol=1e-5,
        )
    scores = before.features["block2_scores"][:, :, tokens][..., tokens]
    np.testing.assert_allclose(
        after.features["block2_scores"], scores, rtol=1e-4, atol=1e-5
    )


def test_the_classifier_is_where_that_of_the_other_models_is(variables):
    outputs = _apply()(variables, IMAGES)
    kernel, bias = layers_of.classifier(variables)
    logits = outputs.features["pooled"] @ kernel + bias.reshape(1, -1)
    np.testing.assert_allclose(logits, outputs.logits, rtol=1e-5, atol=1e-5)


def test_attention_of_equal_keys_is_a_mean():
    queries, values = np.random.default_rng(2).normal(size=(2, 3, 7, DIM))
    attended, scores = vit.attend(
        jnp.float32(queries), jnp.ones((3, 7, DIM)), jnp.float32(values), heads=HEADS
    )
    expected = np.broadcast_to(values.mean(1, keepdims=True), values.shape)
    np.testing.assert_allclose(attended, expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(np.ptp(scores, axis=-1), 0, atol=1e-6)


def test_half_precision_is_of_the_tokens_and_not_of_the_softmax(variables):
    half = MODULE.copy(dtype=jnp.bfloat16)
    with jax.numpy_dtype_promotion("standard"):  # Flax's LayerNorm mixes on purpose.
        outputs = jax.jit(functools.partial(half.apply, train=False))(variables, IMAGES)
    full = _apply()(variables, IMAGES)
    assert outputs.logits.dtype == jnp.float32
    assert outputs.features["block1_scores"].dtype == jnp.bfloat16
    np.testing.assert_allclose(outputs.logits, full.logits, rtol=0.1, atol=0.1)


def test_initial_values_are_deit_s():
    module = models.create("vit", num_classes=100, dim=96, depth=1, heads=3)
    init = jax.jit(functools.partial(module.init, train=False))
    params = init(KEY, jnp.zeros((1, 32, 32, 3)))["params"]
    expected = {"bias": 0.0, "scale": 1.0}
    for path, value in jax.tree_util.tree_leaves_with_path(params):
        name = path[-1].key
        if name in expected:
            np.testing.assert_array_equal(value, expected[name])
        elif path[0].key == "Conv_0":  # PyTorch's: uniform within 1 / sqrt(48).
            np.testing.assert_allclose(np.max(np.abs(value)), 48**-0.5, rtol=0.01)
        else:
            tolerance = 3 / np.sqrt(2 * value.size)  # Three standard deviations.
            np.testing.assert_allclose(np.std(value), 0.02, rtol=tolerance)


def test_the_losses_of_encoders_teach_it():
    """A step down the gradient of each brings it down, from a wider teacher."""
    sizes = {"num_classes": 3, "patch_size": PATCH, "depth": 1, "heads": HEADS}
    module, wider = (models.create("vit", dim=dim, **sizes) for dim in (DIM, 12))
    of_teacher = _random(wider)
    names = [f"block1_{name}" for name in ("queries", "keys", "values")]

    @jax.jit
    def values_and_grads(of_relations, of_scores):
        teacher = _features(wider, of_teacher)

        def relations(params):
            student = _features(module, params)
            both = (side[name] for side in (student, teacher) for name in names)
            return jnp.mean(losses.minilm_relation_loss(*both, num_relation_heads=4))

        def scores(params):
            both = (x["block1_scores"] for x in (_features(module, params), teacher))
            return jnp.mean(losses.tinybert_attention_loss(*both))

        return (
            jax.value_and_grad(relations)(of_relations),
            jax.value_and_grad(scores)(of_scores),
        )

    params = _random(module)
    start = values_and_grads(params, params)
    moved = (
        jax.tree.map(lambda x, g: x - 0.01 * g, params, grads) for _, grads in start
    )
    for (before, grads), (after, _) in zip(
        start, values_and_grads(*moved), strict=True
    ):
        assert after < before
        assert np.all(grads["params"]["Block_0"]["Dense_0"]["kernel"][:, :DIM] != 0)


def _features(module, variables):
    return module.apply(variables, IMAGES, train=False).features


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"patch_size": 4}, r"patch_size that divides images \(6, 4\), got 4"),
        ({"patch_size": 2, "heads": 5}, r"heads that divide dim 192, got 5"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(arguments, words):
    module = models.create("vit", num_classes=3, **arguments)
    with pytest.raises(ValueError, match=words):
        jax.eval_shape(lambda rng: module.init(rng, IMAGES, train=False), KEY)
