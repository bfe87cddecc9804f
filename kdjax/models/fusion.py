"""An answer to a question, from what a network saw of an image."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn


class Fusion(nn.Module):
    r"""Image and question, each mapped to one space, multiplied, and classified.

    .. math::
      z = W \, \mathrm{ReLU}\bigl(V (\tanh(A x) \odot \tanh(B \tanh(C c)))\bigr)

    with the features :math:`x` of an image and the counts :math:`c` of the words of a
    question: a bag of words, which tells apart all questions of easy-VQA. Leading axes
    of one side may be 1 where the other's are longer: so all images are asked all
    questions at once.

    Attributes:
      num_classes: the number of answers.
      vocabulary_size: the number of words; token 0 is none of them.
      dim: of the space.
      dtype: of the computation; parameters and logits are float32.

    References:
      Antol et al., `VQA: Visual Question Answering
      <https://arxiv.org/abs/1505.00468>`_, ICCV 2015, section 4.
    """

    num_classes: int
    vocabulary_size: int
    dim: int = 64
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, features: jax.Array, questions: jax.Array) -> jax.Array:
        """Logits `[..., num_classes]`, of features `[..., D]` and tokens `[..., L]`."""
        words = jax.nn.one_hot(questions, self.vocabulary_size + 1, dtype=self.dtype)
        counts = jnp.sum(words, axis=-2)[..., 1:]  # Without the padding.

        def dense(width: int, name: str) -> nn.Module:
            return nn.Dense(width, dtype=self.dtype, name=name)

        image = jnp.tanh(dense(self.dim, "image")(features.astype(self.dtype)))
        question = jnp.tanh(dense(self.dim, "words")(counts))
        question = jnp.tanh(dense(self.dim, "question")(question))
        x = nn.relu(dense(2 * self.dim, "hidden")(image * question))
        return dense(self.num_classes, "classifier")(x).astype(jnp.float32)
