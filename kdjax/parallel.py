"""Devices and processes: where arrays lie, and how a pure step becomes a program."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from kdjax.steps import Metrics, TrainState, TrainStep
from kdjax.types import Batch, HParams, UserError, Variables

AXIS = "data"
MODES = ("jit", "pmap")


@runtime_checkable
class BatchFn(Protocol):
    """Makes the batch of a step from a loader's inputs, inside the compiled program.

    Device `index` of `count` gets its contiguous share of the batch.
    """

    def __call__(
        self,
        inputs: Any,
        step: jax.Array,
        *,
        index: jax.Array | int = 0,
        count: int = 1,
    ) -> Batch: ...


TrainProgram = Callable[
    [TrainState, Variables, HParams, Any], tuple[TrainState, Metrics]
]


@dataclasses.dataclass(frozen=True)
class Parallel:
    """All devices of all processes along one axis, the batch's.

    Attributes:
      mode: `'jit'` with sharded batches, or `'pmap'`.
      mesh: the devices.
    """

    mode: str
    mesh: Mesh

    @property
    def num_devices(self) -> int:
        return self.mesh.size

    @property
    def axis_name(self) -> str | None:
        """The axis to reduce over by name: only `pmap` has one."""
        return AXIS if self.mode == "pmap" else None

    @property
    def replicated(self) -> NamedSharding:
        return NamedSharding(self.mesh, PartitionSpec())

    @property
    def sharded(self) -> NamedSharding:
        return NamedSharding(self.mesh, PartitionSpec(AXIS))

    def check_batch_size(self, name: str, batch_size: int) -> None:
        """Raises `UserError` unless the batch divides over the devices."""
        if batch_size % self.num_devices:
            lower = max(batch_size // self.num_devices, 1) * self.num_devices
            raise UserError(
                f"Expected {name} to divide over {self.num_devices} devices, got "
                f"{batch_size}: set it to a multiple, such as {lower}."
            )

    def replicate(self, tree: Any) -> Any:
        """Puts the same arrays on every device of every process."""
        return jax.tree.map(lambda x: _place(x, self.replicated), tree)

    def scatter(self, tree: Any) -> Any:
        """Splits arrays that every process has whole over all devices."""
        return jax.tree.map(lambda x: _place(x, self.sharded), tree)

    def shard(self, tree: Any) -> Any:
        """Makes global arrays of this process's rows of a batch, for `jit`;
        under `pmap` only splits them: `[local devices, rows, ...]`."""
        if self.mode == "pmap":
            count = jax.local_device_count()
            return jax.tree.map(lambda x: x.reshape(count, -1, *x.shape[1:]), tree)
        return jax.tree.map(
            lambda x: jax.make_array_from_process_local_data(self.sharded, x), tree
        )

    def train_program(
        self, train_step: TrainStep, batch_fn: BatchFn, *, resident: bool
    ) -> Callable[[int], TrainProgram]:
        """Compiles batch, augmentation, teacher and update into one program.

        Args:
          train_step: the pure step, made with this object's `axis_name`.
          batch_fn: makes the batch of a step from the loader's inputs.
          resident: whether the inputs are the whole data set, the same for every
            device and step, or one batch, already split over the devices.

        Returns:
          A function from a number of steps to the program that runs as many in one
          dispatch; its metrics have one entry for each step. More than one step
          needs resident inputs.
        """

        def one_step(state, teacher_variables, hparams, inputs):
            batch = self._batch(batch_fn, inputs, state.step, resident)
            return train_step(state, teacher_variables, batch, hparams)

        def many_steps(num_steps: int) -> TrainProgram:
            def run(state, *arguments):
                # No scan around one step: on CPU convolutions inside a loop lose
                # their threads.
                if num_steps == 1:
                    state, metrics = one_step(state, *arguments)
                    return state, jax.tree.map(lambda x: x[None], metrics)
                return jax.lax.scan(
                    lambda state, _: one_step(state, *arguments),
                    state,
                    length=num_steps,
                )

            return self._compile(run, resident=resident, donate=True)

        return functools.cache(many_steps)

    def diagnose_program(
        self,
        diagnose_step: Callable[[TrainState, Variables, Batch, HParams], Metrics],
        batch_fn: BatchFn,
        *,
        resident: bool,
    ) -> Callable[[TrainState, Variables, HParams, Any], Metrics]:
        """Compiles what a step would do, without doing it, as `train_program` does."""

        def run(state, teacher_variables, hparams, inputs):
            batch = self._batch(batch_fn, inputs, state.step, resident)
            return diagnose_step(state, teacher_variables, batch, hparams)

        return self._compile(run, resident=resident, donate=False)

    def _compile(self, run: Any, *, resident: bool, donate: bool) -> Any:
        """A function of state, teacher's variables, schedules and inputs."""
        if self.mode == "jit":
            donated = 0 if donate else ()
            return jax.jit(run, donate_argnums=donated, out_shardings=self.replicated)
        # pmap wants one mapped argument, and resident inputs are not.
        mapped = jax.pmap(
            lambda _, *arguments: run(*arguments),
            axis_name=AXIS,
            in_axes=(0, None, None, None, None if resident else 0),
            out_axes=None,
        )
        return functools.partial(mapped, np.arange(jax.local_device_count()))

    def _batch(
        self, batch_fn: BatchFn, inputs: Any, step: jax.Array, resident: bool
    ) -> Batch:
        """Inside the program: this step's batch, split over the devices."""
        if self.mode == "jit":
            batch = batch_fn(inputs, step)
            return jax.lax.with_sharding_constraint(batch, self.sharded)
        if not resident:
            return batch_fn(inputs, step)
        index = jax.lax.axis_index(AXIS)
        return batch_fn(inputs, step, index=index, count=self.num_devices)

    def predict_program(
        self, predict_step: Callable[[Variables, jax.Array], jax.Array]
    ) -> Callable[[Variables, Any], np.ndarray]:
        """Compiles a predict step over a batch sharded over all devices.

        Returns:
          A function from variables and host pixels, the same `[B, ...]` in every
          process, to logits on the host, `[B, num_classes]`, in every process.
        """
        program = jax.jit(
            predict_step,
            in_shardings=(None, self.sharded),
            out_shardings=self.replicated,
        )

        def predict(variables, images):
            return np.asarray(program(variables, self.scatter(images)))

        return predict


