"""Several teachers: trained from other seeds or as other networks, taught as one.

The stages `teacher`, `cache`, `student`, `baseline` and `report` leave in the work
directory:

    workdir/
      teacher/teacher0/        inputs.json, checkpoints/, metrics.jsonl, result.json,
                                 variables.safetensors, predictions.npz (test logits)
      cache/teacher0/          its logits, by view and example
      student/one/seed0/       the student of a single teacher
      student/logits5/seed0/   the student of five, by the mean of their logits
      baseline/seed0/          the same student without a teacher
      report/                  report.html, report.json, figures
"""

import functools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from kdjax import fingerprints, losses, parallel
from kdjax import teacher_cache as caches
from kdjax.builders.ensemble import Experiment, Teacher, build
from kdjax.data import sources
from kdjax.recipes import stages as common
from kdjax.report import plots, study
from kdjax.report.drawing import Drawing
from kdjax.training import predict_split
from kdjax.types import Variables
from kdjax.workdir import begin, read_json, require, write_arrays

__all__ = ["build", "run"]

PREDICTIONS = "predictions.npz"
ONE = "one"  # The student of one teacher: all ways of combining are the same.

TITLES = {
    "logits": "mean logits",
    "probs": "mean probabilities",
    "losses": "mean losses",
    "confidence": "losses by confidence",
}


def _run_teachers(experiment: Experiment, workdir: pathlib.Path) -> None:
    for i, teacher in enumerate(experiment.teachers):
        common.train(
            teacher.training(),
            _teacher_directory(workdir, i),
            teacher.inputs,
            functools.partial(_keep, experiment, teacher.predict),
        )


def _run_caches(experiment: Experiment, workdir: pathlib.Path) -> None:
    """Stores each teacher's logits of every view of every example, if cached."""
    if not experiment.cached:
        return
    for i, teacher in enumerate(experiment.teachers):
        variables = _variables(teacher, workdir, i)
        manifest = teacher.manifest(variables)
        common.write_cache(
            _cache_directory(workdir, i),
            manifest,
            teacher.compute(variables),
            batch_size=experiment.batch_size,
            name=f"cache of teacher {i}",
        )


def _run_students(experiment: Experiment, workdir: pathlib.Path) -> None:
    """One student for each way, number of teachers and seed."""
    variables = [_variables(t, workdir, i) for i, t in enumerate(experiment.teachers)]
    known = [fingerprints.fingerprint_tree(x) for x in variables]
    opened: list[caches.Cache] = []
    for name, (way, count) in _kinds(experiment).items():
        for seed in experiment.seeds:
            chosen = experiment.chosen(count, seed)
            directory = workdir / "student" / name / f"seed{seed}"
            taught = {"way": way, "teachers": [known[i] for i in chosen]}
            inputs = {**experiment.inputs["student"], **taught}
            if begin(directory, inputs) is not None:
                continue
            if experiment.cached and not opened:
                opened = _open_caches(experiment, workdir, variables)
            common.train(
                experiment.student_training(way, count, seed, variables, opened),
                directory,
                inputs,
                functools.partial(_keep, experiment, experiment.predict),
            )


def _open_caches(
    experiment: Experiment, workdir: pathlib.Path, variables: Sequence[Variables]
) -> list[caches.Cache]:
    return [
        caches.open(_cache_directory(workdir, i), teacher.manifest(variables[i]))
        for i, teacher in enumerate(experiment.teachers)
    ]


def _run_baselines(experiment: Experiment, workdir: pathlib.Path) -> None:
    for seed in experiment.seeds:
        common.train(
            experiment.baseline_training(seed),
            workdir / "baseline" / f"seed{seed}",
            experiment.inputs["baseline"],
            functools.partial(_keep, experiment, experiment.predict),
        )


def _keep(
    experiment: Experiment, predict: Any, state: Any, directory: pathlib.Path
) -> Mapping[str, Any]:
    """Writes a model's variables and its logits on the test split."""
    variables = state.eval_variables
    logits, labels = predict_split(
        predict, variables, experiment.splits.test, experiment.batch_size
    )
    common.keep_variables(directory, variables)
    if parallel.is_main_process():
        write_arrays(directory / PREDICTIONS, {"logits": logits})
    return {"accuracy": _accuracy(logits, labels)}


def _accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
    """In %."""
    return 100 * float(np.mean(logits.argmax(axis=-1) == labels))


