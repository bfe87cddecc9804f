"""Transfer between modalities: a teacher of one, a student of another, and pairs.

The teacher learns its modality of an image from labels. Students learn another one
from pairs, other images that each network sees in its own modality, without labels.
What came of it is judged with few labels: by training the student further on them,
and by a linear probe of its frozen features, both beside the same student trained from
scratch on the same labels.

    workdir/
      teacher/                  inputs.json, checkpoints/, metrics.jsonl, TensorBoard
      transfer/<method>/seed0/    files, variables.safetensors, result.json (what was
      scratch/labels100/seed0/    measured on the test split)
      finetune/<method>/labels100/seed0/
      supervised/seed0/         the student on the labels of all pairs: what it could be
      probe/<method>/seed0/     result.json: accuracy by the number of labels
      probe/random/seed0/       the same on features that nothing was ever taught
      report/                   report.html, report.json, figures
"""

import functools
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from kdjax import fingerprints, probes
from kdjax.builders.cross_modal import Experiment, build
from kdjax.data import sources
from kdjax.recipes.stages import (
    Runner,
    about,
    keep_variables,
    load_variables,
    train,
    write_study,
)
from kdjax.report import drawing, plots, study
from kdjax.types import Variables
from kdjax.workdir import begin, finish, read_json, require

__all__ = ["build", "run"]

Values = dict[int, float]  # By seed.
Found = dict[tuple[str, str], dict[int, Values]]  # By way and method; by labels.
# What the methods of the config are called in the report.
TITLES = {
    "regression": "Feature regression",
    "kd": "KD on logits",
    "crd": "CRD",
    "random": "Untrained features",
}
# How they are judged with few labels.
WAYS = {"finetune": "fine-tuned", "probe": "probed"}


def run_teacher(experiment: Experiment, workdir: pathlib.Path) -> None:
    """Trains the teacher on its modality, with labels."""
    train(
        experiment.teacher_training(),
        workdir / "teacher",
        experiment.inputs["teacher"],
        functools.partial(_keep, experiment, "teacher"),
    )


def run_transfer(experiment: Experiment, workdir: pathlib.Path) -> None:
    """Trains a student for each method and seed, on pairs without labels."""
    teacher = load_variables(experiment.teacher, workdir / "teacher")
    for method in experiment.methods:
        inputs = {
            **experiment.inputs["transfer"],
            "teacher": fingerprints.fingerprint_tree(teacher),
            "method": experiment.inputs["methods"][method],
        }
        role = "student" if method in experiment.own_classifier else None
        for seed in experiment.seeds:
            train(
                experiment.transfer_training(method, seed, teacher),
                workdir / "transfer" / method / f"seed{seed}",
                inputs,
                functools.partial(_keep, experiment, role),
            )


def run_scratch(experiment: Experiment, workdir: pathlib.Path) -> None:
    """Trains the same students on labels: on few from scratch, and on all."""
    keep = functools.partial(_keep, experiment, "student")
    for seed in experiment.seeds:
        for count in experiment.labels:
            train(
                experiment.scratch_training(count, seed),
                workdir / "scratch" / f"labels{count}" / f"seed{seed}",
                {**experiment.inputs["scratch"], "count": count},
                keep,
            )
        train(
            experiment.supervised_training(seed),
            workdir / "supervised" / f"seed{seed}",
            experiment.inputs["supervised"],
            keep,
        )


def run_finetuning(experiment: Experiment, workdir: pathlib.Path) -> None:
    """Trains each student further on few labels, as those from scratch are trained."""
    for method in experiment.methods:
        for seed in experiment.seeds:
            variables = load_variables(
                experiment.student, workdir / "transfer" / method / f"seed{seed}"
            )
            inputs = {
                **experiment.inputs["scratch"],
                "variables": fingerprints.fingerprint_tree(variables),
            }
            for count in experiment.labels:
                train(
                    experiment.finetune_training(count, seed, variables),
                    workdir / "finetune" / method / f"labels{count}" / f"seed{seed}",
                    {**inputs, "count": count},
                    functools.partial(_keep, experiment, "student"),
                )


def run_probes(experiment: Experiment, workdir: pathlib.Path) -> None:
    """Fits a linear probe to the features of each student, and to random ones."""
    for method in experiment.methods:
        for seed in experiment.seeds:
            trained = workdir / "transfer" / method / f"seed{seed}"
            variables = load_variables(experiment.student, trained)
            _probe(experiment, workdir / "probe" / method, seed, variables)
    for seed in experiment.seeds:
        init = experiment.student.init(jax.random.split(jax.random.key(seed))[0])
        _probe(experiment, workdir / "probe" / "random", seed, init)


def _probe(
    experiment: Experiment, directory: pathlib.Path, seed: int, variables: Variables
) -> None:
    """The accuracy of a linear probe for each number of labels, on the test split."""
    inputs = {
        **experiment.inputs["probe"],
        "variables": fingerprints.fingerprint_tree(variables),
    }
    directory = directory / f"seed{seed}"
    if begin(directory, inputs) is not None:
        return
    seen = experiment.features(variables, experiment.test)
    labels = sources.labels(experiment.test)
    accuracy = {}
    for count in experiment.labels:
        few = experiment.few_labels(count, seed)
        probe = probes.fit(
            experiment.features(variables, few),
            few.labels,
            num_classes=few.num_classes,
            weight_decay=experiment.probe_weight_decay,
        )
        right = probe.logits(seen).argmax(axis=-1) == labels
        accuracy[str(count)] = 100 * float(np.mean(right))
    finish(directory, {"accuracy": accuracy})


