"""Trainable maps for losses of embeddings, and a temperature that is learned."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, ScalarLike

from kdjax import losses


class Embed(nn.Module):
    r"""A linear map of flattened features to embeddings, of length 1 if asked for.

    .. math:: e = \frac{W f + b}{\|W f + b\|_2}

    One for the student and one for the teacher, both trained, come before
    `losses.crd_loss`, which needs length 1, and before
    `losses.correlation_congruence_loss`, where the published code has none. A
    vector of zeros stays so, and has no gradient.

    Attributes:
      dim: the dimension of the embeddings, 128 in the papers.
      normalize: whether to divide each by its length.
      dtype: of the computation; that of the parameters and features if absent.

    Examples:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from kdjax.adapters import Embed
      >>> student_features = jnp.ones((2, 4, 4, 3))
      >>> embed = Embed(dim=5)
      >>> variables = embed.init(jax.random.key(0), student_features)
      >>> student_embedding = embed.apply(variables, student_features)
      >>> print(student_embedding.shape, jnp.linalg.norm(student_embedding[0]).round(4))
      (2, 5) 1.0

    References:
      Tian et al., `Contrastive Representation Distillation
      <https://arxiv.org/abs/1910.10699>`_, ICLR 2020, section 3.3.
    """

    dim: int = 128
    normalize: bool = True
    dtype: jax.typing.DTypeLike | None = None

    @nn.compact
    def __call__(
        self, features: Float[Array, " batch *shape"], *, train: bool = False
    ) -> Float[Array, "batch dim"]:
        del train  # Nothing here depends on it.
        flat = features.reshape(features.shape[0], -1)
        embedding = nn.Dense(self.dim, dtype=self.dtype, name="linear")(flat)
        if not self.normalize:
            return embedding
        # In float32: of a bfloat16 vector of length 1, two digits are right.
        if jnp.finfo(embedding.dtype).bits < 32:
            embedding = embedding.astype(jnp.float32)
        squares = jnp.sum(embedding**2, axis=-1, keepdims=True)
        # Not the root of 0, whose gradient would be NaN.
        is_zero = squares == 0
        return jnp.where(
            is_zero, 0, embedding / jnp.sqrt(jnp.where(is_zero, 1, squares))
        )


class LearnedTemperature(nn.Module):
    r"""A temperature that is learned against the student, within bounds.

    Curriculum temperature: the temperature of a distillation loss has a parameter, or
    a small network, that maximises the loss which the student minimises. The
    gradient is reversed on its way, so one optimizer minimises for both:

    .. math:: \tau = \tau_0 + \tau_1 \, \sigma(\mathrm{reverse}_\lambda(\theta))

    Global, :math:`\theta` is one number. Instance-wise, :math:`\theta` is the output
    of two layers that see the logits of both sides; no gradient goes on into the
    logits. Give the result to any loss that has a `temperature`, by `jax.vmap` if it
    is one for each example. The gradient flows through the loss's :math:`\tau^2`.

    Attributes:
      start: the lower bound :math:`\tau_0`; 1 in the paper.
      scale: the distance :math:`\tau_1` to the upper bound; 20 in the paper.
      instance_wise: whether each example has a temperature of its own.
      hidden_dim: the width of the layer between, if so.
      initial: of the number :math:`\theta`; 1 in the published code. The last layer of
        the instance-wise form begins with zeros and this bias.

    Examples:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from kdjax.adapters import LearnedTemperature
      >>> student_logits, teacher_logits = jnp.zeros((2, 4, 10))
      >>> learned = LearnedTemperature(instance_wise=True)
      >>> inputs = student_logits, teacher_logits
      >>> variables = learned.init(jax.random.key(0), *inputs)
      >>> temperature = learned.apply(variables, *inputs, reversal=0.5)
      >>> print(temperature.round(2))  # 1 + 20 sigmoid(1)
      [15.62 15.62 15.62 15.62]

    References:
      Li et al., `Curriculum Temperature for Knowledge Distillation
      <https://arxiv.org/abs/2211.16231>`_, AAAI 2023, section 3.
    """

    start: float = 1.0
    scale: float = 20.0
    instance_wise: bool = False
    hidden_dim: int = 256
    initial: float = 1.0

    @nn.compact
    def __call__(
        self,
        student_logits: Float[Array, "*batch classes"],
        teacher_logits: Float[Array, "*batch classes"],
        reversal: ScalarLike = 1.0,
        *,
        train: bool = False,
    ) -> Float[Array, "*temperatures"]:
        del train  # Nothing here depends on it.
        bias_init: Callable = nn.initializers.constant(self.initial)
        if not self.instance_wise:
            theta = self.param("theta", bias_init, (), jnp.float32)
        else:
            both = jnp.concatenate([teacher_logits, student_logits], axis=-1)
            both = jax.lax.stop_gradient(both).astype(jnp.float32)
            hidden = nn.relu(nn.Dense(self.hidden_dim, name="hidden")(both))
            last = nn.Dense(
                1,
                kernel_init=nn.initializers.zeros,
                bias_init=bias_init,
                name="theta",
            )
            theta = last(hidden)[..., 0]
        theta = losses.reverse_gradient(theta, scale=reversal)
        return self.start + self.scale * jax.nn.sigmoid(theta)


def ctkd_reversal(
    epoch: ScalarLike,
    *,
    num_epochs: ScalarLike = 10,
    start: ScalarLike = 0.0,
    end: ScalarLike = 1.0,
) -> Float[Array, ""]:
    r"""How strongly the gradient of a learned temperature is reversed, by epoch.

    From easy to hard, by half a cosine:

    .. math::
      \lambda(e) = \lambda_1 + \frac{\lambda_0 - \lambda_1}{2} \bigl(1 + \cos(\pi
        \min(e, E) / E)\bigr)

    Args:
      epoch: the epoch, which may be a fraction, from 0.
      num_epochs: the epochs :math:`E` until the end of the rise; 10 for CIFAR-100 and
        5 for ImageNet in the published code.
      start: the value :math:`\lambda_0` at first.
      end: the value :math:`\lambda_1` at last; 1 in the published code, as a -1 that
        the gradient is multiplied by.

    Returns:
      The factor for `LearnedTemperature` and `losses.reverse_gradient`, `[]`.

    Raises:
      ValueError: if a concrete `num_epochs` is not positive.

    Examples:
      >>> from kdjax.adapters import ctkd_reversal
      >>> print([float(ctkd_reversal(epoch).round(2)) for epoch in (0, 5, 10, 240)])
      [0.0, 0.5, 1.0, 1.0]

    References:
      Li et al., `Curriculum Temperature for Knowledge Distillation
      <https://arxiv.org/abs/2211.16231>`_, AAAI 2023, section 3.3.
    """
    if isinstance(num_epochs, int | float) and not num_epochs > 0:
        raise ValueError(f"Expected num_epochs > 0, got {num_epochs}.")
    epoch, num_epochs, start, end = (
        jnp.asarray(x, jnp.float32) for x in (epoch, num_epochs, start, end)
    )
    share = jnp.clip(epoch / num_epochs, 0, 1)
    return end + 0.5 * (start - end) * (1 + jnp.cos(jnp.pi * share))
