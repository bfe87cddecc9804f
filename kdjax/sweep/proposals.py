"""Values that optuna proposes, in batches, to one program."""

import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from kdjax.builders.sweep import Experiment, Group
from kdjax.types import UserError


def run(
    experiment: Experiment,
    train: Callable[[Group, pathlib.Path], list[dict[str, Any]]],
    directory: pathlib.Path,
) -> list[dict[str, Any]]:
    """The rows of all trials, trained a batch at a time.

    Optuna maximises the mean validation accuracy over the seeds. Its sampler is seeded
    and told the same again, so a resumed sweep proposes what it had proposed.
    """
    optuna = _optuna()
    study = optuna.create_study(
        direction="maximize", sampler=optuna.samplers.TPESampler(seed=0)
    )
    options, found, done = experiment.options, [], 0
    while done < options.trials:
        count = min(options.trials_at_once, options.trials - done)
        trials = [study.ask() for _ in range(count)]
        proposed = [_suggest(trial, experiment.ranges) for trial in trials]
        rows = [
            row
            for group in _groups(experiment, proposed)
            for row in train(group, directory / f"trials{done}")
        ]
        for trial, values in zip(trials, proposed, strict=True):
            own = [row for row in rows if row["values"] == values]
            if all(row["status"].startswith("diverged") for row in own):
                study.tell(trial, state=optuna.trial.TrialState.FAIL)
            else:
                scores = [row["validation_accuracy"] for row in own]
                study.tell(trial, float(np.mean(scores)))
        found += rows
        done += count
    return found


def first(experiment: Experiment) -> tuple[Group, ...]:
    """Groups of as many students as the first batch has, to plan with."""
    count = min(experiment.options.trials_at_once, experiment.options.trials)
    proposed = [
        {
            path: _between(*x, share=(i + 1) / (count + 1))
            for path, x in experiment.ranges.items()
        }
        for i in range(count)
    ]
    return _groups(experiment, proposed)


def tried(
    experiment: Experiment, rows: Sequence[Mapping[str, Any]]
) -> dict[str, list[Any]]:
    """The values of each path: of the grid, or those that were proposed."""
    if not experiment.ranges:
        return {path: list(values) for path, values in experiment.axes.items()}
    return {
        path: sorted({row["values"][path] for row in rows})
        for path in experiment.ranges
    }


def _groups(
    experiment: Experiment, proposed: Sequence[Mapping[str, Any]]
) -> tuple[Group, ...]:
    return experiment.propose(
        [{**values, "seed": seed} for values in proposed for seed in experiment.seeds]
    )


def _suggest(trial: Any, ranges: Mapping[str, Sequence[Any]]) -> dict[str, float]:
    return {
        path: trial.suggest_float(path, low, high, log=bool(scale))
        for path, (low, high, *scale) in ranges.items()
    }


def _between(low: float, high: float, *scale: str, share: float) -> float:
    if scale:
        return low * math.exp(share * math.log(high / low))
    return low + share * (high - low)


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise UserError(
            "Expected optuna, which proposes the values of sweep_options.trials, but "
            "it is not installed: pip install 'kdjax[optuna]'."
        ) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna
