"""The report of several ways of training, side by side, each over seeds.

>>> from kdjax.report import study
>>> about = study.About("mutual", "python -m kdjax.main", num_examples=1000)
>>> arms = [
...     study.Arm("alone", "One by one", {0: 90.0, 1: 91.0, 2: 90.5}),
...     study.Arm("mutual", "Together", {0: 91.5, 1: 92.0, 2: 92.0}, against="alone"),
... ]
>>> report = study.build(about, arms)
>>> report["headline"]
'Together: +1.33 points against One by one (95 % CI +0.62 to +2.05, 3 of 3 seeds).'

Like that of `kdjax.report`, a report is a dict that JSON can hold, and table, figure
and page are made from it alone. Its keys: `format`, `created`, `headline`, the fields
of :class:`About`, `findings` (`kind` is `hit`, `miss` or `fact`; `text`), and `arms`,
each with the fields of :class:`Arm`, `summary` (`mean`, `sd`, `n`, `values`), `seeds`,
`band` and `gain_band` (`low`, `high`, `met`), and `gain`, the paired difference from
the arm `against`, as `statistics.paired_difference` gives it.
"""

import dataclasses
import datetime
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from kdjax.report import drawing, plots, statistics, study_page
from kdjax.report.assemble import Report, strict
from kdjax.report.files import replace
from kdjax.report.quantities import Number, band_text, interval, number
from kdjax.report.records import Unit
from kdjax.report.study_page import print_table
from kdjax.types import UserError

__all__ = ["About", "Arm", "build", "print_table", "write"]

Band = tuple[Number | None, Number | None]

DIGITS = {"accuracy": 2, "errors": 1, "perplexity": 2}
DIFFERENCES = {"accuracy": "points", "errors": "errors", "perplexity": "of perplexity"}


@dataclasses.dataclass(frozen=True)
class About:
    """What the reader needs to know about a study, and to repeat it.

    Attributes:
      name: the title.
      command: that repeats it.
      num_examples: of the split that the values are measured on.
      unit: of all values: accuracy in %, a count of errors, or perplexity.
      source: of the published figures, with the address if there is one.
      split: the name of the split.
      config: everything that was configured, JSON-able.
      versions: as from `measure.versions()`.
      hardware: as from `measure.hardware()`.
      commit: as from `measure.commit()`.
      stage_seconds: wall time by stage, in order.
      data: fingerprints of splits by name: equal ones are the same examples.
    """

    name: str
    command: str
    num_examples: int
    unit: Unit = "accuracy"
    source: str = ""
    split: str = "test"
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    versions: Mapping[str, str] = dataclasses.field(default_factory=dict)
    hardware: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    commit: str | None = None
    stage_seconds: Mapping[str, Number] = dataclasses.field(default_factory=dict)
    data: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Arm:
    """One way of training, over seeds.

    Attributes:
      name: by which other arms refer to it.
      title: what the reader calls it.
      values: by seed, after the last step, in the unit of the study.
      published: what the literature reports.
      accept: the lowest and highest acceptable mean, None for no bound.
      against: the arm that it is compared with, seed by seed.
      published_gain: the published difference from that arm.
      accept_gain: the lowest and highest acceptable mean difference.
      note: what to know about it, in a few words.
    """

    name: str
    title: str
    values: Mapping[int, Number]
    published: Number | None = None
    accept: Band | None = None
    against: str | None = None
    published_gain: Number | None = None
    accept_gain: Band | None = None
    note: str = ""


def build(
    about: About,
    arms: Sequence[Arm],
    *,
    facts: Sequence[str] = (),
    headline: str | None = None,
) -> Report:
    """Everything that a study has to report.

    Args:
      about: how the values came about.
      arms: in the order of the table.
      facts: further sentences.
      headline: the result in one sentence; by default that of the largest gain.

    Raises:
      UserError: if an arm has no value, comes twice, or is compared with one that is
        not there.
    """
    _check(arms)
    by_name = {arm.name: arm for arm in arms}
    built = [_arm(arm, by_name) for arm in arms]
    report: Report = {
        "format": 1,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        **dataclasses.asdict(about),
        "digits": DIGITS[about.unit],
        "arms": built,
    }
    report["headline"] = headline or _headline(report)
    report["findings"] = [
        *_verdicts(report),
        *({"kind": "fact", "text": text} for text in facts),
    ]
    return strict(report)


