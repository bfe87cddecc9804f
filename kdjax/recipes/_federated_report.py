"""The report of a federation: arms, what crossed, curves, and who held what."""

import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from kdjax import metric_writers
from kdjax.builders.federated import ROUNDS, Experiment
from kdjax.recipes import stages as common
from kdjax.report import plots, study
from kdjax.report.drawing import Drawing
from kdjax.types import UserError
from kdjax.workdir import read_json

FEDMD_ARMS = ("solo", "fedmd", "pooled")

TITLES = {
    "fedavg": "FedAvg",
    "feddf": "FedDF",
    "fedgkd": "FedGKD",
    "solo": "FedMD's clients, each alone",
    "fedmd": "FedMD",
    "pooled": "Each on all private examples",
}
AGAINST = {"feddf": "fedavg", "fedgkd": "fedavg", "fedmd": "solo", "pooled": "fedmd"}
# Keys of a personal result, and what its accuracy is measured on.
MEASURES = {"own": "own classes", "everybody": "all classes"}


def cell(workdir: pathlib.Path, method: str, level: str, seed: int) -> pathlib.Path:
    """The directory of one training."""
    stage = "rounds" if method in ROUNDS else "personal"
    return workdir / stage / level / method / f"seed{seed}"


def fedmd_cell(workdir: pathlib.Path, arm: str, seed: int) -> pathlib.Path:
    """The directory of one training of FedMD."""
    return workdir / "fedmd" / arm / f"seed{seed}"


def write(experiment: Experiment, workdir: pathlib.Path, command: str) -> None:
    """Reports all that is done."""
    arms = [*_round_arms(experiment, workdir), *_personal_arms(experiment, workdir)]
    arms += _fedmd_arms(experiment, workdir)
    if not arms:
        raise UserError(
            f"Expected something to report in {workdir}, but no training is done: run "
            "without --stages."
        )
    about = common.about(
        workdir,
        command,
        num_examples=_num_examples(experiment),
        config=experiment.config,
        source=experiment.source,
    )
    made = study.build(about, arms, facts=[*_facts(experiment)])
    drawings = [*_curves(experiment, workdir), *_holdings(experiment)]
    common.write_study(made, workdir, drawings)


def _round_arms(experiment: Experiment, workdir: pathlib.Path) -> Iterator[study.Arm]:
    for level in experiment.levels:
        found = {
            method: _values(experiment, workdir, method, level, "accuracy")
            for method in experiment.methods
            if method in ROUNDS
        }
        for method, values in found.items():
            if not values:
                continue
            against = AGAINST.get(method, "")
            gain = experiment.accept_gain.get(method, {}).get(level)
            yield study.Arm(
                f"{method}_{level}",
                f"{TITLES[method]}, {_words(level)}",
                values,
                published=experiment.published.get(method, {}).get(level),
                against=f"{against}_{level}" if found.get(against) else None,
                accept_gain=None if gain is None else (gain, None),
                note=_traffic(experiment, *experiment.traffic[method]),
            )


def _personal_arms(
    experiment: Experiment, workdir: pathlib.Path
) -> Iterator[study.Arm]:
    for level in experiment.levels:
        for key, measured in MEASURES.items():
            for kind, who in (("alone", "alone"), ("personal", "taught")):
                values = _values(experiment, workdir, kind, level, key)
                if values:
                    yield study.Arm(
                        f"{kind}_{key}_{level}",
                        f"Own models, {who}; {measured}; {_words(level)}",
                        values,
                        against=None if kind == "alone" else f"alone_{key}_{level}",
                    )


def _values(
    experiment: Experiment, workdir: pathlib.Path, method: str, level: str, key: str
) -> dict[int, float]:
    """What is done so far, by seed."""
    found = {
        seed: read_json(cell(workdir, method, level, seed) / "result.json")
        for seed in experiment.seeds
    }
    return {seed: result[key] for seed, result in found.items() if result}


