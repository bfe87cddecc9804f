"""Losses of a network whose deepest exit teaches the others."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, ScalarLike

from kdjax.losses import _checks, _embeddings, _masking, _numerics


def byot_loss(
    student_logits: Float[Array, "exits *batch classes"],
    teacher_logits: Float[Array, "*batch classes"],
    *,
    temperature: ScalarLike = 3.0,
    where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
    r"""Divergence of a network's shallow exits from its deepest one, summed.

    Self-distillation: classifiers at several depths are trained together, and the
    deepest, :math:`z^K`, is the teacher of the others. Its logits are not
    differentiated here (:math:`\mathrm{sg}`), for it is part of the student:

    .. math::
      \ell = \tau^2 \sum_{i < K} \mathrm{KL}\!\left(
        \mathrm{softmax}(\mathrm{sg}[z^K] / \tau) \,\|\,
        \mathrm{softmax}(z^i / \tau)\right)

    A sum over the exits, not a mean. The published code has the cross-entropy
    instead, whose gradient is the same. It weighs this 0.1, the cross-entropies of
    all exits with the labels 0.9, and `byot_feature_loss` 1e-6, at a temperature of
    3.

    Args:
      student_logits: those of all exits but the deepest, `[exits, ..., num_classes]`.
      teacher_logits: those of the deepest exit, `[..., num_classes]`.
      temperature: softens all distributions; a positive scalar.
      where: which examples are valid, `[...]`. The loss and the gradient of every
        other example are exactly zero, even if its logits are not finite.

    Returns:
      The loss of each example in nats, `[...]`, in at least float32.

    Raises:
      ValueError: if shapes do not fit, or a concrete temperature is not positive.
      TypeError: if either array is not floating-point, or `where` is not boolean.

    Examples:
      >>> import jax.numpy as jnp
      >>> from kdjax import losses
      >>> student_logits = jnp.array([[0.0, 0.0], [0.0, 0.0]])  # Two exits.
      >>> teacher_logits = jnp.array([100.0, 0.0])
      >>> print(losses.byot_loss(
      ...     student_logits, teacher_logits, temperature=1.0).round(4))
      1.3863

    References:
      Zhang et al., `Be Your Own Teacher <https://arxiv.org/abs/1905.08094>`_, ICCV
      2019, equation 3.
    """
    _check_exits(student_logits, teacher_logits, "logits")
    _checks.check_logits(teacher_logits=teacher_logits)
    _checks.check_positive(temperature=temperature)
    _checks.check_where(where, teacher_logits.shape[:-1])

    teacher_logits = jnp.broadcast_to(teacher_logits[None], student_logits.shape)
    of_exits = where
    if where is not None:
        of_exits = jnp.broadcast_to(where[None], student_logits.shape[:-1])
    student_logits, teacher_logits = _masking.drop_invalid(
        of_exits, student_logits, jax.lax.stop_gradient(teacher_logits)
    )
    (temperature,) = _numerics.scalars(student_logits, temperature)
    divergences = _numerics.kl(
        _numerics.log_probs(teacher_logits, temperature),
        _numerics.log_probs(student_logits, temperature),
    )
    loss = temperature**2 * jnp.sum(divergences, axis=0)
    return _masking.zero_invalid(where, loss)


def byot_feature_loss(
    student_features: Float[Array, "exits batch *shape"],
    teacher_features: Float[Array, " batch *shape"],
    *,
    where: Bool[Array, " batch"] | None = None,
) -> Float[Array, " batch"]:
    r"""Squared distance of the exits' features from the deepest ones', where active.

    The hints of self-distillation, for features that adapters brought to one shape:

    .. math::
      \ell = \sum_{i < K} \sum_n (F^i_n - \mathrm{sg}[F^K_n])^2 \,
        \mathbb{1}[F^i_n > 0 \text{ or } F^K_n > 0]

    What is inactive on both sides would be cut off by a rectifier, and need not
    agree. The deepest features are not differentiated here (:math:`\mathrm{sg}`). A
    sum over exits and entries; the published code sums over the batch too, so that
    its weight of 1e-6 is 1e-6 times the batch size for the mean of these values.

    Args:
      student_features: those of all exits but the deepest, `[exits, batch, ...]`.
      teacher_features: those of the deepest exit, `[batch, ...]`.
      where: which examples are valid, `[batch]`. The loss and the gradient of every
        other example are exactly zero, even if its features are not finite.

    Returns:
      The loss of each example in squared units of the features, `[batch]`, in at
      least float32.

    Raises:
      ValueError: if shapes do not fit.
      TypeError: if either array is not floating-point, or `where` is not boolean.

    Examples:
      >>> import jax.numpy as jnp
      >>> from kdjax import losses
      >>> student_features = jnp.array([[[1.0, -1.0, -2.0]]])
      >>> teacher_features = jnp.array([[3.0, 2.0, -1.0]])  # (1-3)^2 + (-1-2)^2
      >>> print(losses.byot_feature_loss(student_features, teacher_features))
      [13.]

    References:
      Zhang et al., `Be Your Own Teacher <https://arxiv.org/abs/1905.08094>`_, ICCV
      2019, equation 4; the mask is that of the published code.
    """
    _check_exits(student_features, teacher_features, "features")
    _embeddings.check_batches(teacher_features=teacher_features)

    (teacher,) = _embeddings.flatten_valid(where, teacher_features)
    teacher = jax.lax.stop_gradient(teacher)
    loss = jnp.zeros(())
    for features in student_features:
        student, teacher = _embeddings.flatten_valid(
            where, features, teacher.reshape(features.shape)
        )
        # Not by what is active: NaN is neither, and is not to be hidden.
        is_inactive = (student <= 0) & (teacher <= 0)
        squares = jnp.where(is_inactive, 0, (student - teacher) ** 2)
        loss = loss.astype(squares.dtype) + jnp.sum(squares, axis=-1)
    return _masking.zero_invalid(where, loss)


def _check_exits(student: jax.Array, teacher: jax.Array, kind: str) -> None:
    if not jnp.issubdtype(student.dtype, jnp.floating):
        raise TypeError(f"Expected floating-point student_{kind}, got {student.dtype}.")
    if student.shape[1:] != teacher.shape or student.shape[:1] == (0,):
        raise ValueError(
            f"Expected student_{kind} [exits, ...] of exits like teacher_{kind} "
            f"{teacher.shape}, got {student.shape}."
        )
