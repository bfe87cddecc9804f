"""Embeddings of all training examples, remembered from step to step."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from kdjax import losses
from kdjax.adapters._relations import Embed


class ContrastMemory(nn.Module):
    r"""Both sides' embeddings of length 1, and their memory, for `losses.crd_loss`.

    A linear map for each side, and in the collection `memory`, which is not trained
    but is part of a checkpoint, `losses.CRDMemory` and the classes of all examples. In
    training the memory is updated after it is read, and its past is returned.

    Attributes:
      labels: the classes of the whole training set, `[examples]`; read once, to begin.
      dim: of the embeddings, 128 in the paper.
      num_negatives: of other classes for each example, 16384 in the paper.
      positives: `'exact'` or `'relax'`, see `losses.sample_contrast_indices`.
      momentum: the share of the past in the memory, 0.5 in the paper.
      temperature: for the normalisers, that of the loss.

    Examples:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import numpy as np
      >>> from kdjax import losses
      >>> from kdjax.adapters import ContrastMemory
      >>> module = ContrastMemory(np.arange(100) % 10, dim=8, num_negatives=20)
      >>> features = jnp.ones((4, 6)), jnp.ones((4, 9))
      >>> inputs = *features, jnp.arange(4), jnp.ones(4, bool)
      >>> variables = module.init(jax.random.key(0), *inputs, train=False)
      >>> arguments, changed = module.apply(
      ...     variables, *inputs, train=True, mutable=["memory"],
      ...     rngs={"dropout": jax.random.key(1)})
      >>> print(losses.crd_loss(*arguments).shape)
      (4,)

    References:
      Tian et al., `Contrastive Representation Distillation
      <https://arxiv.org/abs/1910.10699>`_, ICLR 2020, section 3.3.
    """

    labels: np.ndarray
    dim: int = 128
    num_negatives: int = 16384
    positives: str = "exact"
    momentum: float = 0.5
    temperature: float = 0.07

    @nn.compact
    def __call__(
        self,
        student_features: Float[Array, " batch *_"],
        teacher_features: Float[Array, " batch *_"],
        example_ids: Int[Array, " batch"],
        where: Bool[Array, " batch"],
        *,
        train: bool,
    ) -> tuple[
        Float[Array, "batch dim"],
        Float[Array, "batch dim"],
        losses.CRDMemory,
        Int[Array, "batch contrasts"],
    ]:
        embeddings = (
            Embed(self.dim, name="student")(student_features),
            Embed(self.dim, name="teacher")(teacher_features),
        )
        labels, banks = self._remembered()
        memory = losses.CRDMemory(**banks.value)
        rng = self.make_rng("dropout") if train else jax.random.key(0)
        indices = losses.sample_contrast_indices(
            rng,
            example_ids,
            labels.value,
            num_negatives=self.num_negatives,
            positives=self.positives,
        )
        if train:
            new = losses.update_crd_memory(
                memory,
                *embeddings,
                example_ids,
                indices,
                temperature=self.temperature,
                momentum=self.momentum,
                where=where,
            )
            banks.value = new._asdict()
        return *embeddings, memory, indices

    def _remembered(self) -> tuple[Any, Any]:
        labels = self.variable("memory", "labels", jnp.asarray, self.labels, jnp.int32)

        def begin() -> dict[str, jax.Array]:
            memory = losses.init_crd_memory(
                self.make_rng("params"), num_examples=len(self.labels), dim=self.dim
            )
            return memory._asdict()

        return labels, self.variable("memory", "banks", begin)
