"""Self-distillation within one training: a network and no other teacher.

Each arm of the study is one training of the same network, from the same initial
weights and over the same batches: labels alone, label smoothing, a virtual teacher,
USKD, exits taught by the deepest (be your own teacher), and a mean teacher, with all
labels and with few.

    workdir/
      arms/byot/seed0/   inputs.json, checkpoints/, metrics.jsonl, TensorBoard files,
                           variables.safetensors, predictions.npz (test logits of each
                           classifier), result.json
      report/            report.html, report.json, figures
"""

import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from kdjax import measure, metric_writers, metrics, parallel
from kdjax.builders.self_distillation import Arm, Experiment, build
from kdjax.checkpoints import BEST_METRIC
from kdjax.recipes import stages as _stages
from kdjax.report import plots, study
from kdjax.report.drawing import Drawing
from kdjax.types import UserError
from kdjax.workdir import read_json, write_arrays

__all__ = ["Experiment", "build", "run"]


Found = Mapping[str, Mapping[int, Mapping[str, Any]]]
"""By arm and seed, the result of a finished training."""


def run_arms(experiment: Experiment, workdir: pathlib.Path) -> None:
    """Trains every arm with every seed."""
    for arm in experiment.arms:
        for seed in experiment.seeds:
            directory = _directory(workdir, arm, seed)
            keep = _keeper(experiment, arm)
            _stages.train(arm.training(seed), directory, arm.inputs, keep)


def run_report(experiment: Experiment, workdir: pathlib.Path, command: str) -> None:
    """Compares the arms, and every classifier that they end with."""
    found = _found(experiment, workdir)
    about = _stages.about(
        workdir,
        command,
        num_examples=len(experiment.test),
        test=experiment.test,
        config=experiment.config,
    )
    arms = [arm for arm in experiment.arms if arm.name in found]
    rows = [row for arm in arms for row in _rows(arm, found)]
    drawings = [
        _curves(name, [arm for arm in arms if _group(arm) == name], found, workdir)
        for name in dict.fromkeys(map(_group, arms))
        if len(experiment.validation)
    ]
    drawings += [_exits(experiment, arm, found) for arm in arms if arm.name == "byot"]
    _stages.write_study(study.build(about, rows), workdir, drawings)


def _directory(workdir: pathlib.Path, arm: Arm, seed: int) -> pathlib.Path:
    return workdir / "arms" / arm.name / f"seed{seed}"


def _keeper(
    experiment: Experiment, arm: Arm
) -> Callable[[Any, pathlib.Path], Mapping[str, Any]]:
    """Keeps the network's variables, and what each classifier says of the test."""

    def keep(state: Any, directory: pathlib.Path) -> Mapping[str, Any]:
        logits, labels = arm.predict(arm.variables(state), experiment.test)
        by_name = {name: logits[:, i] for i, name in enumerate(arm.classifiers)}
        if parallel.is_main_process():
            write_arrays(directory / "predictions.npz", by_name)
        _stages.keep_variables(directory, state.eval_variables)
        return {
            "test_accuracy": {
                name: 100 * float(metrics.accuracy(x, labels))
                for name, x in by_name.items()
            }
        }

    return keep


def _found(experiment: Experiment, workdir: pathlib.Path) -> Found:
    found: dict[str, dict[int, Mapping[str, Any]]] = {}
    for arm in experiment.arms:
        for seed in experiment.seeds:
            result = read_json(_directory(workdir, arm, seed) / "result.json")
            if result is not None:
                found.setdefault(arm.name, {})[seed] = result
    if not found:
        raise UserError(
            f"Expected a finished arm in {workdir}, got none: run --stages=arms first."
        )
    return found


def _accuracies(found: Found, arm: Arm, classifier: str) -> dict[int, float]:
    return {
        seed: result["test_accuracy"][classifier]
        for seed, result in found[arm.name].items()
    }


def _rows(arm: Arm, found: Found) -> list[study.Arm]:
    """The arm, by its first classifier, and its other classifiers."""
    against = arm.against if arm.against in found else None
    rows = []
    for i, name in enumerate(arm.classifiers):
        title = arm.title if len(arm.classifiers) == 1 else f"{arm.title}: {name}"
        row = f"{arm.name}/{name}" if i else arm.name
        values = _accuracies(found, arm, name)
        rows.append(study.Arm(row, title, values, against=against))
    return rows


def _group(arm: Arm) -> str:
    """The arm that starts the comparisons that this one is part of."""
    return arm.against or arm.name


def _curves(
    name: str, arms: Sequence[Arm], found: Found, workdir: pathlib.Path
) -> Drawing:
    """Validation accuracy while each arm trains."""
    series = []
    for arm in arms:
        directories = [_directory(workdir, arm, seed) for seed in found[arm.name]]
        histories = [
            [row for row in metric_writers.read(directory) if BEST_METRIC in row]
            for directory in directories
        ]
        epochs = [row["epoch"] for row in histories[0]]
        runs = [[100 * row[BEST_METRIC] for row in rows] for rows in histories]
        series.append(plots.Series(arm.title, epochs, runs))
    return plots.lines(
        f"validation_{name}",
        "Validation accuracy while each arm trains. Thin lines: seeds.",
        series,
        xlabel="Epoch",
        ylabel="Validation accuracy (%)",
    )


def _exits(experiment: Experiment, arm: Arm, found: Found) -> Drawing:
    """Accuracy of each exit, and of their ensemble, against what it costs."""
    shares = exit_shares(experiment, arm)
    *exits, ensemble = sorted(
        shares, key=lambda name: (name == "ensemble", shares[name])
    )
    values = {name: list(_accuracies(found, arm, name).values()) for name in shares}
    runs = list(zip(*(values[name] for name in exits), strict=True))
    together = [[x] for x in values[ensemble]]
    series = [
        plots.Series("exits, the deepest last", [shares[name] for name in exits], runs),
        plots.Series("ensemble of all exits", [shares[ensemble]], together),
    ]
    if plain := found.get("plain"):
        alone = [[x["test_accuracy"]["network"]] for x in plain.values()]
        series.append(plots.Series("the network from labels alone", [100.0], alone))
    return plots.lines(
        "exits",
        "Test accuracy of each exit against the floating-point operations up to it, in "
        "% of the network's without exits.",
        series,
        xlabel="Operations of one image (% of the network's)",
        ylabel="Test accuracy (%)",
    )


def exit_shares(experiment: Experiment, arm: Arm) -> dict[str, float]:
    """What each classifier needs of the arm, in % of the network's operations."""
    training = arm.training(experiment.seeds[0])
    variables = jax.eval_shape(lambda: arm.variables(training.init()))
    image = jax.ShapeDtypeStruct((1, *experiment.network.image_shape), jnp.uint8)
    flops = {
        name: measure.count_flops(
            lambda variables, images, i=i: arm.classify(variables, images)[i],
            variables,
            image,
        )
        for i, name in enumerate(arm.classifiers)
    }
    return {name: 100 * x / flops[arm.classifiers[0]] for name, x in flops.items()}


run = _stages.Runner(
    {
        "arms": run_arms,
    },
    run_report,
)
