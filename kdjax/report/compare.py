"""Results of several work directories in one table, where they can be compared.

Runs, studies and sweeps leave `report/report.json`. Those on the same test examples are
put side by side, and their differences paired by seed; the others are left out, with a
sentence that says why.
"""

import dataclasses
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from kdjax import measure
from kdjax.report import study
from kdjax.report.assemble import Report
from kdjax.report.quantities import ROLE_TITLES, Number
from kdjax.report.sweep_page import label
from kdjax.types import UserError
from kdjax.workdir import read_json

OTHER_STUDENT = "another student"


@dataclasses.dataclass(frozen=True)
class Result:
    """What one way of training came to.

    Attributes:
      title: what the reader calls it.
      values: by seed: accuracy in %, or perplexity.
      pairs: whether its seeds are those of students: a teacher's are not.
      changed: whether its student is another than that of its directory's config.
      note: what to know about it.
    """

    title: str
    values: Mapping[int, Number]
    pairs: bool = True
    changed: bool = False
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Directory:
    """What a work directory reports.

    Attributes:
      name: of the directory.
      dataset: its name.
      split: that the results are on.
      num_examples: of the split.
      fingerprint: of the split; empty where the report does not tell.
      unit: of all values.
      student: how it was configured; what pairs of a seed have in common depends on it.
      results: in the order of the report.
    """

    name: str
    dataset: str
    split: str
    num_examples: int
    fingerprint: str
    unit: str
    student: Any
    results: Sequence[Result]

    def examples(self) -> str:
        """What the results are on, in words."""
        return f"{self.num_examples:,} {self.split} examples of {self.dataset}"


def read(path: pathlib.Path) -> Directory:
    """What the work directory at `path` reports.

    Raises:
      UserError: if it has no report, or one of another form.
    """
    file = path / "report" / "report.json"
    report = read_json(file)
    if report is None:
        raise UserError(
            f"Expected a report in {file}, but there is none: run the stage 'report' "
            "of that work directory first, with --stages=report."
        )
    try:
        return _directory(path, report)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UserError(
            f"Expected the report of a run, a study or a sweep in {file}, got "
            f"{type(error).__name__}: {error}. Make it again with --stages=report."
        ) from error


def _directory(path: pathlib.Path, report: Mapping[str, Any]) -> Directory:
    kind = "arms" if "arms" in report else "cells" if "cells" in report else "roles"
    make = {"arms": _of_study, "cells": _of_sweep, "roles": _of_run}[kind]
    config = report["config"]
    return Directory(
        name=path.resolve().name,
        dataset=str(config["dataset"]["name"]),
        split=report["split"],
        num_examples=int(report["num_examples"]),
        fingerprint=report.get("data", {}).get(report["split"], ""),
        unit="perplexity" if report["unit"] == "perplexity" else "accuracy",
        student=config.get("student"),
        results=list(make(report)),
    )


def _of_run(report: Mapping[str, Any]) -> Iterator[Result]:
    for role, entry in report["roles"].items():
        values = entry["last"]["accuracy"]["values"]
        by_seed = dict(zip(entry["seeds"], values, strict=True))
        yield Result(ROLE_TITLES[role], by_seed, pairs=role != "teacher")


def _of_study(report: Mapping[str, Any]) -> Iterator[Result]:
    for arm in report["arms"]:
        values = {
            seed: _in_percent(report, value)
            for seed, value in zip(arm["seeds"], arm["values"], strict=True)
        }
        yield Result(arm["title"], values, note=arm["note"])


def _of_sweep(report: Mapping[str, Any]) -> Iterator[Result]:
    """Students without a teacher, and the one setting that validation chose."""
    for baseline in report["baselines"]:
        of = f", {label(report, baseline)}" if baseline["values"] else ""
        changed = _is_other_student(baseline["values"])
        values = _by_seed(report, baseline)
        yield Result(f"no teacher{of}", values, changed=changed)
    best = report["best"]
    if best is not None:
        note = f"chosen by validation out of {len(report['cells'])} settings"
        changed = _is_other_student(best["values"])
        title, values = label(report, best), _by_seed(report, best)
        yield Result(title, values, changed=changed, note=note)


def _is_other_student(values: Mapping[str, Any]) -> bool:
    return any(path.startswith("student.") for path in values)


def _by_seed(report: Mapping[str, Any], entry: Mapping[str, Any]) -> dict[int, Number]:
    values = entry["test"]["values"]
    return {
        seed: _in_percent(report, value)
        for seed, value in zip(entry["seeds"], values, strict=True)
    }


