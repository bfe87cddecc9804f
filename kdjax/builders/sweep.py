"""A sweep of offline distillation's students, from a config: groups of one program."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from kdjax import builders, features, fingerprints, networks, steps
from kdjax import teacher_cache as caches
from kdjax.builders import _shared_teacher, _sweep_axes
from kdjax.builders._checks import expect, plain
from kdjax.builders._networks import SEEN_BY, network
from kdjax.builders._objectives import (
    Built,
    Sides,
    distill_objective,
    label_objective,
    optimizer_hparams,
)
from kdjax.builders._parts import Parts, assemble
from kdjax.builders._roles import Role, no_teacher, read_teacher
from kdjax.builders._students import Lesson, students_loader
from kdjax.builders._terms import Setting
from kdjax.data import sources
from kdjax.students import StudentsLoader
from kdjax.training import Training
from kdjax.types import Batch, HParams, UserError, Variables

__all__ = ["Experiment", "Group", "Options", "Row", "Stored", "build"]

FORMS = ("measured", "vmap", "loop")
# Options on which results depend; the others only say how they are come by.
DECIDING = ("rungs", "keep", "trials", "trials_at_once")


class Row(NamedTuple):
    """One student: what it differs in from others, and its seed."""

    values: dict[str, Any]
    seed: int


@dataclasses.dataclass(frozen=True)
class Stored:
    """A cache of the teacher that students read.

    Attributes:
      name: of its directory.
      manifest: made from the teacher's variables.
      compute: from the teacher's variables, what it is filled with.
      blank: arrays of its shapes, for a plan that is made before it is there.
    """

    name: str
    manifest: Callable[[Variables], caches.Manifest]
    compute: Callable[[Variables], Callable[[np.ndarray, int], Any]]
    blank: Callable[[], dict[str, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Group:
    """Students that one program can train: they differ in numbers alone.

    Attributes:
      name: of its directory.
      key: of its programs, which groups of the same key share.
      role: `'student'`, or `'baseline'`: without a teacher.
      values: what all its students have, and others of the sweep have not.
      rows: the students.
      network: theirs.
      init: makes the state of a student before its first step.
      hparams: the schedules of each.
      train_step: of one student.
      prepare: adds to a batch what all students that see it have of the teacher.
      teacher: what steps read of the teacher, from its variables.
      cache: where the teacher is stored; None where it runs, or there is none.
      loader: makes the batches, from seeds and the arrays of the cache.
      training: makes the training: the rest of its arguments.
      num_steps: how long they train.
      steps_per_epoch: of the loader.
    """

    name: str
    key: str
    role: str
    values: dict[str, Any]
    rows: tuple[Row, ...]
    network: networks.Network
    init: Callable[[int], steps.TrainState]
    hparams: tuple[HParams, ...]
    train_step: steps.TrainStep
    prepare: Callable[[Variables, Batch], Batch]
    teacher: Callable[[Variables], Variables]
    cache: Stored | None
    loader: Callable[[Sequence[int], Mapping[str, np.ndarray]], StudentsLoader]
    training: Callable[..., Training]
    num_steps: int
    steps_per_epoch: int


@dataclasses.dataclass(frozen=True)
class Options:
    """How a sweep runs; see `sweep_options` in `kdjax.default_config`."""

    form: str
    max_students: int
    max_gigabytes: float
    rungs: Sequence[int | float]
    keep: float
    trials: int
    trials_at_once: int


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A sweep, ready to run.

    Attributes:
      offline: the teacher, as offline distillation has it.
      axes: the values that are tried, by path, but for the seeds.
      fixed: by path, what the sweep sets for all students alike.
      groups: the students of a grid, by program; none where trials are proposed.
      baselines: the same students without a teacher, as far as they differ.
      propose: groups of the students that have further values.
      ranges: of proposed values, `(low, high)` or `(low, high, 'log')` by path.
      seeds: of each proposed student.
      options: how it runs.
      inputs: what its result depends on beside the teacher; JSON-able.
      batch_size: of inference.
    """

    offline: builders.Experiment
    axes: Mapping[str, Sequence[Any]]
    fixed: Mapping[str, Any]
    groups: tuple[Group, ...]
    baselines: tuple[Group, ...]
    propose: Callable[[Sequence[Mapping[str, Any]]], tuple[Group, ...]]
    ranges: Mapping[str, Sequence[Any]]
    seeds: tuple[int, ...]
    options: Options
    inputs: Mapping[str, Any]
    batch_size: int


