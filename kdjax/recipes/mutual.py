"""Deep mutual learning: cohorts of students who teach each other, and no teacher.

The stages `alone`, `mutual` and `report` leave in the work directory:

    workdir/
      alone/peers4/seed0/    inputs.json, checkpoints/, metrics.jsonl, result.json,
      mutual/peers2/seed0/     predictions.npz (test logits of all peers after the last
      mutual/mixed/seed0/      epoch), peer0.safetensors, peer1.safetensors...
      report/                report.html, report.json, figures

`alone` trains the same students from the same initial weights on the same batches, by
the same program with the weight of the others at 0. Peer k of a small cohort starts as
peer k of a large one, so that the largest serves as the control of all sizes.
"""

import functools
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from kdjax import cohorts, metric_writers, parallel, pretrained
from kdjax.builders.mutual import Cohort, Experiment, build
from kdjax.cohorts import CohortState
from kdjax.data import sources
from kdjax.recipes import stages as common
from kdjax.report import plots, study
from kdjax.report.drawing import Drawing
from kdjax.workdir import require, write_arrays

__all__ = ["build", "run"]

MIXED = "mixed"
PREDICTIONS = "predictions.npz"

Scores = Mapping[str, Mapping[int, Mapping[str, Any]]]  # By kind and size, by seed.


def _train(experiment: Experiment, workdir: pathlib.Path, *, together: bool) -> None:
    names = experiment.cohorts if together else _controls(experiment).values()
    for name in dict.fromkeys(names):
        cohort = experiment.cohorts[name]
        for seed in experiment.seeds:
            common.train(
                cohort.training(seed, together),
                _directory(workdir, name, seed, together=together),
                cohort.inputs(together),
                functools.partial(_keep, experiment, cohort),
            )


def _keep(
    experiment: Experiment, cohort: Cohort, state: CohortState, directory: pathlib.Path
) -> Mapping[str, Any]:
    logits, labels = cohort.logits(state, experiment.splits.test)
    if parallel.is_main_process():
        write_arrays(directory / PREDICTIONS, {"logits": logits})
        for k, variables in enumerate(jax.device_get(cohort.variables(state))):
            pretrained.save_safetensors(directory / f"peer{k}.safetensors", variables)
    return cohorts.scores(logits, labels)


def _controls(experiment: Experiment) -> dict[str, str]:
    """From each cohort to the one whose students, by themselves, are its control."""
    largest = f"peers{max(experiment.sizes, default=0)}"
    return {x: x if x == MIXED else largest for x in experiment.cohorts}


def _directory(
    workdir: pathlib.Path, name: str, seed: int, *, together: bool
) -> pathlib.Path:
    return workdir / ("mutual" if together else "alone") / name / f"seed{seed}"


def _report(experiment: Experiment, workdir: pathlib.Path, command: str) -> None:
    scores = _scores(experiment, workdir)
    published = experiment.published
    about = common.about(
        workdir,
        command,
        num_examples=len(experiment.splits.test),
        test=experiment.splits.test,
        config=experiment.config,
        source=published["source"],
    )
    arms = [
        arm for name in experiment.cohorts for arm in _arms(name, scores, published)
    ]
    drawings = [
        *_by_size(experiment, scores),
        _by_peer(experiment, scores),
        *_over_training(experiment, workdir),
    ]
    common.write_study(study.build(about, arms), workdir, drawings)


def _scores(experiment: Experiment, workdir: pathlib.Path) -> Scores:
    """What `cohorts.scores` says of every cohort and of its control, by seed."""
    labels = sources.labels(experiment.splits.test)

    def logits(name: str, seed: int, together: bool) -> np.ndarray:
        directory = _directory(workdir, name, seed, together=together)
        require(directory)
        with np.load(directory / PREDICTIONS, allow_pickle=False) as arrays:
            return arrays["logits"]

    found: dict[str, dict[int, Any]] = {}
    for name, control in _controls(experiment).items():
        size = len(experiment.cohorts[name].networks)
        for seed in experiment.seeds:
            both = {
                "mutual": logits(name, seed, True),
                "alone": logits(control, seed, False)[:size],
            }
            for kind, x in both.items():
                by_seed = found.setdefault(f"{kind}/{name}", {})
                by_seed[seed] = cohorts.scores(x, labels)
    return found


