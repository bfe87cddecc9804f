"""A chain of teachers from a config: each network teaches the next smaller one."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from kdjax import networks, parallel, steps, teacher_cache
from kdjax.builders._checks import plain
from kdjax.builders._networks import network, with_model
from kdjax.builders._parts import Parts, assemble
from kdjax.data import sources
from kdjax.training import Training
from kdjax.types import UserError, Variables

TEACHER, STUDENT = "teacher", "student"


@dataclasses.dataclass(frozen=True)
class Link:
    """One network that learns from another.

    Attributes:
      cached: whether the teaching network is read from a cache.
      manifest: makes the cache's manifest from that network's variables.
      compute: makes, from its variables, what the cache is filled with.
      training: makes the training of a seed, from those variables and the open cache.
      inputs: what the result depends on, apart from them; JSON-able.
    """

    cached: bool
    manifest: Callable[[Variables], teacher_cache.Manifest]
    compute: Callable[[Variables], Callable[[np.ndarray, int], np.ndarray]]
    training: Callable[[int, Variables, teacher_cache.Cache | None], Training]
    inputs: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Chains of teachers, ready to run.

    Attributes:
      splits: train, validation and test.
      devices: where programs run.
      networks: by name: `'teacher'`, the assistants, `'student'`.
      assistants: their names, from the largest to the smallest.
      paths: every choice of assistants between teacher and student, shortest first.
      seeds: one chain of each kind for every seed; the teacher is one.
      teacher_training: makes the training of the teacher.
      link: from the names of two networks to how the one teaches the other.
      baseline_training: makes that of a student without a teacher.
      inputs: of `teacher` and `baseline`: what they depend on; JSON-able.
      predict: by name, the compiled inference.
      batch_size: of inference.
      published: what the literature reports.
      config: the whole config, for the report.
    """

    splits: sources.Splits
    devices: parallel.Parallel
    networks: Mapping[str, networks.Network]
    assistants: tuple[str, ...]
    paths: tuple[tuple[str, ...], ...]
    seeds: tuple[int, ...]
    teacher_training: Callable[[], Training]
    link: Callable[[str, str], Link]
    baseline_training: Callable[[int], Training]
    inputs: Mapping[str, Mapping[str, Any]]
    predict: Mapping[str, Callable[[Variables, Any], np.ndarray]]
    batch_size: int
    published: Mapping[str, Any]
    config: Mapping[str, Any]


def build(config: ConfigDict) -> Experiment:
    """Reads a whole config, and raises `UserError` on the first thing wrong with it."""
    parts = assemble(config)
    check(config)
    chain = tuple(config.assistants.chain)
    nets = {TEACHER: parts.teacher}
    for name in chain:
        section = with_model(config.student, config.assistants.models[name])
        nets[name] = network(section, parts.splits.train, parts.devices)
    nets[STUDENT] = parts.student
    predict = {
        name: parts.devices.predict_program(steps.make_predict_step(net.apply))
        for name, net in nets.items()
    }
    link = functools.cache(functools.partial(_link, parts, nets, predict))
    for above, below in itertools.pairwise(nets):
        link(above, below)  # A mistake shows before the first stage.
    return Experiment(
        splits=parts.splits,
        devices=parts.devices,
        networks=nets,
        assistants=chain,
        paths=_paths(chain),
        seeds=tuple(config.seeds),
        teacher_training=parts.teacher_training,
        link=link,
        baseline_training=parts.baseline_training,
        inputs=parts.inputs(),
        predict=predict,
        batch_size=config.student.train.batch_size,
        published=plain(config.published),
        config=plain(config),
    )


def check(config: ConfigDict) -> None:
    """Raises `UserError` on the first thing wrong with the section."""
    names, chain = list(config.assistants.models), list(config.assistants.chain)
    if not names or {TEACHER, STUDENT} & set(names):
        raise UserError(
            "Expected assistants.models to have one or more models by name, none of "
            f"them called {TEACHER!r} or {STUDENT!r}, got {names}."
        )
    if not chain or set(chain) - set(names) or len(set(chain)) < len(chain):
        raise UserError(
            "Expected assistants.chain to name some of assistants.models, each once, "
            f"the largest first: {', '.join(names)}; got {chain}."
        )


def _paths(assistants: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
    """Every choice of assistants, in their order, by length.

    Examples:
      >>> from kdjax.builders.assistants import _paths
      >>> _paths(("large", "small"))
      ((), ('large',), ('small',), ('large', 'small'))
    """
    lengths = range(len(assistants) + 1)
    chosen = (itertools.combinations(assistants, n) for n in lengths)
    return tuple(itertools.chain.from_iterable(chosen))


def _link(
    parts: Parts,
    nets: Mapping[str, networks.Network],
    predict: Mapping[str, Callable[[Variables, Any], np.ndarray]],
    above: str,
    below: str,
) -> Link:
    """The offline distillation of one pair; its programs are its own."""
    pair = dataclasses.replace(
        parts,
        teacher=nets[above],
        student=nets[below],
        predict={"teacher": predict[above], "student": predict[below]},
        programs={},
    )
    pair.check()
    inputs = dict(parts.inputs()["student"])
    if below != STUDENT:
        inputs["model"] = plain(parts.config.assistants.models[below])
    return Link(
        cached=pair.cached,
        manifest=pair.manifest,
        compute=pair.compute,
        training=pair.student_training,
        inputs=inputs,
    )
