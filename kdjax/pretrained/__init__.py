"""Weights from elsewhere, read without executing anything, checked name by name."""

import difflib
import hashlib
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import flax.traverse_util
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from kdjax import checkpoints
from kdjax.pretrained import (
    decoder_layouts,
    tfjs_files,
    torch_files,
    transformers_layouts,
    vision_layouts,
)
from kdjax.pretrained.layouts import Layout, Tensors, of_names_alone
from kdjax.types import UserError, Variables

__all__ = ["LAYOUTS", "fingerprint", "load", "save_safetensors", "to_variables"]

LAYOUTS: Mapping[str, Layout] = {
    **vision_layouts.LAYOUTS,
    **of_names_alone(transformers_layouts.CONVERSIONS),
    **decoder_layouts.LAYOUTS,
}

TORCH_SUFFIXES = (".pth", ".pt", ".pkl", ".bin", ".tar")

# What wrappers of PyTorch put before every name.
_PREFIXES = ("module.", "_orig_mod.", "model.", "net.")


def load(
    path: str | pathlib.Path,
    like: Variables,
    *,
    layout: Layout | None = None,
    optional: Sequence[str] = (),
) -> Variables:
    """The variables in a file or directory, in the structure of `like`.

    Args:
      path: a `.safetensors` file, with our names or those of a layout; a PyTorch
        checkpoint (`.pth`, `.pt`), of which only the tensors are read; the
        `model.json` of a Keras model in TensorFlow.js, with its shards beside it; or a
        directory of Orbax, of a training's checkpoints or of bare variables.
      like: variables of the model, for their names, shapes and dtypes;
        `jax.ShapeDtypeStruct`s will do.
      layout: as in `to_variables`, for a file with other names than ours.
      optional: as in `to_variables`, for a file without a classifier, or with another.

    Raises:
      UserError: if there is nothing, it does not read, or names or shapes differ.
    """
    path = _existing(path)
    tensors = _read(path)
    try:
        return to_variables(tensors, like, layout=layout, optional=optional)
    except UserError as error:
        raise UserError(f"{path}{_model_of(path)}: {error}") from error


def fingerprint(path: str | pathlib.Path) -> str:
    """SHA-256 of all that `load` would read: a file, its shards, or a directory.

    Raises:
      UserError: if there is nothing.
    """
    path = _existing(path)
    files = [path]
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.is_file())
    elif path.suffix == ".json":
        files += tfjs_files.shards(path)
    digest = hashlib.sha256()
    for file in files:
        name = "" if file == path else file.relative_to(path.parent).as_posix()
        with open(file, "rb") as stream:
            own = hashlib.file_digest(stream, "sha256").hexdigest()
        digest.update(f"{name}:{own};".encode())
    return digest.hexdigest()


def to_variables(
    tensors: Tensors,
    like: Variables,
    *,
    layout: Layout | None = None,
    optional: Sequence[str] = (),
) -> Variables:
    """Tensors by name, in the structure of `like`.

    Args:
      tensors: NumPy arrays by our names, such as `params/Conv_0/kernel`, or by those of
        another library, with axes in its order.
      like: variables of the model, for their names, shapes and dtypes;
        `jax.ShapeDtypeStruct`s will do.
      layout: of the names that are not ours; by default the one of `LAYOUTS` that fits
        best.
      optional: of the modules with these paths, such as `params/classifier`, the arrays
        of `like` are kept where the tensors have none, or any of another shape.

    Raises:
      UserError: if a tensor is missing or one too many, or has not the shape expected.

    Examples:
      >>> import numpy as np
      >>> tensors = {"fc.weight": np.ones((3, 5)), "fc.bias": np.zeros(3)}
      >>> dense = {"kernel": np.zeros((5, 3)), "bias": np.zeros(3)}
      >>> variables = to_variables(tensors, {"params": {"Dense_0": dense}})
      >>> variables["params"]["Dense_0"]["kernel"].shape
      (5, 3)
    """
    expected = _flatten(like)
    if not any(name.startswith("params/") for name in tensors):
        tensors = _translate(tensors, expected, layout)
    for module in optional:
        tensors = _completed(tensors, expected, module)
    _check_names(tensors, expected)
    for name, x in expected.items():
        _check_array(name, tensors[name], x)
    arrays = {k: np.asarray(tensors[k], x.dtype) for k, x in expected.items()}
    return flax.traverse_util.unflatten_dict(arrays, sep="/")


