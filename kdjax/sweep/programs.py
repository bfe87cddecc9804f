"""The two forms of a program of many students, with one interface.

`vmap`: the step of one student mapped over all; students that see the same batch share
it, and the teacher's answer to it. `loop`: the program of one student is run for each,
one after another, over that shared batch. On several devices the students of `vmap`
are split over them.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from kdjax.builders.sweep import Group
from kdjax.parallel import AXIS, Parallel
from kdjax.students import StudentsLoader
from kdjax.sweep import pool
from kdjax.sweep.pool import Pool, Shape
from kdjax.types import Batch, HParams


class Program(Protocol):
    """Some steps of a pool in one call, as `kdjax.training` wants a program."""

    def __call__(
        self, state: Pool, constants: Any, hparams: Any, inputs: Any
    ) -> tuple[Pool, Mapping[str, Any]]: ...

    def peak_bytes(self, state: Pool, constants: Any, hparams: Any, inputs: Any) -> int:
        """The memory that a call takes, arguments included; compiles what it must."""
        ...


@dataclasses.dataclass(frozen=True)
class Devices(Parallel):
    """Where the students of a pool lie.

    Attributes:
      shape: of the pool.
    """

    shape: Shape = None

    @property
    def students(self) -> NamedSharding:
        """Splits the students over the devices along an axis that divides."""
        for axis, size in enumerate(self.shape or ()):
            if size % self.num_devices == 0:
                return NamedSharding(self.mesh, PartitionSpec(*[None] * axis, AXIS))
        return self.replicated

    @property
    def of_pool(self) -> Any:
        """Where a pool's parts lie."""
        return Pool(self.students, self.students, self.replicated)

    def replicate(self, tree: Any) -> Any:
        """Puts a pool, or the constants and schedules of one, where they belong."""
        if self.shape is None:
            return jax.device_put(tree, self.replicated)
        if isinstance(tree, Pool):
            return jax.device_put(tree, self.of_pool)
        constants, hparams = tree
        return (
            jax.device_put(constants, self.replicated),
            jax.device_put(hparams, self.students),
        )


def make(
    group: Group, loader: StudentsLoader, devices: Devices, which: Sequence[int]
) -> Callable[[int], Program]:
    """From a number of steps to the program that runs them in one call.

    Args:
      group: whose students they are.
      loader: with a seed for each of the batches that they share.
      devices: where they lie, and in which form they run.
      which: of these batches each student sees.
    """
    if devices.shape is None:
        kind: Any = functools.partial(_Loop, group, loader, tuple(which))
    else:
        kind = functools.partial(_Vmap, group, loader, devices)
    return functools.cache(kind)


class _Vmap:
    """Maps the step of one student over all."""

    def __init__(
        self, group: Group, loader: StudentsLoader, devices: Devices, num_steps: int
    ):
        of_a_batch = jax.vmap(pool.guard(group.train_step), (0, 0, None, None, 0))
        of_all = jax.vmap(of_a_batch, in_axes=(0, 0, None, 1, 0))
        prepare = jax.vmap(group.prepare, in_axes=(None, 1), out_axes=1)

        def one_step(state, constants, hparams, inputs):
            batch = prepare(constants, loader.batch(inputs, state.step))
            each, stopped, metrics = of_all(
                state.each, state.stopped, constants, batch, hparams
            )
            return Pool(each, stopped, state.step + 1), pool.mean_of_going(metrics)

        def run(state, *arguments):
            return _repeat(lambda state: one_step(state, *arguments), state, num_steps)

        self._run = jax.jit(
            run, donate_argnums=0, out_shardings=(devices.of_pool, devices.replicated)
        )

    def __call__(self, state: Pool, *arguments: Any) -> Any:
        return self._run(state, *arguments)

    def peak_bytes(self, *arguments: Any) -> int:
        return _peak_bytes(self._run, *arguments)


