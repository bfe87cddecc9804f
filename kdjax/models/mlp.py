"""Multilayer perceptrons, such as those of Hinton et al. 2015, section 3."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from kdjax.models.layers import Dropout
from kdjax.types import Outputs


class MLP(nn.Module):
    """ReLU layers on flattened images.

    Features: `hidden1`, `hidden2`... after the ReLU and before dropout.

    Attributes:
      num_classes: the number of logits.
      hidden: the width of each hidden layer.
      input_dropout: the share of pixels dropped in training.
      dropout: the share of hidden units dropped in training.
      dtype: of the computation; parameters and logits are float32.
      axis_name: the `pmap` axis, if any.
    """

    num_classes: int
    hidden: Sequence[int] = (800, 800)
    input_dropout: float = 0.0
    dropout: float = 0.0
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> Outputs:
        x = images.reshape(images.shape[0], -1)
        x = Dropout(self.input_dropout, self.axis_name)(x, train=train)
        features = {}
        for i, width in enumerate(self.hidden, start=1):
            dense = nn.Dense(
                width, dtype=self.dtype, kernel_init=nn.initializers.he_normal()
            )
            x = features[f"hidden{i}"] = nn.relu(dense(x))
            x = Dropout(self.dropout, self.axis_name)(x, train=train)
        logits = nn.Dense(self.num_classes, dtype=self.dtype)(x)
        return Outputs(logits.astype(jnp.float32), features)
