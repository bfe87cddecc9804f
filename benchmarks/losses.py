"""What does a loss cost, beside the same formula written down the obvious way?

Run:
  python benchmarks/losses.py [--only=SUBSTRING] [--repeats=15] [--large]

One JSON line a loss: milliseconds of value and gradient (median and the middle half of
the repeats), megabytes that the compiled program takes beside its inputs and results,
and seconds to compile. `naive` is the formula in a few lines of `jax.numpy`, without
masks or care for extreme numbers; `optax` is Optax's function, where it has one. All
are compiled, and alternate in one process. `ratio` is theirs over ours; `difference`
is that of the gradients, over the largest entry of ours; null: not finite.

`--large` adds the losses of tokens at [4096, 32000]. There the logits of both sides
alone take a gigabyte.
"""

import argparse
import functools
import inspect
import json
import math
import os
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import naive_losses
import optax

from kdjax import losses

BATCH, CLASSES = 1024, 1000
MAPS = (256, 8, 8, 64)
EMBEDDING = (256, 128)
SCORES, TOKENS_OF = (32, 4, 64, 64), (32, 64, 256)
LARGE = (4096, 32000)
# Modules whose losses are those of tokens too.
TOKENS = ("divergences", "mixtures", "sparse", "sequences")


class Sizes(NamedTuple):
    """Of logits and of the output matrices that make them."""

    batch: int = BATCH
    classes: int = CLASSES
    dim: int = 256


# Arguments by name: the shape of random numbers, from the sizes of the logits.
SHAPES: dict[str, Callable[[Sizes], tuple[int, ...]]] = {
    **dict.fromkeys(
        ("student_logits", "teacher_logits", "weak_logits"),
        lambda sizes: (sizes.batch, sizes.classes),
    ),
    **dict.fromkeys(
        ("client_logits", "peer_logits"), lambda sizes: (4, sizes.batch, sizes.classes)
    ),
    **dict.fromkeys(
        (
            "student_features",
            "teacher_features",
            "student_mean",
            "student_maps",
            "teacher_maps",
            "student_factor",
            "teacher_factor",
            "images",
        ),
        lambda sizes: MAPS,
    ),
    **dict.fromkeys(
        ("student_embedding", "teacher_embedding"), lambda sizes: EMBEDDING
    ),
    **dict.fromkeys(
        ("student_hidden", "teacher_hidden"), lambda sizes: (sizes.batch, sizes.dim)
    ),
    **dict.fromkeys(
        ("student_kernel", "teacher_kernel"), lambda sizes: (sizes.dim, sizes.classes)
    ),
    **dict.fromkeys(("student_scores", "teacher_scores"), lambda sizes: SCORES),
    **dict.fromkeys(
        (
            "student_queries",
            "student_keys",
            "student_values",
            "teacher_queries",
            "teacher_keys",
            "teacher_values",
        ),
        lambda sizes: TOKENS_OF,
    ),
    **dict.fromkeys(("margins", "running_mean"), lambda sizes: MAPS[-1:]),
    "teacher_top_logits": lambda sizes: (sizes.batch, 64),
    "teacher_tail": lambda sizes: (sizes.batch,),
}

# Arguments that are not just random numbers.
MADE: dict[str, Callable[[Sizes, jax.Array], jax.Array]] = {
    "labels": lambda sizes, key: jax.random.randint(
        key, (sizes.batch,), 0, sizes.classes
    ),
    "soft_labels": lambda sizes, key: jax.nn.softmax(
        jax.random.normal(key, (sizes.batch, sizes.classes))
    ),
    "student_variance": lambda sizes, key: jnp.ones(MAPS[-1]),
    "running_var": lambda sizes, key: jnp.ones(MAPS[-1]),
    "target_ids": lambda sizes, key: jax.random.randint(
        key, (sizes.batch, 50), 0, sizes.classes
    ),
    "target_counts": lambda sizes, key: jnp.ones((sizes.batch, 50), jnp.int32),
    "teacher_top_indices": lambda sizes, key: jnp.tile(
        jnp.arange(64, dtype=jnp.int32), (sizes.batch, 1)
    ),
    "contrast_indices": lambda sizes, key: jax.random.randint(
        key, (EMBEDDING[0], 1024), 0, 10_000
    ),
    "memory": lambda sizes, key: losses.init_crd_memory(
        key, num_examples=10_000, dim=EMBEDDING[1]
    ),
    "attention": lambda sizes, key: jnp.full((MAPS[0], 2, 2), 0.5),
}

