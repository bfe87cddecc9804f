"""The bands of Hinton's grid, on errors whose verdict is known."""

import pathlib
import runpy

import pytest

PATH = pathlib.Path(__file__).parents[2] / "benchmarks" / "hinton_grid.py"


def _rows(errors):
    return [
        {
            "values": {"student.model.hidden": [w, w], "distill.temperature": t},
            "seed": seed,
            "status": "done",
            "test_accuracy": 100 * (1 - (count + seed) / 10_000),
        }
        for (w, t), count in errors.items()
        for seed in (-1, 0, 1)
    ]


@pytest.mark.parametrize(
    ("errors", "best", "apart"),
    [
        ({(30, 1): 300, (30, 4): 290, (30, 8): 295}, (4, True), (0, True)),
        ({(30, 1): 280, (30, 4): 290, (30, 8): 295}, (1, False), (0, True)),
        ({(30, 2.5): 9, (300, 20): 100, (300, 4): 1}, (2.5, True), (10, True)),
        ({(30, 2.5): 9, (300, 20): 136}, (2.5, True), (26, False)),
    ],
)
def test_the_bands_are_those_that_were_agreed(errors, best, apart):
    check = runpy.run_path(str(PATH))["check"]
    rows = _rows({(300, 8): 110, **errors})
    line = check({"rows": rows, "baseline_rows": _rows({(300, 1): 150})})
    assert line["best_temperature_of_30"] == {
        "value": best[0],
        "met": best[1],
    }
    assert line["apart_from_8_on"]["value"] == pytest.approx({300: apart[0]})
    assert line["apart_from_8_on"]["met"] == apart[1]
    assert line["seeds"] == 3
    assert line["without_teacher"] == pytest.approx({300: 150})
    assert line["errors"][300][8] == pytest.approx(110)
