"""Keras models as TensorFlow.js stores them: a `model.json`, and shards of bytes."""

import contextlib
import json
import math
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from kdjax.types import UserError

_DTYPES = {"float32": "<f4", "float16": "<f2", "uint8": "u1", "uint16": "<u2"}


def read(path: pathlib.Path) -> dict[str, np.ndarray]:
    """The weights by their names in Keras, in float32.

    Args:
      path: of the `model.json`, in the directory of its shards.

    Raises:
      UserError: if it is no such file, or the shards are not what it says.
    """
    with _sentence(path):
        arrays: dict[str, np.ndarray] = {}
        for group in _manifest(path):
            files = [_shard(path, name) for name in group["paths"]]
            content = b"".join(file.read_bytes() for file in files)
            arrays |= _arrays(group["weights"], content)
        return arrays


def shards(path: pathlib.Path) -> list[pathlib.Path]:
    """The files that a `model.json` names; raises as `read`."""
    with _sentence(path):
        return [_shard(path, x) for group in _manifest(path) for x in group["paths"]]


@contextlib.contextmanager
def _sentence(path: pathlib.Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"Expected a Keras model of TensorFlow.js in {path}, its shards in the "
            f"same directory, but it does not read ({type(error).__name__}: {error}): "
            "copy or convert it again."
        ) from error


def _manifest(path: pathlib.Path) -> Any:
    return json.loads(path.read_text())["weightsManifest"]


def _shard(path: pathlib.Path, name: str) -> pathlib.Path:
    if pathlib.PurePath(name).name != name:  # A manifest reads nothing else.
        raise ValueError(f"the shard {name!r} is not in the same directory")
    return path.parent / name


def _arrays(weights: Any, content: bytes) -> dict[str, np.ndarray]:
    arrays, start = {}, 0
    for weight in weights:
        quantization = weight.get("quantization", {})
        dtype = np.dtype(_DTYPES[quantization.get("dtype", weight["dtype"])])
        shape = tuple(weight["shape"])
        count = math.prod(shape)
        if min(shape, default=0) < 0 or len(content) < start + count * dtype.itemsize:
            raise ValueError(f"{weight['name']} reaches beyond the shards")
        flat = np.frombuffer(content, dtype, count, start)
        arrays[weight["name"]] = _dequantize(flat, quantization).reshape(shape)
        start += count * dtype.itemsize
    if start != len(content):
        raise ValueError(f"the shards have {len(content)} bytes, {start} are named")
    return arrays


def _dequantize(flat: np.ndarray, quantization: Mapping[str, Any]) -> np.ndarray:
    """What integers stand for, evenly spaced; floats as they are."""
    floats = flat.astype(np.float32)
    if "scale" not in quantization:
        return floats
    return floats * np.float32(quantization["scale"]) + np.float32(quantization["min"])
