"""What a model costs: parameters, bytes, FLOPs, latency and throughput.

:func:`measure_costs` measures all models of a comparison in one go, taking turns, so
that a machine that slows down or warms up hits every one of them alike:

  >>> import jax.numpy as jnp
  >>> from kdjax import measure
  >>> def apply_fn(variables, images):
  ...     pixels = images.reshape(len(images), -1) / 255
  ...     return pixels @ variables["params"]["kernel"]
  >>> student = measure.Subject(apply_fn, {"params": {"kernel": jnp.ones((12, 3))}})
  >>> teacher = measure.Subject(apply_fn, {"params": {"kernel": jnp.ones((12, 9))}})
  >>> costs = measure.measure_costs(
  ...     {"teacher": teacher, "student": student},
  ...     image_shape=(2, 2, 3), batch_size=4, latency_runs=3, throughput_runs=3)
  >>> costs["student"].parameters, costs["student"].nbytes, costs["student"].flops
  (36, 144, 72.0)
"""

import contextlib
import dataclasses
import functools
import importlib.metadata
import math
import os
import pathlib
import platform
import re
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kdjax.timing import Quantiles, in_turns, quantiles_ms
from kdjax.types import Variables

InferFn = Callable[[Variables, jax.Array], Any]
"""Maps variables and a batch of images to outputs, in inference mode."""


class Subject(NamedTuple):
    """A model to measure.

    Attributes:
      apply_fn: maps variables and images `[B, H, W, C]` to outputs, in inference mode.
      variables: the model's collections; `'params'` is what is counted.
    """

    apply_fn: InferFn
    variables: Variables


@dataclasses.dataclass(frozen=True)
class ModelCost:
    """What one model costs at inference, on one device.

    Attributes:
      parameters: trained numbers, the leaves of `'params'`.
      nbytes: bytes of these parameters as they are stored.
      flops: floating-point operations of one example's forward pass, 2 per
        multiply-accumulate, of matrix products and convolutions alone; None if a loop
        of unknown length holds some (see :func:`count_flops`).
      latency_ms: time from images to outputs at batch size 1, milliseconds.
      latency_runs: how many runs these quantiles are over.
      throughput: examples a second at `batch_size`, from the median of
        `throughput_runs` runs.
      batch_size: the batch size of `throughput`.
      throughput_runs: how many runs the median is over.
      compile_seconds: time to trace and compile for batch size 1, in none of the above.
    """

    parameters: int
    nbytes: int
    flops: float | None
    latency_ms: Quantiles
    latency_runs: int
    throughput: float
    batch_size: int
    throughput_runs: int
    compile_seconds: float


def measure_costs(
    subjects: Mapping[str, Subject],
    image_shape: Sequence[int],
    *,
    batch_size: int = 128,
    image_dtype: Any = jnp.uint8,
    latency_runs: int = 50,
    throughput_runs: int = 10,
    max_seconds: float = 20.0,
) -> dict[str, ModelCost]:
    """Costs of every model, measured in turns on the first local device.

    Each round runs every model once, so that all see the same state of the machine.
    Two rounds warm up, uncounted; once `max_seconds` have passed, no round after the
    third begins. First come the rounds at batch size 1, then those at `batch_size`.

    Args:
      subjects: the models by name, such as `'teacher'`, `'student'`, `'baseline'`.
      image_shape: `(height, width, channels)` of one image.
      batch_size: examples in a batch when measuring throughput.
      image_dtype: of the images given to the models; noise of this dtype is used.
      latency_runs: rounds at batch size 1.
      throughput_runs: rounds at `batch_size`.
      max_seconds: after which no new round of a set begins.

    Returns:
      One :class:`ModelCost` per entry of `subjects`.

    Raises:
      ValueError: if there is no subject, or a count of runs or examples is below 1.
    """
    _check_positive(
        subjects=len(subjects),
        batch_size=batch_size,
        latency_runs=latency_runs,
        throughput_runs=throughput_runs,
    )
    device = jax.local_devices()[0]
    subjects = {
        name: Subject(subject.apply_fn, _on_device(subject.variables, device))
        for name, subject in subjects.items()
    }
    singly, batched = (
        jax.device_put(_noise((size, *image_shape), image_dtype), device)
        for size in (1, batch_size)
    )
    single_runs, compile_seconds = _compile(subjects, singly)
    batch_runs, _ = _compile(subjects, batched)
    latencies = in_turns(single_runs, latency_runs, max_seconds)
    durations = in_turns(batch_runs, throughput_runs, max_seconds)
    return {
        name: ModelCost(
            parameters=count_parameters(subject.variables),
            nbytes=count_bytes(subject.variables),
            flops=_flops(subject, singly),
            latency_ms=quantiles_ms(latencies[name]),
            latency_runs=len(latencies[name]),
            throughput=batch_size / float(np.median(durations[name])),
            batch_size=batch_size,
            throughput_runs=len(durations[name]),
            compile_seconds=compile_seconds[name],
        )
        for name, subject in subjects.items()
    }


