"""Vision transformers of Dosovitskiy et al. 2021, as Touvron et al. 2021 size them."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from kdjax.models.attention import attend, check_heads
from kdjax.models.convolutions import Conv
from kdjax.models.layers import torch_uniform
from kdjax.types import Outputs

# DeiT's code truncates at 100 standard deviations, which is not at all.
_normal = nn.initializers.normal(0.02)


class ViT(nn.Module):
    """A transformer of patches and a class token, normalised before each of its parts.

    Features, of L tokens, the class token before those of patches: `embeddings`, with
    positions, `[B, L, dim]`; of each block, `block1` on, its output `block1` and its
    `block1_queries`, `block1_keys` and `block1_values`, all heads one after the other,
    `[B, L, dim]`; `block1_scores`, the products of queries and keys over the root of a
    head's dimension, before their softmax, `[B, heads, L, L]`; and `pooled`, the class
    token after the last LayerNorm.

    Raises:
      ValueError: when called, if the patches do not tile the images, or the heads do
        not divide the dimension.

    Attributes:
      num_classes: the number of logits.
      patch_size: height and width of a patch, in pixels.
      dim: of a token.
      depth: the number of blocks.
      heads: of the self-attention.
      distilled: with DeiT's distillation token behind the class token, and a classifier
        of its own; the logits are the mean of the two, and `pooled_distillation` is a
        feature more.
      dtype: of the computation; parameters and logits are float32.
      axis_name: the `pmap` axis, if any.
    """

    num_classes: int
    patch_size: int = 4
    dim: int = 192
    depth: int = 12
    heads: int = 3
    distilled: bool = False
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> Outputs:
        del train  # Nothing here behaves differently in training.
        self._check(images)
        x = self._embed(images)
        features = {"embeddings": x}
        for i in range(1, self.depth + 1):
            x, inner = Block(self.heads, self.dtype)(x)
            features |= {f"block{i}_{name}": value for name, value in inner.items()}
            features[f"block{i}"] = x
        tokens = _norm(self.dtype)(x[:, :2]).astype(jnp.float32)
        features["pooled"] = tokens[:, 0]
        logits = nn.Dense(self.num_classes, kernel_init=_normal)(tokens[:, 0])
        if self.distilled:
            features["pooled_distillation"] = tokens[:, 1]
            own = nn.Dense(self.num_classes, kernel_init=_normal)(tokens[:, 1])
            logits = (logits + own) / 2
        return Outputs(logits, features)

    def _embed(self, images: jax.Array) -> jax.Array:
        """The class token and the patches, with their positions, `[B, L, dim]`."""
        size = self.patch_size, self.patch_size
        conv = Conv(
            self.dim,
            size,
            strides=size,
            padding="VALID",
            use_bias=True,
            dtype=self.dtype,
            kernel_init=torch_uniform,
        )
        x = conv(images).reshape(images.shape[0], -1, self.dim)
        for name in ("distillation_token", "class_token")[not self.distilled :]:
            token = self.param(name, _normal, (1, 1, self.dim)).astype(self.dtype)
            token = jnp.broadcast_to(token, (x.shape[0], 1, self.dim))
            x = jnp.concatenate([token, x], axis=1)
        positions = self.param("positions", _normal, (1, *x.shape[1:]))
        return x + positions.astype(self.dtype)

    def _check(self, images: jax.Array) -> None:
        if any(size % self.patch_size for size in images.shape[1:3]):
            raise ValueError(
                f"Expected a patch_size that divides images {images.shape[1:3]}, got "
                f"{self.patch_size}."
            )
        check_heads(self.dim, self.heads)


class Block(nn.Module):
    """Self-attention, then an MLP of four times the width, each added to its input.

    Returns the tokens, and `queries`, `keys`, `values` and `scores`.
    """

    heads: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        dense = functools.partial(nn.Dense, dtype=self.dtype, kernel_init=_normal)
        dim = x.shape[-1]
        inner = jnp.split(dense(3 * dim)(_norm(self.dtype)(x)), 3, axis=-1)
        attended, scores = attend(*inner, heads=self.heads)
        x = x + dense(dim)(attended)
        hidden = nn.gelu(dense(4 * dim)(_norm(self.dtype)(x)), approximate=False)
        names = "queries", "keys", "values", "scores"
        return x + dense(dim)(hidden), dict(zip(names, (*inner, scores), strict=True))


def _norm(dtype: Any) -> nn.LayerNorm:
    return nn.LayerNorm(epsilon=1e-6, dtype=dtype)
