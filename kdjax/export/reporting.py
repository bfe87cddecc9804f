"""What an export came to: a table, a figure, and the sentence on what went wrong."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import rich.console
from matplotlib.figure import Figure

from kdjax.export import card
from kdjax.export.formats import FORMATS
from kdjax.report import files
from kdjax.report.drawing import COLORS, MUTED, Drawing, png, styled, svg
from kdjax.report.quantities import number, si
from kdjax.report.table import Cell, Table, print_parts

FIGURE = "accuracy_latency"
_COLUMNS = (
    "",
    "Accuracy (%)",
    "Change (points)",
    "Largest change of a logit",
    "Size",
    "Latency p50 (ms)",
    "p95 (ms)",
    "Examples/s",
    "",
)
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
    """The smallest student beside the teacher's weights."""
    sizes = {role: _smallest(made["files"], role) for role in made["models"]}
    best = min(sizes.values(), key=lambda one: one["bytes"])
    largest = max(made["files"], key=lambda one: one["bytes"])
    return (
        f"{len(made['files'])} files, each loaded back and compared on "
        f"{made['about']['num_examples']:,} test examples: {best['file']} has "
        f"{si(best['bytes'], 'B')} and {number(best['accuracy'])} % accuracy, "
        f"{largest['file']} {si(largest['bytes'], 'B')} and "
        f"{number(largest['accuracy'])} %."
    )


def table(made: Mapping[str, Any]) -> Table:
    """One row a file."""
    about = made["about"]
    runs = made["files"][0]
    note = (
        f"Change: against the model in JAX, on {about['num_examples']:,} test examples "
        f"of {about['dataset']}. Latency at batch size 1 (median and 95th percentile "
        f"of {runs['latency_runs']} runs), throughput at batch size "
        f"{about['settings']['batch_size']}, all files taking turns on "
        f"{_hardware(about['hardware'])}; onnxruntime on its CPU."
    )
    rows = [_row(one) for one in made["files"]]
    return Table("Exported files", list(_COLUMNS), rows, note)


def figure(made: Mapping[str, Any]) -> Drawing:
    """Accuracy against latency, a point a file, as large as the file."""
    caption = (
        "Accuracy against median latency at batch size 1: one point a file, its size "
        "beside it."
    )
    return Drawing(FIGURE, caption, lambda: _draw(made["files"]))


def _smallest(entries: Sequence[Mapping[str, Any]], role: str) -> Mapping[str, Any]:
    own = [one for one in entries if one["role"] == role]
    return min(own, key=lambda one: one["bytes"])


def _row(one: Mapping[str, Any]) -> list[Cell]:
    latency = one["latency_ms"]
    return [
        Cell(f"{one['role'].capitalize()}, {FORMATS[one['format']].title}"),
        Cell(number(one["accuracy"]), one["accuracy"]),
        Cell(
            number(one["accuracy_difference"], signed=True), one["accuracy_difference"]
        ),
        Cell(f"{one['max_deviation']:.1g}", one["max_deviation"]),
        Cell(si(one["bytes"], "B"), one["bytes"]),
        Cell(number(latency["p50"], 3), latency["p50"]),
        Cell(number(latency["p95"], 3), latency["p95"]),
        Cell(si(one["throughput"]), one["throughput"]),
        Cell("" if one["within"] else "beyond what is allowed"),
    ]


def _findings(made: Mapping[str, Any]) -> list[dict[str, str]]:
    sentence = exceeded(made)
    if sentence:
        return [{"kind": "miss", "text": sentence}]
    return [
        {
            "kind": "hit",
            "text": "Every file is as accurate as its model: within "
            + " and ".join(
                f"{points:g} points ({kind})"
                for points, kind in sorted(
                    {
                        (
                            one["allowed_difference"],
                            "8 bits" if "int8" in one["format"] else "float",
                        )
                        for one in made["files"]
                    }
                )
            )
            + ".",
        }
    ]


def _hardware(hardware: Mapping[str, Any]) -> str:
    device = hardware["device_kind"]
    cpu = f"{hardware['cpu']}, {hardware['cores']} cores"
    return cpu if hardware["platform"] == "cpu" else f"{device} ({cpu})"


@styled
def _draw(entries: Sequence[Mapping[str, Any]]) -> Figure:
    drawn = Figure(figsize=(5.4, 3.8), layout="constrained")
    axes = drawn.subplots()
    for one in entries:
        x, y = one["latency_ms"]["p50"], one["accuracy"]
        axes.plot(
            x,
            y,
            _MARKERS[one["format"]],
            color=COLORS.get(one["role"], MUTED),
            label=f"{one['role'].capitalize()}, {FORMATS[one['format']].title}",
        )
        axes.annotate(
            si(one["bytes"], "B"),
            (x, y),
            (5, 4),
            textcoords="offset points",
            fontsize=8,
            color=MUTED,
        )
    axes.set(xscale="log", xlabel="Latency at batch size 1 (ms)", ylabel="Accuracy (%)")
    axes.margins(0.15)
    drawn.legend(loc="outside lower center", ncols=2)
    return drawn