def count_parameters(variables: Variables) -> int:
    """How many numbers `variables['params']` holds.

    Examples:
      >>> import jax.numpy as jnp
      >>> count_parameters({"params": {"kernel": jnp.ones((3, 4))}})
      12
    """
    return sum(math.prod(x.shape) for x in jax.tree.leaves(variables["params"]))


def count_bytes(variables: Variables) -> int:
    """Bytes of `variables['params']` as stored: 4 per float32 number."""
    leaves = jax.tree.leaves(variables["params"])
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in leaves)


def count_flops(fn: Callable[..., Any], *args: Any) -> float:
    """Floating-point operations of `fn(*args)` in matrix products and convolutions.

    One multiply-accumulate is two operations, and padding counts as if it were data,
    as in the tables of the literature. Additions, activations and normalisation are
    left out, and what no output needs. The count is read off the traced program, loops
    and nested calls included, not off a backend's (whose own estimate misses what runs
    in library calls, and counts the body of a loop once). Of a
    `lax.platform_dependent`, the default branch counts; of a `lax.cond`, the dearest.

    Args:
      fn: a function of arrays; not run, only traced.
      *args: its arguments, arrays or `jax.ShapeDtypeStruct`s.

    Raises:
      ValueError: if a loop of unknown length holds such operations.

    Examples:
      >>> import jax.numpy as jnp
      >>> count_flops(jnp.matmul, jnp.ones((2, 3)), jnp.ones((3, 5)))
      60.0
    """
    return _jaxpr_flops(jax.make_jaxpr(fn)(*args).jaxpr)


def hardware() -> dict[str, Any]:
    """The devices and the processor at hand, for the record of a run.

    Returns:
      `platform`, `device_kind`, `device_count` (over all processes), `process_count`,
      `cpu` (its name, or else the architecture) and `cores` (that may be used here).
    """
    device = jax.devices()[0]
    return {
        "platform": device.platform,
        "device_kind": device.device_kind,
        "device_count": jax.device_count(),
        "process_count": jax.process_count(),
        "cpu": _cpu_model(),
        "cores": usable_cores(),
    }


def versions() -> dict[str, str]:
    """Versions of Python, kdjax and the packages that its numbers rest on."""
    packages = ("kdjax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    found = {"python": platform.python_version()}
    for package in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def commit() -> str | None:
    """The commit of kdjax's own source, `'+changes'` appended if it was edited.

    Returns:
      The hash, or None where kdjax does not run from a repository that tracks it.
    """
    here = pathlib.Path(__file__).resolve()
    # An installed copy may lie inside another project's repository.
    if _git(here.parent, "ls-files", "--error-unmatch", here.name) is None:
        return None
    head = _git(here.parent, "rev-parse", "HEAD")
    edited = _git(here.parent, "status", "--porcelain", "--", str(here.parent))
    return head and head + ("+changes" if edited else "")


def _check_positive(**counts: int) -> None:
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"Expected {name} >= 1, got {count}.")


def _on_device(variables: Variables, device: jax.Device) -> Variables:
    """`variables` on one device, also if they were spread or copied over several."""
    return jax.device_put(jax.tree.map(np.asarray, dict(variables)), device)


