"""Decoder-only transformers: GPT-2 (Radford et al. 2019) and Llama (Touvron 2023)."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from flax import linen as nn

from kdjax.types import Outputs, Variables

_normal = nn.initializers.normal(0.02)


@flax.struct.dataclass
class Cache:
    """Keys and values of the tokens that a decoder has read.

    Attributes:
      keys: of each block, `[B, size, kv_heads, head_dim]`.
      values: likewise.
      mask: which places hold a token, and no padding, `[B, size]`.
      length: the places filled, those of padding too, a scalar.
    """

    keys: Any
    values: Any
    mask: Any
    length: Any


class Decoder(nn.Module):
    """A causal language model, in one of two styles.

    | | `gpt2` | `llama` |
    |---|---|---|
    | positions | learned, added to the embeddings | rotary, in each attention |
    | normalisation | LayerNorm | RMSNorm |
    | MLP | GELU, by its tanh form | SwiGLU |
    | biases | everywhere but in the head | none |

    Features: `embeddings`, `block1` and so on, and `hidden`, the states that the head
    sees, all `[B, L, dim]`. The losses `linear_*` take `hidden` and `head_kernel`; the
    logits, where no one uses them, are never computed under `jax.jit`.

    Raises:
      ValueError: when called, if the heads do not divide as they must, or there are
        more tokens than learned positions.

    Attributes:
      num_classes: the size of the vocabulary.
      style: `'gpt2'` or `'llama'`.
      dim: of a token's state.
      depth: the number of blocks.
      heads: of the queries.
      kv_heads: of keys and values, a divisor of `heads`; 0: as many.
      mlp_dim: the MLP's hidden units; 0: four times `dim`.
      tied: whether the embedding is the head as well.
      max_length: how many positions `gpt2` has learned.
      rope_theta: the base of the rotary frequencies.
      epsilon: of the normalisation.
      dtype: of the computation; parameters and logits are float32.
      axis_name: unused; nothing here looks over the batch.
    """

    num_classes: int
    style: str = "llama"
    dim: int = 128
    depth: int = 2
    heads: int = 4
    kv_heads: int = 0
    mlp_dim: int = 0
    tied: bool = True
    max_length: int = 1024
    rope_theta: float = 10000.0
    epsilon: float = 1e-5
    dtype: Any = jnp.float32
    axis_name: str | None = None

    def setup(self) -> None:
        self._check()
        embed = functools.partial(
            nn.Embed, features=self.dim, dtype=self.dtype, embedding_init=_normal
        )
        self.embed = embed(self.num_classes)
        if self.style == "gpt2":
            self.positions = embed(self.max_length)
        self.blocks = [
            Block(
                self.style,
                self.heads,
                self._kv_heads,
                self.mlp_dim or 4 * self.dim,
                # The residual stream is a sum of so many.
                (2 * self.depth) ** -0.5,
                self.epsilon,
                self.dtype,
            )
            for _ in range(self.depth)
        ]
        self.norm = _norm(self.style, self.epsilon, self.dtype)
        if not self.tied:
            self.head = nn.Dense(
                self.num_classes, use_bias=False, dtype=self.dtype, kernel_init=_normal
            )

    def __call__(self, inputs: Mapping[str, Any], *, train: bool) -> Outputs:
        """Logits of each next token, `[B, L, num_classes]`.

        Args:
          inputs: `tokens`, integers `[B, L]`, and, where some are padding, `mask`,
            booleans `[B, L]`: padding is not attended to, and takes no position.
          train: changes nothing here.
        """
        del train
        tokens = jnp.asarray(inputs["tokens"])
        mask = inputs.get("mask", jnp.ones(tokens.shape, bool))
        places = _places(tokens.shape[-1])
        hidden, features, _ = self._run(tokens, mask, _positions(mask), mask, places)
        return Outputs(self._logits(hidden), features)

    def extend(
        self, tokens: jax.Array, cache: Cache, mask: jax.Array | None = None
    ) -> tuple[jax.Array, Cache]:
        """Reads further tokens `[B, L]`: logits after the last, and the cache with all.

        Padding, where `mask` is False, comes before an example's first token. What
        exceeds the cache's size is for the caller to know.
        """
        if mask is None:
            mask = jnp.ones(tokens.shape, bool)
        before = jnp.sum(cache.mask, axis=-1, keepdims=True, dtype=jnp.int32)
        seen = jax.lax.dynamic_update_slice_in_dim(cache.mask, mask, cache.length, 1)
        places = cache.length + _places(tokens.shape[-1])
        positions = jnp.maximum(before + _count(mask), 1) - 1
        hidden, _, past = self._run(tokens, mask, positions, seen, places, cache)
        keys, values = zip(*past, strict=True)
        cache = Cache(keys, values, seen, cache.length + tokens.shape[-1])
        return self._logits(hidden[:, -1]), cache

    def init_cache(self, batch_size: int, size: int) -> Cache:
        """An empty cache, for `size` tokens of each of `batch_size` examples."""
        shape = batch_size, size, self._kv_heads, self.dim // self.heads
        blank = tuple(jnp.zeros(shape, self.dtype) for _ in range(self.depth))
        mask = jnp.zeros((batch_size, size), bool)
        return Cache(blank, blank, mask, jnp.zeros((), jnp.int32))

    def _run(
        self,
        tokens: jax.Array,
        mask: jax.Array,
        positions: jax.Array,
        seen: jax.Array,
        places: jax.Array,
        cache: Cache | None = None,
    ) -> tuple[jax.Array, dict[str, jax.Array], list[tuple[jax.Array, jax.Array]]]:
        """The last states, all features, and keys and values of each block.

        The tokens are at `places` among those of `seen`, the mask of all.
        """
        if self.style == "gpt2" and tokens.shape[-1] > self.max_length:
            raise ValueError(
                f"Expected at most max_length={self.max_length} tokens, got "
                f"{tokens.shape[-1]}."
            )
        x = self.embed(tokens)
        angles = None
        if self.style == "gpt2":
            x = x + self.positions(positions)
        else:
            angles = _angles(positions, self.dim // self.heads, self.rope_theta)
        causal = places[:, None] >= _places(seen.shape[-1])[None]
        visible = causal[None, None] & seen[:, None, None, :]
        features, past = {"embeddings": x}, []
        for i, block in enumerate(self.blocks):
            before = None if cache is None else (cache.keys[i], cache.values[i])
            x, both = block(x, angles, visible, before, places[0])
            features[f"block{i + 1}"] = x
            past.append(both)
        hidden = self.norm(x)
        features["hidden"] = hidden.astype(jnp.float32)
        return hidden, features, past

    def _logits(self, hidden: jax.Array) -> jax.Array:
        logits = self.embed.attend(hidden) if self.tied else self.head(hidden)
        return logits.astype(jnp.float32)

    @property
    def _kv_heads(self) -> int:
        return self.kv_heads or self.heads

    def _check(self) -> None:
        if self.style not in ("gpt2", "llama"):
            raise ValueError(f"Expected style 'gpt2' or 'llama', got {self.style!r}.")
        if self.dim % self.heads or self.heads % self._kv_heads:
            raise ValueError(
                f"Expected heads that divide dim {self.dim} and are a multiple of "
                f"kv_heads {self._kv_heads}, got {self.heads}."
            )
        if self.style == "llama" and self.dim // self.heads % 2:
            raise ValueError(
                "Expected heads of an even dimension, whose halves are rotated, got "
                f"{self.dim // self.heads}."
            )


class Block(nn.Module):
    """Self-attention, then an MLP, each of the normalised input, added to it."""

    style: str
    heads: int
    kv_heads: int
    mlp_dim: int
    residual_scale: float
    epsilon: float
    dtype: Any

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        angles: tuple[jax.Array, jax.Array] | None,
        visible: jax.Array,
        past: tuple[jax.Array, jax.Array] | None,
        place: jax.Array,
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        """Returns the new states, and the keys and values, with those of the past."""
        normed = _norm(self.style, self.epsilon, self.dtype, name="norm1")(x)
        queries, keys, values = self._projected(normed)
        if angles is not None:
            queries, keys = _rotated(queries, *angles), _rotated(keys, *angles)
        if past is not None:
            keys, values = (
                jax.lax.dynamic_update_slice_in_dim(old, new, place, 1)
                for old, new in zip(past, (keys, values), strict=True)
            )
        attended = jax.nn.dot_product_attention(queries, keys, values, mask=visible)
        dim = x.shape[-1]
        x = x + self._dense(dim, "output", residual=True)(attended.reshape(x.shape))
        normed = _norm(self.style, self.epsilon, self.dtype, name="norm2")(x)
        inner = self._dense(self.mlp_dim, "up")(normed)
        if self.style == "gpt2":
            inner = nn.gelu(inner, approximate=True)
        else:
            inner = nn.silu(self._dense(self.mlp_dim, "gate")(normed)) * inner
        return x + self._dense(dim, "down", residual=True)(inner), (keys, values)

    def _projected(self, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Queries, keys and values `[B, L, heads, head_dim]`, by one matrix."""
        head_dim = x.shape[-1] // self.heads
        counts = self.heads, self.kv_heads, self.kv_heads
        fused = self._dense(sum(counts) * head_dim, "qkv")(x)
        heads = fused.reshape(*x.shape[:-1], -1, head_dim)
        last = self.heads + self.kv_heads
        return (
            heads[..., : self.heads, :],
            heads[..., self.heads : last, :],
            heads[..., last:, :],
        )

    def _dense(self, features: int, name: str, *, residual: bool = False) -> nn.Dense:
        scale = 0.02 * (self.residual_scale if residual else 1.0)
        return nn.Dense(
            features,
            use_bias=self.style == "gpt2",
            dtype=self.dtype,
            kernel_init=nn.initializers.normal(scale),
            name=name,
        )


