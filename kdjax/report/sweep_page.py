"""A sweep as tables, in the terminal and on one HTML page that needs nothing else."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from kdjax.report import page
from kdjax.report.drawing import Drawing
from kdjax.report.quantities import DASH, METRICS, duration, interval, number
from kdjax.report.sweep_rows import text, titles
from kdjax.report.table import Cell, Table

# Of the table of settings, on the page and in a terminal; all are among the details.
MOST_ROWS, MOST_PRINTED = 30, 10


def render(report: Mapping[str, Any], drawings: Sequence[Drawing]) -> str:
    """The page; everything that came from outside is escaped."""
    return page.fill(
        report,
        tables=[main_table(report)],
        drawings=drawings,
        details=_details(report),
        footer=page.footer({**report, "seeds": _seeds(report)}),
    )


def label(report: Mapping[str, Any], entry: Mapping[str, Any]) -> str:
    """The settings of a cell or a row: `temperature = 4, alpha = 0.9`."""
    names = titles([*report["axes"], *report["fixed"]])
    parts = [
        f"{names.get(path, path)} = {text(value)}"
        for path, value in entry["values"].items()
    ]
    return ", ".join(parts) or "no setting"


def main_table(report: Mapping[str, Any], *, brief: bool = False) -> Table:
    """Settings from the best by validation down; fewer rows and columns, if brief."""
    most = MOST_PRINTED if brief else MOST_ROWS
    cells = _ranked(report)
    note = (
        f"{report['split'].capitalize()} split of {report['num_examples']:,} examples, "
        "after the last step; mean ± sd over seeds, and the 95 % t-interval of the "
        "mean. Differences are paired by seed."
    )
    if report["best"] is not None:
        note += " In the order of the mean validation accuracy, by which one chooses."
    if report["fixed"]:
        note += f" All with {label(report, {'values': report['fixed']})}."
    if len(cells) > most:
        note += f" The first {most} of {len(cells)} settings."
    shown = _table("Settings", report, cells[:most], note, brief=brief)
    for baseline in report["baselines"]:
        values = [_value(baseline, path) for path in report["axes"]]
        row = [Cell("no teacher"), *values, *_test(report, baseline)]
        shown.rows.append(row + [Cell(DASH)] * (len(shown.columns) - len(row)))
    return shown


def _value(entry: Mapping[str, Any], path: str) -> Cell:
    """Where a setting stands on an axis."""
    return Cell(text(entry["values"][path]) if path in entry["values"] else DASH)


def _ranked(report: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """By mean validation accuracy; in their own order where there is none."""

    def rank(cell: Mapping[str, Any]) -> float:
        validation = cell["validation_accuracy"]
        return 0.0 if validation is None else -validation["mean"]

    return sorted(report["cells"], key=rank)


def _table(
    title: str,
    report: Mapping[str, Any],
    cells: Sequence[Mapping[str, Any]],
    note: str,
    *,
    brief: bool = False,
) -> Table:
    """One row a setting; columns of measures that none fills are left out."""
    unit = "accuracy, %" if report["unit"] == "accuracy" else "errors"
    names = titles(list(report["axes"]))
    columns = {
        name.capitalize(): [_value(cell, path) for cell in cells]
        for path, name in names.items()
    }
    tests = [_test(report, cell) for cell in cells]
    columns[f"{report['split'].capitalize()} ({unit})"] = [test for test, _ in tests]
    columns["n"] = [count for _, count in tests]
    for name, column in _measures(report, cells, brief).items():
        if any(cell.text != DASH for cell in column):
            columns[name] = column
    rows = [
        [Cell(str(i + 1)), *(column[i] for column in columns.values())]
        for i in range(len(cells))
    ]
    return Table(title, ["", *columns], rows, note)


def _measures(
    report: Mapping[str, Any], cells: Sequence[Mapping[str, Any]], brief: bool
) -> dict[str, list[Cell]]:
    """The further columns, by their headings."""
    known = {
        "Validation (%)": ("validation_accuracy", "accuracy"),
        "NLL": ("test_nll", "nll"),
        "ECE (%)": ("ece", "ece"),
        "Agreement (%)": ("agreement", "agreement"),
    }
    missing = [cell["missing"] for cell in cells]
    return {
        "Against no teacher": [_gain(report, cell["gain"]) for cell in cells],
        **{
            heading: [_mean(cell[key], metric) for cell in cells]
            for heading, (key, metric) in known.items()
            if not brief or key == "validation_accuracy"
        },
        "Not done": [Cell(str(x), x) if x else Cell(DASH) for x in missing],
    }


def _test(report: Mapping[str, Any], entry: Mapping[str, Any]) -> tuple[Cell, Cell]:
    """The result with its interval, and the number of seeds."""
    digits, test = report["digits"], entry["test"]
    shown = number(test["mean"], digits)
    if test["sd"] is not None:
        low, high = (number(test[end], digits) for end in ("low", "high"))
        shown += f" ± {number(test['sd'], digits)} ({low} to {high})"
    return Cell(shown, test["mean"]), Cell(str(test["n"]), test["n"])


def _gain(report: Mapping[str, Any], gain: Mapping[str, Any] | None) -> Cell:
    if gain is None:
        return Cell(DASH)
    shown = number(gain["mean"], report["digits"], signed=True)
    if gain["low"] is not None:
        shown += f" ({interval(gain, report['digits'])})"
    return Cell(shown, gain["mean"])


def _mean(summary: Mapping[str, Any] | None, metric: str) -> Cell:
    if summary is None:
        return Cell(DASH)
    return Cell(number(summary["mean"], METRICS[metric].digits), summary["mean"])


def _details(report: Mapping[str, Any]) -> Iterable[str]:
    if len(report["cells"]) > MOST_ROWS:
        every = _table("All settings", report, _ranked(report), "")
        yield page.folded("All settings", page.table_section(every))
    yield page.folded("Every student", page.table_section(_students(report)))
    for title, key in (
        ("The plan of the sweep", "plan"),
        ("The whole config", "config"),
    ):
        if report[key]:
            shown = json.dumps(report[key], indent=2, ensure_ascii=False)
            yield page.folded(title, f"<pre>{page.escape(shown)}</pre>")
    seconds = {**report["stage_seconds"], **report["seconds"]}
    if seconds:
        rows = [[Cell(name), Cell(duration(x), x)] for name, x in seconds.items()]
        times = Table("Wall time", ["What", "Time"], rows)
        yield page.folded("Wall time", page.table_section(times))


def _students(report: Mapping[str, Any]) -> Table:
    rows = []
    for kind, prefix in (("rows", ""), ("baseline_rows", "no teacher")):
        for row in report[kind]:
            known = label(report, row) if row["values"] else ""
            heading = ", ".join(x for x in (prefix, known) if x)
            score = row["errors"]
            if report["unit"] == "accuracy":
                score = row["scores"].get("test_accuracy")
            validation = row["scores"].get("validation_accuracy")
            rows.append(
                [
                    Cell(heading),
                    Cell(str(row["seed"]), row["seed"]),
                    Cell(number(score, 0 if report["unit"] == "errors" else 2), score),
                    Cell(number(validation, 2), validation),
                    Cell(row["status"]),
                ]
            )
    unit = report["unit"].capitalize()
    columns = ["Setting", "Seed", unit, "Validation (%)", "Status"]
    return Table("Every student", columns, rows)


def _seeds(report: Mapping[str, Any]) -> list[int]:
    rows = [*report["rows"], *report["baseline_rows"]]
    return sorted({row["seed"] for row in rows})
