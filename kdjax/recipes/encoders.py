"""Encoders of texts: a teacher, stages of layers and of prediction, and their arms.

TinyBERT's students learn the teacher's embeddings, layers and attention first, from
unlabelled texts (the stage `general`, if it has epochs) and from those of the task,
then its predictions. DistilBERT begins with the teacher's own layers, MiniLM learns how
the tokens of one layer relate. All are arms of this recipe, by their configs.

    workdir/
      teacher/                       inputs.json, checkpoints/, metrics.jsonl,
      general/seed0/                   TensorBoard files, variables.safetensors,
      students/<arm>/seed0/layers/     result.json, predictions.npz (test logits, of
      students/<arm>/seed0/prediction/ the teacher and of last stages)
      report/                        report.html, report.json, figures
"""

import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kdjax import fingerprints, measure, metrics, parallel
from kdjax.builders.encoders import Arm, Experiment, Stage, build
from kdjax.networks import Network
from kdjax.recipes import _export
from kdjax.recipes.stages import (
    Runner,
    about,
    import_model,
    keep_variables,
    load_variables,
    train,
    write_study,
)
from kdjax.report import gains, study
from kdjax.steps import TrainState
from kdjax.types import Variables
from kdjax.workdir import read_json, require, write_arrays

__all__ = ["build", "run"]


def run_teacher(experiment: Experiment, workdir: pathlib.Path) -> None:
    """Trains the teacher from its start, or keeps it as it was read."""

    def keep(variables: Variables, directory: pathlib.Path) -> Mapping[str, Any]:
        return _keep(experiment, "teacher", variables, directory)

    directory, inputs = workdir / "teacher", experiment.teacher_inputs
    if experiment.teacher_training is None:
        assert experiment.teacher_pretrained is not None
        path = experiment.teacher_pretrained
        import_model(experiment.teacher, path, directory, inputs, keep)
        return
    start = experiment.teacher_start()
    inputs = {**inputs, "start": fingerprints.fingerprint_tree(start)}
    training = experiment.teacher_training(start)
    train(training, directory, inputs, lambda state, to: keep(state.eval_variables, to))


def run_general(experiment: Experiment, workdir: pathlib.Path) -> None:
    """Trains one student a seed on unlabelled texts, if that is asked for."""
    if experiment.general is None:
        return
    teacher = load_variables(experiment.teacher, workdir / "teacher")
    for seed in experiment.seeds:
        start = experiment.student_start(seed, teacher)
        directory = workdir / "general" / f"seed{seed}"
        _run(experiment, experiment.general, seed, start, teacher, None, directory)


def run_students(experiment: Experiment, workdir: pathlib.Path) -> None:
    """Trains a student of every arm and seed."""
    teacher = load_variables(experiment.teacher, workdir / "teacher")
    logits = experiment.predict("teacher", teacher, experiment.train)
    for arm in experiment.arms:
        for seed in experiment.seeds:
            start = experiment.student_start(seed, teacher)
            if arm.is_taught and experiment.general is not None:
                general = workdir / "general" / f"seed{seed}"
                start = load_variables(experiment.student, general)
            for stage in arm.stages:
                directory = _directory(workdir, arm, seed) / stage.name
                start = _run(experiment, stage, seed, start, teacher, logits, directory)


def _directory(workdir: pathlib.Path, arm: Arm, seed: int) -> pathlib.Path:
    return workdir / "students" / arm.name / f"seed{seed}"


def _run(
    experiment: Experiment,
    stage: Stage,
    seed: int,
    start: Variables,
    teacher: Variables,
    logits: np.ndarray | None,
    directory: pathlib.Path,
) -> Variables:
    """The student's variables after a stage."""
    inputs = {
        **stage.inputs,
        "seed": seed,
        "start": fingerprints.fingerprint_tree(start),
        "teacher": fingerprints.fingerprint_tree(teacher),
    }

    def keep(state: TrainState, directory: pathlib.Path) -> Mapping[str, Any]:
        if stage.is_last:
            return _keep(experiment, "student", state.eval_variables, directory)
        keep_variables(directory, state.eval_variables)
        return {}

    train(stage.training(seed, start, teacher, logits), directory, inputs, keep)
    return load_variables(experiment.student, directory)


