"""Figures of studies: lines, dots, heat maps and sheets of images."""

import functools
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from kdjax.report.drawing import COLORS, FAINT, INK, MUTED, Drawing, styled
from kdjax.report.quantities import Number, number

# Okabe and Ito's, in an order in which neighbours differ in lightness too.
PALETTE = (
    COLORS["student"],
    COLORS["baseline"],
    COLORS["teacher"],
    "#cc79a7",
    "#56b4e9",
    "#e69f00",
    "#8c6d1f",
    INK,
)
LINE_STYLES = ("-", "--", "-.", ":")
SYMBOLS = "osD^vPX*"

_WIDTH = 5.4  # Inches, as the report's other figures.


class Series(NamedTuple):
    """One thing over x: the mean of its runs is drawn thick, each run thin.

    Attributes:
      label: in the legend.
      x: `[points]`.
      runs: `[runs, points]`, or `[points]` of a single run.
      reference: drawn as a thin grey line, without markers: a level to compare with.
      level_of: the label of the series that it is a level of: a thin line of that one's
        colour, and not in the legend.
    """

    label: str
    x: Sequence[float]
    runs: Any
    reference: bool = False
    level_of: str = ""


def lines(
    name: str,
    caption: str,
    series: Sequence[Series],
    *,
    xlabel: str,
    ylabel: str,
    title: str = "",
    xscale: str = "linear",
    yscale: str = "linear",
) -> Drawing:
    """Curves of several things, each over its runs."""

    @styled
    def draw() -> Figure:
        figure, axes = _new_figure(3.8)
        places = {one.label: i for i, one in enumerate(series)}
        for i, one in enumerate(series):
            _series(axes, places[one.level_of] if one.level_of else i, one)
        axes.set(xlabel=xlabel, ylabel=ylabel, xscale=xscale, yscale=yscale)
        _set_ticks(axes, sorted({x for one in series for x in one.x}), xscale)
        axes.set_title(title)
        _legend_below(figure, axes)
        return figure

    return Drawing(name, caption, draw)


def dots(name: str, report: Mapping[str, Any]) -> Drawing:
    """Every seed of every arm of a study as a dot, the means as lines."""
    unit = report["unit"].capitalize()
    unit += " (%)" if unit == "Accuracy" else ""
    caption = f"{unit} of every seed (dots) and their mean (bar)."
    if any(arm["published"] is not None for arm in report["arms"]):
        caption += " Diamonds: published."
    return Drawing(name, caption, functools.partial(_dots, report, unit))


def heatmap(
    name: str,
    caption: str,
    values: Any,
    *,
    rows: Sequence[str],
    columns: Sequence[str],
    ylabel: str,
    xlabel: str,
    title: str = "",
    digits: int | None = 1,
    label: str = "",
) -> Drawing:
    """A table of numbers `[rows, columns]` as colours, with the numbers in it.

    A few values far out do not take all colours: those further from the quartiles than
    three times the distance between these have the last colour.

    Args:
      name: of the file.
      caption: what it shows.
      values: `[rows, columns]`; NaN stays empty.
      rows: their headings.
      columns: their headings.
      ylabel: what the rows are.
      xlabel: what the columns are.
      title: above it.
      digits: of the numbers; None writes none.
      label: of the colours.
    """

    @styled
    def draw() -> Figure:
        array = np.asarray(values, np.float64)
        height = min(1.2 + 0.36 * len(rows), 7.0)
        figure, axes = _new_figure(max(height, 2.6))
        low, high = _fences(array)
        image = axes.imshow(array, cmap="cividis", aspect="auto", vmin=low, vmax=high)
        axes.grid(False)
        axes.set_xticks(range(len(columns)), columns)
        if max(map(len, columns)) * len(columns) > 75:  # Letters that fit side by side.
            axes.set_xticks(axes.get_xticks(), columns, rotation=35, ha="right")
        if len(columns) > 14:
            axes.tick_params(axis="x", labelsize=7)
        axes.set_yticks(range(len(rows)), rows)
        axes.set(xlabel=xlabel, ylabel=ylabel)
        axes.set_title(title)
        beyond = (np.nanmin(array) < low, np.nanmax(array) > high)
        figure.colorbar(image, ax=axes, label=label, extend=_EXTEND[beyond])
        if digits is not None:
            _write_numbers(axes, array, digits, (low, high))
        return figure

    return Drawing(name, caption, draw)


