"""Combines losses into the one scalar field that a train step differentiates."""

from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeAlias

import jax

from kdjax.types import Batch, Outputs, Values

LossFn: TypeAlias = Callable[[Outputs, Outputs, Batch, Values], jax.Array]
"""Maps student outputs, teacher outputs, batch and values to a loss, `[B]`."""

Objective: TypeAlias = Callable[[Outputs, Outputs, Batch, Values], dict[str, jax.Array]]


class Term(NamedTuple):
    """One weighted loss.

    Attributes:
      fn: returns one value per example, `[B]`.
      weight: reads the term's weight from the hyperparameters of the step.
    """

    fn: LossFn
    weight: Callable[[Values], jax.Array | float]


def weighted_sum(terms: Mapping[str, Term]) -> Objective:
    """Returns an objective reporting every term, and their sum as `'loss'`.

    Raises:
      ValueError: if there is no term, or one is named `'loss'`.
    """
    if not terms:
        raise ValueError("Expected at least one term, got none.")
    if "loss" in terms:
        raise ValueError("A term may not be named 'loss': that names the total.")

    def objective(student, teacher, batch, values):
        losses = {
            name: term.fn(student, teacher, batch, values)
            for name, term in terms.items()
        }
        total = sum(term.weight(values) * losses[name] for name, term in terms.items())
        return {**losses, "loss": total}

    return objective


def weighted_terms(terms: Mapping[str, Term]) -> Objective:
    """Returns what `weighted_sum` adds up: every term times its weight."""

    def objective(student, teacher, batch, values):
        return {
            name: term.weight(values) * term.fn(student, teacher, batch, values)
            for name, term in terms.items()
        }

    return objective
