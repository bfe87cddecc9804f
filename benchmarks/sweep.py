"""How many steps a second do many students make together, and one after another?

Run:
  python benchmarks/sweep.py [--models=mlp,resnet20] [--students=1,4,16,64,256]
    [--rounds=5] [--torch]

One JSON line for each model and number of students: students times steps a second,
median and middle half of the rounds, of

* `vmap`: one program of all, those of a seed sharing their batches (four seeds);
* `loop`: a program of one, run for each over that shared batch;
* `single`: the program of `kdjax.main` without a sweep, again and again;
* `torch`: PyTorch's step of the same network, loss and optimizer, with `--torch`.

The first three take turns in one process; PyTorch follows, lest its threads disturb
them. `vmap_ratio` and `loop_ratio` are over `single`, `torch_ratio` is the better form
over PyTorch. Where `vmap` does not fit in memory it runs in chunks of
`vmap_students_per_program`. The images are noise, and the teacher's logits are cached
zeros: neither changes what a step costs.
"""

import argparse
import json
import os
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from kdjax import default_config, measure, sweep
from kdjax.builders import sweep as builder
from kdjax.sweep import plan

BATCH = 128
NUM_EXAMPLES = 4096
SEEDS = 4
CALLS = 3  # Of a program in a round of `single` and `torch`.


class Model(NamedTuple):
    """A student, the images it sees, and its optimizer."""

    model: Mapping[str, Any]
    shape: tuple[int, int, int]
    optimizer: str


MODELS = {
    "mlp": Model(dict(name="mlp", hidden=(800, 800)), (28, 28, 1), "adamw"),
    "resnet20": Model(dict(name="resnet20"), (32, 32, 3), "sgd"),
}


def main() -> None:
    """Prints every measurement that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default="mlp,resnet20")
    parser.add_argument("--students", default="1,4,16,64,256")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--torch", action="store_true")
    args = parser.parse_args()
    for name in args.models.split(","):
        torch_rates = None
        for count in map(int, args.students.split(",")):
            record = compare(name, count, args.rounds)
            if args.torch:
                # One PyTorch student after another: as many steps a second as one.
                torch_rates = torch_rates or torch_steps(name, args.rounds)
                record |= _summary("torch", torch_rates)
                best = max(record["vmap"], record["loop"])
                record["torch_ratio"] = round(best / record["torch"], 2)
            print(json.dumps(record), flush=True)


def compare(name: str, count: int, rounds: int) -> dict[str, Any]:
    """Times both forms and the single run, in turns."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "noise.npz"
        _write_noise(path, MODELS[name].shape)
        experiment = builder.build(_config(name, count, path))
    (group,) = experiment.groups
    trainer = sweep.Trainer(
        experiment,
        experiment.offline.teacher.init(jax.random.key(0)),
        lambda stored: stored.blank(),
    )
    single = _single(experiment, group)
    rates: dict[str, list[float]] = {"vmap": [], "loop": [], "single": []}
    entries: dict[str, Any] = {}
    for _ in range(rounds):
        for form in ("vmap", "loop"):
            options = experiment.options
            chosen = builder.Options(**{**vars(options), "form": form})
            (entry,) = plan.make(trainer, [group], chosen)
            rates[form].append(1 / entry["seconds_by_form"][form])
            entries.setdefault(form, entry)
        rates["single"].append(single())
    record: dict[str, Any] = {"model": name, "students": count, "rounds": rounds}
    for form, found in rates.items():
        record |= _summary(form, found)
    for form in ("vmap", "loop"):
        record[f"{form}_ratio"] = round(record[form] / record["single"], 2)
        record[f"{form}_compile_s"] = round(entries[form]["compile_seconds"], 1)
        record[f"{form}_peak_mib"] = entries[form]["peak_bytes"] // 2**20
    return record | {
        "vmap_students_per_program": entries["vmap"]["students_per_program"],
        "batch_size": BATCH,
        "dtype": "float32",
        "jax": jax.__version__,
        "device": jax.devices()[0].device_kind,
        "cores": len(os.sched_getaffinity(0)),
        "commit": measure.commit(),
    }


