"""Students that train together: their states, and which of them go on."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from kdjax.steps import Metrics, TrainState, TrainStep
from kdjax.types import Batch, HParams, Variables

Shape: TypeAlias = tuple[int, int] | None
"""Students as `[batches, students of a batch]`, stacked; None: one after another."""

GOING = -1


@flax.struct.dataclass
class Pool:
    """What students that train together must save to resume.

    Attributes:
      each: their states: one with two leading axes, or a tuple of single ones.
      stopped: the step at which each was frozen, `GOING` for those that go on;
        int32 `[batches, students of a batch]`, or a tuple of scalars.
      step: updates made so far by those that go on.
    """

    each: Any
    stopped: Any
    step: Any

    @property
    def stacked(self) -> bool:
        return not isinstance(self.each, tuple)


def shape_of(seeds: Sequence[int]) -> tuple[int, int]:
    """How students of these seeds share batches: neighbours of one seed see one.

    Examples:
      >>> shape_of([0, 0, 0, 1, 1, 1])
      (2, 3)
      >>> shape_of([0, 0, 0, 1, 1])
      (5, 1)
    """
    for size in range(len(seeds), 0, -1):
        parts = [seeds[i : i + size] for i in range(0, len(seeds), size)]
        if len(seeds) % size == 0 and all(len(set(part)) == 1 for part in parts):
            return len(parts), size
    return 0, 0


def init(states: Sequence[TrainState], stopped: Sequence[int], shape: Shape) -> Pool:
    """The pool of single states, each of which has made the same number of steps.

    Args:
      states: those of the students.
      stopped: of each, the step at which it was frozen, or `GOING`.
      shape: how they share batches.
    """
    step = jnp.asarray(max(int(state.step) for state in states), jnp.int32)
    frozen = jnp.asarray(stopped, jnp.int32)
    if shape is None:
        return Pool(tuple(states), tuple(frozen), step)
    return Pool(stack(states, shape), frozen.reshape(shape), step)


def stack(trees: Sequence[Any], shape: tuple[int, int]) -> Any:
    """Trees of arrays as one, with two leading axes."""

    def one(*leaves: Any) -> jax.Array:
        stacked = jnp.stack([jnp.asarray(x) for x in leaves])
        return stacked.reshape(*shape, *stacked.shape[1:])

    return jax.tree.map(one, *trees)


def unstack(pool: Pool) -> list[tuple[TrainState, int]]:
    """The states of the single students, and when each was frozen."""
    stopped = [int(x) for x in np.asarray(jnp.asarray(pool.stopped)).ravel()]
    if not pool.stacked:
        return list(zip(pool.each, stopped, strict=True))
    flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), pool.each)
    states = [jax.tree.map(lambda x, i=i: x[i], flat) for i in range(len(stopped))]
    return list(zip(states, stopped, strict=True))


def guard(
    train_step: TrainStep,
) -> Callable[
    [TrainState, jax.Array, Variables, Batch, HParams],
    tuple[TrainState, jax.Array, Metrics],
]:
    """A step that freezes a student whose loss or gradient is no longer finite.

    Returns:
      A function of state, `stopped`, the teacher's variables, batch and schedules. It
      returns the state, `stopped` and the metrics: zero for one that is frozen, and
      `'training'`, 1 for one that goes on. What others compute is as it would be.
    """

    def guarded(state, stopped, teacher_variables, batch, hparams):
        new, metrics = train_step(state, teacher_variables, batch, hparams)
        finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["grad_norm"])
        going = (stopped == GOING) & finite
        stopped = jnp.where((stopped == GOING) & ~finite, state.step, stopped)
        kept = jax.tree.map(lambda new, old: jnp.where(going, new, old), new, state)
        metrics = {**metrics, "training": jnp.ones((), jnp.float32)}
        zeroed = {k: jnp.where(going, x, jnp.zeros_like(x)) for k, x in metrics.items()}
        return kept, stopped, zeroed

    return guarded


def mean_of_going(metrics: Mapping[str, Any]) -> Metrics:
    """The means over the students that go on; of `'training'` their number."""
    number = jnp.sum(metrics["training"])
    means = {k: jnp.sum(x) / jnp.maximum(number, 1.0) for k, x in metrics.items()}
    return {**means, "training": number}
