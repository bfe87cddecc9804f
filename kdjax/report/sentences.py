"""What a report says in words: its headline and its findings."""

from collections.abc import Mapping
from typing import Any

from kdjax.report.quantities import (
    METRICS,
    ROLE_TITLES,
    Metric,
    band_text,
    interval,
    number,
    percent,
    spread,
)


def headline(report: Mapping[str, Any]) -> str:
    """What distillation bought, in one sentence."""
    metric = METRICS[report["unit"]]
    difference = report["gain"]["last"].get(metric.key)
    if difference is None:
        return _headline_without_pairs(report, metric)
    gained, what = _as_gain(difference, metric, report)
    amount = spread(gained, metric, signed=True)
    if gained["n"] == 1:
        return (
            f"On the one seed that was run, distillation made {amount} {what} of "
            "difference (n = 1: no interval, so this may be chance)."
        )
    evidence = (
        f"(mean ± sd, n = {gained['n']} paired seeds, {_confidence(gained, metric)})"
    )
    if gained["low"] > 0:
        return f"Distillation {_bought(metric)} {amount} {what} {evidence}."
    if gained["high"] < 0:
        loss = spread(gained | {"mean": -gained["mean"]}, metric)
        return f"Distillation cost {loss} {what} {evidence}."
    return f"Distillation bought nothing measurable: {amount} {what} {evidence}."


def _bought(metric: Metric) -> str:
    return "saved" if metric.key == "errors" else "bought"


def _as_gain(
    difference: Mapping[str, Any], metric: Metric, report: Mapping[str, Any]
) -> tuple[dict[str, Any], str]:
    """The difference counted so that more is better, and what is counted."""
    if metric.better == "higher":
        return dict(difference), f"points of {report['split']} accuracy"
    turned: dict[str, Any] = {"mean": -difference["mean"]}
    if difference["low"] is not None:
        turned |= {"low": -difference["high"], "high": -difference["low"]}
    total = number(report["num_examples"], 0)
    return {**difference, **turned}, f"errors on {total} {report['split']} examples"


def _headline_without_pairs(report: Mapping[str, Any], metric: Metric) -> str:
    roles = report["roles"]
    role = "student" if "student" in roles else next(iter(roles))
    result = roles[role]["last"][metric.key]
    reached = (
        f"The {'distilled student' if role == 'student' else role} makes "
        f"{spread(result, metric)} errors on {number(report['num_examples'], 0)} "
        f"{report['split']} examples"
        if metric.key == "errors"
        else f"The {'distilled student' if role == 'student' else role} reaches "
        f"{spread(result, metric)} % {report['split']} accuracy"
    )
    missing = {"student", "baseline"} - set(roles)
    reason = (
        f"there is no {' and no '.join(sorted(missing))} to compare"
        if missing
        else "student and baseline have no seed in common"
    )
    return (
        f"{reached} (n = {result['n']}); what distillation bought is unknown: {reason}."
    )


def findings(report: Mapping[str, Any]) -> list[dict[str, str]]:
    """Further sentences: `kind` ('hit', 'miss' or 'fact') and `text` of each."""
    sentences = [
        _gap_sentence(report),
        _wins_sentence(report),
        _others_sentence(report),
        _best_sentence(report),
        *_band_sentences(report),
        _sampling_sentence(report),
    ]
    facts = [s if isinstance(s, dict) else _fact(s) for s in sentences if s]
    return facts + [_fact(note) for note in report["notes"]]


def _fact(text: str) -> dict[str, str]:
    return {"kind": "fact", "text": text}


def _gap_sentence(report: Mapping[str, Any]) -> str | None:
    closed = report["gain"]["gap_closed"]
    cost = _cost_sentence(report)
    if closed is None:
        return f"The student has {cost}." if cost else None
    if closed < 0:
        text = "The student ends further from its teacher's figure than its baseline"
    elif closed > 1:
        text = "The student passes its teacher"
    else:
        text = f"The student closes {percent(closed)} of the gap to its teacher"
    return f"{text}, with {cost}." if cost else f"{text}."


