"""A good teacher is patient and consistent: the same view for teacher and student.

The stages leave in the work directory:

    workdir/
      teacher/          as offline distillation leaves it,
      cache/clean/      its logits of the images as they are,
        views/            and of each augmented view
      fixed/x1/ x4/...  students of augmented views, the teacher of clean images (from
                          the cache), for so many times the shortest schedule
      consistent/       the teacher of the very view, run in every step
      replayed/         the same from the cache
      funmatch/         the teacher of the very view, images mixed
      report/           report.html, report.json, figures
"""

import functools
import pathlib
from collections.abc import Iterator, Mapping

import numpy as np

from kdjax import fingerprints, metric_writers
from kdjax import teacher_cache as caches
from kdjax.builders.consistency import ARMS, Experiment, build
from kdjax.checkpoints import BEST_METRIC
from kdjax.data import sources
from kdjax.recipes import _students, offline
from kdjax.recipes import stages as common
from kdjax.recipes._students import Trained, teacher_arm
from kdjax.report import plots, statistics, study
from kdjax.report.drawing import Drawing
from kdjax.types import Variables

__all__ = ["build", "run"]

SOURCE = (
    "Beyer et al. 2022, figures of big_vision's config_distill: "
    "https://arxiv.org/abs/2106.05237"
)
PUBLISHED = (
    "Published (ImageNet, BiT-M R152x2 into BiT R50, accuracy at 300, 1200 and 9600 "
    "epochs): function matching 80.30, 81.54, 82.31; consistent teacher 80.08, 81.15, "
    "81.76; fixed teacher 77.76, 78.11, 76.95."
)
TITLES = {
    "fixed": "fixed teacher",
    "consistent": "consistent, online",
    "replayed": "consistent, replayed",
    "funmatch": "function matching",
}
PASS = 8  # Batches of a training in one of the teacher's pass, which keeps nothing.
TOLERANCE = 0.2  # Points, of function matching below consistent, and of a replay.

Done = Mapping[tuple[str, int], Trained]  # By arm and multiple.


def _teacher(experiment: Experiment, workdir: pathlib.Path) -> Variables:
    return common.load_variables(experiment.offline.teacher, workdir / "teacher")


def _write_caches(experiment: Experiment, workdir: pathlib.Path) -> None:
    variables = _teacher(experiment, workdir)
    for name, stored in experiment.stored.items():
        manifest = stored.manifest(variables)
        common.write_cache(
            workdir / "cache" / name,
            manifest,
            stored.compute(variables),
            batch_size=PASS * experiment.offline.batch_size,
            name=f"cache of {name}",
        )


def _train(experiment: Experiment, workdir: pathlib.Path, arm: str) -> None:
    variables = _teacher(experiment, workdir)
    teacher = {"teacher": fingerprints.fingerprint_tree(variables)}
    opened = {
        name: caches.open(workdir / "cache" / name, stored.manifest(variables))
        for name, stored in experiment.stored.items()
    }
    for multiple in experiment.multiples:
        grid = experiment.grid(arm, multiple, variables, opened)
        inputs = {**experiment.inputs, **teacher, "multiple": multiple}
        if arm == "funmatch":
            inputs["mixup"] = experiment.config["consistency"]["mixup"]
        splits = {"test": experiment.offline.splits.test}
        _students.train(grid, workdir / arm / grid.name, inputs, splits)


def _report(experiment: Experiment, workdir: pathlib.Path, command: str) -> None:
    found = {
        (arm, multiple): Trained.at(workdir / arm / f"x{multiple}")
        for arm in ARMS
        for multiple in experiment.multiples
    }
    done = {key: trained for key, trained in found.items() if trained is not None}
    labels = sources.labels(experiment.offline.splits.test)
    teacher = teacher_arm(workdir, experiment.config["seed"], labels)
    is_fashion = experiment.config["dataset"]["name"] == "fashion_mnist"
    about = common.about(
        workdir,
        command,
        num_examples=len(labels),
        config=experiment.config,
        source=SOURCE,
    )
    report = study.build(
        about,
        [teacher, *_arms(experiment, done, is_fashion)],
        facts=[*_facts(experiment, done, len(labels), is_fashion), PUBLISHED],
    )
    drawings = [*_by_length(experiment, done), *_over_training(experiment, workdir)]
    common.write_study(report, workdir, drawings)


