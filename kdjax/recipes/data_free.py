"""Distillation without data: a student learns from images that a generator makes.

The stages `teacher`, `real`, `generated`, `noise` and `report` leave in the work
directory:

    workdir/
      teacher/            inputs.json, checkpoints/, metrics.jsonl, result.json,
      real/seed0/           variables.safetensors: trained on real images
      dafl/               students and generators of all seeds, trained as one state:
                            student0.safetensors..., generator0.safetensors...
        generated/          what the same latents give as the generator learns: .npz
      dafl_noise/         the same students on normal noise, the control
      report/             report.html, report.json, figures

Of real images only the teacher learns, and the student of `real`, the upper reference.
They enter no other training: what is measured on them there is written to the metrics
and read by nobody, and the last step counts.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from kdjax import fingerprints, members, metric_writers, parallel, pretrained
from kdjax.builders.data_free import Arm, Experiment, build
from kdjax.data_free import DataFreeState
from kdjax.recipes import stages as common
from kdjax.report import plots, study
from kdjax.report.drawing import Drawing
from kdjax.steps import TrainState
from kdjax.training import Training
from kdjax.types import Variables
from kdjax.workdir import read_json, require, write_arrays

__all__ = ["build", "run"]

GENERATED = "generated"
MAX_ROWS = 7  # Of a sheet of images.
NAMES = {"dafl": "DAFL", "dfad": "DFAD", "zskt": "ZSKT"}


def _teacher(experiment: Experiment, workdir: pathlib.Path) -> None:
    """Trains the teacher, or imports it."""
    directory, inputs = workdir / "teacher", experiment.inputs["teacher"]
    pretrained = experiment.teacher_pretrained
    if pretrained is None:
        keep = functools.partial(_keep_one, experiment, "teacher")
        common.train(experiment.teacher_training(), directory, inputs, keep)
        return
    keep_variables = functools.partial(_keep_variables, experiment, "teacher")
    common.import_model(
        experiment.teacher, pretrained, directory, inputs, keep_variables
    )


def _real(experiment: Experiment, workdir: pathlib.Path) -> None:
    """The students on real images: the upper reference."""
    teacher = common.load_variables(experiment.teacher, workdir / "teacher")
    inputs = {
        **experiment.inputs["real"],
        "teacher": fingerprints.fingerprint_tree(teacher),
    }
    for seed in experiment.seeds:
        common.train(
            experiment.real_training(seed, teacher),
            workdir / "real" / f"seed{seed}",
            inputs,
            functools.partial(_keep_one, experiment, "student"),
        )


def _arms(experiment: Experiment, workdir: pathlib.Path, *, on_noise: bool) -> None:
    """The students on generated images, or their controls."""
    teacher = common.load_variables(experiment.teacher, workdir / "teacher")
    for name, arm in experiment.arms.items():
        if arm.on_noise == on_noise:
            inputs = {
                **arm.inputs,
                "teacher_variables": fingerprints.fingerprint_tree(teacher),
            }
            directory = workdir / name
            common.train(
                _showing(arm, arm.training(teacher), directory),
                directory,
                inputs,
                functools.partial(_keep_all, experiment, arm),
            )


def _showing(arm: Arm, training: Training, directory: pathlib.Path) -> Training:
    """Writes what the generator makes at each evaluation, beside the metrics."""
    if arm.on_noise:
        return training

    def evaluate(state: DataFreeState) -> dict[str, float]:
        if parallel.is_main_process():
            folder = directory / GENERATED
            folder.mkdir(exist_ok=True)
            path = folder / f"{int(state.step):08d}.npz"
            write_arrays(path, {"images": arm.images(state)})
        return training.evaluate(state)

    return dataclasses.replace(training, evaluate=evaluate)


def _keep_one(
    experiment: Experiment, role: str, state: TrainState, directory: pathlib.Path
) -> Mapping[str, Any]:
    return _keep_variables(experiment, role, state.eval_variables, directory)


def _keep_variables(
    experiment: Experiment, role: str, variables: Variables, directory: pathlib.Path
) -> Mapping[str, Any]:
    common.keep_variables(directory, variables)
    return {"test_accuracy": experiment.accuracy(role, variables)}


def _keep_all(
    experiment: Experiment, arm: Arm, state: DataFreeState, directory: pathlib.Path
) -> Mapping[str, Any]:
    """Writes the models of every seed; how the students do is the arm's result."""
    accuracies = {}
    for i, seed in enumerate(experiment.seeds):
        student = members.member(state.student, i).eval_variables
        accuracies[str(seed)] = experiment.accuracy("student", student)
        models = {"student": student}
        if not arm.on_noise:
            models["generator"] = members.member(state.generator, i).eval_variables
        if parallel.is_main_process():
            for name, variables in models.items():
                path = directory / f"{name}{seed}.safetensors"
                pretrained.save_safetensors(path, jax.device_get(variables))
    return {"test_accuracy": accuracies}


