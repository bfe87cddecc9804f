"""What a run hands over to be reported, checked."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

import numpy as np

from kdjax.report.quantities import Number
from kdjax.types import UserError

Role: TypeAlias = Literal["teacher", "student", "baseline"]
ROLES: tuple[Role, ...] = ("teacher", "student", "baseline")

Unit: TypeAlias = Literal["accuracy", "errors", "perplexity"]
"""What the headline counts: accuracy in percent, wrong test examples, or, of a language
model, the exponential of the mean cross-entropy of a token."""


@dataclasses.dataclass(frozen=True)
class ModelResult:
    """One trained (or imported) model of one seed.

    Attributes:
      role: `'teacher'`, `'student'` (the distilled one) or `'baseline'` (without one).
      seed: pairs a student with its baseline, and with its teacher where each seed has
        a teacher of its own; a single teacher serves every seed.
      logits: on the test split, after the last epoch, `[N, num_classes]`.
      best_logits: the same of the checkpoint that was best on the validation split.
      history: metric rows of the training in order: `step`, `epoch`, and numbers such
        as `loss`, a loss term, `validation_accuracy` (a fraction), `validation_nll`. A
        row need not hold every name.
      seconds: wall time of the training; 0 if imported.
    """

    role: Role
    seed: int
    logits: np.ndarray
    best_logits: np.ndarray | None = None
    history: Sequence[Mapping[str, Any]] = ()
    seconds: Number = 0


@dataclasses.dataclass(frozen=True)
class Examples:
    """A few images whose soft labels are shown.

    Attributes:
      images: uint8 pixels `[K, H, W, C]`, C being 1 or 3.
      labels: their classes, `[K]`.
      teacher_logits: the teacher's, `[K, num_classes]`.
    """

    images: np.ndarray
    labels: np.ndarray
    teacher_logits: np.ndarray


@dataclasses.dataclass(frozen=True)
class RunInfo:
    """What the reader needs to know about a run, and to repeat it.

    Attributes:
      name: the title of the report.
      command: that repeats the run.
      temperature: of the distillation; the soft labels are shown at it.
      config: everything that was configured, JSON-able.
      unit: what the headline, `published` and `bands` count.
      class_names: `[num_classes]`; empty for the class numbers.
      published: `source` (text, with the address if there is one) and the published
        value of any role, in `unit`: `{'source': ..., 'student': 74}`.
      bands: the lowest and highest acceptable value by role, in `unit`, None for no
        bound: `{'teacher': (None, 95)}`.
      loss_terms: the names in the histories that are terms of the training loss.
      split: the name of the split that all test metrics are on.
      versions: as from `measure.versions()`.
      hardware: as from `measure.hardware()`.
      commit: as from `measure.commit()`.
      stage_seconds: wall time by stage, in order.
      notes: sentences to show with the result, such as a departure from a protocol.
      data: fingerprints of splits by name: equal ones are the same examples.
    """

    name: str
    command: str
    temperature: Number
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    unit: Unit = "accuracy"
    class_names: Sequence[str] = ()
    published: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    bands: Mapping[str, tuple[Number | None, Number | None]] = dataclasses.field(
        default_factory=dict
    )
    loss_terms: Sequence[str] = ("hard", "soft")
    split: str = "test"
    versions: Mapping[str, str] = dataclasses.field(default_factory=dict)
    hardware: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    commit: str | None = None
    stage_seconds: Mapping[str, Number] = dataclasses.field(default_factory=dict)
    notes: Sequence[str] = ()
    data: Mapping[str, str] = dataclasses.field(default_factory=dict)


def check(results: Sequence[ModelResult], run: RunInfo, labels: np.ndarray) -> None:
    """Raises `UserError` unless `results` can be compared on `labels`."""
    if not results:
        raise UserError("Expected results of at least one model to report, got none.")
    seen = set()
    for result in results:
        if (result.role, result.seed) in seen:
            raise UserError(f"Expected one result per seed, got two of {_of(result)}.")
        seen.add((result.role, result.seed))
        for logits in (result.logits, result.best_logits):
            if logits is not None:
                _check_logits(logits, result, run, labels)
    num_classes = {result.logits.shape[1] for result in results}
    if len(num_classes) > 1:
        found = ", ".join(f"{_of(r)}: {r.logits.shape[1]}" for r in results)
        raise UserError(f"Expected models of equally many classes, got {found}.")
    _check_names(run, num_classes.pop(), labels)


def teacher_of(results: Sequence[ModelResult], seed: int) -> ModelResult | None:
    """The teacher of a student: that of its seed, or the only one there is."""
    teachers = [result for result in results if result.role == "teacher"]
    candidates = [t for t in teachers if t.seed == seed] or teachers
    if len(candidates) < 2:
        return candidates[0] if candidates else None
    raise UserError(
        f"Expected one teacher for all seeds or a teacher for seed {seed}, got "
        f"teachers of seeds {[teacher.seed for teacher in teachers]}."
    )


def _of(result: ModelResult) -> str:
    return f"{result.role}, seed {result.seed}"


def _check_logits(
    logits: np.ndarray, result: ModelResult, run: RunInfo, labels: np.ndarray
) -> None:
    if logits.ndim != 2 or len(logits) != len(labels):
        raise UserError(
            f"Expected {run.split} logits [{len(labels)}, num_classes] of "
            f"{_of(result)}, one row per label, got {list(logits.shape)}."
        )
    broken = int(np.sum(~np.isfinite(logits).all(axis=1)))
    if broken:
        raise UserError(
            f"Expected finite {run.split} logits of {_of(result)}, got NaN or infinity "
            f"in {broken} of {len(logits)} rows: the model is broken, so nothing can "
            "be said about it. Train it again, with a lower learning rate or clipping."
        )


def _check_names(run: RunInfo, num_classes: int, labels: np.ndarray) -> None:
    if run.class_names and len(run.class_names) != num_classes:
        raise UserError(
            f"Expected {num_classes} class names, one per logit, got "
            f"{len(run.class_names)}."
        )
    if len(labels) == 0 or labels.min() < 0 or labels.max() >= num_classes:
        found = f"{labels.min()} to {labels.max()}" if len(labels) else "none"
        raise UserError(
            f"Expected {run.split} labels from 0 to {num_classes - 1}, got {found}."
        )
    known = {*ROLES, "source"}
    for name, mapping in (("published", run.published), ("bands", run.bands)):
        unknown = sorted(set(mapping) - known)
        if unknown:
            raise UserError(f"Expected the keys of {name} in {known}, got {unknown}.")
