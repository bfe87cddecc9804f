"""Means over seeds, and paired differences with their intervals."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

from kdjax.report.quantities import Number


def summary(values: Sequence[Number]) -> dict[str, Any]:
    """Mean and sample standard deviation over seeds.

    Returns:
      `mean`, `sd` (None for a single value: one run shows no spread), `n`, `values`.

    Examples:
      >>> from kdjax.report import statistics
      >>> statistics.summary([1.0, 3.0])
      {'mean': 2.0, 'sd': 1.4142135623730951, 'n': 2, 'values': [1.0, 3.0]}
    """
    array = np.asarray(values, np.float64)
    sd = float(array.std(ddof=1)) if len(array) > 1 else None
    return {
        "mean": float(array.mean()),
        "sd": sd,
        "n": len(array),
        "values": array.tolist(),
    }


def with_interval(
    values: Sequence[Number], *, confidence: float = 0.95
) -> dict[str, Any]:
    r"""A summary, and the t-interval of its mean.

    .. math:: \bar x \pm t_{n-1} \, s / \sqrt{n}

    Returns:
      What `summary` returns, `confidence`, and `low` and `high`: None for one value.
    """
    result = summary(values) | {"low": None, "high": None, "confidence": confidence}
    if result["n"] > 1:
        quantile = float(stats.t.ppf(0.5 + confidence / 2, result["n"] - 1))
        half_width = quantile * result["sd"] / math.sqrt(result["n"])
        result["low"] = result["mean"] - half_width
        result["high"] = result["mean"] + half_width
    return result


def paired_difference(
    student: dict[int, Number],
    baseline: dict[int, Number],
    *,
    confidence: float = 0.95,
) -> dict[str, Any] | None:
    r"""Student minus baseline, seed by seed, with a t-interval of the mean.

    A pair shares its initial weights and its data order, so that much of what varies
    between seeds cancels. For the mean :math:`\bar d` and the sample standard deviation
    :math:`s` of :math:`n` differences the interval is

    .. math:: \bar d \pm t_{n-1} \, s / \sqrt{n}.

    It speaks of other seeds, not of other test examples: see `sampling_error`.

    Args:
      student: values by seed.
      baseline: values by seed; seeds that only one side has are left out.
      confidence: of the interval.

    Returns:
      `mean`, `sd`, `n`, `values`, `seeds`, `low`, `high`, `p_value` (two-sided) and
      `confidence`. `sd`, `low`, `high` and `p_value` are None for a single pair, and
      `p_value` also where all differences are equal. None if there is no pair.
    """
    seeds = sorted(set(student) & set(baseline))
    if not seeds:
        return None
    differences = [student[seed] - baseline[seed] for seed in seeds]
    result = with_interval(differences, confidence=confidence)
    result |= {"seeds": seeds, "p_value": None}
    if result["n"] > 1 and result["sd"] > 0:
        t = abs(result["mean"]) / (result["sd"] / math.sqrt(result["n"]))
        result["p_value"] = float(2 * stats.t.sf(t, result["n"] - 1))
    return result


def sampling_error(accuracy: Number, num_examples: int) -> float:
    r"""Standard error of an accuracy for the finite number of test examples.

    .. math:: \sqrt{p (1 - p) / N}

    Args:
      accuracy: fraction of correct examples, :math:`p`.
      num_examples: the size of the test split, :math:`N`.

    Examples:
      >>> from kdjax.report import statistics
      >>> round(statistics.sampling_error(0.9, 10000), 6)
      0.003
    """
    return math.sqrt(accuracy * (1 - accuracy) / num_examples)
