"""Language models: a teacher, students by several divergences, and sparse caches.

The stages `teacher`, `cache`, `student`, `baseline`, `angles` and `report`:

    workdir/
      tokenizer.json             what the tokens stand for
      teacher/                   inputs.json, checkpoints/, metrics.jsonl,
      student/<method>/seed0/      variables.safetensors, result.json (perplexity
      baseline/seed0/              and calibration, validation and test)
      cache/hidden, draws, top/  what the students read of the teacher
      angles/                    result.json: gradients of sparse teachers
      report/                    report.html, report.json, figures

The stage `export` writes the teacher and the best student as files.
"""

import functools
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from kdjax import citations, fingerprints, losses, parallel
from kdjax import teacher_cache as caches
from kdjax.builders.lm import METHODS, Experiment, build
from kdjax.recipes import _export
from kdjax.recipes.stages import (
    Runner,
    about,
    import_model,
    keep_variables,
    load_variables,
    train,
    write_cache,
    write_study,
)
from kdjax.report import drawing, plots, study
from kdjax.types import Variables
from kdjax.workdir import begin, finish, read_json, require

__all__ = ["build", "run"]

SPLITS = ("validation", "test")
BYTES = {"random_sampling": 3, "top_k": 4, "top_k_tail": 4}  # Of a class.
SPARSE = tuple(BYTES)


def run_teacher(experiment: Experiment, workdir: pathlib.Path) -> None:
    """Trains the teacher, or imports it."""
    if parallel.is_main_process():
        experiment.tokenizer.save(str(workdir / "tokenizer.json"))
    directory, inputs = workdir / "teacher", experiment.inputs["teacher"]
    keep = functools.partial(_keep, experiment, "teacher")
    if experiment.teacher_pretrained is None:
        training = experiment.teacher_training()
        train(training, directory, inputs, lambda state, d: keep(_of(state), d))
    else:
        import_model(
            experiment.teacher, experiment.teacher_pretrained, directory, inputs, keep
        )


def run_cache(experiment: Experiment, workdir: pathlib.Path) -> None:
    """Stores what the students' methods read of the teacher."""
    variables = load_variables(experiment.teacher, workdir / "teacher")
    for reads in sorted(set(experiment.reads.values())):
        manifest = experiment.manifest(reads, variables)
        write_cache(
            workdir / "cache" / reads,
            manifest,
            experiment.compute(reads, variables),
            batch_size=experiment.batch_size,
            name=f"cache of {reads}",
        )


def run_students(experiment: Experiment, workdir: pathlib.Path) -> None:
    """Trains a student for each method and seed."""
    variables = load_variables(experiment.teacher, workdir / "teacher")
    inputs = {
        **experiment.inputs["student"],
        "teacher": fingerprints.fingerprint_tree(variables),
    }
    for method in experiment.methods:
        cache = None
        for seed in experiment.seeds:
            directory = workdir / "student" / method / f"seed{seed}"
            if begin(directory, {**inputs, "method": method}) is not None:
                continue
            reads = experiment.reads.get(method)
            if reads is not None and cache is None:
                manifest = experiment.manifest(reads, variables)
                cache = caches.open(workdir / "cache" / reads, manifest)
            train(
                experiment.student_training(method, seed, variables, cache),
                directory,
                {**inputs, "method": method},
                functools.partial(_keep_state, experiment),
            )


def run_baselines(experiment: Experiment, workdir: pathlib.Path) -> None:
    """Trains the same students, from the same seeds, on text alone."""
    for seed in experiment.seeds:
        train(
            experiment.baseline_training(seed),
            workdir / "baseline" / f"seed{seed}",
            experiment.inputs["baseline"],
            functools.partial(_keep_state, experiment),
        )


def run_angles(experiment: Experiment, workdir: pathlib.Path) -> None:
    """At the weights of the first baseline, the gradients of sparse teachers."""
    variables = load_variables(experiment.teacher, workdir / "teacher")
    seed = f"seed{experiment.seeds[0]}"
    student = load_variables(experiment.student, workdir / "baseline" / seed)
    inputs = {
        "teacher": fingerprints.fingerprint_tree(variables),
        "student": fingerprints.fingerprint_tree(student),
        "angles": experiment.config["lm"]["angles"],
    }
    if begin(workdir / "angles", inputs) is None:
        finish(workdir / "angles", experiment.angles(student, variables))


