"""Teacher assistants: networks of sizes in between, each taught by the one before it.

The stages `teacher`, `assistant`, `student`, `baseline` and `report` leave in the work
directory:

    workdir/
      teacher/                   inputs.json, checkpoints/, metrics.jsonl, result.json,
      assistant/large/seed0/       variables.safetensors
      assistant/large-small/seed0/
      student/direct/seed0/      the student of the teacher itself
      student/large-small/seed0/   of the small assistant, whom the large one taught
      baseline/seed0/            the same student without a teacher
      cache/                     the logits of every network that teaches, if cached
      report/                    report.html, report.json, figures

A path is the names of the assistants between teacher and student. Networks that two
paths have in common are trained once.
"""

import dataclasses
import functools
import itertools
import pathlib
from collections.abc import Mapping
from typing import Any

from kdjax import fingerprints, metrics
from kdjax import teacher_cache as caches
from kdjax.builders.assistants import STUDENT, TEACHER, Experiment, Link, build
from kdjax.recipes import stages as common
from kdjax.report import plots, study
from kdjax.report.drawing import Drawing
from kdjax.training import predict_split
from kdjax.types import Variables
from kdjax.workdir import begin, read_json, require

__all__ = ["build", "run"]

MAX_ORDERS = 4  # Of adding assistants one by one, in the figure.

Path = tuple[str, ...]


def _run_teacher(experiment: Experiment, workdir: pathlib.Path) -> None:
    common.train(
        experiment.teacher_training(),
        workdir / "teacher",
        experiment.inputs["teacher"],
        functools.partial(_keep, experiment, TEACHER),
    )


def _run_assistants(experiment: Experiment, workdir: pathlib.Path) -> None:
    """Every assistant of every path, those next to the teacher first."""
    for path in filter(None, experiment.paths):
        for seed in experiment.seeds:
            _teach(
                experiment,
                workdir,
                path[:-1],
                path[-1],
                _assistant_directory(workdir, path, seed),
                seed,
            )


def _run_students(experiment: Experiment, workdir: pathlib.Path) -> None:
    for path in experiment.paths:
        for seed in experiment.seeds:
            directory = _student_directory(workdir, path) / f"seed{seed}"
            _teach(experiment, workdir, path, STUDENT, directory, seed)


def _run_baselines(experiment: Experiment, workdir: pathlib.Path) -> None:
    for seed in experiment.seeds:
        common.train(
            experiment.baseline_training(seed),
            workdir / "baseline" / f"seed{seed}",
            experiment.inputs["baseline"],
            functools.partial(_keep, experiment, STUDENT),
        )


def _teach(
    experiment: Experiment,
    workdir: pathlib.Path,
    path: Path,
    name: str,
    directory: pathlib.Path,
    seed: int,
) -> None:
    """Trains the network `name` on the one at the end of `path`."""
    above = path[-1] if path else TEACHER
    link = experiment.link(above, name)
    source = _assistant_directory(workdir, path, seed) if path else workdir / "teacher"
    variables = common.load_variables(experiment.networks[above], source)
    inputs = {**link.inputs, "teacher": fingerprints.fingerprint_tree(variables)}
    if begin(directory, inputs) is not None:
        return  # Before its cache is read, or made once more.
    cache = _cache(experiment, workdir, link, variables, path, seed)
    training = link.training(seed, variables, cache)
    common.train(
        dataclasses.replace(training, name=f"{name} by {_name(path)}, seed {seed}"),
        directory,
        inputs,
        functools.partial(_keep, experiment, name),
    )


def _cache(
    experiment: Experiment,
    workdir: pathlib.Path,
    link: Link,
    variables: Variables,
    path: Path,
    seed: int,
) -> caches.Cache | None:
    """What the network at the end of `path` says of every view; made when first asked.

    The teacher is one for all seeds.
    """
    if not link.cached:
        return None
    place = f"{_name(path)}/seed{seed}" if path else TEACHER
    manifest = link.manifest(variables)
    common.write_cache(
        workdir / "cache" / place,
        manifest,
        link.compute(variables),
        batch_size=experiment.batch_size,
        name=f"cache of {place}",
    )
    return caches.open(workdir / "cache" / place, manifest)


def _keep(
    experiment: Experiment, name: str, state: Any, directory: pathlib.Path
) -> Mapping[str, Any]:
    variables = state.eval_variables
    logits, labels = predict_split(
        experiment.predict[name],
        variables,
        experiment.splits.test,
        experiment.batch_size,
    )
    common.keep_variables(directory, variables)
    return {"accuracy": 100 * float(metrics.accuracy(logits, labels))}


def _name(path: Path) -> str:
    return "-".join(path) or "direct"


def _assistant_directory(workdir: pathlib.Path, path: Path, seed: int) -> pathlib.Path:
    return workdir / "assistant" / _name(path) / f"seed{seed}"


def _student_directory(workdir: pathlib.Path, path: Path) -> pathlib.Path:
    return workdir / "student" / _name(path)


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
    drawings = [_by_length(experiment, {arm.name: arm for arm in arms})]
    common.write_study(study.build(about, arms), workdir, drawings)


def _arms(experiment: Experiment, workdir: pathlib.Path) -> list[study.Arm]:
    by_seed = functools.partial(_by_seed, experiment)
    teacher = _accuracy(workdir / "teacher")
    arms = [
        study.Arm(
            TEACHER, "Teacher", {experiment.seeds[0]: teacher}, note="one for all seeds"
        )
    ]
    for path in filter(None, experiment.paths):
        found = by_seed(workdir / "assistant" / _name(path))
        title = f"Assistant {' → '.join(path)}"
        arms.append(study.Arm(f"assistant/{_name(path)}", title, found))
    arms.append(study.Arm("baseline", "Student alone", by_seed(workdir / "baseline")))
    for path in experiment.paths:
        found = by_seed(_student_directory(workdir, path))
        arms.append(
            study.Arm(
                _name(path),
                f"Student by {' → '.join(path)}" if path else "Student, direct",
                found,
                against=_name(()) if path else "baseline",
            )
        )
    return arms


def _by_seed(experiment: Experiment, directory: pathlib.Path) -> dict[int, float]:
    return {seed: _accuracy(directory / f"seed{seed}") for seed in experiment.seeds}


def _accuracy(directory: pathlib.Path) -> float:
    require(directory)
    return (read_json(directory / "result.json") or {})["accuracy"]


def _by_length(experiment: Experiment, arms: Mapping[str, study.Arm]) -> Drawing:
    """Accuracy of the student by the length of its chain, one assistant at a time."""
    names = experiment.assistants
    lengths = range(len(names) + 1)
    series = []
    for added in itertools.islice(itertools.permutations(names), MAX_ORDERS):
        paths = [_name(tuple(x for x in names if x in added[:n])) for n in lengths]
        runs = [[arms[path].values[s] for path in paths] for s in experiment.seeds]
        series.append(plots.Series(f"{', then '.join(added)}", lengths, runs))
    alone = [[arms["baseline"].values[s]] * len(lengths) for s in experiment.seeds]
    series.append(plots.Series("without a teacher", lengths, alone, reference=True))
    return plots.lines(
        "accuracy_by_length",
        "Test accuracy of the student by the number of assistants between it and the "
        "teacher, by which was added first; thin lines are seeds.",
        series,
        xlabel="Assistants",
        ylabel="Accuracy (%)",
        title="Does a chain help?",
    )


run = common.Runner(
    {
        "teacher": _run_teacher,
        "assistant": _run_assistants,
        "student": _run_students,
        "baseline": _run_baselines,
    },
    _report,
)
