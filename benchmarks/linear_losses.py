"""What do the losses from hidden states save in memory, and cost in time?

One JSON line a loss, of its value and gradients in the student's hidden states and
kernel. `memory_ratio` is the temporary memory of the dense loss of logits over that of
`linear_*`, as XLA counts it for a large model's size, which is compiled and not run.
`time_ratio` is the time of `linear_*` over the dense one's at a size that a small
machine can run, and `floor_ratio` that over what the matrix products alone take: two
for the logits, or one if the teacher is sparse, and two for the gradients. The steps
take turns, after a warm-up and with compilation apart. The memory at hand is what the
last run left, which changes a time by a tenth: the times and ratios are of runs that
come after another step's, and `time_ratio_repeated` is of those after one of their own.

Run:
  python benchmarks/linear_losses.py [--only=SUBSTRING] [--repeats=9] [--chunk_size=256]
      [--weighted]
"""

import argparse
import functools
import json
import os
import platform
import statistics
import time
import types
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from kdjax import losses


class Size(NamedTuple):
    """Tokens, the dimension of the hidden states of both sides, and classes."""

    tokens: int
    dim: int
    vocab: int


COMPILED = Size(8192, 1024, 131072)
RUN = Size(1024, 512, 32768)
KEPT = 64  # Classes of a sparse teacher.

Loss = Callable[..., jax.Array]


class Case(NamedTuple):
    """A loss of logits, the same from hidden states, and what it takes of a teacher."""

    dense_fn: Loss
    linear_fn: Loss
    kwargs: Mapping[str, Any] = types.MappingProxyType({})
    teacher: str = "hidden"  # Or 'labels', 'sampled', 'top'.


CASES = {
    "forward_kl": Case(losses.forward_kl, losses.linear_forward_kl),
    "reverse_kl": Case(losses.reverse_kl, losses.linear_reverse_kl),
    "symmetric_kl": Case(losses.symmetric_kl, losses.linear_symmetric_kl),
    "total_variation": Case(losses.total_variation, losses.linear_total_variation),
    "jensen_shannon": Case(losses.jensen_shannon, losses.linear_jensen_shannon),
    "skew_forward_kl": Case(losses.skew_forward_kl, losses.linear_skew_forward_kl),
    "skew_reverse_kl": Case(losses.skew_reverse_kl, losses.linear_skew_reverse_kl),
    "soft_target": Case(
        losses.soft_target_loss, losses.linear_soft_target_loss, {"temperature": 2.0}
    ),
    "taid": Case(losses.taid_loss, losses.linear_taid_loss, {"interpolation": 0.5}),
    "adaptive_kl": Case(losses.adaptive_kl, losses.linear_adaptive_kl),
    "cross_entropy": Case(
        losses.cross_entropy, losses.linear_cross_entropy, teacher="labels"
    ),
    "sparse_soft_target": Case(
        losses.sparse_soft_target_loss,
        losses.linear_sparse_soft_target_loss,
        teacher="sampled",
    ),
    "sparse_top_k_kl": Case(
        losses.sparse_top_k_kl, losses.linear_sparse_top_k_kl, teacher="top"
    ),
}


