"""Losses of a student and of a generator that looks for what the student gets wrong."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, ScalarLike

from kdjax.losses import (
    _checks,
    _divergences,
    _embeddings,
    _logits,
    _masking,
    _numerics,
)


def dfad_loss(
    student_logits: Float[Array, "*batch classes"],
    teacher_logits: Float[Array, "*batch classes"],
    *,
    where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
    r"""Mean absolute difference of the logits, on generated examples.

    The discrepancy that the student of data-free adversarial distillation minimises
    while a generator maximises it, by `dfad_generator_loss`:

    .. math:: \ell = \frac{1}{C} \sum_c |z^s_c - z^t_c|

    Its gradient does not vanish as the two come close, unlike that of a divergence.
    The same function as `fedmd_loss`.

    Args:
      student_logits: unnormalised log-probabilities, `[..., num_classes]`.
      teacher_logits: unnormalised log-probabilities, `[..., num_classes]`.
      where: which examples are valid, `[...]`. The loss and the gradient of every
        other example are exactly zero, even if its logits are not finite.

    Returns:
      The loss of each example in logits, `[...]`, in at least float32.

    Raises:
      ValueError: if the shapes differ, or `where` does not fit them.
      TypeError: if either array is not floating-point, or `where` is not boolean.

    Examples:
      >>> import jax.numpy as jnp
      >>> from kdjax import losses
      >>> student_logits = jnp.array([2.0, 1.0, 0.0])
      >>> teacher_logits = jnp.array([3.5, 1.0, 0.0])
      >>> print(losses.dfad_loss(student_logits, teacher_logits))
      0.5

    References:
      Fang et al., `Data-Free Adversarial Distillation
      <https://arxiv.org/abs/1912.11006>`_, 2019, section 3.2.
    """
    return _logits.fedmd_loss(student_logits, teacher_logits, where=where)


def dfad_generator_loss(
    student_logits: Float[Array, "batch classes"],
    teacher_logits: Float[Array, "batch classes"],
    *,
    form: str = "linear",
    where: Bool[Array, " batch"] | None = None,
) -> Float[Array, " batch"]:
    r"""The discrepancy of student and teacher, with a minus.

    What the generator minimises, to find examples that the two disagree on:

    .. math:: \ell_b = -d_b, \qquad d_b = \frac{1}{C} \sum_c |z^s_{bc} - z^t_{bc}|

    Form `'log'` is the paper's remedy for a generator that runs away:
    :math:`\ell = -\log(1 + \bar d)`, of the batch's mean :math:`\bar d`, whose
    gradient shrinks as the discrepancy grows. Couples examples in that form only,
    where each has the value of the batch.

    Args:
      student_logits: unnormalised log-probabilities of generated examples,
        `[batch, num_classes]`.
      teacher_logits: unnormalised log-probabilities, `[batch, num_classes]`.
      form: `'linear'` or `'log'`.
      where: which examples are valid, `[batch]`. The loss and the gradient of every
        other example are exactly zero, and it is not in the mean.

    Returns:
      The loss of each example, in logits or in nats, never positive, `[batch]`, in at
      least float32.

    Raises:
      ValueError: if the shapes differ, `where` does not fit them, or `form` is
        unknown.
      TypeError: if either array is not floating-point, or `where` is not boolean.

    Examples:
      >>> import jax.numpy as jnp
      >>> from kdjax import losses
      >>> student_logits, teacher_logits = jnp.zeros((2, 2)), jnp.ones((2, 2))
      >>> print(losses.dfad_generator_loss(
      ...     student_logits, teacher_logits, form="log").round(4))
      [-0.6931 -0.6931]

    References:
      Fang et al., `Data-Free Adversarial Distillation
      <https://arxiv.org/abs/1912.11006>`_, 2019, section 3.2.
    """
    _checks.check_choice(("linear", "log"), form=form)
    discrepancy = _logits.fedmd_loss(student_logits, teacher_logits, where=where)
    if form == "linear":
        return -discrepancy
    mean = jnp.sum(discrepancy) / _masking.num_valid(where, discrepancy)
    loss = jnp.broadcast_to(-jnp.log1p(mean), discrepancy.shape)
    return _masking.zero_invalid(where, loss)


def zskt_loss(
    student_logits: Float[Array, "batch classes"],
    teacher_logits: Float[Array, "batch classes"],
    student_features: tuple[Float[Array, "batch _ _ _"], ...] = (),
    teacher_features: tuple[Float[Array, "batch _ _ _"], ...] = (),
    *,
    attention_weight: ScalarLike = 250.0,
    form: str = "paper",
    where: Bool[Array, " batch"] | None = None,
) -> Float[Array, " batch"]:
    r"""Divergence from the teacher, and distance of attention maps, on pseudo-images.

    What the student of zero-shot knowledge transfer minimises, on images that a
    generator makes by `zskt_generator_loss`. With :math:`A` the mean of the squared
    channels of a layer's features, of length 1 over the positions,

    .. math::
      \ell = \mathrm{KL}(p^t \,\|\, p^s)
        + \beta \sum_l \bigl\| A^t_l - A^s_l \bigr\|_2

    Form `'author_code'`: the divergence is divided by the number of classes, and the
    distance is the mean of squares over the positions.

    Args:
      student_logits: unnormalised log-probabilities, `[batch, num_classes]`.
      teacher_logits: unnormalised log-probabilities, `[batch, num_classes]`.
      student_features: one map for each layer, `[batch, height, width, channels]`.
      teacher_features: as many, of the same heights and widths.
      attention_weight: the weight :math:`\beta` of the attention maps.
      form: `'paper'` or `'author_code'`.
      where: which examples are valid, `[batch]`. The loss and the gradient of every
        other example are exactly zero, even if its arrays are not finite.

    Returns:
      The loss of each example in nats, `[batch]`, in at least float32.

    Raises:
      ValueError: if shapes do not fit, or `form` is unknown.
      TypeError: if an array is not floating-point, or `where` is not boolean.

    Examples:
      >>> import jax.numpy as jnp
      >>> from kdjax import losses
      >>> logits = jnp.zeros((1, 2))
      >>> student_features = (jnp.array([[[[1.0], [0.0]]]]),)  # Looks to the left.
      >>> teacher_features = (jnp.array([[[[0.0], [1.0]]]]),)  # Looks to the right.
      >>> print(losses.zskt_loss(
      ...     logits, logits, student_features, teacher_features).round(2))
      [353.55]

    References:
      Micaelli and Storkey, `Zero-shot Knowledge Transfer via Adversarial Belief
      Matching <https://arxiv.org/abs/1905.09768>`_, NeurIPS 2019, section 3.
    """
    _checks.check_choice(("paper", "author_code"), form=form)
    _check_layers(student_features, teacher_features)

    loss = _belief_divergence(student_logits, teacher_logits, form, where)
    (attention_weight,) = _numerics.scalars(loss, attention_weight)
    for layer in zip(student_features, teacher_features, strict=True):
        student, teacher = (_attention(x, where) for x in layer)
        difference = student - teacher
        if form == "paper":
            distance = _numerics.norm(difference)
        else:
            distance = jnp.mean(difference**2, axis=-1)
        loss = loss + attention_weight * distance.astype(loss.dtype)
    return _masking.zero_invalid(where, loss)


def _check_layers(
    student: tuple[jax.Array, ...], teacher: tuple[jax.Array, ...]
) -> None:
    if len(student) != len(teacher):
        raise ValueError(
            "Expected as many student_features as teacher_features, got "
            f"{len(student)} and {len(teacher)}."
        )
    for x, y in zip(student, teacher, strict=True):
        _embeddings.check_batches(student_features=x, teacher_features=y)
        if x.ndim != 4 or x.shape[:3] != y.shape[:3]:
            raise ValueError(
                "Expected features [batch, height, width, channels] of equal heights "
                f"and widths, got student_features {x.shape}, teacher_features "
                f"{y.shape}."
            )


def _attention(x: jax.Array, where: jax.Array | None) -> jax.Array:
    """Mean square over the channels at each position, in length 1."""
    (flat,) = _embeddings.flatten_valid(where, x)
    squares = flat.reshape(x.shape[0], -1, x.shape[-1]) ** 2
    return _embeddings.unit(jnp.mean(squares, axis=-1))


def _belief_divergence(
    student_logits: jax.Array,
    teacher_logits: jax.Array,
    form: str,
    where: jax.Array | None,
) -> jax.Array:
    loss = _divergences.forward_kl(student_logits, teacher_logits, where=where)
    return loss if form == "paper" else loss / student_logits.shape[-1]


def zskt_generator_loss(
    student_logits: Float[Array, "batch classes"],
    teacher_logits: Float[Array, "batch classes"],
    *,
    form: str = "paper",
    where: Bool[Array, " batch"] | None = None,
) -> Float[Array, " batch"]:
    r"""The divergence of the student from the teacher, with a minus.

    What the generator of zero-shot knowledge transfer minimises, to make images on
    which the student's beliefs do not match the teacher's:

    .. math:: \ell = -\mathrm{KL}(p^t \,\|\, p^s)

    Form `'author_code'` divides it by the number of classes.

    Args:
      student_logits: unnormalised log-probabilities of generated examples,
        `[batch, num_classes]`.
      teacher_logits: unnormalised log-probabilities, `[batch, num_classes]`.
      form: `'paper'` or `'author_code'`.
      where: which examples are valid, `[batch]`. The loss and the gradient of every
        other example are exactly zero, even if its logits are not finite.

    Returns:
      The loss of each example in nats, never positive, `[batch]`, in at least
      float32.

    Raises:
      ValueError: if the shapes differ, `where` does not fit them, or `form` is
        unknown.
      TypeError: if either array is not floating-point, or `where` is not boolean.

    Examples:
      >>> import jax.numpy as jnp
      >>> from kdjax import losses
      >>> student_logits = jnp.array([[0.0, 0.0]])
      >>> teacher_logits = jnp.array([[100.0, 0.0]])
      >>> print(losses.zskt_generator_loss(student_logits, teacher_logits).round(4))
      [-0.6931]

    References:
      Micaelli and Storkey, `Zero-shot Knowledge Transfer via Adversarial Belief
      Matching <https://arxiv.org/abs/1905.09768>`_, NeurIPS 2019, section 3.
    """
    _checks.check_choice(("paper", "author_code"), form=form)
    return -_belief_divergence(student_logits, teacher_logits, form, where)
