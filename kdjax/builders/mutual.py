"""Mutual learning from a config: cohorts of students, each other's teachers."""

import dataclasses
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from kdjax import cohorts, losses, networks, schedules
from kdjax.builders._checks import expect, plain
from kdjax.builders._networks import network, with_model
from kdjax.builders._objectives import Built, label_objective, optimizer_hparams
from kdjax.builders._parts import Parts, assemble
from kdjax.builders._roles import Role
from kdjax.checkpoints import BEST_METRIC
from kdjax.cohorts import CohortState, Group
from kdjax.data import sources
from kdjax.training import Training, predict_split
from kdjax.types import Batch, Outputs, UserError, Values, Variables

LogitsFn: TypeAlias = Callable[
    [CohortState, sources.Source], tuple[np.ndarray, np.ndarray]
]

PEERS_OF_A_SEED = 1000  # Peer k of a seed starts from the number 1000 * seed + k.


@dataclasses.dataclass(frozen=True)
class Cohort:
    """Students to be trained together, or the same ones each by itself.

    Attributes:
      networks: one for each peer.
      training: makes the training of a seed, with or without mutual learning: the
        same compiled program, in which the weight of the others is an argument.
      logits: those of all peers on a split, `[K, N, num_classes]`, and its labels.
      variables: what each peer is kept with.
      inputs: what the result depends on, with and without mutual learning; JSON-able.
    """

    networks: tuple[networks.Network, ...]
    training: Callable[[int, bool], Training]
    logits: LogitsFn
    variables: Callable[[CohortState], list[Variables]]
    inputs: Callable[[bool], Mapping[str, Any]]


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Mutual learning, ready to run.

    Attributes:
      splits: train, validation and test.
      seeds: one cohort of each kind for every seed.
      sizes: of the cohorts of equal students, ascending.
      cohorts: by name: `'peers2'`, `'peers3'`..., and `'mixed'` if there are partners.
      published: what the literature reports.
      config: the whole config, for the report.
    """

    splits: sources.Splits
    seeds: tuple[int, ...]
    sizes: tuple[int, ...]
    cohorts: Mapping[str, Cohort]
    published: Mapping[str, Any]
    config: Mapping[str, Any]


def build(config: ConfigDict) -> Experiment:
    """Reads a whole config, and raises `UserError` on the first thing wrong with it."""
    parts = assemble(config)
    check(config)
    sizes = tuple(sorted(config.mutual.sizes))
    student = config.student.model
    models = {f"peers{size}": [student] * size for size in sizes}
    if config.mutual.partners:
        models["mixed"] = [student, *config.mutual.partners.values()]
    roles = _roles(parts, [student, *config.mutual.partners.values()])
    return Experiment(
        splits=parts.splits,
        seeds=tuple(config.seeds),
        sizes=sizes,
        cohorts={
            name: _cohort(parts, name, who, roles) for name, who in models.items()
        },
        published=plain(config.published),
        config=plain(config),
    )


def check(config: ConfigDict) -> None:
    """Raises `UserError` on the first value out of its range."""
    updates = cohorts.UPDATES
    expect(config, "mutual.updates", lambda x: x in updates, f"one of {updates}")
    expect(config, "mutual.weight", lambda x: x > 0, "a positive number")
    expect(config, "mutual.temperature", lambda x: x > 0, "a positive number")
    expect(
        config,
        "mutual.sizes",
        lambda x: min(x, default=2) >= 2 and len(set(x)) == len(x),
        "different numbers of at least 2 students",
    )
    if not config.mutual.sizes and not config.mutual.partners:
        raise UserError(
            "Expected mutual.sizes or mutual.partners to say who learns together, got "
            "neither: for example --config.mutual.sizes='(2,)'."
        )


def _roles(parts: Parts, models: Sequence[ConfigDict]) -> dict[str, Role]:
    """How a peer of each architecture is trained, each built once."""
    config = parts.config
    built = _objective(config)
    roles = {}
    for model in models:
        if _key(model) not in roles:
            section = with_model(config.student, model)
            net = network(section, parts.splits.train, parts.devices)
            roles[_key(model)] = Role(
                "peer", net, config.student.train, built, cohorts.read_peers
            )
    return roles


def _key(model: ConfigDict) -> str:
    return json.dumps(plain(model), sort_keys=True)


def _cohort(
    parts: Parts, name: str, models: Sequence[ConfigDict], roles: Mapping[str, Role]
) -> Cohort:
    """Students of the given models, in this order, grouped by architecture."""
    config = parts.config
    keys = [_key(model) for model in models]
    groups = [
        Group(
            roles[key].network.apply,
            roles[key].train_step(parts.devices.axis_name),
            tuple(k for k, other in enumerate(keys) if other == key),
        )
        for key in dict.fromkeys(keys)
    ]
    of_peer = [roles[key] for key in keys]
    predict = parts.devices.predict_program(cohorts.make_predict_step(groups))

    def logits(state: CohortState, split: sources.Source) -> Any:
        variables = {"groups": tuple(g.eval_variables for g in state.groups)}
        size = config.student.train.batch_size
        found, labels = predict_split(predict, variables, split, size)
        return np.moveaxis(found, 1, 0), labels

    def inputs(together: bool) -> dict[str, Any]:
        settings = plain(config.mutual)
        kept = {k: settings[k] for k in ("updates", "weight", "temperature")}
        own = parts.inputs()["baseline"]
        return own | {
            "peers": plain(list(models)),
            "mutual": kept if together else None,
        }

    return Cohort(
        networks=tuple(role.network for role in of_peer),
        training=functools.partial(_training, parts, name, of_peer, groups, logits),
        logits=logits,
        variables=functools.partial(cohorts.eval_variables, groups=groups),
        inputs=inputs,
    )


def _training(
    parts: Parts,
    cohort: str,
    roles: Sequence[Role],
    groups: Sequence[Group],
    logits: LogitsFn,
    seed: int,
    together: bool,
) -> Training:
    train, mutual = parts.config.student.train, parts.config.mutual
    steps_per_epoch = len(parts.splits.train) // train.batch_size
    hparams = {
        **optimizer_hparams(train, steps_per_epoch),
        **roles[0].built.hparams,
        "mutual_weight": schedules.Constant(mutual.weight if together else 0.0),
        "mutual_temperature": schedules.Constant(mutual.temperature),
    }

    def init() -> CohortState:
        first = PEERS_OF_A_SEED * seed
        peers = [r.init_state(first + k, hparams) for k, r in enumerate(roles)]
        return cohorts.init_state(peers, groups)

    return parts.custom_training(
        key=cohort,
        name=f"{cohort} {'together' if together else 'alone'}, seed {seed}",
        train=train,
        seed=seed,
        init=init,
        train_step=cohorts.make_train_step(groups, update=mutual.updates),
        constants={},
        hparams=hparams,
        evaluate=functools.partial(_evaluate, parts.splits.validation, logits),
    )


def _evaluate(
    validation: sources.Source, logits: LogitsFn, state: CohortState
) -> dict[str, float]:
    """How good and how different the peers are; nothing without a validation split."""
    if not len(validation):
        return {}
    found = cohorts.scores(*logits(state, validation))
    each = found.pop("accuracy")
    by_peer = {f"validation_accuracy_{k}": x for k, x in enumerate(each)}
    of_all = {f"validation_{name}": x for name, x in found.items()}
    return {BEST_METRIC: float(np.mean(each)), **by_peer, **of_all}


def _objective(config: ConfigDict) -> Built:
    r"""Labels and peers: :math:`\mathrm{CE}(y, p^i) + w \, \ell_i`."""
    built = label_objective(config.student.train)

    def objective(
        student: Outputs, peers: Outputs, batch: Batch, values: Values
    ) -> dict[str, jax.Array]:
        terms = built.objective(student, peers, batch, values)
        mutual = losses.mutual_loss(
            student.logits,
            jnp.moveaxis(peers.logits, 1, 0),
            temperature=values["mutual_temperature"],
            where=batch["mask"],
        )
        loss = terms["loss"] + values["mutual_weight"] * mutual
        return {**terms, "mutual": mutual, "loss": loss}

    return built._replace(objective=objective)