def _keep(
    experiment: Experiment, role: str | None, state: Any, directory: pathlib.Path
) -> Mapping[str, Any]:
    """Writes a model's variables; its accuracy, if it has a classifier of its own."""
    variables = state.eval_variables
    keep_variables(directory, variables)
    if role is None:
        return {}
    return {"accuracy": experiment.accuracy(role, variables, experiment.test)}


def run_report(experiment: Experiment, workdir: pathlib.Path, command: str) -> None:
    """One table at one number of labels, and curves over all of them."""
    found = _read(experiment, workdir)
    made = study.build(
        about(
            workdir,
            command,
            num_examples=len(experiment.test),
            config=experiment.config,
        ),
        _arms(experiment, workdir, found),
        facts=_facts(experiment, found),
    )
    write_study(made, workdir, [_curves(experiment, found, way) for way in WAYS])


def _read(experiment: Experiment, workdir: pathlib.Path) -> Found:
    """The accuracies of all that was judged with few labels."""
    found: Found = {("scratch", "scratch"): _trained(experiment, workdir / "scratch")}
    for method in experiment.methods:
        found["finetune", method] = _trained(experiment, workdir / "finetune" / method)
    for method in (*experiment.methods, "random"):
        found["probe", method] = _probed(experiment, workdir / "probe" / method)
    return found


def _arms(
    experiment: Experiment, workdir: pathlib.Path, found: Found
) -> list[study.Arm]:
    """Everything with as many labels a class, and what needs none, or has all."""
    count = experiment.compare_at
    note = f"{count} labels a class"
    arms = [
        study.Arm("teacher", "Teacher, all labels", {0: _accuracy(workdir / "teacher")})
    ]
    for (way, method), values in found.items():
        compared = method in experiment.methods
        arms.append(
            study.Arm(
                method if way == "scratch" else f"{method}_{way}",
                "From scratch" if way == "scratch" else _title(method, way),
                values[count],
                against="scratch" if compared else None,
                accept_gain=(0.0, None) if compared else None,
                note=note,
            )
        )
    for method in experiment.own_classifier:
        own = _accuracies(experiment, workdir / "transfer" / method)
        arms.append(study.Arm(f"{method}_own", f"{_title(method)}, no label", own))
    whole = _accuracies(experiment, workdir / "supervised")
    return [*arms, study.Arm("supervised", "Labels of all pairs", whole)]


def _facts(experiment: Experiment, found: Found) -> list[str]:
    """On how many seeds transfer helped, and how two ways of it compare."""
    count = experiment.compare_at
    scratch = found["scratch", "scratch"][count]
    facts = []
    for way in WAYS:
        values = {x: found[way, x][count] for x in experiment.methods}
        for method, own in values.items():
            wins = sum(own[seed] > scratch[seed] for seed in own)
            facts.append(
                f"{_title(method, way)}: better than from scratch with {count} labels "
                f"a class on {wins} of {len(own)} seeds; accepted: all of them."
            )
        if {"crd", "regression"} <= values.keys():
            crd, regression = values["crd"], values["regression"]
            difference = np.mean([crd[seed] - regression[seed] for seed in crd])
            facts.append(
                f"CRD differs from feature regression, both {WAYS[way]}, by "
                f"{difference:+.2f} points; accepted: at least -0.50."
            )
    facts.append(
        "Students learned from pairs without labels; the teacher had the labels of "
        f"other images. All that is compared had the same {count} labels a class."
    )
    return facts


def _curves(experiment: Experiment, found: Found, way: str) -> drawing.Drawing:
    """Accuracy over the number of labels, each seed thin, the mean thick."""
    counts, seeds = experiment.labels, experiment.seeds
    shown = {"From scratch": found["scratch", "scratch"]}
    shown |= {_title(x, way): values for (w, x), values in found.items() if w == way}
    return plots.lines(
        way,
        "Accuracy on the test split by the number of labelled examples a class: "
        f"students that learned from unlabelled pairs, {WAYS[way]}, and the same "
        "network trained from scratch.",
        [
            plots.Series(label, counts, [[values[n][s] for n in counts] for s in seeds])
            for label, values in shown.items()
        ],
        xlabel="Labelled examples a class",
        ylabel="Accuracy (%)",
        xscale="log",
    )


def _title(method: str, way: str | None = None) -> str:
    title = TITLES.get(method, method)
    return title if way is None else f"{title}, {WAYS[way]}"


def _accuracy(directory: pathlib.Path) -> float:
    return float(_result(directory)["accuracy"])


def _accuracies(experiment: Experiment, directory: pathlib.Path) -> Values:
    return {seed: _accuracy(directory / f"seed{seed}") for seed in experiment.seeds}


def _trained(experiment: Experiment, directory: pathlib.Path) -> dict[int, Values]:
    """Accuracies of trainings by number of labels, and by seed."""
    return {
        count: _accuracies(experiment, directory / f"labels{count}")
        for count in experiment.labels
    }


def _probed(experiment: Experiment, directory: pathlib.Path) -> dict[int, Values]:
    """Accuracies of probes by number of labels, and by seed."""
    found = {
        seed: _result(directory / f"seed{seed}")["accuracy"]
        for seed in experiment.seeds
    }
    return {
        count: {seed: x[str(count)] for seed, x in found.items()}
        for count in experiment.labels
    }


def _result(directory: pathlib.Path) -> Any:
    require(directory)
    return read_json(directory / "result.json")


run = Runner(
    {
        "teacher": run_teacher,
        "transfer": run_transfer,
        "scratch": run_scratch,
        "finetune": run_finetuning,
        "probe": run_probes,
    },
    run_report,
)
