"""Students who learn together: one state, and one pure step that updates them all.

Each peer minimises a loss of its own, in which the others' predictions on the same
batch stand in for a teacher's. Peers of one architecture are one stacked `TrainState`,
mapped over; several architectures are several such groups.
"""

import dataclasses
import functools
import itertools
from collections.abc import Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from kdjax import losses, members
from kdjax.steps import TrainState, TrainStep
from kdjax.types import ApplyFn, Batch, Outputs, Values, Variables

UPDATES = ("simultaneous", "alternating")


@flax.struct.dataclass
class CohortState:
    """What a cohort must save to resume.

    Attributes:
      step: updates made so far, an int32 scalar.
      groups: of each architecture the states of its peers, stacked along a first axis.
    """

    step: Any
    groups: tuple[TrainState, ...]


@dataclasses.dataclass(frozen=True)
class Group:
    """The peers of one architecture.

    Attributes:
      apply_fn: the model.
      train_step: of one peer; its teacher is `read_peers`.
      members: which peers of the cohort these are, counted from 0.
    """

    apply_fn: ApplyFn
    train_step: TrainStep
    members: tuple[int, ...]


def init_state(peers: Sequence[TrainState], groups: Sequence[Group]) -> CohortState:
    """The state of a cohort before its first step, from those of its peers."""
    return CohortState(
        step=jnp.zeros((), jnp.int32), groups=_stack(list(peers), groups)
    )


def read_peers(variables: Variables, batch: Batch, values: Values) -> Outputs:
    """The others' logits, `[B, peers, num_classes]`, as a teacher's."""
    del variables, values
    return Outputs(logits=batch["peer_logits"])


def make_train_step(groups: Sequence[Group], *, update: str) -> TrainStep:
    r"""Builds the step of a cohort, `train_step(state, constants, batch, hparams)`.

    Simultaneous: every peer sees the others as they were before the step. Alternating,
    the paper's Algorithm 1: peer :math:`k` sees the peers before it as they have just
    been updated, on the same batch.

    The peers predict in training mode, as the losses of their own see them.

    Args:
      groups: every peer is a member of one.
      update: `'simultaneous'` or `'alternating'`.

    Returns:
      The pure step; its metrics are the means over the peers.

    References:
      Zhang et al., `Deep Mutual Learning <https://arxiv.org/abs/1706.00384>`_, CVPR
      2018, Algorithm 1.
    """
    run = {"simultaneous": _simultaneous, "alternating": _alternating}[update]

    def train_step(state, constants, batch, hparams):
        new, metrics = run(tuple(groups), state, constants, batch, hparams)
        return CohortState(state.step + 1, new), jax.tree.map(jnp.mean, metrics)

    return train_step


def _simultaneous(groups, state, constants, batch, hparams):
    own = []
    for group, peers in zip(groups, state.groups, strict=True):
        predict = members.vmap(functools.partial(_predict, group), (0, None, None))
        own.append(predict(peers, batch, state.step))
    logits = _in_order(own, groups)
    new, metrics = [], []
    for group, peers in zip(groups, state.groups, strict=True):
        seen = jnp.stack([_others(logits, k) for k in group.members])

        def one(peer, peer_logits, group=group):
            own_batch = {**batch, "peer_logits": peer_logits}
            return group.train_step(peer, constants, own_batch, hparams)

        updated, means = members.vmap(one, (0, 0))(peers, seen)
        new.append(updated)
        metrics.append(means)
    return tuple(new), jax.tree.map(lambda *x: jnp.concatenate(x), *metrics)


def _alternating(groups, state, constants, batch, hparams):
    peers = _unstack(state.groups, groups)
    group_of = {k: group for group in groups for k in group.members}
    logits = [
        _predict(group_of[k], peer, batch, state.step) for k, peer in enumerate(peers)
    ]
    metrics = []
    for k, peer in enumerate(peers):
        own_batch = {**batch, "peer_logits": _others(jnp.stack(logits), k)}
        peers[k], means = group_of[k].train_step(peer, constants, own_batch, hparams)
        logits[k] = _predict(group_of[k], peers[k], batch, state.step)
        metrics.append(means)
    return _stack(peers, groups), members.stack(metrics)


def _predict(group: Group, peer: TrainState, batch: Batch, step: Any) -> jax.Array:
    """A peer's logits in training mode, with the key that its own step has."""
    variables = {"params": peer.params, **peer.model_state}
    rng = jax.random.fold_in(peer.rng, step)
    outputs, _ = group.apply_fn(variables, batch["image"], train=True, rng=rng)
    return outputs.logits


def _others(logits: jax.Array, peer: int) -> jax.Array:
    """`[K, B, C]` without one peer, the examples first: `[B, K - 1, C]`."""
    others = np.delete(np.arange(len(logits)), peer)
    return jnp.moveaxis(logits[others], 0, 1)


def _in_order(stacks: Sequence[Any], groups: Sequence[Group]) -> jax.Array:
    """Arrays `[members, ...]` of the groups as one of all peers, `[K, ...]`."""
    place = np.argsort([k for group in groups for k in group.members])
    return jnp.concatenate(stacks)[place]


def _stack(
    peers: Sequence[TrainState], groups: Sequence[Group]
) -> tuple[TrainState, ...]:
    return tuple(members.stack([peers[k] for k in group.members]) for group in groups)


def _unstack(stacks: Sequence[TrainState], groups: Sequence[Group]) -> list[TrainState]:
    found = {
        k: members.member(stack, i)
        for stack, group in zip(stacks, groups, strict=True)
        for i, k in enumerate(group.members)
    }
    return [found[k] for k in sorted(found)]


def eval_variables(state: CohortState, groups: Sequence[Group]) -> list[Variables]:
    """What each peer is evaluated and kept with."""
    return [peer.eval_variables for peer in _unstack(state.groups, groups)]


def make_predict_step(groups: Sequence[Group]) -> Any:
    """Builds `predict_step({'groups': ...}, images) -> logits [B, K, num_classes]`.

    The variables are those of `state.groups`, as `eval_variables` of each has them.
    """

    def predict_step(variables, images):
        stacks = []
        for group, own in zip(groups, variables["groups"], strict=True):
            predict = members.vmap(functools.partial(_predict_logits, group), (0, None))
            stacks.append(predict(own, images))
        return jnp.moveaxis(_in_order(stacks, groups), 0, 1)

    return predict_step


def _predict_logits(group: Group, variables: Variables, images: Any) -> jax.Array:
    return group.apply_fn(variables, images, train=False)[0].logits


def scores(logits: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """How good the peers are, alone and together, and how different.

    Args:
      logits: of all peers, `[K, N, num_classes]`.
      labels: integer classes, `[N]`.

    Returns:
      `accuracy`, one for each peer; `ensemble_accuracy`, of their mean probabilities;
      and `disagreement`, the fraction of examples on which two peers differ, in the
      mean over the pairs of them.
    """
    predictions = logits.argmax(axis=-1)
    pairs = itertools.combinations(predictions, 2)
    ensemble = np.asarray(losses.average_probs(jnp.asarray(logits)))
    return {
        "accuracy": np.mean(predictions == labels, axis=-1).tolist(),
        "ensemble_accuracy": float(np.mean(ensemble.argmax(axis=-1) == labels)),
        "disagreement": float(np.mean([np.mean(x != y) for x, y in pairs])),
    }