def _arms(experiment: Experiment, done: Done, is_fashion: bool) -> Iterator[study.Arm]:
    longest = experiment.multiples[-1]
    against = {
        "consistent": "fixed",
        "replayed": "consistent",
        "funmatch": "consistent",
    }
    accept = {"replayed": (-TOLERANCE, TOLERANCE), "funmatch": (-TOLERANCE, None)}
    for multiple in experiment.multiples:
        for arm in ARMS:
            if (arm, multiple) not in done:
                continue
            other = against.get(arm)
            banded = is_fashion and multiple == longest
            yield study.Arm(
                f"{arm}/x{multiple}",
                f"{TITLES[arm]}, {multiple * experiment.num_epochs} epochs",
                done[arm, multiple].accuracy(arm),
                against=f"{other}/x{multiple}" if (other, multiple) in done else None,
                accept_gain=accept.get(arm) if banded else None,
            )


def _facts(
    experiment: Experiment, done: Done, num_examples: int, is_fashion: bool
) -> Iterator[str]:
    """Whether a consistent teacher is better than a fixed one at the longest."""
    longest = experiment.multiples[-1]
    if ("fixed", longest) not in done:
        return
    fixed = _mean(done["fixed", longest], "fixed")
    error = 100 * statistics.sampling_error(fixed / 100, num_examples)
    for arm in ("consistent", "funmatch"):
        if (arm, longest) in done:
            gain = _mean(done[arm, longest], arm) - fixed
            met = "met" if gain >= error else "missed"
            band = f"; accepted at least one: {met}" if is_fashion else ""
            yield (
                f"At the longest schedule {TITLES[arm]} is {gain:+.2f} points from the "
                f"fixed teacher, {gain / error:+.1f} standard errors of an accuracy on "
                f"{num_examples} examples{band}."
            )


def _mean(trained: Trained, arm: str) -> float:
    return float(np.mean(list(trained.accuracy(arm).values())))


def _by_length(experiment: Experiment, done: Done) -> Iterator[Drawing]:
    """Test accuracy by the length of the schedule."""
    series = []
    for arm in ARMS:
        multiples = [m for m in experiment.multiples if (arm, m) in done]
        values = [done[arm, m].accuracy(arm) for m in multiples]
        if values:
            runs = [[by_seed[seed] for by_seed in values] for seed in values[0]]
            epochs = [m * experiment.num_epochs for m in multiples]
            series.append(plots.Series(TITLES[arm], epochs, runs))
    if series:
        yield plots.lines(
            "schedules",
            "Test accuracy after the last epoch of schedules of several lengths. Thin: "
            "seeds; thick: their mean.",
            series,
            xlabel="Epochs",
            ylabel="Test accuracy (%)",
            title="Patience and consistency",
            xscale="log",
        )


def _over_training(experiment: Experiment, workdir: pathlib.Path) -> Iterator[Drawing]:
    """Validation accuracy by epoch of the longest schedule, mean over seeds."""
    series = []
    for arm in ARMS:
        directory = workdir / arm / f"x{experiment.multiples[-1]}"
        if Trained.at(directory) is None:
            continue
        rows = [
            (row["epoch"], 100 * row[BEST_METRIC])
            for row in metric_writers.read(directory)
            if BEST_METRIC in row
        ]
        if rows:
            epochs, values = zip(*rows, strict=True)
            series.append(plots.Series(TITLES[arm], epochs, values))
    if series:
        yield plots.lines(
            "validation_accuracy",
            "Accuracy on the validation split while training at the longest schedule, "
            "mean over seeds.",
            series,
            xlabel="Epoch",
            ylabel="Validation accuracy (%)",
            title="The longest schedule",
        )


run = common.Runner(
    {
        "teacher": lambda experiment, workdir: offline.run_teacher(
            experiment.offline, workdir
        ),
        "cache": _write_caches,
        **{x: functools.partial(_train, arm=x) for x in ARMS},
    },
    _report,
)
