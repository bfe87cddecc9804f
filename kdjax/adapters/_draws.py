"""What is drawn anew in each step from a teacher's logits; nothing here is trained."""

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from kdjax import losses


class PermutedTeacher(nn.Module):
    r"""A teacher whose logits keep their largest, and permute all others.

    `losses.permute_non_argmax` with a key of each step's own: the control of
    born-again networks, which tells what the order of the wrong classes is worth.
    Permutes in training alone.

    Examples:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from kdjax.adapters import PermutedTeacher
      >>> (logits,) = PermutedTeacher().apply(
      ...     {}, jnp.array([[1.0, 9.0, 2.0]]), train=True,
      ...     rngs={"dropout": jax.random.key(0)})
      >>> print(logits[0, 1], logits.sum())
      9.0 12.0

    References:
      Furlanello et al., `Born-Again Neural Networks
      <https://arxiv.org/abs/1805.04770>`_, ICML 2018, section 3.2.
    """

    @nn.compact
    def __call__(
        self, teacher_logits: Float[Array, "*batch classes"], *, train: bool
    ) -> tuple[Float[Array, "*batch classes"]]:
        if not train:
            return (teacher_logits,)
        return (losses.permute_non_argmax(teacher_logits, self.make_rng("dropout")),)


class SampledTargets(nn.Module):
    r"""A few classes drawn from a teacher's distribution, with their counts.

    `losses.sample_sparse_targets` with a key of each step's own, for
    `losses.sparse_soft_target_loss` and its linear form. Where nothing is trained,
    each example's targets are its largest class.

    Attributes:
      num_draws: how many times to draw; 50 in the paper.

    Examples:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from kdjax.adapters import SampledTargets
      >>> ids, counts = SampledTargets(num_draws=8).apply(
      ...     {}, jnp.zeros((2, 3)), train=True, rngs={"dropout": jax.random.key(0)})
      >>> print(ids.shape, counts.sum(axis=-1))
      (2, 8) [8 8]

    References:
      Anshumann et al., `Sparse Logit Sampling: Accelerating Knowledge Distillation in
      LLMs <https://arxiv.org/abs/2503.16870>`_, ACL 2025, section 3.
    """

    num_draws: int = 50

    @nn.compact
    def __call__(
        self, teacher_logits: Float[Array, "*batch classes"], *, train: bool
    ) -> tuple[Int[Array, "*batch draws"], Int[Array, "*batch draws"]]:
        if train:
            return losses.sample_sparse_targets(
                teacher_logits, self.make_rng("dropout"), num_draws=self.num_draws
            )
        shape = (*teacher_logits.shape[:-1], self.num_draws)
        ids = jnp.argmax(teacher_logits, axis=-1)[..., None].astype(jnp.int32)
        counts = jnp.zeros(shape, jnp.int32).at[..., 0].set(self.num_draws)
        return jnp.broadcast_to(ids, shape), counts
