"""Losses that treat the labelled class apart from all others."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, ScalarLike

from kdjax.losses import _checks, _masking, _numerics
from kdjax.losses._labels import cross_entropy


def dkd_loss(
    student_logits: Float[Array, "*batch classes"],
    teacher_logits: Float[Array, "*batch classes"],
    labels: Int[Array, "*batch"],
    *,
    target_weight: ScalarLike = 1.0,
    non_target_weight: ScalarLike = 8.0,
    temperature: ScalarLike = 4.0,
    where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
    r"""Divergence split into the labelled class against the rest, and the rest.

    Decoupled distillation. With :math:`b = (p_y, 1 - p_y)` and :math:`\hat p` the
    distribution over the other classes alone, all softened by :math:`\tau`:

    .. math::
      \ell = \tau^2 \bigl( \alpha \, \mathrm{KL}(b^t \,\|\, b^s)
        + \beta \, \mathrm{KL}(\hat p^t \,\|\, \hat p^s) \bigr)

    Hinton's loss weighs the second by :math:`1 - p^t_y`, nearly nothing where the
    teacher is sure; here it has a weight of its own. The authors warm the whole term
    up by :math:`\min(e / 20, 1)` in epoch :math:`e`, and use :math:`\beta` from 2 to
    8 on CIFAR-100, 0.5 or 2 with :math:`\tau = 1` on ImageNet.

    Deviation: both parts are computed in log space. The authors' code takes the log
    of an underflowed softmax and returns infinity beyond a logit gap of
    :math:`88 \tau`.

    Args:
      student_logits: unnormalised log-probabilities, `[..., num_classes]`.
      teacher_logits: unnormalised log-probabilities, `[..., num_classes]`.
      labels: integer classes, `[...]`; NaN comes of a label that is no class.
      target_weight: the weight :math:`\alpha`.
      non_target_weight: the weight :math:`\beta`.
      temperature: softens all distributions; a positive scalar.
      where: which examples are valid, `[...]`. The loss and the gradient of every
        other example are exactly zero, whatever its logits and label hold.

    Returns:
      The loss of each example in nats, `[...]`, in at least float32.

    Raises:
      ValueError: if shapes do not fit, there is one class only, or a concrete
        temperature is not positive.
      TypeError: if the logits are not floating-point, the labels not integer, or
        `where` not boolean.

    Examples:
      >>> import jax.numpy as jnp
      >>> from kdjax import losses
      >>> student_logits = jnp.array([0.0, 0.0, 0.0])
      >>> teacher_logits = jnp.array([9.0, 1.0, 0.0])  # Hinton's loss: 1.0944.
      >>> print(losses.dkd_loss(
      ...     student_logits, teacher_logits, jnp.array(0), temperature=1.0).round(4))
      1.9819

    References:
      Zhao et al., `Decoupled Knowledge Distillation
      <https://arxiv.org/abs/2203.08679>`_, CVPR 2022, equation 7.
    """
    _checks.check_logits(student_logits=student_logits, teacher_logits=teacher_logits)
    _checks.check_num_classes(2, student_logits=student_logits)
    _checks.check_labels(student_logits, labels)
    _checks.check_positive(temperature=temperature)

    student_logits, teacher_logits = _masking.drop_invalid(
        where, student_logits, teacher_logits
    )
    labels = _masking.drop_invalid_labels(where, labels)
    temperature, target_weight, non_target_weight = _numerics.scalars(
        student_logits, temperature, target_weight, non_target_weight
    )
    student = _decouple(student_logits, labels, temperature)
    teacher = _decouple(teacher_logits, labels, temperature)
    loss = target_weight * _numerics.kl(teacher[0], student[0])
    loss += non_target_weight * _numerics.kl(teacher[1], student[1])
    return _masking.zero_invalid(where, temperature**2 * loss)


def _decouple(
    logits: jax.Array, labels: jax.Array, temperature: ScalarLike
) -> tuple[jax.Array, jax.Array]:
    """Log-probabilities of (label, not the label), and of the others among them."""
    log_probs = _numerics.log_probs(logits, temperature)
    others = _exclude(log_probs, labels)
    target = _numerics.at_label(log_probs, labels)
    binary = jnp.stack([target, _numerics.log_sum(others)], axis=-1)
    return binary, _numerics.log_probs(others)


def _exclude(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Returns `logits` with the labelled class at -inf."""
    return jnp.where(_numerics.is_label(logits, labels), -jnp.inf, logits)


