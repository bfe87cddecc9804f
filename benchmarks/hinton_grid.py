"""Does Hinton's grid of temperatures and widths come out as the paper tells it?

Run, once `configs/sweeps/hinton_grid.py` has left its rows:
  python benchmarks/hinton_grid.py runs/mnist_kd-hinton_grid/sweep/rows.json

One JSON line: by width and temperature the mean errors on the 10,000 test images over
seeds, their standard deviations, and whether each is in the band that was accepted
before: the best temperature of 30 units is 2, 2.5, 4 or 8; from 300 units on the mean
errors at temperatures of 8 and above differ by at most 25.
"""

import argparse
import collections
import json
import pathlib
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

NUM_EXAMPLES = 10_000
NARROW, BEST = 30, (2, 2.5, 4, 8)
WIDE, HIGH, MOST_APART = 300, 8, 25


def main() -> None:
    """Prints the line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rows", type=pathlib.Path)
    print(json.dumps(check(json.loads(parser.parse_args().rows.read_text()))))


def check(found: Mapping[str, Any]) -> dict[str, Any]:
    """The cells of the grid and the two bands, from the content of `rows.json`."""
    cells = _errors(found["rows"], "distill.temperature")
    mean = {
        width: {t: statistics.mean(x) for t, x in by_temperature.items()}
        for width, by_temperature in cells.items()
    }
    best = min(mean[NARROW], key=lambda t: mean[NARROW][t])
    apart = {
        width: max(high) - min(high)
        for width, by_temperature in mean.items()
        if width >= WIDE
        for high in [[x for t, x in by_temperature.items() if t >= HIGH]]
    }
    return {
        "errors": mean,
        "sd": {
            width: {t: statistics.stdev(x) for t, x in by_temperature.items()}
            for width, by_temperature in cells.items()
        },
        "without_teacher": {
            width: statistics.mean(x[None])
            for width, x in _errors(found["baseline_rows"], None).items()
        },
        "seeds": min(len(x) for y in cells.values() for x in y.values()),
        "best_temperature_of_30": {"value": best, "met": best in BEST},
        "apart_from_8_on": {"value": apart, "met": max(apart.values()) <= MOST_APART},
    }


def _errors(
    rows: Sequence[Mapping[str, Any]], by: str | None
) -> dict[int, dict[Any, list[float]]]:
    """Test errors of each seed, by width and the value of a path."""
    found: Any = collections.defaultdict(lambda: collections.defaultdict(list))
    for row in rows:
        if row["status"] == "done":
            width = row["values"]["student.model.hidden"][0]
            value = None if by is None else row["values"][by]
            errors = NUM_EXAMPLES * (1 - row["test_accuracy"] / 100)
            found[width][value].append(round(errors, 1))
    return found


if __name__ == "__main__":
    main()
