"""The report of `study_why`: arms, facts and figures of each experiment done."""

import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from kdjax.builders.study_why import KEPT, OMITTED, Experiment
from kdjax.data import sources
from kdjax.recipes import _study_why_bias as bias
from kdjax.recipes import stages as common
from kdjax.recipes._students import Trained, teacher_arm
from kdjax.recipes._study_why_parts import Part, spread, verdict
from kdjax.report import Report, plots, study
from kdjax.report.drawing import Drawing

SOURCE = (
    "Hinton et al. 2015, section 3 and table 5 (frame accuracy of speech), single "
    "runs: https://arxiv.org/abs/1503.02531"
)
# What the acceptance bands, which are for MNIST, ask for.
LEAST_RECOVERED = 40.0  # Of the gap, in %.
NARROW, WIDE = 30, 300  # Units a layer.
BEST_TEMPERATURES = (2.0, 2.5, 4.0, 8.0)  # Of the narrow.
HOT, MOST_APART = 8.0, 25.0  # From such a temperature on, errors of the wide.


def make(
    experiment: Experiment, workdir: pathlib.Path, command: str
) -> tuple[Report, list[Drawing]]:
    """The report of what is done, and its figures."""
    labels = sources.labels(experiment.offline.splits.test)
    is_mnist = experiment.config["dataset"]["name"] == "mnist"
    parts = [
        Part([teacher_arm(workdir, experiment.config["seed"], labels)]),
        *_done(experiment, workdir, labels, is_mnist),
    ]
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


def _done(
    experiment: Experiment, workdir: pathlib.Path, labels: np.ndarray, is_mnist: bool
) -> Iterator[Part]:
    """The experiments that are done, in their order."""
    full = Trained.at(workdir / "speed")
    if (trained := Trained.at(workdir / "few_labels")) is not None:
        yield _few_labels(experiment, trained, full, is_mnist)
    if full is not None:
        yield _speed(experiment, full)
    for stage, make_part in (("omit_3", bias.omitted), ("only_7_and_8", bias.kept)):
        if (trained := Trained.at(workdir / stage)) is not None:
            judged = bias.judge(
                trained.logits("soft", "train"),
                trained.logits("soft", "test"),
                OMITTED if stage == "omit_3" else KEPT,
                sources.labels(experiment.offline.splits.train),
                labels,
            )
            yield make_part(judged, is_mnist)
    widths = {
        width: Trained.at(workdir / "width_temperature" / f"width{width}")
        for width in experiment.widths
    }
    done = {width: trained for width, trained in widths.items() if trained is not None}
    if done:
        yield _width_temperature(experiment, done, len(labels), is_mnist)


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
    wins, over_last = (
        sum(soft[chosen][seed] > other[seed] for seed in other)
        for other in (hard, last)
    )
    facts = [
        f"{amount} of {whole} examples, from {min(each)} to {max(each)} of each class; "
        f"{chosen} is best by held-out examples and beats hard labels on {wins} of "
        f"{len(hard)} seeds{verdict(is_mnist, wins == len(hard), 'all')} (hard labels "
        f"to the last epoch: on {over_last})."
    ]
    reference = {}
    if full is not None:
        everything = reference["hard, all labels"] = full.accuracy("hard")
        facts.append(_recovered(hard, soft[chosen], everything, is_mnist))
    return Part(arms, facts, [_few_labels_figure(soft, hard, reference)])


def _recovered(
    hard: Mapping[int, float],
    soft: Mapping[int, float],
    everything: Mapping[int, float],
    is_mnist: bool,
) -> str:
    """Of what hard labels lose when few are left, the share that soft ones recover."""
    lost, gained = _mean(everything) - _mean(hard), _mean(soft) - _mean(hard)
    if lost <= 0:
        return "Hard labels lose nothing when few are left."
    share = 100 * gained / lost
    least = f"at least {LEAST_RECOVERED:g} %"
    return (
        f"Soft labels recover {share:.0f} % of the {lost:.2f} points that hard labels "
        "lose when so few are left (published, speech: 87 %)"
        f"{verdict(is_mnist, share >= LEAST_RECOVERED, least)}."
    )


def _best_by_held_out(trained: Trained, arms: list[str]) -> str:
    """The setting whose students are best at the last look."""
    last = trained.array("curve")[-1]
    means = [np.mean(last[list(trained.rows(arm).values())]) for arm in arms]
    return arms[int(np.argmax(means))]


def _few_labels_figure(
    soft: Mapping[str, Mapping[int, float]],
    hard: Mapping[int, float],
    reference: Mapping[str, Mapping[int, float]],
) -> Drawing:
    temperatures = [float(arm.split("= ")[1]) for arm in soft]
    runs = [[values[seed] for values in soft.values()] for seed in hard]
    series = [
        plots.Series("soft", temperatures, runs),
        *(
            plots.Series(
                label, temperatures, [[x] * len(temperatures) for x in values.values()]
            )
            for label, values in {"hard, stopped early": hard, **reference}.items()
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
    facts = [_reached(curves, threshold, every) for threshold in experiment.thresholds]
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


def _reached(curves: Mapping[str, np.ndarray], threshold: float, every: int) -> str:
    words = []
    for arm, curve in curves.items():
        took = steps_to(curve, threshold, every)
        found = spread(took, 0) if took else "never"
        some = 0 < len(took) < curve.shape[1]
        on = f" (on {len(took)} of {curve.shape[1]} seeds)" if some else ""
        words.append(f"{arm} {found}{on}")
    return (
        f"Steps to {threshold:g} % of the validation split, looked at every {every}: "
        f"{', '.join(words)}."
    )


def steps_to(curve: np.ndarray, threshold: float, every: int) -> list[int]:
    """The step of the first look at which each student has reached an accuracy.

    Args:
      curve: in %, `[looks, students]`.
      threshold: in %.
      every: steps from one look to the next; the first comes after so many.

    Returns:
      One for each student that ever reaches it.
    """
    reached = np.asarray(curve >= threshold)
    first = every * (1 + reached.argmax(axis=0))
    return first[reached.any(axis=0)].tolist()


def _best_temperature(
    width: int, by_temperature: Mapping[float, float], is_mnist: bool
) -> str:
    """Where a width has the fewest errors, and how far apart high temperatures are."""
    best = min(by_temperature, key=by_temperature.__getitem__)
    text = f"{width} units: fewest errors ({by_temperature[best]:.1f}) at T = {best:g}"
    if width == NARROW:
        allowed = ", ".join(f"{t:g}" for t in BEST_TEMPERATURES)
        met = verdict(is_mnist, best in BEST_TEMPERATURES, allowed)
        text += f" (published: 2.5 to 4){met}"
    hot = [errors for t, errors in by_temperature.items() if t >= HOT]
    if width >= WIDE and hot:
        apart = max(hot) - min(hot)
        met = verdict(is_mnist, apart <= MOST_APART, f"at most {MOST_APART:g}")
        text += f"; from T = {HOT:g} on, {apart:.1f} errors apart{met}"
    return text + "."


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
    facts = [
        _best_temperature(width, dict(zip(temperatures, row, strict=True)), is_mnist)
        for width, row in zip(trained, errors.tolist(), strict=True)
    ]
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