def _of(state: Any) -> Variables:
    return {"params": state.params}


def _keep_state(
    experiment: Experiment, state: Any, directory: pathlib.Path
) -> Mapping[str, Any]:
    return _keep(experiment, "student", _of(state), directory)


def _keep(
    experiment: Experiment, role: str, variables: Variables, directory: pathlib.Path
) -> Mapping[str, Any]:
    """Writes a model's variables; what it is worth, and how it goes on."""
    keep_variables(directory, variables)
    found: dict[str, Any] = {
        split: experiment.evaluate(role, variables, experiment.windows[split])
        for split in SPLITS
    }
    return found | {"texts": experiment.complete(role, variables)}


def run_report(experiment: Experiment, workdir: pathlib.Path, command: str) -> None:
    """One table of perplexities, calibration and angles in words and figures."""
    results = {
        method: _results(experiment, workdir / "student" / method)
        for method in experiment.methods
    }
    results = {"baseline": _results(experiment, workdir / "baseline")} | results
    teacher = _result(workdir / "teacher")
    angles = _result(workdir / "angles")
    made = study.build(
        about(
            workdir,
            command,
            num_examples=experiment.windows["test"][:, 1:].size,
            config=experiment.config,
            source="Anshumann et al. 2025 (arXiv 2503.16870) for the angles: 4 degrees "
            "for random sampling, 58 for the 12 likeliest classes",
            unit="perplexity",
        ),
        _arms(results, teacher),
        facts=[
            *_loss_facts(results),
            *_angle_facts(experiment, angles),
            *_calibration(results, teacher),
            *_texts(results, teacher),
        ],
    )
    write_study(made, workdir, [_angles(angles), _eces(results)])


def _arms(results: Mapping[str, Any], teacher: Any) -> list[study.Arm]:
    arms = [study.Arm("teacher", "Teacher", {0: teacher["test"]["perplexity"]})]
    for name, by_seed in results.items():
        baseline = name == "baseline"
        arms.append(
            study.Arm(
                name,
                "Text alone" if baseline else METHODS[name],
                _values(by_seed, "test", "perplexity"),
                against=None if baseline else "baseline",
                note=f"calibration error {_mean(by_seed, 'test', 'ece'):.2f} %",
            )
        )
    return arms


def _loss_facts(results: Mapping[str, Any]) -> list[str]:
    """Whether a sparse teacher is as good as the whole one, by the validation loss."""
    if not {"forward_kl", "random_sampling"} <= results.keys():
        return []
    loss = {name: _mean(x, "validation", "nll") for name, x in results.items()}
    gap = loss["random_sampling"] - loss["forward_kl"]
    met = "met" if gap <= 0.01 else "missed"
    facts = [
        f"Validation loss of random sampling against the whole teacher: {gap:+.4f} "
        f"nats a token; accepted: at most +0.01: {met}."
    ]
    for name in ("top_k", "top_k_tail"):
        if name in results:
            gap = loss["random_sampling"] - loss[name]
            met = "met" if gap < 0 else "missed"
            facts.append(
                f"Validation loss of random sampling against {METHODS[name].lower()}: "
                f"{gap:+.4f} nats a token; accepted: below 0: {met}."
            )
    return facts


def _angle_facts(experiment: Experiment, angles: Any) -> list[str]:
    settings = experiment.config["lm"]
    drawn = angles["random_sampling"].get(str(settings["draws"]))
    if drawn is None:
        return []
    met = "met" if drawn[0] <= 10 else "missed"
    facts = [
        f"Gradient of {settings['draws']} draws ({3 * drawn[1]:.0f} bytes a token): "
        f"{drawn[0]:.1f} degrees from the whole teacher's (published: 4); accepted: "
        f"at most 10: {met}."
    ]
    for method in ("top_k", "top_k_tail"):
        for k in (settings["top_k"], 12):
            found = angles[method].get(str(k))
            text = (
                ""
                if found is None
                else (
                    f"Gradient of the {k} likeliest classes, {METHODS[method].lower()} "
                    f"({_bytes(method, found[1]):.0f} bytes a token): {found[0]:.1f} "
                    "degrees (published for 12: 58)."
                )
            )
            if text and text not in facts:
                facts.append(text)
    return facts


