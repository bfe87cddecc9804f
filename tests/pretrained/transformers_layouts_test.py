"""Encoders with the names of transformers: the same logits, here and there."""

import functools
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from kdjax import models, pretrained
from kdjax.types import UserError

TOKENS = np.array([[2, 5, 7, 3, 0], [2, 9, 3, 0, 0]], np.int32)
MASK = np.array([[1, 1, 1, 1, 0], [1, 1, 1, 0, 0]], bool)
SIZES = dict(vocab_size=11, dim=6, depth=2, heads=2, hidden=7, max_positions=9)
BERT = {
    "embeddings.LayerNorm": (6,),
    "embeddings.position_embeddings": (9, 6),
    "embeddings.token_type_embeddings": (2, 6),
    "embeddings.word_embeddings": (11, 6),
    "attention.output.LayerNorm": (6,),
    "attention.output.dense": (6, 6),
    "attention.self.key": (6, 6),
    "attention.self.query": (6, 6),
    "attention.self.value": (6, 6),
    "intermediate.dense": (7, 6),
    "output.LayerNorm": (6,),
    "output.dense": (6, 7),
    "pooler.dense": (6, 6),
}
DISTILBERT = {
    "embeddings.LayerNorm": (6,),
    "embeddings.position_embeddings": (9, 6),
    "embeddings.word_embeddings": (11, 6),
    "attention.k_lin": (6, 6),
    "attention.out_lin": (6, 6),
    "attention.q_lin": (6, 6),
    "attention.v_lin": (6, 6),
    "ffn.lin1": (7, 6),
    "ffn.lin2": (6, 7),
    "output_layer_norm": (6,),
    "sa_layer_norm": (6,),
}
# Logits of transformers 5.24 and torch 2.14 for `_tensors`, checked again by the
# slow test: Bert- and DistilBertForSequenceClassification.
RECORDED = {
    "bert": [[-2.435375, 3.1735005, 1.8838145], [-2.4373696, 3.1764426, 1.8849964]],
    "distilbert": [
        [-3.1792655, 1.114196, -2.6868596],
        [-3.1943843, 1.1139302, -2.6948848],
    ],
}


def _shapes(kind):
    """The names of a state dict of transformers, two blocks, with their shapes."""
    names, blocks = {
        "bert": (BERT, "encoder.layer"),
        "distilbert": (DISTILBERT, "transformer.layer"),
    }[kind]
    weights = {}
    for name, shape in names.items():
        if name.startswith(("embeddings", "pooler")):
            weights[f"{kind}.{name}"] = shape
        else:
            weights |= {f"{kind}.{blocks}.{i}.{name}": shape for i in (0, 1)}
    weights["classifier"] = (3, 6)
    if kind == "distilbert":
        weights["pre_classifier"] = (6, 6)
    shapes = {f"{name}.weight": shape for name, shape in weights.items()}
    for name, shape in weights.items():
        if not name.endswith("_embeddings"):
            shapes[f"{name}.bias"] = shape[:1]
    return shapes


def _tensors(shapes):
    """The same numbers wherever they are made, in the order of the names."""
    rng = np.random.default_rng(7)
    return {
        name: rng.normal(size=shapes[name]).astype(np.float32)
        for name in sorted(shapes)
    }


def _module(kind, **changes):
    more = dict(segments=0, pooler="relu") if kind == "distilbert" else {}
    settings = {**SIZES, **more, **changes}
    return models.create("bert", num_classes=3, among=models.ENCODERS, **settings)


@functools.cache
def _like(module):
    inputs = {"tokens": jnp.zeros((1, 2), jnp.int32), "mask": jnp.ones((1, 2), bool)}
    return module.init(jax.random.key(0), inputs, train=False)


def _logits(module, tensors, tokens=TOKENS, mask=MASK):
    variables = pretrained.to_variables(tensors, _like(module))
    inputs = {"tokens": jnp.asarray(tokens), "mask": jnp.asarray(mask)}
    return module.apply(variables, inputs, train=False).logits


@pytest.mark.parametrize("kind", RECORDED)
def test_logits_are_those_of_transformers(kind):
    logits = _logits(_module(kind), _tensors(_shapes(kind)))
    np.testing.assert_allclose(logits, RECORDED[kind], atol=1e-5)


@pytest.mark.parametrize("kind", RECORDED)
def test_other_spellings_of_the_same_model(kind):
    """Of an old TensorFlow file, of the bare encoder, and with a pretraining head."""
    tensors = _tensors(_shapes(kind))
    spelled = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma")
        .replace("LayerNorm.bias", "LayerNorm.beta")
        .replace(f"{kind}.", ""): x
        for name, x in tensors.items()
    }
    spelled["embeddings.position_ids"] = np.arange(9)[None]
    spelled["cls.predictions.bias"] = np.zeros(11, np.float32)
    spelled["vocab_projector.bias"] = np.zeros(11, np.float32)
    module = _module(kind)
    np.testing.assert_array_equal(_logits(module, spelled), _logits(module, tensors))


def test_a_missing_layer_is_named():
    tensors = _tensors(_shapes("bert"))
    del tensors["bert.encoder.layer.1.output.dense.bias"]
    with pytest.raises(UserError, match="first is params/block2/output/bias"):
        _logits(_module("bert"), tensors)


