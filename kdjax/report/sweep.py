"""The report of a sweep: every setting over its seeds, and one that validation chose.

>>> from kdjax.report import study, sweep
>>> rows = sweep.parse({
...     "axes": {"distill.temperature": [1.0, 4.0]},
...     "rows": [
...         {"values": {"distill.temperature": t}, "seed": seed, "status": "done",
...          "test_accuracy": 90 + t / 10 + seed, "validation_accuracy": 90 + t + seed}
...         for t in (1.0, 4.0) for seed in (0, 1, 2)
...     ],
...     "baseline_rows": [
...         {"values": {}, "seed": seed, "status": "done", "test_accuracy": 90 + seed}
...         for seed in (0, 1, 2)
...     ],
... })
>>> report = sweep.build(study.About("sweep", "command", num_examples=1000), rows)
>>> report["best"]["values"], round(report["best"]["test"]["mean"], 2)
({'distill.temperature': 4.0}, 91.4)

Like that of `kdjax.report`, it is a dict that JSON can hold, from which tables, figures
and page are made. Its keys: `format`, `kind` (`'sweep'`), `created`, `headline`,
`findings`, the fields of `study.About`, `axes`, `fixed`, `plan`, `seconds`, and

* `rows`, `baseline_rows`: every student: the fields of `sweep_rows.Row`, `errors`;
* `cells`: every setting with a student that is done: `values`, `seeds`, `missing`
  (students that are not done), `test` in the unit of the report and each of the
  measures: `mean`, `sd`, `n`, `values`, `low` and `high` of the t-interval at
  `confidence`; and `gain`, the paired difference of `test` to the students without a
  teacher, as `statistics.paired_difference` gives it;
* `baselines`: of these, by their own settings: `values`, `seeds`, `test`;
* `best`: the cell with the highest mean validation accuracy among those with all
  seeds, or None.
"""

import csv
import dataclasses
import datetime
import io
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console

from kdjax.report import drawing, statistics, study, sweep_figures, sweep_page
from kdjax.report.assemble import Report, strict
from kdjax.report.files import replace
from kdjax.report.quantities import Number, interval, number
from kdjax.report.sweep_page import label
from kdjax.report.sweep_rows import MEASURES, Row, Rows, parse, read
from kdjax.report.table import print_parts

__all__ = ["Row", "Rows", "build", "parse", "print_table", "read", "write"]

MOST_NAMED = 8  # Students that are not done; the others are in the table of rows.


def build(about: study.About, rows: Rows, *, facts: Sequence[str] = ()) -> Report:
    """Everything that a sweep has to report.

    Args:
      about: how the rows came about; `unit` is that of `test` and of the headline.
      rows: as from `read`.
      facts: further sentences.
    """
    cells = [
        _cell(about, rows, row_list)
        for row_list in rows.settings().values()
        if any(row.done for row in row_list)
    ]
    report: Report = {
        "format": 1,
        "kind": "sweep",
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        **dataclasses.asdict(about),
        "digits": study.DIGITS[about.unit],
        "axes": {p: x for p, x in rows.axes.items() if p != "seed"},
        "fixed": rows.fixed,
        "rows": [_plain(about, row) for row in rows.rows],
        "baseline_rows": [_plain(about, row) for row in rows.baseline_rows],
        "plan": rows.plan,
        "seconds": rows.seconds,
        "cells": cells,
        "baselines": _baselines(about, rows),
        "best": best_by_validation(cells),
    }
    report["headline"] = _headline(report)
    report["findings"] = [
        *_selection(report),
        *_unfinished(report),
        *({"kind": "fact", "text": text} for text in facts),
    ]
    return strict(report)


def write(
    report: Mapping[str, Any], directory: str | os.PathLike
) -> list[pathlib.Path]:
    """Writes `report.json`, `report.html`, `rows.csv` and `figures/*.png`.

    Args:
      report: as from `build`.
      directory: made if it is not there.

    Returns:
      The files written, the page first.
    """
    directory = pathlib.Path(directory)
    (directory / "figures").mkdir(parents=True, exist_ok=True)
    figures = list(sweep_figures.drawings(report))
    text = json.dumps(report, allow_nan=False, ensure_ascii=False, indent=1)
    contents = {
        "report.html": sweep_page.render(report, figures),
        "report.json": text,
        "rows.csv": as_csv(report),
    }
    for name, content in contents.items():
        replace(directory / name, content.encode())
    paths = [directory / name for name in contents]
    for figure in figures:
        paths.append(directory / "figures" / f"{figure.name}.png")
        replace(paths[-1], drawing.png(figure.draw()))
    return paths


def print_table(report: Mapping[str, Any], console: Console) -> None:
    """Prints the headline, the table of settings and the findings."""
    tables = [sweep_page.main_table(report, brief=True)]
    print_parts(report["headline"], tables, report["findings"], console)


def as_csv(report: Mapping[str, Any]) -> str:
    """Every student as a line; a column for each axis and measure."""
    axes = list(report["axes"])
    columns = [
        "teacher",
        *axes,
        "seed",
        "status",
        "steps",
        "group",
        *MEASURES,
        "errors",
    ]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    for kind, taught in (("rows", "yes"), ("baseline_rows", "no")):
        for row in report[kind]:
            values = {path: _cell_text(row["values"].get(path)) for path in axes}
            known = {name: row[name] for name in columns if name in row}
            writer.writerow({"teacher": taught, **values, **known, **row["scores"]})
    return text.getvalue()