def _calibration(results: Mapping[str, Any], teacher: Any) -> list[str]:
    found = {
        ("Text alone" if x == "baseline" else METHODS[x]): _mean(by_seed, "test", "ece")
        for x, by_seed in results.items()
    }
    found = {"Teacher": teacher["test"]["ece"]} | found
    listed = ", ".join(f"{title} {x:.2f}" for title, x in found.items())
    return [f"Expected calibration error of the likeliest token, in %: {listed}."]


def _texts(results: Mapping[str, Any], teacher: Any) -> list[str]:
    """How the models go on from the prompts, the likeliest token each time."""
    facts = [f"The teacher goes on: {text!r}." for text in teacher["texts"]]
    for name, by_seed in results.items():
        title = "text alone" if name == "baseline" else METHODS[name].lower()
        first = next(iter(by_seed.values()))
        facts += [f"A student by {title} goes on: {x!r}." for x in first["texts"]]
    return facts


def _angles(angles: Any) -> drawing.Drawing:
    """The angle over the bytes of a token."""
    series = []
    for method in SPARSE:
        points = sorted(
            (_bytes(method, kept), a) for a, kept in angles[method].values()
        )
        series.append(
            plots.Series(
                METHODS[method], [x for x, _ in points], [y for _, y in points]
            )
        )
    return plots.lines(
        "angles",
        "How far the gradient of a student on text alone, by what is stored of the "
        "teacher, is from that by the whole teacher: in degrees, over one batch, by "
        "bytes a token.",
        series,
        xlabel="Bytes a token",
        ylabel="Angle (degrees)",
    )


def _bytes(method: str, kept: float) -> float:
    return BYTES[method] * kept + (4 if method == "top_k_tail" else 0)


def _eces(results: Mapping[str, Any]) -> drawing.Drawing:
    """Calibration error against perplexity, a point for each method."""
    series = [
        plots.Series(
            "Text alone" if name == "baseline" else METHODS[name],
            [_mean(by_seed, "test", "perplexity")],
            [_mean(by_seed, "test", "ece")],
        )
        for name, by_seed in results.items()
    ]
    return plots.lines(
        "calibration",
        "Expected calibration error of the likeliest token over perplexity, both on "
        "the test split, means over seeds.",
        series,
        xlabel="Perplexity",
        ylabel="Calibration error (%)",
    )


def _values(by_seed: Mapping[int, Any], split: str, key: str) -> dict[int, float]:
    return {seed: float(result[split][key]) for seed, result in by_seed.items()}


def _mean(by_seed: Mapping[int, Any], split: str, key: str) -> float:
    return float(np.mean(list(_values(by_seed, split, key).values())))


def _results(experiment: Experiment, directory: pathlib.Path) -> dict[int, Any]:
    return {seed: _result(directory / f"seed{seed}") for seed in experiment.seeds}


def _result(directory: pathlib.Path) -> Any:
    require(directory)
    return read_json(directory / "result.json")


def run_export(experiment: Experiment, workdir: pathlib.Path, command: str) -> None:
    """Writes the teacher and the best student as files: next tokens of whole texts."""
    config = experiment.config
    kinds = {"baseline": workdir / "baseline"} | {
        method: workdir / "student" / method for method in experiment.methods
    }
    nll = {
        (kind, seed): result["validation"]["nll"]
        for kind, directory in kinds.items()
        for seed, result in _results(experiment, directory).items()
    }
    kind, seed = min(nll, key=lambda one: nll[one])
    teacher, student = workdir / "teacher", kinds[kind] / f"seed{seed}"
    told = [
        f"Learned from: {METHODS.get(kind, 'text alone')}.",
        f"Seed {seed}, the best of {len(nll)} on the validation split "
        f"({nll[kind, seed]:.4f} nats a token).",
    ]
    exported = experiment.exported
    _export.run(
        {
            "teacher": _export.Trained(
                exported["teacher"],
                teacher,
                _export.origin(config["teacher"], teacher),
            ),
            "student": _export.Trained(exported["student"], student, told),
        },
        _export.of_windows(
            config["dataset"]["name"],
            experiment.windows["student"],
            experiment.windows["test"],
            experiment.tokenizer,
        ),
        config["export"],
        workdir,
        command=command,
        citation=citations.citation(
            [losses.soft_target_loss, *experiment.losses.values()]
        ),
    )


run = Runner(
    {
        "teacher": run_teacher,
        "cache": run_cache,
        "student": run_students,
        "baseline": run_baselines,
        "angles": run_angles,
    },
    run_report,
    {"export": run_export},
)
