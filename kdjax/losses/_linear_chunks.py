"""A function of each token, in chunks, whose gradients are made along with its values.

Differentiating a scan stores what each chunk made, or makes it anew. Here the logits of
a chunk are made once: its pullback gives the gradients while they exist, and the next
chunk finds nothing left that is as large.

The cotangents are not known yet, and taken to be ones. That is exact

* for what belongs to one token, as a hidden state: once the token's cotangent is known,
  it scales the gradient;
* for what all tokens share, as a kernel, if their cotangents are equal, as those of a
  mean are, masked or not: their value scales the sum over the tokens. Whether they are
  is seen at run time. If not, as with a weight for each token, a second pass is made.

What is not differentiated has no gradient made. Gradients can be differentiated again,
in both modes; values, as with any `jax.custom_vjp`, in reverse mode only.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import ScalarLike

from kdjax.losses import _masking

Axis = str | tuple[str, ...]
"""A name, or several, of axes of a mesh that a vocabulary is sharded over."""

Tree = Any
"""An array, None, or a tuple of trees."""


def over_tokens(
    fn: Callable[[Tree, Tree], jax.Array],
    rows: tuple[jax.Array, ...],
    scalars: tuple[ScalarLike, ...],
    shared: Tree,
    *,
    chunk_size: int,
    axis_name: Axis | None,
    where: jax.Array | None,
) -> jax.Array:
    """`fn` of each token, `[...]`; 0 if it is invalid.

    Args:
      fn: takes `(rows, scalars, valid), shared` of one token, `valid` None if all are;
        returns a number.
      rows: arrays with one row a token, `[..., dim]`; zeros if it is invalid.
      scalars: hyperparameters.
      shared: arrays.
      chunk_size: the largest number of tokens at a time.
      axis_name: what `fn` sums over devices by.
      where: which tokens are valid, `[...]`.

    Raises:
      ValueError: if `chunk_size` is less than 1.
    """
    if chunk_size < 1:
        raise ValueError(f"Expected chunk_size of at least 1, got {chunk_size}.")
    batch_shape, dtype = rows[0].shape[:-1], rows[0].dtype
    tokens = math.prod(batch_shape)
    num_chunks = max(1, math.ceil(tokens / chunk_size))
    size = max(1, math.ceil(tokens / num_chunks))
    if where is None and tokens != num_chunks * size:
        where = jnp.ones(batch_shape, bool)  # And False for what fills the last chunk.

    def split(x: jax.Array) -> jax.Array:
        x = x.reshape(tokens, *x.shape[len(batch_shape) :])
        x = jnp.pad(x, [(0, num_chunks * size - tokens)] + [(0, 0)] * (x.ndim - 1))
        # Each chunk takes tokens from all over the batch, and so from all devices that
        # this is sharded over: they share the work.
        return x.reshape(size, num_chunks, *x.shape[1:]).swapaxes(0, 1)

    ones = jnp.ones(batch_shape, dtype) if where is None else where.astype(dtype)
    rows, valid, ones = jax.tree.map(split, (rows, where, ones))
    # A copy for each token, whose gradient is then the token's.
    copies = tuple(jnp.full(ones.shape, x, dtype) for x in scalars)
    arrays = _varying_alike(((rows, copies, valid), shared, ones), axis_name)
    values = _values(jax.vmap(fn, in_axes=(0, None)), *arrays)
    if axis_name is not None:  # Equal on these devices, as are then the cotangents.
        values = jax.lax.pmean(values, axis_name)
    values = values.swapaxes(0, 1).reshape(-1)[:tokens].reshape(batch_shape)
    return _masking.zero_invalid(where, values)


def _varying_alike(tree: Tree, axis_name: Axis | None) -> Tree:
    """The arrays, each varying over all mesh axes that any does, but for `axis_name`.

    Within `jax.shard_map` the gradient of one that varied over fewer would be summed
    over devices in each chunk, before their different cotangents can scale it.
    """
    firsts = (x[(0,) * x.ndim].astype(jnp.float32) for x in jax.tree.leaves(tree))
    anything = jax.lax.stop_gradient(sum(firsts))
    if axis_name is not None:
        anything = jax.lax.psum(anything, axis_name)
    # A result varies over all axes that an operand does, taken or not.
    return jax.tree.map(lambda x: jnp.where(True, x, anything.astype(x.dtype)), tree)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _values(fn: Callable, rows: Tree, shared: Tree, ones: jax.Array) -> jax.Array:
    """`fn` of each chunk of the rows, `[chunks, size]`."""
    del ones  # For the gradients: 1 for each valid token, else 0.
    return jax.lax.map(lambda chunk: fn(chunk, shared), rows)


def _values_forward(
    fn: Callable, rows: Tree, shared: Tree, ones: Any
) -> tuple[jax.Array, Tree]:
    """The values, and the gradients of their sum."""
    primals = rows, shared
    wanted = jax.tree.map(lambda x: x.value if x.perturbed else None, primals)
    given = jax.tree.map(lambda x: None if x.perturbed else x.value, primals)
    values, grads = _values_and_grads(fn, ones.value, wanted, given)
    return values, (grads, ones.value, wanted, given)


def _values_backward(fn: Callable, saved: Tree, cotangents: jax.Array) -> Tree:
    """The gradients of all arguments: None where none was wanted."""
    return *_scaled(fn, cotangents, *saved), None


_values.defvjp(_values_forward, _values_backward, symbolic_zeros=True)


def _values_and_grads(
    fn: Callable, cotangents: jax.Array, wanted: Tree, given: Tree
) -> tuple[jax.Array, Tree]:
    """The values, and what is pulled back to the rows and the shared arrays `wanted`.

    `wanted` and `given` are both rows and shared arrays, None where the other is not.
    """

    @jax.checkpoint  # Of use if the gradients are differentiated; free if not.
    def of_chunk(
        cotangents: jax.Array, wanted: Tree, given: Tree
    ) -> tuple[jax.Array, Tree]:
        values, pull = jax.vjp(lambda x: fn(*_merged(x, given)), wanted)
        return values, *pull(cotangents)

    def step(sums: Tree, chunk: Tree) -> tuple[Tree, Tree]:
        cotangents, rows, given_rows = chunk
        values, (row_grads, grads) = of_chunk(
            cotangents, (rows, wanted[1]), (given_rows, given[1])
        )
        return jax.tree.map(jnp.add, sums, grads), (values, row_grads)

    zeros = jax.tree.map(jnp.zeros_like, wanted[1])
    chunks = cotangents, wanted[0], given[0]
    sums, (values, row_grads) = jax.lax.scan(step, zeros, chunks)
    return values, (row_grads, sums)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _scaled(
    fn: Callable,
    cotangents: jax.Array,
    grads: Tree,
    ones: jax.Array,
    wanted: Tree,
    given: Tree,
) -> Tree:
    """What `cotangents` pull back, given the `grads` that `ones` do."""
    row_grads, sums = grads
    row_grads = jax.tree.map(
        lambda x: x * jnp.expand_dims(cotangents, range(2, x.ndim)), row_grads
    )

    def anew() -> Tree:
        rows = _merged(wanted[0], given[0])
        no_rows = jax.tree.map(lambda _: None, rows)
        wanted_, given_ = (no_rows, wanted[1]), (rows, given[1])
        return _values_and_grads(fn, cotangents, wanted_, given_)[1][1]

    if jax.tree.leaves(sums):
        # Of a valid token, if there is one; else 0. NaN is not equal to itself.
        common = cotangents.reshape(-1)[jnp.argmax(ones)]
        are_equal = jnp.all(cotangents == common * ones)
        times_common = functools.partial(jax.tree.map, lambda x: x * common, sums)
        sums = jax.lax.cond(are_equal, times_common, anew)
    return row_grads, sums


@_scaled.defjvp
def _scaled_jvp(fn: Callable, primals: Tree, tangents: Tree) -> tuple[Tree, Tree]:
    """That of a second pass: equal cotangents may have unequal tangents."""

    def anew(cotangents: jax.Array, wanted: Tree, given: Tree) -> Tree:
        return _values_and_grads(fn, cotangents, wanted, given)[1]

    def without_grads(args: Tree) -> Tree:
        cotangents, _, _, wanted, given = args
        return cotangents, wanted, given

    _, moved = jax.jvp(anew, without_grads(primals), without_grads(tangents))
    return _scaled(fn, *primals), moved


def _merged(wanted: Tree, given: Tree) -> Tree:
    """What one or the other has."""
    return jax.tree.map(
        lambda x, y: y if x is None else x, wanted, given, is_leaf=lambda x: x is None
    )
