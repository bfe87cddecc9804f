"""The axes of a sweep: its configs, and which of them one program can train."""

import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from kdjax.builders._checks import check, plain
from kdjax.builders._methods import LOSSES
from kdjax.builders._objectives import TIMING
from kdjax.types import UserError

SEED = "seed"
SECTIONS = ("distill", "student")  # What a student may differ in, beside its seed.

# Numbers that reach the compiled step as arrays.
ARRAYS = (
    "distill.temperature",
    "distill.temperature_final",
    "distill.alpha",
    "distill.alpha_final",
    "distill.from_epoch",
    "student.train.label_smoothing",
    "student.train.ema_decay",
    "student.train.optimizer.momentum",
    "student.train.optimizer.b1",
    "student.train.optimizer.b2",
    "student.train.optimizer.weight_decay",
    "student.train.optimizer.clip_norm",
    "student.train.optimizer.max_norm",
    "student.train.learning_rate.base",
    "student.train.learning_rate.final",
    "student.train.learning_rate.warmup_epochs",
    "student.train.learning_rate.decay_factor",
    "student.train.learning_rate.decay_epochs",
)
# Of these, whether one is zero decides what is computed at all.
SWITCHES = (
    "distill.from_epoch",
    "student.train.ema_decay",
    "student.train.optimizer.clip_norm",
    "student.train.optimizer.max_norm",
)

Paths = tuple[str, ...]
Axes = Sequence[tuple[Paths, Sequence[tuple[Any, ...]]]]


class Point(NamedTuple):
    """One student: what it differs in, its seed, and its whole config."""

    values: dict[str, Any]
    seed: int
    config: ConfigDict


def parse(sweep: Sequence[Any]) -> Axes:
    """The axes of `config.sweep`, each with its paths and a value for each of them.

    Raises:
      UserError: if a path is none of a student's, comes twice, or has no value.
    """
    axes = []
    for paths, values in sweep:
        names = (paths,) if isinstance(paths, str) else tuple(paths)
        axes.append((names, [_split(names, paths, x) for x in values]))
    every = [path for names, _ in axes for path in names]
    for path in every:
        if path != SEED and path.split(".")[0] not in SECTIONS:
            raise UserError(
                "Expected axes of a sweep out of seed, distill.* and student.*, which "
                f"share a teacher, got {path!r}: run a sweep for each of its values, "
                "in work directories of their own."
            )
    if len(set(every)) < len(every) or not all(values for _, values in axes):
        raise UserError(
            f"Expected each axis of a sweep once and with values, got {sweep!r}."
        )
    return axes


def _split(names: Paths, paths: Any, value: Any) -> tuple[Any, ...]:
    if isinstance(paths, str):
        return (value,)
    if not isinstance(value, list | tuple) or len(value) != len(names):
        raise UserError(
            f"Expected a value for each of {', '.join(names)}, which go together, got "
            f"{value!r}."
        )
    return tuple(value)


def points(config: ConfigDict, axes: Axes) -> list[Point]:
    """Every combination, the seeds of `config.seeds` in those that set none.

    Raises:
      UserError: if one of the configs is none, or two are the same.
    """
    if all(SEED not in names for names, _ in axes):
        axes = [*axes, ((SEED,), [(seed,) for seed in config.seeds])]
    found = []
    for chosen in itertools.product(*(values for _, values in axes)):
        values = {
            path: value
            for (names, _), group in zip(axes, chosen, strict=True)
            for path, value in zip(names, group, strict=True)
        }
        found.append(make(config, values))
    seen = [(plain(point.values), point.seed) for point in found]
    for i, point in enumerate(seen):
        if point in seen[:i]:
            raise UserError(f"Expected students that differ, got {point[0]} twice.")
    return found


def make(config: ConfigDict, values: Mapping[str, Any]) -> Point:
    """A student's config; raises `UserError` if it can't have these values."""
    own = {path: value for path, value in values.items() if path != SEED}
    if not isinstance(values[SEED], int):
        raise UserError(f"Expected seeds to be whole numbers, got {values[SEED]!r}.")
    changed = config.copy_and_resolve_references()
    for path, value in own.items():
        _set(changed, path, value)
    changed.seeds = (values[SEED],)
    changed.sweep = ()
    check(changed)
    return Point(own, values[SEED], changed)


def without_teacher(config: ConfigDict, points: Sequence[Point]) -> list[Point]:
    """The same students, once each, as far as they differ without a teacher."""
    found: dict[str, Point] = {}
    for point in points:
        own = {k: x for k, x in point.values.items() if not k.startswith("distill.")}
        key = json.dumps([plain(own), point.seed])
        if key not in found:
            found[key] = make(config, {**own, SEED: point.seed})
    return list(found.values())


def common(values: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What all of these have alike."""
    if not values:
        return {}
    first, *others = values
    return {k: x for k, x in first.items() if all(y[k] == x for y in others)}


def tried(axes: Axes) -> dict[str, list[Any]]:
    """The values of each path but the seed, each once; JSON-able."""
    found: dict[str, list[Any]] = {}
    for names, values in axes:
        for i, path in enumerate(names):
            each = [plain(value[i]) for value in values]
            if path != SEED:
                found[path] = [x for j, x in enumerate(each) if x not in each[:j]]
    return found


def ranges(axes: Axes) -> dict[str, tuple[Any, ...]]:
    """Between what each number is proposed: `(low, high)`, or with `'log'`.

    Raises:
      UserError: if an axis is no range.
    """
    found = {}
    for names, values in axes:
        flat = tuple(x[0] for x in values)
        low, high, *scale = (*flat, None, None)[: max(len(flat), 2)]
        numbers = all(isinstance(x, int | float) for x in (low, high))
        if len(names) > 1 or not numbers or low >= high or scale not in ([], ["log"]):
            raise UserError(
                "Expected a range (low, high) or (low, high, 'log') on each axis, as "
                f"sweep_options.trials has its values proposed, got "
                f"{', '.join(names)}: {flat!r}."
            )
        if not _is_number(names[0]):
            raise UserError(
                f"Expected a range of a number that a program takes as an array, got "
                f"{names[0]!r}: choose among {', '.join(ARRAYS)} and numbers of terms."
            )
        found[names[0]] = flat
    return found


def _is_number(path: str) -> bool:
    return path in ARRAYS or path.startswith("distill.terms.")


def _set(config: ConfigDict, path: str, value: Any) -> None:
    *sections, key = path.split(".")
    try:
        section: Any = config
        for name in sections:
            section = section[name]
        old = section[key] if key in section else None
        if isinstance(old, ConfigDict) and old.is_locked:
            old.update(value)
        elif isinstance(old, ConfigDict):
            section[key] = ConfigDict(value)  # An open section: a model, the terms.
        else:
            section[key] = value
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"Expected axes of a sweep to be keys of the config with values of their "
            f"kind, got {path!r}: {value!r} ({' '.join(str(error).split())})."
        ) from error


def static_part(config: ConfigDict, sections: Sequence[str]) -> dict[str, Any]:
    """What of a config's sections is compiled into a program."""
    found = {name: plain(config[name]) for name in sections}
    for path in ARRAYS:
        *parents, key = path.split(".")
        if parents[0] in found:
            section = found
            for name in parents:
                section = section[name]
            value = section.pop(key)
            if path in SWITCHES:
                section[key] = value > 0
    for settings in found.get("distill", {}).get("terms", {}).values():
        method = LOSSES.get(settings.get("loss"))
        options = method.options() if method else {}
        for key in [x for x in settings if x in TIMING or options.get(x)]:
            settings.pop(key)
    return found
