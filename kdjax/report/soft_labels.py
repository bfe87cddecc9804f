"""The figures of the teacher's soft labels: an image and what the teacher sees."""

import base64
import functools
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from kdjax.report.drawing import COLORS, FAINT, INK, MUTED, Drawing, styled
from kdjax.report.quantities import Number

_WIDTH = 4.0  # Inches; narrow, so that its small print stays legible on a phone.


def drawings(report: Mapping[str, Any]) -> Iterator[Drawing]:
    """One figure for each example: its image and the teacher's soft labels."""
    for i, example in enumerate(report["examples"]):
        yield Drawing(
            f"soft_labels_{i}",
            _caption(example, report["temperature"]),
            functools.partial(_soft_labels, [example], report["temperature"]),
        )


def sheet(report: Mapping[str, Any]) -> Figure:
    """All examples with their soft labels, one below the other."""
    return _soft_labels(report["examples"], report["temperature"])


@styled
def _soft_labels(examples: Sequence[Mapping[str, Any]], temperature: Number) -> Figure:
    rows = max(len(example["classes"]) for example in examples)
    height = 0.45 + 0.165 * rows
    figure = Figure(figsize=(_WIDTH, height * len(examples)), layout="constrained")
    grid = figure.subplots(
        len(examples), 3, squeeze=False, gridspec_kw={"width_ratios": [1, 1.25, 1.25]}
    )
    for (picture, sharp, soft), example in zip(grid, examples, strict=True):
        _picture(picture, example)
        _bars(sharp, example, "probabilities", "T = 1", named=True)
        _bars(soft, example, "softened", f"T = {temperature:g}", named=False)
    return figure


def _picture(axes: Axes, example: Mapping[str, Any]) -> None:
    pixels = Image.open(io.BytesIO(base64.b64decode(example["image_png"])))
    axes.imshow(np.asarray(pixels), cmap="gray", interpolation="nearest")
    axes.set_axis_off()
    # Text from a data set is text: a dollar sign starts no formula.
    axes.set_title(
        _shortened(example["label_name"], 18),
        parse_math=False,
        fontsize=10,
        loc="center",
    )


def _bars(
    axes: Axes, example: Mapping[str, Any], key: str, title: str, *, named: bool
) -> None:
    """Probabilities by class, the labelled class darkest."""
    percent = 100 * np.asarray(example[key])
    rows = np.arange(len(percent))
    labelled = [i == example["label"] for i in example["class_ids"]]
    colors = [COLORS["teacher"] if own else FAINT for own in labelled]
    axes.barh(rows, percent, color=colors, height=0.72)
    for row, value in enumerate(percent.tolist()):
        axes.annotate(
            _percent(value),
            (value, row),
            xytext=(2.5, 0),
            textcoords="offset points",
            va="center",
            fontsize=7.5,
            color=MUTED,
        )
    axes.set(xlim=(0, 1.7 * percent.max()), ylim=(len(rows) - 0.4, -0.6), xticks=[])
    axes.set_title(title, fontsize=9, fontweight="normal", color=MUTED, pad=4)
    names = [_shortened(name, 15) for name in example["classes"]]
    axes.set_yticks(rows, names if named else [""] * len(rows))
    axes.tick_params(length=0, labelsize=8, labelcolor=INK)
    for label in axes.get_yticklabels():
        label.set_parse_math(False)
    axes.spines[["bottom"]].set_visible(False)
    axes.grid(visible=False)


def _shortened(name: str, length: int) -> str:
    """A class name that leaves room for the bars; the caption has it whole."""
    return name if len(name) <= length else name[: length - 1] + "…"


def _percent(value: float) -> str:
    """As many digits as a reader takes in: 93.1 %, 0.52 %, < 0.01 %."""
    if value < 0.01:
        return "< 0.01 %"
    return f"{value:.1f} %" if value >= 1 else f"{value:.2f} %"


def _caption(example: Mapping[str, Any], temperature: Number) -> str:
    pairs = list(zip(example["classes"], example["softened"], strict=True))
    others = [
        (p, name)
        for (name, p), i in zip(pairs, example["class_ids"], strict=True)
        if i != example["label"]
    ]
    p, name = max(others)
    return (
        f"A {example['label_name']}. To the teacher, the likeliest other class is "
        f"{name}: {_percent(100 * p)} at T = {temperature:g}."
    )
