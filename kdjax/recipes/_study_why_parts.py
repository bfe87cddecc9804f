"""What the experiments of `study_why` give to its report."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from kdjax.report import study
from kdjax.report.drawing import Drawing


@dataclasses.dataclass(frozen=True)
class Part:
    """The results of one experiment.

    Attributes:
      arms: rows of the table.
      facts: sentences.
      drawings: figures.
    """

    arms: Sequence[study.Arm]
    facts: Sequence[str] = ()
    drawings: Sequence[Drawing] = ()


def verdict(applies: bool, met: bool, band: str) -> str:
    """Whether a band of acceptance is met, in words; empty where there is none."""
    return f"; accepted {band}: {'met' if met else 'missed'}" if applies else ""


def spread(values: Sequence[float] | np.ndarray, digits: int) -> str:
    """Mean and standard deviation, if there are several values."""
    text = f"{np.mean(values):.{digits}f}"
    if len(values) < 2:
        return text
    return f"{text} ± {np.std(values, ddof=1):.{digits}f}"