def build(config: ConfigDict) -> Experiment:
    """Reads a whole config, and raises `UserError` on the first thing wrong with it."""
    _check(config)
    parts = assemble(config)
    axes, options = _sweep_axes.parse(config.sweep), plain(config.sweep_options)
    seeds = tuple(config.seeds)
    ranges = _sweep_axes.ranges(axes) if options["trials"] else {}
    points = [] if ranges else _sweep_axes.points(config, axes)
    # Where values are proposed, those of the config are compared with.
    compared = points or [_sweep_axes.make(config, {"seed": seed}) for seed in seeds]
    tried = _sweep_axes.tried(axes)
    fixed = {path: x[0] for path, x in tried.items() if len(x) == 1}
    groups = functools.partial(_groups, parts, fixed)
    return Experiment(
        offline=builders.experiment(parts),
        axes={path: x for path, x in tried.items() if path not in fixed},
        fixed=fixed,
        groups=groups("student", points),
        baselines=groups("baseline", _sweep_axes.without_teacher(config, compared)),
        propose=lambda proposed: groups(
            "student", [_sweep_axes.make(config, values) for values in proposed]
        ),
        ranges=ranges,
        seeds=seeds,
        options=Options(**options),
        inputs={
            **parts.inputs()["student"],
            "sweep": plain(config.sweep),
            "seeds": plain(config.seeds),
            "eval_every_epochs": config.eval_every_epochs,
            **{name: options[name] for name in DECIDING},
        },
        batch_size=config.student.train.batch_size,
    )


def _check(config: ConfigDict) -> None:
    """What a sweep needs of the keys that all ways have, and of its own."""
    if config.recipe != "offline":
        raise UserError(
            "Expected a sweep of the recipe 'offline', whose students are many and "
            f"share a teacher, got {config.recipe!r}: run its seeds by themselves."
        )
    expect(config, "parallel", lambda x: x == "jit", "'jit' for a sweep")
    expect(config, "dataset.streaming", lambda x: not x, "False for a sweep")
    expect(config, "diagnose_every_steps", lambda x: x == 0, "0 for a sweep")
    own = "sweep_options"
    expect(config, f"{own}.form", lambda x: x in FORMS, f"one of {FORMS}")
    expect(config, f"{own}.keep", lambda x: 0 < x < 1, "a share between 0 and 1")
    expect(config, f"{own}.trials_at_once", lambda x: x > 0, "a positive number")
    for name in ("max_students", "max_gigabytes", "trials"):
        expect(config, f"{own}.{name}", lambda x: x >= 0, "no negative number")
    expect(
        config,
        f"{own}.rungs",
        lambda x: list(x) == sorted(set(x)) and all(y > 0 for y in x),
        "rising numbers of epochs, as (2, 6)",
    )
    if config.sweep_options.rungs or config.sweep_options.trials:
        expect(config, "dataset.validation", lambda x: x > 0, "above 0, to choose by")
    if jax.process_count() > 1:
        raise UserError(
            f"Expected one process for a sweep, got {jax.process_count()}: its "
            "students are split over the devices of one."
        )


def _groups(
    parts: Parts,
    fixed: Mapping[str, Any],
    role: str,
    points: Sequence[_sweep_axes.Point],
) -> tuple[Group, ...]:
    """The students of one role, those that a program can share together."""
    points = [
        point._replace(values={k: x for k, x in point.values.items() if k not in fixed})
        for point in points
    ]
    makers: dict[str, _Maker] = {}
    members: dict[str, list[tuple[_sweep_axes.Point, HParams]]] = {}
    sections = ("student",) if role == "baseline" else ("student", "distill")
    for point in points:
        key = fingerprints.fingerprint_json(
            _sweep_axes.static_part(point.config, sections)
        )
        if key not in makers:
            makers[key] = _Maker(parts, role, point.config)
        hparams = makers[key].hparams(point.config)
        # Schedules of other kinds are other programs.
        whole = f"{key} {jax.tree.structure(hparams)}"
        makers.setdefault(whole, makers[key])
        members.setdefault(whole, []).append((point, hparams))
    common = _sweep_axes.common([point.values for point in points])
    return tuple(
        makers[key].group(f"{role}{i}", f"{role} {key}", found, common)
        for i, (key, found) in enumerate(members.items())
    )


