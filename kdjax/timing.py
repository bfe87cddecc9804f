"""How long programs take, of several that are compared: in turns, by quantiles."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np


class Quantiles(NamedTuple):
    """The median and the 95th percentile of repeated measurements."""

    p50: float
    p95: float


def in_turns(
    programs: Mapping[str, Callable[[], Any]], runs: int, max_seconds: float
) -> dict[str, list[float]]:
    """Seconds of each run of each program, every round running each program once.

    A machine that slows down or warms up hits all programs alike.

    Args:
      programs: by name; what they return is waited for, if it is of JAX.
      runs: rounds, after two that warm up, uncounted.
      max_seconds: after which no round begins, but for the first three.

    Examples:
      >>> seconds = in_turns({"sum": lambda: sum(range(9))}, runs=5, max_seconds=1.0)
      >>> len(seconds["sum"])
      5
    """
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    warmup_rounds, least_rounds = 2, 3
    order = np.random.default_rng(0)
    stop = time.perf_counter() + max_seconds
    for i in range(-warmup_rounds, runs):
        if i >= least_rounds and time.perf_counter() > stop:
            break
        # In a new order each round: whom one follows decides what is in the caches.
        for name in order.permutation(list(programs)).tolist():
            start = time.perf_counter()
            jax.block_until_ready(programs[name]())
            if i >= 0:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def quantiles_ms(seconds: Sequence[float]) -> Quantiles:
    """In milliseconds.

    Examples:
      >>> quantiles_ms([0.001, 0.002, 0.003]).p50
      2.0
    """
    p50, p95 = np.quantile(1e3 * np.asarray(seconds), (0.5, 0.95))
    return Quantiles(float(p50), float(p95))