def _arms(
    name: str, scores: Scores, published: Mapping[str, Any]
) -> Iterator[study.Arm]:
    """A cohort and its control: the mean over the peers, and their ensemble."""
    size = len(next(iter(scores[f"mutual/{name}"].values()))["accuracy"])
    who = f"{size}, mixed," if name == MIXED else f"{size}"
    compared = published["source"] and name == "peers2"
    accept = () if name == MIXED else tuple(published["accept"].get("gain", ()))
    yield study.Arm(
        f"alone/{name}",
        f"{who} alone, mean",
        _percent(scores[f"alone/{name}"], "accuracy"),
        published=published["baseline"] if compared else None,
    )
    yield study.Arm(
        f"mutual/{name}",
        f"{who} together, mean",
        _percent(scores[f"mutual/{name}"], "accuracy"),
        published=published["student"] if compared else None,
        against=f"alone/{name}",
        accept_gain=accept or None,
    )
    yield study.Arm(
        f"alone/{name}/ensemble",
        f"{who} alone, ensemble",
        _percent(scores[f"alone/{name}"], "ensemble_accuracy"),
    )
    yield study.Arm(
        f"mutual/{name}/ensemble",
        f"{who} together, ensemble",
        _percent(scores[f"mutual/{name}"], "ensemble_accuracy"),
        against=f"alone/{name}/ensemble",
    )


def _percent(
    by_seed: Mapping[int, Mapping[str, Any]], quantity: str
) -> dict[int, float]:
    return {seed: 100 * float(np.mean(x[quantity])) for seed, x in by_seed.items()}


def _by_size(experiment: Experiment, scores: Scores) -> list[Drawing]:
    if len(experiment.sizes) < 2:
        return []

    def runs(kind: str, quantity: str) -> list[list[float]]:
        sizes = [
            _percent(scores[f"{kind}/peers{size}"], quantity)
            for size in experiment.sizes
        ]
        return [[by_seed[seed] for by_seed in sizes] for seed in experiment.seeds]

    series = [
        plots.Series(label, experiment.sizes, runs(kind, quantity))
        for label, kind, quantity in (
            ("together", "mutual", "accuracy"),
            ("each alone", "alone", "accuracy"),
            ("ensemble of those together", "mutual", "ensemble_accuracy"),
            ("ensemble of those alone", "alone", "ensemble_accuracy"),
        )
    ]
    caption = (
        "Test accuracy by the number of students, the mean over them and that of "
        "their ensemble; thin lines are seeds."
    )
    return [
        plots.lines(
            "accuracy_by_size",
            caption,
            series,
            xlabel="Students in the cohort",
            ylabel="Accuracy (%)",
            title="The more peers, the better?",
        )
    ]


def _by_peer(experiment: Experiment, scores: Scores) -> Drawing:
    """What each peer gained, in the mean over the seeds."""
    names = list(experiment.cohorts)
    gains = [
        np.mean(
            [
                np.subtract(
                    scores[f"mutual/{name}"][seed]["accuracy"],
                    scores[f"alone/{name}"][seed]["accuracy"],
                )
                for seed in experiment.seeds
            ],
            axis=0,
        )
        for name in names
    ]
    widest = max(len(x) for x in gains)
    table = np.full((len(gains), widest), np.nan)
    for row, gain in zip(table, gains, strict=True):
        row[: len(gain)] = 100 * gain
    return plots.heatmap(
        "gain_by_peer",
        "Test accuracy of each student in a cohort less that of the same student "
        "alone, in points, the mean over the seeds.",
        table,
        rows=["mixed" if x == MIXED else x.removeprefix("peers") for x in names],
        columns=[str(k) for k in range(widest)],
        ylabel="Cohort",
        xlabel="Student",
        title="What each one gained",
        digits=2,
        label="points",
    )


def _over_training(experiment: Experiment, workdir: pathlib.Path) -> list[Drawing]:
    """How often two peers differ, epoch by epoch, where there is a validation split."""
    series = []
    for name in experiment.cohorts:
        for kind, together in (("together", True), ("alone", False)):
            if not together and name not in _controls(experiment).values():
                continue
            columns = [
                _column(_directory(workdir, name, seed, together=together))
                for seed in experiment.seeds
            ]
            who = "mixed" if name == MIXED else f"{name.removeprefix('peers')} students"
            if all(len(epochs) for epochs, _ in columns):
                runs = [values for _, values in columns]
                series.append(plots.Series(f"{who}, {kind}", columns[0][0], runs))
    if not series:
        return []
    return [
        plots.lines(
            "disagreement",
            "Validation images on which two students of a cohort give different "
            "classes, the mean over pairs; thin lines are seeds.",
            series,
            xlabel="Epoch",
            ylabel="Disagreement (%)",
            title="Do peers become alike?",
        )
    ]


def _column(directory: pathlib.Path) -> tuple[list[float], list[float]]:
    rows = [
        row
        for row in metric_writers.read(directory)
        if "validation_disagreement" in row
    ]
    return (
        [row["epoch"] for row in rows],
        [100 * row["validation_disagreement"] for row in rows],
    )


run = common.Runner(
    {
        "alone": functools.partial(_train, together=False),
        "mutual": functools.partial(_train, together=True),
    },
    _report,
)
