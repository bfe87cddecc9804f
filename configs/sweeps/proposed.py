r"""Temperature, weight and learning rate, proposed by optuna a batch at a time.

The axes are ranges, `(low, high)` or `(low, high, 'log')`. Every batch of proposals is
a set of students for the same program; each trains from all of `config.seeds`, and
optuna is told the mean of their validation accuracies.

Run (needs pip install 'kdjax[optuna]'):
  python -m kdjax.main --config=configs/digits_kd.py \
    --sweep=configs/sweeps/proposed.py --config.sweep_options.trials=40

Try it in seconds:
  python -m kdjax.main --config=configs/digits_kd.py:smoke \
    --sweep=configs/sweeps/proposed.py:smoke --config.sweep_options.trials=4
"""

from collections.abc import Mapping
from typing import Any


def get_sweep(variant: str = "") -> Mapping[Any, Any]:
    """Returns ranges by path; the same ones, but fewer, if `variant` is 'smoke'."""
    if variant not in ("", "smoke"):
        raise ValueError(f"Expected variant '' or 'smoke', got {variant!r}.")
    ranges: dict[str, tuple[Any, ...]] = {
        "distill.temperature": (1.0, 20.0, "log"),
        "distill.alpha": (0.1, 1.0),
    }
    if variant != "smoke":
        ranges["student.train.learning_rate.base"] = (1e-3, 1.0, "log")
    return ranges
