"""Born-again networks: each generation learns from the one before, of its own kind.

The first network of a seed learns from labels alone; its student has the same
architecture and other initial weights, and is the teacher of the next. Controls are as
many networks from the same initial weights, over the same batches, from labels alone:
what a generation gained, and what their ensemble gained that any ensemble would.

    workdir/
      generations/seed0/0/   inputs.json, checkpoints/, metrics.jsonl,
      controls/seed0/1/        variables.safetensors, predictions.npz, result.json
      report/                report.html, report.json, figures
"""

import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from kdjax import fingerprints, losses, metrics, parallel
from kdjax.builders.born_again import Experiment, build
from kdjax.data import sources
from kdjax.recipes import stages as _stages
from kdjax.report import plots, statistics, study
from kdjax.report.drawing import Drawing
from kdjax.report.quantities import interval, number
from kdjax.steps import TrainState
from kdjax.types import UserError
from kdjax.workdir import read_json, write_arrays

__all__ = ["Experiment", "build", "run"]


def run_generations(experiment: Experiment, workdir: pathlib.Path) -> None:
    """Trains every seed's first network, and its line of students."""
    for seed in experiment.seeds:
        teacher = None
        for generation in range(experiment.num_generations + 1):
            directory = _directory(workdir, "generations", seed, generation)
            inputs = dict(experiment.inputs["student" if generation else "baseline"])
            if teacher is not None:
                inputs["teacher"] = fingerprints.fingerprint_tree(teacher)
            training = experiment.training(seed, generation, teacher)
            _stages.train(training, directory, inputs, _keeper(experiment))
            teacher = _stages.load_variables(experiment.network, directory)


def run_controls(experiment: Experiment, workdir: pathlib.Path) -> None:
    """Trains what each generation would have been without its teacher."""
    for seed in experiment.seeds:
        for generation in range(1, experiment.num_generations + 1):
            directory = _directory(workdir, "controls", seed, generation)
            training = experiment.training(seed, generation, None)
            inputs = experiment.inputs["baseline"]
            _stages.train(training, directory, inputs, _keeper(experiment))


def run_report(experiment: Experiment, workdir: pathlib.Path, command: str) -> None:
    """Compares generations, controls, and the ensembles of both."""
    labels = sources.labels(experiment.test)
    born = _scores(experiment, workdir, "generations", labels)
    alone = _scores(experiment, workdir, "controls", labels)
    if len(born) < len(experiment.seeds):
        raise UserError(
            f"Expected all generations of all seeds in {workdir}, got those of "
            f"{len(born)} of {len(experiment.seeds)}: run --stages=generations first."
        )
    about = _stages.about(
        workdir, command, num_examples=len(labels), config=experiment.config
    )
    made = study.build(about, _arms(born, alone), facts=_facts(born, alone))
    _stages.write_study(made, workdir, [_drawing(born, alone)])


class Scores(NamedTuple):
    """Test accuracies of one seed's networks, in %, in the order of generations.

    Attributes:
      single: of each network, `[networks]`.
      ensemble: of the mean probabilities of it and all before it, `[networks]`.
    """

    single: list[float]
    ensemble: list[float]


def _directory(
    workdir: pathlib.Path, kind: str, seed: int, generation: int
) -> pathlib.Path:
    # Generation 0 has no teacher: it is its own control.
    kind = kind if generation else "generations"
    return workdir / kind / f"seed{seed}" / str(generation)


def _keeper(
    experiment: Experiment,
) -> Callable[[TrainState, pathlib.Path], Mapping[str, Any]]:
    """Keeps a network's variables, and what it says of the test split."""

    def keep(state: TrainState, directory: pathlib.Path) -> Mapping[str, Any]:
        logits, labels = experiment.predict(state.eval_variables, experiment.test)
        if parallel.is_main_process():
            write_arrays(directory / "predictions.npz", {"logits": logits})
        _stages.keep_variables(directory, state.eval_variables)
        return {"test_accuracy": float(metrics.accuracy(logits, labels))}

    return keep


