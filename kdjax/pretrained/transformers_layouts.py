"""How the transformers library names the parameters of BERT and DistilBERT.

MiniLM and TinyBERT are BERTs by their names.
"""

import re
from collections.abc import Callable, Mapping

import numpy as np

# Within a block, and outside: theirs, without `.weight` and `.bias`, and ours.
_BERT_BLOCK = {
    "attention.self.query": "queries",
    "attention.self.key": "keys",
    "attention.self.value": "values",
    "attention.output.dense": "attended",
    "attention.output.LayerNorm": "attended_norm",
    "intermediate.dense": "hidden",
    "output.dense": "output",
    "output.LayerNorm": "output_norm",
}
_DISTILBERT_BLOCK = {
    "attention.q_lin": "queries",
    "attention.k_lin": "keys",
    "attention.v_lin": "values",
    "attention.out_lin": "attended",
    "sa_layer_norm": "attended_norm",
    "ffn.lin1": "hidden",
    "ffn.lin2": "output",
    "output_layer_norm": "output_norm",
}
_OUTSIDE = {
    "embeddings.word_embeddings": "tokens",
    "embeddings.position_embeddings": "positions",
    "embeddings.token_type_embeddings": "segments",
    "embeddings.LayerNorm": "norm",
    "pooler.dense": "pooler",
    "pre_classifier": "pooler",
    "classifier": "classifier",
}
_BLOCKS = {r"encoder\.layer": _BERT_BLOCK, r"transformer\.layer": _DISTILBERT_BLOCK}

# Buffers, and the heads that these models were pretrained with.
_LEFT_OUT = (
    r"embeddings\.position_ids|cls\..*|vocab_(transform|layer_norm|projector)\..*"
)


def encoder(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """BERT's and DistilBERT's tensors by our paths; what has no place keeps its name.

    Files from TensorFlow call the LayerNorms' scale `gamma` and their bias `beta`.
    """
    found = {}
    for name, x in tensors.items():
        inner = re.sub(r"^(bert|distilbert)\.", "", name)
        module, _, leaf = inner.rpartition(".")
        ours = _module(module)
        if ours is not None:
            path = f"params/{ours}/{_leaf(ours, leaf)}"
            found[path] = x.T if path.endswith("/kernel") else x
        elif not re.fullmatch(_LEFT_OUT, inner):
            found[name] = x
    return found


CONVERSIONS: Mapping[str, Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]]
CONVERSIONS = {"bert": encoder}


def _module(theirs: str) -> str | None:
    for blocks, names in _BLOCKS.items():
        if inside := re.fullmatch(rf"{blocks}\.(\d+)\.(.+)", theirs):
            ours = names.get(inside[2])
            return None if ours is None else f"block{int(inside[1]) + 1}/{ours}"
    return _OUTSIDE.get(theirs)


def _leaf(ours: str, theirs: str) -> str:
    if theirs in ("bias", "beta"):
        return "bias"
    if ours.endswith("norm"):
        return "scale"
    return "embedding" if ours in ("tokens", "positions", "segments") else "kernel"
