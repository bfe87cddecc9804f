"""ONNX by `jax2onnx`: the format of onnxruntime, on servers, phones and in browsers."""

import contextlib
import importlib
import io
import json
import logging
import pathlib
import tempfile
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from kdjax import measure
from kdjax.export.files import replacing
from kdjax.export.model import Arrays, Model, Predict
from kdjax.types import UserError

OPSET = 21  # Old enough for runtimes of 2024, new enough for all that we write.


def require_extra() -> None:
    """Raises `UserError` unless the packages of the extra `export` are there."""
    for package in ("jax2onnx", "onnx", "onnxruntime"):
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise UserError(
                f"Expected the package {package} to write ONNX, but it does not "
                f"import ({error}): pip install 'kdjax[export]', or take onnx out of "
                "export.formats."
            ) from error


def write(model: Model, path: pathlib.Path) -> None:
    """Writes the model with its variables, for a batch of any size.

    BatchNorm is folded into convolutions and transpositions cancel, as far as
    onnxruntime's basic optimisations do that: the file has standard operators only.
    """
    import onnx
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory() as directory:
        raw, neat = (f"{directory}/{name}.onnx" for name in ("raw", "neat"))
        onnx.save(_convert(model), raw)
        with quietly():
            # Shapes are inferred by ONNX alone: the symbolic way knows fewer operators.
            quant_pre_process(raw, neat, skip_symbolic_shape=True)
        proto = onnx.load(neat)
    _describe(proto, model)
    onnx.checker.check_model(proto, full_check=True)
    save(proto, path)


def save(proto: Any, path: pathlib.Path) -> None:
    """Writes a `ModelProto`, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_bytes(proto.SerializeToString())


def load(path: pathlib.Path) -> Predict:
    """The model in a file, as onnxruntime runs it on CPU."""
    session = _session(path)

    def predict(arrays: Arrays) -> np.ndarray:
        return session.run(["logits"], dict(arrays))[0]

    return predict


def _convert(model: Model) -> Any:
    import jax2onnx

    try:
        # Its own forms of operations mix dtypes, which strict users forbid.
        with quietly(), jax.numpy_dtype_promotion("standard"):
            proto = jax2onnx.to_onnx(
                model.traced_for_others(),
                model.specs(),
                model_name=f"{model.network.name}_{model.role}",
                opset=OPSET,
                input_names=list(model.inputs),
                output_names=["logits"],
            )
    except Exception as error:  # A converter of hundreds of operations raises any.
        raise UserError(
            f"Expected a {model.role} that jax2onnx can convert, but of "
            f"{model.network.name} it says {type(error).__name__}: {error}. Leave onnx "
            "and onnx_int8 out of export.formats, or change the operation."
        ) from error
    # Shapes before jax2onnx moved transpositions, which onnxruntime complains about.
    del proto.graph.value_info[:]
    return proto


def _describe(proto: Any, model: Model) -> None:
    """Says in the file what its numbers mean."""
    import onnx

    used = {node.domain for node in proto.graph.node}
    kept = [one for one in proto.opset_import if one.domain in used]
    del proto.opset_import[:]
    proto.opset_import.extend(kept)
    proto.producer_name = "kdjax"
    onnx.helper.set_model_props(proto, describe(model))


def describe(model: Model) -> dict[str, str]:
    """Names and preprocessing, for the metadata of a file."""
    return {
        "model": model.network.name,
        "role": model.role,
        "preprocessing": json.dumps(model.network.description, sort_keys=True),
        "class_names": json.dumps(model.class_names),
    }


def _session(path: pathlib.Path) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = measure.usable_cores()
    # Threads that wait for more work would slow down whom it is the turn of next.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return onnxruntime.InferenceSession(
        str(path), options, providers=["CPUExecutionProvider"]
    )


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Keeps the progress reports of converters out of ours."""
    root = logging.getLogger()
    level, disabled = root.level, logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(disabled)
        root.setLevel(level)
