"""Hyperparameters as functions of the step.

A schedule is a pytree whose leaves are its numbers, and calling it with a step gives
the value there. A compiled step takes schedules as an argument: changing a number
never recompiles, and `jax.vmap` over the leaves trains one student per value.
"""

from typing import Any, TypeAlias

import flax.struct
import jax
import jax.numpy as jnp

Leaf: TypeAlias = Any
"""A number or a scalar array; under `jax.tree.map`, whatever is mapped to."""


@flax.struct.dataclass
class Constant:
    r"""The same value at every step, :math:`h(t) = h_0`.

    Examples:
      >>> from kdjax import schedules
      >>> print(schedules.Constant(4.0)(100))
      4.0
    """

    value: Leaf

    def __call__(self, step: jax.Array | int) -> jax.Array:
        del step
        return jnp.asarray(self.value, jnp.float32)


@flax.struct.dataclass
class Linear:
    r"""From `start` to `end` in a straight line over `num_steps`, then `end`.

    Examples:
      >>> from kdjax import schedules
      >>> temperature = schedules.Linear(start=8.0, end=2.0, num_steps=100)
      >>> print(temperature(0), temperature(50), temperature(1000))
      8.0 5.0 2.0
    """

    start: Leaf
    end: Leaf
    num_steps: Leaf

    def __call__(self, step: jax.Array | int) -> jax.Array:
        start, end = (jnp.asarray(x, jnp.float32) for x in (self.start, self.end))
        return start + (end - start) * _progress(step, self.num_steps)


@flax.struct.dataclass
class Step:
    """`base`, multiplied by `decay_factor` at each of `decay_steps`.

    Examples:
      >>> from kdjax import schedules
      >>> rate = schedules.Step(base=0.5, decay_factor=0.5, decay_steps=(10, 20))
      >>> print(rate(9), rate(10), rate(20))
      0.5 0.25 0.125
    """

    base: Leaf
    decay_factor: Leaf
    decay_steps: tuple[Leaf, ...]
    warmup_steps: Leaf = 0

    def __call__(self, step: jax.Array | int) -> jax.Array:
        value = jnp.asarray(self.base, jnp.float32)
        factor = jnp.asarray(self.decay_factor, jnp.float32)
        for decay_step in self.decay_steps:
            is_past = _float(step) >= _float(decay_step)
            value = jnp.where(is_past, value * factor, value)
        return value * _warmup(step, self.warmup_steps)


@flax.struct.dataclass
class Cosine:
    r"""Half a cosine from `base` to `final` over `num_steps`, after a linear warm-up.

    .. math::
      h(t) = h_T + \tfrac{1}{2} (h_0 - h_T) (1 + \cos(\pi t / T))

    Examples:
      >>> from kdjax import schedules
      >>> rate = schedules.Cosine(base=0.5, final=0.0, num_steps=100)
      >>> print(rate(0), rate(50).round(4), rate(100))
      0.5 0.25 0.0
    """

    base: Leaf
    final: Leaf
    num_steps: Leaf
    warmup_steps: Leaf = 0

    def __call__(self, step: jax.Array | int) -> jax.Array:
        base, final = (jnp.asarray(x, jnp.float32) for x in (self.base, self.final))
        # The cosine starts where the warm-up ends, and both end at num_steps.
        after = _float(step) - _float(self.warmup_steps)
        length = _float(self.num_steps) - _float(self.warmup_steps)
        half_cosine = 0.5 * (1 + jnp.cos(jnp.pi * _progress(after, length)))
        value = final + (base - final) * half_cosine
        return value * _warmup(step, self.warmup_steps)


@flax.struct.dataclass
class Between:
    """`value` from `first_step` on and before `end_step`; zero at all other steps.

    Over the first `warmup_steps` it rises in a straight line to `value`.

    Examples:
      >>> from kdjax import schedules
      >>> weight = schedules.Between(0.5, first_step=10, end_step=20)
      >>> print(weight(9), weight(10), weight(19), weight(20))
      0.0 0.5 0.5 0.0
    """

    value: Leaf
    first_step: Leaf = 0
    end_step: Leaf = float("inf")
    warmup_steps: Leaf = 0

    def __call__(self, step: jax.Array | int) -> jax.Array:
        value = jnp.asarray(self.value, jnp.float32)
        after = _float(step) - _float(self.first_step)
        is_on = (after >= 0) & (_float(step) < _float(self.end_step))
        return jnp.where(is_on, value * _warmup(after, self.warmup_steps), 0)


def _float(x: Leaf) -> jax.Array:
    """Float32, exact for steps below 2**24."""
    return jnp.asarray(x, jnp.float32)


def _progress(step: jax.Array | int, num_steps: Leaf) -> jax.Array:
    """How far `step` is on the way to `num_steps`, between 0 and 1."""
    step, num_steps = (jnp.asarray(x, jnp.float32) for x in (step, num_steps))
    return jnp.clip(step / jnp.maximum(num_steps, 1.0), 0.0, 1.0)


def _warmup(step: jax.Array | int, warmup_steps: Leaf) -> jax.Array:
    """A factor that rises linearly to 1, never 0: step 0 takes a step too."""
    step, warmup_steps = (jnp.asarray(x, jnp.float32) for x in (step, warmup_steps))
    return jnp.minimum((step + 1) / jnp.maximum(warmup_steps, 1.0), 1.0)
