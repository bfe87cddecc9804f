"""Losses of a student against labels, given or made from a teacher's logits."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, ScalarLike

from kdjax.losses import _checks, _masking, _numerics


def cross_entropy(
    student_logits: Float[Array, "*batch classes"],
    labels: Int[Array, "*batch"],
    *,
    label_smoothing: ScalarLike = 0.0,
    where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
    r"""Cross-entropy of the student with integer labels.

    The hard term of distillation, and all of ordinary training:

    .. math::
      \ell = -(1 - \epsilon) \log p^s_y - \frac{\epsilon}{C} \sum_c \log p^s_c,
      \qquad p^s = \mathrm{softmax}(z^s)

    Label smoothing :math:`\epsilon` takes that share of the label's mass and spreads
    it over all :math:`C` classes, the label's included. With it, a class at -inf
    costs infinitely much; without it, only if it is the label.

    A label that is no class, such as -100 for padding, gives NaN: say with `where`
    which examples are valid.

    Args:
      student_logits: unnormalised log-probabilities, `[..., num_classes]`.
      labels: integer classes, `[...]`.
      label_smoothing: the share of mass spread over all classes; from 0 to 1.
      where: which examples are valid, `[...]`. The loss and the gradient of every
        other example are exactly zero, whatever its logits and label hold.

    Returns:
      The loss of each example in nats, `[...]`, in at least float32.

    Raises:
      ValueError: if shapes do not fit, or a concrete `label_smoothing` is not
        between 0 and 1.
      TypeError: if the logits are not floating-point, the labels not integer, or
        `where` not boolean.

    Examples:
      >>> import jax.numpy as jnp
      >>> from kdjax import losses
      >>> student_logits = jnp.array([[2.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
      >>> print(losses.cross_entropy(student_logits, jnp.array([0, 1])).round(4))
      [0.2395 1.0986]

    References:
      Szegedy et al., `Rethinking the Inception Architecture for Computer Vision
      <https://arxiv.org/abs/1512.00567>`_, CVPR 2016, section 7.
    """
    _checks.check_logits(student_logits=student_logits)
    _checks.check_labels(student_logits, labels)
    _checks.check_fraction(label_smoothing=label_smoothing)

    (student_logits,) = _masking.drop_invalid(where, student_logits)
    labels = _masking.drop_invalid_labels(where, labels)
    (label_smoothing,) = _numerics.scalars(student_logits, label_smoothing)
    log_probs = _numerics.log_probs(student_logits)
    at_label = _numerics.at_label(log_probs, labels)
    # Nothing is spread over an impossible class if nothing is spread: not 0 * inf.
    unused = jnp.isneginf(log_probs) & (label_smoothing == 0)
    spread = jnp.mean(jnp.where(unused, 0, log_probs), axis=-1)
    loss = -(1 - label_smoothing) * at_label - label_smoothing * spread
    return _masking.zero_invalid(where, loss)


def soft_cross_entropy(
    student_logits: Float[Array, "*batch classes"],
    soft_labels: Float[Array, "*batch classes"],
    *,
    where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
    r"""Cross-entropy of the student with class probabilities.

    .. math::
      \ell = -\sum_c q_c \log p^s_c, \qquad p^s = \mathrm{softmax}(z^s)

    The hard term where mixup or CutMix has mixed the labels :math:`q`. A class of
    probability 0 contributes 0, also if its logit is -inf. The minimum, reached at
    :math:`p^s = q`, is the entropy of :math:`q`; probabilities are not renormalised.

    Args:
      student_logits: unnormalised log-probabilities, `[..., num_classes]`.
      soft_labels: class probabilities that sum to 1, `[..., num_classes]`.
      where: which examples are valid, `[...]`. The loss and the gradient of every
        other example are exactly zero, even if its entries are not finite.

    Returns:
      The loss of each example in nats, `[...]`, in at least float32.

    Raises:
      ValueError: if the shapes differ or `where` does not fit them.
      TypeError: if an array is not floating-point, or `where` is not boolean.

    Examples:
      >>> import jax.numpy as jnp
      >>> from kdjax import losses
      >>> student_logits = jnp.array([2.0, 0.0, 0.0])
      >>> soft_labels = jnp.array([0.5, 0.5, 0.0])
      >>> print(f"{losses.soft_cross_entropy(student_logits, soft_labels):.4f}")
      1.2395

    References:
      Zhang et al., `mixup: Beyond Empirical Risk Minimization
      <https://arxiv.org/abs/1710.09412>`_, ICLR 2018, section 2.
    """
    _checks.check_logits(student_logits=student_logits, soft_labels=soft_labels)

    student_logits, soft_labels = _masking.drop_invalid(
        where, student_logits, soft_labels
    )
    loss = _numerics.cross_entropy(soft_labels, _numerics.log_probs(student_logits))
    return _masking.zero_invalid(where, loss)


def hard_target_loss(
    student_logits: Float[Array, "*batch classes"],
    teacher_logits: Float[Array, "*batch classes"],
    *,
    label_smoothing: ScalarLike = 0.0,
    where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
    r"""Cross-entropy of the student with the class that the teacher predicts.

    The teacher's decision :math:`\hat y = \arg\max_c z^t_c` stands in for the label,
    per augmented view of the image, so it may be right where the label no longer is:

    .. math::
      \ell = -(1 - \epsilon) \log p^s_{\hat y} - \frac{\epsilon}{C} \sum_c \log p^s_c

    It has no temperature, and no gradient in the teacher's logits. Between equal
    logits the first class is taken. Minimised by a confident student, so not zero
    where the student equals the teacher.

    Args:
      student_logits: unnormalised log-probabilities, `[..., num_classes]`.
      teacher_logits: unnormalised log-probabilities, `[..., num_classes]`.
      label_smoothing: the share of mass spread over all classes; from 0 to 1.
      where: which examples are valid, `[...]`. The loss and the gradient of every
        other example are exactly zero, even if its logits are not finite.

    Returns:
      The loss of each example in nats, `[...]`, in at least float32.

    Raises:
      ValueError: if the shapes differ, `where` does not fit them, or a concrete
        `label_smoothing` is not between 0 and 1.
      TypeError: if either array is not floating-point, or `where` is not boolean.

    Examples:
      >>> import jax.numpy as jnp
      >>> from kdjax import losses
      >>> student_logits = jnp.array([2.0, 0.0, 0.0])
      >>> print(losses.hard_target_loss(student_logits, student_logits).round(4))
      0.2395

    References:
      Touvron et al., `Training data-efficient image transformers & distillation
      through attention <https://arxiv.org/abs/2012.12877>`_, ICML 2021, equation 3.
    """
    _checks.check_logits(student_logits=student_logits, teacher_logits=teacher_logits)

    (teacher_logits,) = _masking.drop_invalid(where, teacher_logits)
    return cross_entropy(
        student_logits,
        jnp.argmax(teacher_logits, axis=-1),
        label_smoothing=label_smoothing,
        where=where,
    )


def virtual_teacher_loss(
    student_logits: Float[Array, "*batch classes"],
    labels: Int[Array, "*batch"],
    *,
    correct_prob: ScalarLike = 0.99,
    temperature: ScalarLike = 20.0,
    form: str = "paper",
    where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
    r"""Divergence of the student from a teacher made of the label alone.

    Teacher-free regularisation. The virtual teacher is right with probability
    :math:`a` and equally unsure among the other classes:

    .. math::
      \ell = \mathrm{KL}(p^d_\tau \,\|\, p^s_\tau), \qquad
      p^d_c = \begin{cases} a & c = y \\ (1 - a) / (C - 1) & c \ne y \end{cases}

    In form `'paper'` a temperature softens both: :math:`p^d_\tau \propto
    (p^d)^{1/\tau}`, :math:`p^s_\tau = \mathrm{softmax}(z^s / \tau)`. Form
    `'author_code'` is what the published tables were made with: it takes the
    *probabilities* of the teacher for logits, :math:`p^d_\tau =
    \mathrm{softmax}(p^d / \tau)`, nearly uniform, and leaves the student at
    temperature 1; their value is this over :math:`C`, times a multiplier. Neither
    has a factor :math:`\tau^2`.

    Args:
      student_logits: unnormalised log-probabilities, `[..., num_classes]`.
      labels: integer classes, `[...]`; NaN comes of a label that is no class.
      correct_prob: probability :math:`a` of the label; from 0 to 1.
      temperature: softens as `form` says; a positive scalar.
      form: `'paper'` or `'author_code'`.
      where: which examples are valid, `[...]`. The loss and the gradient of every
        other example are exactly zero, whatever its logits and label hold.

    Returns:
      The loss of each example in nats, `[...]`, in at least float32.

    Raises:
      ValueError: if shapes do not fit, there is one class only, `form` is unknown, a
        concrete temperature is not positive, or a concrete `correct_prob` is not
        between 0 and 1.
      TypeError: if the logits are not floating-point, the labels not integer, or
        `where` not boolean.

    Examples:
      >>> import jax.numpy as jnp
      >>> from kdjax import losses
      >>> student_logits = jnp.log(jnp.array([0.9, 0.05, 0.05]))
      >>> print(losses.virtual_teacher_loss(
      ...     student_logits, jnp.array(0), correct_prob=0.9).round(4))
      0.0

    References:
      Yuan et al., `Revisiting Knowledge Distillation via Label Smoothing
      Regularization <https://arxiv.org/abs/1909.11723>`_, CVPR 2020, section 4.
    """
    _checks.check_logits(student_logits=student_logits)
    _checks.check_num_classes(2, student_logits=student_logits)
    _checks.check_labels(student_logits, labels)
    _checks.check_fraction(correct_prob=correct_prob)
    _checks.check_positive(temperature=temperature)
    _checks.check_choice(("paper", "author_code"), form=form)

    (student_logits,) = _masking.drop_invalid(where, student_logits)
    labels = _masking.drop_invalid_labels(where, labels)
    (correct_prob,) = _numerics.scalars(student_logits, correct_prob)
    is_label = _numerics.is_label(student_logits, labels)
    num_others = student_logits.shape[-1] - 1
    probs = jnp.where(is_label, correct_prob, (1 - correct_prob) / num_others)
    if form == "paper":
        # An impossible class stays one at any temperature.
        impossible = probs == 0
        log_probs = jnp.log(jnp.where(impossible, 1, probs))
        virtual_logits = jnp.where(impossible, -jnp.inf, log_probs)
        student_temperature = temperature
    else:
        virtual_logits, student_temperature = probs, 1.0
    loss = _numerics.kl(
        _numerics.log_probs(virtual_logits, temperature),
        _numerics.log_probs(student_logits, student_temperature),
    )
    loss = _numerics.nan_unless_class(loss, labels, student_logits)
    return _masking.zero_invalid(where, loss)
