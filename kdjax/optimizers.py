"""Optimizers whose every number is an argument of the compiled step.

Each constructor fixes the structure and returns a function of the step's
hyperparameter values, so that one compiled program serves every learning rate, and
`jax.vmap` over the values trains one student per value.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import optax

from kdjax.types import Values

OptimizerFn: TypeAlias = Callable[[Values], optax.GradientTransformation]


def sgd(
    *,
    nesterov: bool = False,
    clip: bool = False,
    max_norm: bool = False,
    spare_unreached: bool = False,
) -> OptimizerFn:
    r"""Stochastic gradient descent with momentum and coupled weight decay.

    .. math::
      v \leftarrow \mu v + (g + \lambda w), \qquad w \leftarrow w - \eta v

    as PyTorch has it: the decay :math:`\lambda` is part of the gradient, and holds
    for every parameter, biases and normalisation included.

    Args:
      nesterov: look ahead along the momentum.
      clip: clip the global norm of the gradient to the value `clip_norm`.
      max_norm: after each update, project every unit's incoming weights onto a ball
        of radius `max_norm`.
      spare_unreached: don't decay an array all of whose gradient is zero, so that what
        a loss does not reach stays as it is: PyTorch skips what has no gradient.

    Returns:
      A function of the values `learning_rate`, `momentum`, `weight_decay` (and
      `clip_norm`, `max_norm` where asked for).
    """

    def make(values: Values) -> optax.GradientTransformation:
        return optax.chain(
            *_clipping(values, clip),
            _decay(values, spare_unreached),
            optax.trace(values["momentum"], nesterov=nesterov),
            optax.scale(-values["learning_rate"]),
            *_projection(values, max_norm),
        )

    return make


def adamw(
    *, clip: bool = False, max_norm: bool = False, spare_unreached: bool = False
) -> OptimizerFn:
    """Adam with decoupled weight decay, Loshchilov & Hutter 2019.

    Args:
      clip: as in `sgd`.
      max_norm: as in `sgd`.
      spare_unreached: as in `sgd`.

    Returns:
      A function of the values `learning_rate`, `weight_decay`, `b1`, `b2` (and
      `clip_norm`, `max_norm` where asked for).
    """

    def make(values: Values) -> optax.GradientTransformation:
        return optax.chain(
            *_clipping(values, clip),
            _standard_promotion(optax.scale_by_adam(values["b1"], values["b2"])),
            _decay(values, spare_unreached),
            optax.scale(-values["learning_rate"]),
            *_projection(values, max_norm),
        )

    return make


def project_max_norm(max_norm: jax.Array | float) -> optax.GradientTransformation:
    """Keeps the norm of each unit's incoming weights at or below `max_norm`.

    Comes last in a chain, as it changes an update so that the *updated* kernel obeys.
    Parameters of one axis (biases, normalisation) are left alone.
    """

    def project(update: jax.Array, param: jax.Array) -> jax.Array:
        if param.ndim < 2:
            return update
        kernel = param + update
        inputs = tuple(range(kernel.ndim - 1))  # The last axis is the units'.
        norm = jnp.sqrt(jnp.sum(kernel**2, axis=inputs, keepdims=True))
        # Units within the ball must keep their update to the last bit.
        scaled = kernel * (max_norm / jnp.maximum(norm, max_norm)) - param
        return jnp.where(norm > max_norm, scaled, update)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        return jax.tree.map(project, updates, params), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def _standard_promotion(
    inner: optax.GradientTransformation,
) -> optax.GradientTransformation:
    """Lets Optax raise a float array to an integer count under strict promotion."""

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        with jax.numpy_dtype_promotion("standard"):
            return inner.update(updates, state, params)

    return optax.GradientTransformation(inner.init, update)


def _clipping(values: Values, clip: bool) -> list[optax.GradientTransformation]:
    return [optax.clip_by_global_norm(values["clip_norm"])] if clip else []


def _decay(values: Values, spare_unreached: bool) -> optax.GradientTransformation:
    """Adds the decayed weights to the update; not to one that is all zero, if asked."""
    rate = values["weight_decay"]
    if not spare_unreached:
        return optax.add_decayed_weights(rate)

    def add(update: jax.Array, param: jax.Array) -> jax.Array:
        return update + jnp.where(jnp.any(update != 0), rate, 0) * param

    return optax.stateless(lambda updates, params: jax.tree.map(add, updates, params))


def _projection(values: Values, max_norm: bool) -> list[optax.GradientTransformation]:
    return [project_max_norm(values["max_norm"])] if max_norm else []
