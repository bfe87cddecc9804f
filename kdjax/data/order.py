"""The order of examples: a pure function of the seed and the epoch.

Randomness is addressed, not streamed: a key is folded from the seed, the purpose it
serves, and what it is for, so that any device, host or later run makes the same one.
"""

import enum
import functools
from typing import TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, UInt32

Step = TypeVar("Step", jax.Array, int)


class Purpose(enum.IntEnum):
    """What a key is for: keys of different purposes are independent.

    The numbers are part of what a teacher cache was made from: never change them.
    """

    ORDER = 1
    AUGMENT = 2
    PARTNER = 3
    NOISE = 4
    GENERATOR = 5


def purpose_key(seed: int, purpose: Purpose) -> jax.Array:
    """The key of one purpose; the generator is fixed, whatever JAX's default is."""
    with jax.ensure_compile_time_eval():  # A constant of the programs that use it.
        return jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), purpose)


def permutation(
    seed: int, epoch: jax.Array | int, num_examples: int
) -> Int[Array, " num_examples"]:
    """The example ids of one epoch in their order.

    Args:
      seed: of the order; another one for each run that shall see another order.
      epoch: counted from 0.
      num_examples: how many ids there are.

    Returns:
      Every id once, int32 `[num_examples]`.

    Examples:
      >>> from kdjax.data import order
      >>> sorted(order.permutation(0, 3, 5).tolist())
      [0, 1, 2, 3, 4]
    """
    key = jax.random.fold_in(purpose_key(seed, Purpose.ORDER), epoch)
    return _permutation(key, num_examples)


# Compiled once for all seeds and epochs.
@functools.partial(jax.jit, static_argnames="num_examples")
def _permutation(key: jax.Array, num_examples: int) -> jax.Array:
    return jax.random.permutation(key, jnp.arange(num_examples, dtype=jnp.int32))


def steps_per_epoch(num_examples: int, batch_size: int) -> int:
    """Whole batches in an epoch; what remains is left out, others in every epoch.

    Raises:
      ValueError: if there is not one whole batch.

    Examples:
      >>> from kdjax.data import order
      >>> order.steps_per_epoch(1437, 128)
      11
    """
    if not 0 < batch_size <= num_examples:
        raise ValueError(
            f"Expected a batch_size from 1 to the {num_examples} examples there are, "
            f"got {batch_size}."
        )
    return num_examples // batch_size


def locate(step: Step, steps_per_epoch: int) -> tuple[Step, Step]:
    """The epoch that a step belongs to, and its place in it; both count from 0.

    Examples:
      >>> from kdjax.data import order
      >>> order.locate(25, 11)
      (2, 3)
    """
    return step // steps_per_epoch, step % steps_per_epoch


def example_bits(
    seed: int, purpose: Purpose, ids: jax.Array, view: jax.Array | int, count: int
) -> UInt32[Array, "batch count"]:
    """Random bits that belong to (seed, purpose, example id, view) and nothing else.

    Args:
      seed: of the views.
      purpose: what the bits are for.
      ids: example ids, integers `[B]`.
      view: which view; a scalar.
      count: how many words of 32 bits. One call makes them all, because a call costs
        more than what it draws.

    Returns:
      uint32 `[B, count]`.
    """
    key = purpose_key(seed, purpose)

    def draw(example_id: jax.Array) -> jax.Array:
        example_key = jax.random.fold_in(key, example_id)
        view_key = jax.random.fold_in(example_key, view)
        return jax.random.bits(view_key, (count,), jnp.uint32)

    return jax.vmap(draw)(ids)