def parallel_coordinates(
    name: str,
    caption: str,
    marks: Mapping[str, Sequence[tuple[Number, str]]],
    heights: Sequence[Sequence[Number]],
    scores: Sequence[Number],
    *,
    ylabel: str,
    chosen: int | None = None,
) -> Drawing:
    """Each line is a setting: where it stands on each axis, and its score at the end.

    Args:
      name: of the file.
      caption: what it shows.
      marks: heights from 0 to 1 and what is written there, by the title of the axis.
      heights: of each setting, on each axis.
      scores: of each setting.
      ylabel: what the scores are.
      chosen: the setting that is drawn thick.
    """

    @styled
    def draw() -> Figure:
        figure, axes = _new_figure(3.6)
        low, high = min(scores), max(scores)
        shares = [(x - low) / max(high - low, 1e-12) for x in scores]
        colors = matplotlib.colormaps["cividis"]
        for i in np.argsort(shares, kind="stable"):
            axes.plot(
                [*heights[i], shares[i]],
                color=INK if i == chosen else colors(shares[i]),
                linewidth=2.6 if i == chosen else 1.0,
                zorder=3 if i == chosen else 2,
            )
        ends = [(0.0, number(low, 2)), (1.0, number(high, 2))]
        for x, written in enumerate([*marks.values(), ends]):
            for height, label in written:
                _beside(axes, x, height, label)
        axes.set_xticks(range(len(marks) + 1), [*marks, ylabel], color=INK)
        axes.set(yticks=[], xlim=(-0.15, len(marks) + 0.35))
        axes.grid(axis="x", visible=True, color=MUTED)
        axes.spines["left"].set_visible(False)
        return figure

    return Drawing(name, caption, draw)


def scatter(
    name: str,
    caption: str,
    x: Sequence[Number],
    y: Sequence[Number],
    *,
    xlabel: str,
    ylabel: str,
    xscale: str = "linear",
    chosen: int | None = None,
) -> Drawing:
    """A dot for each setting; the chosen one is large."""

    @styled
    def draw() -> Figure:
        figure, axes = _new_figure(3.4)
        axes.plot(x, y, "o", color=COLORS["student"], markersize=4, alpha=0.6)
        if chosen is not None:
            axes.plot([x[chosen]], [y[chosen]], "D", color=INK, markersize=8)
        axes.set(xlabel=xlabel, ylabel=ylabel, xscale=xscale)
        return figure

    return Drawing(name, caption, draw)


def _beside(axes: Axes, x: Number, height: Number, label: str) -> None:
    """A label right of an axis, on white, for lines run below it."""
    axes.annotate(
        label,
        (x, height),
        xytext=(4, 0),
        textcoords="offset points",
        fontsize=8,
        va="center",
        zorder=4,
        bbox={"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 1},
    )


def image_grid(
    name: str,
    caption: str,
    rows: Sequence[np.ndarray],
    row_titles: Sequence[str],
) -> Drawing:
    """Rows of images, uint8 `[n, height, width, channels]` each, under their titles."""

    @styled
    def draw() -> Figure:
        count = max(len(row) for row in rows)
        figure = Figure(
            figsize=(_WIDTH, 0.3 + _WIDTH / count * len(rows)), layout="constrained"
        )
        grid = figure.subplots(len(rows), count, squeeze=False)
        for axes_row, images, title in zip(grid, rows, row_titles, strict=True):
            for axes in axes_row:
                axes.set_axis_off()
            for axes, image in zip(axes_row, images, strict=False):
                gray = image.shape[-1] == 1
                axes.imshow(
                    image[..., 0] if gray else image,
                    cmap="gray" if gray else None,
                    vmin=0,
                    vmax=255,
                    interpolation="nearest",
                )
            axes_row[0].set_title(title, fontsize=8, fontweight="normal", pad=2)
        return figure

    return Drawing(name, caption, draw)


def _new_figure(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    return figure, figure.subplots()


def _set_ticks(axes: Axes, points: Sequence[Number], xscale: str) -> None:
    """No halves of whole numbers; on a log scale a few points, and not powers of 10."""
    if xscale == "log" and len(points) <= 8:
        axes.set_xticks(points, [f"{x:,g}" for x in points])
        axes.set_xticks([], minor=True)
    elif xscale == "linear" and all(x % 1 == 0 for x in points):
        axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True))