def test_a_deeper_model_is_refused():
    with pytest.raises(UserError, match=r"16 are unknown.*block2"):
        _logits(_module("bert", depth=1), _tensors(_shapes("bert")))


def test_a_head_is_made_anew_only_where_it_is_asked_for():
    tensors = _tensors(_shapes("bert"))
    other = models.create("bert", num_classes=5, among=models.ENCODERS, **SIZES)
    like = _like(other)
    with pytest.raises(UserError, match="another number of classes"):
        pretrained.to_variables(tensors, like)
    for without in (False, True):
        if without:
            tensors = {k: x for k, x in tensors.items() if "classifier" not in k}
        made = pretrained.to_variables(tensors, like, optional=["params/classifier"])
        for leaf in ("kernel", "bias"):
            own = like["params"]["classifier"][leaf]
            np.testing.assert_array_equal(made["params"]["classifier"][leaf], own)
        own = tensors["bert.pooler.dense.weight"].T
        np.testing.assert_array_equal(made["params"]["pooler"]["kernel"], own)


@pytest.mark.slow
@pytest.mark.parametrize("kind", RECORDED)
def test_parity_with_transformers(kind):
    """The same random weights there, on a batch with padding; and what is recorded."""
    torch = pytest.importorskip("torch", reason="pip install 'kdjax[parity]'")
    theirs = pytest.importorskip("transformers", reason="pip install 'kdjax[parity]'")
    small = _theirs(theirs, kind, dict(SIZES))
    np.testing.assert_allclose(
        _ask(torch, small, _tensors(_shapes(kind)), TOKENS, MASK),
        RECORDED[kind],
        atol=1e-5,
    )
    sizes = dict(vocab_size=97, dim=48, depth=3, heads=4, hidden=80, max_positions=40)
    model = _theirs(theirs, kind, sizes)
    state = {k: x for k, x in model.state_dict().items() if x.is_floating_point()}
    rng = np.random.default_rng(2)
    tensors = {
        name: (0.2 * rng.normal(size=tuple(x.shape))).astype(np.float32)
        for name, x in state.items()
    }
    tokens = rng.integers(1, 97, (5, 23)).astype(np.int32)
    mask = np.arange(23) < np.array([23, 17, 9, 4, 2])[:, None]
    ours = _logits(_module(kind, **sizes), tensors, tokens, mask)
    there = _ask(torch, model, tensors, tokens, mask)
    assert np.abs(ours - there).max() < 1e-4


def _theirs(theirs, kind, sizes):
    if kind == "bert":
        return theirs.BertForSequenceClassification(
            theirs.BertConfig(
                vocab_size=sizes["vocab_size"],
                hidden_size=sizes["dim"],
                num_hidden_layers=sizes["depth"],
                num_attention_heads=sizes["heads"],
                intermediate_size=sizes["hidden"],
                max_position_embeddings=sizes["max_positions"],
                num_labels=3,
            )
        )
    return theirs.DistilBertForSequenceClassification(
        theirs.DistilBertConfig(
            vocab_size=sizes["vocab_size"],
            dim=sizes["dim"],
            n_layers=sizes["depth"],
            n_heads=sizes["heads"],
            hidden_dim=sizes["hidden"],
            max_position_embeddings=sizes["max_positions"],
            num_labels=3,
        )
    )


def _ask(torch, model, tensors, tokens, mask):
    state = {name: torch.from_numpy(x.copy()) for name, x in tensors.items()}
    model.load_state_dict(state, strict=False)
    model.eval()
    with torch.no_grad():
        given = torch.from_numpy(tokens).long(), torch.from_numpy(mask).long()
        return model(input_ids=given[0], attention_mask=given[1]).logits.numpy()


@pytest.mark.slow
def test_minilm_gives_the_embeddings_of_its_model_card():
    """Of "This is an example sentence": the mean over its tokens, of length 1."""
    tokenizers = pytest.importorskip("tokenizers", reason="pip install 'kdjax[text]'")
    if "KDJAX_DATA" not in os.environ:
        pytest.skip(
            "python benchmarks/fetch_data.py --out=data minilm_l6, then KDJAX_DATA=data"
        )
    folder = pathlib.Path(os.environ["KDJAX_DATA"]) / "minilm_l6"
    module = models.create("minilm_l6", num_classes=2, among=models.ENCODERS)
    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    head = ["params/classifier"]
    variables = pretrained.to_variables(tensors, _like(module), optional=head)
    pieces = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    texts = (
        "This is an example sentence",
        "A man is playing a guitar",
        "Someone plays the guitar",
    )
    encoded = pieces.encode_batch(texts)
    tokens = np.array([x.ids for x in encoded], np.int32)
    mask = np.array([x.attention_mask for x in encoded], bool)
    inputs = {"tokens": jnp.asarray(tokens), "mask": jnp.asarray(mask)}
    last = module.apply(variables, inputs, train=False).features["block6"]
    means = np.stack(
        [x[m].mean(0) for x, m in zip(np.asarray(last), mask, strict=True)]
    )
    found = means / np.linalg.norm(means, axis=-1, keepdims=True)
    card = [0.06766, 0.06350, 0.04871, 0.07931, 0.03745]
    np.testing.assert_allclose(found[0, :5], card, atol=1e-5)
    assert found[1] @ found[2] > 0.7 > 0.3 > found[0] @ found[1]
