"""What the losses share that make their logits from hidden states, in chunks.

`[tokens, vocab]` is never stored: not the logits of student or teacher, nor a gradient.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import ScalarLike

from kdjax.losses import _checks, _linear_chunks, _numerics

Axis = _linear_chunks.Axis


class Head(NamedTuple):
    """The last layer of a language model, and what it is applied to.

    Attributes:
      name: 'student' or 'teacher', for errors.
      hidden: one vector a token, `[..., dim]`.
      kernel: `[dim, vocab]`.
      bias: `[vocab]`, or none.
    """

    name: str
    hidden: jax.Array
    kernel: jax.Array
    bias: jax.Array | None


def divergence(
    fn: Callable[..., jax.Array],
    student: Head,
    teacher: Head,
    *scalars: ScalarLike,
    temperature: ScalarLike,
    chunk_size: int,
    axis_name: Axis | None,
    where: jax.Array | None,
) -> jax.Array:
    """`fn` of each token's log-probabilities and of the `scalars`, `[...]`.

    It gets `[vocab]` twice, student's and teacher's, of the part of the vocabulary that
    is on this device, and returns its sum over that part.
    """
    check_heads(student, teacher)
    heads = drop_invalid(where, student, teacher)

    def of_token(own: _linear_chunks.Tree, layers: _linear_chunks.Tree) -> jax.Array:
        rows, (temperature, *scalars), valid = own
        both = (
            log_probs(_logits(x, layer, valid), temperature, axis_name)
            for x, layer in zip(rows, layers, strict=True)
        )
        return total(fn(*both, *scalars), axis_name)

    return _linear_chunks.over_tokens(
        of_token,
        tuple(head.hidden for head in heads),
        (temperature, *scalars),
        tuple((head.kernel, head.bias) for head in heads),
        chunk_size=chunk_size,
        axis_name=axis_name,
        where=where,
    )


def against_targets(
    fn: Callable[..., jax.Array],
    student: Head,
    targets: tuple[jax.Array, ...],
    *scalars: ScalarLike,
    temperature: ScalarLike,
    chunk_size: int,
    axis_name: Axis | None,
    where: jax.Array | None,
) -> jax.Array:
    """`fn` of each token's log-probabilities, `targets` and the `scalars`, `[...]`.

    It gets the part of the vocabulary that is on this device, and returns the value
    of the whole. The head and the targets are without invalid tokens already.
    """

    def of_token(own: _linear_chunks.Tree, layer: _linear_chunks.Tree) -> jax.Array:
        (hidden, *targets), (temperature, *scalars), valid = own
        logits = _logits(hidden, layer, valid)
        return fn(log_probs(logits, temperature, axis_name), *targets, *scalars)

    return _linear_chunks.over_tokens(
        of_token,
        (student.hidden, *targets),
        (temperature, *scalars),
        (student.kernel, student.bias),
        chunk_size=chunk_size,
        axis_name=axis_name,
        where=where,
    )


def _logits(
    hidden: jax.Array,
    layer: tuple[jax.Array, jax.Array | None],
    valid: jax.Array | None,
) -> jax.Array:
    """Those of one token `[vocab]`; zeros if it is not valid."""
    kernel, bias = layer
    logits = hidden @ kernel
    logits = logits if bias is None else logits + bias
    # As a bias of -inf on one side has an infinite derivative, times zero.
    return logits if valid is None else jnp.where(valid, logits, 0)


def drop_invalid(where: jax.Array | None, *heads: Head) -> tuple[Head, ...]:
    """The heads in one dtype of at least float32, hidden states zero if invalid.

    Kernels are converted here, not in each chunk, so that their gradients add up in
    this dtype.
    """
    _checks.check_where(where, heads[0].hidden.shape[:-1])
    arrays = [x for head in heads for x in head[1:] if x is not None]
    wide = any(jnp.finfo(x.dtype).bits > 32 for x in arrays)
    dtype = jnp.float64 if wide else jnp.float32

    def dropped(head: Head) -> Head:
        hidden = head.hidden.astype(dtype)
        if where is not None:
            hidden = jnp.where(where[..., None], hidden, 0)
        bias = None if head.bias is None else head.bias.astype(dtype)
        return Head(head.name, hidden, head.kernel.astype(dtype), bias)

    return tuple(dropped(head) for head in heads)


def log_probs(
    logits: jax.Array, temperature: ScalarLike, axis_name: Axis | None
) -> jax.Array:
    """Those of one token, `[vocab]`, normalised over the parts of all devices."""
    if axis_name is None:
        return _numerics.log_probs(logits, temperature)
    (temperature,) = _numerics.scalars(logits, temperature)
    excluded = jnp.isneginf(logits)
    softened = jnp.where(excluded, 0, logits) / temperature
    shifted, _ = _shift(jnp.where(excluded, -jnp.inf, softened), axis_name)
    return shifted - jnp.log(total(jnp.sum(jnp.exp(shifted)), axis_name))


def _shift(x: jax.Array, axis_name: Axis) -> tuple[jax.Array, jax.Array]:
    """`x` minus its largest entry on any device, 0 if that is not finite, and this."""
    # A constant that cancels, without derivative: any finite one is right.
    largest = jax.lax.pmax(jnp.max(jax.lax.stop_gradient(x)), axis_name)
    largest = jnp.where(jnp.isfinite(largest), largest, 0)
    return x - largest, largest


def _offset(log_probs: jax.Array, axis_name: Axis | None) -> jax.Array | int:
    """The first class of this device's part."""
    if axis_name is None:
        return 0
    return log_probs.shape[-1] * jax.lax.axis_index(axis_name)