def _scores(
    experiment: Experiment, workdir: pathlib.Path, kind: str, labels: np.ndarray
) -> dict[int, Scores]:
    """By seed, of those seeds whose networks are all done."""
    found = {}
    for seed in experiment.seeds:
        generations = range(experiment.num_generations + 1)
        places = [_directory(workdir, kind, seed, g) for g in generations]
        if all(read_json(place / "result.json") is not None for place in places):
            logits = np.stack([_logits(place) for place in places])
            found[seed] = Scores(
                [_accuracy(x, labels) for x in logits],
                [
                    _accuracy(losses.average_probs(jnp.asarray(logits[:n])), labels)
                    for n in range(1, len(logits) + 1)
                ],
            )
    return found


def _logits(directory: pathlib.Path) -> np.ndarray:
    with np.load(directory / "predictions.npz", allow_pickle=False) as arrays:
        return arrays["logits"]


def _accuracy(logits: Any, labels: np.ndarray) -> float:
    return 100 * float(metrics.accuracy(logits, labels))


def _arms(born: Mapping[int, Scores], alone: Mapping[int, Scores]) -> list[study.Arm]:
    count = len(next(iter(born.values())).single)
    arms = [study.Arm("generation0", "Labels alone", _at(born, 0))]
    for g in range(1, count):
        if alone:
            title = f"Control of generation {g}, labels alone"
            arms.append(study.Arm(f"control{g}", title, _at(alone, g)))
        against = f"control{g}" if alone else "generation0"
        title = f"Generation {g}"
        arms.append(study.Arm(f"generation{g}", title, _at(born, g), against=against))
    best = {seed: max(scores.single) for seed, scores in born.items()}
    arms += [
        study.Arm(
            "best",
            "Best single generation",
            best,
            note="for each seed chosen on the test split, in its favour",
        ),
        study.Arm(
            "ensemble",
            "Ensemble of all generations",
            {seed: scores.ensemble[-1] for seed, scores in born.items()},
            against="best",
            accept_gain=(0.0, None),
        ),
    ]
    if alone:
        title = "Ensemble of as many from labels alone"
        values = {seed: scores.ensemble[-1] for seed, scores in alone.items()}
        arms.append(study.Arm("controls", title, values))
    return arms


def _facts(born: Mapping[int, Scores], alone: Mapping[int, Scores]) -> list[str]:
    size = len(next(iter(born.values())).single)
    facts = [f"An ensemble of {size} networks costs {size} times one at inference."]
    difference = statistics.paired_difference(
        *(
            {seed: x.ensemble[-1] for seed, x in found.items()}
            for found in (born, alone)
        )
    )
    if difference is not None:
        text = number(difference["mean"], 2, signed=True)
        if difference["low"] is not None:
            text += f" (95 % CI {interval(difference, 2)})"
        facts.append(f"That of generations minus that of controls: {text} points.")
    return facts


def _at(scores: Mapping[int, Scores], generation: int) -> dict[int, float]:
    return {seed: found.single[generation] for seed, found in scores.items()}


def _drawing(born: Mapping[int, Scores], alone: Mapping[int, Scores]) -> Drawing:
    """Accuracy by generation, of one network and of the ensemble so far."""
    series = []
    for found, one, several in (
        (born, "one generation", "ensemble of generations 0 to this"),
        (alone, "one control", "ensemble of as many controls"),
    ):
        if found:
            x = list(range(len(next(iter(found.values())).single)))
            singles = [scores.single for scores in found.values()]
            ensembles = [scores.ensemble for scores in found.values()]
            series.append(plots.Series(one, x, singles))
            series.append(plots.Series(several, x, ensembles))
    return plots.lines(
        "generations",
        "Test accuracy by generation: of one network, and of the ensemble of all up to "
        "it, with teachers and without. Thin lines: seeds.",
        series,
        xlabel="Generation",
        ylabel="Test accuracy (%)",
    )


run = _stages.Runner(
    {
        "generations": run_generations,
        "controls": run_controls,
    },
    run_report,
)