def _report(experiment: Experiment, workdir: pathlib.Path, command: str) -> None:
    about = common.about(
        workdir,
        command,
        num_examples=len(experiment.splits.test),
        test=experiment.splits.test,
        config=experiment.config,
        source=experiment.published["source"],
    )
    arms = [*_references(experiment, workdir), *_trials(experiment, workdir)]
    facts = [
        "No real image entered the training of a student or a generator, but for the "
        "student on real images: only the teacher's variables and the mean and "
        "variance by which it normalises pixels.",
        "Nothing was chosen by accuracy: the last step counts. What the curves show "
        "was measured on real images and used for nothing else.",
    ]
    drawings = [
        _curves(experiment, workdir, "validation_accuracy"),
        _curves(experiment, workdir, "student_agreement"),
        *_sheets(experiment, workdir),
    ]
    made = study.build(about, arms, facts=facts)
    common.write_study(made, workdir, [x for x in drawings if x is not None])


def _references(experiment: Experiment, workdir: pathlib.Path) -> Iterator[study.Arm]:
    """Those trained on real images."""
    published = experiment.published if experiment.published["source"] else {}
    bands = published.get("accept", {})
    values = {seed: workdir / "real" / f"seed{seed}" for seed in experiment.seeds}
    for role, name, title, directories in (
        ("teacher", "teacher", "teacher", {0: workdir / "teacher"}),
        ("student", "real", "student on real images", values),
    ):
        yield study.Arm(
            name,
            title,
            {seed: _accuracy(directory) for seed, directory in directories.items()},
            published=published.get(role),
            accept=tuple(bands[role]) if role in bands else None,
        )


def _trials(experiment: Experiment, workdir: pathlib.Path) -> Iterator[study.Arm]:
    """Each method, and its control below it."""
    compared = bool(experiment.published["source"])
    for name, arm in experiment.arms.items():
        settings = experiment.config["data_free"][arm.method]
        accuracies = _accuracy(workdir / name)
        trial = study.Arm(
            name,
            f"{NAMES[arm.method]}{', on noise' if arm.on_noise else ''}",
            {seed: accuracies[str(seed)] for seed in experiment.seeds},
            published=settings["published_noise" if arm.on_noise else "published"],
            accept=_at_least(settings["accept"]),
            against=f"{name}_noise",
            accept_gain=_at_least(settings["accept_gain"]),
            note=f"{_updates(experiment, name):,} updates",
        )
        if arm.on_noise:
            trial = dataclasses.replace(
                trial, accept=None, against=None, accept_gain=None
            )
        if not compared:
            trial = dataclasses.replace(
                trial, published=None, accept=None, accept_gain=None
            )
        yield trial


def _at_least(value: float | None) -> tuple[float, None] | None:
    return None if value is None else (value, None)


