"""How much faster is `kdjax.models.convolutions` than XLA's own on this CPU?

Run:
  python benchmarks/convolutions.py [--only=SUBSTRING] [--repeats=15] [--torch]

One JSON line a measurement: milliseconds of wall time (median and the middle half of
the repeats) and of processor time over all threads, which a busy machine disturbs less;
`ratio` is stock over ours. Stock and ours alternate in one process, after a warm-up
that is reported apart as compile time. `--torch` adds PyTorch on channels-last tensors,
if it is installed, run after the others so that its threads don't disturb them.
"""

import argparse
import functools
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax import lax

from kdjax.models import convolutions


class Case(NamedTuple):
    """A convolution, padded by half of its size."""

    batch: int
    size: int
    channels: int
    features: int
    kernel: int = 3
    stride: int = 1
    groups: int = 1


CASES = {
    "resnet20 stem": Case(128, 32, 3, 16),
    "resnet20 stage 1": Case(128, 32, 16, 16),
    "resnet20 stage 2, stride 2": Case(128, 32, 16, 32, stride=2),
    "resnet20 stage 2, shortcut": Case(128, 32, 16, 32, kernel=1, stride=2),
    "resnet20 stage 2": Case(128, 16, 32, 32),
    "resnet20 stage 3, stride 2": Case(128, 16, 32, 64, stride=2),
    "resnet20 stage 3": Case(128, 8, 64, 64),
    "vgg8 64": Case(64, 32, 64, 64),
    "vgg8 256": Case(64, 8, 256, 256),
    "vgg8 512": Case(64, 4, 512, 512),
    "mobilenet expand": Case(64, 32, 16, 96, kernel=1),
    "mobilenet project": Case(64, 16, 192, 32, kernel=1),
    "depthwise 96": Case(64, 32, 96, 96, groups=96),
    "depthwise 96, stride 2": Case(64, 32, 96, 96, stride=2, groups=96),
    "depthwise 192": Case(64, 16, 192, 192, groups=192),
    "depthwise 384": Case(64, 8, 384, 384, groups=384),
    "shufflenet grouped 1x1": Case(64, 16, 240, 240, kernel=1, groups=3),
    "resnet50 stem": Case(8, 224, 3, 64, kernel=7, stride=2),
}


