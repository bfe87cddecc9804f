"""Writes models in all formats, loads each file back, compares it and times it."""

import contextlib
import functools
import hashlib
import importlib.metadata
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kdjax import measure, progress, timing
from kdjax.export import onnx_files
from kdjax.export.formats import FORMATS, Settings, jax_predict
from kdjax.export.model import Arrays, Model, predict_all


class Examples(NamedTuple):
    """What files are compared on, and calibrated with.

    Attributes:
      test: inputs by name, `[N, ...]`.
      labels: of these, `[N]`, or `[N, L]` of the tokens in running text.
      calibration: inputs of the training split, by name.
    """

    test: Arrays
    labels: np.ndarray
    calibration: Arrays


def write(
    models: Sequence[Model],
    examples: Examples,
    directory: pathlib.Path,
    settings: Settings,
) -> dict[str, Any]:
    """Exports models; what is there already is kept, and compared again.

    Args:
      models: of one kind of inputs.
      examples: real ones.
      directory: receives a directory for each role.
      settings: of the export.

    Returns:
      `models`, by role, and `files`, a list of what each is and how it does; JSON-able.

    Raises:
      UserError: if a package is missing, or a model is not made for a format.
    """
    if any(name.startswith("onnx") for name in settings.formats):
        onnx_files.require_extra()
    total = 1 + sum(len(model.formats or settings.formats) for model in models)
    described, files = {}, []
    with progress.stage("export", total) as bar:
        for model in models:
            truth = predict_all(
                jax_predict(model, on_cpu=True),
                model.cast(examples.test),
                settings.batch_size,
            )
            described[model.role] = _describe(model, truth, examples.labels)
            for name in model.formats or settings.formats:
                files.append(_one(model, name, examples, truth, directory, settings))
                bar.update(len(files))
        _time(models, files, examples, directory, settings)
        bar.update(total)
    return {"models": described, "files": files}


def versions() -> dict[str, str]:
    """Versions of the packages that write and run the files."""
    found = {}
    for package in ("jax2onnx", "onnx", "onnxruntime"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def _describe(model: Model, truth: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """What is known of a model without a file."""
    specs = [
        jax.ShapeDtypeStruct(
            tuple(1 if isinstance(size, str) else size for size in one.shape),
            jnp.dtype(one.dtype),
        )
        for one in model.inputs.values()
    ]
    return {
        "network": model.network.name,
        "preprocessing": model.network.description,
        "class_names": list(model.class_names),
        "inputs": {name: list(one) for name, one in model.inputs.items()},
        "parameters": measure.count_parameters(model.variables),
        "flops": measure.count_flops(model.closed(), *specs),
        "accuracy": _accuracy(truth, labels),
        "nll": _nll(truth, labels),
    }


def _one(
    model: Model,
    name: str,
    examples: Examples,
    truth: np.ndarray,
    directory: pathlib.Path,
    settings: Settings,
) -> dict[str, Any]:
    """Writes one file, if it is not there, and compares what it says."""
    made = FORMATS[name]
    path = directory / model.role / made.file
    if not path.exists():
        made.write(model, path, settings, model.cast(examples.calibration))
    test = model.cast(examples.test)
    logits = made.check(model, path, test, settings.batch_size)
    accuracy = _accuracy(logits, examples.labels)
    difference = accuracy - _accuracy(truth, examples.labels)
    return {
        "role": model.role,
        "format": name,
        "file": f"{model.role}/{made.file}",
        "bytes": path.stat().st_size,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "runtime": made.runtime,
        "accuracy": accuracy,
        "accuracy_difference": difference,
        "allowed_difference": made.points,
        "within": is_within(difference, made.points),
        "nll": _nll(logits, examples.labels),
        "max_deviation": float(np.abs(logits - truth).max()),
        "max_logit": float(np.abs(truth).max()),
        "agreement": 100 * float(np.mean(logits.argmax(-1) == truth.argmax(-1))),
    }


def is_within(difference: float, points: float) -> bool:
    """Whether an accuracy is off by no more than is allowed, but for rounding."""
    return bool(abs(difference) <= points + 1e-9)


def _accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
    return 100 * float(np.mean(logits.argmax(axis=-1) == labels))


def _nll(logits: np.ndarray, labels: np.ndarray) -> float:
    """The mean negative log-likelihood of the labels, in nats."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    normalizer = np.log(np.exp(shifted).sum(axis=-1))
    chosen = np.take_along_axis(shifted, labels[..., None].astype(np.int64), axis=-1)
    return float(np.mean(normalizer - chosen[..., 0], dtype=np.float64))


def _time(
    models: Sequence[Model],
    files: Sequence[dict[str, Any]],
    examples: Examples,
    directory: pathlib.Path,
    settings: Settings,
) -> None:
    """Adds latency and throughput to each file, all of them taking turns."""
    by_role = {model.role: model for model in models}
    predicts = {
        one["file"]: FORMATS[one["format"]].load(
            by_role[one["role"]], directory / one["file"]
        )
        for one in files
    }
    inputs = {one["file"]: by_role[one["role"]].cast(examples.test) for one in files}
    singles = timing.in_turns(
        _programs(predicts, inputs, 1), settings.runs, settings.max_seconds
    )
    size = settings.batch_size
    batches = timing.in_turns(
        _programs(predicts, inputs, size), settings.runs, settings.max_seconds
    )
    for one in files:
        seconds = batches[one["file"]]
        one["latency_ms"] = timing.quantiles_ms(singles[one["file"]])._asdict()
        one["latency_runs"] = len(singles[one["file"]])
        one["throughput"] = size / float(np.median(seconds))
        one["throughput_runs"] = len(seconds)


def _programs(
    predicts: Mapping[str, Callable[[Arrays], np.ndarray]],
    inputs: Mapping[str, Arrays],
    size: int,
) -> dict[str, Callable[[], np.ndarray]]:
    """Each on the first `size` examples, again and again if there are fewer."""
    return {
        name: functools.partial(
            predict,
            {
                key: np.resize(x, (size, *x.shape[1:]))
                for key, x in inputs[name].items()
            },
        )
        for name, predict in predicts.items()
    }
