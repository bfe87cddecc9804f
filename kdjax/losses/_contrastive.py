"""A contrastive loss: a student's embedding against those of the whole batch."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, ScalarLike

from kdjax.losses import _checks, _embeddings, _masking, _numerics


def contrastive_loss(
    student_embedding: Float[Array, "batch dim"],
    teacher_embedding: Float[Array, "batch dim"],
    *,
    temperature: ScalarLike = 0.07,
    where: Bool[Array, " batch"] | None = None,
) -> Float[Array, " batch"]:
    r"""Cost of naming one's own teacher's embedding among all of the batch.

    Noise-contrastive estimation of mutual information, with the batch's other
    examples for negatives: no memory, and as hard as the batch is large.

    .. math::
      \ell_i = -\log \frac{\exp(\cos(e^s_i, e^t_i) / \tau)}
        {\sum_j \exp(\cos(e^s_i, e^t_j) / \tau)}

    Couples examples: entry :math:`i` is the cost of the student's embedding
    :math:`i`, and its mean is the published value. It is that of one direction: add
    the loss with the arguments exchanged for both. Not zero at the teacher: other
    examples are alike in part.

    Args:
      student_embedding: one vector an example, `[batch, dim]`.
      teacher_embedding: one vector an example, `[batch, dim]`.
      temperature: divides the cosines; a positive scalar.
      where: which examples are valid, `[batch]`. The loss and the gradient of every
        other example are exactly zero, and it is no negative.

    Returns:
      The loss of each example in nats, `[batch]`, in at least float32.

    Raises:
      ValueError: if the shapes differ, `where` does not fit them, or a concrete
        temperature is not positive.
      TypeError: if either array is not floating-point, or `where` is not boolean.

    Examples:
      >>> import jax.numpy as jnp
      >>> from kdjax import losses
      >>> student_embedding = jnp.array([[1.0, 0.0], [3.0, 0.0]])  # Undecided.
      >>> teacher_embedding = jnp.array([[1.0, 1.0], [1.0, -1.0]])
      >>> print(losses.contrastive_loss(student_embedding, teacher_embedding).round(4))
      [0.6931 0.6931]

    References:
      van den Oord et al., `Representation Learning with Contrastive Predictive Coding
      <https://arxiv.org/abs/1807.03748>`_, 2018, equation 4.
    """
    _embeddings.check_embeddings(
        student_embedding=student_embedding, teacher_embedding=teacher_embedding
    )
    _checks.check_positive(temperature=temperature)

    student, teacher = _masking.drop_invalid(
        where, student_embedding, teacher_embedding
    )
    (temperature,) = _numerics.scalars(student, temperature)
    cosines = _embeddings.inner(_embeddings.unit(student), _embeddings.unit(teacher))
    # The diagonal stays, for a row needs something to normalise.
    itself = jnp.eye(len(student), dtype=jnp.bool_)
    candidates = itself | _embeddings.is_valid(where, student)[None]
    log_probs = jax.nn.log_softmax(
        jnp.where(candidates, cosines / temperature, -jnp.inf)
    )
    return _masking.zero_invalid(where, -jnp.diagonal(log_probs))
