"""The figures of a report's numbers, each drawn from the report alone."""

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kdjax.report import diagnostics
from kdjax.report.drawing import (
    COLORS,
    DASHES,
    FAINT,
    INK,
    MARKERS,
    Drawing,
    styled,
)
from kdjax.report.quantities import METRICS, ROLE_NAMES, ROLE_TITLES, number

_WIDTH = 5.4  # Inches; a phone shows a figure of this width legibly.
_LEAST_IN_BIN = 10  # Fewer examples give no accuracy worth drawing.


def drawings(report: Mapping[str, Any]) -> Iterator[Drawing]:
    """The figures that the report has data for, in the order of reading."""
    if report["gain"]["last"]:
        yield Drawing(
            "gain",
            "Each thin line is one seed: the same student without a teacher, and with.",
            functools.partial(_gain, report),
        )
    if _series(report, "validation_accuracy"):
        yield Drawing(
            "validation_accuracy",
            "Accuracy on the validation split while training. Thin: seeds; thick: "
            "their mean.",
            functools.partial(_curves, report, "validation_accuracy"),
        )
    for term in report["loss_terms"]:
        if _series(report, term):
            yield Drawing(
                f"loss_{term}",
                f"The {term} term of the training loss, unweighted, on single batches. "
                "Thin: seeds; thick: their mean.",
                functools.partial(_curves, report, term),
            )
    yield from diagnostics.drawings(report)
    yield Drawing(
        "reliability",
        "Above: how often a prediction of given confidence is right, all seeds "
        "together; on the diagonal, confidence can be taken at its word (bins of fewer "
        f"than {_LEAST_IN_BIN} predictions left out). Below: how often such confidence "
        "occurs.",
        functools.partial(_reliability, report),
    )


def _new_figure(height: float, rows: int = 1, **options: Any) -> tuple[Figure, Any]:
    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    return figure, figure.subplots(rows, **options)


@styled
def _gain(report: Mapping[str, Any]) -> Figure:
    metric = METRICS[report["unit"]]
    figure, axes = _new_figure(3.6)
    pairs = zip(
        *(_values(report, role) for role in ("baseline", "student")), strict=True
    )
    for pair in pairs:
        axes.plot([0, 1], pair, color=FAINT, linewidth=1.2, zorder=2)
    for x, role in enumerate(("baseline", "student")):
        values = _values(report, role)
        style = {"color": COLORS[role], "marker": MARKERS[role], "linestyle": "none"}
        axes.plot([x] * len(values), values, markersize=4, alpha=0.6, zorder=3, **style)
        axes.plot([x], [np.mean(values)], markersize=9, zorder=4, **style)
        _mean_label(axes, x, float(np.mean(values)), metric.digits)
    means = [np.mean(_values(report, role)) for role in ("baseline", "student")]
    axes.plot([0, 1], means, color=INK, linewidth=1.8, zorder=3)
    if "teacher" in report["roles"]:
        _teacher_line(axes, report["roles"]["teacher"]["last"][metric.key]["mean"])
    axes.set(xlim=(-0.35, 1.35), xticks=[0, 1])
    axes.set_xticklabels([ROLE_TITLES["baseline"], ROLE_TITLES["student"]], color=INK)
    axes.set_ylabel(_label(f"{report['split']} {metric.title.lower()}", metric.unit))
    axes.set_title("What distillation changes")
    axes.grid(visible=False, axis="x")
    axes.margins(y=0.12)
    return figure


def _values(report: Mapping[str, Any], role: str) -> list[float]:
    """The headline metric of `role`, of the seeds that form pairs."""
    entry = report["roles"][role]
    by_seed = dict(
        zip(entry["seeds"], entry["last"][report["unit"]]["values"], strict=True)
    )
    return [by_seed[seed] for seed in report["gain"]["last"][report["unit"]]["seeds"]]


def _mean_label(axes: Axes, x: int, mean: float, digits: int) -> None:
    """The mean, written on the side where no line runs."""
    axes.annotate(
        number(mean, digits),
        (x, mean),
        xytext=(10 if x else -10, 0),
        textcoords="offset points",
        ha="left" if x else "right",
        va="center",
        fontsize=10,
        fontweight="bold",
    )


def _teacher_line(axes: Axes, value: float) -> None:
    axes.axhline(value, color=COLORS["teacher"], linestyle=DASHES["teacher"])
    axes.annotate(
        "Teacher",
        (1, value),
        xycoords=("axes fraction", "data"),
        xytext=(0, 3),
        textcoords="offset points",
        ha="right",
        va="bottom",
        color=COLORS["teacher"],
        fontsize=9,
    )


def _label(quantity: str, unit: str) -> str:
    text = f"{quantity} ({unit})" if unit else quantity
    return text[0].upper() + text[1:]


