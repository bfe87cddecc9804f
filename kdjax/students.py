"""Many students as one: a leading axis of states, trained by one program.

Students of one network that differ in their seeds and their hyperparameters alone are
the rows of one stacked `TrainState`; the step of one, mapped over the rows, updates
them all. Each has an order of the examples of its own, as if it trained by itself.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from kdjax import members
from kdjax.data import order
from kdjax.data.loaders import Inputs, ResidentLoader
from kdjax.steps import TrainState, TrainStep
from kdjax.types import ApplyFn, Batch, HParams, Variables


@flax.struct.dataclass
class Students:
    """What several students must save to resume.

    Attributes:
      each: their states, stacked along a first axis.
      curve: the accuracy on held-out examples at each look so far, from 0 to 1,
        `[looks, students]`; -1 where there was none yet. None without looks.
      best: the variables of each at the look where that was highest, the later of
        equals; None where they aren't kept.
    """

    each: TrainState
    curve: Any
    best: Any

    @property
    def step(self) -> Any:
        """Updates made so far: as many by each."""
        return self.each.step[0]


def init(
    states: Sequence[TrainState], *, num_looks: int = 0, keep_best: bool = False
) -> Students:
    """The state before the first step, from those of the single students.

    Args:
      states: one for each student.
      num_looks: how often the training looks at held-out examples.
      keep_best: whether the variables of the best look are kept.
    """
    each = members.stack(states)
    # A copy: the first step may donate the buffers of the parameters.
    best = jax.tree.map(jnp.copy, each.eval_variables) if keep_best else None
    shape = (num_looks, len(states))
    curve = jnp.full(shape, -1.0, jnp.float32) if num_looks else None
    return Students(each=each, curve=curve, best=best)


def stack_hparams(hparams: Sequence[HParams]) -> HParams:
    """The schedules of several students as one, each number with a first axis."""
    return jax.tree.map(lambda *x: np.stack(x), *hparams)


def make_train_step(
    train_step: TrainStep, apply_fn: ApplyFn, *, look_every: int = 0
) -> TrainStep:
    """Builds `train_step(state, constants, batch, hparams)` of all students.

    Args:
      train_step: of one student.
      apply_fn: the students' network.
      look_every: steps from one look at the held-out examples to the next; 0 for
        none.

    Returns:
      A pure step. Its batch has the examples along the first axis and the students
      along the second; `constants` are `'teacher'`, which every student's own step
      reads, and, for looks, `'held_out'`: `image` and `label`. Its metrics are the
      means over the students.
    """

    def many_steps(state, constants, batch, hparams):
        mapped = jax.vmap(train_step, in_axes=(0, None, 1, 0))
        each, metrics = mapped(state.each, constants["teacher"], batch, hparams)
        state = Students(each=each, curve=state.curve, best=state.best)
        if look_every:
            look = _make_look(apply_fn, constants["held_out"], look_every)
            due = state.step % look_every == 0
            state = jax.lax.cond(due, look, lambda unchanged: unchanged, state)
        return state, jax.tree.map(lambda x: jnp.mean(x, axis=0), metrics)

    return many_steps


def _make_look(
    apply_fn: ApplyFn, held_out: Batch, look_every: int
) -> Callable[[Students], Students]:
    """Writes down how good each student is now, and keeps it if it is its best."""
    predict = make_predict_step(apply_fn)

    def look(state: Students) -> Students:
        variables = state.each.eval_variables
        predictions = jnp.argmax(predict(variables, held_out["image"]), axis=-1)
        right = predictions == held_out["label"][:, None]
        accuracy = jnp.mean(right.astype(jnp.float32), axis=0)
        good = accuracy >= jnp.max(state.curve, axis=0)
        index = state.step // look_every - 1

        def keep(old: jax.Array, new: jax.Array) -> jax.Array:
            chosen = good.reshape(-1, *[1] * (new.ndim - 1))
            return jnp.where(chosen, new, old)

        best = state.best
        if best is not None:
            best = jax.tree.map(keep, best, dict(variables))
        curve = state.curve.at[index].set(accuracy)
        return Students(each=state.each, curve=curve, best=best)

    return look


def make_predict_step(
    apply_fn: ApplyFn,
) -> Callable[[Variables, jax.Array], jax.Array]:
    """Builds `predict_step(variables, images) -> logits [B, students, classes]`."""

    def predict_step(variables, images):
        def one(own):
            outputs, _ = apply_fn(own, images, train=False)
            return outputs.logits

        return jax.vmap(one, out_axes=1)(variables)

    return predict_step


class StudentsLoader:
    """Each student's own order over one resident data set.

    Student i gets the batches that a `ResidentLoader` with its seed gives.

    Args:
      loader: of the data set; its own seed does not matter.
      seeds: of the order, one for each student.
      num_examples: of the data set.
      place: puts arrays on the devices.
    """

    def __init__(
        self,
        loader: ResidentLoader,
        seeds: Sequence[int],
        num_examples: int,
        *,
        place: Callable[[Any], Any] = jax.device_put,
    ):
        self.steps_per_epoch = loader.steps_per_epoch
        self._loader = loader
        self._seeds = tuple(seeds)
        self._num_examples = num_examples
        self._place = place

    def inputs(self, start_step: int) -> Iterator[Inputs]:
        """The same arrays for every step of an epoch; `order` is `[students, N]`."""
        last, orders = -1, None
        steps = itertools.count(start_step)
        for step, arrays in zip(steps, self._loader.inputs(start_step), strict=False):
            epoch, _ = order.locate(step, self.steps_per_epoch)
            if epoch != last:
                last, orders = epoch, self._place(self._orders(epoch))
            yield {**arrays, "order": orders}

    def _orders(self, epoch: int) -> jax.Array:
        found = {
            seed: order.permutation(seed, epoch, self._num_examples)
            for seed in set(self._seeds)
        }
        return jnp.stack([found[seed] for seed in self._seeds])

    def batch(
        self,
        inputs: Inputs,
        step: jax.Array,
        *,
        index: jax.Array | int = 0,
        count: int = 1,
    ) -> Batch:
        """The batches of a step: the examples first, then the students."""

        def one(order: jax.Array) -> Batch:
            own = {**inputs, "order": order}
            return self._loader.batch(own, step, index=index, count=count)

        return jax.vmap(one, out_axes=1)(inputs["order"])
