"""Losses that relate the predictions for the examples of a batch to each other."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, ScalarLike

from kdjax.losses import _checks, _masking, _numerics


def dist_loss(
    student_logits: Float[Array, "batch classes"],
    teacher_logits: Float[Array, "batch classes"],
    *,
    inter_weight: ScalarLike = 1.0,
    intra_weight: ScalarLike = 1.0,
    temperature: ScalarLike = 1.0,
    where: Bool[Array, " batch"] | None = None,
) -> Float[Array, " batch"]:
    r"""Correlations of probabilities, over the classes and over the batch.

    A strong teacher's exact probabilities are more than a small student can match;
    their relations are enough. With :math:`P` the batch's probabilities, one row an
    example, and :math:`\rho` Pearson's correlation:

    .. math::
      \ell_b = \beta \tau^2 \bigl(1 - \rho(P^s_{b:}, P^t_{b:})\bigr)
        + \gamma \tau^2 \Bigl(1 - \frac{1}{C} \sum_c \rho(P^s_{:c}, P^t_{:c})\Bigr)_b,
      \qquad P = \mathrm{softmax}(z / \tau)

    The first relates the classes of an example, the second the examples as each
    class sees them. Couples examples: a correlation over the batch is one minus half
    the squared distance of two unit vectors, and the part of example :math:`b` is its
    summand times the batch size, so that the mean of the losses is the paper's
    value. No part is negative, and all are zero, up to the small constant below,
    where the student's probabilities are a line of positive slope of the teacher's.

    The product of the vectors' lengths has 1e-8 added, as in the authors' code: a
    class that no example of the batch shows has a correlation of rounding errors,
    which this fades out. Where all examples, or classes, are equal, the correlation
    is 0 and has no gradient.

    Args:
      student_logits: unnormalised log-probabilities, `[batch, num_classes]`.
      teacher_logits: unnormalised log-probabilities, `[batch, num_classes]`.
      inter_weight: the weight :math:`\beta` of the relations between classes.
      intra_weight: the weight :math:`\gamma` of the relations within a class.
      temperature: softens both distributions; a positive scalar.
      where: which examples are valid, `[batch]`. The loss and the gradient of every
        other example are exactly zero, and it takes part in no correlation.

    Returns:
      The loss of each example, without unit, `[batch]`, in at least float32.

    Raises:
      ValueError: if the shapes differ, `where` does not fit them, or a concrete
        temperature is not positive.
      TypeError: if either array is not floating-point, or `where` is not boolean.

    Examples:
      >>> import jax.numpy as jnp
      >>> from kdjax import losses
      >>> student_logits = jnp.array([[2.0, 0.0], [0.0, 2.0]])
      >>> teacher_logits = jnp.array([[0.0, 2.0], [2.0, 0.0]])  # Anti-correlated.
      >>> print(losses.dist_loss(student_logits, teacher_logits).round(4))
      [4. 4.]

    References:
      Huang et al., `Knowledge Distillation from A Stronger Teacher
      <https://arxiv.org/abs/2205.10536>`_, NeurIPS 2022, equations 8 to 10.
    """
    _checks.check_logits(student_logits=student_logits, teacher_logits=teacher_logits)
    _checks.check_positive(temperature=temperature)

    student_logits, teacher_logits = _masking.drop_invalid(
        where, student_logits, teacher_logits
    )
    temperature, inter_weight, intra_weight = _numerics.scalars(
        student_logits, temperature, inter_weight, intra_weight
    )
    student = jnp.exp(_numerics.log_probs(student_logits, temperature))
    teacher = jnp.exp(_numerics.log_probs(teacher_logits, temperature))
    inter = jnp.sum(_decorrelation(student, teacher), axis=-1)
    parts = jnp.mean(_decorrelation(student.T, teacher.T, where), axis=0)
    intra = _masking.num_valid(where, student) * parts
    loss = temperature**2 * (inter_weight * inter + intra_weight * intra)
    return _masking.zero_invalid(where, loss)


def _decorrelation(
    x: jax.Array, y: jax.Array, where: jax.Array | None = None
) -> jax.Array:
    """Summands, none negative, of 1 - correlation of each row of `x` and of `y`."""
    valid = jnp.ones(x.shape[1:], x.dtype) if where is None else where.astype(x.dtype)
    valid = valid[None]
    count = jnp.maximum(jnp.sum(valid), 1)
    x, y = (
        valid * (v - jnp.sum(valid * v, axis=-1, keepdims=True) / count) for v in (x, y)
    )
    lengths = [_numerics.norm(v)[:, None] for v in (x, y)]
    x, y = (
        v / jnp.where(length > 0, length, 1)
        for v, length in zip((x, y), lengths, strict=True)
    )
    product = lengths[0] * lengths[1]
    share = product / (product + 1e-8)
    return 0.5 * share * (x - y) ** 2 + valid * (1 - share) / count


def mlkd_loss(
    student_logits: Float[Array, "batch classes"],
    teacher_logits: Float[Array, "batch classes"],
    *,
    temperatures: tuple[ScalarLike, ...] = (2.0, 3.0, 4.0, 5.0, 6.0),
    form: str = "paper",
    where: Bool[Array, " batch"] | None = None,
) -> Float[Array, " batch"]:
    r"""Divergences and Gram matrices of predictions at several temperatures.

    Multi-level logit distillation: of instances, of the batch (which examples are
    alike) and of the classes (which are confused). With :math:`P = \mathrm{softmax}
    (z / \tau)`, one row an example, :math:`G = P P^\top` and :math:`M = P^\top P`:

    .. math::
      \ell_b = \sum_\tau \Bigl[ m_b \tau^2 \, \mathrm{KL}(P^t_{b:} \,\|\, P^s_{b:})
        + m_b \sum_j (G^s_{bj} - G^t_{bj})^2
        + \frac{1}{C} \sum_{c,d} k_c (M^s_{cd} - M^t_{cd})^2 \Bigr]

    :math:`m_b` is 1 for the half of the batch that the teacher is less sure of, by
    its largest probability at :math:`\tau = 1`, else 0; :math:`k_c` likewise for the
    half of the classes that it gives less mass in this batch. The thresholds are
    medians, and whoever is at the median is in.

    Form `'author_code'`: there the three are means over the batch already when the
    masks meet them, so :math:`m` and :math:`k` are their means, about 1/2, for all.
    That made the published tables, on weakly augmented images, plus `soft_target_loss`
    on strongly augmented ones at the temperatures 3, 4, 5 and, by a slip, on the weak
    ones again at 2 and 6. Couples examples: in the Gram matrices and the medians; the
    term of the classes is the same for every example.

    Args:
      student_logits: unnormalised log-probabilities, `[batch, num_classes]`.
      teacher_logits: unnormalised log-probabilities, `[batch, num_classes]`.
      temperatures: each softens both distributions; positive scalars.
      form: `'paper'` or `'author_code'`.
      where: which examples are valid, `[batch]`. The loss and the gradient of every
        other example are exactly zero, and it is in no matrix and no median.

    Returns:
      The loss of each example in nats and squared probabilities, `[batch]`, in at
      least float32.

    Raises:
      ValueError: if the shapes differ, `where` does not fit them, `form` is unknown,
        or a concrete temperature is not positive.
      TypeError: if either array is not floating-point, or `where` is not boolean.

    Examples:
      >>> import jax.numpy as jnp
      >>> from kdjax import losses
      >>> student_logits = jnp.zeros((1, 2))  # log(2) + 1/4 + 1/16
      >>> teacher_logits = jnp.array([[200.0, 0.0]])
      >>> print(losses.mlkd_loss(
      ...     student_logits, teacher_logits, temperatures=(1.0,)).round(4))
      [1.0056]

    References:
      Jin et al., `Multi-Level Logit Distillation
      <https://openaccess.thecvf.com/content/CVPR2023/html/Jin_Multi-Level_Logit_Distillation_CVPR_2023_paper.html>`_,
      CVPR 2023, section 3.
    """
    _checks.check_logits(student_logits=student_logits, teacher_logits=teacher_logits)
    for temperature in temperatures:
        _checks.check_positive(temperatures=temperature)
    _checks.check_choice(("paper", "author_code"), form=form)

    student_logits, teacher_logits = _masking.drop_invalid(
        where, student_logits, teacher_logits
    )
    example_mask, class_mask = _unsure(teacher_logits, where)
    if form == "author_code":
        example_mask = jnp.sum(example_mask) / _masking.num_valid(where, example_mask)
        class_mask = jnp.mean(class_mask)
    loss = jnp.zeros_like(student_logits[:, 0])
    for temperature in _numerics.scalars(student_logits, *temperatures):
        student = _numerics.log_probs(student_logits, temperature)
        teacher = _numerics.log_probs(teacher_logits, temperature)
        of_examples, of_classes = _gram_differences(student, teacher, where)
        instance = temperature**2 * _numerics.kl(teacher, student)
        loss += example_mask * (instance + of_examples)
        loss += jnp.mean(class_mask * of_classes)
    return _masking.zero_invalid(where, loss)


def _unsure(
    teacher_logits: jax.Array, where: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    """Ones for the examples, and for the classes, of the less sure half, else 0."""
    log_probs = _numerics.log_probs(teacher_logits)
    probs = jnp.exp(log_probs)
    valid = jnp.ones(probs.shape[:1], bool) if where is None else where
    confidence = jnp.exp(jnp.max(log_probs, axis=-1))
    # The quantile of nothing is NaN, and warns of it.
    known = (
        jnp.where(valid, confidence, jnp.nan)
        .at[0]
        .set(jnp.where(jnp.any(valid), jnp.where(valid[0], confidence[0], jnp.nan), 0))
    )
    examples = valid & (confidence <= jnp.nanmedian(known))
    mass = jnp.sum(jnp.where(valid[:, None], probs, 0), axis=0)
    classes = mass <= jnp.median(mass)
    return examples.astype(probs.dtype), classes.astype(probs.dtype)


def _gram_differences(
    student: jax.Array, teacher: jax.Array, where: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    """Squared differences of the Gram matrices, summed over rows: `[B]`, `[C]`."""
    student, teacher = _masking.drop_invalid(where, jnp.exp(student), jnp.exp(teacher))
    of_examples = jnp.sum((student @ student.T - teacher @ teacher.T) ** 2, axis=-1)
    of_classes = jnp.sum((student.T @ student - teacher.T @ teacher) ** 2, axis=-1)
    return of_examples, of_classes