@styled
def _curves(report: Mapping[str, Any], name: str) -> Figure:
    is_accuracy = name == "validation_accuracy"
    scale = 100 if is_accuracy else 1
    figure, axes = _new_figure(3.6)
    series = _series(report, name)
    for role, runs in series.items():
        style = {"color": COLORS[role], "linestyle": DASHES[role]}
        for epochs, values in runs:
            faint = {"linewidth": 0.8, "alpha": 0.45, "linestyle": "-"}
            axes.plot(epochs, scale * values, **style | faint)
        epochs, values = _mean_curve(runs)
        several = f", mean of {len(runs)} seeds" if len(runs) > 1 else ""
        axes.plot(epochs, scale * values, label=ROLE_NAMES[role] + several, **style)
    values = np.concatenate([v for runs in series.values() for _, v in runs])
    if is_accuracy:
        reference = _teacher_reference(report, axes, name)
        _zoom(axes, np.append(scale * values, reference))
        axes.set_ylabel("Validation accuracy (%)")
        axes.set_title("Validation accuracy")
    else:
        if values.min() > 0 and values.max() > 20 * values.min():
            axes.set_yscale("log")
        axes.set_ylabel(f"{name.capitalize()} term (nats)")
        axes.set_title(f"Training loss, {name} term")
    axes.set_xlabel("Epoch")
    _legend_outside(figure, axes)
    return figure


def _teacher_reference(report: Mapping[str, Any], axes: Axes, name: str) -> list[float]:
    """Draws where the teacher's own training ended, if it was trained here."""
    histories = report["roles"].get("teacher", {}).get("histories", ())
    ends = [_known(h["columns"], name)[1] for h in histories]
    ends = [values[-1] for values in ends if len(values)]
    if not ends:
        return []
    _teacher_line(axes, 100 * float(np.mean(ends)))
    return [100 * float(np.mean(ends))]


def _series(
    report: Mapping[str, Any], name: str
) -> dict[str, list[tuple[np.ndarray, np.ndarray]]]:
    """Epochs and values of each training of the student and the baseline."""
    found = {}
    for role in ("baseline", "student"):
        histories = report["roles"].get(role, {}).get("histories", ())
        runs = [_known(history["columns"], name) for history in histories]
        runs = [run for run in runs if len(run[0])]
        if runs:
            found[role] = runs
    return found


def _known(columns: Mapping[str, Sequence], name: str) -> tuple[np.ndarray, np.ndarray]:
    """The rows in which both the epoch and `name` are known."""
    epochs = columns.get("epoch") or columns.get("step") or ()
    pairs = zip(epochs, columns.get(name, [None] * len(epochs)), strict=True)
    known = [pair for pair in pairs if None not in pair]
    array = np.asarray(known, np.float64).reshape(-1, 2)
    return array[:, 0], array[:, 1]


def _mean_curve(runs: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[Any, Any]:
    """The mean over trainings, at the epochs that all of them have."""
    epochs = sorted(set.intersection(*(set(e.tolist()) for e, _ in runs)))
    lookups = [dict(zip(e.tolist(), v, strict=True)) for e, v in runs]
    return epochs, np.asarray([np.mean([v[e] for v in lookups]) for e in epochs])


def _zoom(axes: Axes, values: np.ndarray) -> None:
    """Leaves the steep first epochs out of sight, where there are many epochs."""
    if len(values) < 20:
        return
    low, high = np.quantile(values, 0.15), values.max()
    margin = 0.08 * (high - low)
    if margin > 0:
        axes.set_ylim(low - margin, high + margin)


def _legend_outside(figure: Figure, axes: Axes) -> None:
    """A legend below the plot, where it hides no data."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3)


@styled
def _reliability(report: Mapping[str, Any]) -> Figure:
    ratios = {"height_ratios": [3, 1]}
    figure, (upper, lower) = _new_figure(4.8, 2, sharex=True, gridspec_kw=ratios)
    upper.plot([0, 100], [0, 100], color=FAINT, linewidth=1.2)
    for role, entry in report["roles"].items():
        bins = {k: np.asarray(v, float) for k, v in entry["reliability"].items()}
        filled = bins["count"] >= _LEAST_IN_BIN
        style = {"color": COLORS[role], "linestyle": DASHES[role]}
        upper.plot(
            100 * bins["confidence"][filled],
            100 * bins["accuracy"][filled],
            marker=MARKERS[role],
            markersize=4,
            label=ROLE_NAMES[role],
            **style,
        )
        share = 100 * bins["count"] / bins["count"].sum()
        edges = np.linspace(0, 100, len(share) + 1)
        lower.stairs(share, edges, **style, linewidth=1.4)
    upper.set(xlim=(0, 100), ylim=(0, 102), ylabel="Accuracy (%)")
    upper.set_title("Reliability")
    lower.set(xlabel="Confidence (%)", ylabel="Examples (%)", ylim=(0, None))
    _legend_outside(figure, upper)
    return figure