def write(
    report: Mapping[str, Any],
    directory: str | os.PathLike,
    drawings: Sequence[drawing.Drawing] = (),
) -> list[pathlib.Path]:
    """Writes `report.json`, `report.html` and `figures/*.png`.

    Args:
      report: as from `build`.
      directory: made if it is not there.
      drawings: shown after the figure of all arms, which is always there.

    Returns:
      The files written, the page first.
    """
    directory = pathlib.Path(directory)
    (directory / "figures").mkdir(parents=True, exist_ok=True)
    figures = [plots.dots("arms", report), *drawings]
    paths = [directory / "report.html", directory / "report.json"]
    replace(paths[0], study_page.render(report, figures).encode())
    text = json.dumps(report, allow_nan=False, ensure_ascii=False, indent=1)
    replace(paths[1], text.encode())
    for figure in figures:
        paths.append(directory / "figures" / f"{figure.name}.png")
        replace(paths[-1], drawing.png(figure.draw()))
    return paths


def _check(arms: Sequence[Arm]) -> None:
    names = [arm.name for arm in arms]
    if not arms or len(set(names)) < len(names):
        raise UserError(f"Expected arms of different names, got {names}.")
    for arm in arms:
        if not arm.values:
            raise UserError(f"Expected a value of the arm {arm.name!r}, got none.")
        if arm.against is not None and arm.against not in names:
            raise UserError(
                f"Expected {arm.name!r} to be compared with one of {names}, got "
                f"{arm.against!r}."
            )


def _arm(arm: Arm, arms: Mapping[str, Arm]) -> dict[str, Any]:
    seeds = sorted(arm.values)
    summary = statistics.summary([arm.values[seed] for seed in seeds])
    gain = None
    if arm.against is not None:
        reference = dict(arms[arm.against].values)
        gain = statistics.paired_difference(dict(arm.values), reference)
    return dataclasses.asdict(arm) | {
        "seeds": seeds,
        "values": summary["values"],
        "summary": summary,
        "band": _band(arm.accept, summary["mean"]),
        "gain": gain,
        "gain_band": _band(arm.accept_gain, None if gain is None else gain["mean"]),
    }


def _band(band: Band | None, measured: Number | None) -> dict[str, Any] | None:
    if band is None or measured is None:
        return None
    low, high = band
    met = (low is None or measured >= low) and (high is None or measured <= high)
    return {"low": low, "high": high, "met": met}


def _headline(report: Mapping[str, Any]) -> str:
    """The largest gain, of the arms that are compared with another."""
    sign = 1 if report["unit"] == "accuracy" else -1
    compared = [arm for arm in report["arms"] if arm["gain"] is not None]
    if not compared:
        best = max(report["arms"], key=lambda arm: sign * arm["summary"]["mean"])
        mean = number(best["summary"]["mean"], report["digits"])
        return f"{best['title']}: {report['unit']} {mean}."
    best = max(compared, key=lambda arm: sign * arm["gain"]["mean"])
    return f"{best['title']}: {gain_text(report, best)}."


def gain_text(report: Mapping[str, Any], arm: Mapping[str, Any]) -> str:
    """A paired difference with its evidence, in words."""
    gain, digits = arm["gain"], report["digits"]
    titles = {other["name"]: other["title"] for other in report["arms"]}
    what = DIFFERENCES[report["unit"]]
    mean = number(gain["mean"], digits, signed=True)
    better = [x > 0 if report["unit"] == "accuracy" else x < 0 for x in gain["values"]]
    evidence = f"{sum(better)} of {gain['n']} seeds"
    if gain["low"] is not None:
        evidence = f"95 % CI {interval(gain, digits)}, {evidence}"
    return f"{mean} {what} against {titles[arm['against']]} ({evidence})"


def _verdicts(report: Mapping[str, Any]) -> list[dict[str, str]]:
    """A sentence for each acceptance band, of arms and of differences."""
    verdicts = []
    for arm in report["arms"]:
        mean = number(arm["summary"]["mean"], report["digits"])
        for band, found in (
            (arm["band"], f"{arm['title']}: {mean}"),
            (
                arm["gain_band"],
                ""
                if arm["gain"] is None
                else f"{arm['title']}: {gain_text(report, arm)}",
            ),
        ):
            if band is not None:
                verdict = "met" if band["met"] else "missed"
                text = f"{found}; accepted {band_text(band)}: {verdict}."
                kind = "hit" if band["met"] else "miss"
                verdicts.append({"kind": kind, "text": text})
    return verdicts
