"""Visual question answering: a teacher sees image and question, a student the image.

A student that does not know what was asked can learn one thing, how likely each answer
is given the image. Answers as they were given are a few draws from that distribution.
The teacher can be asked any question about any image: averaged over all questions, its
answers are the distribution itself.

    workdir/
      teacher/                      inputs.json, checkpoints/, metrics.jsonl,
      student/same_question/seed0/    TensorBoard files, variables.safetensors,
      student/every_question/seed0/   result.json, predictions.npz (test logits, of
      baseline/seed0/                 students)
      report/                       report.html, report.json, figures
"""

import functools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import scipy.special

from kdjax import fingerprints, metrics
from kdjax.builders.visual_questions import Experiment, build
from kdjax.data.questions import QuestionSplit
from kdjax.recipes.stages import (
    Runner,
    about,
    keep_variables,
    load_variables,
    train,
    write_study,
)
from kdjax.report import drawing, plots, statistics, study
from kdjax.workdir import read_json, require, write_arrays

NUM_IMAGES_SHOWN = 6

__all__ = ["build", "run"]


def run_teacher(experiment: Experiment, workdir: pathlib.Path) -> None:
    """Trains the teacher on images, questions and answers."""

    def keep(state: Any, directory: pathlib.Path) -> Mapping[str, Any]:
        keep_variables(directory, state.eval_variables)
        split = experiment.questions.test
        logits = experiment.ask(state.eval_variables, split)
        blind = every_question(logits, experiment.questions.shares)
        return {
            **_judge(logits[split.image_ids, split.question_ids], split),
            "blind": _judge(blind[split.image_ids], split),
        }

    train(
        experiment.teacher_training(),
        workdir / "teacher",
        experiment.inputs["teacher"],
        keep,
    )


def run_students(experiment: Experiment, workdir: pathlib.Path) -> None:
    """Trains a student for each kind of soft target and each seed."""
    variables = load_variables(experiment.teacher, workdir / "teacher")
    inputs = {
        **experiment.inputs["student"],
        "teacher": fingerprints.fingerprint_tree(variables),
    }
    split = experiment.questions.train
    logits = experiment.ask(variables, split)
    for name, targets in TARGETS.items():
        teacher_logits = targets(experiment, logits)
        for seed in experiment.seeds:
            train(
                experiment.student_training(name, seed, teacher_logits),
                workdir / "student" / name / f"seed{seed}",
                {**inputs, "targets": name},
                functools.partial(_keep_student, experiment),
            )


def run_baselines(experiment: Experiment, workdir: pathlib.Path) -> None:
    """Trains the same students, from the same seeds, on answers alone."""
    for seed in experiment.seeds:
        train(
            experiment.baseline_training(seed),
            workdir / "baseline" / f"seed{seed}",
            experiment.inputs["baseline"],
            functools.partial(_keep_student, experiment),
        )


def every_question(logits: np.ndarray, shares: np.ndarray) -> np.ndarray:
    r"""What the teacher answers to a question that one does not know.

    .. math:: z_a = \log \sum_q P(q) \, p^t(a \,|\, \text{image}, q)

    Args:
      logits: of the teacher, `[images, texts, answers]`.
      shares: how often each text is asked, `[texts]`.

    Returns:
      Logarithms of probabilities, `[images, answers]`.
    """
    log_probs = scipy.special.log_softmax(logits.astype(np.float64), axis=-1)
    mixed = scipy.special.logsumexp(log_probs, axis=1, b=shares[:, None])
    return mixed.astype(np.float32)


def _same(experiment: Experiment, logits: np.ndarray) -> np.ndarray:
    """The teacher's answer to the question that each image is asked in each view."""
    split = experiment.questions.train
    pairs = split.asked(experiment.num_views)
    return logits[split.image_ids[pairs], split.question_ids[pairs]]


def _every(experiment: Experiment, logits: np.ndarray) -> np.ndarray:
    """The same in each view: its answers to all questions, averaged."""
    mixed = every_question(logits, experiment.questions.shares)
    return np.tile(mixed, (experiment.num_views, 1, 1))


# The teacher's logits for a student, `[views, images, answers]`.
TARGETS: Mapping[str, Callable[[Experiment, np.ndarray], np.ndarray]] = {
    "same_question": _same,
    "every_question": _every,
}
TITLES = {
    "same_question": "Soft answer to the question",
    "every_question": "Soft answers to every question",
}


def _keep_student(
    experiment: Experiment, state: Any, directory: pathlib.Path
) -> Mapping[str, Any]:
    """Writes a student's variables and logits, and judges it on the test split."""
    keep_variables(directory, state.eval_variables)
    split = experiment.questions.test
    logits = experiment.look(state.eval_variables, split)
    write_arrays(directory / "predictions.npz", {"logits": logits})
    return _judge(logits[split.image_ids], split)


