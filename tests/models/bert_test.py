"""The encoder of texts against its equations in NumPy, and laws of padding."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from kdjax import models
from kdjax.types import UserError

DIM, HEADS, CLASSES, VOCABULARY, LENGTH = 6, 2, 3, 11, 5
SIZES = dict(dim=DIM, depth=2, heads=HEADS, hidden=7, max_positions=9)
KEY = jax.random.key(0, impl="unsafe_rbg")  # It compiles quickly.
TOKENS = np.array([[2, 5, 7, 3, 0], [2, 9, 3, 0, 0], [0, 0, 0, 0, 0]], np.int32)
MASK = np.array([[1, 1, 1, 1, 0], [1, 1, 1, 0, 0], [0, 0, 0, 0, 0]], bool)


def _module(**changes):
    settings = {"vocab_size": VOCABULARY, "dropout": 0.0, **SIZES, **changes}
    return models.create("bert", num_classes=CLASSES, among=models.ENCODERS, **settings)


def _inputs(tokens=TOKENS, mask=MASK, **more):
    arrays = {"tokens": tokens, "mask": mask, **more}
    return {name: jnp.asarray(x) for name, x in arrays.items()}


def _random(module):
    """Variables random in every entry, so that no bias or scale is trivial."""
    init = functools.partial(module.init, train=False)
    shapes = jax.eval_shape(init, KEY, _inputs())
    rng = np.random.default_rng(1)
    return jax.tree.map(
        lambda x: jnp.asarray(0.5 * rng.normal(size=x.shape), x.dtype), shapes
    )


def _norm(x, params):
    centred = x - x.mean(-1, keepdims=True)
    unit = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-12)
    return unit * params["scale"] + params["bias"]


def _dense(x, params):
    return x @ params["kernel"] + params["bias"]


def _block(x, params):
    """Of one text without padding, head by head; and its scores."""
    q, k, v = (_dense(x, params[name]) for name in ("queries", "keys", "values"))
    size = DIM // HEADS
    attended, scores = [], []
    for i in range(HEADS):
        part = slice(i * size, (i + 1) * size)
        scores.append(q[:, part] @ k[:, part].T / np.sqrt(size))
        attended.append(special.softmax(scores[-1], axis=-1) @ v[:, part])
    attended = np.concatenate(attended, axis=-1)
    x = _norm(x + _dense(attended, params["attended"]), params["attended_norm"])
    hidden = _dense(x, params["hidden"])
    hidden = _dense(hidden * special.ndtr(hidden), params["output"])
    return _norm(x + hidden, params["output_norm"]), np.stack(scores)


@pytest.mark.parametrize("kind", ["bert", "distilbert"])
def test_a_text_is_encoded_as_the_equations_say(kind):
    changes = dict(segments=0, pooler="relu") if kind == "distilbert" else {}
    module = _module(**changes)
    variables = _random(module)
    outputs = module.apply(variables, _inputs(), train=False)
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), variables["params"])
    for row, length in ((0, 4), (1, 3)):
        x = params["tokens"]["embedding"][TOKENS[row, :length]]
        x = x + params["positions"]["embedding"][:length]
        if kind == "bert":
            x = x + params["segments"]["embedding"][0]
        x = _norm(x, params["norm"])
        np.testing.assert_allclose(
            outputs.features["embeddings"][row, :length], x, atol=1e-5
        )
        for i in (1, 2):
            x, scores = _block(x, params[f"block{i}"])
            found = outputs.features[f"block{i}_scores"][row, :, :length, :length]
            np.testing.assert_allclose(found, scores, atol=1e-5)
            found = outputs.features[f"block{i}"][row, :length]
            np.testing.assert_allclose(found, x, atol=1e-5)
        pooled = _dense(x[0], params["pooler"])
        pooled = np.tanh(pooled) if kind == "bert" else np.maximum(pooled, 0)
        logits = _dense(pooled, params["classifier"])
        np.testing.assert_allclose(outputs.logits[row], logits, atol=1e-5)


def test_segments_tell_the_texts_of_a_pair_apart():
    module = _module()
    variables = _random(module)
    segments = np.array([[0, 0, 1, 1, 0]] * 3, np.int32)
    one, pair = (
        module.apply(variables, _inputs(**more), train=False).features["embeddings"]
        for more in ({}, {"segments": segments})
    )
    np.testing.assert_array_equal(one[:, :2], pair[:, :2])
    assert not np.allclose(one[:, 2], pair[:, 2])


def _loss(module, params, inputs, targets):
    """Of the logits and of all tokens that are none of padding, and not of a mean."""
    outputs = module.apply({"params": params}, inputs, train=False)
    last = outputs.features["block2"]
    where = inputs["mask"][..., None].astype(jnp.float32)
    return jnp.sum(jnp.sin(outputs.logits) * targets) + jnp.sum(jnp.cos(last) * where)


def test_longer_padding_changes_no_loss_and_no_gradient():
    module = _module()
    params = _random(module)["params"]
    targets = jnp.arange(9.0).reshape(3, 3).at[2].set(0)  # The third is no text.
    longer = _inputs(*(np.pad(x, [(0, 0), (0, 4)]) for x in (TOKENS, MASK)))
    longer["tokens"] = jnp.where(longer["mask"], longer["tokens"], 8)
    grad = jax.value_and_grad(functools.partial(_loss, module))
    short, long = (grad(params, x, targets) for x in (_inputs(), longer))
    np.testing.assert_allclose(short[0], long[0], rtol=1e-5)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5),
        short[1],
        long[1],
    )


def test_a_row_without_a_token_gives_numbers():
    module = _module()
    params = _random(module)["params"]
    grads = jax.grad(functools.partial(_loss, module))(params, _inputs(), 1.0)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(grads))


def test_dropout_is_of_training_alone_and_of_the_key():
    module = _module(dropout=0.5)
    variables = _random(module)

    def logits(train, seed):
        rngs = {"dropout": jax.random.key(seed)}
        return module.apply(variables, _inputs(), train=train, rngs=rngs).logits

    np.testing.assert_array_equal(logits(False, 0), logits(False, 1))
    np.testing.assert_array_equal(logits(True, 0), logits(True, 0))
    assert not np.allclose(logits(True, 0), logits(True, 1))


def test_sizes_are_those_of_the_papers():
    """Parameters in millions, as published with each."""
    sizes = {
        "bert_base": 109,
        "distilbert_base": 66,
        "minilm_l12": 33,
        "minilm_l6": 22,
        "tinybert_4": 14.5,
        "tinybert_6": 67,
    }
    for name, millions in sizes.items():
        module = models.create(name, num_classes=2, among=models.ENCODERS)
        init = functools.partial(module.init, train=False)
        params = jax.eval_shape(init, KEY, _inputs())["params"]
        count = sum(x.size for x in jax.tree.leaves(params))
        assert count / 1e6 == pytest.approx(millions, abs=1), name


@pytest.mark.parametrize(
    ("changes", "words"),
    [(dict(heads=4), "heads that divide"), (dict(max_positions=4), "at most max")],
)
def test_what_does_not_fit_is_told(changes, words):
    with pytest.raises(ValueError, match=words):
        _module(**changes).init(KEY, _inputs(), train=False)


def test_a_name_of_images_is_none_of_texts():
    with pytest.raises(UserError, match="did you mean"):
        models.create("resnet20", num_classes=2, among=models.ENCODERS)
