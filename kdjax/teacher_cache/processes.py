"""How several processes fill one cache."""

import dataclasses
from collections.abc import Callable
from typing import TypeVar

import jax
import numpy as np

from kdjax.types import UserError

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Processes:
    """This process among those that fill a cache.

    In lockstep (`gather` is given) computing is a program of all processes: each calls
    `compute` for every batch, and only a shard's owner stores it. What is missing is
    decided by the first alone, and a failure of one stops all.

    Independent processes (`gather` is `None`) each compute and store the shards that
    they own, and know nothing of each other.

    Attributes:
      index: of this process.
      count: of all.
      gather: maps an array of each process to all processes' arrays, stacked; called
        by all of them together.
    """

    index: int = 0
    count: int = 1
    gather: Callable[[np.ndarray], np.ndarray] | None = None

    @property
    def lockstep(self) -> bool:
        """Whether the processes compute together."""
        return self.gather is not None

    @property
    def decides(self) -> bool:
        """Whether this process decides what there is to do."""
        return self.index == 0 or not self.lockstep

    def owns(self, index: int) -> bool:
        """Whether this process stores the shard of this index."""
        return index % self.count == self.index

    def together(self, fn: Callable[[], T]) -> T:
        """Calls `fn`, and fails in every process if it fails in one.

        Raises:
          UserError: if it failed in another process.
        """
        if self.gather is None:
            return fn()
        failure: Exception | None = None
        try:
            result = fn()
        except Exception as error:
            failure = error
        failed = self.gather(np.asarray(failure is not None))
        if failure is not None:
            raise failure
        if failed.any():
            raise UserError(
                "Expected all processes to fill the teacher cache, but process "
                f"{int(np.argmax(failed))} failed: look at what it says."
            )
        return result

    def on_decider(self, fn: Callable[[], None]) -> None:
        """Calls `fn` where there is to decide; the others wait for it."""

        def call() -> None:
            if self.decides:
                fn()

        self.together(call)

    def from_first(self, array: np.ndarray) -> np.ndarray:
        """The first process's array, in all of them."""
        return array if self.gather is None else self.gather(array)[0]


def current() -> Processes:
    """This process as JAX knows it: one alone, or in lockstep with all others."""
    if jax.process_count() == 1:
        return Processes()
    from jax.experimental import multihost_utils

    def gather(array: np.ndarray) -> np.ndarray:
        return np.asarray(multihost_utils.process_allgather(array))

    return Processes(jax.process_index(), jax.process_count(), gather)
