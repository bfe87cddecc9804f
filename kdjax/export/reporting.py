"""What an export came to: a table, a figure, and the sentence on what went wrong."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import rich.console
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from kdjax.export import card
from kdjax.export.formats import FORMATS
from kdjax.report import files
from kdjax.report.drawing import COLORS, Drawing, png, styled, svg
from kdjax.report.quantities import number, si
from kdjax.report.table import Cell, Table, print_parts

FIGURE = "accuracy"
_COLUMNS = ("", "%", "Change", "Size", "p50 ms", "p95 ms", "Per s")
_COLORS = COLORS | {"student_qat": COLORS["baseline"]}
_MARKERS = dict(zip(FORMATS, "osD^", strict=True))


def report(made: Mapping[str, Any], story: card.Story, directory: pathlib.Path) -> None:
    """Prints the table, and writes figure and model card beside the files."""
    drawing = figure(made)
    drawn = drawing.draw()
    files.replace(directory / f"{FIGURE}.png", png(drawn))
    files.replace(directory / f"{FIGURE}.svg", svg(drawn, FIGURE).encode())
    shown = table(made)
    text = card.text(made, story, shown, f"![{drawing.caption}]({FIGURE}.svg)")
    files.replace(directory / "README.md", text.encode())
    print_parts(headline(made), [shown], _findings(made), rich.console.Console())


def exceeded(made: Mapping[str, Any]) -> str:
    """A sentence on the files that are off by more than they may be; or nothing."""
    beyond = [
        f"{one['file']} by {abs(one['accuracy_difference']):.2f} of "
        f"{one['allowed_difference']:g}"
        for one in made["files"]
        if not one["within"]
    ]
    if not beyond:
        return ""
    return (
        f"Expected files as accurate as their models, but off by more points than "
        f"allowed are {', '.join(beyond)}: they are kept, and marked in README.md and "
        "export.json beside them; try other calibration examples, or leave the format "
        "out of export.formats."
    )


def headline(made: Mapping[str, Any]) -> str:
    """The smallest file beside the largest."""
    small, large = (
        pick(made["files"], key=lambda one: one["bytes"]) for pick in (min, max)
    )
    return (
        f"{len(made['files'])} files, each loaded back and compared on "
        f"{made['about']['num_examples']:,} test examples: {large['file']} has "
        f"{si(large['bytes'], 'B')} and {number(large['accuracy'])} % accuracy, "
        f"{small['file']} {si(small['bytes'], 'B')} and "
        f"{number(small['accuracy'])} %."
    )


def table(made: Mapping[str, Any]) -> Table:
    """One row a file."""
    about = made["about"]
    runs = made["files"][0]
    note = (
        f"%: accuracy on {about['num_examples']:,} test examples of "
        f"{about['dataset']}. Change: against the model in JAX, in points. p50, p95: "
        f"quantiles of the latency at batch size 1 over {runs['latency_runs']} runs. "
        f"Per s: examples at batch size {about['settings']['batch_size']}. All files "
        f"took turns on {_hardware(about['hardware'])}; onnxruntime on its CPU."
    )
    rows = [_row(one) for one in made["files"]]
    return Table("Exported files", list(_COLUMNS), rows, note)


def figure(made: Mapping[str, Any]) -> Drawing:
    """Accuracy against latency and against size, a point a file."""
    caption = (
        "Accuracy against median latency at batch size 1, and against size: one point "
        "a file."
    )
    return Drawing(FIGURE, caption, lambda: _draw(made["files"]))


def title(one: Mapping[str, Any]) -> str:
    """What a file is called in tables and legends."""
    return f"{card.ROLES[one['role']]}, {FORMATS[one['format']].title}"


def _row(one: Mapping[str, Any]) -> list[Cell]:
    latency = one["latency_ms"]
    change = number(one["accuracy_difference"], signed=True)
    return [
        Cell(title(one)),
        Cell(number(one["accuracy"]), one["accuracy"]),
        Cell(
            change if one["within"] else f"{change} ✗",
            one["accuracy_difference"],
        ),
        Cell(si(one["bytes"], "B"), one["bytes"]),
        Cell(number(latency["p50"], 3), latency["p50"]),
        Cell(number(latency["p95"], 3), latency["p95"]),
        Cell(si(one["throughput"]), one["throughput"]),
    ]


def _findings(made: Mapping[str, Any]) -> list[dict[str, str]]:
    if sentence := exceeded(made):
        return [{"kind": "miss", "text": sentence}]
    allowed = sorted({one["allowed_difference"] for one in made["files"]})
    text = (
        "Every file is as accurate as its model, within "
        f"{' or, in 8 bits, '.join(f'{points:g}' for points in allowed)} points."
    )
    return [{"kind": "hit", "text": text}]


def _hardware(hardware: Mapping[str, Any]) -> str:
    device = hardware["device_kind"]
    cpu = f"{hardware['cpu']}, {hardware['cores']} cores"
    return cpu if hardware["platform"] == "cpu" else f"{device} ({cpu})"


@styled
def _draw(entries: Sequence[Mapping[str, Any]]) -> Figure:
    drawn = Figure(figsize=(6.4, 4.0), layout="constrained")
    left, right = drawn.subplots(1, 2, sharey=True)
    for one in entries:
        marker, color = _MARKERS[one["format"]], _COLORS[one["role"]]
        look = dict(color=color, linestyle="", alpha=0.8)
        left.plot(one["latency_ms"]["p50"], one["accuracy"], marker, **look)
        right.plot(
            one["bytes"] / 1e6, one["accuracy"], marker, **look, label=title(one)
        )
    left.set(xlabel="Latency at batch size 1 (ms)", ylabel="Accuracy (%)")
    right.set(xlabel="Size (MB)")
    for axes in (left, right):
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=6))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.margins(0.12)
    drawn.legend(loc="outside lower center", ncols=2)
    return drawn
