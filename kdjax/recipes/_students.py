"""Trains a grid of students, and keeps what a report needs of them."""

import functools
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from kdjax import parallel
from kdjax.builders.study_why import Grid
from kdjax.data import sources
from kdjax.recipes import stages
from kdjax.report import study
from kdjax.students import Students
from kdjax.workdir import read_json, write_arrays

PREDICTIONS = "predictions.npz"


def train(
    grid: Grid,
    directory: pathlib.Path,
    inputs: Mapping[str, Any],
    splits: Mapping[str, sources.Source],
) -> None:
    """Trains all students of a grid, and keeps their logits on some splits.

    Args:
      grid: who trains.
      directory: receives checkpoints and results.
      inputs: what the result depends on; JSON-able.
      splits: by name; the logits on each are kept, `[students, examples, classes]`.
    """
    students = [student._asdict() for student in grid.students]
    stages.train(
        grid.training,
        directory,
        {**inputs, "students": students},
        functools.partial(_keep, grid, splits),
    )


def _keep(
    grid: Grid,
    splits: Mapping[str, sources.Source],
    state: Students,
    directory: pathlib.Path,
) -> Mapping[str, Any]:
    arrays = {} if state.curve is None else {"curve": np.asarray(state.curve)}
    accuracy = {}
    for name, source in splits.items():
        variables = {"": state.each.eval_variables}
        if state.best is not None:
            variables["best_"] = state.best
        for prefix, some in variables.items():
            logits, labels = grid.predict(some, source)
            arrays[prefix + name] = logits
            right = logits.argmax(axis=-1) == labels
            accuracy[prefix + name] = (100 * right.mean(axis=-1)).tolist()
    if parallel.is_main_process():
        write_arrays(directory / PREDICTIONS, arrays)
    return {"accuracy": accuracy}


def teacher_arm(workdir: pathlib.Path, seed: int, labels: np.ndarray) -> study.Arm:
    """The teacher's row of a report, from what its stage left.

    Args:
      workdir: of the run.
      seed: of the teacher.
      labels: of the test split.
    """
    with np.load(workdir / "teacher" / PREDICTIONS, allow_pickle=False) as arrays:
        right = arrays["logits"].argmax(axis=-1) == labels
    return study.Arm("teacher", "Teacher", {seed: 100 * float(right.mean())})


class Trained:
    """What a finished grid left.

    Args:
      directory: of the grid.
    """

    def __init__(self, directory: pathlib.Path):
        self._directory = directory
        self._students = (read_json(directory / "inputs.json") or {})["students"]
        self._result = read_json(directory / "result.json") or {}

    @staticmethod
    def at(directory: pathlib.Path) -> "Trained | None":
        """The grid in a directory, if it is done."""
        if read_json(directory / "result.json") is None:
            return None
        return Trained(directory)

    @property
    def arms(self) -> list[str]:
        """The settings, each once."""
        return list(dict.fromkeys(student["arm"] for student in self._students))

    def rows(self, arm: str) -> dict[int, int]:
        """By seed, the place of the students of a setting."""
        return {
            student["seed"]: row
            for row, student in enumerate(self._students)
            if student["arm"] == arm
        }

    def accuracy(self, arm: str, name: str = "test") -> dict[int, float]:
        """By seed, in % of a split."""
        values = self._result["accuracy"][name]
        return {seed: values[row] for seed, row in self.rows(arm).items()}

    def logits(self, arm: str, name: str) -> dict[int, np.ndarray]:
        """By seed, on a split, `[examples, classes]`."""
        logits = self.array(name)
        return {seed: logits[row] for seed, row in self.rows(arm).items()}

    def array(self, name: str) -> np.ndarray:
        """Logits on a split, or `'curve'`."""
        with np.load(self._directory / PREDICTIONS, allow_pickle=False) as arrays:
            return arrays[name]
