"""Encoders of texts: BERT of Devlin et al. 2019, and its smaller relatives."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from kdjax.models.attention import attend, check_heads
from kdjax.models.layers import Dropout
from kdjax.types import Outputs

_normal = nn.initializers.normal(0.02)
_ACTIVATIONS = {"tanh": jnp.tanh, "relu": jax.nn.relu}


class Bert(nn.Module):
    """A transformer of tokens, normalised after each of its parts, with a classifier.

    Its input is a dict: `tokens`, int32 `[B, L]`, the first of which stands for the
    whole text; `mask`, `[B, L]`, False for padding; and, for pairs of texts,
    `segments`, int32 `[B, L]`, 0 if left out. What is valid does not depend on what is
    padding.

    Features: `embeddings`, after their LayerNorm, `[B, L, dim]`; of each block,
    `block1` on, its output `block1` and its `block1_queries`, `block1_keys` and
    `block1_values`, all heads one after the other, `[B, L, dim]`; `block1_scores`, the
    products of queries and keys over the root of a head's dimension, before mask and
    softmax, `[B, heads, L, L]`; and `pooled`, what the classifier sees, `[B, dim]`.

    Raises:
      ValueError: when called, if the texts are longer than there are positions, or the
        heads do not divide the dimension.

    Attributes:
      num_classes: the number of logits.
      vocab_size: the number of tokens there are.
      dim: of a token.
      depth: the number of blocks.
      heads: of the self-attention.
      hidden: units between a block's last two layers.
      max_positions: the longest text, in tokens.
      segments: the number of texts in an input; 0 for no embedding of them, as
        DistilBERT has none.
      pooler: the activation before the classifier, 'tanh', or 'relu' in DistilBERT.
      dropout: of embeddings, attention, each part's output and the classifier's input.
      dtype: of the computation; parameters and logits are float32.
      axis_name: the `pmap` axis, if any.
    """

    num_classes: int
    vocab_size: int = 30522
    dim: int = 768
    depth: int = 12
    heads: int = 12
    hidden: int = 3072
    max_positions: int = 512
    segments: int = 2
    pooler: str = "tanh"
    dropout: float = 0.1
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, inputs: dict[str, jax.Array], *, train: bool) -> Outputs:
        self._check(inputs["tokens"])
        drop = functools.partial(_drop, self.dropout, self.axis_name, train)
        features = {"embeddings": drop(self._embed(inputs))}
        x = features["embeddings"]
        for i in range(1, self.depth + 1):
            block = Block(self.heads, self.hidden, drop, self.dtype, name=f"block{i}")
            x, inner = block(x, inputs["mask"])
            features |= {f"block{i}_{name}": value for name, value in inner.items()}
            features[f"block{i}"] = x
        dense = functools.partial(nn.Dense, kernel_init=_normal)
        pooled = dense(self.dim, dtype=self.dtype, name="pooler")(x[:, 0])
        pooled = _ACTIVATIONS[self.pooler](pooled).astype(jnp.float32)
        features["pooled"] = pooled
        logits = dense(self.num_classes, name="classifier")(drop(pooled))
        return Outputs(logits, features)

    def _embed(self, inputs: dict[str, jax.Array]) -> jax.Array:
        """The tokens with their positions and segments, `[B, L, dim]`."""
        tokens = inputs["tokens"]
        embed = functools.partial(
            nn.Embed, features=self.dim, dtype=self.dtype, embedding_init=_normal
        )
        x = embed(self.vocab_size, name="tokens")(tokens)
        places = jax.lax.broadcasted_iota(jnp.int32, (1, tokens.shape[-1]), 1)
        x = x + embed(self.max_positions, name="positions")(places)
        if self.segments:
            segments = inputs.get("segments", jnp.zeros_like(tokens))
            x = x + embed(self.segments, name="segments")(segments)
        return _norm(self.dtype, "norm")(x)

    def _check(self, tokens: jax.Array) -> None:
        if tokens.shape[-1] > self.max_positions:
            raise ValueError(
                f"Expected at most max_positions={self.max_positions} tokens, got "
                f"{tokens.shape}."
            )
        check_heads(self.dim, self.heads)


class Block(nn.Module):
    """Self-attention, then an MLP, each added to its input and normalised.

    Returns the tokens, and `queries`, `keys`, `values` and `scores`.
    """

    heads: int
    hidden: int
    drop: Callable[[jax.Array], jax.Array]
    dtype: Any

    @nn.compact
    def __call__(
        self, x: jax.Array, mask: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        dense = functools.partial(nn.Dense, dtype=self.dtype, kernel_init=_normal)
        dim = x.shape[-1]
        inner = {
            name: dense(dim, name=name)(x) for name in ("queries", "keys", "values")
        }
        attended, inner["scores"] = attend(
            *inner.values(), heads=self.heads, mask=mask, drop=self.drop
        )
        attended = dense(dim, name="attended")(attended)
        x = _norm(self.dtype, "attended_norm")(x + self.drop(attended))
        hidden = nn.gelu(dense(self.hidden, name="hidden")(x), approximate=False)
        x = x + self.drop(dense(dim, name="output")(hidden))
        return _norm(self.dtype, "output_norm")(x), inner


def _norm(dtype: Any, name: str) -> nn.LayerNorm:
    # Variances as BERT has them: not from the difference of two large numbers.
    return nn.LayerNorm(epsilon=1e-12, dtype=dtype, use_fast_variance=False, name=name)


def _drop(rate: float, axis_name: str | None, train: bool, x: jax.Array) -> jax.Array:
    """Dropout as a submodule of the calling module."""
    return Dropout(rate, axis_name)(x, train=train)
