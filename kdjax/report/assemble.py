"""From the logits of a run to its report: a dict that JSON can hold."""

import base64
import dataclasses
import datetime
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from PIL import Image
from scipy import special

from kdjax import metrics
from kdjax.measure import ModelCost
from kdjax.report import diagnostics, records, sentences, statistics
from kdjax.report.quantities import Number
from kdjax.report.records import Examples, ModelResult, Role, RunInfo
from kdjax.types import UserError

Report: TypeAlias = dict[str, Any]

_MAX_HISTORY_ROWS = 400  # Of one training; more than a figure can show.
_MAX_CLASSES_SHOWN = 10


def build(
    results: Sequence[ModelResult],
    costs: Mapping[str, ModelCost],
    run: RunInfo,
    labels: np.ndarray,
    examples: Examples | None = None,
) -> Report:
    """Everything that a run has to report.

    Args:
      results: of every role and seed, in any order. Without a student or a baseline,
        or without seeds that they share, the report says that the gain is unknown.
      costs: by role, as from `measure.measure_costs`; may lack roles.
      run: how the results came about.
      labels: of the test split, `[N]`.
      examples: images whose soft labels are shown.

    Returns:
      A dict of strings, finite numbers, None, lists and dicts; the package's docstring
      lists its keys.

    Raises:
      UserError: if logits are not finite, have the wrong shape or come twice for a
        seed, if labels or class names do not match them, or if it is unclear which of
        several teachers taught a student.
    """
    labels = np.asarray(labels)
    records.check(results, run, labels)
    roles: dict[str, Any] = {
        role: _role(role, results, costs.get(role), run, labels)
        for role in records.ROLES
        if any(result.role == role for result in results)
    }
    report: Report = {
        "format": 1,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        **_about(run, results),
        "num_examples": len(labels),
        "num_classes": results[0].logits.shape[1],
        "roles": roles,
        "gain": _gain(roles, run.unit),
        "examples": _examples(examples, run),
    }
    report["headline"] = sentences.headline(report)
    report["findings"] = sentences.findings(report)
    return strict(report)