def _place(x: Any, sharding: NamedSharding) -> jax.Array:
    """One array, the same in every process, as a global array."""
    if jax.process_count() == 1:
        return jax.device_put(x, sharding)
    if isinstance(x, jax.Array) and jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(_place(jax.random.key_data(x), sharding))
    # From the host: JAX moves no committed array to devices of other processes.
    host = np.asarray(jax.numpy.asarray(x))
    return jax.make_array_from_callback(host.shape, sharding, lambda i: host[i])


def create(mode: str) -> Parallel:
    """All devices of all processes, in the given mode.

    Raises:
      UserError: if the mode is neither `'jit'` nor `'pmap'`.
    """
    if mode not in MODES:
        raise UserError(f"Expected parallel to be 'jit' or 'pmap', got {mode!r}.")
    # Auto axes: XLA's partitioner places everything that we do not constrain.
    mesh = jax.make_mesh((jax.device_count(),), (AXIS,), axis_types=(AxisType.Auto,))
    return Parallel(mode, mesh)


def is_main_process() -> bool:
    """Whether this process is the one that writes and prints."""
    return jax.process_index() == 0


def synchronize(name: str) -> None:
    """Waits until every process has come to the same point."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def broadcast(array: np.ndarray) -> np.ndarray:
    """The main process's array, in every process."""
    if jax.process_count() == 1:
        return array
    return np.asarray(multihost_utils.broadcast_one_to_all(array))
