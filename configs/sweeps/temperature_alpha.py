r"""Temperature and weight of the soft term, five seeds: which T, which alpha?

Axes for any config of the recipe 'offline': 75 students of each seed's order, and five
without a teacher. They differ in numbers alone, so one program trains them all.

Run (75 students on the embedded digits, in minutes):
  python -m kdjax.main --config=configs/digits_kd.py \
    --sweep=configs/sweeps/temperature_alpha.py
Only the plan, without training anything:
  python -m kdjax.main --config=configs/digits_kd.py \
    --sweep=configs/sweeps/temperature_alpha.py --dry_run

Try it in seconds:
  python -m kdjax.main --config=configs/digits_kd.py:smoke \
    --sweep=configs/sweeps/temperature_alpha.py:smoke
"""

from collections.abc import Mapping
from typing import Any


def get_sweep(variant: str = "") -> Mapping[Any, Any]:
    """Returns values by path; few of them if `variant` is 'smoke'."""
    if variant not in ("", "smoke"):
        raise ValueError(f"Expected variant '' or 'smoke', got {variant!r}.")
    if variant == "smoke":
        return {
            "distill.temperature": (1.0, 4.0),
            "distill.alpha": (0.5, 0.9),
            "seed": range(2),
        }
    return {
        "distill.temperature": (1.0, 2.0, 4.0, 8.0, 20.0),
        "distill.alpha": (0.1, 0.5, 0.9),
        "seed": range(5),
    }
