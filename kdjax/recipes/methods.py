"""A table of methods: one student, one teacher, one budget, many ways to distill.

The stages `teacher`, `cache`, `baseline`, `methods` and `report` leave in the work
directory:

    workdir/
      teacher/             as in offline distillation
      cache/               the teacher's logits, for the methods that read no features
      baseline/seed0/      inputs.json, checkpoints/, metrics.jsonl, TensorBoard files,
      methods/kd/seed0/      variables.safetensors, result.json with the test accuracy
      report/              report.html, report.json, figures

Once teacher, cache and baseline are done, several processes can share the work, each
with methods of its own: `--stages=methods --config.methods.only=kd,dkd`, all in one
work directory. The report is about the methods that are done.
"""

import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from kdjax import fingerprints
from kdjax import teacher_cache as caches
from kdjax.builders.methods import Experiment, Method, build
from kdjax.recipes import offline
from kdjax.recipes import stages as common
from kdjax.report import gains, study
from kdjax.types import Variables
from kdjax.workdir import read_json, require

__all__ = ["STAGES", "build", "run"]

STAGES = ("teacher", "cache", "baseline", "methods", "report")
BASELINE = "baseline"


def run(
    experiment: Experiment,
    workdir: pathlib.Path,
    stages: Sequence[str] = STAGES,
    *,
    command: str = "",
) -> None:
    """Runs the stages, in order; whatever is done already is skipped.

    Raises:
      UserError: if something outside the code is wrong.
      Interrupted: if the process was asked to stop; run again to go on.
    """
    known = {
        "teacher": lambda: offline.run_teacher(experiment.base, workdir),
        "cache": lambda: _cache(experiment, workdir),
        "baseline": lambda: _baselines(experiment, workdir),
        "methods": lambda: _methods(experiment, workdir),
        "report": lambda: _report(experiment, workdir, command),
    }
    common.run_stages(known, stages, workdir)


def _cache(experiment: Experiment, workdir: pathlib.Path) -> None:
    if any(method.cached for method in _wanted(experiment)):
        offline.run_cache(experiment.base, workdir)


def _baselines(experiment: Experiment, workdir: pathlib.Path) -> None:
    for seed in experiment.base.seeds:
        common.train(
            experiment.base.baseline_training(seed),
            workdir / BASELINE / f"seed{seed}",
            experiment.base.inputs["baseline"],
            _keeper(lambda state: state.eval_variables, experiment.test),
        )


def _methods(experiment: Experiment, workdir: pathlib.Path) -> None:
    teacher_variables = common.load_variables(
        experiment.base.teacher, workdir / "teacher"
    )
    teacher = {"teacher": fingerprints.fingerprint_tree(teacher_variables)}
    cache = None
    for method in _wanted(experiment):
        if method.cached and cache is None:
            manifest = experiment.base.manifest(teacher_variables)
            cache = caches.open(workdir / "cache", manifest)
        for seed in experiment.base.seeds:
            common.train(
                method.training(
                    seed, teacher_variables, cache if method.cached else None
                ),
                _directory(workdir, method, seed),
                {**method.inputs, **teacher},
                _keeper(
                    method.variables,
                    lambda state, test=method.test: test(state, teacher_variables),
                ),
            )


def _wanted(experiment: Experiment) -> list[Method]:
    return [m for m in experiment.methods if m.name in experiment.wanted]


def _directory(workdir: pathlib.Path, method: Method, seed: int) -> pathlib.Path:
    return workdir / "methods" / method.name / f"seed{seed}"


def _keeper(
    variables: Callable[[Any], Variables],
    test: Callable[[Any], tuple[np.ndarray, np.ndarray]],
) -> Callable[[Any, pathlib.Path], Mapping[str, Any]]:
    """Writes the variables of a state, and tells its test accuracy in %."""

    def keep(state: Any, directory: pathlib.Path) -> Mapping[str, Any]:
        common.keep_variables(directory, variables(state))
        logits, labels = test(state)
        return {"accuracy": 100 * float(np.mean(logits.argmax(axis=-1) == labels))}

    return keep


def _report(experiment: Experiment, workdir: pathlib.Path, command: str) -> None:
    base, published = experiment.base, experiment.base.published
    if not published["source"]:
        published = {"source": "", "baseline": None, "accept": {}}
    baseline = study.Arm(
        BASELINE,
        "No teacher",
        _accuracies(_results(base.seeds, workdir / BASELINE)),
        published=published["baseline"],
        accept=_band(published, "baseline"),
    )
    arms, step_ms = [], {}
    for method in experiment.methods:
        results = _results(base.seeds, workdir / "methods" / method.name, needed=False)
        if results:
            arms.append(_arm(method, results, published))
            # The fastest seed: the first one compiles as well.
            seconds = min(x["seconds"] / x["steps"] for x in results.values())
            step_ms[method.title] = 1e3 * seconds
    arms = [baseline, *sorted(arms, key=lambda arm: -np.mean([*arm.values.values()]))]
    about = common.about(
        workdir,
        command,
        num_examples=len(base.splits.test),
        config=base.config,
        source=published["source"],
    )
    made = study.build(about, arms, facts=_facts(arms, base.teacher_note))
    common.write_study(
        made, workdir, [gains.by_arm(made), gains.by_cost(made, step_ms)]
    )


def _results(
    seeds: Sequence[int], directory: pathlib.Path, *, needed: bool = True
) -> dict[int, Mapping[str, Any]]:
    """What trainings left, by seed; of those that are done, unless all are needed."""
    found = {}
    for seed in seeds:
        if needed:
            require(directory / f"seed{seed}")
        result = read_json(directory / f"seed{seed}" / "result.json")
        if result is not None:
            found[seed] = result
    return found


def _accuracies(results: Mapping[int, Mapping[str, Any]]) -> dict[int, float]:
    return {seed: result["accuracy"] for seed, result in results.items()}


def _band(published: Mapping[str, Any], role: str) -> tuple[float, float] | None:
    band = published["accept"].get(role)
    return None if band is None else (band[0], band[1])


def _arm(
    method: Method,
    results: Mapping[int, Mapping[str, Any]],
    published: Mapping[str, Any],
) -> study.Arm:
    """A method's row, against the baseline of the same seeds."""
    theirs, gain = (method.published if published["source"] else None), None
    if theirs is not None and published["baseline"] is not None:
        gain = theirs - published["baseline"]
    return study.Arm(
        method.name,
        method.title,
        _accuracies(results),
        published=theirs,
        against=BASELINE,
        published_gain=gain,
        accept_gain=_band(published, f"{method.name}_gain"),
        note=method.note,
    )


def _facts(arms: Sequence[study.Arm], teacher_note: str) -> list[str]:
    baseline, *methods = arms
    better = sum(
        np.mean([value - baseline.values[seed] for seed, value in arm.values.items()])
        > 0
        for arm in methods
    )
    return [
        f"{better} of {len(methods)} methods are better than no teacher in the mean.",
        f"For methods that read logits alone: {teacher_note} For all others it runs "
        "in every step.",
    ]
