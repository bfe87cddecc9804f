"""Which layer of the teacher teaches which of the student."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from kdjax import features
from kdjax.builders._methods import LOSSES
from kdjax.types import UserError

MAPS = ("uniform", "top", "bottom")


def teacher_layer(layer: int, student_depth: int, teacher_depth: int, name: str) -> int:
    r"""TinyBERT's :math:`g(m)`, counted from 1, of :math:`M` into :math:`N` layers.

    `uniform` is :math:`m N / M`, rounded up; `top` is :math:`m + N - M`; `bottom` is
    :math:`m` itself.

    Examples:
      >>> [teacher_layer(m, 4, 12, "uniform") for m in (1, 2, 3, 4)]
      [3, 6, 9, 12]
      >>> [teacher_layer(m, 4, 12, "top") for m in (1, 2, 3, 4)]
      [9, 10, 11, 12]
    """
    if name == "uniform":
        return -(-layer * teacher_depth // student_depth)
    return layer + (teacher_depth - student_depth if name == "top" else 0)


def depth(names: Iterable[str]) -> int:
    """How many blocks have features of these names."""
    return sum(re.fullmatch(r"block\d+", name) is not None for name in names)


def mapped(
    terms: Mapping[str, Any],
    name: str,
    student: Mapping[str, Any],
    teacher: Mapping[str, Any],
) -> dict[str, dict[str, Any]]:
    """The terms, with the layers of the teacher that a map gives to the student's.

    Terms that name the teacher's features themselves stay as they are.

    Args:
      terms: sections of `distill.terms`, by name.
      name: out of `MAPS`.
      student: its features, by name.
      teacher: likewise.
    """
    depths = depth(student), depth(teacher)
    if depths[0] > depths[1]:
        raise UserError(
            f"Expected a student with at most the {depths[1]} layers of its teacher, "
            f"got {depths[0]}."
        )

    def other(tap: str) -> str:
        return re.sub(
            r"^block(\d+)",
            lambda found: f"block{teacher_layer(int(found[1]), *depths, name)}",
            tap,
        )

    made = {}
    for term, config in terms.items():
        made[term] = settings = dict(config)
        method = LOSSES.get(settings.get("loss", ""))
        if method is None or not method.taps or "teacher_features" in settings:
            continue
        pattern = settings.get("student_features", method.taps)
        taps = features.match(pattern, student, "student")
        settings["student_features"] = ",".join(taps)
        settings["teacher_features"] = ",".join(map(other, taps))
    return made
