"""Federated distillation: clients that keep their examples learn from one another.

The stages `rounds`, `personal`, `fedmd` and `report` leave in the work directory:

    workdir/
      rounds/dirichlet_0.1/fedavg/seed0/   inputs.json, checkpoints/, metrics.jsonl,
      rounds/dirichlet_0.1/feddf/seed0/      result.json, variables.safetensors: those
      rounds/dirichlet_0.1/fedgkd/seed0/     of the global model after the last round
      personal/dirichlet_0.1/alone/...     the same of the clients' own models, which
      personal/dirichlet_0.1/personal/...    learn by themselves or from the global one
      fedmd/start/..., fedmd/solo/...      clients of several architectures: before the
      fedmd/fedmd/..., fedmd/pooled/...      rounds, and in each arm
      report/                              report.html, report.json, figures

A round is a step of `kdjax.training.fit`: a server that is killed goes on with the
round after the last one saved, and ends with the same bits.
"""

import functools
import pathlib
from collections.abc import Mapping
from typing import Any

import jax

from kdjax import fingerprints, parallel, pretrained
from kdjax.builders.federated import ROUNDS, Experiment, FedMD, build
from kdjax.federation import ClientsState, PeersState, ServerState
from kdjax.recipes import _federated_report as reporting
from kdjax.recipes import stages as common
from kdjax.types import Variables

__all__ = ["build", "run"]


def run_rounds(experiment: Experiment, workdir: pathlib.Path) -> None:
    """Trains a global model by each method, at each level and of each seed."""
    methods = [method for method in experiment.methods if method in ROUNDS]
    for level in experiment.levels:
        for seed in experiment.seeds:
            for method in methods:
                common.train(
                    experiment.round_training(method, level, seed),
                    reporting.cell(workdir, method, level, seed),
                    experiment.inputs(method, level, seed),
                    functools.partial(_keep_global, experiment),
                )


def _keep_global(
    experiment: Experiment, state: ServerState, directory: pathlib.Path
) -> Mapping[str, Any]:
    common.keep_variables(directory, state.variables)
    return {"accuracy": experiment.accuracy(state.variables)}


def run_personal(experiment: Experiment, workdir: pathlib.Path) -> None:
    """Trains the clients' own models, alone and from what the federation knows."""
    if "personal" not in experiment.methods:
        return
    for level in experiment.levels:
        for seed in experiment.seeds:
            _train_personal(experiment, workdir, level, seed, "alone", None)
            source = experiment.personal_teacher
            directory = reporting.cell(workdir, source, level, seed)
            teacher = common.load_variables(experiment.network, directory)
            _train_personal(experiment, workdir, level, seed, "personal", teacher)


def _train_personal(
    experiment: Experiment,
    workdir: pathlib.Path,
    level: str,
    seed: int,
    kind: str,
    teacher: Variables | None,
) -> None:
    inputs = dict(experiment.inputs(kind, level, seed))
    if teacher is not None:
        inputs["teacher"] = fingerprints.fingerprint_tree(teacher)

    def keep(state: ClientsState, directory: pathlib.Path) -> Mapping[str, Any]:
        common.keep_variables(directory, state.clients.eval_variables)
        return experiment.personal_scores(state, level, seed)

    common.train(
        experiment.personal_training(level, seed, teacher),
        reporting.cell(workdir, kind, level, seed),
        inputs,
        keep,
    )


def run_fedmd(experiment: Experiment, workdir: pathlib.Path) -> None:
    """Trains clients of several architectures: alone, by consensus, on all examples."""
    fedmd = experiment.fedmd
    if fedmd is None:
        return
    for seed in experiment.seeds:
        for arm in reporting.FEDMD_ARMS:
            start = "pooled_start" if arm == "pooled" else "start"
            begun = reporting.fedmd_cell(workdir, start, seed)
            inputs = fedmd.inputs(start, seed)
            keep = functools.partial(_keep_peers, fedmd)
            common.train(fedmd.start(arm, seed), begun, inputs, keep)
            groups = {
                name: pretrained.load(begun / f"{name}.safetensors", like)
                for name, like in fedmd.shapes().items()
            }
            common.train(
                fedmd.rounds(arm, seed, groups),
                reporting.fedmd_cell(workdir, arm, seed),
                {
                    **fedmd.inputs(arm, seed),
                    "start": fingerprints.fingerprint_tree(groups),
                },
                keep,
            )


def _keep_peers(
    fedmd: FedMD, state: PeersState, directory: pathlib.Path
) -> Mapping[str, Any]:
    if parallel.is_main_process():
        for name, variables in jax.device_get(fedmd.by_name(state)).items():
            pretrained.save_safetensors(directory / f"{name}.safetensors", variables)
    return fedmd.scores(state)


run = common.Runner(
    {
        "rounds": run_rounds,
        "personal": run_personal,
        "fedmd": run_fedmd,
    },
    reporting.write,
)