# Where an argument of that name is of another shape: how many of them, in a tuple or
# along a new first axis.
STACKED = {
    "multi_teacher_loss": {"teacher_logits": 4},
    "fedgkd_loss": {"teacher_logits": 4},
    "byot_loss": {"student_logits": 4},
    "byot_feature_loss": {"student_features": 4},
}
TUPLES = {
    "fsp_loss": ("student_features", "teacher_features"),
    "kdsvd_loss": ("student_features", "teacher_features"),
    "zskt_loss": ("student_features", "teacher_features"),
}
NESTED = {"semckd_loss": ("student_features", "teacher_features")}

KEYWORDS: dict[str, dict[str, Any]] = {
    "taid_loss": {"interpolation": 0.5},
    "linear_taid_loss": {"interpolation": 0.5},
    "ttm_loss": {"temperature": 4.0},
    "wttm_loss": {"temperature": 4.0},
    "top_k_kl": {"num_kept": 64},
    "minilm_loss": {"num_heads": 4},
    "minilm_relation_loss": {"num_relation_heads": 4},
}

# What the losses are made of, and has no gradient or no example of its own.
PARTS = (
    "adaptive_average_pool",
    "average_logits",
    "average_probs",
    "class_attention_maps",
    "confidence_weights",
    "federated_average",
    "fedmd_consensus",
    "fsp_matrix",
    "init_crd_memory",
    "mgd_mask",
    "ofd_margins",
    "pack_sparse_targets",
    "permute_non_argmax",
    "reverse_gradient",
    "sample_contrast_indices",
    "sample_sparse_targets",
    "standardize_logits",
    "taid_target",
    "unpack_sparse_targets",
    "update_crd_memory",
)


def main() -> None:
    """Prints every measurement that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="losses whose name holds this")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--large", action="store_true")
    args = parser.parse_args()
    names = [name for name in losses.__all__ if args.only in name and is_loss(name)]
    for name in names:  # Before any is measured.
        for argument_name in argument_names(getattr(losses, name)):
            if argument_name not in SHAPES | MADE:
                parser.error(f"no shape for the argument {argument_name} of {name}")
    for name in names:
        for sizes in sizes_of(name, args.large):
            print(json.dumps(measure(name, sizes, args.repeats)), flush=True)


def is_loss(name: str) -> bool:
    """Whether a public name is a loss, and not a class or a part of one."""
    return inspect.isfunction(getattr(losses, name)) and name not in PARTS


def argument_names(loss: Callable[..., Any]) -> list[str]:
    """The positional parameters that have no default."""
    return [
        parameter.name
        for parameter in inspect.signature(loss).parameters.values()
        if parameter.kind is not parameter.KEYWORD_ONLY
        if parameter.default is parameter.empty
    ]


def sizes_of(name: str, large: bool) -> Iterator[Sizes]:
    """What to measure a loss at."""
    module = getattr(losses, name).__module__.rpartition(".")[2]
    linear = name.startswith("linear_")
    # Its features and logits are of the same examples.
    common = Sizes(batch=MAPS[0]) if name == "srrl_loss" else Sizes()
    yield Sizes(classes=8000) if linear else common
    if large and (linear or module.split("_")[1] in TOKENS):
        yield Sizes(*LARGE, dim=512)


def measure(name: str, sizes: Sizes, repeats: int) -> dict[str, Any]:
    """One loss beside what else computes it."""
    ours = getattr(losses, name)
    arguments = arguments_of(ours, sizes)
    subjects = {"ours": functools.partial(ours, **KEYWORDS.get(name, {}))}
    for subject, table in (
        ("naive", naive_losses.NAIVE),
        ("optax", naive_losses.OPTAX),
    ):
        if name in table:
            subjects[subject] = table[name]
    which = student_arguments(ours)
    line: dict[str, Any] = {
        "loss": name,
        "shapes": [list(x.shape) for x in jax.tree.leaves(arguments)],
    }
    programs = {}
    for subject, fn in subjects.items():
        programs[subject], facts = compiled(fn, arguments, which)
        line |= {f"{subject}_{key}": value for key, value in facts.items()}
    calls = {
        subject: functools.partial(program, *arguments)
        for subject, program in programs.items()
    }
    return line | comparison(calls, repeats) | environment(repeats)


def arguments_of(loss: Callable[..., Any], sizes: Sizes) -> tuple[Any, ...]:
    """Random arguments, one for each of `argument_names`."""
    names = argument_names(loss)
    keys = jax.random.split(jax.random.key(0), len(names))
    pairs = zip(names, keys, strict=True)
    return tuple(argument(loss.__name__, name, sizes, key) for name, key in pairs)


def argument(loss: str, name: str, sizes: Sizes, key: jax.Array) -> Any:
    """An array, or several in a tuple."""
    if name in MADE:
        return MADE[name](sizes, key)
    shape = SHAPES[name](sizes)
    if name in STACKED.get(loss, {}):
        shape = (STACKED[loss][name], *shape)
    x = jax.random.normal(key, shape)
    if name.endswith("_kernel"):
        x /= sizes.dim**0.5  # Logits of unit size.
    if name in TUPLES.get(loss, ()):
        return (x, x + 1)
    if name in NESTED.get(loss, ()):
        return ((x, x + 1), (x - 1, x))
    return x


def student_arguments(loss: Callable[..., Any]) -> tuple[int, ...]:
    """Which arguments the gradient is of: the student's, or the first."""
    names = argument_names(loss)
    return tuple(i for i, x in enumerate(names) if x.startswith("student_")) or (0,)


