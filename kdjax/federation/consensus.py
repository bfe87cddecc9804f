"""A round of FedMD: clients of any architectures share logits on public examples."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from kdjax import losses, steps
from kdjax.federation import messages, selection
from kdjax.federation.clients import Shard, frozen, run_epochs, weighted_mean
from kdjax.federation.messages import PublicLogits
from kdjax.federation.selection import Purpose
from kdjax.optimizers import OptimizerFn
from kdjax.steps import TrainStep
from kdjax.types import ApplyFn, HParams, Variables


@flax.struct.dataclass
class PeersState:
    """The models of all clients, which stay with them.

    Attributes:
      step: rounds so far.
      groups: the variables of each group's clients, along a first axis.
      rng: the key that those of every round are folded from.
    """

    step: Any
    groups: Any
    rng: Any


@dataclasses.dataclass(frozen=True)
class Group:
    """The clients of one architecture.

    Attributes:
      clients: their numbers in the federation.
      apply_fn: the model.
      label_step: trains it on labels.
      digest_step: trains it on the consensus, `teacher_logits` of the batch.
      optimizer_fn: that of both steps.
    """

    clients: tuple[int, ...]
    apply_fn: ApplyFn
    label_step: TrainStep
    digest_step: TrainStep
    optimizer_fn: OptimizerFn


@dataclasses.dataclass(frozen=True)
class Epochs:
    """How long clients train, and in batches of which size."""

    num_epochs: int
    batch_size: int


def make_start_step(
    groups: Sequence[Group], public: Epochs, private: Epochs
) -> Callable[..., tuple[PeersState, dict[str, jax.Array]]]:
    """Builds the step that comes before all rounds: transfer learning.

    Every client learns the labelled public examples, one epoch a step; in the step
    after these it learns its own.
    """

    def start_step(state, constants, batch, hparams):
        del batch
        hparams = frozen(hparams, state.step)

        def learn(epochs, shards, axis):
            def one(group, variables, shard, rng):
                return _learn(group, variables, shard, hparams, rng, epochs)

            return lambda: _each(groups, state, shards, axis, one)

        new, loss = jax.lax.cond(
            state.step < public.num_epochs,
            learn(
                dataclasses.replace(public, num_epochs=1),
                [constants["public"]] * len(groups),
                None,
            ),
            learn(private, constants["shards"], 0),
        )
        return state.replace(step=state.step + 1, groups=new), {"loss": loss}

    return start_step


def make_consensus_step(
    groups: Sequence[Group],
    digest: Epochs,
    revisit: Epochs,
    *,
    num_public: int,
    shares: bool = True,
) -> Callable[..., tuple[PeersState, dict[str, jax.Array]]]:
    """Builds `consensus_step(state, constants, batch, hparams)`, a round.

    All clients predict this round's public examples and send the logits. The mean of
    those that arrived comes back; each client learns it (digest), then its own
    examples again (revisit). A client that drops out keeps its model as it was.

    Args:
      groups: of the clients.
      digest: of the public examples.
      revisit: of the private ones.
      num_public: how many public examples a round uses, a multiple of the digest's
        batches.
      shares: whether anything is sent at all; without, each client is alone with its
        own examples.

    Returns:
      The step. `constants` hold `public` and, by group, `shards`; there is no batch.

    References:
      Li and Wang, `FedMD: Heterogenous Federated Learning via Model Distillation
      <https://arxiv.org/abs/1910.03581>`_, 2019, algorithm 1.
    """

    def consensus_step(state, constants, batch, hparams):
        del batch
        hparams = frozen(hparams, state.step)
        everyone = jnp.asarray([c for group in groups for c in group.clients])
        dropout = steps.hyperparameters(hparams, state.step)["dropout"]
        here = selection.arrivals(state.rng, state.step, everyone, dropout)
        lesson = None
        if shares:
            lesson = _agree(
                groups, state, constants["public"], here, num_public, digest
            )

        def one(group, variables, shard, rng):
            rng, digest_rng = jax.random.split(rng)
            new = variables
            if lesson is not None:
                new = _learn(
                    group, new, lesson, hparams, digest_rng, digest, digests=True
                )[0]
            return _learn(group, new, shard, hparams, rng, revisit)

        new, loss = _each(groups, state, constants["shards"], 0, one)
        new = _keep_where(here, new, state.groups)
        metrics = {"loss": loss, "arrived": jnp.sum(here.astype(jnp.float32))}
        return state.replace(step=state.step + 1, groups=new), metrics

    return consensus_step


def _agree(groups, state, public, here, num_public, digest) -> Shard:
    """The server's side: public images with the mean of the logits that arrived."""
    key = selection.key_of(state.rng, Purpose.PUBLIC, state.step)
    places = jnp.arange(len(public.examples["label"]), dtype=jnp.int32)
    ids = jax.random.permutation(key, places)[:num_public]
    images = public.examples["image"][ids]
    uploads = [
        _predict(group, variables, images, digest.batch_size)
        for group, variables in zip(groups, state.groups, strict=True)
    ]
    everyones = jnp.concatenate([upload.logits for upload in uploads])
    # Where nobody arrived nobody learns: any weights will do.
    weights = jnp.where(jnp.any(here), here.astype(jnp.float32), 1.0)
    consensus = PublicLogits(losses.average_logits(everyones, weights=weights))
    agreed = jax.ShapeDtypeStruct((num_public, everyones.shape[-1]), jnp.float32)
    messages.check(consensus, PublicLogits(agreed))
    return Shard(
        {
            "image": images,
            "label": jnp.zeros(num_public, jnp.int32),  # Not used in a round.
            "teacher_logits": consensus.logits,
        },
        jnp.asarray(num_public, jnp.int32),
    )


