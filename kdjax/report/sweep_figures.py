"""The figures of a sweep, each drawn from its report alone."""

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from kdjax.report import plots
from kdjax.report.drawing import Drawing
from kdjax.report.sweep_rows import text, titles

MOST_VALUES = 12  # Of an axis; one of more is drawn as a continuous one.
MOST_SLICES = 4  # Heat maps; of more, that of the setting best by validation is drawn.
MOST_LINES = 8  # Told apart by colour, dash and marker.


def drawings(report: Mapping[str, Any]) -> Iterator[Drawing]:
    """Those that the sweep has axes for, in the order of reading."""
    axes = _axes(report)
    if not axes or not report["cells"]:
        return
    few = {path: values for path, values in axes.items() if len(values) <= MOST_VALUES}
    numeric = [path for path, values in few.items() if _is_numeric(values)]
    if numeric:
        yield _lines(report, few, _first(numeric, "temperature"))
    for path in axes.keys() - few.keys():
        if _is_numeric(axes[path]):
            yield _scatter(report, path)
    if len(few) > 1:
        yield from _heatmaps(report, few, numeric)
    if len(axes) > 1:
        yield _parallel(report, axes)
    curves = _curves(report)
    if curves:
        yield plots.lines(
            "validation_accuracy",
            "Accuracy on the validation split while training. Thin: seeds; thick: "
            "their mean.",
            curves,
            xlabel="Epoch",
            ylabel="Validation accuracy (%)",
            title="Validation accuracy",
        )


def _axes(report: Mapping[str, Any]) -> dict[str, Sequence[Any]]:
    """The axes that have more than one value."""
    return {path: x for path, x in report["axes"].items() if len(x) > 1}


def _is_numeric(values: Sequence[Any]) -> bool:
    return all(isinstance(x, int | float) and not isinstance(x, bool) for x in values)


def _first(paths: Sequence[str], word: str) -> str:
    """The path that ends in `word`, or else the first."""
    return next((path for path in paths if path.endswith(word)), paths[0])


def _unit(report: Mapping[str, Any]) -> str:
    kind = "accuracy (%)" if report["unit"] == "accuracy" else "errors"
    return f"{report['split'].capitalize()} {kind}"


def _centre(report: Mapping[str, Any]) -> Mapping[str, Any]:
    """The setting that a slice goes through: the best by validation, or the first."""
    return (report["best"] or report["cells"][0])["values"]


def _key(values: Mapping[str, Any]) -> str:
    return json.dumps(values, sort_keys=True)


