"""Offline distillation: a fixed teacher, a student, and what the one gave the other.

The stages `teacher`, `cache`, `student`, `baseline` and `report` each leave their
result in the work directory, and are skipped when it is there:

    workdir/
      teacher/           inputs.json, checkpoints/, metrics.jsonl, TensorBoard files,
      student/seed0/       variables.safetensors, predictions.npz (test logits after
      baseline/seed0/      the last epoch, and at the best by validation), result.json
      cache/             the teacher's logits, by view and example
      report/            report.html, report.json, figures
      export/            if named in --stages: files for other runtimes, README.md
"""

import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import rich.console

from kdjax import (
    fingerprints,
    measure,
    metric_writers,
    parallel,
    report,
)
from kdjax import teacher_cache as caches
from kdjax.builders import Experiment, build
from kdjax.data import sources
from kdjax.networks import Network
from kdjax.recipes import _export
from kdjax.recipes.stages import (
    SECONDS,
    VARIABLES,
    Runner,
    import_model,
    keep_variables,
    load_variables,
    train,
    write_cache,
)
from kdjax.training import Training, fit, predict_split
from kdjax.types import Outputs, Variables
from kdjax.workdir import begin, finish, read_json, require, write_arrays

NUM_EXAMPLES_SHOWN = 6

__all__ = ["build", "run", "verify_cache"]


def run_teacher(experiment: Experiment, workdir: pathlib.Path) -> None:
    """Trains the teacher, or imports it."""
    directory, inputs = workdir / "teacher", experiment.inputs["teacher"]
    pretrained = experiment.teacher_pretrained

    def keep(variables: Variables, directory: pathlib.Path) -> Mapping[str, Any]:
        _keep(experiment, directory, "teacher", variables, None)
        return {}

    if pretrained is not None:
        import_model(experiment.teacher, pretrained, directory, inputs, keep)
    elif begin(directory, inputs) is None:
        _train(experiment, experiment.teacher_training(), directory, "teacher")


def run_cache(experiment: Experiment, workdir: pathlib.Path) -> None:
    """Stores the teacher's outputs for every view of every example, if cached."""
    if parallel.is_main_process():
        print(experiment.teacher_note, flush=True)
    if not experiment.cached:
        return
    variables = load_variables(experiment.teacher, workdir / "teacher")
    manifest = experiment.manifest(variables)
    write_cache(
        workdir / "cache",
        manifest,
        experiment.compute(variables),
        batch_size=experiment.batch_size,
        name="cache",
    )


def verify_cache(
    experiment: Experiment, workdir: pathlib.Path, num_samples: int
) -> caches.VerifyReport:
    """Recomputes a sample of the cache's entries, and compares."""
    variables = load_variables(experiment.teacher, workdir / "teacher")
    cache = caches.open(workdir / "cache", experiment.manifest(variables))
    return caches.verify(
        cache,
        experiment.compute(variables),
        num_samples=num_samples,
        seed=0,
    )


def run_students(experiment: Experiment, workdir: pathlib.Path) -> None:
    """Trains one student per seed on the teacher's outputs."""
    variables = load_variables(experiment.teacher, workdir / "teacher")
    inputs = {
        **experiment.inputs["student"],
        "teacher": fingerprints.fingerprint_tree(variables),
    }
    cache = None
    for seed in experiment.seeds:
        directory = workdir / "student" / f"seed{seed}"
        if begin(directory, inputs) is not None:
            continue
        if experiment.cached and cache is None:
            cache = caches.open(workdir / "cache", experiment.manifest(variables))
        training = experiment.student_training(seed, variables, cache)
        _train(experiment, training, directory, "student")


def run_baselines(experiment: Experiment, workdir: pathlib.Path) -> None:
    """Trains the same students, from the same seeds, without a teacher."""
    for seed in experiment.seeds:
        directory = workdir / "baseline" / f"seed{seed}"
        if begin(directory, experiment.inputs["baseline"]) is None:
            training = experiment.baseline_training(seed)
            _train(experiment, training, directory, "student")


def run_report(experiment: Experiment, workdir: pathlib.Path, command: str) -> None:
    """Measures what the models cost, and reports all that is there."""
    directories = _finished(experiment, workdir)
    roles = {role for role, _ in directories}
    results = [_result(*key, path) for key, path in directories.items()]
    subjects = {
        role: measure.Subject(
            _inference(_network(experiment, role)),
            load_variables(_network(experiment, role), path),
        )
        # Of several seeds one is enough: they differ in their numbers alone.
        for (role, _), path in reversed(directories.items())
        if role != "baseline" or "student" not in roles
    }
    labels = sources.labels(experiment.splits.test)
    costs = measure.measure_costs(
        subjects, experiment.student.image_shape, max_seconds=5.0
    )
    if roles >= {"student", "baseline"}:
        costs["baseline"] = costs["student"]  # The same network.
    built = report.build(
        results,
        costs,
        _run_info(experiment, workdir, command),
        labels,
        _examples(experiment, results, labels),
    )
    report.write(built, workdir / "report")
    report.print_table(built, rich.console.Console())


def run_export(experiment: Experiment, workdir: pathlib.Path, command: str) -> None:
    """Writes the teacher and one student as files for other runtimes."""
    distill = experiment.config["distill"]
    seed, why = _export.best_seed(
        {seed: workdir / "student" / f"seed{seed}" for seed in experiment.seeds}
    )
    teacher, student = workdir / "teacher", workdir / "student" / f"seed{seed}"
    told = _export.origin(experiment.config["teacher"], teacher)
    trained = {
        "teacher": _export.Trained(experiment.exported["teacher"], teacher, told)
    }
    told = _export.origin(experiment.config["student"], student)
    trained["student"] = _export.Trained(
        experiment.exported["student"],
        student,
        [*told, _export.objective(distill), why],
    )
    if experiment.export["qat_epochs"]:
        trained["student_qat"] = _quantization_aware(
            experiment, workdir, seed, student / VARIABLES
        )
    _export.run(
        trained,
        _export.of_images(experiment.splits.train, experiment.splits.test),
        experiment.export,
        workdir,
        command=command,
        citation=_export.citation(distill),
    )


