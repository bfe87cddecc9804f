"""The formats: how each is written, and how it is loaded back in its own runtime."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import flax.traverse_util
import jax
import numpy as np
import safetensors.numpy

from kdjax import pretrained
from kdjax.export import onnx_files, quantization, stablehlo_files
from kdjax.export.files import replacing
from kdjax.export.model import PIXELS, Arrays, Model, Predict, predict_all
from kdjax.types import UserError

FLOAT_POINTS, INT8_POINTS = 0.1, 1.0  # Of accuracy that a file may be off by, in %.


@dataclasses.dataclass(frozen=True)
class Settings:
    """The section `export` of a config.

    Attributes:
      formats: names of `FORMATS`.
      pixels: 'uint8' or 'float32': what a file takes, 0 to 255 in both.
      platforms: of StableHLO.
      calibration: how many examples of the training split set the ranges of static
        eight-bit models.
      qat_epochs: of quantisation-aware training of the student; 0 for none.
      qat_learning_rate: of these, as a share of the student's.
      test_examples: at most so many of the test split are compared, spread evenly.
      batch_size: of the comparison, and of the throughput.
      runs: of each file at batch size 1, for its latency.
      max_seconds: after which the rounds of a measurement end.
    """

    formats: Sequence[str]
    pixels: str
    platforms: Sequence[str]
    calibration: int
    qat_epochs: int
    qat_learning_rate: float
    test_examples: int
    batch_size: int
    runs: int
    max_seconds: float

    def __post_init__(self) -> None:
        unknown = [name for name in self.formats if name not in FORMATS]
        if unknown or not self.formats:
            raise UserError(
                f"Expected export.formats out of {', '.join(FORMATS)}, got "
                f"{', '.join(unknown) or 'none'}."
            )
        if "onnx_int8" in self.formats and "onnx" not in self.formats:
            raise UserError(
                "Expected 'onnx' in export.formats, of which 'onnx_int8' is made, got "
                f"{', '.join(self.formats)}."
            )
        if self.pixels not in PIXELS:
            raise UserError(
                f"Expected export.pixels out of {', '.join(PIXELS)}, got "
                f"{self.pixels!r}."
            )
        if self.qat_epochs and "onnx_int8" not in self.formats:
            raise UserError(
                "Expected 'onnx_int8' in export.formats, for which export.qat_epochs "
                f"trains, got {', '.join(self.formats)}."
            )
        for name in ("calibration", "test_examples", "batch_size", "runs"):
            if getattr(self, name) < 1:
                raise UserError(
                    f"Expected export.{name} of 1 or more, got {getattr(self, name)}."
                )


class Format(NamedTuple):
    """One kind of file.

    Attributes:
      title: for the reader.
      file: its name.
      runtime: what loads it.
      points: of accuracy that it may be off by, in %.
      write: writes a model to a path, given settings and calibration examples.
      load: from a model of the same network and a path to a function of inputs.
      check: likewise, to the logits of many examples in the format's own runtime.
    """

    title: str
    file: str
    runtime: str
    points: float
    write: Callable[[Model, pathlib.Path, Settings, Arrays], None]
    load: Callable[[Model, pathlib.Path], Predict]
    check: Callable[[Model, pathlib.Path, Arrays, int], np.ndarray]


def jax_predict(model: Model, *, on_cpu: bool = False) -> Predict:
    """The model as kdjax runs it, compiled; nothing of it is read from a file."""
    program = jax.jit(model.logits)
    device = jax.local_devices(backend="cpu" if on_cpu else None)[0]
    variables = jax.device_put(jax.tree.map(np.asarray, dict(model.variables)), device)

    def predict(arrays: Arrays) -> np.ndarray:
        inputs = jax.device_put(tuple(arrays.values()), device)
        return np.asarray(program(variables, *inputs))

    return predict


def _write_weights(
    model: Model, path: pathlib.Path, settings: Settings, calibration: Arrays
) -> None:
    del settings, calibration
    flat = flax.traverse_util.flatten_dict(dict(model.variables), sep="/")
    arrays = {name: np.ascontiguousarray(x) for name, x in flat.items()}
    metadata = {"format": "kdjax", **onnx_files.describe(model)}
    with replacing(path) as temporary:
        temporary.write_bytes(safetensors.numpy.save(arrays, metadata))


def _load_weights(model: Model, path: pathlib.Path) -> Predict:
    variables = pretrained.load(path, model.network.init(jax.random.key(0)))
    return jax_predict(dataclasses.replace(model, variables=variables))


def _check_weights(
    model: Model, path: pathlib.Path, arrays: Arrays, size: int
) -> np.ndarray:
    variables = pretrained.load(path, model.network.init(jax.random.key(0)))
    read = dataclasses.replace(model, variables=variables)
    return predict_all(jax_predict(read, on_cpu=True), arrays, size)


def _check_onnx(
    model: Model, path: pathlib.Path, arrays: Arrays, size: int
) -> np.ndarray:
    del model
    return predict_all(onnx_files.load(path), arrays, size)


FORMATS: Mapping[str, Format] = {
    "safetensors": Format(
        "safetensors",
        "model.safetensors",
        "JAX",
        FLOAT_POINTS,
        _write_weights,
        _load_weights,
        _check_weights,
    ),
    "stablehlo": Format(
        "StableHLO",
        "model.stablehlo",
        "JAX",
        FLOAT_POINTS,
        lambda model, path, settings, _: stablehlo_files.write(
            model, path, settings.platforms
        ),
        lambda _, path: stablehlo_files.load(path),
        lambda _, path, arrays, size: stablehlo_files.run_in_fresh_process(
            path, arrays, size
        ),
    ),
    "onnx": Format(
        "ONNX",
        "model.onnx",
        "onnxruntime",
        FLOAT_POINTS,
        lambda model, path, *_: onnx_files.write(model, path),
        lambda _, path: onnx_files.load(path),
        _check_onnx,
    ),
    "onnx_int8": Format(
        "ONNX int8",
        "model.int8.onnx",
        "onnxruntime",
        INT8_POINTS,
        lambda _, path, __, calibration: quantization.write(
            path.with_name("model.onnx"), path, calibration
        ),
        lambda _, path: onnx_files.load(path),
        _check_onnx,
    ),
}