def _accuracy(directory: pathlib.Path) -> Any:
    require(directory)
    return (read_json(directory / "result.json") or {})["test_accuracy"]


def _updates(experiment: Experiment, name: str, steps: int | None = None) -> int:
    """Of the student, after so many steps or all of them."""
    settings = experiment.config["data_free"][experiment.arms[name].method]
    if steps is None:
        steps = settings["num_epochs"] * settings["steps_per_epoch"]
    return steps * settings["student_steps"]


def _curves(
    experiment: Experiment, workdir: pathlib.Path, quantity: str
) -> Drawing | None:
    """A quantity over the updates of the student, in %."""
    captions = {
        "validation_accuracy": "Accuracy on real images that no training saw, by the "
        "updates of the student: for the reader alone. Thin: seeds; thick: their mean.",
        "student_agreement": "How often student and teacher name the same class, on "
        "the images that the student has just learnt from; mean over the seeds.",
    }
    series = []
    for name, arm in experiment.arms.items():
        label = f"{NAMES[arm.method]}{', noise' if arm.on_noise else ''}"
        x, runs = _history(experiment, workdir / name, quantity)
        if len(x):
            updates = [_updates(experiment, name, int(step)) for step in x]
            series.append(plots.Series(label, updates, 100 * runs))
    if not series:
        return None
    end = max(int(max(one.x)) for one in series)
    series += _level(experiment, workdir, quantity, end)
    return plots.lines(
        quantity,
        captions[quantity],
        series,
        xlabel="Updates of the student",
        ylabel="Accuracy (%)" if "accuracy" in quantity else "Agreement (%)",
        title=quantity.replace("_", " ").capitalize(),
    )


def _level(
    experiment: Experiment, workdir: pathlib.Path, quantity: str, end: int
) -> list[plots.Series]:
    """Where the students on real images came to, from the first to the last update."""
    paths = [workdir / "real" / f"seed{seed}" for seed in experiment.seeds]
    rows = [(metric_writers.read(path) or [{}])[-1] for path in paths]
    values = [100 * row[quantity] for row in rows if quantity in row]
    if not values:
        return []
    level = float(np.mean(values))
    return [plots.Series("real images", [0, end], [level, level], reference=True)]


def _history(
    experiment: Experiment, directory: pathlib.Path, quantity: str
) -> tuple[np.ndarray, np.ndarray]:
    """Steps `[points]` and values `[runs, points]`: of all seeds, or of their mean."""
    of_seeds = [f"{quantity}_seed{seed}" for seed in experiment.seeds]
    rows = metric_writers.read(directory)
    names = of_seeds if any(of_seeds[0] in row for row in rows) else [quantity]
    rows = [row for row in rows if names[0] in row]
    steps = np.asarray([row["step"] for row in rows])
    return steps, np.asarray([[row[name] for row in rows] for name in names])


def _sheets(experiment: Experiment, workdir: pathlib.Path) -> Iterator[Drawing]:
    """Of each method the images of the same latents as the generator learns."""
    for name, arm in experiment.arms.items():
        paths = sorted((workdir / name / GENERATED).glob("[0-9]*.npz"))
        if arm.on_noise or not paths:
            continue
        places = np.linspace(0, len(paths) - 1, min(MAX_ROWS, len(paths)))
        chosen = [paths[round(place)] for place in places]
        rows, titles = [], []
        for path in chosen:
            with np.load(path, allow_pickle=False) as arrays:
                rows.append(arrays["images"])
            titles.append(f"{int(path.stem):,}")
        yield plots.image_grid(
            f"generated_{name}",
            f"{NAMES[arm.method]}: what the generator of the first seed makes of the "
            "same latents, one a column, after as many updates as stand above the row.",
            rows,
            titles,
        )


run = common.Runner(
    {
        "teacher": _teacher,
        "real": _real,
        "generated": functools.partial(_arms, on_noise=False),
        "noise": functools.partial(_arms, on_noise=True),
    },
    _report,
)