def save_safetensors(
    path: pathlib.Path, variables: Variables, *, model: str | None = None
) -> None:
    """Writes variables in one rename, named like `params/Dense_0/kernel`.

    Args:
      path: of the file.
      variables: arrays in nested mappings.
      model: its name, for the file's metadata; see `load`'s messages.
    """
    temporary = path.with_name("tmp-" + path.name)
    arrays = {k: np.asarray(x, order="C") for k, x in _flatten(variables).items()}
    metadata = {"format": "kdjax"} | ({} if model is None else {"model": model})
    safetensors.numpy.save_file(arrays, temporary, metadata)
    temporary.replace(path)


def _existing(path: str | pathlib.Path) -> pathlib.Path:
    path = pathlib.Path(path)
    if not path.exists():
        raise UserError(
            f"Expected weights at {path}, but there are none: give an Orbax directory, "
            "a .safetensors file, a PyTorch .pth or a model.json of Keras."
        )
    return path


def _flatten(variables: Variables) -> dict[str, Any]:
    return flax.traverse_util.flatten_dict(dict(variables), sep="/")


def _read(path: pathlib.Path) -> Tensors:
    if path.is_dir():
        return _flatten(checkpoints.load_variables(path))
    if path.suffix == ".json":
        return tfjs_files.read(path)
    if path.suffix in TORCH_SUFFIXES:
        return torch_files.read(path)
    try:
        return safetensors.numpy.load_file(path)
    except (safetensors.SafetensorError, OSError, ValueError, KeyError) as error:
        raise UserError(
            f"Expected safetensors in {path}, but it does not read ({error}): it may "
            "be damaged or cut short, or of another format; copy or convert it again."
        ) from error


def _model_of(path: pathlib.Path) -> str:
    """What a file of ours says of itself."""
    if path.suffix != ".safetensors":
        return ""
    with safetensors.safe_open(path, "numpy") as file:
        model = (file.metadata() or {}).get("model")
    return f" (of a {model!r}, as it says)" if model else ""


def _translate(
    tensors: Tensors, expected: Mapping[str, Any], layout: Layout | None
) -> Tensors:
    """Another library's tensors by our paths, as far as they have any."""
    tensors = _without_prefix(tensors)
    candidates = LAYOUTS.values() if layout is None else [layout]
    best = max(
        (candidate(tensors, expected) for candidate in candidates),
        key=lambda found: len(expected.keys() & found.keys()),
    )
    if not expected.keys() & best.keys():
        raise UserError(
            f"Expected the names of a layout out of {', '.join(LAYOUTS)}, got "
            f"{', '.join(list(tensors)[:3]) or 'no tensor'}...: rename them, or write "
            f"safetensors with names such as {next(iter(expected))}."
        )
    return best


def _completed(tensors: Tensors, like: Mapping[str, Any], module: str) -> Tensors:
    """The tensors with all of a module's as `like` has them, unless they fit it."""
    own = {k: np.asarray(x) for k, x in like.items() if k.startswith(f"{module}/")}
    found = {name: x for name, x in tensors.items() if name.startswith(f"{module}/")}
    if {k: x.shape for k, x in found.items()} == {k: x.shape for k, x in own.items()}:
        return tensors
    return {name: x for name, x in tensors.items() if name not in found} | own


def _without_prefix(tensors: Tensors) -> Tensors:
    for prefix in _PREFIXES:
        if tensors and all(name.startswith(prefix) for name in tensors):
            shorter = {name.removeprefix(prefix): x for name, x in tensors.items()}
            return _without_prefix(shorter)
    return tensors


def _check_names(found: Tensors, expected: Mapping[str, Any]) -> None:
    missing = sorted(expected.keys() - found.keys())
    unknown = sorted(found.keys() - expected.keys())
    if missing or unknown:
        name = (missing or unknown)[0]
        others = (unknown or list(found)) if missing else list(expected)
        near = difflib.get_close_matches(name, others, n=2, cutoff=0.0) or ["none"]
        raise UserError(
            f"Expected the {len(expected)} arrays of this model, but {len(missing)} "
            f"are missing and {len(unknown)} are unknown; the first is {name} "
            f"(nearest: {', '.join(near)}). Is it of another model?"
        )


def _check_array(name: str, found: np.ndarray, expected: Any) -> None:
    if found.shape != expected.shape:
        raise UserError(
            f"Expected {name} of shape {expected.shape}, got {found.shape}. Has it "
            "another number of classes (teacher.finetune=True gives a teacher a new "
            "classifier), or is it of another model?"
        )
    if not jnp.issubdtype(found.dtype, jnp.floating):
        raise UserError(
            f"Expected {name} in floating point, got {found.dtype}: restore the "
            "weights from their quantised form first."
        )
