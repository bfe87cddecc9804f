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


LossFn = Callable[..., jax.Array]


class Method(NamedTuple):
    """A way to learn from a teacher.

    Attributes:
      title: for the report.
      reads: what of the teacher: its 'hidden' states, 'draws' or 'top' classes.
      loss: of `kdjax.losses`.
      apply: calls it on what a batch has; returns the loss of each token, `[B, L]`.
    """

    title: str
    reads: str
    loss: LossFn
    apply: Callable[[LossFn, Seen], jax.Array]

    def fn(self, seen: Seen) -> jax.Array:
        return self.apply(self.loss, seen)


def _of_states(*names: str) -> Callable[[LossFn, Seen], jax.Array]:
    """A loss of hidden states takes the temperature, and the values of `names`."""

    def apply(loss_fn: LossFn, seen: Seen) -> jax.Array:
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

    return apply


def _taid(loss_fn: LossFn, seen: Seen) -> jax.Array:
    return loss_fn(
        seen.hidden,
        seen.kernel,
        *seen.teacher,
        interpolation=seen.values["interpolation"],
        chunk_size=seen.chunk_size,
        where=seen.where,
    )


def _random_sampling(loss_fn: LossFn, seen: Seen) -> jax.Array:
    ids, counts = losses.unpack_sparse_targets(seen.teacher[tokens.DRAWS])
    return loss_fn(
        seen.hidden,
        seen.kernel,
        ids,
        counts,
        temperature=seen.values["temperature"],
        chunk_size=seen.chunk_size,
        where=seen.where,
    )


def _top_k(with_tail: bool) -> Callable[[LossFn, Seen], jax.Array]:
    def apply(loss_fn: LossFn, seen: Seen) -> jax.Array:
        top, indices, tail = (
            seen.teacher[name]
            for name in (tokens.TOP_LOGITS, tokens.TOP_INDICES, tokens.TAIL)
        )
        temperature = seen.values["temperature"]
        # A cache is finite; and without the tail the classes stand for all.
        has_tail = with_tail & (tail > jnp.finfo(tail.dtype).min)
        loss = loss_fn(
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

    return apply


METHODS: Mapping[str, Method] = {
    "forward_kl": Method(
        "Forward KL", "hidden", losses.linear_forward_kl, _of_states()
    ),
    "reverse_kl": Method(
        "Reverse KL", "hidden", losses.linear_reverse_kl, _of_states()
    ),
    "skew_forward_kl": Method(
        "Skew forward KL", "hidden", losses.linear_skew_forward_kl, _of_states("skew")
    ),
    "skew_reverse_kl": Method(
        "Skew reverse KL", "hidden", losses.linear_skew_reverse_kl, _of_states("skew")
    ),
    "jensen_shannon": Method(
        "Jensen-Shannon", "hidden", losses.linear_jensen_shannon, _of_states("beta")
    ),
    "gkd": Method(
        "GKD, on-policy", "hidden", losses.linear_jensen_shannon, _of_states("beta")
    ),
    "taid": Method("TAID", "hidden", losses.linear_taid_loss, _taid),
    "random_sampling": Method(
        "Random sampling",
        "draws",
        losses.linear_sparse_soft_target_loss,
        _random_sampling,
    ),
    "top_k_tail": Method(
        "Top-k with tail", "top", losses.linear_sparse_top_k_kl, _top_k(with_tail=True)
    ),
    "top_k": Method(
        "Top-k, renormalised",
        "top",
        losses.linear_sparse_top_k_kl,
        _top_k(with_tail=False),
    ),
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
