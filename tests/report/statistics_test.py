"""Tests of report/statistics.py."""

import math

import numpy as np
import pytest
from scipy import stats

from kdjax.report import statistics


@pytest.mark.parametrize("n", [2, 3, 11])
def test_paired_difference_is_that_of_scipy(n):
    rng = np.random.default_rng(n)
    student, baseline = rng.normal(1, 1, n), rng.normal(0, 1, n)
    found = statistics.paired_difference(
        dict(enumerate(student.tolist())), dict(enumerate(baseline.tolist()))
    )
    oracle = stats.ttest_rel(student, baseline)
    low, high = oracle.confidence_interval(0.95)
    assert found["n"] == n
    assert found["mean"] == pytest.approx(np.mean(student - baseline))
    assert found["p_value"] == pytest.approx(oracle.pvalue)
    assert (found["low"], found["high"]) == pytest.approx((low, high))


def test_paired_difference_by_hand():
    # Differences 1, 2, 3: mean 2, sd 1, and t(2, 97.5 %) = 4.3027 of a t table.
    found = statistics.paired_difference({0: 2, 1: 2, 2: 7}, {0: 1, 1: 0, 2: 4})
    half_width = 4.3027 / math.sqrt(3)
    assert found["values"] == [1, 2, 3]
    assert found["sd"] == pytest.approx(1)
    assert found["low"] == pytest.approx(2 - half_width, abs=1e-4)
    assert found["high"] == pytest.approx(2 + half_width, abs=1e-4)


def test_pairs_are_made_by_seed_and_the_unpaired_left_out():
    found = statistics.paired_difference({5: 3.0, 1: 10.0}, {1: 4.0, 7: 0.0})
    assert (found["seeds"], found["values"]) == ([1], [6.0])


def test_a_single_pair_has_neither_spread_nor_interval():
    found = statistics.paired_difference({0: 3.0}, {0: 1.0})
    assert found["mean"] == 2.0
    assert [found[key] for key in ("sd", "low", "high", "p_value")] == [None] * 4


def test_no_pair_is_none():
    assert statistics.paired_difference({0: 1.0}, {1: 1.0}) is None


def test_equal_differences_have_an_interval_of_no_width():
    found = statistics.paired_difference({0: 2.0, 1: 3.0}, {0: 1.0, 1: 2.0})
    assert (found["low"], found["high"], found["p_value"]) == (1.0, 1.0, None)


def test_the_interval_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = []
    for _ in range(2000):
        draws = rng.normal(0.3, 1.0, 3)
        found = statistics.paired_difference(
            dict(enumerate(draws.tolist())), {0: 0, 1: 0, 2: 0}
        )
        covered.append(found["low"] <= 0.3 <= found["high"])
    # 2000 draws of a 95 % event: standard error 0.5 %.
    assert np.mean(covered) == pytest.approx(0.95, abs=0.015)


def test_summary_uses_the_sample_standard_deviation():
    found = statistics.summary([1, 2, 6])
    assert found["mean"] == 3.0
    assert found["sd"] == pytest.approx(math.sqrt((4 + 1 + 9) / 2))
    assert statistics.summary([4.0])["sd"] is None


def test_sampling_error_is_the_spread_of_drawn_test_sets():
    rng = np.random.default_rng(0)
    drawn = rng.binomial(500, 0.8, 20000) / 500
    assert statistics.sampling_error(0.8, 500) == pytest.approx(drawn.std(), rel=0.03)