def _fedmd_arms(experiment: Experiment, workdir: pathlib.Path) -> Iterator[study.Arm]:
    if experiment.fedmd is None:
        return
    size = experiment.fedmd.bytes_each_way
    clients = sum(map(len, experiment.fedmd.clients.values()))
    for arm in FEDMD_ARMS:
        found = {
            seed: read_json(fedmd_cell(workdir, arm, seed) / "result.json")
            for seed in experiment.seeds
        }
        values = {seed: x["accuracy"] for seed, x in found.items() if x}
        if not values:
            continue
        low = experiment.fedmd.accept_gain
        bands = {} if low is None else {"fedmd": (low, None), "pooled": (0.0, None)}
        note = f"{experiment.fedmd.num_examples} test images"
        if arm == "fedmd":
            note = f"{_megabytes(size)} down and up, {clients} clients a round; {note}"
        yield study.Arm(
            arm,
            TITLES[arm],
            values,
            against=AGAINST.get(arm),
            accept_gain=bands.get(arm),
            note=note,
        )


def _facts(experiment: Experiment) -> Iterator[str]:
    if experiment.fedmd is not None:
        yield (
            "FedMD's accuracies are means over clients, on the test images of the "
            "private classes alone."
        )
    if "personal" in experiment.methods:
        yield (
            "Own models are the clients', alone or taught by the global model of "
            f"{TITLES[experiment.personal_teacher]}. Own classes: test images weighed "
            "by the client's own share of each class; the mean over clients."
        )


def _num_examples(experiment: Experiment) -> int:
    """Of the test split, or of its private classes where FedMD is all there is."""
    if experiment.fedmd is not None and len(experiment.methods) == 1:
        return experiment.fedmd.num_examples
    return len(experiment.splits.test)


def _traffic(experiment: Experiment, down: int, up: int) -> str:
    """What crosses in a round, in words."""
    return (
        f"{_megabytes(down)} down and {_megabytes(up)} up, each of "
        f"{experiment.participants} clients a round"
    )


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.2f} MB"


def _words(level: str) -> str:
    """`'dirichlet_0.1'` as `'Dirichlet 0.1'`."""
    name, _, value = level.partition("_")
    return f"Dirichlet {value}" if name == "dirichlet" else f"{value} shards"


def _curves(experiment: Experiment, workdir: pathlib.Path) -> Iterator[Drawing]:
    """Test accuracy by round, of each method and seed."""
    methods = [m for m in experiment.methods if m in ROUNDS]
    for level in experiment.levels:
        runs = {
            m: [_curve(cell(workdir, m, level, s)) for s in experiment.seeds]
            for m in methods
        }
        yield from _drawing(f"rounds_{level}", runs, _words(level))
    if experiment.fedmd is not None:
        runs = {
            arm: [_curve(fedmd_cell(workdir, arm, s)) for s in experiment.seeds]
            for arm in FEDMD_ARMS
        }
        yield from _drawing("rounds_fedmd", runs, "FedMD")


def _drawing(
    name: str, runs: Mapping[str, Sequence[Any]], title: str
) -> Iterator[Drawing]:
    series = [
        plots.Series(TITLES[method], some[0][0], [values for _, values in some])
        for method, some in runs.items()
        if all(len(rounds) for rounds, _ in some)
    ]
    if series:
        yield plots.lines(
            name,
            "Test accuracy after each round; thin lines are seeds.",
            series,
            xlabel="Round",
            ylabel="Test accuracy (%)",
            title=title,
        )


def _curve(directory: pathlib.Path) -> tuple[list[float], list[float]]:
    rows = [r for r in metric_writers.read(directory) if "test_accuracy" in r]
    return [row["epoch"] for row in rows], [row["test_accuracy"] for row in rows]


def _holdings(experiment: Experiment) -> Iterator[Drawing]:
    """How many examples of each class each client holds, of the first seed."""
    seed, names = experiment.seeds[0], experiment.splits.train.class_names
    if any(method in ROUNDS for method in experiment.methods):
        for level in experiment.levels:
            counts = experiment.label_counts(level, seed)
            yield _holding(f"clients_{level}", counts, names, _words(level))
    if experiment.fedmd is not None:
        classes = experiment.config["federated"]["fedmd"]["classes"]
        counts = experiment.fedmd.label_counts(seed)
        yield _holding("clients_fedmd", counts, [names[c] for c in classes], "FedMD")


def _holding(name: str, counts: Any, names: Sequence[str], title: str) -> Drawing:
    return plots.heatmap(
        name,
        "How many examples of each class each client holds, of the first seed.",
        counts.T,
        rows=names,
        columns=[str(client) for client in range(len(counts))],
        ylabel="Class",
        xlabel="Client",
        title=title,
        digits=None,
        label="Examples",
    )