def _judge(logits: np.ndarray, split: QuestionSplit) -> dict[str, float]:
    """Accuracy in %, and negative log-likelihood in nats, over all pairs."""
    pair = jnp.asarray(logits), jnp.asarray(split.answers)
    return {
        "accuracy": 100 * float(metrics.accuracy(*pair)),
        "nll": float(metrics.negative_log_likelihood(*pair)),
    }


def run_report(experiment: Experiment, workdir: pathlib.Path, command: str) -> None:
    """Accuracy in the table; likelihoods as sentences; distributions as figures."""
    teacher = _result(workdir / "teacher")
    seeds = experiment.seeds
    found = {"baseline": _results(workdir / "baseline", seeds)}
    found |= {x: _results(workdir / "student" / x, seeds) for x in TARGETS}
    arms = [
        study.Arm("teacher", "Teacher, image and question", {0: teacher["accuracy"]}),
        study.Arm(
            "blind",
            "Teacher, averaged over questions",
            {0: teacher["blind"]["accuracy"]},
        ),
        study.Arm("baseline", "Image alone", _of(found["baseline"], "accuracy")),
        *(
            study.Arm(
                name, TITLES[name], _of(found[name], "accuracy"), against="baseline"
            )
            for name in TARGETS
        ),
    ]
    made = study.build(
        about(
            workdir,
            command,
            num_examples=len(experiment.questions.test.answers),
            config=experiment.config,
        ),
        arms,
        facts=_facts(teacher, found),
        headline=_likelihood("every_question", found),
    )
    write_study(made, workdir, _figures(experiment, workdir))


def _facts(
    teacher: Mapping[str, Any], found: Mapping[str, Mapping[int, Any]]
) -> list[str]:
    return [
        "No student sees a question: the best it can do is to know how likely each "
        "answer is, which accuracy hardly shows, and the negative log-likelihood does.",
        f"Negative log-likelihood of the teacher {teacher['nll']:.4f}, averaged over "
        f"questions {teacher['blind']['nll']:.4f} nats: the second is what a student "
        "could reach.",
        _likelihood("same_question", found),
    ]


def _likelihood(name: str, found: Mapping[str, Mapping[int, Any]]) -> str:
    own, alone = _of(found[name], "nll"), _of(found["baseline"], "nll")
    gain = statistics.paired_difference(own, alone)
    assert gain is not None  # They have the same seeds.
    interval = ""
    if gain["low"] is not None:
        interval = f"95 % CI {gain['low']:+.4f} to {gain['high']:+.4f}, "
    lower = sum(own[seed] < alone[seed] for seed in own)
    return (
        f"{TITLES[name]}: negative log-likelihood {np.mean(list(own.values())):.4f} "
        f"against {np.mean(list(alone.values())):.4f} nats of the image alone "
        f"({gain['mean']:+.4f}, {interval}lower on {lower} of {len(own)} seeds)."
    )


def _figures(experiment: Experiment, workdir: pathlib.Path) -> list[drawing.Drawing]:
    """Some test images, and how likely each side holds each answer to be."""
    split, seed = experiment.questions.test, f"seed{experiment.seeds[0]}"
    ids = np.arange(min(NUM_IMAGES_SHOWN, len(split.images)))
    shown = split.images.take(ids)["image"]
    variables = load_variables(experiment.teacher, workdir / "teacher")
    logits = experiment.ask(variables, split)
    blind = every_question(logits, experiment.questions.shares)
    sides = {
        "Teacher, averaged over questions": blind,
        TITLES["every_question"]: _logits(workdir / "student/every_question" / seed),
        "Image alone": _logits(workdir / "baseline" / seed),
    }
    images = plots.image_grid(
        "images", "The first test images.", [shown], ["0 to " + str(len(ids) - 1)]
    )
    return [images] + [
        plots.heatmap(
            f"answers{i}",
            f"{title}: the probability in % of each answer to an unknown question "
            "about each of those images.",
            100 * scipy.special.softmax(side[ids], axis=-1),
            rows=[str(x) for x in ids],
            columns=split.images.class_names,
            ylabel="Image",
            xlabel="Answer",
            title=title,
            digits=0,
            label="%",
        )
        for i, (title, side) in enumerate(sides.items())
    ]


def _logits(directory: pathlib.Path) -> np.ndarray:
    with np.load(directory / "predictions.npz", allow_pickle=False) as arrays:
        return arrays["logits"]


def _results(directory: pathlib.Path, seeds: Sequence[int]) -> dict[int, Any]:
    return {seed: _result(directory / f"seed{seed}") for seed in seeds}


def _result(directory: pathlib.Path) -> Any:
    require(directory)
    return read_json(directory / "result.json")


def _of(results: Mapping[int, Any], key: str) -> dict[int, float]:
    return {seed: float(result[key]) for seed, result in results.items()}


run = Runner(
    {
        "teacher": run_teacher,
        "student": run_students,
        "baseline": run_baselines,
    },
    run_report,
)