def _kinds(experiment: Experiment) -> dict[str, tuple[str, int]]:
    """Way and number of teachers of each kind of student, by name."""
    kinds = {ONE: (experiment.ways[0], 1)} if 1 in experiment.counts else {}
    for way in experiment.ways:
        for count in experiment.counts:
            if count > 1:
                kinds[f"{way}{count}"] = (way, count)
    return kinds


def _teacher_directory(workdir: pathlib.Path, index: int) -> pathlib.Path:
    return workdir / "teacher" / f"teacher{index}"


def _cache_directory(workdir: pathlib.Path, index: int) -> pathlib.Path:
    return workdir / "cache" / f"teacher{index}"


def _variables(teacher: Teacher, workdir: pathlib.Path, index: int) -> Variables:
    return common.load_variables(teacher.network, _teacher_directory(workdir, index))


def _report(experiment: Experiment, workdir: pathlib.Path, command: str) -> None:
    about = common.about(
        workdir,
        command,
        num_examples=len(experiment.splits.test),
        test=experiment.splits.test,
        config=experiment.config,
        source=experiment.published["source"],
    )
    arms = _arms(experiment, workdir)
    drawings = [_by_count(experiment, {arm.name: arm for arm in arms})]
    common.write_study(study.build(about, arms), workdir, drawings)


def _arms(experiment: Experiment, workdir: pathlib.Path) -> list[study.Arm]:
    kinds = _kinds(experiment)
    reference = ONE if ONE in kinds else "baseline"
    teachers = [_teacher_directory(workdir, i) for i in range(len(experiment.teachers))]
    logits = np.stack([_logits(directory) for directory in teachers])
    labels = sources.labels(experiment.splits.test)
    arms = [
        study.Arm(
            f"teachers{count}",
            "A teacher" if count == 1 else f"Ensemble of {count} teachers",
            {
                seed: _ensemble(logits[list(experiment.chosen(count, seed))], labels)
                for seed in experiment.seeds
            },
            note="those of the seed's students",
        )
        for count in experiment.counts
    ]
    baselines = _by_seed(experiment, workdir / "baseline")
    arms.append(study.Arm("baseline", "Student alone", baselines))
    for name, (way, count) in kinds.items():
        title = f"Student of {count}, {TITLES[way]}"
        arms.append(
            study.Arm(
                name,
                "Student of one teacher" if name == ONE else title,
                _by_seed(experiment, workdir / "student" / name),
                against="baseline" if name == ONE else reference,
            )
        )
    return arms


def _ensemble(logits: np.ndarray, labels: np.ndarray) -> float:
    """Accuracy of the mean of the teachers' probabilities, in %."""
    return _accuracy(np.asarray(losses.average_probs(jnp.asarray(logits))), labels)


def _logits(directory: pathlib.Path) -> np.ndarray:
    require(directory)
    with np.load(directory / PREDICTIONS, allow_pickle=False) as arrays:
        return arrays["logits"]


def _by_seed(experiment: Experiment, directory: pathlib.Path) -> dict[int, float]:
    found = {}
    for seed in experiment.seeds:
        require(directory / f"seed{seed}")
        result = read_json(directory / f"seed{seed}" / "result.json") or {}
        found[seed] = result["accuracy"]
    return found


def _by_count(experiment: Experiment, arms: Mapping[str, study.Arm]) -> Drawing:
    """Accuracy by the number of teachers."""

    def series(label: str, names: Sequence[str], **more: Any) -> plots.Series:
        runs = [[arms[name].values[s] for name in names] for s in experiment.seeds]
        return plots.Series(label, experiment.counts, runs, **more)

    drawn = [
        series(
            f"student, {TITLES[way]}",
            [ONE if n == 1 else f"{way}{n}" for n in experiment.counts],
        )
        for way in experiment.ways
    ]
    drawn.append(
        series("the teachers themselves", [f"teachers{n}" for n in experiment.counts])
    )
    alone = ["baseline"] * len(experiment.counts)
    drawn.append(series("student alone", alone, reference=True))
    return plots.lines(
        "accuracy_by_count",
        "Test accuracy by the number of teachers; thin lines are seeds.",
        drawn,
        xlabel="Teachers",
        ylabel="Accuracy (%)",
        title="What more teachers bring",
    )


run = common.Runner(
    {
        "teacher": _run_teachers,
        "cache": _run_caches,
        "student": _run_students,
        "baseline": _run_baselines,
    },
    _report,
)
