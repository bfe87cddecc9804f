"""A bias added to the logits of some classes, after training: how to choose it."""

from collections.abc import Sequence

import numpy as np
import scipy.optimize
import scipy.special

SHIFTS = np.round(np.arange(-15.0, 15.05, 0.1), 1)
"""Where curves are drawn, and where the shift best on test data is looked for."""

_WIDEST = 100.0  # No logits are further apart than that.


def matching_shift(logits: np.ndarray, classes: Sequence[int], share: float) -> float:
    r"""The bias with which some classes get their share of all probability.

    Solves for :math:`b` in

    .. math::
      \frac{1}{N} \sum_i \sum_{c \in S}
      \mathrm{softmax}(z_i + b \, \mathbb{1}_S)_c = \pi

    where :math:`S` are the classes and :math:`\pi` their share. It takes no labels,
    only how frequent the classes are among the examples.

    Args:
      logits: of one student on examples in which the classes have that share,
        `[examples, classes]`.
      classes: those that the bias is added to.
      share: of all examples, between 0 and 1.

    Returns:
      The bias, in nats.
    """
    inside = np.isin(np.arange(logits.shape[-1]), classes)
    logits = logits.astype(np.float64)
    # Against all others, so that a shift of b moves this by b.
    margin = scipy.special.logsumexp(
        logits[:, inside], axis=-1
    ) - scipy.special.logsumexp(logits[:, ~inside], axis=-1)

    def excess(shift: float) -> float:
        return float(np.mean(scipy.special.expit(margin + shift))) - share

    return float(scipy.optimize.brentq(excess, -_WIDEST, _WIDEST))


def shifted(logits: np.ndarray, classes: Sequence[int], shift: float) -> np.ndarray:
    """The logits with a bias added to some classes."""
    inside = np.isin(np.arange(logits.shape[-1]), classes)
    return logits + np.where(inside, np.float32(shift), np.float32(0))


def error_curve(
    logits: np.ndarray, labels: np.ndarray, classes: Sequence[int]
) -> np.ndarray:
    """The error in % at each of `SHIFTS`, `[shifts]`."""
    return np.asarray([error(shifted(logits, classes, s), labels) for s in SHIFTS])


def error(logits: np.ndarray, labels: np.ndarray) -> float:
    """The share of examples that are wrong, in %."""
    return 100 * float(np.mean(logits.argmax(axis=-1) != labels))


def best_shift(logits: np.ndarray, labels: np.ndarray, classes: Sequence[int]) -> float:
    """The one of `SHIFTS` with the least error; of equals, the smallest.

    Chosen on the very labels that it is judged by, as Hinton et al. did: a bound on
    what a shift can do, not a result.
    """
    errors = error_curve(logits, labels, classes)
    candidates = SHIFTS[errors == errors.min()]
    return float(candidates[np.argmin(np.abs(candidates))])