def strict(value: Any) -> Any:
    """`value` as strict JSON: no NaN, no arrays, no tuples, no keys but strings."""
    if isinstance(value, Mapping):
        return {str(key): strict(entry) for key, entry in value.items()}
    if isinstance(value, np.ndarray):
        return strict(value.tolist())
    if isinstance(value, list | tuple | set | frozenset):
        return [strict(entry) for entry in value]
    if isinstance(value, np.generic):
        return strict(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return str(value)


def _about(run: RunInfo, results: Sequence[ModelResult]) -> dict[str, Any]:
    """The fields of `run`, less those that become part of a role."""
    fields = {field.name for field in dataclasses.fields(run)} - {"bands"}
    seeds = {r.seed for r in results if r.role != "teacher"}
    return {name: getattr(run, name) for name in sorted(fields)} | {
        "seeds": sorted(seeds or {result.seed for result in results})
    }


def _role(
    role: Role,
    results: Sequence[ModelResult],
    cost: ModelCost | None,
    run: RunInfo,
    labels: np.ndarray,
) -> dict[str, Any]:
    mine = sorted((r for r in results if r.role == role), key=lambda r: r.seed)
    last = _summaries(mine, [r.logits for r in mine], results, labels)
    best_logits = [r.best_logits for r in mine if r.best_logits is not None]
    complete = len(best_logits) == len(mine)
    measured = last[run.unit]["mean"]
    accuracy = last["accuracy"]["mean"] / 100
    scale = 100 if run.unit == "accuracy" else len(labels)
    return {
        "seeds": [result.seed for result in mine],
        "last": last,
        "best": _summaries(mine, best_logits, results, labels) if complete else None,
        "sampling_error": scale * statistics.sampling_error(accuracy, len(labels)),
        "published": _published(run.published.get(role), measured),
        "band": _band(run.bands.get(role), measured),
        "cost": None if cost is None else _cost(cost),
        "seconds": statistics.summary([result.seconds for result in mine]),
        "reliability": _reliability(mine, labels),
        "histories": [_history(result) for result in mine if result.history],
    }


def _summaries(
    mine: Sequence[ModelResult],
    logits: Sequence[np.ndarray],
    results: Sequence[ModelResult],
    labels: np.ndarray,
) -> dict[str, Any]:
    """Every metric over the seeds of one role."""
    rows = []
    for result, own in zip(mine, logits, strict=True):
        teacher = records.teacher_of(results, result.seed)
        is_teacher = result.role == "teacher"
        known = None if teacher is None or is_teacher else teacher.logits
        rows.append(_scores(own, labels, known))
    return {name: statistics.summary([row[name] for row in rows]) for name in rows[0]}


def _scores(
    logits: np.ndarray, labels: np.ndarray, teacher_logits: np.ndarray | None
) -> dict[str, float]:
    """The metrics of one model; those against the teacher only where there is one."""
    wrong = int(np.sum(logits.argmax(axis=1) != labels))
    scores = {
        "accuracy": 100 * (1 - wrong / len(labels)),
        "errors": float(wrong),
        "nll": float(metrics.negative_log_likelihood(logits, labels)),
        "ece": 100 * float(metrics.expected_calibration_error(logits, labels)),
    }
    if teacher_logits is None:
        return scores
    return scores | {
        "agreement": 100 * float(metrics.agreement(logits, teacher_logits)),
        "forward_kl": float(metrics.forward_kl(logits, teacher_logits)),
        "rank_correlation": float(metrics.rank_correlation(logits, teacher_logits)),
    }


def _gain(roles: Mapping[str, Any], unit: str) -> dict[str, Any]:
    """Student minus baseline, and the share of the gap to the teacher closed."""
    gain: dict[str, Any] = {"last": {}, "best": {}, "gap_closed": None}
    if not {"student", "baseline"} <= set(roles):
        return gain
    for epoch in ("last", "best"):
        student, baseline = (_by_seed(roles[r], epoch) for r in ("student", "baseline"))
        for name in student.keys() & baseline.keys():
            difference = statistics.paired_difference(student[name], baseline[name])
            if difference is not None:
                gain[epoch][name] = difference
    if "teacher" in roles and unit in gain["last"]:
        student, baseline, teacher = (
            roles[role]["last"][unit]["mean"]
            for role in ("student", "baseline", "teacher")
        )
        better = teacher > baseline if unit == "accuracy" else teacher < baseline
        if better:
            gain["gap_closed"] = (student - baseline) / (teacher - baseline)
    return gain


def _by_seed(role: Mapping[str, Any], epoch: str) -> dict[str, dict[int, Number]]:
    return {
        name: dict(zip(role["seeds"], summary["values"], strict=True))
        for name, summary in (role[epoch] or {}).items()
    }


def _published(value: Number | None, measured: float) -> dict[str, Any] | None:
    if value is None:
        return None
    return {"value": value, "difference": measured - value}


def _band(
    band: tuple[Number | None, Number | None] | None, measured: float
) -> dict[str, Any] | None:
    if band is None:
        return None
    low, high = band
    met = (low is None or measured >= low) and (high is None or measured <= high)
    return {"low": low, "high": high, "met": met}


def _cost(cost: ModelCost) -> dict[str, Any]:
    return dataclasses.asdict(cost) | {"latency_ms": cost.latency_ms._asdict()}


def _reliability(mine: Sequence[ModelResult], labels: np.ndarray) -> dict[str, Any]:
    """Accuracy by confidence, over the examples of all seeds together."""
    bins = metrics.reliability_bins(
        np.concatenate([result.logits for result in mine]), np.tile(labels, len(mine))
    )
    return {name: np.asarray(column).tolist() for name, column in bins.items()}


def _history(result: ModelResult) -> dict[str, Any]:
    """The metric rows as columns, thinned to what a figure can show."""
    rows = list(result.history)
    if len(rows) > _MAX_HISTORY_ROWS:
        kept = np.linspace(0, len(rows) - 1, _MAX_HISTORY_ROWS).round().astype(int)
        # Evaluations are few and far between: none of them may fall through.
        rare = [i for i, row in enumerate(rows) if "validation_accuracy" in row]
        rare += diagnostics.kept(rows, _MAX_HISTORY_ROWS)
        rows = [rows[i] for i in sorted({*kept.tolist(), *rare})]
    names = sorted({name for row in rows for name in row})
    columns = {name: [_float(row.get(name)) for row in rows] for name in names}
    return {"seed": result.seed, "columns": columns}


def _float(value: Any) -> float | None:
    return None if value is None else float(value)


def _examples(examples: Examples | None, run: RunInfo) -> list[dict[str, Any]]:
    if examples is None:
        return []
    if not np.isfinite(examples.teacher_logits).all():
        raise UserError("Expected finite teacher logits of the examples, got NaN.")
    rows = zip(examples.images, examples.labels, examples.teacher_logits, strict=True)
    return [_example(image, int(label), logits, run) for image, label, logits in rows]


def _example(
    image: np.ndarray, label: int, logits: np.ndarray, run: RunInfo
) -> dict[str, Any]:
    logits = np.asarray(logits, np.float64)
    sharp, soft = special.softmax(logits), special.softmax(logits / run.temperature)
    shown = np.arange(len(logits))
    if len(logits) > _MAX_CLASSES_SHOWN:
        likeliest = np.argsort(-logits, kind="stable").tolist()
        others = [i for i in likeliest if i != label][: _MAX_CLASSES_SHOWN - 1]
        shown = np.asarray(sorted([*others, label], key=likeliest.index))
    names = list(run.class_names) or [str(i) for i in range(len(logits))]
    return {
        "label": label,
        "label_name": names[label],
        "image_png": _png(image),
        "classes": [names[i] for i in shown.tolist()],
        "class_ids": shown,
        "probabilities": sharp[shown],
        "softened": soft[shown],
        "max_softened": soft.max(),
    }


def _png(image: np.ndarray) -> str:
    """The pixels as a PNG file, base64."""
    pixels = image[..., 0] if image.shape[-1] == 1 else image
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode("ascii")