def main() -> None:
    """Prints every measurement that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="cases whose name holds this")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--torch", action="store_true")
    args = parser.parse_args()
    for name, stock, ours, theirs in _subjects(args.only, args.torch):
        print(json.dumps(compare(name, stock, ours, theirs, args.repeats)), flush=True)


def compare(
    name: str,
    stock: Callable[[], Any],
    ours: Callable[[], Any],
    theirs: Callable[[], Any] | None,
    repeats: int,
) -> dict[str, Any]:
    """Times the functions, the first two in turns."""
    compile_s = {"stock": _warm_up(stock), "ours": _warm_up(ours)}
    rounds = [(_timed(stock), _timed(ours)) for _ in range(repeats)]
    record = {"op": name, "repeats": repeats}
    for i, subject in enumerate(("stock", "ours")):
        record |= _summary(subject, [pair[i] for pair in rounds])
        record[f"{subject}_compile_s"] = compile_s[subject]
    record["ratio"] = round(record["stock_ms"] / record["ours_ms"], 2)
    record["cpu_ratio"] = round(record["stock_cpu_ms"] / record["ours_cpu_ms"], 2)
    if theirs is not None:
        _warm_up(theirs)
        record |= _summary("torch", [_timed(theirs) for _ in range(repeats)])
    return record | {
        "dtype": "float32",
        "jax": jax.__version__,
        "device": jax.devices()[0].device_kind,
        "cores": len(os.sched_getaffinity(0)),
    }


def _warm_up(fn: Callable[[], Any]) -> float:
    start = time.perf_counter()
    jax.block_until_ready(fn())
    seconds = time.perf_counter() - start
    jax.block_until_ready(fn())
    return round(seconds, 2)


def _timed(fn: Callable[[], Any]) -> tuple[float, float]:
    """Milliseconds on the wall's clock, and of all processors' time."""
    wall, cpu = time.perf_counter(), time.process_time()
    jax.block_until_ready(fn())
    return 1e3 * (time.perf_counter() - wall), 1e3 * (time.process_time() - cpu)


def _summary(subject: str, timings: list[tuple[float, float]]) -> dict[str, Any]:
    wall, cpu = zip(*timings, strict=True)
    quartiles = statistics.quantiles(wall, n=4) if len(wall) > 1 else [wall[0]] * 3
    return {
        f"{subject}_ms": round(quartiles[1], 2),
        f"{subject}_ms_middle_half": [round(quartiles[0], 2), round(quartiles[2], 2)],
        f"{subject}_cpu_ms": round(statistics.median(cpu), 2),
    }


def _subjects(only: str, with_torch: bool) -> Iterator[tuple[Any, ...]]:
    torch_fn = _torch_passes if with_torch else lambda case: (None, None)
    for name, case in CASES.items():
        if only not in name:
            continue
        forward_torch, grads_torch = torch_fn(case)
        forward, grads = _passes(case, _stock)
        our_forward, our_grads = _passes(case, convolutions.conv)
        label = f"{name} {tuple(case)}"
        yield f"{label}, forward", forward, our_forward, forward_torch
        yield f"{label}, gradients", grads, our_grads, grads_torch
    if only in "resnet20 step, batch 128":
        theirs = _torch_step() if with_torch else None
        stock, ours = _step(nn.Conv), _step(convolutions.Conv)
        yield "resnet20 step, batch 128", stock, ours, theirs


def _stock(
    images: jax.Array,
    kernel: jax.Array,
    *,
    strides: tuple[int, int],
    padding: Any,
    feature_group_count: int,
) -> jax.Array:
    return lax.conv_general_dilated(
        images,
        kernel,
        strides,
        padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=feature_group_count,
    )


def _passes(case: Case, conv: Any) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """The forward pass and the backward pass alone."""
    pad = case.kernel // 2
    conv = functools.partial(
        conv,
        strides=(case.stride, case.stride),
        padding=((pad, pad), (pad, pad)),
        feature_group_count=case.groups,
    )
    keys = jax.random.split(jax.random.key(0), 3)
    images = jax.random.normal(
        keys[0], (case.batch, case.size, case.size, case.channels)
    )
    kernel = jax.random.normal(
        keys[1],
        (case.kernel, case.kernel, case.channels // case.groups, case.features),
    )
    forward = jax.jit(conv)
    shape = jax.eval_shape(conv, images, kernel).shape
    grad = jax.random.normal(keys[2], shape)
    pullback = jax.jit(lambda x, k, g: jax.vjp(conv, x, k)[1](g))
    return (
        functools.partial(forward, images, kernel),
        functools.partial(pullback, images, kernel, grad),
    )


class _Block(nn.Module):
    features: int
    stride: int
    conv: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        conv = functools.partial(self.conv, use_bias=False)
        norm = functools.partial(nn.BatchNorm, use_running_average=False)
        pads = ((1, 1), (1, 1))
        y = conv(self.features, (3, 3), strides=self.stride, padding=pads)(x)
        y = conv(self.features, (3, 3), padding=pads)(nn.relu(norm()(y)))
        y = norm()(y)
        if x.shape != y.shape:
            none = ((0, 0), (0, 0))
            x = conv(self.features, (1, 1), strides=self.stride, padding=none)(x)
            x = norm()(x)
        return nn.relu(x + y)


class _ResNet20(nn.Module):
    conv: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.conv(16, (3, 3), padding=((1, 1), (1, 1)), use_bias=False)(x)
        x = nn.relu(nn.BatchNorm(use_running_average=False)(x))
        for features in (16, 32, 64):
            for i in range(3):
                stride = 2 if features > 16 and i == 0 else 1
                x = _Block(features, stride, self.conv)(x)
        return nn.Dense(10)(jnp.mean(x, axis=(1, 2)))


def _step(conv: Any) -> Callable[[], Any]:
    """Forward, backward and SGD with momentum, on random images."""
    model, optimizer = _ResNet20(conv), optax.sgd(0.1, momentum=0.9)
    images = jax.random.normal(jax.random.key(0), (128, 32, 32, 3))
    labels = jax.random.randint(jax.random.key(1), (128,), 0, 10)
    variables = jax.jit(model.init)(jax.random.key(2), images)

    def loss_fn(params: Any) -> jax.Array:
        variables_ = {**variables, "params": params}
        logits, _ = model.apply(variables_, images, mutable=["batch_stats"])
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return jnp.mean(losses)

    @jax.jit
    def step(params: Any, state: Any) -> Any:
        loss, grads = jax.value_and_grad(loss_fn)(params)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, loss

    params = variables["params"]
    return functools.partial(step, params, optimizer.init(params))


def _torch_passes(case: Case) -> tuple[Callable[[], Any], Callable[[], Any]]:
    import torch

    layout = torch.channels_last
    images = torch.randn(case.batch, case.channels, case.size, case.size)
    kernel = torch.randn(
        case.features, case.channels // case.groups, case.kernel, case.kernel
    )
    images, kernel = images.to(memory_format=layout), kernel.to(memory_format=layout)
    pad = case.kernel // 2
    forward = functools.partial(
        torch.nn.functional.conv2d,
        images,
        kernel,
        stride=case.stride,
        padding=pad,
        groups=case.groups,
    )
    backward = functools.partial(
        torch.ops.aten.convolution_backward,
        torch.randn_like(forward()),
        images,
        kernel,
        None,
        [case.stride] * 2,
        [pad] * 2,
        [1, 1],
        False,
        [0, 0],
        case.groups,
        [True, True, False],
    )
    return _without_result(forward), _without_result(backward)


def _torch_step() -> Callable[[], Any]:
    import torch

    def block(channels: int, features: int, stride: int) -> Any:
        return torch.nn.ModuleList(
            [
                torch.nn.Sequential(
                    torch.nn.Conv2d(channels, features, 3, stride, 1, bias=False),
                    torch.nn.BatchNorm2d(features),
                    torch.nn.ReLU(),
                    torch.nn.Conv2d(features, features, 3, 1, 1, bias=False),
                    torch.nn.BatchNorm2d(features),
                ),
                torch.nn.Sequential(
                    torch.nn.Conv2d(channels, features, 1, stride, bias=False),
                    torch.nn.BatchNorm2d(features),
                )
                if channels != features
                else torch.nn.Identity(),
            ]
        )

    stem = torch.nn.Sequential(
        torch.nn.Conv2d(3, 16, 3, 1, 1, bias=False),
        torch.nn.BatchNorm2d(16),
        torch.nn.ReLU(),
    )
    plan = [(16, 16, 1)] * 3 + [(16, 32, 2)] + [(32, 32, 1)] * 2
    plan += [(32, 64, 2)] + [(64, 64, 1)] * 2
    blocks = torch.nn.ModuleList([block(*sizes) for sizes in plan])
    head = torch.nn.Linear(64, 10)
    model = torch.nn.ModuleList([stem, blocks, head])
    model = model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, 0.9)
    images = torch.randn(128, 3, 32, 32).to(memory_format=torch.channels_last)
    labels = torch.randint(0, 10, (128,))

    def step() -> None:
        optimizer.zero_grad()
        x = stem(images)
        for residual, shortcut in blocks:
            x = torch.relu(residual(x) + shortcut(x))
        logits = head(x.mean((2, 3)))
        torch.nn.functional.cross_entropy(logits, labels).backward()
        optimizer.step()

    return step


def _without_result(fn: Callable[[], Any]) -> Callable[[], None]:
    def call() -> None:
        fn()

    return call


if __name__ == "__main__":
    main()
