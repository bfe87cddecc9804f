"""Normal noise in place of data: what generators make images of."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from kdjax.data import order
from kdjax.data.loaders import Inputs
from kdjax.types import Batch


class NoiseLoader:
    """Batches of noise for several trainings at once; a `Loader` that reads no data.

    A value is a pure function of the seed, the step and the example's number: so
    trainings may stop and go on anywhere, on any number of devices, and one seed's
    noise is the same whichever seeds go with it.

    Args:
      seeds: of the trainings.
      shape: of the noise of one example.
      batch_size: over all devices.
      steps_per_epoch: what an epoch shall be, since there is no data to go through.
      place: puts host arrays on the devices.
    """

    def __init__(
        self,
        seeds: Sequence[int],
        shape: Sequence[int],
        batch_size: int,
        steps_per_epoch: int,
        *,
        place: Callable[[Any], Any] = jax.device_put,
    ):
        self.steps_per_epoch = steps_per_epoch
        self._seeds = tuple(seeds)
        self._shape = tuple(shape)
        self._batch_size = batch_size
        self._place = place

    def inputs(self, start_step: int) -> Iterator[Inputs]:
        """The keys of the seeds; the same for every step."""
        del start_step
        keys = [order.purpose_key(seed, order.Purpose.NOISE) for seed in self._seeds]
        yield from itertools.repeat({"key": self._place(jnp.stack(keys))})

    def batch(
        self,
        inputs: Inputs,
        step: jax.Array,
        *,
        index: jax.Array | int = 0,
        count: int = 1,
    ) -> Batch:
        """Entry `noise`, `[examples, seeds, *shape]`."""
        size = self._batch_size // count
        examples = index * size + jnp.arange(size)

        def draw(key: jax.Array, example: jax.Array) -> jax.Array:
            key = jax.random.fold_in(jax.random.fold_in(key, step), example)
            return jax.random.normal(key, self._shape)

        of_seeds = jax.vmap(draw, in_axes=(0, None))
        return {"noise": jax.vmap(of_seeds, in_axes=(None, 0))(inputs["key"], examples)}
