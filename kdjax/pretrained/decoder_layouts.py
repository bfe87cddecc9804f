"""GPT-2 and Llama as Hugging Face's transformers name them, to `models.decoder`.

Queries, keys and values are one matrix here. GPT-2's `Conv1D` has its axes in our
order; Llama's linear layers have PyTorch's, and their rotary halves are as ours.
"""

import re
from collections.abc import Callable, Mapping

import numpy as np

Tensors = Mapping[str, np.ndarray]

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


def gpt2(tensors: Tensors) -> dict[str, np.ndarray]:
    """GPT2LMHeadModel's tensors by our paths; what has no place keeps its name."""
    tensors = _without(tensors, "transformer.")
    found = _embedded(tensors, "wte.weight")
    for name, x in tensors.items():
        block = re.fullmatch(r"h\.(\d+)\.(.+)", name)
        if block is None:
            ours = _GPT2.get(name)
        elif re.fullmatch(r"attn\.(masked_)?bias", block[2]):
            continue  # The causal mask, which older files hold.
        else:
            ours = _in_block(block[1], _GPT2_BLOCK.get(block[2]))
        found[name if ours is None else f"params/{ours}"] = x
    return _with_head(found)


def llama(tensors: Tensors) -> dict[str, np.ndarray]:
    """LlamaForCausalLM's tensors by our paths; what has no place keeps its name."""
    tensors = _without(tensors, "model.")
    found = _embedded(tensors, "embed_tokens.weight")
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
    return _with_head(found)


CONVERSIONS: Mapping[str, Callable[[Tensors], dict[str, np.ndarray]]] = {
    "gpt2": gpt2,
    "llama": llama,
}


def _in_block(number: str, ours: str | None) -> str | None:
    return None if ours is None else f"blocks_{number}/{ours}"


def _without(tensors: Tensors, prefix: str) -> dict[str, np.ndarray]:
    return {name.removeprefix(prefix): x for name, x in tensors.items()}


def _embedded(tensors: dict[str, np.ndarray], embedding: str) -> dict[str, np.ndarray]:
    """Takes a head that repeats the embedding away: the two are tied."""
    head, embed = tensors.get("lm_head.weight"), tensors.get(embedding)
    if head is not None and embed is not None and np.array_equal(head, embed):
        del tensors["lm_head.weight"]
    return {}


def _with_head(found: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    if "lm_head.weight" in found:
        found["params/head/kernel"] = found.pop("lm_head.weight").T
    return found
