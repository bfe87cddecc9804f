"""Figures of what several arms of a study gained against the one they share."""

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from kdjax.report.drawing import COLORS, INK, MUTED, Drawing, styled

WIDTH = 6.4  # Inches.

_DOT: dict[str, Any] = {"color": COLORS["student"], "markersize": 4, "alpha": 0.5}
_BAR: dict[str, Any] = {
    "color": COLORS["student"],
    "markersize": 13,
    "markeredgewidth": 2.4,
}
_DIAMOND: dict[str, Any] = {"color": INK, "markersize": 4, "fillstyle": "none"}
_BESIDE: dict[str, Any] = {
    "xytext": (4, 3),
    "textcoords": "offset points",
    "fontsize": 8,
}


def by_arm(report: Mapping[str, Any], name: str = "gains") -> Drawing:
    """The paired difference of every seed, arms from the largest mean to the least."""
    caption = (
        f"Difference from the {_reference(report)} of the same seed, in "
        f"{_unit(report)}: every seed (dots), the mean (bar), its 95 % interval "
        "(line); published differences, of other settings, are diamonds."
    )
    return Drawing(name, caption, lambda: _by_arm(report))


def by_cost(
    report: Mapping[str, Any], step_ms: Mapping[str, float], name: str = "gain_by_cost"
) -> Drawing:
    """The mean difference over the time of a step.

    Args:
      report: as from `study.build`.
      step_ms: by the name of an arm, milliseconds a step.
      name: of the file.
    """
    caption = (
        f"Mean difference from the {_reference(report)}, in {_unit(report)}, over the "
        "time of a training step of the fastest seed, evaluations and checkpoints "
        "included; of a single seed, compilation too."
    )
    return Drawing(name, caption, lambda: _by_cost(report, step_ms))


def _compared(report: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Arms with a difference, the largest first."""
    arms = [arm for arm in report["arms"] if arm["gain"] is not None]
    return sorted(arms, key=lambda arm: -arm["gain"]["mean"])


def _reference(report: Mapping[str, Any]) -> str:
    titles = {arm["name"]: arm["title"] for arm in report["arms"]}
    names = {titles[arm["against"]] for arm in _compared(report)}
    return f"arm {' or '.join(sorted(names))!r}"


def _unit(report: Mapping[str, Any]) -> str:
    return "points" if report["unit"] == "accuracy" else "errors"


@styled
def _by_arm(report: Mapping[str, Any]) -> Figure:
    arms = _compared(report)
    figure = Figure(figsize=(WIDTH, 1.2 + 0.3 * len(arms)), layout="constrained")
    axes = figure.subplots()
    axes.axvline(0, color=MUTED, linewidth=1.2)
    for row, arm in enumerate(arms):
        gain = arm["gain"]
        if gain["low"] is not None:
            interval = [gain["low"], gain["high"]]
            axes.plot(interval, [row] * 2, color=COLORS["student"], linewidth=1)
        for style, x, settings in (
            ("o", gain["values"], _DOT),
            ("|", [gain["mean"]], _BAR),
            ("D", [arm["published_gain"]], _DIAMOND),
        ):
            if None not in x:
                axes.plot(x, [row] * len(x), style, **settings)
    axes.set_yticks(range(len(arms)), [arm["title"] for arm in arms])
    axes.set_ylim(len(arms) - 0.5, -0.5)
    axes.set(xlabel=f"Difference ({_unit(report)})")
    axes.grid(axis="y", visible=False)
    return figure


@styled
def _by_cost(report: Mapping[str, Any], step_ms: Mapping[str, float]) -> Figure:
    arms = [arm for arm in _compared(report) if arm["name"] in step_ms]
    figure = Figure(figsize=(WIDTH, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.axhline(0, color=MUTED, linewidth=1.2)
    for arm in arms:
        x, y = step_ms[arm["name"]], arm["gain"]["mean"]
        axes.plot([x], [y], "o", color=COLORS["student"], markersize=5)
        axes.annotate(arm["name"], (x, y), **_BESIDE)
    axes.set(xlabel="Time of a step (ms)", ylabel=f"Mean difference ({_unit(report)})")
    axes.margins(x=0.12)
    return figure
