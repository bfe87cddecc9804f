"""GPT-2 and Llama as Hugging Face's transformers name them, to `models.decoder`.

Queries, keys and values are one matrix here. GPT-2's `Conv1D` has its axes in our
order; Llama's linear layers have PyTorch's, and their rotary halves are as ours.
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from kdjax.pretrained.layouts import Layout, Tensors

_HEAD = "params/head/kernel"
_GPT2 = {
    "wte.weight": "embed/embedding",
    "wpe.weight": "positions/embedding",
    "ln_f.weight": "norm/scale",
    "ln_f.bias": "norm/bias",
}
_GPT2_BLOCK = {
    "ln_1.weight": "norm1/scale",
    "ln_1.bias": "norm1/bias",
    "ln_2.weight": "norm2/scale",
    "ln_2.bias": "norm2/bias",
    "attn.c_attn.weight": "qkv/kernel",
    "attn.c_attn.bias": "qkv/bias",
    "attn.c_proj.weight": "output/kernel",
    "attn.c_proj.bias": "output/bias",
    "mlp.c_fc.weight": "up/kernel",
    "mlp.c_fc.bias": "up/bias",
    "mlp.c_proj.weight": "down/kernel",
    "mlp.c_proj.bias": "down/bias",
}
_LLAMA = {
    "embed_tokens.weight": "embed/embedding",
    "norm.weight": "norm/scale",
}
_LLAMA_BLOCK = {
    "input_layernorm.weight": "norm1/scale",
    "post_attention_layernorm.weight": "norm2/scale",
    "self_attn.qkv_proj.weight": "qkv/kernel",
    "self_attn.o_proj.weight": "output/kernel",
    "mlp.gate_proj.weight": "gate/kernel",
    "mlp.up_proj.weight": "up/kernel",
    "mlp.down_proj.weight": "down/kernel",
}
_QKV = tuple(f"self_attn.{x}_proj.weight" for x in "qkv")

# Older files hold the causal mask, or what is computed from the config.
_IGNORED = r"h\.\d+\.attn\.(masked_)?bias|layers\.\d+\..*rotary_emb\.inv_freq"


def gpt2(tensors: Tensors, expected: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """GPT2LMHeadModel's tensors by our paths; what has no place keeps its name."""
    tensors = {name.removeprefix("transformer."): x for name, x in tensors.items()}
    found = _head(tensors, "wte.weight", expected)
    return found | _renamed(tensors, _GPT2, _GPT2_BLOCK, r"h\.(\d+)\.(.+)")


def llama(tensors: Tensors, expected: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """LlamaForCausalLM's tensors by our paths; what has no place keeps its name."""
    tensors = {name.removeprefix("model."): x for name, x in tensors.items()}
    found = _head(tensors, "embed_tokens.weight", expected)
    block = r"layers\.(\d+)\.(.+)"
    renamed = _renamed(_fused(tensors), _LLAMA, _LLAMA_BLOCK, block)
    return found | {
        name: x.T if name.endswith("/kernel") else x for name, x in renamed.items()
    }


LAYOUTS: Mapping[str, Layout] = {"gpt2": gpt2, "llama": llama}


def _renamed(
    tensors: Tensors, outside: Mapping[str, str], inside: Mapping[str, str], block: str
) -> dict[str, np.ndarray]:
    found = {}
    for name, x in tensors.items():
        ours = outside.get(name)
        if parts := re.fullmatch(block, name):
            ours = inside.get(parts[2])
            ours = None if ours is None else f"blocks_{parts[1]}/{ours}"
        if not re.fullmatch(_IGNORED, name):
            found[name if ours is None else f"params/{ours}"] = x
    return found


def _fused(tensors: Tensors) -> dict[str, np.ndarray]:
    """With one matrix for queries, keys and values, where a block has all three."""
    fused = dict(tensors)
    for name in tensors:
        if not name.endswith(_QKV[0]):
            continue
        block = name.removesuffix(_QKV[0])
        parts = [fused[block + x] for x in _QKV if block + x in fused]
        if len(parts) == len(_QKV):
            for x in _QKV:
                del fused[block + x]
            fused[f"{block}self_attn.qkv_proj.weight"] = np.concatenate(parts)
    return fused


def _head(
    tensors: dict[str, np.ndarray], embedding: str, expected: Mapping[str, Any]
) -> dict[str, np.ndarray]:
    """Takes the head out of the tensors; one that repeats the embedding is dropped."""
    head = tensors.pop("lm_head.weight", None)
    if head is None:
        return {}
    if _HEAD not in expected and np.array_equal(head, tensors.get(embedding, ())):
        return {}
    return {_HEAD: head.T}