def _noise(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    rng = np.random.default_rng(0)
    if jnp.issubdtype(dtype, jnp.integer):
        return rng.integers(0, 256, shape).astype(dtype)
    return rng.standard_normal(shape).astype(dtype)


def _compile(
    subjects: Mapping[str, Subject], images: jax.Array
) -> tuple[dict[str, Callable[[], Any]], dict[str, float]]:
    """Ready-to-run programs of the models on `images`, and the seconds each took."""
    programs: dict[str, Callable[[], Any]] = {}
    seconds = {}
    for name, (apply_fn, variables) in subjects.items():
        start = time.perf_counter()
        # A function of its own: models that share one would share its compilation.
        infer_fn = jax.jit(lambda *args, fn=apply_fn: fn(*args))
        compiled = infer_fn.lower(variables, images).compile()
        seconds[name] = time.perf_counter() - start
        programs[name] = functools.partial(compiled, variables, images)
    return programs, seconds


def _flops(subject: Subject, image: jax.Array) -> float | None:
    with contextlib.suppress(ValueError):  # A loop of unknown length.
        return count_flops(subject.apply_fn, subject.variables, image)
    return None


def _jaxpr_flops(jaxpr: Any) -> float:
    total, needed = 0.0, {id(x) for x in jaxpr.outvars}
    for equation in reversed(jaxpr.eqns):
        if equation.effects or any(id(x) in needed for x in equation.outvars):
            needed.update(id(x) for x in equation.invars)
            total += _equation_flops(equation)
    return total


def _equation_flops(equation: Any) -> float:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        return _dot_flops(equation)
    if name == "conv_general_dilated":
        return _conv_flops(equation)
    inner = [_jaxpr_flops(jaxpr) for jaxpr in _inner_jaxprs(params)]
    if not any(inner):
        return 0.0
    if name == "cond":
        # A platform_dependent names its branches' platforms, None being the default.
        platforms = params.get("branches_platforms") or ()
        return inner[platforms.index(None)] if None in platforms else max(inner)
    if name == "while":
        raise ValueError(
            "Expected loops of known length, got a while loop around matrix products: "
            "how often it runs cannot be read off the program."
        )
    return sum(inner) * _repetitions(name, params)


def _repetitions(name: str, params: Mapping[str, Any]) -> int:
    """How often an equation runs the programs inside it."""
    if name == "scan":
        return params["length"]
    if name == "shard_map":  # Inside, shapes are those of one device's share.
        return math.prod(params["mesh"].shape.values())
    if name == "pallas_call":
        return math.prod(params["grid_mapping"].grid)
    return 1


def _inner_jaxprs(params: Mapping[str, Any]) -> Iterator[Any]:
    """The programs among the parameters of an equation, closed ones opened.

    The derivative rules of custom_jvp and custom_vjp are functions, not programs, so
    they are passed over: only the forward pass counts.
    """
    for value in params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if hasattr(item, "eqns"):
                yield item
            elif hasattr(getattr(item, "jaxpr", None), "eqns"):
                yield item.jaxpr


def _dot_flops(equation: Any) -> float:
    (contracted, _), _ = equation.params["dimension_numbers"]
    left, output = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
    return 2.0 * math.prod(output) * math.prod(left[i] for i in contracted)


def _conv_flops(equation: Any) -> float:
    """Every output sums over the taps of the kernel and the channels of its group."""
    kernel, output = equation.invars[1].aval.shape, equation.outvars[0].aval.shape
    output_channels = equation.params["dimension_numbers"].rhs_spec[0]
    taps = math.prod(kernel) / kernel[output_channels]
    # A transposed convolution spreads its input with zeros, which cost nothing.
    return 2.0 * math.prod(output) * taps / math.prod(equation.params["lhs_dilation"])


def _cpu_model() -> str:
    text = ""
    with contextlib.suppress(OSError):  # Linux alone has this file.
        text = pathlib.Path("/proc/cpuinfo").read_text()
    match = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return match.group(1) if match else platform.processor() or platform.machine()


def usable_cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):  # Not on macOS and Windows.
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _git(directory: pathlib.Path, *arguments: str) -> str | None:
    """What a git command prints, or None if it fails or there is no git."""
    command = ["git", "-C", str(directory), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
