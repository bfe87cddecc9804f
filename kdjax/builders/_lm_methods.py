"""How a language model learns from another: the losses of the recipe `lm`, by name."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from kdjax import losses
from kdjax.teacher_cache import tokens
from kdjax.teacher_cache.encodings import RECORD
from kdjax.types import Values


class Seen(NamedTuple):
    """What a loss sees of a batch of texts.

    Attributes:
      hidden: the student's last states, `[B, L, dim]`.
      kernel: its head, `[dim, vocab]`.
      teacher: the teacher's hidden states and head; or the entries of a cache.
      where: which tokens count, `[B, L]`.
      values: of the hyperparameters.
      chunk_size: tokens whose logits are in memory at a time.
    """

    hidden: jax.Array
    kernel: jax.Array
    teacher: Any
    where: jax.Array
    values: Values
    chunk_size: int


LossFn = Callable[[Seen], jax.Array]


class Method(NamedTuple):
    """A way to learn from a teacher.

    Attributes:
      title: for the report.
      reads: what of the teacher: its 'hidden' states, 'draws' or 'top' classes.
      fn: the loss of each token, `[B, L]`.
    """

    title: str
    reads: str
    fn: LossFn


def _of_states(loss_fn: Callable[..., jax.Array], *names: str) -> LossFn:
    """A loss of hidden states, at the temperature, and the values of `names`."""

    def fn(seen: Seen) -> jax.Array:
        temperature = seen.values["temperature"]
        arguments = {name: seen.values[name] for name in names}
        loss = loss_fn(
            seen.hidden,
            seen.kernel,
            *seen.teacher,
            temperature=temperature,
            chunk_size=seen.chunk_size,
            where=seen.where,
            **arguments,
        )
        return temperature**2 * loss

    return fn


def _taid(seen: Seen) -> jax.Array:
    return losses.linear_taid_loss(
        seen.hidden,
        seen.kernel,
        *seen.teacher,
        interpolation=seen.values["interpolation"],
        chunk_size=seen.chunk_size,
        where=seen.where,
    )


def _random_sampling(seen: Seen) -> jax.Array:
    ids, counts = losses.unpack_sparse_targets(seen.teacher[tokens.DRAWS])
    return losses.linear_sparse_soft_target_loss(
        seen.hidden,
        seen.kernel,
        ids,
        counts,
        temperature=seen.values["temperature"],
        chunk_size=seen.chunk_size,
        where=seen.where,
    )


def _top_k(with_tail: bool) -> LossFn:
    def fn(seen: Seen) -> jax.Array:
        top, indices, tail = (
            seen.teacher[name]
            for name in (tokens.TOP_LOGITS, tokens.TOP_INDICES, tokens.TAIL)
        )
        temperature = seen.values["temperature"]
        # A cache is finite; and without the tail the classes stand for all.
        has_tail = with_tail & (tail > jnp.finfo(tail.dtype).min)
        loss = losses.linear_sparse_top_k_kl(
            seen.hidden,
            seen.kernel,
            # Stored divided by the temperature.
            top.astype(jnp.float32) * temperature,
            indices.astype(jnp.int32),
            jnp.where(has_tail, tail, -jnp.inf),
            temperature=temperature,
            chunk_size=seen.chunk_size,
            where=seen.where,
        )
        return temperature**2 * loss

    return fn


METHODS: Mapping[str, Method] = {
    "forward_kl": Method("Forward KL", "hidden", _of_states(losses.linear_forward_kl)),
    "reverse_kl": Method("Reverse KL", "hidden", _of_states(losses.linear_reverse_kl)),
    "skew_forward_kl": Method(
        "Skew forward KL", "hidden", _of_states(losses.linear_skew_forward_kl, "skew")
    ),
    "skew_reverse_kl": Method(
        "Skew reverse KL", "hidden", _of_states(losses.linear_skew_reverse_kl, "skew")
    ),
    "jensen_shannon": Method(
        "Jensen-Shannon", "hidden", _of_states(losses.linear_jensen_shannon, "beta")
    ),
    "gkd": Method(
        "GKD, on-policy", "hidden", _of_states(losses.linear_jensen_shannon, "beta")
    ),
    "taid": Method("TAID", "hidden", _taid),
    "random_sampling": Method("Random sampling", "draws", _random_sampling),
    "top_k_tail": Method("Top-k with tail", "top", _top_k(with_tail=True)),
    "top_k": Method("Top-k, renormalised", "top", _top_k(with_tail=False)),
}

ON_POLICY = ("gkd",)


def entries(reads: str, batch: Mapping[str, jax.Array]) -> Mapping[str, jax.Array]:
    """The teacher's entries among those of a batch."""
    names = {
        "hidden": (RECORD,),
        "draws": (tokens.DRAWS,),
        "top": (tokens.TOP_LOGITS, tokens.TOP_INDICES, tokens.TAIL),
    }[reads]
    return {name: batch[name] for name in names}
