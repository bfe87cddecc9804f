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
from kdjax.types import UserError, Variables
from kdjax.workdir import read_json, require

__all__ = ["build", "run"]

BASELINE = "baseline"


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
    manifest = experiment.base.manifest(teacher_variables)
    failed = []
    for method in _wanted(experiment):
        try:
            cached = method.cached
            cache = caches.open(workdir / "cache", manifest) if cached else None
            _train(experiment, method, teacher_variables, cache, workdir)
        except UserError as error:  # The others may do better: this one diverged.
            failed.append(f"{method.name}: {error}")
    if failed:
        raise UserError(
            f"Expected all methods to train, but {len(failed)} did not; the others "
            f"are done. {' '.join(failed)}"
        )


def _train(
    experiment: Experiment,
    method: Method,
    teacher_variables: Variables,
    cache: caches.Cache | None,
    workdir: pathlib.Path,
) -> None:
    teacher = {"teacher": fingerprints.fingerprint_tree(teacher_variables)}
    for seed in experiment.base.seeds:
        common.train(
            method.training(seed, teacher_variables, cache),
            workdir / "methods" / method.name / f"seed{seed}",
            {**method.inputs, **teacher},
            _keeper(method.variables, lambda x: method.test(x, teacher_variables)),
        )


def _wanted(experiment: Experiment) -> list[Method]:
    return [m for m in experiment.methods if m.name in experiment.wanted]


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
    """The baseline, and of the methods those that are done, the best first."""
    base, published = experiment.base, experiment.base.published
    if not published["source"]:
        published = {"source": "", "baseline": None, "accept": {}}
    for seed in base.seeds:
        require(workdir / BASELINE / f"seed{seed}")
    baseline = study.Arm(
        BASELINE,
        "No teacher",
        _accuracies(_results(base.seeds, workdir / BASELINE)),
        published=published["baseline"],
        accept=_band(published, BASELINE),
    )
    found = [
        (method, results)
        for method in experiment.methods
        if (results := _results(base.seeds, workdir / "methods" / method.name))
    ]
    arms = [_arm(method, results, published) for method, results in found]
    arms.sort(key=lambda arm: -np.mean([*arm.values.values()]))
    about = common.about(
        workdir,
        command,
        num_examples=len(base.splits.test),
        test=base.splits.test,
        config=base.config,
        source=published["source"],
    )
    facts = _facts(baseline, arms, base.teacher_note)
    made = study.build(about, [baseline, *arms], facts=facts)
    step_ms = {method.name: _step_ms(results) for method, results in found}
    drawings = [gains.by_arm(made), gains.by_cost(made, step_ms)] if arms else []
    common.write_study(made, workdir, drawings)


def _results(
    seeds: Sequence[int], directory: pathlib.Path
) -> dict[int, Mapping[str, Any]]:
    """What the trainings that are done left, by seed."""
    results = {x: read_json(directory / f"seed{x}" / "result.json") for x in seeds}
    return {seed: result for seed, result in results.items() if result is not None}


def _step_ms(results: Mapping[int, Mapping[str, Any]]) -> float:
    """Of the fastest seed: the first one compiles as well."""
    return min(1e3 * x["seconds"] / x["steps"] for x in results.values())


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


def _facts(
    baseline: study.Arm, arms: Sequence[study.Arm], teacher_note: str
) -> list[str]:
    def mean_gain(arm: study.Arm) -> float:
        return float(np.mean([x - baseline.values[k] for k, x in arm.values.items()]))

    better = sum(mean_gain(arm) > 0 for arm in arms)
    return [
        f"{better} of {len(arms)} methods are better than no teacher in the mean.",
        f"For methods that read logits alone: {teacher_note} For all others it runs "
        "in every step.",
    ]


run = common.Runner(
    {
        "teacher": lambda experiment, workdir: offline.run_teacher(
            experiment.base, workdir
        ),
        "cache": _cache,
        "baseline": _baselines,
        "methods": _methods,
    },
    _report,
)