def _cells(report: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    return {_key(cell["values"]): cell for cell in report["cells"]}


def _fixed(report: Mapping[str, Any], values: Mapping[str, Any], free: Any) -> str:
    """What a slice holds fixed: `hidden = 30`; empty where that is nothing."""
    names = titles(list(report["axes"]))
    held = [
        f"{names[path]} = {text(x)}"
        for path, x in values.items()
        if path not in free and path in _axes(report)
    ]
    return ", ".join(held)


def _at(held: str) -> str:
    """The same at the end of a caption."""
    return f" At {held}." if held else ""


def _lines(
    report: Mapping[str, Any], axes: Mapping[str, Sequence[Any]], x_path: str
) -> Drawing:
    """The test result over one axis, a line for each value of another."""
    names = titles(list(report["axes"]))
    others = [path for path in axes if path != x_path]
    by = next((p for p in others if p.startswith("student.model")), None)
    by = by or (others[0] if others else None)
    xs = sorted(axes[x_path])
    series, levels = [], []
    for value in itertools.islice(axes[by] if by else [None], MOST_LINES):
        at = {**_centre(report), **({} if by is None else {by: value})}
        label = "with a teacher" if by is None else f"{names[by]} = {text(value)}"
        series.append(plots.Series(label, xs, _runs(report, at, x_path, xs)))
        level = _level(report, at)
        if level is not None:
            flat = plots.Series("", xs, [level] * len(xs), level_of=label)
            levels.append(flat)
    by_name = "" if by is None else f", by {names[by]}"
    caption = (
        f"{_unit(report)} over {names[x_path]}{by_name}. Thin: seeds; thick: their "
        "mean; dotted: the same student without a teacher."
    )
    return plots.lines(
        f"{_file(names[x_path])}_lines",
        caption + _at(_fixed(report, _centre(report), {x_path, by})),
        [*series, *levels],
        xlabel=names[x_path].capitalize(),
        ylabel=_unit(report),
        title=f"Over {names[x_path]}",
        xscale=_scale(xs),
    )


def _file(title: str) -> str:
    return title.replace(" ", "_").replace(".", "_")


def _runs(
    report: Mapping[str, Any], at: Mapping[str, Any], x_path: str, xs: Sequence[Any]
) -> np.ndarray:
    """Test results `[seeds, xs]`; NaN where a student is not done."""
    cells = _cells(report)
    found = [cells.get(_key({**at, x_path: x})) for x in xs]
    seeds = sorted({seed for cell in found if cell for seed in cell["seeds"]})
    runs = np.full((max(len(seeds), 1), len(xs)), np.nan)
    for j, cell in enumerate(found):
        if cell is not None:
            rows = [seeds.index(seed) for seed in cell["seeds"]]
            runs[rows, j] = cell["test"]["values"]
    return runs


def _level(report: Mapping[str, Any], at: Mapping[str, Any]) -> float | None:
    """The mean without a teacher at a setting, where that is one number."""
    means = [
        baseline["test"]["mean"]
        for baseline in report["baselines"]
        if all(at.get(path) == x for path, x in baseline["values"].items())
    ]
    return means[0] if len(means) == 1 else None


def _heatmaps(
    report: Mapping[str, Any],
    axes: Mapping[str, Sequence[Any]],
    numeric: Sequence[str],
) -> Iterator[Drawing]:
    """Over two axes, temperature first; one for each value of the others, if few."""
    names = titles(list(report["axes"]))
    across = _first(numeric or list(axes), "temperature")
    rest = [path for path in [*numeric, *axes] if path != across]
    down = _first(rest, "alpha")
    others = [path for path in axes if path not in (across, down)]
    slices = [dict(zip(others, x, strict=True)) for x in _product(axes, others)]
    if len(slices) > MOST_SLICES:
        slices = [{path: _centre(report)[path] for path in others}]
    for i, held in enumerate(slices):
        at = {**_centre(report), **held}
        fixed = _fixed(report, at, {across, down})
        values = [
            [_mean(report, {**at, down: y, across: x}) for x in axes[across]]
            for y in axes[down]
        ]
        if np.isfinite(values).any():
            yield plots.heatmap(
                f"heat_{_file(names[across])}_{_file(names[down])}" + f"_{i}" * (i > 0),
                f"{_unit(report)}, mean over seeds.{_at(fixed)}{_gaps(values)}",
                values,
                rows=[text(y) for y in axes[down]],
                columns=[text(x) for x in axes[across]],
                ylabel=names[down].capitalize(),
                xlabel=names[across].capitalize(),
                title=fixed or f"{names[across].capitalize()} and {names[down]}",
                digits=report["digits"],
                label=_unit(report),
            )


def _gaps(values: Any) -> str:
    missing = np.isnan(values).any()
    return " Empty: no student of that setting is done." if missing else ""


def _product(axes: Mapping[str, Sequence[Any]], paths: Sequence[str]) -> Iterator[Any]:
    return itertools.product(*(axes[path] for path in paths))


def _mean(report: Mapping[str, Any], values: Mapping[str, Any]) -> float:
    cell = _cells(report).get(_key(values))
    return float("nan") if cell is None else cell["test"]["mean"]


def _scores(report: Mapping[str, Any]) -> tuple[str, list[float]]:
    """Validation accuracies of all settings; where one has none, test results."""
    cells = report["cells"]
    key, title = "test", _unit(report)
    if all(cell["validation_accuracy"] for cell in cells):
        key, title = "validation_accuracy", "Validation accuracy (%)"
    return title, [cell[key]["mean"] for cell in cells]


def _chosen(report: Mapping[str, Any]) -> int | None:
    best = report["best"]
    return None if best is None else report["cells"].index(best)


def _parallel(report: Mapping[str, Any], axes: Mapping[str, Sequence[Any]]) -> Drawing:
    """All settings at once."""
    cells, names = report["cells"], titles(list(report["axes"]))
    title, scores = _scores(report)
    caption = (
        f"Each line is a setting, from its values to its mean {title[0].lower()}"
        f"{title[1:]}; the lighter, the higher."
    )
    if report["best"] is not None:
        caption += " Thick and dark: the best by validation."
    heights = {path: _heights(values) for path, values in axes.items()}
    return plots.parallel_coordinates(
        "parallel_coordinates",
        caption,
        {
            names[path]: [(y, text(x)) for x, y in _marks(values, heights[path])]
            for path, values in axes.items()
        },
        [
            [heights[path][axes[path].index(cell["values"][path])] for path in axes]
            for cell in cells
        ],
        scores,
        ylabel=title,
        chosen=_chosen(report),
    )


def _heights(values: Sequence[Any]) -> list[float]:
    """Where values stand on an axis from 0 to 1: few evenly, many by their size."""
    if len(values) <= MOST_VALUES or not _is_numeric(values):
        return [i / max(len(values) - 1, 1) for i in range(len(values))]
    array = np.asarray(values, np.float64)
    if _scale(values) == "log":
        array = np.log(array)
    return ((array - array.min()) / np.ptp(array)).tolist()


def _marks(values: Sequence[Any], heights: Sequence[float]) -> list[tuple[Any, float]]:
    """What is written beside an axis: all of a few values, the ends of many."""
    marks = sorted(zip(values, heights, strict=True), key=lambda mark: mark[1])
    return marks if len(marks) <= MOST_VALUES else [marks[0], marks[-1]]


def _scale(values: Sequence[Any]) -> str:
    return "log" if min(values) > 0 and max(values) >= 8 * min(values) else "linear"


def _scatter(report: Mapping[str, Any], path: str) -> Drawing:
    """The scores of all settings over an axis of many values."""
    name = titles(list(report["axes"]))[path]
    title, scores = _scores(report)
    caption = f"{title} over {name}, mean over seeds; each dot is a setting."
    if report["best"] is not None:
        caption += " Diamond: the best by validation."
    return plots.scatter(
        f"{_file(name)}_dots",
        caption,
        [cell["values"][path] for cell in report["cells"]],
        scores,
        xlabel=name.capitalize(),
        ylabel=title,
        xscale=_scale(report["axes"][path]),
        chosen=_chosen(report),
    )


def _curves(report: Mapping[str, Any]) -> list[plots.Series]:
    """Over training: of the best setting, of the worst, and without a teacher."""
    ranked = [cell for cell in report["cells"] if cell["validation_accuracy"]]
    if not ranked:
        return []
    ranked.sort(key=lambda cell: cell["validation_accuracy"]["mean"])
    best = report["best"] or ranked[-1]
    chosen = [("best by validation", best["values"], report["rows"])]
    if len(ranked) > 1:
        chosen.append(("worst by validation", ranked[0]["values"], report["rows"]))
    for baseline in report["baselines"]:
        if all(best["values"].get(k) == x for k, x in baseline["values"].items()):
            rows = report["baseline_rows"]
            chosen.append(("no teacher", baseline["values"], rows))
    series = (_curve(label, values, rows) for label, values, rows in chosen)
    return [one for one in series if one is not None]


def _curve(
    label: str, values: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]
) -> plots.Series | None:
    """The curves of the rows that are done, at the epochs that all of them have."""
    mine = [
        dict(row["curve"])
        for row in rows
        if row["values"] == values and row["status"] == "done" and row["curve"]
    ]
    if not mine:
        return None
    epochs = sorted(set.intersection(*(set(curve) for curve in mine)))
    if len(epochs) < 2:
        return None
    return plots.Series(label, epochs, [[curve[e] for e in epochs] for curve in mine])
