"""The metrics of a report, and how its numbers are written."""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, TypeAlias

Number: TypeAlias = int | float

ROLE_NAMES = {"teacher": "Teacher", "student": "Student", "baseline": "Baseline"}
ROLE_TITLES = {
    "teacher": "Teacher",
    "student": "Student (distilled)",
    "baseline": "Baseline (no teacher)",
}


# Typographers' characters, by name because they look like others.
MINUS, DASH, TIMES = "\N{MINUS SIGN}", "\N{EN DASH}", "\N{MULTIPLICATION SIGN}"


class Metric(NamedTuple):
    """How a test metric is called, printed and read."""

    key: str
    title: str
    unit: str
    digits: int
    better: Literal["higher", "lower"]
    meaning: str


METRICS = {
    metric.key: metric
    for metric in (
        Metric("accuracy", "Accuracy", "%", 2, "higher", "Share of examples right."),
        Metric("errors", "Errors", "examples", 1, "lower", "Examples wrong."),
        Metric(
            "nll",
            "NLL",
            "nats",
            3,
            "lower",
            "Negative log-likelihood of the labels, mean over examples.",
        ),
        Metric(
            "ece",
            "ECE",
            "%",
            2,
            "lower",
            "Expected calibration error: how far confidence is from accuracy, over "
            "15 bins of equal width, weighted by the examples in them.",
        ),
        Metric(
            "agreement",
            "Agreement with teacher",
            "%",
            2,
            "higher",
            "Share of examples where the model's first choice is the teacher's.",
        ),
        Metric(
            "forward_kl",
            "KL from teacher",
            "nats",
            3,
            "lower",
            "KL(teacher ‖ model) at temperature 1, mean over examples.",
        ),
        Metric(
            "rank_correlation",
            "Rank correlation",
            "",
            3,
            "higher",
            "How alike model and teacher order the classes of an example "
            "(Spearman), mean over examples.",
        ),
    )
}


def number(value: Number | None, digits: int = 2, *, signed: bool = False) -> str:
    """Digits for people: a true minus sign, thousands apart, a dash for None.

    Examples:
      >>> from kdjax.report import quantities
      >>> quantities.number(1234.5, 1), quantities.number(0.5, 2, signed=True)
      ('1,234.5', '+0.50')
    """
    if value is None:
        return DASH
    text = f"{value:{'+' if signed else ''},.{digits}f}"
    return text.replace("-", MINUS)


def spread(
    summary: Mapping[str, Any] | None, metric: Metric, *, signed: bool = False
) -> str:
    """Mean ± sd of a summary or paired difference, without ± where n is 1."""
    if summary is None:
        return DASH
    single = summary["sd"] is None
    digits = 0 if single and metric.key == "errors" else metric.digits
    mean = number(summary["mean"], digits, signed=signed)
    return mean if single else f"{mean} ± {number(summary['sd'], metric.digits)}"


def percent(fraction: Number) -> str:
    """Two digits at least: `0.72 %`, `36 %`, `140 %`."""
    value = 100 * fraction
    return f"{value:.0f} %" if abs(value) >= 9.5 else f"{value:.2g} %"


def interval(difference: Mapping[str, Any], digits: int) -> str:
    """The confidence interval of a paired difference, `+0.1 to +0.3`."""
    low, high = (
        number(difference[end], digits, signed=True) for end in ("low", "high")
    )
    return f"{low} to {high}"


def si(value: Number | None, unit: str = "") -> str:
    """Three digits and a prefix.

    Examples:
      >>> from kdjax.report import quantities
      >>> quantities.si(272474), quantities.si(1.09e6, "B"), quantities.si(64.0)
      ('272 k', '1.09 MB', '64')
    """
    if value is None:
        return DASH
    for scale, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        # 999.6 k reads 1.00 M: round before choosing the prefix.
        if abs(value) >= 0.9995 * scale:
            return f"{_three_digits(value / scale)} {prefix}{unit}"
    return f"{_three_digits(value)} {unit}".strip()


def _three_digits(value: Number) -> str:
    if float(value).is_integer() and abs(value) < 1000:
        return f"{value:.0f}"
    return f"{value:#.3g}".rstrip(".")


def duration(seconds: Number) -> str:
    """A wall time for people.

    Examples:
      >>> from kdjax.report import quantities
      >>> quantities.duration(3.21), quantities.duration(75), quantities.duration(7260)
      ('3.2 s', '1 min 15 s', '2 h 1 min')
    """
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def band_text(band: Mapping[str, Any]) -> str:
    """An acceptance band, `125 to 190` or `≤ 95`."""
    low, high = (None if band[x] is None else f"{band[x]:,g}" for x in ("low", "high"))
    if low is None:
        return f"≤ {high}"
    return f"≥ {low}" if high is None else f"{low} to {high}"
