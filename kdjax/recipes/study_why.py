"""Why distillation works: five experiments on one teacher, in one report.

The stages leave in the work directory:

    workdir/
      teacher/               as offline distillation leaves it,
      cache/                   one view of each example, clean
      few_labels/            hard and soft targets for 3 % of the examples
      speed/                 how fast hard and soft targets are learned
      omit_3/                soft targets, but of no 3
      only_7_and_8/          soft targets, but of these two digits alone
      width_temperature/     soft targets at several temperatures, by width
        width30/ ...
      report/                report.html, report.json, figures

All students of a directory train as one, mapped over seeds and settings: checkpoints/,
metrics.jsonl, result.json and predictions.npz (the logits of each on the test split
after the last epoch, and of `few_labels` at its best by held-out examples; those on the
train split where a bias is chosen on it).
"""

import functools
import pathlib

from kdjax import fingerprints
from kdjax import teacher_cache as caches
from kdjax.builders.study_why import Experiment, build
from kdjax.recipes import _students, _study_why_report, offline
from kdjax.recipes import stages as common

__all__ = ["build", "run"]

EXPERIMENTS = ("few_labels", "speed", "omit_3", "only_7_and_8", "width_temperature")
BIASED = ("omit_3", "only_7_and_8")  # A bias is chosen on their train split.


def _train(experiment: Experiment, workdir: pathlib.Path, stage: str) -> None:
    of = experiment.offline
    variables = common.load_variables(of.teacher, workdir / "teacher")
    inputs = {
        **experiment.inputs[stage],
        "teacher": fingerprints.fingerprint_tree(variables),
    }
    splits = {"test": of.splits.test}
    if stage in BIASED:
        splits["train"] = of.splits.train
    cache = caches.open(workdir / "cache", of.manifest(variables))
    for grid in experiment.grids[stage](cache):
        _students.train(grid, workdir / stage / grid.name, inputs, splits)


def _report(experiment: Experiment, workdir: pathlib.Path, command: str) -> None:
    report, drawings = _study_why_report.make(experiment, workdir, command)
    common.write_study(report, workdir, drawings)


run = common.Runner(
    {
        "teacher": lambda experiment, workdir: offline.run_teacher(
            experiment.offline, workdir
        ),
        "cache": lambda experiment, workdir: offline.run_cache(
            experiment.offline, workdir
        ),
        **{x: functools.partial(_train, stage=x) for x in EXPERIMENTS},
    },
    _report,
)
