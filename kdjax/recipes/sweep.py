"""A sweep: many students of one teacher, trained by few programs.

The stages leave in the work directory:

    workdir/
      teacher/           as offline distillation leaves it,
      cache/               and further ones where students see other views
      sweep/             plan.json, rows.json, rows.csv
        student0/        the students of a program: checkpoints, metrics, results, in
                           until<steps>/chunk0/ and so on
        baseline0/       the same without a teacher
      report/            report.html, report.json, rows.csv, figures
"""

import functools
import pathlib
from collections.abc import Mapping

import jax
import numpy as np
import rich.console

from kdjax import fingerprints, sweep
from kdjax import teacher_cache as caches
from kdjax.builders.sweep import Experiment, Stored, build
from kdjax.recipes import offline, stages
from kdjax.report import sweep as report
from kdjax.sweep import plan, proposals

__all__ = ["build", "dry_run", "run"]


def dry_run(experiment: Experiment) -> None:
    """Prints the plan, and trains nothing: teacher and cache need not be there."""
    teacher = experiment.offline.teacher.init(jax.random.key(0))
    blank = functools.cache(lambda stored: stored.blank())
    trainer = sweep.Trainer(experiment, teacher, blank)
    print("\n".join(plan.lines(sweep.make_plan(experiment, trainer))), flush=True)


def _teacher(experiment: Experiment, workdir: pathlib.Path) -> None:
    offline.run_teacher(experiment.offline, workdir)


def _cache(experiment: Experiment, workdir: pathlib.Path) -> None:
    variables = stages.load_variables(experiment.offline.teacher, workdir / "teacher")
    groups = experiment.groups or proposals.first(experiment)
    for stored in {x.cache.name: x.cache for x in groups if x.cache}.values():
        stages.write_cache(
            workdir / stored.name,
            stored.manifest(variables),
            stored.compute(variables),
            batch_size=experiment.batch_size,
            name=stored.name,
        )


def _sweep(experiment: Experiment, workdir: pathlib.Path) -> None:
    variables = stages.load_variables(experiment.offline.teacher, workdir / "teacher")
    read: dict[str, Mapping[str, np.ndarray]] = {}

    def stored(which: Stored) -> Mapping[str, np.ndarray]:
        if which.name not in read:
            manifest = which.manifest(variables)
            read[which.name] = caches.open(workdir / which.name, manifest).read_all()
        return read[which.name]

    with np.load(workdir / "teacher" / "predictions.npz", allow_pickle=False) as arrays:
        logits = arrays["logits"]
    trainer = sweep.Trainer(experiment, variables, stored, logits)
    inputs = {
        **experiment.inputs,
        "teacher": fingerprints.fingerprint_tree(variables),
    }
    sweep.run(experiment, trainer, workdir / "sweep", inputs)


def _report(experiment: Experiment, workdir: pathlib.Path, command: str) -> None:
    of = experiment.offline
    about = stages.about(
        workdir,
        command,
        num_examples=len(of.splits.test),
        test=of.splits.test,
        config=of.config,
        unit=of.published["unit"],
    )
    built = report.build(about, report.read(workdir / "sweep" / "rows.json"))
    report.write(built, workdir / "report")
    report.print_table(built, rich.console.Console())


run = stages.Runner({"teacher": _teacher, "cache": _cache, "sweep": _sweep}, _report)
