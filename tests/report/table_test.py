"""Tests of the terminal's table and of how numbers are written."""

import io

import numpy as np
import pytest
from rich.console import Console

from kdjax import report
from kdjax.report import quantities

LABELS = np.arange(120) % 4


def _made(seeds, unit="accuracy", **changes):
    rng = np.random.default_rng(0)
    results = [
        report.ModelResult(
            role, seed, signal * np.eye(4)[LABELS] + rng.normal(size=(120, 4))
        )
        for role, signal in (("teacher", 5), ("student", 3), ("baseline", 1))
        for seed in seeds
    ]
    run = report.RunInfo("name", "command", temperature=2.0, unit=unit, **changes)
    return report.build(results, {}, run, LABELS)


def _printed(made, encoding="utf-8", width=110):
    buffer = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    report.print_table(made, Console(file=buffer, width=width))
    buffer.flush()
    return buffer.buffer.getvalue().decode(encoding)


def test_the_terminal_shows_headline_numbers_and_verdicts():
    made = _made(
        (0, 1),
        bands={"baseline": (99.9, None)},
        published={"source": "[red]a paper[/]", "teacher": 99},
        notes=["[bold]as typed[/]"],
    )
    text = _printed(made)
    accuracy = made["roles"]["student"]["last"]["accuracy"]
    assert "Distillation bought +" in text
    assert f"{accuracy['mean']:.2f} ± {accuracy['sd']:.2f}" in text
    assert "missed" in text
    assert "[bold]as typed[/]" in text
    assert "Published: [red]a paper[/]" in text
    assert max(map(len, text.splitlines())) <= 110


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_terminal_without_unicode_is_written_to_all_the_same(encoding):
    text = _printed(_made((0, 1)), encoding)
    assert "+-" in text if encoding == "ascii" else "Distillation" in text
    assert "?" not in text


def test_a_narrow_terminal_loses_no_number():
    made = _made((0, 1))
    text = "".join(_printed(made, width=60).split())
    for role in ("teacher", "student", "baseline"):
        assert f"{made['roles'][role]['last']['nll']['mean']:.3f}" in text


def test_errors_come_first_where_they_are_the_headline():
    lines = _printed(_made((0, 1), unit="errors")).splitlines()
    errors, accuracy = (
        next(i for i, line in enumerate(lines) if name in line)
        for name in ("Errors (of 120)", "Accuracy (%)")
    )
    assert errors < accuracy


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (999, "999"),
        (999_600, "1.00 M"),
        (12_345, "12.3 k"),
        (8.27e7, "82.7 M"),
        (0, "0"),
    ],
)
def test_si_prefixes(value, expected):
    assert quantities.si(value) == expected


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(59.96, "1 min 0 s"), (59.94, "59.9 s"), (3599.7, "1 h 0 min"), (0, "0.0 s")],
)
def test_durations(seconds, expected):
    assert quantities.duration(seconds) == expected


@pytest.mark.parametrize(
    ("fraction", "expected"),
    [(0.0072, "0.72 %"), (0.364, "36 %"), (1.4, "140 %"), (0.0951, "10 %")],
)
def test_percentages(fraction, expected):
    assert quantities.percent(fraction) == expected
