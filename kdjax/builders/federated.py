"""Federated distillation from a config: clients, a server, and what crosses."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from kdjax import networks
from kdjax.builders._checks import plain
from kdjax.builders._federated_checks import by_partition, check
from kdjax.builders._federation import ROUNDS, Federation
from kdjax.builders._fedmd import FedMD, build_fedmd
from kdjax.builders._parts import assemble
from kdjax.builders._personal import Personal
from kdjax.data import sources
from kdjax.federation import Broadcast, ClientsState, ServerState, Upload
from kdjax.training import Training
from kdjax.types import Variables

__all__ = ["ROUNDS", "Experiment", "FedMD", "build"]


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A federation, ready to run.

    Attributes:
      splits: train, which clients divide among them, and test.
      seeds: each with a partition, initial weights and choices of its own.
      methods: that are run, in the order of the report.
      levels: how unequal the clients are, by the name of the partition.
      network: the global model.
      personal_network: a client's own.
      personal_teacher: the method whose global model the clients' own learn from.
      round_training: makes the training of a method, level and seed; a step is a round.
      server: makes the state of a method and seed before the first round.
      client: of a method, level and seed, makes what one client by itself does with a
        broadcast in a round.
      serve: of a method, makes what a server by itself does with uploads and weights.
      personal_training: makes the training of all clients' own models at a level and
        of a seed: from the global model's variables, or without a teacher.
      accuracy: of global variables on the test split, in %.
      personal_scores: of the clients' own models, in %.
      label_counts: examples by client and class, at a level and of a seed.
      traffic: by method the bytes down to and up from one client in a round.
      num_clients: in the federation.
      participants: of a round.
      fedmd: the federation of different architectures, or `None`.
      inputs: by method, level and seed what the result depends on; JSON-able.
      published: by method and level, accuracies.
      accept_gain: by method and level, the least mean gain.
      source: of the published figures.
      rounds: how many.
      config: the whole config, for the report.
    """

    splits: sources.Splits
    seeds: tuple[int, ...]
    methods: tuple[str, ...]
    levels: tuple[str, ...]
    network: networks.Network
    personal_network: networks.Network
    personal_teacher: str
    round_training: Callable[[str, str, int], Training]
    server: Callable[[str, int], ServerState]
    client: Callable[[str, str, int, int], Callable[[Broadcast, int], Upload]]
    serve: Callable[[str], Callable[[ServerState, Upload, np.ndarray], ServerState]]
    personal_training: Callable[[str, int, Variables | None], Training]
    accuracy: Callable[[Variables], float]
    personal_scores: Callable[[ClientsState, str, int], Mapping[str, Any]]
    label_counts: Callable[[str, int], np.ndarray]
    traffic: Mapping[str, tuple[int, int]]
    num_clients: int
    participants: int
    fedmd: FedMD | None
    inputs: Callable[[str, str, int], Mapping[str, Any]]
    published: Mapping[str, Mapping[str, float]]
    accept_gain: Mapping[str, Mapping[str, float]]
    source: str
    rounds: int
    config: Mapping[str, Any]


def build(config: ConfigDict) -> Experiment:
    """Reads a whole config, and raises `UserError` on the first thing wrong with it."""
    parts = assemble(config)
    check(config)
    names = {f"{config.federated.partition}_{x}": x for x in config.federated.levels}
    made = Federation(parts, names)
    made.check()
    personal = Personal(made)
    return Experiment(
        splits=parts.splits,
        seeds=tuple(config.seeds),
        methods=tuple(config.federated.methods),
        levels=tuple(names),
        network=parts.teacher,
        personal_network=parts.student,
        personal_teacher=config.federated.personal_teacher,
        round_training=made.round_training,
        server=made.server,
        client=made.client,
        serve=made.serve,
        personal_training=personal.training,
        accuracy=made.accuracy,
        personal_scores=personal.scores,
        label_counts=made.label_counts,
        traffic=made.traffic(),
        num_clients=config.federated.num_clients,
        participants=made.num_participants,
        fedmd=(
            build_fedmd(parts, made.public)
            if "fedmd" in config.federated.methods
            else None
        ),
        inputs=made.inputs,
        published=by_partition(config.federated.published),
        accept_gain=by_partition(config.federated.accept_gain),
        source=config.published.source,
        rounds=config.federated.rounds,
        config=plain(config),
    )
