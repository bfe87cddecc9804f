"""Where a run leaves its results: one directory a stage, each made once.

A stage records what it is made from before it starts (`inputs.json`) and what came of
it when it is done (`result.json`, last and atomically). Run again with the same
inputs, a finished stage is skipped and an unfinished one goes on; other inputs are
refused, so that nothing on disk is lost to a changed config.
"""

import contextlib
import errno
import json
import os
import pathlib
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from kdjax import parallel
from kdjax.types import UserError


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes JSON in one rename: a reader sees the old file or the whole new one."""
    # Processes may share a work directory, each with trainings of its own.
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with open(temporary, "w") as file:
        json.dump(value, file, indent=2, sort_keys=True)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def read_json(path: pathlib.Path) -> Any | None:
    """The content of a JSON file, or `None` if there is none."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise UserError(
            f"Expected JSON in {path}, but it does not parse ({error}): move the "
            "directory that holds it away to make it again."
        ) from error


def begin(directory: pathlib.Path, inputs: Mapping[str, Any]) -> Any | None:
    """Opens a stage's directory; returns its result if it is done.

    Raises:
      UserError: if it was begun with other inputs.
    """
    recorded = read_json(directory / "inputs.json")
    inputs = json.loads(json.dumps(inputs))  # As JSON gives it back: lists, not tuples.
    if recorded is not None and recorded != inputs:
        differences = "; ".join(_differences(recorded, inputs))
        raise UserError(
            f"Expected the inputs that {directory} was begun with, but this config "
            f"differs: {differences}. Choose another --workdir, or move that directory "
            "away."
        )
    if recorded is None and parallel.is_main_process():
        directory.mkdir(parents=True, exist_ok=True)
        write_json(directory / "inputs.json", inputs)
    parallel.synchronize(f"begin {directory}")
    return read_json(directory / "result.json")


def finish(directory: pathlib.Path, result: Mapping[str, Any]) -> None:
    """Marks a stage as done."""
    if parallel.is_main_process():
        write_json(directory / "result.json", result)
    parallel.synchronize(f"finish {directory}")


def require(directory: pathlib.Path) -> None:
    """Raises `UserError` unless the stage of this directory is done."""
    if read_json(directory / "result.json") is None:
        raise UserError(
            f"Expected a finished training in {directory}, but it is not done: run the "
            "stage that makes it first, or all of them, without --stages."
        )


def write_arrays(path: pathlib.Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes an .npz in one rename."""
    temporary = path.with_name("tmp-" + path.name)
    np.savez(temporary, allow_pickle=False, **arrays)
    temporary.replace(path)


@contextlib.contextmanager
def full_disk_is_a_user_error(directory: pathlib.Path) -> Iterator[None]:
    """Says in one sentence that the disk is full, whoever noticed it."""
    try:
        yield
    except Exception as error:
        if not _is_full_disk(error):
            raise
        free = shutil.disk_usage(directory).free
        raise UserError(
            f"Expected room to write under {directory}, but the disk is full "
            f"({free / 2**20:.0f} MiB free): make space and run the same command "
            "again; it goes on from the last checkpoint."
        ) from error


def _is_full_disk(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        # TensorStore and its kin report the system's text in errors of their own.
        if "No space left on device" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def _differences(old: Any, new: Any, path: str = "") -> Iterator[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            name = f"{path}.{key}" if path else key
            yield from _differences(old.get(key), new.get(key), name)
    elif old != new:
        yield f"{path} was {old!r}, is {new!r}"
