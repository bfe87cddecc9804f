"""StableHLO by `jax.export`: one file that JAX alone runs, on any machine."""

import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Sequence

import jax
import numpy as np

from kdjax.export.files import replacing
from kdjax.export.model import Arrays, Model, Predict
from kdjax.types import UserError

_SCRIPT = pathlib.Path(__file__).with_name("fresh_process.py")


def write(model: Model, path: pathlib.Path, platforms: Sequence[str]) -> None:
    """Writes the model with its variables, for a batch of any size.

    Args:
      model: to be written.
      path: of the file.
      platforms: such as 'cpu', 'cuda', 'tpu'; JAX needs none of them at hand.
    """
    try:
        exported = jax.export.export(jax.jit(model.closed()), platforms=platforms)(
            *model.specs()
        )
    except NotImplementedError as error:
        raise UserError(
            f"Expected a {model.role} that StableHLO can hold for "
            f"{', '.join(platforms)}, but {error}: leave platforms out of "
            "export.platforms."
        ) from error
    with replacing(path) as temporary:
        temporary.write_bytes(exported.serialize())


def load(path: pathlib.Path) -> Predict:
    """The model in a file, compiled by this process."""
    exported = jax.export.deserialize(bytearray(path.read_bytes()))
    program = jax.jit(exported.call)

    def predict(arrays: Arrays) -> np.ndarray:
        return np.asarray(program(*arrays.values()))

    return predict


def run_in_fresh_process(path: pathlib.Path, arrays: Arrays, size: int) -> np.ndarray:
    """Logits of all examples, from a process that imports JAX and nothing of kdjax.

    Raises:
      UserError: if that process fails.
    """
    with tempfile.TemporaryDirectory() as directory:
        inputs, logits = f"{directory}/inputs.npz", f"{directory}/logits.npy"
        # Archives forget the order of their entries' names, not that of positions.
        np.savez(inputs, *arrays.values())
        command = [sys.executable, "-P", str(_SCRIPT)]
        done = subprocess.run(
            [*command, str(path), inputs, logits, str(size)],
            capture_output=True,
            text=True,
        )
        if done.returncode:
            lines = done.stderr.strip().splitlines() or ["it said nothing"]
            raise UserError(
                f"Expected {path} to run in a fresh process, but it failed "
                f"({lines[-1]}): move the file away to make it again."
            )
        return np.load(logits, allow_pickle=False)
