"""Tests of report/sentences.py."""

import dataclasses

import numpy as np
import pytest

from kdjax import report
from kdjax.report import figures, page


def test_the_headline_says_what_distillation_bought(synthetic):
    made = synthetic.build()
    gain = made["gain"]["last"]["accuracy"]
    assert gain["low"] > 0
    assert made["headline"] == (
        f"Distillation bought +{gain['mean']:.2f} ± {gain['sd']:.2f} points of test "
        f"accuracy (mean ± sd, n = 3 paired seeds, 95 % CI +{gain['low']:.2f} to "
        f"+{gain['high']:.2f})."
    )


def test_in_errors_fewer_is_a_saving(synthetic):
    made = synthetic.build(unit="errors")
    gain = made["gain"]["last"]["errors"]
    assert gain["high"] < 0
    assert made["headline"] == (
        f"Distillation saved +{-gain['mean']:.1f} ± {gain['sd']:.1f} errors on 211 "
        f"test examples (mean ± sd, n = 3 paired seeds, 95 % CI +{-gain['high']:.1f} "
        f"to +{-gain['low']:.1f})."
    )


def _swapped(results):
    names = {"student": "baseline", "baseline": "student", "teacher": "teacher"}
    return [dataclasses.replace(r, role=names[r.role]) for r in results]


def test_a_loss_is_called_a_cost(synthetic):
    made = synthetic.build(_swapped(synthetic.results()))
    cost = -made["gain"]["last"]["accuracy"]["mean"]
    assert made["headline"].startswith(f"Distillation cost {cost:.2f} ± ")
    made = synthetic.build(_swapped(synthetic.results()), unit="errors")
    assert made["headline"].startswith("Distillation cost ")
    assert "on 0 of 3 seeds" in " ".join(f["text"] for f in made["findings"])


def _with_errors(synthetic, role, errors):
    """Models that are wrong on as many examples as `errors` says by seed."""
    results = []
    for seed, count in errors.items():
        answers = synthetic.labels.copy()
        answers[:count] = (answers[:count] + 1) % synthetic.num_classes
        logits = 5 * np.eye(synthetic.num_classes)[answers]
        results.append(report.ModelResult(role, seed, logits))
    return results


@pytest.mark.parametrize("unit", ["accuracy", "errors"])
def test_an_interval_around_zero_is_nothing_measurable(synthetic, unit):
    # 10, 1 and -3 errors fewer: mean 2.7, sd 6.7, half-width 16.5.
    results = [
        *_with_errors(synthetic, "student", {0: 20, 1: 30, 2: 25}),
        *_with_errors(synthetic, "baseline", {0: 30, 1: 31, 2: 22}),
    ]
    headline = synthetic.build(results, unit=unit)["headline"]
    assert headline.startswith("Distillation bought nothing measurable: +")
    if unit == "errors":
        assert "+2.7 ± 6.7 errors on 211 test examples" in headline


@pytest.mark.parametrize("unit", ["accuracy", "errors"])
def test_seeds_won_are_counted(synthetic, unit):
    results = [
        *_with_errors(synthetic, "student", {0: 20, 1: 30, 2: 25, 3: 9}),
        *_with_errors(synthetic, "baseline", {0: 30, 1: 31, 2: 22, 3: 9}),
    ]
    texts = [f["text"] for f in synthetic.build(results, unit=unit)["findings"]]
    assert "The student beat its baseline on 2 of 4 seeds." in texts


def test_one_seed_shows_no_spread_and_says_so(synthetic):
    made = synthetic.build(synthetic.results(seeds=(4,)))
    assert made["roles"]["student"]["last"]["accuracy"]["sd"] is None
    assert made["gain"]["last"]["accuracy"]["low"] is None
    assert "n = 1: no interval, so this may be chance" in made["headline"]
    assert "nan" not in page.render(made).lower()


@pytest.mark.parametrize(
    ("roles", "reason"),
    [
        (("teacher", "student"), "there is no baseline to compare"),
        (("student",), "there is no baseline to compare"),
        (("baseline",), "there is no student to compare"),
        (("teacher",), "there is no baseline and no student to compare"),
    ],
)
def test_without_a_pair_the_gain_is_unknown(synthetic, roles, reason):
    made = synthetic.build([r for r in synthetic.results() if r.role in roles])
    assert made["gain"] == {"last": {}, "best": {}, "gap_closed": None}
    assert made["headline"].endswith(f"what distillation bought is unknown: {reason}.")
    assert "gain" not in {drawing.name for drawing in figures.drawings(made)}


def test_seeds_that_do_not_meet_make_no_pair(synthetic):
    results = [
        report.ModelResult("student", 1, synthetic.logits(1, 3.0)),
        report.ModelResult("baseline", 2, synthetic.logits(2, 2.0)),
    ]
    made = synthetic.build(results)
    assert made["headline"].endswith("student and baseline have no seed in common.")
