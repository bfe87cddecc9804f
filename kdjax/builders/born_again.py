"""From a config to generations of one network, each the teacher of the next."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from kdjax import networks
from kdjax.builders._checks import expect, plain
from kdjax.builders._parts import Parts, assemble
from kdjax.data import sources
from kdjax.training import Training, predict_split
from kdjax.types import Variables

GENERATIONS_OF_A_SEED = 1000  # Generation g trains from the number 1000 * seed + g.


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Generations, ready to run.

    Attributes:
      network: of every generation.
      seeds: a line of generations for each.
      num_generations: after the first network, which learns from labels alone.
      training: makes the training of a seed and a generation, from the variables of
        its teacher; without a teacher, from labels alone.
      inputs: what a training with and one without a teacher depend on, by
        `'student'` and `'baseline'`; JSON-able.
      predict: from variables and a split to logits `[N, num_classes]` and labels.
      test: the split that all are judged on.
      config: the whole config, for the report.
    """

    network: networks.Network
    seeds: tuple[int, ...]
    num_generations: int
    training: Callable[[int, int, Variables | None], Training]
    inputs: Mapping[str, Mapping[str, Any]]
    predict: Callable[[Variables, sources.Source], tuple[np.ndarray, np.ndarray]]
    test: sources.Source
    config: Mapping[str, Any]


def build(config: ConfigDict) -> Experiment:
    """Reads a whole config, and raises `UserError` on the first thing wrong with it."""
    name = "born_again.num_generations"
    allowed = range(1, GENERATIONS_OF_A_SEED)
    expect(config, name, lambda x: x in allowed, "a positive number below 1000")
    expect(
        config,
        "teacher.source",
        lambda x: x == "online",
        "'online', as each generation runs its teacher in the step",
    )
    parts = assemble(config)
    # Each learns from one of its own kind: no section of a teacher is read.
    parts = dataclasses.replace(parts, teacher=parts.student)
    parts.check()
    return Experiment(
        network=parts.student,
        seeds=tuple(config.seeds),
        num_generations=config.born_again.num_generations,
        training=functools.partial(_training, parts),
        inputs=parts.inputs(),
        predict=functools.partial(_predict, parts),
        test=parts.splits.test,
        config=plain(config),
    )


def _training(
    parts: Parts, seed: int, generation: int, teacher_variables: Variables | None
) -> Training:
    number = GENERATIONS_OF_A_SEED * seed + generation
    if teacher_variables is None:
        training = parts.baseline_training(number)
        name = "labels alone"
    else:
        training = parts.student_training(number, teacher_variables, None)
        name = "born again"
    name = f"generation {generation} of seed {seed}, {name}"
    return dataclasses.replace(training, name=name)


def _predict(
    parts: Parts, variables: Variables, source: sources.Source
) -> tuple[np.ndarray, np.ndarray]:
    batch_size = parts.config.student.train.batch_size
    variables = parts.devices.replicate(variables)
    return predict_split(parts.predict["student"], variables, source, batch_size)
