"""Figures of the terms' gradients: what was told at a step is drawn at that step."""

import math

import numpy as np
import pytest

from kdjax import report
from kdjax.report import diagnostics

LABELS = np.random.default_rng(0).integers(0, 5, 50)


def _history(seed, length, every):
    """A row of metrics at each step, and one of gradients at some."""
    rows = []
    for step in range(length):
        if step % every == 0:
            rows.append(
                {
                    "step": step,
                    "epoch": step / 10,
                    "grad_norm/hard": 1.0 + seed + step,
                    "grad_norm/soft": 2.0 + seed,
                    "grad_cosine/hard/soft": math.nan if step == every else 0.5,
                }
            )
        rows.append({"step": step, "epoch": step / 10, "loss": 1.0, "grad_norm": 3.0})
    return rows


def _report(length=30, every=10, seeds=(0, 1)):
    results = [
        report.ModelResult(
            "student", s, np.eye(5)[LABELS] + s, history=_history(s, length, every)
        )
        for s in seeds
    ]
    return report.build(results, {}, report.RunInfo("x", "c", 4.0), LABELS)


def test_norms_are_drawn_at_their_steps_by_seed_and_as_a_mean():
    norms, _ = diagnostics.drawings(_report())
    (axes,) = norms.draw().axes
    thick = {x.get_label(): x for x in axes.lines if not x.get_label().startswith("_")}
    assert set(thick) == {"hard", "soft"}
    assert thick["hard"].get_xdata().tolist() == [0, 10, 20]
    assert thick["hard"].get_ydata() == pytest.approx([1.5, 11.5, 21.5])
    assert thick["soft"].get_ydata() == pytest.approx([2.5] * 3)
    thin = [x.get_ydata().tolist() for x in axes.lines if x.get_label().startswith("_")]
    assert [1.0, 11.0, 21.0] in thin
    assert [2.0, 12.0, 22.0] in thin


def test_a_cosine_that_does_not_exist_is_not_drawn():
    _, cosines = diagnostics.drawings(_report())
    (axes,) = cosines.draw().axes
    assert "hard and soft" in axes.get_ylabel()
    (thick,) = (x for x in axes.lines if not x.get_label().startswith("_"))
    assert thick.get_xdata().tolist() == [0, 20]


def test_without_diagnostics_there_is_no_figure():
    results = [report.ModelResult("student", 0, np.eye(5)[LABELS])]
    made = report.build(results, {}, report.RunInfo("x", "c", 4.0), LABELS)
    assert list(diagnostics.drawings(made)) == []


def test_the_few_rows_of_a_long_training_are_all_kept():
    """A history is thinned to what a figure can show; not these."""
    norms, _ = diagnostics.drawings(_report(length=3000, every=100, seeds=(0,)))
    (axes,) = norms.draw().axes
    assert axes.lines[0].get_xdata().tolist() == list(range(0, 3000, 100))


def test_of_many_rows_the_first_and_the_last_are_kept():
    rows = [{"step": i, "grad_norm/hard": 1.0} for i in range(1000)]
    kept = diagnostics.kept(rows, 400)
    assert len(kept) == 400
    assert kept[0] == 0
    assert kept[-1] == 999


def test_the_page_has_the_figures(tmp_path):
    made = _report()
    names = [path.name for path in report.write(made, tmp_path)]
    assert {"gradient_norms.png", "gradient_cosines.png"} <= set(names)
    assert "How hard each term pulls" in (tmp_path / "report.html").read_text()