def _quantization_aware(
    experiment: Experiment, workdir: pathlib.Path, seed: int, weights: pathlib.Path
) -> _export.Trained:
    """Distils the trained student once more, rounded to eight bits."""
    rounded, directory = experiment.quantization_aware(weights), workdir / "export/qat"
    teacher = load_variables(experiment.teacher, workdir / "teacher")
    cache = None
    if rounded.cached:
        cache = caches.open(workdir / "cache", rounded.manifest(teacher))
    inputs = {
        **rounded.inputs["student"],
        "teacher": fingerprints.fingerprint_tree(teacher),
    }

    def keep(state: Any, directory: pathlib.Path) -> Mapping[str, Any]:
        keep_variables(directory, state.eval_variables)
        return {}

    train(rounded.student_training(seed, teacher, cache), directory, inputs, keep)
    told = [
        "The student, distilled once more with its convolutions and dense layers "
        "rounded to eight bits.",
        *_export.origin({**rounded.config["student"], "pretrained": None}, directory),
    ]
    network = experiment.exported["student"]
    return _export.Trained(network, directory, told, ("onnx", "onnx_int8"))


def _train(
    experiment: Experiment, training: Training, directory: pathlib.Path, network: str
) -> None:
    """Trains one model, and keeps what it and its best checkpoint say of the test."""
    started = time.monotonic()
    state, saved = fit(training, directory)
    best = None
    if saved.best_step is not None:
        best = saved.restore(saved.best_step, state).eval_variables
    result = {
        "steps": training.num_steps,
        "best_step": saved.best_step if best else None,
        "epochs": training.num_steps / training.steps_per_epoch,
        "seconds": time.monotonic() - started,
    }
    saved.close()
    _keep(experiment, directory, network, state.eval_variables, best)
    finish(directory, result)


def _keep(
    experiment: Experiment,
    directory: pathlib.Path,
    network: str,
    variables: Variables,
    best: Variables | None,
) -> None:
    """Writes a model's variables and its logits on the test split."""
    logits = {}
    for name, some in (("logits", variables), ("best_logits", best)):
        if some is not None:
            logits[name], _ = predict_split(
                experiment.predict[network],
                experiment.devices.replicate(some),
                experiment.splits.test,
                experiment.batch_size,
            )
    if parallel.is_main_process():
        write_arrays(directory / "predictions.npz", logits)
    keep_variables(directory, variables)


def _network(experiment: Experiment, role: str) -> Network:
    return experiment.teacher if role == "teacher" else experiment.student


def _inference(network: Network) -> Callable[[Variables, jax.Array], Outputs]:
    return lambda variables, images: network.apply(variables, images, train=False)[0]


def _finished(
    experiment: Experiment, workdir: pathlib.Path
) -> dict[tuple[str, int], pathlib.Path]:
    """The directories of all models that are done, by role and seed."""
    places = {("teacher", 0): workdir / "teacher"}
    for role in ("student", "baseline"):
        for seed in experiment.seeds:
            places[role, seed] = workdir / role / f"seed{seed}"
    require(workdir / "teacher")
    return {
        key: path
        for key, path in places.items()
        if read_json(path / "result.json") is not None
    }


def _result(role: Any, seed: int, directory: pathlib.Path) -> report.ModelResult:
    with np.load(directory / "predictions.npz", allow_pickle=False) as arrays:
        predictions = dict(arrays)
    return report.ModelResult(
        role=role,
        seed=seed,
        logits=predictions["logits"],
        best_logits=predictions.get("best_logits"),
        history=metric_writers.read(directory),
        seconds=(read_json(directory / "result.json") or {})["seconds"],
    )


def _run_info(
    experiment: Experiment,
    workdir: pathlib.Path,
    command: str,
) -> report.RunInfo:
    published = dict(experiment.published)
    bands = published.pop("accept")
    unit = published.pop("unit")
    return report.RunInfo(
        name=workdir.name,
        command=command,
        temperature=experiment.temperature,
        config=experiment.config,
        unit=unit,
        class_names=experiment.splits.test.class_names,
        published=published if published["source"] else {},
        bands={role: tuple(band) for role, band in bands.items()},
        loss_terms=experiment.loss_terms,
        versions=measure.versions(),
        hardware=measure.hardware(),
        commit=measure.commit(),
        stage_seconds=read_json(workdir / SECONDS) or {},
        data={"test": experiment.splits.test.fingerprint()},
    )


def _examples(
    experiment: Experiment, results: Sequence[report.ModelResult], labels: np.ndarray
) -> report.Examples:
    """The teacher's least certain right answers, one a class: they teach most."""
    logits = next(r.logits for r in results if r.role == "teacher")
    second = np.sort(logits, axis=-1)[:, -2] - logits.max(axis=-1)
    right = logits.argmax(axis=-1) == labels
    ids = []
    for label in np.unique(labels[right])[:NUM_EXAMPLES_SHOWN]:
        candidates = np.flatnonzero(right & (labels == label))
        ids.append(candidates[np.argmax(second[candidates])])
    images = experiment.splits.test.take(np.asarray(ids))["image"]
    return report.Examples(images, labels[ids], logits[ids])


run = Runner(
    {
        "teacher": run_teacher,
        "cache": run_cache,
        "student": run_students,
        "baseline": run_baselines,
    },
    run_report,
    {"export": run_export},
)