def _predict(group, variables, images, batch_size) -> PublicLogits:
    """The clients' side: each client's logits on public images, `[clients, N, C]`."""
    parts = images.reshape(-1, batch_size, *images.shape[1:])

    def one(own):
        logits = jax.lax.map(
            lambda part: group.apply_fn(own, part, train=False)[0].logits, parts
        )
        upload = PublicLogits(logits.reshape(-1, logits.shape[-1]))
        agreed = jax.ShapeDtypeStruct((len(images), logits.shape[-1]), jnp.float32)
        messages.check(upload, PublicLogits(agreed))
        return upload

    return jax.vmap(one)(variables)


def _learn(
    group: Group,
    variables: Variables,
    shard: Shard,
    hparams: HParams,
    rng: jax.Array,
    epochs: Epochs,
    *,
    digests: bool = False,
) -> tuple[Variables, jax.Array]:
    """One client's training, its optimizer begun anew."""
    rng, order_rng = jax.random.split(rng)
    state, loss = run_epochs(
        group.digest_step if digests else group.label_step,
        steps.init_state(variables, group.optimizer_fn, hparams, rng),
        {},
        shard,
        hparams,
        rng=order_rng,
        num_epochs=epochs.num_epochs,
        batch_size=epochs.batch_size,
    )
    return state.eval_variables, loss


def _each(groups, state, shards, axis, one) -> tuple[tuple[Variables, ...], jax.Array]:
    """Calls `one` for every client; new variables by group, and the mean loss."""
    key = selection.key_of(state.rng, Purpose.CLIENTS, state.step)
    results, all_losses = [], []
    for group, variables, shard in zip(groups, state.groups, shards, strict=True):
        keys = jax.vmap(lambda c: jax.random.fold_in(key, c))(
            jnp.asarray(group.clients)
        )
        new, loss = jax.vmap(
            lambda *own, group=group: one(group, *own), in_axes=(0, axis, 0)
        )(variables, shard, keys)
        results.append(new)
        all_losses.append(loss)
    joined = jnp.concatenate(all_losses)
    return tuple(results), weighted_mean(joined, jnp.ones_like(joined))


def _keep_where(here, new, old) -> tuple[Variables, ...]:
    """The new variables of those who are here, the old ones of the others."""
    kept, start = [], 0
    for new_group, old_group in zip(new, old, strict=True):
        count = len(jax.tree.leaves(new_group)[0])
        mask = here[start : start + count]
        start += count
        kept.append(
            jax.tree.map(
                lambda x, y, mask=mask: jnp.where(
                    mask.reshape(-1, *(1,) * (x.ndim - 1)), x, y
                ),
                new_group,
                old_group,
            )
        )
    return tuple(kept)
