"""Runs a StableHLO file where nothing of kdjax is imported.

python -P fresh_process.py MODEL INPUTS.npz LOGITS.npy BATCH_SIZE
"""

import os
import sys

# The process that checks the file may hold the accelerator.
os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import numpy as np
from jax import export


def main() -> None:
    path, inputs, logits, size = sys.argv[1:]
    with open(path, "rb") as file:
        exported = export.deserialize(bytearray(file.read()))
    with np.load(inputs, allow_pickle=False) as archive:
        arrays = [archive[f"arr_{i}"] for i in range(len(archive.files))]
    program, step = jax.jit(exported.call), int(size)
    outputs = [
        np.asarray(program(*(x[i : i + step] for x in arrays)))
        for i in range(0, len(arrays[0]), step)
    ]
    np.save(logits, np.concatenate(outputs))
    assert not any(name.split(".")[0] == "kdjax" for name in sys.modules)


if __name__ == "__main__":
    main()
