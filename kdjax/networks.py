"""A model as two functions: what the layers above see of a student or a teacher."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from kdjax.types import ApplyFn, Outputs, Variables


@dataclasses.dataclass(frozen=True)
class Network:
    """A student or a teacher.

    A Haiku, Equinox or NNX model joins by giving these two functions.

    Attributes:
      name: for messages and reports.
      init: makes the variables from a key.
      apply: maps variables and uint8 pixels to outputs and updated collections.
      image_shape: of one input, `(height, width, channels)`.
      num_classes: the number of logits.
      description: what must be equal for two networks to give the same logits from
        the same variables; JSON-able.
    """

    name: str
    init: Callable[[jax.Array], Variables]
    apply: ApplyFn
    image_shape: tuple[int, ...]
    num_classes: int
    description: dict


def from_linen(
    module: nn.Module,
    *,
    name: str,
    image_shape: Sequence[int],
    num_classes: int,
    mean: Sequence[float],
    std: Sequence[float],
) -> Network:
    """A Linen module on pixels scaled to [0, 1], then normalised by channel.

    Args:
      module: called as `module(images, train=...)`, returns `Outputs`.
      name: for messages and reports.
      image_shape: of one input, `(height, width, channels)`.
      num_classes: the number of logits.
      mean: by channel, in units of [0, 1].
      std: by channel, in units of [0, 1].
    """
    mean_array, std_array = (np.asarray(x, np.float32) for x in (mean, std))

    def normalize(images: jax.Array) -> jax.Array:
        pixels = images.astype(jnp.float32) / 255
        shape = (1,) * (pixels.ndim - 1) + (-1,)
        return (pixels - mean_array.reshape(shape)) / std_array.reshape(shape)

    @jax.jit  # Once for all seeds.
    def init(rng: jax.Array) -> Variables:
        images = jnp.zeros((1, *image_shape), jnp.float32)
        return module.init(rng, images, train=False)

    def apply(
        variables: Variables,
        images: jax.Array,
        *,
        train: bool,
        rng: jax.Array | None = None,
    ) -> tuple[Outputs, Variables]:
        model_state = {k: v for k, v in variables.items() if k != "params"}
        pixels = normalize(images)
        if not train:
            outputs: Any = module.apply(variables, pixels, train=False)
            return outputs, model_state
        rngs = None if rng is None else {"dropout": rng}
        outputs, new_state = module.apply(
            variables, pixels, train=True, rngs=rngs, mutable=list(model_state)
        )
        return outputs, dict(new_state)

    return Network(
        name=name,
        init=init,
        apply=apply,
        image_shape=tuple(image_shape),
        num_classes=num_classes,
        description={
            "model": name,
            "mean": [round(float(x), 6) for x in mean],
            "std": [round(float(x), 6) for x in std],
        },
    )
