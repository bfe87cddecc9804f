"""The report of `study_why`: arms, facts and figures of each experiment done."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kdjax.builders.study_why import KEPT, OMITTED, Experiment
from kdjax.data import sources
from kdjax.recipes import _study_why_bias as bias
from kdjax.recipes import stages as common
from kdjax.recipes._students import Trained
from kdjax.recipes._study_why_parts import Part, spread, verdict
from kdjax.report import Report, plots, study
from kdjax.report.drawing import Drawing

SOURCE = (
    "Hinton et al. 2015, section 3 and table 5 (frame accuracy of speech), single "
    "runs: https://arxiv.org/abs/1503.02531"
)
# What the acceptance bands, which are for MNIST, ask for.
LEAST_RECOVERED = 40.0  # Of the gap, in %.
BEST_TEMPERATURES = (2.0, 2.5, 4.0, 8.0)  # Of 30 units.
WIDEST_SPREAD = 25.0  # Errors, over temperatures of 8 and above.
WIDE = 300  # Units.


def make(
    experiment: Experiment, workdir: pathlib.Path, command: str
) -> tuple[Report, list[Drawing]]:
    """The report of what is done, and its figures."""
    of = experiment.offline
    labels = sources.labels(of.splits.test)
    is_mnist = experiment.config["dataset"]["name"] == "mnist"
    with np.load(workdir / "teacher" / "predictions.npz") as arrays:
        accuracy = 100 * float(np.mean(arrays["logits"].argmax(axis=-1) == labels))
    teacher = study.Arm(
        "teacher", "Teacher", {int(experiment.config["seed"]): accuracy}
    )
    parts = [Part([teacher])]
    full = Trained.at(workdir / "speed")
    if (trained := Trained.at(workdir / "few_labels")) is not None:
        parts.append(_few_labels(experiment, trained, full, is_mnist))
    if full is not None:
        parts.append(_speed(experiment, full))
    for stage, make_part in (("omit_3", bias.omitted), ("only_7_and_8", bias.kept)):
        if (trained := Trained.at(workdir / stage)) is not None:
            judged = bias.judge(
                trained.logits("soft", "train"),
                trained.logits("soft", "test"),
                OMITTED if stage == "omit_3" else KEPT,
                sources.labels(of.splits.train),
                labels,
            )
            parts.append(make_part(judged, is_mnist))
    widths = {
        width: Trained.at(workdir / "width_temperature" / f"width{width}")
        for width in experiment.widths
    }
    done = {width: trained for width, trained in widths.items() if trained is not None}
    if done:
        parts.append(_width_temperature(experiment, done, len(labels), is_mnist))
    about = common.about(
        workdir,
        command,
        num_examples=len(labels),
        config=experiment.config,
        source=SOURCE if is_mnist else "",
    )
    report = study.build(
        about,
        [arm for part in parts for arm in part.arms],
        facts=[fact for part in parts for fact in part.facts],
    )
    return report, [drawing for part in parts for drawing in part.drawings]


def _few_labels(
    experiment: Experiment, trained: Trained, full: Trained | None, is_mnist: bool
) -> Part:
    """Soft labels as regularisation: Hinton et al., table 5."""
    each = experiment.few_labels_each
    amount, whole = sum(each), len(experiment.offline.splits.train)
    hard = trained.accuracy("hard", "best_test")
    last = trained.accuracy("hard")
    soft = {arm: trained.accuracy(arm) for arm in trained.arms if arm != "hard"}
    chosen = _best_by_held_out(trained, list(soft))
    arms = [
        study.Arm("few/hard", f"{amount} labels, hard, stopped early", hard),
        study.Arm("few/hard_last", f"{amount} labels, hard, last epoch", last),
        *(
            study.Arm(
                f"few/{arm}",
                f"{amount} examples, {arm}",
                values,
                against="few/hard",
                accept_gain=(0.0, None) if is_mnist and arm == chosen else None,
                note="temperature chosen by held-out examples" * (arm == chosen),
            )
            for arm, values in soft.items()
        ),
    ]
    wins = sum(soft[chosen][seed] > hard[seed] for seed in hard)
    facts = [
        f"{amount} of {whole} examples, from {min(each)} to {max(each)} of each class; "
        f"{chosen} is best by held-out examples and beats hard labels on {wins} of "
        f"{len(hard)} seeds{verdict(is_mnist, wins == len(hard), 'all')}."
    ]
    reference = []
    if full is not None:
        everything = full.accuracy("hard")
        gap = _mean(everything) - _mean(hard)
        recovered = 100 * (_mean(soft[chosen]) - _mean(hard)) / gap if gap else np.nan
        least = f"at least {LEAST_RECOVERED:g} %"
        facts.append(
            f"Soft labels recover {recovered:.0f} % of what hard labels lose when "
            f"{amount} are left of {whole} (published, speech: 87 %)"
            f"{verdict(is_mnist, recovered >= LEAST_RECOVERED, least)}."
        )
        reference = [("hard, all labels", everything)]
    drawing = _few_labels_figure(soft, hard, reference)
    return Part(arms, facts, [drawing])


def _best_by_held_out(trained: Trained, arms: list[str]) -> str:
    """The setting whose students are best at the last look."""
    last = trained.array("curve")[-1]
    means = [np.mean(last[list(trained.rows(arm).values())]) for arm in arms]
    return arms[int(np.argmax(means))]


def _few_labels_figure(
    soft: Mapping[str, Mapping[int, float]],
    hard: Mapping[int, float],
    reference: Sequence[tuple[str, Mapping[int, float]]],
) -> Drawing:
    temperatures = [float(arm.split("= ")[1]) for arm in soft]
    runs = [[values[seed] for values in soft.values()] for seed in hard]
    series = [
        plots.Series("soft", temperatures, runs),
        *(
            plots.Series(
                label, temperatures, [[x] * len(temperatures) for x in values.values()]
            )
            for label, values in (("hard, stopped early", hard), *reference)
        ),
    ]
    return plots.lines(
        "few_labels",
        "Test accuracy of students who see a few examples: with labels, stopped at the "
        "epoch best on held-out examples, and with soft labels of the teacher to the "
        "last epoch. Thin: seeds; thick: their mean.",
        series,
        xlabel="Temperature of the soft labels",
        ylabel="Test accuracy (%)",
        title="Soft labels as regularisation",
    )


def _speed(experiment: Experiment, trained: Trained) -> Part:
    """How many steps hard and soft targets take to an accuracy."""
    every = experiment.look_every
    curves = {
        arm: 100 * trained.array("curve")[:, list(trained.rows(arm).values())]
        for arm in trained.arms
    }
    facts = []
    for threshold in experiment.thresholds:
        words = []
        for arm, curve in curves.items():
            took = steps_to(curve, threshold, every)
            found = spread(took, 0) if took else "never"
            some = 0 < len(took) < curve.shape[1]
            on = f" (on {len(took)} of {curve.shape[1]} seeds)" if some else ""
            words.append(f"{arm} {found}{on}")
        facts.append(
            f"Steps to {threshold:g} % of the validation split, looked at every {every}"
            f": {', '.join(words)}."
        )
    series = [
        plots.Series(arm, [every * (1 + i) for i in range(len(curve))], curve.T)
        for arm, curve in curves.items()
    ]
    drawing = plots.lines(
        "speed",
        "Accuracy on the validation split by step, for labels and for soft labels. "
        "Thin: seeds; thick: their mean.",
        series,
        xlabel="Step",
        ylabel="Validation accuracy (%)",
        title="Speed of convergence",
        xscale="log",
    )
    arms = [
        study.Arm("full/hard", "All labels, hard", trained.accuracy("hard")),
        study.Arm(
            "full/soft",
            "All examples, soft",
            trained.accuracy("soft"),
            against="full/hard",
        ),
    ]
    return Part(arms, facts, [drawing])


def steps_to(curve: np.ndarray, threshold: float, every: int) -> list[int]:
    """The step of the first look at which each student has reached an accuracy.

    Args:
      curve: in %, `[looks, students]`.
      threshold: in %.
      every: steps from one look to the next; the first comes after so many.

    Returns:
      One for each student that ever reaches it.
    """
    reached = curve >= threshold
    first = reached.argmax(axis=0)
    return [
        every * (1 + int(i))
        for i, ever in zip(first, reached.any(axis=0), strict=True)
        if ever
    ]


def _width_temperature(
    experiment: Experiment,
    trained: Mapping[int, Trained],
    num_examples: int,
    is_mnist: bool,
) -> Part:
    """Which temperature suits which width."""
    temperatures = experiment.temperatures
    accuracy = [
        [_mean(one.accuracy(f"{t:g}")) for t in temperatures]
        for one in trained.values()
    ]
    errors = (1 - np.asarray(accuracy) / 100) * num_examples
    facts = []
    for width, row in zip(trained, errors.tolist(), strict=True):
        best = temperatures[row.index(min(row))]
        hot = [x for t, x in zip(temperatures, row, strict=True) if t >= 8]
        text = f"{width} units: fewest errors ({min(row):.1f}) at T = {best:g}"
        if width == 30:
            allowed = ", ".join(f"{t:g}" for t in BEST_TEMPERATURES)
            met = best in BEST_TEMPERATURES
            text += f" (published: 2.5 to 4){verdict(is_mnist, met, allowed)}"
        if width >= WIDE and hot:
            apart = max(hot) - min(hot)
            most = f"at most {WIDEST_SPREAD:g}"
            text += f"; from T = 8 on, {apart:.1f} errors apart"
            text += verdict(is_mnist, apart <= WIDEST_SPREAD, most)
        facts.append(text + ".")
    drawing = plots.heatmap(
        "width_temperature",
        "Test errors, mean over seeds, of students with two hidden layers of so many "
        "units, trained on soft labels alone at so high a temperature.",
        errors,
        rows=[str(width) for width in trained],
        columns=[f"{t:g}" for t in temperatures],
        ylabel="Units a layer",
        xlabel="Temperature",
        title="Temperature against width",
        label="Test errors",
    )
    return Part([], facts, [drawing])


def _mean(by_seed: Mapping[int, Any]) -> float:
    return float(np.mean(list(by_seed.values())))