def _in_percent(report: Mapping[str, Any], value: Number) -> Number:
    """Errors as accuracy; anything else as it is."""
    if report["unit"] != "errors":
        return value
    return 100 * (1 - value / report["num_examples"])


def split_comparable(
    directories: Sequence[Directory],
) -> tuple[list[Directory], list[str]]:
    """Those that are on the test examples of the first, and why the others are not."""
    first = directories[0]
    kept, refused = [first], []
    for other in directories[1:]:
        reason = _difference(first, other)
        if reason is None:
            kept.append(other)
        else:
            refused.append(f"{other.name} is left out: {reason}.")
    return kept, refused


def _difference(first: Directory, other: Directory) -> str | None:
    """Why two directories cannot be compared; None if they can."""
    if first.examples() != other.examples():
        return (
            f"its results are on {other.examples()}, those of {first.name} on "
            f"{first.examples()}"
        )
    if first.fingerprint and other.fingerprint:
        if first.fingerprint != other.fingerprint:
            return (
                f"its {other.examples()} are not those of {first.name}: the "
                "fingerprints differ"
            )
    if first.unit != other.unit:
        return f"it reports {other.unit}, and {first.name} {first.unit}"
    return None


def build(
    directories: Sequence[Directory], *, command: str = "", against: str | None = None
) -> Report:
    """The table of all that can be compared with the first directory.

    Args:
      directories: as from `read`, of different names.
      command: that repeats it.
      against: the title of the result that the others are compared with, as
        `directory: title`; by default the first without a teacher, or the first.

    Raises:
      UserError: if `against` is none of them, or two directories have the same name.
    """
    names = [directory.name for directory in directories]
    if len(set(names)) < len(names):
        raise UserError(
            f"Expected work directories of different names, got {', '.join(names)}."
        )
    kept, refused = split_comparable(directories)
    first = kept[0]
    found = {
        f"{one.name}: {result.title}": (one, result)
        for one in kept
        for result in one.results
    }
    reference = _reference(found, against)
    about = study.About(
        name="Comparison",
        command=command,
        num_examples=first.num_examples,
        unit="perplexity" if first.unit == "perplexity" else "accuracy",
        split=first.split,
        versions=measure.versions(),
        config={"directories": names, "against": reference},
    )
    arms = [_arm(title, *found[title], reference, found) for title in found]
    headline = f"{len(arms)} results on {first.examples()}, against {reference}."
    facts = [*refused, *_facts(kept, [arm.note for arm in arms])]
    made = study.build(about, arms, facts=facts, headline=headline)
    for entry in made["findings"]:
        if entry["text"] in refused:
            entry["kind"] = "miss"
    return made


def _reference(
    found: Mapping[str, tuple[Directory, Result]], against: str | None
) -> str:
    if against is not None:
        if against not in found:
            raise UserError(
                f"Expected --against to be one of {'; '.join(found)}, got {against!r}."
            )
        return against
    plain = [x for x in found if "no teacher" in x.lower() or "baseline" in x.lower()]
    paired = [title for title, (_, result) in found.items() if result.pairs]
    return (plain or paired or list(found))[0]


def _arm(
    title: str,
    directory: Directory,
    result: Result,
    reference: str,
    found: Mapping[str, tuple[Directory, Result]],
) -> study.Arm:
    other, compared = found[reference]
    pairs = title != reference and result.pairs and compared.pairs
    notes = [result.note] if result.note else []
    if pairs and not set(result.values) & set(compared.values):
        notes.append("no seed in common")
    elif pairs and (
        _plain(directory.student) != _plain(other.student)
        or result.changed
        or compared.changed
    ):
        notes.append(OTHER_STUDENT)
    return study.Arm(
        title,
        title,
        result.values,
        against=reference if pairs else None,
        note="; ".join(notes),
    )


def _plain(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _facts(kept: Sequence[Directory], notes: Sequence[str]) -> list[str]:
    first = kept[0]
    sure = all(directory.fingerprint for directory in kept)
    by = "their fingerprints are equal" if sure else "by name and number alone"
    facts = [
        f"All results are on the {first.examples()}"
        + (f"; {by}." if len(kept) > 1 else "."),
        "A difference is paired by seed: students alike in all but their teacher begin "
        "with the same weights and see the same order.",
    ]
    if any(OTHER_STUDENT in note for note in notes):
        facts.append(
            "Where the remark says another student, its network or its training is not "
            "that of the reference, and pairs have only the number of their seed in "
            "common."
        )
    return facts