def main() -> None:
    """Prints the measurement of every case that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="cases whose name holds this")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument(
        "--chunk_size", type=int, help="the losses' default if not given"
    )
    parser.add_argument("--weighted", action="store_true", help="unequal tokens")
    args = parser.parse_args()
    for name, case in CASES.items():
        if args.only in name:
            line = {"loss": name} | measure(case, args)
            print(json.dumps(line), flush=True)


def measure(case: Case, args: argparse.Namespace) -> dict[str, Any]:
    """The line of one case."""
    steps = _steps(case, args)
    large = jax.eval_shape(functools.partial(_arrays, case, COMPILED))
    dense, linear = (
        step.lower(*large).compile().memory_analysis().temp_size_in_bytes
        for step in steps
    )
    arrays = jax.jit(functools.partial(_arrays, case, RUN))()
    product = jax.jit(lambda hidden, kernel, *_: hidden @ kernel)
    compiled, compile_seconds = [], []
    for step in (*steps, product):
        started = time.perf_counter()
        compiled.append(step.lower(*arrays).compile())
        compile_seconds.append(round(time.perf_counter() - started, 2))
    seconds, repeated = _seconds(compiled, arrays, args.repeats)
    medians = [statistics.median(x) for x in seconds]
    own = [statistics.median(x) for x in repeated]
    floor = (4 if case.teacher == "hidden" else 3) * medians[2]
    return {
        "memory_ratio": round(dense / linear, 1),
        "dense_gigabytes": round(dense / 1e9, 2),
        "linear_gigabytes": round(linear / 1e9, 2),
        "compiled_size": COMPILED._asdict(),
        "time_ratio": round(medians[1] / medians[0], 3),
        "time_ratio_repeated": round(own[1] / own[0], 3),
        "floor_ratio": round(medians[1] / floor, 3),
        "dense_ms": _spread(seconds[0]),
        "linear_ms": _spread(seconds[1]),
        "floor_ms": round(1e3 * floor, 1),
        "product_gigaflops": round(
            2e-9 * RUN.tokens * RUN.dim * RUN.vocab / medians[2]
        ),
        "compile_seconds": compile_seconds[:2],
        "run_size": RUN._asdict(),
        "repeats": args.repeats,
        "chunk_size": args.chunk_size,
        "weighted": args.weighted,
        "dtype": "float32",
        "device": jax.devices()[0].device_kind,
        "cores": os.cpu_count(),
        "jax": jax.__version__,
        "python": platform.python_version(),
    }


def _steps(case: Case, args: argparse.Namespace) -> tuple[Any, Any]:
    """Value and gradients in the student's arrays: of the logits, and without them."""
    chunks = {"chunk_size": args.chunk_size} if args.chunk_size else {}

    def mean(values: jax.Array) -> jax.Array:
        weights = jnp.arange(len(values)) / len(values) if args.weighted else 1.0
        return jnp.mean(weights * values)

    def dense(hidden: jax.Array, kernel: jax.Array, *others: jax.Array) -> jax.Array:
        if case.teacher == "hidden":
            others = (others[0] @ others[1],)
        return mean(case.dense_fn(hidden @ kernel, *others, **case.kwargs))

    def linear(*arrays: jax.Array) -> jax.Array:
        return mean(case.linear_fn(*arrays, **case.kwargs, **chunks))

    return tuple(
        jax.jit(jax.value_and_grad(fn, argnums=(0, 1))) for fn in (dense, linear)
    )


def _arrays(case: Case, size: Size) -> tuple[jax.Array, ...]:
    """Random hidden states and kernels, of logits of size 1, or a sparse teacher."""
    keys = jax.random.split(jax.random.key(0), 6)

    def head(i: int) -> tuple[jax.Array, jax.Array]:
        hidden = jax.random.normal(keys[i], (size.tokens, size.dim))
        kernel = jax.random.normal(keys[i + 1], (size.dim, size.vocab))
        return hidden, kernel / size.dim**0.5

    if case.teacher == "hidden":
        return *head(0), *head(2)
    classes = jax.random.randint(keys[4], (size.tokens, KEPT), 0, size.vocab)
    if case.teacher == "labels":
        return *head(0), classes[:, 0]
    if case.teacher == "sampled":
        return *head(0), classes, jnp.ones_like(classes)
    top = jax.random.normal(keys[5], (size.tokens, KEPT))
    return *head(0), top, classes, jnp.full(size.tokens, jnp.log(size.vocab))


def _seconds(
    steps: list[Any], arrays: tuple[jax.Array, ...], repeats: int
) -> tuple[list[list[float]], list[list[float]]]:
    """Those of each run of each step, after another's and after one of its own."""
    switched: list[list[float]] = [[] for _ in steps]
    repeated: list[list[float]] = [[] for _ in steps]
    for number in range(repeats + 1):
        for place, step in enumerate(steps):
            for samples in (switched, repeated):
                started = time.perf_counter()
                jax.block_until_ready(step(*arrays))
                if number:  # The first time warms up.
                    samples[place].append(time.perf_counter() - started)
    return switched, repeated


def _spread(seconds: list[float]) -> list[float]:
    """The least, the median and the largest, in milliseconds."""
    found = min(seconds), statistics.median(seconds), max(seconds)
    return [round(1e3 * x, 1) for x in found]


if __name__ == "__main__":
    main()
