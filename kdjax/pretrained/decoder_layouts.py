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
    "self_attn.o_proj.weight": "output/kernel",
    "mlp.gate_proj.weight": "gate/kernel",
    "mlp.up_proj.weight": "up/kernel",
    "mlp.down_proj.weight": "down/kernel",
}
_QKV = tuple(f"self_attn.{x}_proj.weight" for x in "qkv")


def gpt2(tensors: Tensors, expected: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """GPT2LMHeadModel's tensors by our paths; what has no place keeps its name."""
    tensors = _without(tensors, "transformer.")
    found = _head(tensors, "wte.weight", expected)
    for name, x in tensors.items():
        block = re.fullmatch(r"h\.(\d+)\.(.+)", name)
        if block is None:
            ours = _GPT2.get(name)
        elif re.fullmatch(r"attn\.(masked_)?bias", block[2]):
            continue  # The causal mask, which older files hold.
        else:
            ours = _in_block(block[1], _GPT2_BLOCK.get(block[2]))
        found[name if ours is None else f"params/{ours}"] = x
    return found


def llama(tensors: Tensors, expected: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """LlamaForCausalLM's tensors by our paths; what has no place keeps its name."""
    tensors = _without(tensors, "model.")
    found = _head(tensors, "embed_tokens.weight", expected)
    for name, x in tensors.items():
        block = re.fullmatch(r"layers\.(\d+)\.(.+)", name)
        if block is None:
            ours = _LLAMA.get(name)
        elif block[2].endswith("rotary_emb.inv_freq"):
            continue  # Computed.
        elif block[2] in _QKV:
            parts = [tensors.get(f"layers.{block[1]}.{part}") for part in _QKV]
            if all(part is not None for part in parts):
                if block[2] == _QKV[0]:
                    ours = f"params/blocks_{block[1]}/qkv/kernel"
                    found[ours] = np.concatenate(parts).T
                continue
            ours = None
        else:
            ours = _in_block(block[1], _LLAMA_BLOCK.get(block[2]))
        x = x.T if ours is not None and ours.endswith("kernel") else x
        found[name if ours is None else f"params/{ours}"] = x
    return found


LAYOUTS: Mapping[str, Layout] = {"gpt2": gpt2, "llama": llama}


def _in_block(number: str, ours: str | None) -> str | None:
    return None if ours is None else f"blocks_{number}/{ours}"


def _without(tensors: Tensors, prefix: str) -> dict[str, np.ndarray]:
    return {name.removeprefix(prefix): x for name, x in tensors.items()}


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