def best_by_validation(cells: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The setting with the highest mean validation accuracy, the first of equals.

    A setting that lost a student is no candidate: its mean is one over survivors.
    """
    whole = [
        cell
        for cell in cells
        if not cell["missing"]
        and cell["validation_accuracy"] is not None
        and cell["validation_accuracy"]["n"] == len(cell["seeds"])
    ]
    if not whole:
        return None
    return max(whole, key=lambda cell: cell["validation_accuracy"]["mean"])


def _cell_text(value: Any) -> Any:
    return value if isinstance(value, int | float | str) else json.dumps(value)


def _errors(about: study.About, row: Row) -> int:
    return round((1 - row.scores["test_accuracy"] / 100) * about.num_examples)


def _test(about: study.About, row: Row) -> Number:
    """In the unit of the report."""
    is_accuracy = about.unit == "accuracy"
    return row.scores["test_accuracy"] if is_accuracy else _errors(about, row)


def _plain(about: study.About, row: Row) -> dict[str, Any]:
    return {
        **dataclasses.asdict(row),
        "errors": _errors(about, row) if "test_accuracy" in row.scores else None,
    }


def _cell(about: study.About, rows: Rows, mine: Sequence[Row]) -> dict[str, Any]:
    """One setting over its seeds; students that are not done do not count."""
    done = [row for row in mine if row.done]
    by_seed = {row.seed: _test(about, row) for row in done}
    baselines = rows.baselines_of(mine[0].values)
    gain = statistics.paired_difference(
        by_seed, {row.seed: _test(about, row) for row in baselines}
    )
    return {
        "values": mine[0].values,
        "seeds": list(by_seed),
        "missing": len(mine) - len(done),
        "test": statistics.with_interval(list(by_seed.values())),
        **{name: _measure(name, done) for name in MEASURES},
        "gain": gain,
    }


def _measure(name: str, rows: Sequence[Row]) -> dict[str, Any] | None:
    found = [row.scores[name] for row in rows if name in row.scores]
    return statistics.with_interval(found) if found else None


def _baselines(about: study.About, rows: Rows) -> list[dict[str, Any]]:
    found: dict[str, list[Row]] = {}
    for row in rows.baseline_rows:
        if row.done:
            found.setdefault(row.setting, []).append(row)
    return [
        {
            "values": mine[0].values,
            "seeds": [row.seed for row in mine],
            "test": statistics.with_interval([_test(about, row) for row in mine]),
        }
        for mine in found.values()
    ]


def _headline(report: Mapping[str, Any]) -> str:
    best, digits = report["best"], report["digits"]
    if best is None:
        count = len(report["cells"])
        return f"A sweep of {count} settings; nothing was chosen by validation."
    what = f"{report['split']} {report['unit']}"
    mean = number(best["test"]["mean"], digits)
    claim = f"Best by validation, {label(report, best)}: {what} {mean}"
    evidence = []
    if best["test"]["low"] is not None:
        low, high = (number(best["test"][x], digits) for x in ("low", "high"))
        evidence.append(f"95 % CI {low} to {high}")
    gain = best["gain"]
    if gain is not None:
        mean = number(gain["mean"], digits, signed=True)
        between = "" if gain["low"] is None else f", {interval(gain, digits)}"
        evidence.append(f"{mean} against no teacher{between}")
    evidence.append(f"{best['test']['n']} seeds")
    return f"{claim} ({'; '.join(evidence)})."


def _selection(report: Mapping[str, Any]) -> list[dict[str, str]]:
    """How the best setting was chosen, and what its figure may be taken for."""
    best, count = report["best"], len(report["cells"])
    if best is None:
        text = (
            "No setting was chosen: that needs the validation accuracy of all students "
            "of a setting. The highest of the means below is no result, for it was "
            "found by looking at the test split."
        )
        return [{"kind": "fact", "text": text}]
    validation = best["validation_accuracy"]
    mean = number(validation["mean"], 2)
    text = (
        f"{label(report, best)} was chosen out of {count} settings by its mean "
        f"validation accuracy over {validation['n']} seeds, {mean} %. The "
        f"{report['split']} split had no part in the choice: its figure for the chosen "
        "setting is the one result of the sweep. The highest of all "
        f"{count} {report['split']} means would flatter, being the luckiest of them."
    )
    return [{"kind": "fact", "text": text}]


def _unfinished(report: Mapping[str, Any]) -> list[dict[str, str]]:
    """Students that diverged or were stopped, by name."""
    found = []
    for word, kind in (("diverged", "miss"), ("stopped", "fact")):
        rows = [
            row
            for row in (*report["rows"], *report["baseline_rows"])
            if row["status"].startswith(word)
        ]
        if rows:
            names = [
                f"{label(report, row)}, seed {row['seed']} ({row['status']})"
                for row in rows[:MOST_NAMED]
            ]
            more = len(rows) - len(names)
            rest = f"; and {more} more in the table of students" if more else ""
            text = (
                f"{len(rows)} of {len(report['rows']) + len(report['baseline_rows'])} "
                f"students {word}, and count in no mean: {'; '.join(names)}{rest}."
            )
            found.append({"kind": kind, "text": text})
    return found
