"""A patient and consistent teacher, from a config: what the student's view matches."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from kdjax import builders
from kdjax.builders._checks import expect, plain
from kdjax.builders._parts import Parts, assemble
from kdjax.builders._roles import read_teacher, run_teacher
from kdjax.builders._students import (
    Grid,
    Lesson,
    Student,
    for_epochs,
    make_grid,
    pairs,
)
from kdjax.teacher_cache import Cache, Encoding, Manifest
from kdjax.types import Batch, Outputs, Values, Variables

__all__ = ["ARMS", "CLEAN", "VIEWS", "Experiment", "Grid", "Student", "build"]

ARMS = ("fixed", "consistent", "replayed", "funmatch")
CLEAN, VIEWS = "clean", "views"  # The two caches.


@dataclasses.dataclass(frozen=True)
class Stored:
    """What a cache is to hold.

    Attributes:
      manifest: makes its manifest from the teacher's variables.
      compute: makes, from them, the function of example ids and a view that fills it.
    """

    manifest: Callable[[Variables], Manifest]
    compute: Callable[[Variables], Callable[[np.ndarray, int], Any]]


@dataclasses.dataclass(frozen=True)
class Experiment:
    """The comparison, ready to run.

    Attributes:
      offline: the teacher, as offline distillation has it.
      stored: by name, the caches: of the clean images, and of the views.
      grid: from an arm, a multiple of the shortest schedule, the teacher's variables
        and the open caches to the students that train.
      inputs: what every result depends on beside teacher, arm and multiple; JSON-able.
      multiples: of the shortest schedule, ascending.
      num_epochs: of the shortest.
      config: the whole config, for the report.
    """

    offline: builders.Experiment
    stored: Mapping[str, Stored]
    grid: Callable[[str, int, Variables, Mapping[str, Cache]], Grid]
    inputs: Mapping[str, Any]
    multiples: tuple[int, ...]
    num_epochs: int
    config: Mapping[str, Any]


def build(config: ConfigDict) -> Experiment:
    """Reads a whole config, and raises `UserError` on the first thing wrong with it."""
    _check(config)
    parts = assemble(config)
    clean = dataclasses.replace(parts, config=_clean(config))
    return Experiment(
        offline=builders.build(config),
        stored={
            CLEAN: Stored(clean.manifest, clean.compute),
            VIEWS: Stored(parts.manifest, parts.compute),
        },
        grid=functools.partial(_grid, parts),
        inputs=parts.inputs()["student"] | {"seeds": plain(config.seeds)},
        multiples=tuple(sorted(config.consistency.multiples)),
        num_epochs=config.student.train.num_epochs,
        config=plain(config),
    )


def _clean(config: ConfigDict) -> ConfigDict:
    """The same experiment on images as they are."""
    changed = config.copy_and_resolve_references()
    train = changed.student.train
    train.num_views = 1
    for name, value in train.augment.items():
        train.augment[name] = type(value)(0)
    return changed


def _grid(
    parts: Parts,
    arm: str,
    multiple: int,
    teacher_variables: Variables,
    caches: Mapping[str, Cache],
) -> Grid:
    """All seeds of an arm at one length; the lengths of an arm share a program."""
    config = parts.config
    train = for_epochs(config.student.train, multiple * config.student.train.num_epochs)
    common: dict[str, Any] = {
        "source": parts.splits.train,
        "train": train,
        "num_views": train.num_views,
        "validation": parts.splits.validation if len(parts.splits.validation) else None,
    }
    online = functools.partial(run_teacher, parts.teacher.apply)
    if arm == "fixed":
        encoding = caches[CLEAN].manifest.encoding
        clean = {name: x[0] for name, x in caches[CLEAN].read_all().items()}
        teacher_fn = functools.partial(read_clean, encoding)
        lesson = Lesson(**common, teacher_fn=teacher_fn, teacher=clean)
    elif arm == "replayed":
        encoding = caches[VIEWS].manifest.encoding
        teacher_fn = functools.partial(read_teacher, encoding)
        extras = caches[VIEWS].read_all()
        lesson = Lesson(**common, teacher_fn=teacher_fn, extras=extras)
    else:
        if arm == "funmatch":
            train.augment.mixup = config.consistency.mixup
        lesson = Lesson(**common, teacher_fn=online, teacher=teacher_variables)
    students = pairs({arm: (1.0, config.distill.temperature)}, config.seeds)
    return make_grid(
        parts,
        parts.student,
        students,
        lesson,
        stage=arm,
        name=f"x{multiple}",
        key=arm,
    )


def read_clean(
    encoding: Encoding, stored: Mapping[str, jax.Array], batch: Batch, values: Values
) -> Outputs:
    """What the teacher says of the clean images, whatever view the student sees."""
    entries = {name: x[batch["example_id"]] for name, x in stored.items()}
    return encoding.outputs({**batch, **entries}, values["temperature"])


def _check(config: ConfigDict) -> None:
    """What this comparison needs of the keys that all ways have, and of its own."""
    expect(config, "teacher.source", lambda x: x == "cached", "'cached'")
    expect(config, "cache.encoding", lambda x: x != "topk", "'float32' or 'float16'")
    expect(config, "student.train.num_views", lambda x: x > 0, "a positive number")
    expect(config, "student.train.augment.mixup", lambda x: x == 0, "0, but in an arm")
    expect(config, "distill.alpha", lambda x: x == 1, "1: there are no labels")
    for name in ("alpha", "temperature"):
        schedule = f"distill.{name}_schedule"
        expect(config, schedule, lambda x: x == "constant", "'constant'")
    expect(config, "consistency.mixup", lambda x: x > 0, "a positive number")
    expect(
        config,
        "consistency.multiples",
        lambda x: len(set(x)) == len(x) > 0 and min(x) >= 1,
        "different whole numbers from 1",
    )