def _cost_sentence(report: Mapping[str, Any]) -> str | None:
    """What the student costs, in terms of the teacher."""
    roles = report["roles"]
    student, teacher = (
        roles.get(role, {}).get("cost") for role in ("student", "teacher")
    )
    if student is None or teacher is None:
        return None
    share = percent(student["parameters"] / teacher["parameters"])
    parts = [f"{share} of the teacher's parameters"]
    if student["flops"] and teacher["flops"]:
        parts.append(f"{percent(student['flops'] / teacher['flops'])} of its FLOPs")
    latency = student["latency_ms"]["p50"] / teacher["latency_ms"]["p50"]
    parts.append(f"{percent(latency)} of its latency at batch size 1")
    return f"{', '.join(parts[:-1])} and {parts[-1]}"


def _others_sentence(report: Mapping[str, Any]) -> str | None:
    """Where else the interval leaves zero out; one in twenty does by chance."""
    clear = []
    for key, difference in report["gain"]["last"].items():
        if key in ("accuracy", "errors") or difference["low"] is None:
            continue
        if difference["low"] > 0 or difference["high"] < 0:
            metric = METRICS[key]
            better = (difference["mean"] > 0) == (metric.better == "higher")
            amount = spread(difference, metric, signed=True)
            verdict = "better" if better else "worse"
            clear.append(f"{metric.title} {amount} ({verdict})")
    if not clear:
        return None
    return (
        f"Measurable beside the headline, student against baseline: {'; '.join(clear)}."
    )


def _confidence(difference: Mapping[str, Any], metric: Metric) -> str:
    level = percent(difference["confidence"])
    return f"{level} CI {interval(difference, metric.digits)}"


def _wins_sentence(report: Mapping[str, Any]) -> str | None:
    metric = METRICS[report["unit"]]
    difference = report["gain"]["last"].get(metric.key)
    if difference is None or difference["n"] == 1:
        return None
    sign = 1 if metric.better == "higher" else -1
    wins = sum(sign * value > 0 for value in difference["values"])
    return f"The student beat its baseline on {wins} of {difference['n']} seeds."


def _best_sentence(report: Mapping[str, Any]) -> str | None:
    metric = METRICS[report["unit"]]
    difference = report["gain"]["best"].get(metric.key)
    if difference is None:
        return None
    gained, what = _as_gain(difference, metric, report)
    amount = spread(gained, metric, signed=True)
    text = f"At the epochs best by validation, instead of the last: {amount} {what}"
    if gained["low"] is None:
        return f"{text}."
    return f"{text} ({_confidence(gained, metric)})."


def _band_sentences(report: Mapping[str, Any]) -> list[dict[str, str]]:
    metric = METRICS[report["unit"]]
    sentences = []
    for role, entry in report["roles"].items():
        band = entry["band"]
        if band is None:
            continue
        verdict = "met" if band["met"] else "missed"
        measured = spread(entry["last"][metric.key], metric)
        text = (
            f"{ROLE_TITLES[role]}: {measured} {metric.unit}, accepted "
            f"{band_text(band)}: {verdict}."
        )
        sentences.append({"kind": "hit" if band["met"] else "miss", "text": text})
    return sentences


def _sampling_sentence(report: Mapping[str, Any]) -> str:
    role = "student" if "student" in report["roles"] else next(iter(report["roles"]))
    error = report["roles"][role]["sampling_error"]
    digits = METRICS[report["unit"]].digits
    unit = "points" if report["unit"] == "accuracy" else "errors"
    return (
        f"Intervals speak of other seeds. For other {report['split']} examples, one "
        f"standard error of the {role}'s figure is {number(error, digits)} {unit} "
        f"(N = {number(report['num_examples'], 0)})."
    )
