r"""MNIST: the best temperature by the width of the student, as Hinton et al. tell it.

Setting: Hinton et al., Distilling the Knowledge in a Neural Network, 2015,
https://arxiv.org/abs/1503.02531, section 3. The teacher is that of mnist_kd.py, its
logits of the clean images cached; students of two layers of 30, 100 and 300 units learn
from soft labels alone, for 20 epochs, at seven temperatures, from five seeds.
Published: with 300 units and more all temperatures above 8 give about the same, with 30
units 2.5 to 4 are better than higher or lower ones.
Accepted: the best temperature of 30 units is 2, 2.5, 4 or 8; from 300 units on, the
mean errors at T of 8 and above differ by at most 25.
Measured (seeds 0 to 4, a teacher of 40 epochs, two CPU cores, 15 minutes): 30 units do
best at T = 1, 319.6 +- 14.6 errors (343.4 +- 20.7 at 2.5): missed; 300 units differ by
3.2 errors from T = 8 on: met. The table is in docs/sweeps.md.

Run:
  python benchmarks/fetch_data.py --out=data mnist
  python -m kdjax.main --config=configs/mnist_kd.py \
    --sweep=configs/sweeps/hinton_grid.py --config.dataset.path=data/mnist.npz
With --workdir=runs/mnist_kd it takes the teacher and the cache that mnist_kd.py left
there; `hinton_grid.py:800` adds students of 800 units.

Try it in seconds (on the embedded digits):
  python -m kdjax.main --config=configs/mnist_kd.py:smoke \
    --sweep=configs/sweeps/hinton_grid.py:smoke
"""

from collections.abc import Mapping
from typing import Any

WIDTHS = {"": (30, 100, 300), "800": (30, 100, 300, 800), "smoke": (5, 30)}


def get_sweep(variant: str = "") -> Mapping[Any, Any]:
    """Returns values by path; with wide students if `variant` is '800'."""
    if variant not in WIDTHS:
        raise ValueError(f"Expected variant '', '800' or 'smoke', got {variant!r}.")
    smoke = variant == "smoke"
    return {
        "student.model.hidden": tuple((width, width) for width in WIDTHS[variant]),
        "distill.temperature": (1.0, 8.0) if smoke else (1, 2.5, 4, 8, 12, 20, 40),
        "distill.alpha": (1.0,),
        "student.train.num_epochs": (2 if smoke else 20,),
        "seed": range(2 if smoke else 5),
    }