class _Loop:
    """Runs the program of one student for each, over batches that are made once.

    The constants are what is read of the teacher, and the schedules of each student.
    """

    def __init__(
        self,
        group: Group,
        loader: StudentsLoader,
        which: tuple[int, ...],
        num_steps: int,
    ):
        guarded = pool.guard(group.train_step)
        self._which = which
        self._num_steps = num_steps

        def of_a_step(constants, inputs, step) -> list[Batch]:
            batch = loader.batch(inputs, step)
            single = [
                jax.tree.map(lambda x, i=i: x[:, i], batch) for i in _first(which)
            ]
            return [group.prepare(constants, one) for one in single]

        def batches(constants, inputs, step):
            if num_steps == 1:
                return of_a_step(constants, inputs, step)
            steps = step + jnp.arange(num_steps, dtype=jnp.int32)
            return jax.lax.map(lambda x: of_a_step(constants, inputs, x), steps)

        def train(state, stopped, constants, batch, hparams):
            def step(carry, batch):
                state, stopped = carry
                state, stopped, metrics = guarded(
                    state, stopped, constants, batch, hparams
                )
                return (state, stopped), metrics

            if num_steps == 1:
                carry, metrics = step((state, stopped), batch)
                return *carry, jax.tree.map(lambda x: x[None], metrics)
            carry, metrics = jax.lax.scan(step, (state, stopped), batch)
            return *carry, metrics

        self._batches = jax.jit(batches)
        self._train = jax.jit(train, donate_argnums=(0, 1))

    def __call__(
        self, state: Pool, constants: Any, hparams: HParams, inputs: Any
    ) -> Any:
        del hparams
        teacher, schedules = constants
        batches = self._batches(teacher, inputs, state.step)
        done = [
            self._train(each, stopped, teacher, batches[i], own)
            for each, stopped, own, i in zip(
                state.each, state.stopped, schedules, self._which, strict=True
            )
        ]
        each, stopped, metrics = zip(*done, strict=True)
        return Pool(each, stopped, state.step + self._num_steps), _Means(metrics)

    def peak_bytes(
        self, state: Pool, constants: Any, hparams: HParams, inputs: Any
    ) -> int:
        del hparams
        teacher, schedules = constants
        batches = self._batches(teacher, inputs, state.step)
        one = _peak_bytes(
            self._train,
            *(state.each[0], state.stopped[0], teacher, batches[0], schedules[0]),
        )
        return one + sum(count_bytes(x) for x in (state.each[1:], batches[1:], inputs))


class _Means(Mapping[str, Any]):
    """Means over the students, taken on the host when someone looks at them."""

    def __init__(self, metrics: Sequence[Mapping[str, Any]]):
        self._metrics = metrics

    def __getitem__(self, name: str) -> np.ndarray:
        number = np.sum([np.asarray(x["training"]) for x in self._metrics], axis=0)
        if name == "training":
            return number
        total = np.sum([np.asarray(x[name]) for x in self._metrics], axis=0)
        return total / np.maximum(number, 1.0)

    def __iter__(self) -> Iterator[str]:
        return iter(self._metrics[0])

    def __len__(self) -> int:
        return len(self._metrics[0])


def _repeat(step: Callable[[Any], Any], state: Any, num_steps: int) -> Any:
    """So many steps, the metrics of each along a first axis."""
    if num_steps == 1:  # On CPU convolutions in a loop lose their threads.
        state, metrics = step(state)
        return state, jax.tree.map(lambda x: x[None], metrics)
    return jax.lax.scan(lambda state, _: step(state), state, length=num_steps)


def _first(which: Sequence[int]) -> range:
    """The numbers of all batches."""
    return range(max(which) + 1)


def _peak_bytes(program: Any, *arguments: Any) -> int:
    found = program.lower(*arguments).compile().memory_analysis()
    if found is None:  # Not every backend says.
        return count_bytes(arguments)
    return (
        found.argument_size_in_bytes
        + found.output_size_in_bytes
        + found.temp_size_in_bytes
        - found.alias_size_in_bytes
    )


def count_bytes(tree: Any) -> int:
    """The size of all arrays of a tree."""
    # A typed key has no size of its own.
    return sum(getattr(x, "nbytes", 0) for x in jax.tree.leaves(tree))