def num_classes(log_probs: jax.Array, axis_name: Axis | None) -> int:
    """Those of all devices."""
    parts = 1 if axis_name is None else jax.lax.axis_size(axis_name)
    return parts * log_probs.shape[-1]


def at_classes(
    log_probs: jax.Array, classes: jax.Array, axis_name: Axis | None
) -> jax.Array:
    """The entries of some classes, on whichever device, of one token; else NaN."""
    places = classes - _offset(log_probs, axis_name)
    size = log_probs.shape[-1]
    is_here = (places >= 0) & (places < size)
    picked = log_probs[jnp.clip(places, 0, size - 1)]
    picked = total(jnp.where(is_here, picked, 0), axis_name)
    is_class = (classes >= 0) & (classes < num_classes(log_probs, axis_name))
    return jnp.where(is_class, picked, jnp.nan)


def log_mass_without(
    log_probs: jax.Array, classes: jax.Array, axis_name: Axis | None
) -> jax.Array:
    """Log of the probability of all but some classes, of one token."""
    places = classes - _offset(log_probs, axis_name)
    size = log_probs.shape[-1]
    # Another device's, and the negative ones, which would count from the end.
    places = jnp.where((places >= 0) & (places < size), places, size)
    others = log_probs.at[places].set(-jnp.inf, mode="drop")
    if axis_name is None:
        return _numerics.log_sum(others)
    shifted, largest = _shift(others, axis_name)
    mass = total(jnp.sum(jnp.exp(shifted)), axis_name)
    nothing = mass == 0
    return jnp.where(nothing, -jnp.inf, jnp.log(jnp.where(nothing, 1, mass)) + largest)


def total(values: jax.Array, axis_name: Axis | None) -> jax.Array:
    """The sum over the devices that share a vocabulary; itself, if none do."""
    return values if axis_name is None else jax.lax.psum(values, axis_name)


def check_heads(*heads: Head) -> None:
    """Raises, naming every argument, unless the heads fit themselves and each other.

    Raises:
      TypeError: if an array is not floating-point.
      ValueError: if shapes do not fit.
    """
    for name, hidden, kernel, bias in heads:
        arrays = {"hidden": hidden, "kernel": kernel, "bias": bias}
        for kind, x in arrays.items():
            if x is not None and not jnp.issubdtype(x.dtype, jnp.floating):
                raise TypeError(
                    f"Expected floating-point {name}_{kind}, got {x.dtype}."
                )
        if hidden.ndim == 0 or kernel.shape[:-1] != hidden.shape[-1:]:
            raise ValueError(
                f"Expected {name}_hidden [..., dim] and {name}_kernel [dim, vocab], "
                f"got {hidden.shape} and {kernel.shape}: transpose a tied embedding?"
            )
        if bias is not None and bias.shape != kernel.shape[1:]:
            raise ValueError(
                f"Expected {name}_bias {kernel.shape[1:]}, one for each column of "
                f"{name}_kernel {kernel.shape}, got {bias.shape}."
            )
    _check_agreement(*heads)


def _check_agreement(*heads: Head) -> None:
    """Raises `ValueError` unless the heads have the same tokens and vocabulary."""
    if len({head.hidden.shape[:-1] for head in heads}) > 1:
        found = ", ".join(f"{x.name}_hidden {x.hidden.shape}" for x in heads)
        raise ValueError(f"Expected hidden states of the same tokens, got {found}.")
    if len({head.kernel.shape[-1] for head in heads}) > 1:
        found = ", ".join(f"{x.name}_kernel {x.kernel.shape}" for x in heads)
        raise ValueError(
            f"Expected kernels of one vocabulary, got {found}: has one of the models a "
            "padded vocabulary, to cut?"
        )
