"""Text from a language model: one compiled loop over a cache of keys and values."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

NextFn = Callable[[jax.Array, Any], tuple[jax.Array, Any]]
"""Reads tokens `[B, L]` after those in a cache: logits after the last, `[B, C]`, and
the cache with all of them."""

_PURPOSE = 0x5A4D504C  # Apart from what else is drawn from the same seed.


class Sampled(NamedTuple):
    """Prompts and what follows them.

    Attributes:
      tokens: `[B, prompt + num_tokens]`; 0 after an end.
      mask: which tokens were drawn, the end included, `[B, prompt + num_tokens]`.
    """

    tokens: jax.Array
    mask: jax.Array


def keys(rng: jax.Array, step: jax.Array | int, example_ids: jax.Array) -> jax.Array:
    """A key for each example `[B]`, of (`rng`, step, example) and nothing else."""
    key = jax.random.fold_in(jax.random.fold_in(rng, _PURPOSE), step)
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(example_ids)


def sample(
    next_fn: NextFn,
    cache: Any,
    prompts: jax.Array,
    rngs: jax.Array,
    *,
    num_tokens: int,
    temperature: jax.Array | float = 1.0,
    top_k: int = 0,
    end: int | None = None,
) -> Sampled:
    """Draws a continuation of each prompt.

    Token i of an example is drawn with its key folded with i, so that neither the
    other examples of a batch nor the number of tokens asked for change it. The loop
    stops when every example has come to its end.

    Args:
      next_fn: the model, with its variables.
      cache: empty, with room for `prompt + num_tokens` tokens.
      prompts: tokens, `[B, prompt]`.
      rngs: a key for each example, `[B]`, see `keys`.
      num_tokens: how many to draw at most; it sets shapes.
      temperature: softens the distribution to draw from; 0 takes the likeliest token.
      top_k: draws among so many likeliest tokens; 0: among all.
      end: the token that ends a text; none by default.

    Returns:
      Prompts and continuations. There is no gradient.

    Raises:
      ValueError: if there is no token to draw, or `top_k` is negative.
    """
    if num_tokens < 1 or top_k < 0:
        raise ValueError(
            f"Expected num_tokens of at least 1 and top_k of at least 0, got "
            f"{num_tokens} and {top_k}."
        )
    start = prompts.shape[1]
    logits, cache = next_fn(prompts, cache)
    room = ((0, 0), (0, num_tokens))
    tokens = jnp.pad(prompts.astype(jnp.int32), room)
    mask = jnp.zeros(tokens.shape, bool)
    done = jnp.zeros(len(prompts), bool)

    def goes_on(carry: Any) -> jax.Array:
        i, _, _, _, _, done = carry
        return (i < num_tokens) & ~jnp.all(done)

    def draw_one(carry: Any) -> Any:
        i, tokens, mask, logits, cache, done = carry
        drawn = jnp.where(done, 0, _draw(logits, rngs, i, temperature, top_k))
        tokens = jax.lax.dynamic_update_slice_in_dim(
            tokens, drawn[:, None], start + i, 1
        )
        mask = jax.lax.dynamic_update_slice_in_dim(mask, ~done[:, None], start + i, 1)
        if end is not None:
            done |= drawn == end
        logits, cache = next_fn(drawn[:, None], cache)
        return i + 1, tokens, mask, logits, cache, done

    carry = jnp.zeros((), jnp.int32), tokens, mask, logits, cache, done
    _, tokens, mask, *_ = jax.lax.while_loop(goes_on, draw_one, carry)
    return Sampled(tokens, mask)


def _draw(
    logits: jax.Array,
    rngs: jax.Array,
    i: jax.Array,
    temperature: jax.Array | float,
    top_k: int,
) -> jax.Array:
    """One token of each example, `[B]`."""
    greedy = jnp.argmax(logits, axis=-1)
    if 0 < top_k < logits.shape[-1]:
        least = jax.lax.top_k(logits, top_k)[0][:, -1:]
        logits = jnp.where(logits < least, -jnp.inf, logits)
    temperature = jnp.asarray(temperature, logits.dtype)
    softened = logits / jnp.where(temperature > 0, temperature, 1)
    own = jax.vmap(jax.random.fold_in, (0, None))(rngs, i)
    drawn = jax.vmap(jax.random.categorical)(own, softened)
    return jnp.where(temperature > 0, drawn, greedy).astype(jnp.int32)
