"""Why distillation works, from a config: five experiments on one teacher."""

import copy
import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from kdjax import builders
from kdjax.builders._checks import expect, plain
from kdjax.builders._networks import network
from kdjax.builders._parts import Parts, assemble
from kdjax.builders._roles import read_teacher
from kdjax.builders._students import (
    Grid,
    Lesson,
    Student,
    for_epochs,
    make_grid,
    pairs,
    part_of,
)
from kdjax.data import sources
from kdjax.teacher_cache import Cache
from kdjax.types import UserError

__all__ = ["KEPT", "OMITTED", "Experiment", "Grid", "Student", "build", "few"]

OMITTED = (3,)  # Classes of which the transfer set of `omit_3` has nothing.
KEPT = (7, 8)  # Classes of which that of `only_7_and_8` has everything, and no other.

Grids = Callable[[Cache], tuple[Grid, ...]]


@dataclasses.dataclass(frozen=True)
class Experiment:
    """The study, ready to run.

    Attributes:
      offline: teacher and cache, as offline distillation has them.
      grids: by stage, what trains, from the cache.
      inputs: by stage, what its result depends on beside the teacher; JSON-able.
      few_labels_each: examples of each class among the few, those held out included.
      look_every: steps between two looks of the stage `speed`.
      thresholds: the accuracies in % that it counts the steps to.
      widths: of the students of `width_temperature`.
      temperatures: of theirs.
      config: the whole config, for the report.
    """

    offline: builders.Experiment
    grids: Mapping[str, Grids]
    inputs: Mapping[str, Mapping[str, Any]]
    few_labels_each: tuple[int, ...]
    look_every: int
    thresholds: tuple[float, ...]
    widths: tuple[int, ...]
    temperatures: tuple[float, ...]
    config: Mapping[str, Any]


def build(config: ConfigDict) -> Experiment:
    """Reads a whole config, and raises `UserError` on the first thing wrong with it."""
    _check(config)
    study = _Study(config, assemble(config))
    section = config.study_why
    labels = sources.labels(study.parts.splits.train)
    if section.few_labels.num_labels >= len(labels):
        raise UserError(
            f"Expected study_why.few_labels.num_labels to be fewer than the "
            f"{len(labels)} examples of the train split, got "
            f"{section.few_labels.num_labels}: set it lower."
        )
    ids = np.concatenate(few(labels, section.few_labels.num_labels, 0.0))
    num_classes = study.parts.splits.train.num_classes
    common = study.parts.inputs()["student"] | {"seeds": plain(config.seeds)}
    return Experiment(
        offline=builders.build(config),
        grids={
            "few_labels": study.few_labels,
            "speed": study.speed,
            "omit_3": study.omit_3,
            "only_7_and_8": study.only_7_and_8,
            "width_temperature": study.width_temperature,
        },
        inputs={stage: common | {stage: plain(section[stage])} for stage in section},
        few_labels_each=tuple(np.bincount(labels[ids], minlength=num_classes).tolist()),
        look_every=section.speed.look_every,
        thresholds=tuple(section.speed.thresholds),
        widths=tuple(section.width_temperature.widths),
        temperatures=tuple(section.width_temperature.temperatures),
        config=plain(config),
    )


def few(
    labels: np.ndarray, amount: int, held_out: float
) -> tuple[np.ndarray, np.ndarray]:
    """Ids of a few examples, the classes evenly among them, and those held out of them.

    Args:
      labels: of all examples, `[N]`.
      amount: how many are taken.
      held_out: which fraction of these is kept for validation.

    Returns:
      Ids to train on and ids held out; every class has its share of either to within
      one.
    """
    _, taken = sources.cut(labels, amount)
    train, validation = sources.cut(labels[taken], round(held_out * amount))
    return taken[train], taken[validation]


