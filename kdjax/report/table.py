"""The tables of a report: as rows of text, for the page, and in the terminal."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import rich.table
from rich.console import Console, Group
from rich.text import Text

from kdjax.report.quantities import (
    DASH,
    METRICS,
    MINUS,
    ROLE_NAMES,
    ROLE_TITLES,
    TIMES,
    Metric,
    Number,
    band_text,
    duration,
    interval,
    number,
    si,
    spread,
)


class Cell(NamedTuple):
    """One entry of a table.

    Attributes:
      text: what the reader sees.
      value: the number behind it, as in `report.json`; None where there is none.
    """

    text: str
    value: Number | None = None


class Table(NamedTuple):
    """A titled table; each row begins with its heading.

    Attributes:
      title: of the table.
      columns: their headings, that of the row headings first.
      rows: their cells, as many as `columns`.
      note: what to know when reading it.
    """

    title: str
    columns: list[str]
    rows: list[list[Cell]]
    note: str = ""


def tables(report: Mapping[str, Any]) -> Iterator[Table]:
    """The tables that the report has numbers for, in the order of reading."""
    yield _results(report, "last")
    if any(entry["published"] or entry["band"] for entry in report["roles"].values()):
        yield _published(report)
    if any(entry["cost"] for entry in report["roles"].values()):
        yield _costs(report)


def best_table(report: Mapping[str, Any]) -> Table | None:
    """All metrics at the epoch best by validation, where that was kept."""
    if any(entry["best"] for entry in report["roles"].values()):
        return _results(report, "best")
    return None


def per_seed(report: Mapping[str, Any]) -> Table:
    """The headline metric and the training time of every single training."""
    metric = METRICS[report["unit"]]
    rows = []
    for role, entry in report["roles"].items():
        for i, seed in enumerate(entry["seeds"]):
            last, best = (
                None if entry[epoch] is None else entry[epoch][metric.key]["values"][i]
                for epoch in ("last", "best")
            )
            digits = 0 if metric.key == "errors" else metric.digits
            seconds = entry["seconds"]["values"][i]
            cells = [Cell(ROLE_TITLES[role]), Cell(str(seed), seed)]
            cells += [Cell(number(value, digits), value) for value in (last, best)]
            # Nothing was trained where a teacher was imported.
            time = Cell(duration(seconds), seconds) if seconds else Cell(DASH)
            rows.append([*cells, time])
    heading = _heading(metric, report)
    columns = ["Model", "Seed", f"{heading}, last", f"{heading}, best", "Training time"]
    return Table("Every training", columns, rows)


def print_table(report: Mapping[str, Any], console: Console) -> None:
    """Prints the headline, the tables and the findings to a terminal or a pipe.

    Args:
      report: as from `build`.
      console: where to; its width and its encoding are respected.
    """
    print_parts(report["headline"], tables(report), report["findings"], console)


def print_parts(
    headline: str,
    tables: Iterable[Table],
    findings: Iterable[Mapping[str, str]],
    console: Console,
) -> None:
    """Prints a report, in characters that the console has."""
    parts: list[Any] = [Text(headline, style="bold"), Text()]
    for table in tables:
        parts += [_rich_table(table), Text()]
    styles = {"hit": "green", "miss": "red", "fact": ""}
    marks = {"hit": "✓", "miss": "✗", "fact": "·"}
    parts += [
        Text(f"{marks[found['kind']]} {found['text']}", style=styles[found["kind"]])
        for found in findings
    ]
    if console.encoding.lower().startswith("utf"):
        console.print(Group(*parts))
        return
    with console.capture() as capture:
        console.print(Group(*parts))
    console.file.write(_plain(capture.get(), console.encoding))


def _plain(text: str, encoding: str) -> str:
    """`text` with nothing in it that a terminal of `encoding` cannot show."""
    twins = {MINUS: "-", DASH: "-", TIMES: "x", "±": "+-", "≤": "<=", "≥": ">="}
    for character, twin in {**twins, "·": "-", "✓": "+", "✗": "!"}.items():
        text = text.replace(character, twin)
    return text.encode(encoding, "replace").decode(encoding)


def _rich_table(table: Table) -> rich.table.Table:
    result = rich.table.Table(
        title=Text(table.title, style="bold"),
        title_justify="left",
        caption=Text(table.note, style="dim") if table.note else None,
        caption_justify="left",
    )
    for i, column in enumerate(table.columns):
        result.add_column(Text(column), justify="right" if i else "left")
    for row in table.rows:
        result.add_row(*(Text(cell.text) for cell in row))
    return result


def _heading(metric: Metric, report: Mapping[str, Any]) -> str:
    if metric.key == "errors":
        return f"{metric.title} (of {number(report['num_examples'], 0)})"
    return f"{metric.title} ({metric.unit})" if metric.unit else metric.title


def _results(report: Mapping[str, Any], epoch: str) -> Table:
    last = epoch == "last"
    # The headline first; at the last epoch, its best by validation right below.
    keys = sorted(METRICS, key=lambda key: key != report["unit"])
    rows = [_metric_row(report, METRICS[key], epoch) for key in keys]
    if last and any(entry["best"] for entry in report["roles"].values()):
        rows.insert(1, _metric_row(report, METRICS[report["unit"]], "best"))
        rows[1][0] = Cell("the same, epoch best by validation")
    columns = ["", *(ROLE_NAMES[role] for role in report["roles"])]
    note = f"{report['split'].capitalize()} split, mean ± sd over seeds."
    if report["gain"][epoch]:
        columns.append("Difference")
        note += (
            f" Difference: student {MINUS} baseline, paired by seed, and its 95 % "
            "interval."
        )
    title = "last epoch" if last else "epoch best by validation"
    rows = [row for row in rows if any(cell.value is not None for cell in row)]
    return Table(f"Results at the {title}", columns, rows, note)


def _metric_row(report: Mapping[str, Any], metric: Metric, epoch: str) -> list[Cell]:
    entries = report["roles"].values()
    summaries = [(entry[epoch] or {}).get(metric.key) for entry in entries]
    cells = [_summary_cell(summary, metric) for summary in summaries]
    if report["gain"]["last"]:
        cells.append(_gain_cell(report["gain"][epoch].get(metric.key), metric))
    return [Cell(_heading(metric, report)), *cells]


def _summary_cell(summary: Mapping[str, Any] | None, metric: Metric) -> Cell:
    return Cell(spread(summary, metric), None if summary is None else summary["mean"])


def _gain_cell(difference: Mapping[str, Any] | None, metric: Metric) -> Cell:
    if difference is None:
        return Cell(DASH)
    text = spread(difference, metric, signed=True)
    if difference["low"] is not None:
        text += f" ({interval(difference, metric.digits)})"
    return Cell(text, difference["mean"])


def _published(report: Mapping[str, Any]) -> Table:
    metric = METRICS[report["unit"]]
    rows = []
    for role, entry in report["roles"].items():
        published, band = entry["published"], entry["band"]
        cells = [
            Cell(ROLE_TITLES[role]),
            _summary_cell(entry["last"][metric.key], metric),
        ]
        if published is None:
            cells += [Cell(DASH), Cell(DASH)]
        else:
            value, difference = published["value"], published["difference"]
            digits = metric.digits
            cells.append(Cell(f"{value:,g}", value))
            cells.append(Cell(number(difference, digits, signed=True), difference))
        verdict = DASH if band is None else _verdict(band)
        rows.append([*cells, Cell(verdict)])
    columns = ["", f"Measured ({metric.unit})"]
    columns += ["Published", "Difference", "Accepted"]
    source = report["published"].get("source")
    note = f"Published: {source}" if source else ""
    return Table("Beside the published figures", columns, rows, note)


def _verdict(band: Mapping[str, Any]) -> str:
    return f"{band_text(band)}: {'met' if band['met'] else 'missed'}"


_COSTS: dict[str, Callable[[Mapping[str, Any]], Cell]] = {
    "Parameters": lambda c: Cell(f"{c['parameters']:,}", c["parameters"]),
    "Size": lambda c: Cell(si(c["nbytes"], "B"), c["nbytes"]),
    "FLOPs per example": lambda c: Cell(si(c["flops"]), c["flops"]),
    "Latency, median (ms)": lambda c: _latency(c["latency_ms"]["p50"]),
    "Latency, 95th percentile (ms)": lambda c: _latency(c["latency_ms"]["p95"]),
    "Throughput (examples/s)": lambda c: Cell(
        number(c["throughput"], 0), c["throughput"]
    ),
    "Compile time (s)": lambda c: Cell(
        number(c["compile_seconds"], 2), c["compile_seconds"]
    ),
}


def _latency(milliseconds: float) -> Cell:
    return Cell(number(milliseconds, 3 if milliseconds < 1 else 2), milliseconds)


def _costs(report: Mapping[str, Any]) -> Table:
    costs = {r: entry["cost"] for r, entry in report["roles"].items() if entry["cost"]}
    compared = {"student", "teacher"} <= set(costs)
    rows = []
    for heading, cell_fn in _COSTS.items():
        cells = {role: cell_fn(cost) for role, cost in costs.items()}
        row = [Cell(heading), *cells.values()]
        if compared:
            row.append(_ratio(cells["student"].value, cells["teacher"].value))
        rows.append(row)
    cost = next(iter(costs.values()))
    note = (
        "One multiply-accumulate is 2 FLOPs; matrix products and convolutions only. "
        f"Latency at batch size 1 ({cost['latency_runs']} runs), throughput at batch "
        f"size {cost['batch_size']} ({cost['throughput_runs']} runs), one device, the "
        "models taking turns; compile time apart."
    )
    columns = ["", *(ROLE_NAMES[role] for role in costs)]
    return Table(
        "What the models cost",
        columns + ["Student against teacher"] * compared,
        rows,
        note,
    )


def _ratio(student: Number | None, teacher: Number | None) -> Cell:
    if not student or not teacher:
        return Cell(DASH)
    ratio = student / teacher
    if ratio == 1:
        return Cell("the same", ratio)
    factor, word = (1 / ratio, "less") if ratio < 1 else (ratio, "more")
    return Cell(f"{factor:.3g}{TIMES} {word}", ratio)
