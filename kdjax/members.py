"""Several networks of one kind as one tree: every array has them as its first axis."""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp


@jax.jit
def stack(trees: Sequence[Any]) -> Any:
    """The trees of the members, as one."""
    return jax.tree.map(lambda *x: jnp.stack(x), *trees)


@functools.partial(jax.jit, static_argnums=1)
def member(tree: Any, index: int) -> Any:
    """That of one."""
    return jax.tree.map(lambda x: x[index], tree)


def vmap(fn: Callable[..., Any], in_axes: Sequence[int | None]) -> Callable[..., Any]:
    """`jax.vmap`; on CPU the members one after another, in the same program.

    A convolution mapped over its kernels becomes one in groups, for which XLA has no
    fast form on CPU: a gradient of two ResNet-8 on 64 images takes 0.45 s that way on
    two cores, and 0.11 s this way.

    Args:
      fn: of one member.
      in_axes: where the arrays of each argument have the members; None if they share
        it.

    Returns:
      The function of all, whose results have them as their first axis.
    """
    if jax.default_backend() != "cpu":
        return jax.vmap(fn, in_axes)

    def one_by_one(*arguments: Any) -> Any:
        each = [
            itertools.repeat(x) if axis is None else _members(x, axis)
            for x, axis in zip(arguments, in_axes, strict=True)
        ]
        return stack([fn(*own) for own in zip(*each, strict=False)])

    return one_by_one


def _members(tree: Any, axis: int) -> list[Any]:
    size = jax.tree.leaves(tree)[0].shape[axis]
    take = functools.partial(jax.lax.index_in_dim, axis=axis, keepdims=False)
    return [jax.tree.map(lambda x, i=i: take(x, i), tree) for i in range(size)]
