"""A study as a table, in the terminal and on one HTML page that needs nothing else."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console

from kdjax.report import page
from kdjax.report.drawing import Drawing
from kdjax.report.quantities import (
    DASH,
    band_text,
    duration,
    interval,
    number,
)
from kdjax.report.table import Cell, Table, print_parts


def render(report: Mapping[str, Any], drawings: Sequence[Drawing]) -> str:
    """The page; everything that came from outside is escaped."""
    return page.fill(
        report,
        tables=[main_table(report)],
        drawings=drawings,
        details=_details(report),
        footer=_footer(report),
    )


def print_table(report: Mapping[str, Any], console: Console) -> None:
    """Prints the headline, the table and the findings to a terminal or a pipe."""
    print_parts(report["headline"], [main_table(report)], report["findings"], console)


def main_table(report: Mapping[str, Any]) -> Table:
    """One row an arm; columns that no arm fills are left out."""
    arms = report["arms"]
    unit = "accuracy, %" if report["unit"] == "accuracy" else report["unit"]
    columns = {
        f"Measured ({unit})": [_measured(report, arm) for arm in arms],
        "Published": [_plain(arm["published"]) for arm in arms],
        "Accepted": [_verdict(arm["band"]) for arm in arms],
        "Difference": [_gain(report, arm) for arm in arms],
        "from": [_reference(report, arm) for arm in arms],
        "Published difference": [_plain(arm["published_gain"], True) for arm in arms],
        "Difference accepted": [_verdict(arm["gain_band"]) for arm in arms],
        "Remarks": [Cell(arm["note"] or DASH) for arm in arms],
    }
    kept = {
        name: cells
        for name, cells in columns.items()
        if any(cell.text != DASH for cell in cells)
    }
    rows = [
        [Cell(arm["title"]), *(cells[i] for cells in kept.values())]
        for i, arm in enumerate(arms)
    ]
    note = (
        f"{report['split'].capitalize()} split of {report['num_examples']:,} examples, "
        "after the last step; mean ± sd over seeds. Differences are paired by seed, "
        "with their 95 % intervals."
    )
    if report["source"]:
        note += f" Published: {report['source']}"
    return Table("Results", ["", *kept], rows, note)


def _measured(report: Mapping[str, Any], arm: Mapping[str, Any]) -> Cell:
    summary, digits = arm["summary"], report["digits"]
    text = number(summary["mean"], digits)
    if summary["sd"] is not None:
        text += f" ± {number(summary['sd'], digits)}"
    return Cell(f"{text} (n = {summary['n']})", summary["mean"])


def _plain(value: float | None, signed: bool = False) -> Cell:
    if value is None:
        return Cell(DASH)
    return Cell(f"{value:{'+' if signed else ''},g}", value)


def _verdict(band: Mapping[str, Any] | None) -> Cell:
    if band is None:
        return Cell(DASH)
    return Cell(f"{band_text(band)}: {'met' if band['met'] else 'missed'}")


def _gain(report: Mapping[str, Any], arm: Mapping[str, Any]) -> Cell:
    gain, digits = arm["gain"], report["digits"]
    if gain is None:
        return Cell(DASH)
    text = number(gain["mean"], digits, signed=True)
    if gain["low"] is not None:
        text += f" ± {number(gain['sd'], digits)} ({interval(gain, digits)})"
    return Cell(text, gain["mean"])


def _reference(report: Mapping[str, Any], arm: Mapping[str, Any]) -> Cell:
    titles = {other["name"]: other["title"] for other in report["arms"]}
    return Cell(DASH if arm["gain"] is None else titles[arm["against"]])


def _details(report: Mapping[str, Any]) -> Iterable[str]:
    rows = [
        [Cell(arm["title"]), Cell(str(seed), seed), Cell(f"{value:,g}", value)]
        for arm in report["arms"]
        for seed, value in zip(arm["seeds"], arm["values"], strict=True)
    ]
    every = Table("Every seed", ["", "Seed", report["unit"].capitalize()], rows)
    yield page.folded("Every seed", page.table_section(every))
    if report["stage_seconds"]:
        seconds = report["stage_seconds"]
        rows = [[Cell(stage), Cell(duration(x), x)] for stage, x in seconds.items()]
        stages = Table("Wall time", ["Stage", "Time"], rows)
        yield page.folded("Wall time by stage", page.table_section(stages))
    config = json.dumps(report["config"], indent=2, ensure_ascii=False)
    yield page.folded("The whole config", f"<pre>{page.escape(config)}</pre>")


def _footer(report: Mapping[str, Any]) -> Iterable[str]:
    seeds = sorted({seed for arm in report["arms"] for seed in arm["seeds"]})
    return page.footer({**report, "seeds": seeds})
