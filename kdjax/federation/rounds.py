"""A round of a federation whose clients share parameters."""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from kdjax import losses, steps
from kdjax.federation import messages, selection
from kdjax.federation.clients import LocalUpdate, Shard, frozen, weighted_mean
from kdjax.federation.messages import Broadcast, Upload
from kdjax.federation.selection import Purpose
from kdjax.federation.server import Fuse
from kdjax.types import Variables

SERVER = "server."  # Begins the names of the server's own schedules.


@flax.struct.dataclass
class ServerState:
    """All that a server must save to go on after it was killed.

    Attributes:
      step: rounds so far, an int32 scalar.
      variables: of the global model.
      history: the last global models, the newest first, along a first axis; empty
        where clients are not held near them.
      rng: the key that those of every round are folded from.
    """

    step: Any
    variables: Any  # As of every state, whatever `jax.tree.map` is mapped to.
    history: Any
    rng: Any


def init_server(variables: Variables, rng: jax.Array, *, memory: int) -> ServerState:
    """The state before the first round; `memory` models will be remembered."""

    def remember(x: jax.Array) -> jax.Array:
        return jnp.zeros((memory, *x.shape), x.dtype).at[0].set(x)

    return ServerState(
        step=jnp.zeros((), jnp.int32),
        variables=variables,
        history=jax.tree.map(remember, variables) if memory else {},
        rng=rng,
    )


def make_round_step(
    local_update: LocalUpdate,
    make_fuse: Callable[[Any], Fuse],
    *,
    num_clients: int,
    num_participants: int,
    num_devices: int = 1,
    place: Callable[[Any], Any] = lambda tree: tree,
) -> Callable[..., tuple[ServerState, dict[str, jax.Array]]]:
    """Builds `round_step(state, constants, batch, hparams)`.

    The participants of a round, and who of them drops out before the upload arrives,
    are functions of the state's key and the round. Weights are the numbers of examples
    of those who arrived; where nobody did, the global model stays. `constants` hold
    the `shards` of all clients and the server's `pool`; there is no batch.

    Args:
      local_update: what a client does with a `Broadcast` and its `Shard`.
      make_fuse: from the pool to what the server does with the uploads.
      num_clients: in the federation.
      num_participants: of each round.
      num_devices: over which the participants are split evenly: as many as are
        missing are added, without examples and without a weight.
      place: puts arrays of participants on the devices.

    Returns:
      The step; its metrics are the clients' `loss`, weighted, and how many `arrived`.
    """
    ghosts = -num_participants % num_devices

    def round_step(state, constants, batch, hparams):
        del batch
        clients = selection.participants(
            state.rng, state.step, num_clients, num_participants
        )
        clients = jnp.pad(clients, (0, ghosts))
        is_real = jnp.arange(num_participants + ghosts) < num_participants
        shards = jax.tree.map(lambda x: x[clients], constants["shards"])
        shards = shards.replace(size=jnp.where(is_real, shards.size, 0))
        clients, shards = place((clients, shards))
        message = broadcast(state)
        uploads, client_losses = jax.vmap(
            lambda client, shard: work(
                local_update, message, client, shard, state.rng, state.step, hparams
            )
        )(clients, shards)
        dropout = steps.hyperparameters(hparams, state.step)["dropout"]
        here = selection.arrivals(state.rng, state.step, clients, dropout) & is_real
        weights = jnp.where(here, uploads.num_examples, 0)
        new = serve(make_fuse(constants["pool"]), state, uploads, weights, hparams)
        metrics = {
            "loss": weighted_mean(client_losses, weights),
            "arrived": jnp.sum(here.astype(jnp.float32)),
        }
        return new, metrics

    return round_step


def broadcast(state: ServerState) -> Broadcast:
    """What the server sends in a round: its model, and the mean of its last ones.

    Of the latter as many as it remembers, or as there have been.
    """
    teacher: Variables = {}
    if state.history:
        memory = len(jax.tree.leaves(state.history)[0])
        known = (jnp.arange(memory) <= state.step).astype(jnp.float32)
        teacher = losses.federated_average(state.history, weights=known)
    return Broadcast(state.variables, teacher)


def work(
    local_update: LocalUpdate,
    message: Broadcast,
    client: jax.Array | int,
    shard: Shard,
    rng: jax.Array,
    round_index: jax.Array | int,
    hparams: Any,
) -> tuple[Upload, jax.Array]:
    """One client's side of a round, and its loss, which no server reads.

    Args:
      local_update: what the client does.
      message: from the server.
      client: its number in the federation.
      shard: its examples.
      rng: the federation's key.
      round_index: counted from 0.
      hparams: the schedules, of the rounds.

    Raises:
      ValueError: if the upload holds anything but variables and a number.
    """
    key = selection.key_of(rng, Purpose.CLIENTS, round_index)
    upload, loss = local_update(
        message, shard, frozen(hparams, round_index), jax.random.fold_in(key, client)
    )
    size = jax.ShapeDtypeStruct((), jnp.float32)
    messages.check(upload, Upload(message.variables, size))
    return upload, loss


def serve(
    fuse: Fuse, state: ServerState, uploads: Upload, weights: jax.Array, hparams: Any
) -> ServerState:
    """The server's side of a round.

    Args:
      fuse: what it does with the uploads.
      state: before the round.
      uploads: along a first axis.
      weights: of these, 0 where an upload did not arrive: it is not looked at.
      hparams: the schedules; the server's own have names that begin with `server.`.
    """
    key = selection.key_of(state.rng, Purpose.SERVER, state.step)
    own_hparams = {
        name.removeprefix(SERVER): schedule
        for name, schedule in hparams.items()
        if name.startswith(SERVER)
    }

    def arrived(upload: jax.Array, old: jax.Array) -> jax.Array:
        is_here = (weights > 0).reshape(-1, *(1,) * old.ndim)
        return jnp.where(is_here, upload, old[None])  # Not even a NaN crosses.

    seen = jax.tree.map(arrived, uploads.variables, state.variables)
    anybody = jnp.any(weights > 0)
    safe_weights = jnp.where(anybody, weights, 1.0)
    fused = fuse(Upload(seen, weights), safe_weights, own_hparams, key)
    variables = jax.tree.map(
        lambda new, old: jnp.where(anybody, new, old), fused, state.variables
    )
    history = jax.tree.map(
        lambda past, new: jnp.concatenate([new[None], past[:-1]]),
        state.history,
        variables if state.history else {},
    )
    return ServerState(state.step + 1, variables, history, state.rng)
