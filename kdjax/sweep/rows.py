"""What a sweep leaves: a row for each student, as JSON and as CSV.

`rows.json` holds `axes` (the values that were tried, by path), `fixed` (what the sweep
sets for all alike), `rows`, `baseline_rows`
(students without a teacher), `plan` and `seconds`. A row has `values`, `seed`,
`group`, `status` (`'done'`, `'diverged at step N'`, `'stopped at step N'`), `steps`,
`curve` (pairs of an epoch and a validation accuracy), and the scores `test_accuracy`,
`validation_accuracy`, `test_nll`, `ece` and `agreement`: in %, but for `test_nll`,
in nats.
"""

import csv
import io
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from kdjax.builders.sweep import Group
from kdjax.sweep.pool import GOING
from kdjax.workdir import write_json

NAME = "rows.json"
SCORES = ("test_accuracy", "validation_accuracy", "test_nll", "ece", "agreement")


def row(
    group: Group, index: int, result: Mapping[str, Any], steps: int
) -> dict[str, Any]:
    """The row of a student.

    Args:
      group: that it belongs to.
      index: its place there.
      result: what `Trainer.train` says of it.
      steps: that it was trained for, if it was not frozen.
    """
    status = "done" if steps == group.num_steps else f"stopped at step {steps}"
    if result["stopped"] != GOING:
        steps = result["stopped"]
        status = f"diverged at step {steps}"
    return {
        "values": group.rows[index].values,
        "seed": group.rows[index].seed,
        "group": group.name,
        "status": status,
        "steps": steps,
        "curve": result["curve"],
        **{name: result[name] for name in SCORES if name in result},
    }


def diverged(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """A sentence on each student that was frozen."""
    return [
        f"{row['group']}, {row['values']}, seed {row['seed']}: {row['status']}."
        for row in found
        if row["status"].startswith("diverged")
    ]


def write(directory: pathlib.Path, found: Mapping[str, Any]) -> None:
    """Writes `rows.json`, and its flat part as `rows.csv`."""
    write_json(directory / NAME, found)
    paths = list(found["axes"])
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    flat = ("seed", "group", "status", "steps", *SCORES)
    writer.writerow(["role", *paths, *flat])
    for role, rows in (("student", "rows"), ("baseline", "baseline_rows")):
        for each in found[rows]:
            values = [_cell(each["values"].get(path, "")) for path in paths]
            writer.writerow([role, *values, *(each.get(name, "") for name in flat)])
    temporary = directory / "rows.csv.tmp"
    temporary.write_text(text.getvalue())
    temporary.replace(directory / "rows.csv")


def _cell(value: Any) -> Any:
    """A value of an axis in one field."""
    nested = isinstance(value, Mapping | Sequence) and not isinstance(value, str)
    return json.dumps(value) if nested else value