def _config(name: str, count: int, path: pathlib.Path) -> Any:
    """So many students of up to four seeds, that differ in their temperature."""
    model, _, optimizer = MODELS[name]
    config = default_config.get_config()
    config.dataset.update(path=str(path), validation=0)
    seeds = range(min(count, SEEDS))
    temperatures = tuple(1.0 + i for i in range(count // len(seeds)))
    for role in (config.teacher, config.student):
        role.model.update(**model)
        role.train.update(batch_size=BATCH, num_epochs=2, num_views=1)
        role.train.optimizer.update(name=optimizer)
        role.train.learning_rate.update(base=1e-3)
    config.sweep = default_config.axes(
        {"distill.temperature": temperatures, "seed": seeds}
    )
    return config


def _write_noise(path: pathlib.Path, shape: Sequence[int]) -> None:
    rng = np.random.default_rng(0)
    arrays: dict[str, np.ndarray] = {}
    for split, size in (("train", NUM_EXAMPLES), ("test", BATCH)):
        pixels = rng.integers(0, 256, (size, *shape), np.uint8)
        arrays |= {f"{split}_images": pixels, f"{split}_labels": np.arange(size) % 10}
    np.savez(path, allow_pickle=False, **arrays)


class _Blank:
    """What a training asks of a cache, all zero."""

    def __init__(self, stored: builder.Stored):
        self.manifest = stored.manifest({})
        self.read_all = stored.blank


def _single(
    experiment: builder.Experiment, group: builder.Group
) -> Callable[[], float]:
    """Times the program that trains one student without a sweep: steps a second."""
    assert group.cache is not None
    cache: Any = _Blank(group.cache)
    training = experiment.offline.student_training(0, {}, cache)
    count = min(training.steps_per_dispatch, training.steps_per_epoch)
    program: Any = training.programs(count)
    state = training.parallel.replicate(training.init())
    arguments = training.parallel.replicate((training.constants, training.hparams))
    inputs = next(training.loader.inputs(0))
    state, _ = jax.block_until_ready(program(state, *arguments, inputs))

    def steps_a_second() -> float:
        nonlocal state
        calls, started = 0, time.perf_counter()
        while calls < CALLS or time.perf_counter() - started < plan.MIN_SECONDS:
            state, _ = program(state, *arguments, inputs)
            calls += 1
            jax.block_until_ready(state)
        return calls * count / (time.perf_counter() - started)

    return steps_a_second


def torch_steps(name: str, rounds: int) -> list[float]:
    """Steps a second of PyTorch, once for each round."""
    import torch
    from torch.nn import functional as F

    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = (_torch_mlp() if name == "mlp" else _torch_resnet20()).to(device)
    if MODELS[name].optimizer == "sgd":
        optimizer: Any = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    else:
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    height, width, channels = MODELS[name].shape
    pixels = torch.rand(BATCH, channels, height, width, device=device)
    if device.type == "cpu":
        pixels = pixels.to(memory_format=torch.channels_last)
        model = model.to(memory_format=torch.channels_last)
    labels = torch.arange(BATCH, device=device) % 10
    target = torch.zeros(BATCH, 10, device=device).softmax(1)

    def step() -> None:
        optimizer.zero_grad()
        logits = model(pixels)
        soft = F.kl_div((logits / 4).log_softmax(1), target, reduction="batchmean")
        (0.9 * 16 * soft + 0.1 * F.cross_entropy(logits, labels)).backward()
        optimizer.step()

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    rates = []
    for _ in range(rounds + 1):  # The first warms up.
        calls, started = 0, time.perf_counter()
        while calls < CALLS or time.perf_counter() - started < plan.MIN_SECONDS:
            step()
            wait()
            calls += 1
        rates.append(calls / (time.perf_counter() - started))
    return rates[1:]


def _torch_mlp() -> Any:
    from torch import nn

    return nn.Sequential(
        nn.Flatten(),
        *(nn.Linear(784, 800), nn.ReLU()),
        *(nn.Linear(800, 800), nn.ReLU()),
        nn.Linear(800, 10),
    )


def _torch_resnet20() -> Any:
    from torch import nn

    def convolution(before: int, after: int, stride: int) -> list[Any]:
        return [
            nn.Conv2d(before, after, 3, stride, 1, bias=False),
            nn.BatchNorm2d(after),
        ]

    class Block(nn.Module):
        """Two convolutions, and what goes around them."""

        def __init__(self, before: int, after: int, stride: int):
            super().__init__()
            self.inner = nn.Sequential(
                *convolution(before, after, stride),
                nn.ReLU(),
                *convolution(after, after, 1),
            )
            self.around: Any = nn.Identity()
            if before != after:
                self.around = nn.Sequential(
                    nn.Conv2d(before, after, 1, stride, bias=False),
                    nn.BatchNorm2d(after),
                )

        def forward(self, x: Any) -> Any:
            return (self.inner(x) + self.around(x)).relu()

    blocks, before = [], 16
    for width in (16, 32, 64):
        for i in range(3):
            blocks.append(Block(before, width, 2 if i == 0 and width > 16 else 1))
            before = width
    ends = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))
    return nn.Sequential(*convolution(3, 16, 1), nn.ReLU(), *blocks, *ends)


def _summary(name: str, rates: Sequence[float]) -> dict[str, Any]:
    low, _, high = np.percentile(rates, (25, 50, 75)).tolist()
    return {
        name: round(statistics.median(rates), 1),
        f"{name}_spread": [round(low, 1), round(high, 1)],
    }


if __name__ == "__main__":
    main()
