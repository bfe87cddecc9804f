"""Many students of one teacher, trained by few programs.

`run` trains all of a sweep: a grid of values, or batches that optuna proposes.
"""

import functools
import math
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kdjax.builders.sweep import Experiment, Group, Options
from kdjax.sweep import plan, proposals, rows
from kdjax.sweep.pool import GOING
from kdjax.sweep.trainer import Start, Trainer
from kdjax.workdir import begin, finish, read_json, write_json

__all__ = ["Trainer", "make_plan", "run"]


def run(
    experiment: Experiment,
    trainer: Trainer,
    directory: pathlib.Path,
    inputs: Mapping[str, Any],
) -> None:
    """Trains all students of a sweep, and writes their rows.

    Killed and run again, it goes on where it was and leaves the same bits: the plan is
    made once, and kept.

    Args:
      experiment: the sweep.
      trainer: trains chunks of it.
      directory: receives `plan.json`, `rows.json`, `rows.csv` and a directory for each
        group.
      inputs: what the result depends on; JSON-able.
    """
    if begin(directory, inputs) is not None:
        return
    started = time.monotonic()
    entries = read_json(directory / "plan.json")
    if entries is None:
        entries = make_plan(experiment, trainer)
        write_json(directory / "plan.json", entries)
    print("\n".join(plan.lines(entries)), flush=True)
    by_name = {entry["group"]: entry for entry in entries}
    train = functools.partial(_train, trainer, experiment.options, inputs, by_name)
    if experiment.ranges:
        found = proposals.run(experiment, train, directory)
    else:
        found = [x for group in experiment.groups for x in train(group, directory)]
    baselines = [x for group in experiment.baselines for x in train(group, directory)]
    everything = {
        "axes": proposals.tried(experiment, found),
        "fixed": dict(experiment.fixed),
        "rows": found,
        "baseline_rows": baselines,
        "plan": {"groups": entries, "lines": plan.lines(entries)},
        "seconds": {"sweep": time.monotonic() - started},
    }
    rows.write(directory, everything)
    for sentence in rows.diverged([*found, *baselines]):
        print(sentence, flush=True)
    finish(directory, {"students": len(found) + len(baselines)})


def make_plan(experiment: Experiment, trainer: Trainer) -> list[dict[str, Any]]:
    """The plan of all programs, students and baselines."""
    groups = experiment.groups or proposals.first(experiment)
    entries = plan.make(trainer, [*groups, *experiment.baselines], experiment.options)
    for entry in entries[: len(groups)] if experiment.ranges else ():
        batches = math.ceil(
            experiment.options.trials / experiment.options.trials_at_once
        )
        for name in ("students", "programs", "predicted_seconds"):
            entry[name] *= batches
    return entries


def _train(
    trainer: Trainer,
    options: Options,
    inputs: Mapping[str, Any],
    entries: Mapping[str, Mapping[str, Any]],
    group: Group,
    directory: pathlib.Path,
) -> list[dict[str, Any]]:
    """Trains a group to the end, but for what stops at a rung; its rows."""
    race = _Race(trainer, group, entries[group.name], directory / group.name, inputs)
    rungs = [] if group.role == "baseline" else options.rungs
    ends = [round(epochs * group.steps_per_epoch) for epochs in rungs]
    going = list(range(len(group.rows)))
    for end in [x for x in ends if x < group.num_steps]:
        going = race.survivors(race.advance(going, end), options.keep)
    race.advance(going, group.num_steps)
    return [
        rows.row(group, index, race.results[index], race.steps[index])
        for index in range(len(group.rows))
    ]


class _Race:
    """The students of a group on their way from rung to rung.

    Args:
      trainer: trains chunks.
      group: whose students run.
      entry: of the plan.
      directory: receives a directory for each rung and chunk.
      inputs: what the result depends on.
    """

    def __init__(
        self,
        trainer: Trainer,
        group: Group,
        entry: Mapping[str, Any],
        directory: pathlib.Path,
        inputs: Mapping[str, Any],
    ):
        self._trainer = trainer
        self._group = group
        self._entry = entry
        self._directory = directory
        self._inputs = inputs
        self._last: list[Any] = []  # Chunks of the last rung, directories and steps.
        self.results: dict[int, dict[str, Any]] = {}
        self.steps: dict[int, int] = {}

    def advance(self, going: Sequence[int], num_steps: int) -> list[int]:
        """Trains some students until `num_steps`; those that did not diverge."""
        group, before = self._group, self._last
        starts = functools.cache(lambda: self._ends(before)) if before else None
        parts = plan.chunks_of(self._trainer, group, going, self._entry)
        self._last = []
        for i, chunk in enumerate(parts):
            place = self._directory / f"until{num_steps}" / f"chunk{i}"
            students = [group.rows[row]._asdict() for row in chunk.rows]
            result = self._trainer.train(
                chunk,
                place,
                {**self._inputs, "students": students, "form": chunk.form},
                num_steps=num_steps,
                starts=starts,
                name=group.name if len(parts) == 1 else f"{group.name}, chunk {i}",
            )
            self._last.append((chunk, place, num_steps))
            for index, found in result["rows"].items():
                self._add(int(index), found, num_steps)
        return [row for row in going if self.results[row]["stopped"] == GOING]

    def survivors(self, going: Sequence[int], keep: float) -> list[int]:
        """The students of the best settings, by the mean over all their seeds.

        A setting goes on with all its seeds or with none: a mean over the seeds that
        did well would say more than there is.
        """
        settings: dict[str, list[int]] = {}
        for row in going:
            settings.setdefault(str(self._group.rows[row].values), []).append(row)
        scores = {
            name: np.mean([self.results[row]["validation_accuracy"] for row in found])
            for name, found in settings.items()
        }
        count = math.ceil(keep * len(settings))
        best = sorted(settings, key=lambda name: -scores[name])[:count]
        return sorted(row for name in best for row in settings[name])

    def _add(self, row: int, result: Mapping[str, Any], num_steps: int) -> None:
        curve = self.results.get(row, {}).get("curve", [])
        self.results[row] = {**result, "curve": [*curve, *result["curve"]]}
        self.steps[row] = num_steps

    def _ends(self, before: Sequence[Any]) -> dict[int, Start]:
        found: dict[int, Start] = {}
        for chunk, place, num_steps in before:
            for row, start in self._trainer.ends(chunk, place, num_steps).items():
                found.setdefault(row, start)
        return found
