"""Losses of features against the published codes that they restate.

Inputs are closed forms of the flat index n = 1, 2, 3, ... in the order of PyTorch's
axes, `[4, 6, 8, 8]` for batch, channels, height and width: `sin(0.37 n)` for the
student and `cos(0.23 n)` for the teacher. Each row holds the scalar that the code
named returned, in float64, and the length of its gradient in the student's features.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import losses


def _maps(wave, frequency, size):
    n = np.arange(1, 4 * 6 * size * size + 1).reshape(4, 6, size, size)
    return jnp.asarray(np.moveaxis(wave(frequency * n), 1, -1))


def _fsp(student, teacher):
    later = _maps(np.sin, 0.11, 4), _maps(np.cos, 0.17, 4)
    return losses.fsp_loss((student, later[0]), (teacher, later[1]))


class Golden(NamedTuple):
    loss_fn: Callable[..., jax.Array]
    value: float
    grad_norm: float


GOLDEN = {
    "RepDistiller FitNet": Golden(losses.hint_loss, 0.994704988, 0.050895752),
    "RepDistiller AT, p=2": Golden(
        functools.partial(losses.attention_transfer_loss, form="author_code"),
        0.000130130,
        0.000203855,
    ),
    "RepDistiller NST": Golden(losses.nst_loss, 0.961518891, 0.017149742),
    "RepDistiller FSP": Golden(_fsp, 0.001960030, 0.000829516),
    "RepDistiller FT": Golden(
        functools.partial(losses.factor_loss, form="repdistiller"),
        0.009523092,
        0.008953410,
    ),
    "mdistiller HCL": Golden(losses.review_loss, 0.582542119, 0.030341413),
    "mmrazor PKD": Golden(losses.pkd_loss, 0.990345004, 0.035927340),
}


@pytest.mark.parametrize("golden", GOLDEN.values(), ids=GOLDEN.keys())
def test_published_code_gives_the_same(golden):
    with jax.enable_x64(True):
        student, teacher = _maps(np.sin, 0.37, 8), _maps(np.cos, 0.23, 8)

        def published(student):
            return jnp.mean(golden.loss_fn(student, teacher))

        value, grad = jax.jit(jax.value_and_grad(published))(student)
    # Nine decimals are recorded.
    np.testing.assert_allclose(value, golden.value, atol=6e-10)
    np.testing.assert_allclose(np.linalg.norm(grad), golden.grad_norm, atol=6e-10)
