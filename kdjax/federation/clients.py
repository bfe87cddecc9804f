"""What clients do with their own examples."""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from kdjax import schedules, steps
from kdjax.federation.messages import Broadcast, Upload
from kdjax.federation.selection import Purpose, key_of
from kdjax.optimizers import OptimizerFn
from kdjax.steps import TrainState, TrainStep
from kdjax.types import HParams

LocalUpdate = Callable[[Broadcast, "Shard", HParams, jax.Array], tuple[Upload, Any]]


@flax.struct.dataclass
class Shard:
    """The examples of one client; of several along a first axis.

    Attributes:
      examples: `image`, `label` and whatever else a step reads, `[most, ...]`.
      size: how many of them count: the first ones. The rest is padding.
    """

    examples: Any
    size: Any


@flax.struct.dataclass
class ClientsState:
    """Models that clients keep to themselves.

    Attributes:
      step: local epochs so far.
      clients: their states, along a first axis.
    """

    step: Any
    clients: Any


def run_epochs(
    train_step: TrainStep,
    state: TrainState,
    teacher_variables: Any,
    shard: Shard,
    hparams: HParams,
    *,
    rng: jax.Array,
    num_epochs: int,
    batch_size: int,
) -> tuple[TrainState, jax.Array]:
    """Trains on a client's own examples, in another order each epoch.

    As many steps as the client's examples need: under `jax.vmap`, those who are done
    wait for the one with the most. The order depends on `rng` and the number of
    examples alone, not on the padding.

    Args:
      train_step: one update.
      state: before it.
      teacher_variables: what the step reads of a teacher.
      shard: the examples; all counts are divided by those that count.
      hparams: the schedules.
      rng: of the order.
      num_epochs: how often each example is seen.
      batch_size: the last batch of an epoch may be smaller.

    Returns:
      The new state, and the mean loss of the examples seen.
    """
    size = shard.size.astype(jnp.int32)
    num_batches = (size + batch_size - 1) // batch_size

    def one_epoch(epoch, carry):
        order = _order(jax.random.fold_in(rng, epoch), shard, batch_size)

        def one_batch(index, carry):
            state, total = carry
            start = index * batch_size
            ids = jax.lax.dynamic_slice_in_dim(order, start, batch_size)
            batch = {name: x[ids] for name, x in shard.examples.items()}
            batch["mask"] = start + jnp.arange(batch_size, dtype=jnp.int32) < size
            state, metrics = train_step(state, teacher_variables, batch, hparams)
            count = jnp.sum(batch["mask"].astype(jnp.float32))
            return state, total + count * metrics["loss"]

        return jax.lax.fori_loop(0, num_batches, one_batch, carry)

    zero = jnp.zeros((), jnp.float32)
    state, total = jax.lax.fori_loop(0, num_epochs, one_epoch, (state, zero))
    return state, total / jnp.maximum(num_epochs * size.astype(jnp.float32), 1.0)


def _order(rng: jax.Array, shard: Shard, batch_size: int) -> jax.Array:
    """Places in the shard, shuffled, those that count first; for whole batches."""
    capacity = len(shard.examples["label"])
    places = jnp.arange(capacity, dtype=jnp.int32)
    # A key for each place, so that the order does not depend on the padding.
    draws = jax.vmap(lambda i: jax.random.bits(jax.random.fold_in(rng, i)))(places)
    last = jnp.asarray(jnp.iinfo(jnp.uint32).max, jnp.uint32)
    order = jnp.argsort(jnp.where(places < shard.size, draws >> 1, last))
    return jnp.pad(order, (0, -capacity % batch_size))


def make_local_update(
    train_step: TrainStep,
    optimizer_fn: OptimizerFn,
    *,
    num_epochs: int,
    batch_size: int,
) -> LocalUpdate:
    """Builds `local_update(broadcast, shard, hparams, rng) -> (Upload, loss)`.

    A client remembers nothing from one round to the next: its optimizer begins anew.
    The loss is for the log; no server reads it.
    """

    def local_update(broadcast, shard, hparams, rng):
        rng, order_rng = jax.random.split(rng)
        state = steps.init_state(broadcast.variables, optimizer_fn, hparams, rng)
        state, loss = run_epochs(
            train_step,
            state,
            broadcast.teacher,
            shard,
            hparams,
            rng=order_rng,
            num_epochs=num_epochs,
            batch_size=batch_size,
        )
        size = shard.size.astype(jnp.float32)
        return Upload(state.eval_variables, size), loss

    return local_update


def make_local_step(
    train_step: TrainStep, *, batch_size: int
) -> Callable[..., tuple[ClientsState, dict[str, jax.Array]]]:
    """Builds the step that trains every client's own model for one local epoch.

    `local_step(state, constants, batch, hparams)`: `constants` hold the `shards` of
    all clients and the variables of their one `teacher`; there is no batch, since
    clients make their own. Schedules are of the epochs.
    """

    def local_step(state, constants, batch, hparams):
        del batch
        hparams = frozen(hparams, state.step)

        def one(client, shard):
            rng = key_of(client.rng, Purpose.ORDER, state.step)
            return run_epochs(
                train_step,
                client,
                constants["teacher"],
                shard,
                hparams,
                rng=rng,
                num_epochs=1,
                batch_size=batch_size,
            )

        shards = constants["shards"]
        clients, losses = jax.vmap(one)(state.clients, shards)
        loss = weighted_mean(losses, shards.size.astype(jnp.float32))
        return ClientsState(state.step + 1, clients), {"loss": loss}

    return local_step


def frozen(hparams: HParams, step: Any) -> HParams:
    """The schedules as they stand at `step`, for the steps within it."""
    values = steps.hyperparameters(hparams, step)
    return {name: schedules.Constant(value) for name, value in values.items()}


def weighted_mean(values: jax.Array, weights: jax.Array) -> jax.Array:
    """The mean, 0 where all weights are."""
    total = jnp.sum(jnp.where(weights > 0, values * weights, 0))
    return total / jnp.maximum(jnp.sum(weights), 1.0)