def head_kernel(variables: Variables) -> jax.Array:
    """The matrix from the feature `hidden` to logits, `[dim, num_classes]`."""
    params = variables["params"]
    if "head" in params:
        return params["head"]["kernel"]
    return params["embed"]["embedding"].T


def _norm(style: str, epsilon: float, dtype: Any, name: str | None = None) -> Any:
    kind = nn.LayerNorm if style == "gpt2" else nn.RMSNorm
    return kind(epsilon=epsilon, dtype=dtype, name=name)


def _places(length: Any) -> jax.Array:
    """0, 1 and so on; a length may be a symbol, of which jax2onnx has no `arange`."""
    return jax.lax.iota(jnp.int32, length)


def _count(mask: jax.Array) -> jax.Array:
    """How many tokens there are up to each."""
    return jnp.cumsum(mask.astype(jnp.int32), axis=-1)


def _positions(mask: jax.Array) -> jax.Array:
    """Of the tokens, from 0; 0 for padding before them."""
    return jnp.maximum(_count(mask), 1) - 1


def _angles(
    positions: jax.Array, head_dim: int, theta: float
) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines, `[B, L, 1, head_dim / 2]`."""
    exponents = jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim
    frequencies = theta**-exponents
    angles = (
        positions.astype(jnp.float32)[..., None, None] * frequencies[None, None, None]
    )
    return jnp.cos(angles), jnp.sin(angles)


def _rotated(x: jax.Array, cosines: jax.Array, sines: jax.Array) -> jax.Array:
    """Pairs of entry i and i + head_dim / 2, each turned by its angle."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = (first * cosines - second * sines, second * cosines + first * sines)
    return jnp.concatenate(turned, axis=-1).astype(x.dtype)


DECODERS: dict[str, Callable[..., nn.Module]] = {
    "gpt2": functools.partial(Decoder, style="gpt2"),
    "llama": functools.partial(Decoder, style="llama"),
    "gpt2_small": functools.partial(
        Decoder, style="gpt2", dim=768, depth=12, heads=12, max_length=1024
    ),
    "smollm2_135m": functools.partial(
        Decoder,
        style="llama",
        dim=576,
        depth=30,
        heads=9,
        kv_heads=3,
        mlp_dim=1536,
        rope_theta=100000.0,
    ),
}
