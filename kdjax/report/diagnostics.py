"""Figures of the gradients of a student's terms over its training."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from kdjax.report import plots
from kdjax.report.drawing import Drawing

NORM, COSINE = "grad_norm/", "grad_cosine/"  # What the metrics begin with.


def drawings(report: Mapping[str, Any]) -> Iterator[Drawing]:
    """Norms and cosines over steps, where the training was diagnosed."""
    norms = _series(report, NORM)
    if norms:
        positive = all(np.nanmin(one.runs) > 0 for one in norms)
        yield plots.lines(
            "gradient_norms",
            "Norm of the gradient of each weighted term with respect to the student's "
            "parameters, on single batches. Thin: seeds; thick: their mean.",
            norms,
            xlabel="Step",
            ylabel="Gradient norm",
            title="How hard each term pulls",
            yscale="log" if positive else "linear",
        )
    cosines = _series(report, COSINE)
    if cosines:
        yield plots.lines(
            "gradient_cosines",
            "Cosine between the gradients of each two weighted terms: 1 where they "
            "pull the same way, below 0 where one undoes the other. Thin: seeds; "
            "thick: their mean.",
            cosines,
            xlabel="Step",
            ylabel=f"Cosine, {cosines[0].label}" if len(cosines) == 1 else "Cosine",
            title="Whether the terms agree",
        )


def kept(rows: Sequence[Mapping[str, Any]], most: int) -> list[int]:
    """Which rows of a history to keep for these figures, evenly, at most so many."""
    found = [i for i, row in enumerate(rows) if any(x.startswith(NORM) for x in row)]
    if len(found) <= most:
        return found
    return [found[i] for i in np.linspace(0, len(found) - 1, most).round().astype(int)]


def _series(report: Mapping[str, Any], prefix: str) -> list[plots.Series]:
    """Each of the quantities over the steps that all seeds have it for."""
    histories = report["roles"].get("student", {}).get("histories", ())
    columns = [history["columns"] for history in histories]
    names = [x for x in (columns[0] if columns else {}) if x.startswith(prefix)]
    found = []
    for name in names:
        runs = [
            {s: v for s, v in zip(c["step"], c[name], strict=True) if v is not None}
            for c in columns
            if name in c
        ]
        steps = sorted(set.intersection(*(set(run) for run in runs)))
        if steps:
            label = name.removeprefix(prefix).replace("/", " and ")
            values = [[run[step] for step in steps] for run in runs]
            found.append(plots.Series(label, steps, values))
    return found
