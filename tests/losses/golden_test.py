"""Numbers from the code of the papers' authors and of the libraries that host it.

Inputs are closed forms of the flat index n = 1, 2, 3, ...: `3 sin(0.7 n)` for the
student's logits and `3 cos(0.3 n)` for the teacher's, `[4, 10]`, labels 3, 0, 9, 5.
Each row holds the published scalar and the length of its gradient in the student's
logits, in float64, as computed by running the code named; those marked "formula" were
computed from a restatement of it. `scale` takes the mean of one value per example to
the scalar, where the two differ by a constant.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import losses

LABELS = (3, 0, 9, 5)


class Golden(NamedTuple):
    loss_fn: Callable[..., jax.Array]
    value: float
    grad_norm: float
    labels: bool = False
    scale: float = 1.0
    rtol: float = 2e-8  # Half a unit of the ninth decimal, of the smallest gradient.


def _standardized(student_logits, teacher_logits):
    return losses.soft_target_loss(
        losses.standardize_logits(student_logits),
        losses.standardize_logits(teacher_logits),
        temperature=2.0,
    )


def _soft_labels(student_logits, teacher_logits):
    return losses.soft_cross_entropy(student_logits, jax.nn.softmax(teacher_logits))


def _jensen_shannon(beta, normalized=False):
    return functools.partial(losses.jensen_shannon, beta=beta, normalized=normalized)


GOLDEN = {
    "RepDistiller KD, T=4": Golden(
        functools.partial(losses.soft_target_loss, temperature=4.0),
        2.832299173,
        0.368151634,
    ),
    "RepDistiller KD, T=1": Golden(losses.soft_target_loss, 1.128222633, 0.242468088),
    "forward KL is KD at T=1": Golden(losses.forward_kl, 1.128222633, 0.242468088),
    "mdistiller DKD, alpha=1, beta=8, T=4": Golden(
        functools.partial(losses.dkd_loss, non_target_weight=8.0, temperature=4.0),
        19.819657121,
        2.868838301,
        labels=True,
    ),
    "logit standardisation, then KD at T=2 (formula)": Golden(
        _standardized, 0.594139248, 0.057144511
    ),
    "modelopt KD, T=2, mean over classes as well": Golden(
        functools.partial(losses.soft_target_loss, temperature=2.0),
        0.207038866,
        0.031253977,
        scale=0.1,
    ),
    "distillm forward_kl, a cross-entropy in float32": Golden(
        _soft_labels, 2.566292048, 0.242468079, rtol=1e-6
    ),
    "TinyBERT soft cross-entropy, mean over classes as well": Golden(
        _soft_labels, 0.256629207, 0.024246809, scale=0.1
    ),
    "GKD, beta=0 (formula)": Golden(
        _jensen_shannon(0.0, True), 1.128222633, 0.242468088
    ),
    "GKD, beta=0.5 (formula)": Golden(_jensen_shannon(0.5), 0.237449836, 0.047085417),
    "GKD, beta=1 (formula)": Golden(
        _jensen_shannon(1.0, True), 1.835078668, 0.496015028
    ),
    "reverse KL is GKD at beta=1": Golden(losses.reverse_kl, 1.835078668, 0.496015028),
    "FedMD mean absolute error": Golden(losses.fedmd_loss, 2.121999183, 0.158113883),
}


@pytest.mark.parametrize("golden", GOLDEN.values(), ids=GOLDEN.keys())
def test_published_code_gives_the_same(golden):
    with jax.enable_x64(True):
        n = jnp.arange(1, 41, dtype=jnp.float64).reshape(4, 10)
        student_logits, teacher_logits = 3 * jnp.sin(0.7 * n), 3 * jnp.cos(0.3 * n)
        labels = (jnp.array(LABELS),) if golden.labels else ()

        def published(student_logits):
            values = golden.loss_fn(student_logits, teacher_logits, *labels)
            return golden.scale * jnp.mean(values)

        value, grad = jax.value_and_grad(published)(student_logits)
        grad_norm = np.linalg.norm(grad)
    np.testing.assert_allclose(value, golden.value, rtol=golden.rtol)
    np.testing.assert_allclose(grad_norm, golden.grad_norm, rtol=golden.rtol)
