"""From a config to functions and arrays: the only module that reads a config."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from kdjax import networks, parallel, teacher_cache
from kdjax.builders._checks import plain
from kdjax.builders._export import in_float32, quantization_aware
from kdjax.builders._methods import LOSSES
from kdjax.builders._networks import network
from kdjax.builders._parts import Parts, assemble
from kdjax.data import sources
from kdjax.training import Training
from kdjax.types import Variables

__all__ = ["LOSSES", "Experiment", "build", "experiment"]


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Offline distillation, ready to run: functions and arrays, no config.

    Attributes:
      splits: train, validation and test.
      devices: where programs run.
      teacher: the large network.
      student: the small one.
      seeds: one student and one baseline each.
      teacher_pretrained: a file or directory to import the teacher from as it is; or
        `None`, if it is trained.
      cached: whether the teacher is read from a cache, or runs in every step.
      teacher_note: a sentence that says so, and what it takes.
      manifest: makes the cache's manifest from the teacher's variables.
      compute: makes, from the teacher's variables, the function of example ids and a
        view that the cache is filled with.
      teacher_training: makes the training of the teacher.
      student_training: makes that of the student of a seed, from the teacher's
        variables and the open cache (`None` where the teacher runs online).
      baseline_training: makes that of the same student without a teacher.
      inputs: by stage, what its result depends on; JSON-able.
      predict: by role, the compiled inference `predict(variables, images)`.
      batch_size: of inference.
      temperature: at which the report shows soft labels.
      loss_terms: the names of the student's terms, for the report.
      published: what the literature reports, by role, and how.
      export: the section of that name, for the stage.
      exported: teacher and student as they are exported: in float32.
      quantization_aware: from the weights of a trained student, the experiment in
        which it learns once more, rounded to eight bits.
      config: the whole config, for the report.
    """

    splits: sources.Splits
    devices: parallel.Parallel
    teacher: networks.Network
    student: networks.Network
    seeds: tuple[int, ...]
    teacher_pretrained: str | None
    cached: bool
    teacher_note: str
    manifest: Callable[[Variables], teacher_cache.Manifest]
    compute: Callable[[Variables], Callable[[np.ndarray, int], np.ndarray]]
    teacher_training: Callable[[], Training]
    student_training: Callable[[int, Variables, teacher_cache.Cache | None], Training]
    baseline_training: Callable[[int], Training]
    inputs: Mapping[str, Mapping[str, Any]]
    predict: Mapping[str, Callable[[Variables, Any], np.ndarray]]
    batch_size: int
    temperature: float
    loss_terms: tuple[str, ...]
    published: Mapping[str, Any]
    export: Mapping[str, Any]
    exported: Mapping[str, networks.Network]
    quantization_aware: Callable[[pathlib.Path], "Experiment"]
    config: Mapping[str, Any]


def build(config: ConfigDict) -> Experiment:
    """Reads a whole config, and raises `UserError` on the first thing wrong with it."""
    return experiment(assemble(config))


def experiment(parts: Parts) -> Experiment:
    """Offline distillation, from its parts; raises `UserError` likewise."""
    parts.check()
    config = parts.config
    return Experiment(
        splits=parts.splits,
        devices=parts.devices,
        teacher=parts.teacher,
        student=parts.student,
        seeds=tuple(config.seeds),
        teacher_pretrained=parts.teacher_pretrained,
        cached=parts.cached,
        teacher_note=parts.teacher_note,
        manifest=parts.manifest,
        compute=parts.compute,
        teacher_training=parts.teacher_training,
        student_training=parts.student_training,
        baseline_training=parts.baseline_training,
        inputs=parts.inputs(),
        predict=parts.predict,
        batch_size=config.student.train.batch_size,
        temperature=config.distill.temperature,
        loss_terms=tuple(dict.fromkeys(["hard", "soft", *config.distill.terms])),
        published=plain(config.published),
        export=plain(config.export),
        exported=in_float32(
            {"teacher": parts.teacher, "student": parts.student},
            config,
            lambda section: network(section, parts.splits.train, parts.devices),
        ),
        quantization_aware=lambda path: experiment(quantization_aware(parts, path)),
        config=plain(config),
    )