def nkd_loss(
    student_logits: Float[Array, "*batch classes"],
    teacher_logits: Float[Array, "*batch classes"],
    labels: Int[Array, "*batch"],
    *,
    non_target_weight: ScalarLike = 1.5,
    temperature: ScalarLike = 1.0,
    where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
    r"""Cross-entropies of the labelled class, and of the normalised others.

    .. math::
      \ell = -p^t_y \log p^s_y
        - \gamma \tau^2 \sum_{c \ne y} \hat p^t_c \log \hat p^s_c

    The first term is at temperature 1 always; :math:`\hat p` is the distribution
    over the classes but the labelled one, softened by :math:`\tau`, so that student
    and teacher have the same sum to share out. Cross-entropies, not divergences:
    not zero where the student equals the teacher. Added to the ordinary
    cross-entropy with the labels, whose gradient the first term scales.

    Args:
      student_logits: unnormalised log-probabilities, `[..., num_classes]`.
      teacher_logits: unnormalised log-probabilities, `[..., num_classes]`.
      labels: integer classes, `[...]`, the largest of a mixed label; NaN comes of a
        label that is no class.
      non_target_weight: the weight :math:`\gamma`.
      temperature: softens the distributions of the other classes; a positive scalar.
      where: which examples are valid, `[...]`. The loss and the gradient of every
        other example are exactly zero, whatever its logits and label hold.

    Returns:
      The loss of each example in nats, `[...]`, in at least float32.

    Raises:
      ValueError: if shapes do not fit, there is one class only, or a concrete
        temperature is not positive.
      TypeError: if the logits are not floating-point, the labels not integer, or
        `where` not boolean.

    Examples:
      >>> import jax.numpy as jnp
      >>> from kdjax import losses
      >>> logits = jnp.array([0.0, 0.0, 0.0])  # log(3) / 3 + 1.5 * log(2)
      >>> print(losses.nkd_loss(logits, logits, jnp.array(0)).round(4))
      1.4059

    References:
      Yang et al., `From Knowledge Distillation to Self-Knowledge Distillation
      <https://arxiv.org/abs/2303.13005>`_, ICCV 2023, section 3.1.
    """
    _checks.check_logits(student_logits=student_logits, teacher_logits=teacher_logits)
    _checks.check_num_classes(2, student_logits=student_logits)
    _checks.check_labels(student_logits, labels)
    _checks.check_positive(temperature=temperature)

    student_logits, teacher_logits = _masking.drop_invalid(
        where, student_logits, teacher_logits
    )
    labels = _masking.drop_invalid_labels(where, labels)
    temperature, non_target_weight = _numerics.scalars(
        student_logits, temperature, non_target_weight
    )
    student, teacher = (
        _numerics.at_label(_numerics.log_probs(logits), labels)
        for logits in (student_logits, teacher_logits)
    )
    target = _numerics.cross_entropy(jnp.exp(teacher)[..., None], student[..., None])
    student_others, teacher_others = (
        _numerics.log_probs(_exclude(logits, labels), temperature)
        for logits in (student_logits, teacher_logits)
    )
    others = _numerics.cross_entropy(jnp.exp(teacher_others), student_others)
    loss = target + non_target_weight * temperature**2 * others
    return _masking.zero_invalid(where, loss)


def uskd_loss(
    student_logits: Float[Array, "batch classes"],
    weak_logits: Float[Array, "batch classes"],
    labels: Int[Array, " batch"],
    *,
    target_weight: ScalarLike = 1.0,
    non_target_weight: ScalarLike = 0.1,
    weak_weight: ScalarLike = 0.005,
    form: str = "paper",
    where: Bool[Array, " batch"] | None = None,
) -> Float[Array, " batch"]:
    r"""Cross-entropies with soft labels that the student makes for itself.

    Self-distillation without a teacher, in the form of `nkd_loss`. A linear head on
    middle features gives `weak_logits`, hence :math:`p^w`, for a second opinion:

    .. math::
      \ell = -\alpha \, w \log p^s_y - \beta \sum_{c \ne y} \hat r_c \log \hat p^s_c
        + \mu \, \mathrm{CE}_{0.1}(z^w, y), \qquad
      w = (p^s_y)^2 + 1 - \overline{(p^s_y)^2}

    The bar is the mean over the batch. :math:`\hat r` follows Zipf's law: the
    reciprocal of a class's rank by :math:`p^w_c / (1 - p^w_y) + p^s_c / (1 - p^s_y)`,
    normalised over the others. Neither :math:`w` nor :math:`\hat r` is
    differentiated. :math:`\mathrm{CE}_{0.1}` smooths the label by 0.1.
    Couples examples: :math:`w` compares an example with its batch.

    Form `'author_code'` ranks by :math:`p^w_c / (1 - p^w_y) + \log p^s_c / (1 -
    \log p^s_y)`, where the code reuses the name of a variable; the published tables
    were made with it. Mixed labels are not covered. A class at -inf costs infinitely
    much, as every class is someone's soft label.

    Args:
      student_logits: unnormalised log-probabilities, `[batch, num_classes]`.
      weak_logits: those of the head on middle features, `[batch, num_classes]`.
      labels: integer classes, `[batch]`; NaN comes of a label that is no class.
      target_weight: the weight :math:`\alpha`.
      non_target_weight: the weight :math:`\beta`.
      weak_weight: the weight :math:`\mu`.
      form: `'paper'` or `'author_code'`.
      where: which examples are valid, `[batch]`. The loss and the gradient of every
        other example are exactly zero, and it is not in the mean of the batch.

    Returns:
      The loss of each example in nats, `[batch]`, in at least float32.

    Raises:
      ValueError: if shapes do not fit, there is one class only, or `form` is unknown.
      TypeError: if the logits are not floating-point, the labels not integer, or
        `where` not boolean.

    Examples:
      >>> import jax.numpy as jnp
      >>> from kdjax import losses
      >>> logits = jnp.zeros((1, 3))  # log(3) + 0.1 * log(2) + 0.005 * log(3)
      >>> loss = losses.uskd_loss(logits, logits, jnp.array([0]))
      >>> print(f"{loss[0]:.4f}")
      1.1734

    References:
      Yang et al., `From Knowledge Distillation to Self-Knowledge Distillation
      <https://arxiv.org/abs/2303.13005>`_, ICCV 2023, section 3.2.
    """
    _checks.check_logits(student_logits=student_logits, weak_logits=weak_logits)
    _checks.check_num_classes(2, student_logits=student_logits)
    _checks.check_labels(student_logits, labels)
    _checks.check_choice(("paper", "author_code"), form=form)

    student_logits, weak_logits = _masking.drop_invalid(
        where, student_logits, weak_logits
    )
    labels = _masking.drop_invalid_labels(where, labels)
    target_weight, non_target_weight, weak_weight = _numerics.scalars(
        student_logits, target_weight, non_target_weight, weak_weight
    )
    log_probs = _numerics.log_probs(student_logits)
    target = _numerics.at_label(log_probs, labels)
    squares = _masking.zero_invalid(where, jnp.exp(2 * target))
    mean = jnp.sum(squares) / _masking.num_valid(where, squares)
    soft_target = jax.lax.stop_gradient(squares + 1 - mean)
    soft_others = jax.lax.stop_gradient(
        _zipf(log_probs, _numerics.log_probs(weak_logits), labels, form)
    )
    others = _numerics.log_probs(_exclude(student_logits, labels))
    loss = -target_weight * soft_target * target
    loss += non_target_weight * _numerics.cross_entropy(soft_others, others)
    loss += weak_weight * cross_entropy(weak_logits, labels, label_smoothing=0.1)
    return _masking.zero_invalid(where, loss)


def _zipf(
    log_probs: jax.Array, weak_log_probs: jax.Array, labels: jax.Array, form: str
) -> jax.Array:
    """Probabilities by rank over the classes, zero for the labelled one."""

    def of_the_rest(x: jax.Array) -> jax.Array:
        # 1e-6 as in the code: all of the mass may be on the label.
        return x / (1 - _numerics.at_label(x, labels)[..., None] + 1e-6)

    strong = jnp.exp(log_probs) if form == "paper" else log_probs
    score = of_the_rest(jnp.exp(weak_log_probs)) + of_the_rest(strong)
    rank = jnp.argsort(jnp.argsort(-score, axis=-1), axis=-1) + 1
    is_label = _numerics.is_label(score, labels)
    weights = jnp.where(is_label, 0, 1 / rank.astype(score.dtype))
    return weights / jnp.sum(weights, axis=-1, keepdims=True)
