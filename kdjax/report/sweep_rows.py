"""The rows that a sweep left: read, checked, and gathered into settings."""

import dataclasses
import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from kdjax.report.quantities import Number
from kdjax.types import UserError
from kdjax.workdir import read_json

FILE_NAME = "rows.json"
MEASURES = ("test_accuracy", "validation_accuracy", "test_nll", "ece", "agreement")


@dataclasses.dataclass(frozen=True)
class Row:
    """One student of a sweep.

    Attributes:
      values: its settings by path, such as `{'distill.temperature': 4.0}`.
      seed: of its initial weights and its order of the examples.
      status: `'done'`, `'diverged at step 120'` or `'stopped at step 120'`.
      scores: some of `MEASURES`; in %, `test_nll` in nats.
      group: of the program that trained it.
      steps: how long it trained.
      curve: epochs, and validation accuracies in %.
    """

    values: Mapping[str, Any]
    seed: int
    status: str
    scores: Mapping[str, Number]
    group: str = ""
    steps: int = 0
    curve: Sequence[Sequence[Number]] = ()

    @property
    def done(self) -> bool:
        return self.status == "done"

    @property
    def setting(self) -> str:
        """What all seeds of a setting have in common, as a key."""
        return json.dumps(self.values, sort_keys=True)


@dataclasses.dataclass(frozen=True)
class Rows:
    """All students of a sweep.

    Attributes:
      axes: the values that were tried, by path, in the order of the config.
      rows: one for each setting and seed.
      fixed: values by path that the sweep set for all alike.
      baseline_rows: students without a teacher; their `values` are those axes that
        concern them, perhaps none.
      plan: how the students were shared out over programs; JSON-able.
      seconds: wall times by what took them.
    """

    axes: Mapping[str, Sequence[Any]]
    rows: Sequence[Row]
    fixed: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    baseline_rows: Sequence[Row] = ()
    plan: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    seconds: Mapping[str, Number] = dataclasses.field(default_factory=dict)

    def settings(self) -> dict[str, list[Row]]:
        """The rows of each setting, settings in the order of their first row."""
        found: dict[str, list[Row]] = {}
        for row in self.rows:
            found.setdefault(row.setting, []).append(row)
        return {
            key: sorted(rows, key=lambda row: row.seed) for key, rows in found.items()
        }

    def baselines_of(self, values: Mapping[str, Any]) -> list[Row]:
        """The rows without a teacher that a setting is compared with, if they are done.

        They agree with it in every setting that they have.
        """
        return [
            row
            for row in self.baseline_rows
            if row.done and all(values.get(k) == x for k, x in row.values.items())
        ]


def read(path: pathlib.Path) -> Rows:
    """The rows that a sweep wrote to `path`.

    Raises:
      UserError: if there is no such file, or it holds something else.
    """
    found = read_json(path)
    if found is None:
        raise UserError(
            f"Expected the rows of a sweep in {path}, but there is no such file: run "
            "the sweep first."
        )
    try:
        return parse(found)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UserError(
            f"Expected the rows of a sweep in {path}, got {type(error).__name__}: "
            f"{error}. Restore the file, or run the sweep in another --workdir."
        ) from error


def parse(found: Mapping[str, Any]) -> Rows:
    """Rows from the JSON of a file."""
    rows = Rows(
        axes={path: list(values) for path, values in found["axes"].items()},
        rows=[_row(row) for row in found["rows"]],
        fixed=found.get("fixed", {}),
        baseline_rows=[_row(row) for row in found.get("baseline_rows", ())],
        plan=found.get("plan", {}),
        seconds=found.get("seconds", {}),
    )
    for kind in (rows.rows, rows.baseline_rows):
        _check(kind)
    if not rows.rows:
        raise ValueError("no row")
    return rows


def _row(row: Mapping[str, Any]) -> Row:
    scores = {name: row[name] for name in MEASURES if _is_number(row.get(name))}
    if row["status"] == "done" and "test_accuracy" not in scores:
        raise ValueError(f"no finite test_accuracy of {row['values']}")
    return Row(
        values={path: x for path, x in row["values"].items() if path != "seed"},
        seed=int(row["seed"]),
        status=str(row["status"]),
        scores=scores,
        group=str(row.get("group", "")),
        steps=int(row.get("steps", 0)),
        curve=[list(point) for point in row.get("curve", ())],
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _check(rows: Sequence[Row]) -> None:
    seen = [(row.setting, row.seed) for row in rows]
    twice = [key for key in dict.fromkeys(seen) if seen.count(key) > 1]
    if twice:
        raise ValueError(f"two rows of {twice[0][0]}, seed {twice[0][1]}")


def titles(paths: Sequence[str]) -> dict[str, str]:
    """What the reader calls each axis: the last part of its path that is its own.

    Examples:
      >>> from kdjax.report import sweep_rows
      >>> sweep_rows.titles(["distill.temperature", "student.model.hidden"])
      {'distill.temperature': 'temperature', 'student.model.hidden': 'hidden'}
    """
    found = {}
    for path in paths:
        parts = path.split(".")
        for length in range(1, len(parts) + 1):
            title = ".".join(parts[-length:])
            others = [x for x in paths if x != path]
            if not any(f".{x}".endswith(f".{title}") for x in others):
                break
        found[path] = title.replace("_", " ")
    return found


def text(value: Any) -> str:
    """A value of an axis for people: `0.5`, `30`, `800-800`, `resnet8 float32`.

    Examples:
      >>> from kdjax.report import sweep_rows
      >>> sweep_rows.text(0.5), sweep_rows.text(20.0), sweep_rows.text([800, 800])
      ('0.5', '20', '800-800')
    """
    if isinstance(value, bool):
        return str(value)
    if isinstance(value, int | float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return " ".join(text(x) for x in value.values()) or "none"
    if isinstance(value, list | tuple):
        return "-".join(text(x) for x in value)
    return str(value)
