"""Who takes part in a round, and who drops out of it: functions of (seed, round)."""

import enum

import jax
import jax.numpy as jnp


class Purpose(enum.IntEnum):
    """What a key of a federation is for."""

    PARTICIPANTS = 1
    ARRIVALS = 2
    CLIENTS = 3
    SERVER = 4
    PUBLIC = 5
    ORDER = 6


def key_of(rng: jax.Array, purpose: Purpose, round_index: jax.Array | int) -> jax.Array:
    """The key of one purpose in one round."""
    return jax.random.fold_in(jax.random.fold_in(rng, purpose), round_index)


def participants(
    rng: jax.Array, round_index: jax.Array | int, num_clients: int, count: int
) -> jax.Array:
    """The clients of a round, `count` different ones, int32 `[count]`."""
    key = key_of(rng, Purpose.PARTICIPANTS, round_index)
    clients = jnp.arange(num_clients, dtype=jnp.int32)
    return jax.random.permutation(key, clients)[:count]


def arrivals(
    rng: jax.Array,
    round_index: jax.Array | int,
    clients: jax.Array,
    dropout: jax.Array | float,
) -> jax.Array:
    """Whether each client's upload arrives, bool `[clients]`.

    Each drops out of a round with probability `dropout`, whoever else takes part.
    """
    key = key_of(rng, Purpose.ARRIVALS, round_index)
    keys = jax.vmap(lambda client: jax.random.fold_in(key, client))(clients)
    return jax.vmap(jax.random.uniform)(keys) >= dropout