def compiled(
    fn: Callable[..., jax.Array], arguments: tuple[Any, ...], which: tuple[int, ...]
) -> tuple[Callable[..., Any], dict[str, float]]:
    """Value and gradient of the mean as one program, and what it took to make it."""

    def mean(*arguments: Any) -> jax.Array:
        return jnp.mean(fn(*arguments))

    started = time.perf_counter()
    program = jax.jit(jax.value_and_grad(mean, which)).lower(*arguments).compile()
    seconds = time.perf_counter() - started
    memory = program.memory_analysis()
    return program, {
        "compile_s": round(seconds, 2),
        "temporary_mb": round(memory.temp_size_in_bytes / 1e6, 2),
    }


def comparison(calls: dict[str, Callable[[], Any]], repeats: int) -> dict[str, Any]:
    """Times of alternating calls, and how far the gradients are from ours."""
    # Warms up as well.
    gradients = {s: jax.block_until_ready(call())[1] for s, call in calls.items()}
    samples: dict[str, list[float]] = {subject: [] for subject in calls}
    for _ in range(repeats):
        for subject, call in calls.items():
            started = time.perf_counter()
            jax.block_until_ready(call())
            samples[subject].append(1e3 * (time.perf_counter() - started))
    line: dict[str, Any] = {}
    for subject, times in samples.items():
        several = times * 2 if repeats == 1 else times
        quartiles = statistics.quantiles(several, n=4, method="inclusive")
        line[f"{subject}_ms"] = round(quartiles[1], 3)
        line[f"{subject}_ms_middle_half"] = [round(x, 3) for x in quartiles[::2]]
    for subject in calls.keys() - {"ours"}:
        line[f"{subject}_ratio"] = round(line[f"{subject}_ms"] / line["ours_ms"], 2)
        line[f"{subject}_difference"] = difference(
            gradients["ours"], gradients[subject]
        )
    return dict(sorted(line.items()))


def difference(ours: Any, theirs: Any) -> float | None:
    """The largest, over the largest entry of ours; `None` if one is not finite."""
    pairs = zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True)
    largest = [float(jnp.max(jnp.abs(x - y)) / jnp.max(jnp.abs(x))) for x, y in pairs]
    return float(f"{max(largest):.1e}") if all(map(math.isfinite, largest)) else None


def environment(repeats: int) -> dict[str, Any]:
    """Where and with what."""
    return {
        "repeats": repeats,
        "dtype": "float32",
        "device": jax.devices()[0].device_kind,
        "cpus": os.cpu_count(),
        "jax": jax.__version__,
        "optax": optax.__version__,
    }


if __name__ == "__main__":
    main()