def _series(axes: Axes, index: int, one: Series) -> None:
    runs = np.atleast_2d(np.asarray(one.runs, np.float64))
    mean = np.ma.masked_invalid(runs).mean(axis=0).filled(np.nan)
    color = PALETTE[index % len(PALETTE)]
    style = LINE_STYLES[index % len(LINE_STYLES)]
    if one.reference:
        axes.plot(one.x, mean, color=MUTED, linewidth=1.2, label=one.label)
        return
    if one.level_of:
        axes.plot(one.x, mean, color=color, linewidth=0.9, linestyle=":")
        return
    if len(runs) > 1:
        axes.plot(one.x, runs.T, color=color, linewidth=0.7, alpha=0.35)
    # Markers where points are few enough to be told apart.
    marker = SYMBOLS[index % len(SYMBOLS)] if len(one.x) <= 15 else None
    axes.plot(
        one.x,
        mean,
        color=color,
        linestyle=style,
        marker=marker,
        markersize=4,
        label=one.label,
    )


def _legend_below(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    if len(labels) > 1:
        columns = 1 if max(map(len, labels)) > 30 else 2
        figure.legend(handles, labels, loc="outside lower center", ncols=columns)


@styled
def _dots(report: Mapping[str, Any], unit: str) -> Figure:
    arms = report["arms"]
    titles = [textwrap.fill(arm["title"], 34) for arm in arms]
    height = max(0.34, *(0.2 * (title.count("\n") + 1) for title in titles))
    figure, axes = _new_figure(1.2 + height * len(arms))
    for row, arm in enumerate(arms):
        compared = arm["against"] is not None
        color = COLORS["student"] if compared else MUTED
        values, mean = arm["values"], arm["summary"]["mean"]
        axes.plot(
            values, [row] * len(values), "o", color=color, markersize=4, alpha=0.5
        )
        axes.plot([mean], [row], "|", color=color, markersize=14, markeredgewidth=2.4)
        if arm["published"] is not None:
            axes.plot(
                [arm["published"]],
                [row],
                "D",
                color=INK,
                markersize=4,
                fillstyle="none",
            )
        if arm["against"] is not None:
            other = next(x for x in arms if x["name"] == arm["against"])
            axes.plot(
                [other["summary"]["mean"]] * 2,
                [row - 0.4, row + 0.4],
                color=FAINT,
                linewidth=1.2,
                zorder=1,
            )
    axes.set_yticks(range(len(arms)), titles)
    axes.set_ylim(len(arms) - 0.5, -0.5)
    axes.set(xlabel=unit)
    axes.grid(axis="y", visible=False)
    return figure


_EXTEND: dict[Any, Any] = {
    (False, False): "neither",
    (True, False): "min",
    (False, True): "max",
    (True, True): "both",
}


def _fences(array: np.ndarray) -> tuple[float, float]:
    """The least and the largest value, or Tukey's outer fences if these are nearer."""
    least, lower, upper, largest = np.nanquantile(array, (0.0, 0.25, 0.75, 1.0))
    width = 3 * (upper - lower)
    if width == 0:
        return least, largest
    return max(least, lower - width), min(largest, upper + width)


def _write_numbers(
    axes: Axes, array: np.ndarray, digits: int, limits: tuple[float, float]
) -> None:
    low, high = limits
    colors = matplotlib.colormaps["cividis"]
    for (i, j), value in np.ndenumerate(array):
        if np.isfinite(value):
            shade = np.mean(colors((value - low) / max(high - low, 1e-12))[:3])
            axes.text(
                j,
                i,
                number(float(value), digits),
                ha="center",
                va="center",
                fontsize=8,
                color="white" if shade < 0.55 else "black",
            )