def _keep(
    experiment: Experiment, role: str, variables: Variables, directory: pathlib.Path
) -> Mapping[str, Any]:
    """Writes a network's variables and test logits, and judges these."""
    keep_variables(directory, variables)
    logits = experiment.predict(role, variables, experiment.test)
    if parallel.is_main_process():
        write_arrays(directory / "predictions.npz", {"logits": logits})
    labels = jnp.asarray(experiment.test.labels)
    return {
        "accuracy": 100 * float(metrics.accuracy(jnp.asarray(logits), labels)),
        "nll": float(metrics.negative_log_likelihood(jnp.asarray(logits), labels)),
    }


def run_report(experiment: Experiment, workdir: pathlib.Path, command: str) -> None:
    """The teacher, every arm and the differences asked for."""
    teacher = _accuracy(workdir / "teacher")
    found = {
        arm.name: {
            seed: _accuracy(_directory(workdir, arm, seed) / arm.stages[-1].name)
            for seed in experiment.seeds
        }
        for arm in experiment.arms
    }
    arms = [
        study.Arm(
            arm.name,
            arm.title,
            found[arm.name],
            against=arm.against,
            accept_gain=arm.accept_gain,
            accept=_least(experiment, arm, teacher),
            note=arm.note,
        )
        for arm in experiment.arms
    ]
    made = study.build(
        about(
            workdir,
            command,
            num_examples=len(experiment.test),
            config=experiment.config,
        ),
        [study.Arm("teacher", "Teacher", {0: teacher}), *arms],
        facts=[*experiment.facts, *_facts(experiment, teacher, found)],
    )
    drawn = [gains.by_arm(made)] if any(arm.against for arm in arms) else []
    write_study(made, workdir, drawn)


def _least(
    experiment: Experiment, arm: Arm, teacher: float
) -> tuple[float | None, float | None] | None:
    """What the main arm should reach, as a share of the teacher's accuracy."""
    if experiment.accept_share is None or arm.name != experiment.main_arm:
        return None
    return round(experiment.accept_share * teacher, 2), None


def _facts(
    experiment: Experiment,
    teacher: float,
    found: Mapping[str, Mapping[int, float]],
) -> list[str]:
    (main,) = (arm for arm in experiment.arms if arm.name == experiment.main_arm)
    share = float(np.mean(list(found[main.name].values()))) / teacher
    sizes = [_size(net) for net in (experiment.teacher, experiment.student)]
    (parameters, flops), (less, fewer) = sizes
    return [
        f"{main.title}: {100 * share:.1f} % of its teacher's accuracy.",
        f"The student has {less / 1e6:.2f} of the teacher's {parameters / 1e6:.2f} "
        f"million parameters ({parameters / less:.1f} times fewer, embeddings and all) "
        f"and takes {flops / fewer:.1f} times fewer FLOPs a token.",
    ]


def _size(network: Network) -> tuple[int, float]:
    """Parameters, and FLOPs of four tokens."""
    variables = jax.eval_shape(network.init, jax.random.key(0))

    def logits(variables: Variables, inputs: Any) -> jax.Array:
        return network.apply(variables, inputs, train=False)[0].logits

    flops = measure.count_flops(logits, variables, network.example())
    return measure.count_parameters(variables), flops


def _accuracy(directory: pathlib.Path) -> float:
    require(directory)
    return float((read_json(directory / "result.json") or {})["accuracy"])


def run_export(experiment: Experiment, workdir: pathlib.Path, command: str) -> None:
    """Writes the teacher and one student of the main arm as files."""
    config = experiment.config
    terms = {**config["encoders"]["layers"]["terms"], **config["distill"]["terms"]}
    arm = next(one for one in experiment.arms if one.name == experiment.main_arm)
    last = arm.stages[-1].name
    places = {x: _directory(workdir, arm, x) / last for x in experiment.seeds}
    seed, why = _export.best_seed(places)
    teacher, student = workdir / "teacher", places[seed]
    told = [f"{arm.title}: stage `{last}` after those before it.", why]
    _export.run(
        {
            "teacher": _export.Trained(
                experiment.exported["teacher"],
                teacher,
                _export.origin(config["teacher"], teacher),
            ),
            "student": _export.Trained(experiment.exported["student"], student, told),
        },
        _export.of_texts(
            config["dataset"]["name"],
            experiment.train,
            experiment.test,
            experiment.tokenizer,
        ),
        config["export"],
        workdir,
        command=command,
        citation=_export.citation({"terms": terms}),
    )


run = Runner(
    {"teacher": run_teacher, "general": run_general, "students": run_students},
    run_report,
    {"export": run_export},
)