class _Maker:
    """Makes the group of a config, whatever its numbers.

    Args:
      parts: of the experiment.
      role: `'student'` or `'baseline'`.
      config: of one of the students.
    """

    def __init__(self, parts: Parts, role: str, config: ConfigDict):
        student = parts.student
        same = [plain(x.student) for x in (config, parts.config)]
        if any(same[0][key] != same[1][key] for key in ("model", *SEEN_BY)):
            student = network(config.student, parts.splits.train, parts.devices)
        self._base = parts
        self._parts = dataclasses.replace(
            parts, config=config, student=student, programs={}
        )
        self._parts.check()
        self._role = role
        self._train = config.student.train
        self._steps_per_epoch = len(parts.splits.train) // self._train.batch_size
        if role == "student":
            setting = Setting(
                self._train.batch_size, lambda: sources.labels(parts.splits.train)
            )
            known = features.describe(student), features.describe(parts.teacher)
            self._sides = Sides(*known, setting)

    def hparams(self, config: ConfigDict) -> HParams:
        """The schedules of a student."""
        rates = optimizer_hparams(config.student.train, self._steps_per_epoch)
        return {**rates, **self._built(config).hparams}

    def group(
        self,
        name: str,
        key: str,
        members: Sequence[tuple[_sweep_axes.Point, HParams]],
        common: Mapping[str, Any],
    ) -> Group:
        points, hparams = zip(*members, strict=True)
        cached = self._role == "student" and self._parts.cached
        role, prepare, teacher = self._teaching(points[0].config, cached)
        values = _sweep_axes.common([point.values for point in points])
        return Group(
            name=name,
            key=key,
            role=self._role,
            values={k: plain(x) for k, x in values.items() if k not in common},
            rows=tuple(Row(plain(point.values), point.seed) for point in points),
            network=self._parts.student,
            init=lambda row: role.init_state(points[row].seed, hparams[row]),
            hparams=hparams,
            train_step=role.train_step(None),
            prepare=prepare,
            teacher=teacher,
            cache=self._stored() if cached else None,
            loader=self._loader,
            training=self._training,
            num_steps=self._train.num_epochs * self._steps_per_epoch,
            steps_per_epoch=self._steps_per_epoch,
        )

    def _built(self, config: ConfigDict) -> Built:
        train = config.student.train
        if self._role == "baseline":
            return label_objective(train)
        num_steps = train.num_epochs * self._steps_per_epoch
        return distill_objective(config.distill, train, num_steps, self._sides)

    def _teaching(self, config: ConfigDict, cached: bool) -> tuple[Role, Any, Any]:
        """The role, what prepares a batch, and what the steps read of the teacher."""
        built, parts = self._built(config), self._parts
        start = parts.config.student.pretrained
        of = (self._role, parts.student, self._train, built)
        make = functools.partial(Role, *of, start=start)
        if self._role == "baseline":
            return make(no_teacher), _shared_teacher.as_it_is, _shared_teacher.nothing
        if cached:
            teacher_fn = functools.partial(read_teacher, parts.manifest({}).encoding)
            teacher = (
                _shared_teacher.everything
                if built.teacher_taps
                else _shared_teacher.nothing
            )
            return make(teacher_fn, parts.teacher), _shared_teacher.as_it_is, teacher
        prepare = functools.partial(_shared_teacher.run_once, parts.teacher.apply)
        return (
            make(_shared_teacher.read_prepared, parts.teacher),
            prepare,
            _shared_teacher.everything,
        )

    def _stored(self) -> Stored:
        parts, train = self._parts, self._train
        of = [
            dataclasses.replace(x.manifest({}), shard_size=1)
            for x in (parts, self._base)
        ]
        name = "cache"
        if of[0] != of[1]:
            name += "-" + fingerprints.fingerprint_json(repr(of[0]))[:8]

        def blank() -> dict[str, np.ndarray]:
            stored = parts.manifest({}).encoding.arrays()
            shape = (train.num_views or train.num_epochs, len(parts.splits.train))
            return {
                k: np.zeros(shape + one, dtype) for k, (one, dtype) in stored.items()
            }

        return Stored(name, parts.manifest, parts.compute, blank)

    def _loader(
        self, seeds: Sequence[int], extras: Mapping[str, np.ndarray]
    ) -> StudentsLoader:
        train = self._train
        lesson = Lesson(
            source=self._parts.splits.train,
            train=train,
            teacher_fn=no_teacher,
            extras=extras,
            num_views=train.num_views or train.num_epochs,
        )
        return students_loader(self._parts, lesson, seeds)

    def _training(self, *, loader: StudentsLoader, **arguments: Any) -> Training:
        config = self._base.config
        return Training(
            loader=loader,
            steps_per_epoch=loader.steps_per_epoch,
            steps_per_dispatch=(
                1 if jax.default_backend() == "cpu" else config.steps_per_dispatch
            ),
            log_every_steps=config.log_every_steps,
            eval_every_epochs=config.eval_every_epochs,
            checkpoint_every_steps=config.checkpoint_every_steps,
            keep_checkpoints=config.keep_checkpoints,
            **arguments,
        )