@dataclasses.dataclass(frozen=True)
class _Study:
    """Makes the grids of each stage from the cache."""

    config: ConfigDict
    parts: Parts

    @functools.cached_property
    def _labels(self) -> np.ndarray:
        return sources.labels(self.parts.splits.train)

    def few_labels(self, cache: Cache) -> tuple[Grid, ...]:
        """Hard and soft targets for the same few examples."""
        section = self.config.study_why.few_labels
        ids, held_out = few(self._labels, section.num_labels, section.held_out)
        settings = {"hard": (0.0, 1.0)}
        settings |= {f"soft, T = {t:g}": (1.0, t) for t in section.temperatures}
        lesson = self._lesson(cache, ids, section.num_epochs)
        steps_per_epoch = len(ids) // lesson.train.batch_size
        lesson = dataclasses.replace(
            lesson,
            held_out=part_of(self.parts.splits.train, held_out),
            look_every=max(steps_per_epoch, 1),
            keep_best=True,
        )
        return (self._grid("few_labels", settings, lesson),)

    def speed(self, cache: Cache) -> tuple[Grid, ...]:
        """Hard and soft targets for all examples, with a look every few steps."""
        settings = {"hard": (0.0, 1.0), "soft": (1.0, self.config.distill.temperature)}
        lesson = dataclasses.replace(
            self._lesson(cache, np.arange(len(self._labels))),
            held_out=self.parts.splits.validation,
            look_every=self.config.study_why.speed.look_every,
        )
        return (self._grid("speed", settings, lesson),)

    def omit_3(self, cache: Cache) -> tuple[Grid, ...]:
        """Soft targets for all examples but those of one class."""
        ids = np.flatnonzero(~np.isin(self._labels, OMITTED))
        return self._only(cache, "omit_3", ids)

    def only_7_and_8(self, cache: Cache) -> tuple[Grid, ...]:
        """Soft targets for the examples of two classes alone."""
        ids = np.flatnonzero(np.isin(self._labels, KEPT))
        return self._only(cache, "only_7_and_8", ids)

    def width_temperature(self, cache: Cache) -> tuple[Grid, ...]:
        """Soft targets at several temperatures, for networks of several widths."""
        section = self.config.study_why.width_temperature
        settings = {f"{t:g}": (1.0, t) for t in section.temperatures}
        lesson = self._lesson(cache, np.arange(len(self._labels)), section.num_epochs)
        return tuple(
            self._grid("width_temperature", settings, lesson, width=width)
            for width in section.widths
        )

    def _only(self, cache: Cache, stage: str, ids: np.ndarray) -> tuple[Grid, ...]:
        num_epochs = self.config.study_why[stage].num_epochs
        settings = {"soft": (1.0, self.config.distill.temperature)}
        return (self._grid(stage, settings, self._lesson(cache, ids, num_epochs)),)

    def _lesson(
        self, cache: Cache, ids: np.ndarray, num_epochs: int | None = None
    ) -> Lesson:
        """Some examples of the train split, with what the teacher says of them."""
        train = self.config.student.train
        if num_epochs is not None:
            train = for_epochs(train, num_epochs)
        return Lesson(
            source=part_of(self.parts.splits.train, ids),
            train=train,
            teacher_fn=functools.partial(read_teacher, cache.manifest.encoding),
            extras={name: x[:, ids] for name, x in cache.read_all().items()},
        )

    def _grid(
        self,
        stage: str,
        settings: Mapping[str, tuple[float, float]],
        lesson: Lesson,
        *,
        width: int | None = None,
    ) -> Grid:
        chosen, net = pairs(settings, self.config.seeds), self.parts.student
        if width is None:
            return make_grid(self.parts, net, chosen, lesson, stage=stage)
        student = copy.deepcopy(self.config.student)
        student.model.hidden = (width,) * len(student.model.hidden)
        net = network(student, self.parts.splits.train, self.parts.devices)
        return make_grid(
            self.parts, net, chosen, lesson, stage=stage, name=f"width{width}"
        )


def _check(config: ConfigDict) -> None:
    """What this study needs of the keys that all ways have, and of its own."""
    expect(config, "teacher.source", lambda x: x == "cached", "'cached'")
    expect(config, "student.train.num_views", lambda x: x == 1, "1: clean images")
    expect(config, "cache.encoding", lambda x: x != "topk", "'float32' or 'float16'")
    expect(config, "distill.alpha", lambda x: x == 1, "1, as soft and hard are apart")
    expect(config, "distill.alpha_schedule", lambda x: x == "constant", "'constant'")
    expect(
        config, "distill.temperature_schedule", lambda x: x == "constant", "'constant'"
    )
    expect(config, "dataset.validation", lambda x: x > 0, "above 0, for `speed`")
    expect(config, "student.model.name", lambda x: x == "mlp", "'mlp', for its widths")
    for name, value in config.student.train.augment.items():
        expect(config, f"student.train.augment.{name}", lambda x: not x, "off")
        del value
    own = "study_why"
    expect(config, f"{own}.few_labels.held_out", lambda x: 0 < x < 1, "a fraction")
    for name in (
        "few_labels.num_labels",
        "few_labels.num_epochs",
        "speed.look_every",
        "omit_3.num_epochs",
        "only_7_and_8.num_epochs",
        "width_temperature.num_epochs",
    ):
        expect(config, f"{own}.{name}", lambda x: x > 0, "a positive number")
    for name in (
        "few_labels.temperatures",
        "width_temperature.temperatures",
        "width_temperature.widths",
    ):
        expect(
            config,
            f"{own}.{name}",
            lambda x: len(set(x)) == len(x) > 0 and min(x) > 0,
            "different positive numbers",
        )
    if "hidden" not in config.student.model:
        raise UserError("Expected student.model.hidden, the widths, got none.")
