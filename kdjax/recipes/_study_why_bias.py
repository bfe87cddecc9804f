"""What a student knows of classes that it never saw, with and without another bias."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from kdjax.recipes import _shifts as shifts
from kdjax.recipes._study_why_parts import Part, spread, verdict
from kdjax.report import plots, study
from kdjax.report.drawing import Drawing

MATCHED, BEST = "matched", "best"
_TITLES = {
    "": "as trained",
    MATCHED: "bias by frequency",
    BEST: "bias best on test",
}
_FLAG = "chosen on the test split"
# Published: errors on 1010 threes, and with a bias chosen on the test set.
OMITTED_PUBLISHED = {"": 100 * (1 - 133 / 1010), BEST: 100 * (1 - 14 / 1010)}
OMITTED_ACCEPT = {"": (85.0, None), MATCHED: (97.0, None)}
LEAST_OVERALL = 98.0
KEPT_PUBLISHED = {"": 100 - 47.3, BEST: 100 - 13.2}
KEPT_ACCEPT = {MATCHED: (80.0, None)}
LEAST_FALL = 3.0  # Of the error, as a factor.


@dataclasses.dataclass(frozen=True)
class Judged:
    """Students on the test split, with the biases chosen for them.

    Attributes:
      classes: those that the bias is added to.
      labels: of the test split.
      logits: on it by seed, as trained.
      shifts: by how it was chosen, by seed; 0 as trained.
    """

    classes: tuple[int, ...]
    labels: np.ndarray
    logits: Mapping[int, np.ndarray]
    shifts: Mapping[str, Mapping[int, float]]

    def accuracy(self, how: str, where: np.ndarray | None = None) -> dict[int, float]:
        """By seed, in %, on the whole test split or on some of it."""
        chosen = slice(None) if where is None else where
        return {
            seed: 100
            - shifts.error(
                shifts.shifted(logits, self.classes, self.shifts[how][seed])[chosen],
                self.labels[chosen],
            )
            for seed, logits in self.logits.items()
        }


def judge(
    train_logits: Mapping[int, np.ndarray],
    test_logits: Mapping[int, np.ndarray],
    classes: Sequence[int],
    train_labels: np.ndarray,
    test_labels: np.ndarray,
) -> Judged:
    """Chooses the biases of each seed's student.

    Args:
      train_logits: by seed, on the train split, `[examples, classes]`.
      test_logits: by seed, on the test split.
      classes: those that the bias is added to.
      train_labels: only their frequency counts.
      test_labels: for the bound, the bias best on the test split.
    """
    share = float(np.mean(np.isin(train_labels, classes)))
    chosen = {
        "": dict.fromkeys(test_logits, 0.0),
        MATCHED: {
            seed: shifts.matching_shift(logits, classes, share)
            for seed, logits in train_logits.items()
        },
        BEST: {
            seed: shifts.best_shift(logits, test_labels, classes)
            for seed, logits in test_logits.items()
        },
    }
    return Judged(tuple(classes), test_labels, test_logits, chosen)


def omitted(judged: Judged, is_mnist: bool) -> Part:
    """Students without any example of one class."""
    name = "".join(map(str, judged.classes))
    of_class = np.isin(judged.labels, judged.classes)
    arms = [
        *_arms(
            judged,
            "omit",
            f"{name}s, never seen",
            of_class,
            is_mnist,
            OMITTED_PUBLISHED,
            OMITTED_ACCEPT,
        ),
        *_arms(
            judged,
            "omit/all",
            f"No {name} seen, all digits",
            None,
            is_mnist,
            {},
            {MATCHED: (LEAST_OVERALL, None)},
        ),
    ]
    facts = [_shift_fact(judged, f"Without {name}s", "+3.5" if is_mnist else "")]
    drawing = _figure(
        judged,
        "omit_3",
        {f"{name}s": of_class, "all": np.ones_like(of_class)},
        f"Students who never saw a {name}",
    )
    return Part(arms, facts, [drawing])


def kept(judged: Judged, is_mnist: bool) -> Part:
    """Students with the examples of a few classes alone."""
    name = " and ".join(map(str, judged.classes))
    arms = _arms(
        judged,
        "only",
        f"Only {name} seen, all digits",
        None,
        is_mnist,
        KEPT_PUBLISHED,
        KEPT_ACCEPT,
    )
    before, after = (
        100 - float(np.mean(list(judged.accuracy(how).values())))
        for how in ("", MATCHED)
    )
    fall = before / max(after, 1e-9)
    facts = [
        _shift_fact(judged, f"With {name} alone", "-7.6" if is_mnist else ""),
        f"The error with {name} alone falls from {before:.1f} to {after:.1f} % by the "
        f"bias matched to the frequency, {fall:.1f} times"
        f"{verdict(is_mnist, fall >= LEAST_FALL, f'at least {LEAST_FALL:g} times')}.",
    ]
    everything = np.ones(judged.labels.shape, bool)
    drawing = _figure(
        judged,
        "only_7_and_8",
        {"all": everything},
        f"Students who saw {name} alone",
    )
    return Part(arms, facts, [drawing])


def _arms(
    judged: Judged,
    name: str,
    title: str,
    where: np.ndarray | None,
    is_mnist: bool,
    published: Mapping[str, float],
    accept: Mapping[str, tuple[float | None, float | None]],
) -> list[study.Arm]:
    """A row for each bias."""
    return [
        study.Arm(
            f"{name}/{how or 'trained'}",
            f"{title}, {words}",
            judged.accuracy(how, where),
            published=published.get(how) if is_mnist else None,
            accept=accept.get(how) if is_mnist else None,
            against=f"{name}/trained" if how else None,
            note=_FLAG if how == BEST else "",
        )
        for how, words in _TITLES.items()
    ]


def _shift_fact(judged: Judged, who: str, published: str) -> str:
    found = {
        how: spread(list(judged.shifts[how].values()), 2) for how in (MATCHED, BEST)
    }
    beside = f" (published, chosen on test: {published})" if published else ""
    return (
        f"{who}, the bias that gives these classes their frequency in the train split "
        f"is {found[MATCHED]}; the best on the test split, a bound, is {found[BEST]}"
        f"{beside}."
    )


def _figure(
    judged: Judged, name: str, groups: Mapping[str, np.ndarray], title: str
) -> Drawing:
    """The error of each group of test examples by bias, and the two biases chosen."""
    used = [abs(s) for how in (MATCHED, BEST) for s in judged.shifts[how].values()]
    near = np.abs(shifts.SHIFTS) <= max(6.0, max(used) + 2)
    x = shifts.SHIFTS[near].tolist()
    series = []
    for label, where in groups.items():
        runs = [
            shifts.error_curve(logits[where], judged.labels[where], judged.classes)
            for logits in judged.logits.values()
        ]
        curves = np.asarray(runs)[:, near]
        series.append(plots.Series(f"error on {label}", x, curves))
    first = next(iter(groups.values()))
    for how in (MATCHED, BEST):
        at = float(np.mean(list(judged.shifts[how].values())))
        errors = 100 - np.asarray(list(judged.accuracy(how, first).values()))
        series.append(plots.Series(_TITLES[how], [at], errors[:, None]))
    classes = ", ".join(map(str, judged.classes))
    return plots.lines(
        name,
        f"Test error by the bias added to the logits of {classes} after training. "
        "Thin: seeds; thick: their mean. Points: the bias that matches the frequency "
        "of the classes in the train split, and the one best on the test split.",
        series,
        xlabel=f"Bias added to the logits of {classes}",
        ylabel="Test error (%)",
        title=title,
    )
