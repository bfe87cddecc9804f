"""Losses of the tokens of language models: MiniLLM, ULD and minifinetuning."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, ScalarLike

from kdjax.losses import _checks, _masking, _numerics


def minillm_step_loss(
    student_logits: Float[Array, "*batch classes"],
    teacher_logits: Float[Array, "*batch classes"],
    labels: Int[Array, "*batch"],
    *,
    teacher_share: ScalarLike = 0.2,
    where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
    r"""Reverse divergence at a token drawn from a mixture of teacher and student.

    The single-step part of MiniLLM's policy gradient, taken over the whole vocabulary
    rather than the token drawn, which lowers its variance:

    .. math::
      \ell = \mathrm{sg}[w] \, \mathrm{KL}(p^s \,\|\, p^t), \qquad
      w = \frac{p^s_y}{\alpha p^t_y + (1 - \alpha) p^s_y}

    The text is drawn from the mixture, so that the student cannot reward itself for
    degenerate text, and :math:`w` corrects for it, as the paper's approximation does,
    by the token at hand alone. It is not differentiated (:math:`\mathrm{sg}`), and 1
    at :math:`\alpha = 0`. The other part, of the later tokens' reward, is a policy
    gradient and not a function of two arrays. The paper mixes 0.2 of the teacher.

    Args:
      student_logits: unnormalised log-probabilities, `[..., num_classes]`.
      teacher_logits: unnormalised log-probabilities, `[..., num_classes]`.
      labels: the tokens drawn, `[...]`. One that is no class gives NaN.
      teacher_share: of the teacher in the mixture, :math:`\alpha`; from 0 to 1.
      where: which tokens are valid, `[...]`. The loss and the gradient of every other
        token are exactly zero, whatever its logits and label hold.

    Returns:
      The loss of each token in nats, `[...]`, in at least float32.

    Raises:
      ValueError: if shapes do not fit, or a concrete `teacher_share` is not between 0
        and 1.
      TypeError: if the logits are not floating-point, the labels not integer, or
        `where` not boolean.

    Examples:
      >>> import jax.numpy as jnp
      >>> from kdjax import losses
      >>> student_logits = jnp.log(jnp.array([0.5, 0.5]))
      >>> teacher_logits = jnp.log(jnp.array([0.9, 0.1]))
      >>> print(losses.minillm_step_loss(
      ...     student_logits, teacher_logits, jnp.array(0), teacher_share=0.5).round(4))
      0.3649

    References:
      Gu et al., `MiniLLM: Knowledge Distillation of Large Language Models
      <https://arxiv.org/abs/2306.08543>`_, ICLR 2024, section 2.2.
    """
    _checks.check_logits(student_logits=student_logits, teacher_logits=teacher_logits)
    _checks.check_labels(student_logits, labels)
    _checks.check_fraction(teacher_share=teacher_share)

    student_logits, teacher_logits = _masking.drop_invalid(
        where, student_logits, teacher_logits
    )
    labels = _masking.drop_invalid_labels(where, labels)
    student = _numerics.log_probs(student_logits)
    teacher = _numerics.log_probs(teacher_logits)
    mixture = _numerics.log_mixture(student, teacher, teacher_share)
    drawn, proposed = (_numerics.at_label(x, labels) for x in (student, mixture))
    weight = jax.lax.stop_gradient(jnp.exp(drawn - proposed))
    loss = weight * _numerics.kl(student, teacher)
    return _masking.zero_invalid(where, loss)


def uld_loss(
    student_logits: Float[Array, "*batch student_classes"],
    teacher_logits: Float[Array, "*batch teacher_classes"],
    *,
    student_temperature: ScalarLike = 1.0,
    teacher_temperature: ScalarLike = 1.0,
    where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
    r"""Sum of the differences of the sorted probabilities of two vocabularies.

    Universal logit distillation: without a common vocabulary, only how the mass is
    spread can be compared. With :math:`p_{(v)}` the :math:`v`-th largest probability,
    0 beyond the smaller vocabulary,

    .. math::
      \ell = \sum_v |p^s_{(v)} - p^t_{(v)}|, \qquad p = \mathrm{softmax}(z / \tau)

    the Wasserstein distance for equal costs of all moves. Its gradient is zero, a
    choice, where the two are equal. The two answers are aligned token by token, and
    only as far as the shorter one. The paper weighs it 1.5, beside a cross-entropy of
    weight 1; the authors' code takes 1.

    Args:
      student_logits: unnormalised log-probabilities, `[..., num_student_classes]`.
      teacher_logits: unnormalised log-probabilities, `[..., num_teacher_classes]`.
      student_temperature: softens the student; a positive scalar.
      teacher_temperature: softens the teacher; a positive scalar.
      where: which tokens are valid, on both sides, `[...]`. The loss and the gradient
        of every other token are exactly zero, even if its logits are not finite.

    Returns:
      The distance of each token, from 0 to 2, `[...]`, in at least float32.

    Raises:
      ValueError: if the shapes differ in more than the classes, `where` does not fit
        them, or a concrete temperature is not positive.
      TypeError: if either array is not floating-point, or `where` is not boolean.

    Examples:
      >>> import jax.numpy as jnp
      >>> from kdjax import losses
      >>> student_logits = jnp.log(jnp.array([0.1, 0.9]))
      >>> teacher_logits = jnp.log(jnp.array([0.7, 0.1, 0.2]))
      >>> print(f"{losses.uld_loss(student_logits, teacher_logits):.4f}")
      0.4000

    References:
      Boizard et al., `Towards Cross-Tokenizer Distillation: the Universal Logit
      Distillation Loss for LLMs <https://arxiv.org/abs/2402.12030>`_, TMLR 2025,
      section 3.
    """
    _checks.check_logits(student_logits=student_logits)
    _checks.check_logits(teacher_logits=teacher_logits)
    if student_logits.shape[:-1] != teacher_logits.shape[:-1]:
        raise ValueError(
            "Expected logits of as many tokens, got student_logits "
            f"{student_logits.shape} and teacher_logits {teacher_logits.shape}: cut "
            "both answers to the shorter one?"
        )
    _checks.check_positive(
        student_temperature=student_temperature, teacher_temperature=teacher_temperature
    )

    student_logits, teacher_logits = _masking.drop_invalid(
        where, student_logits, teacher_logits
    )
    size = max(student_logits.shape[-1], teacher_logits.shape[-1])
    student = _sorted_probs(student_logits, student_temperature, size)
    teacher = _sorted_probs(teacher_logits, teacher_temperature, size)
    distance = jnp.sum(_numerics.absolute(student - teacher), axis=-1)
    return _masking.zero_invalid(where, distance)


def _sorted_probs(logits: jax.Array, temperature: ScalarLike, size: int) -> jax.Array:
    """Probabilities, the largest first, and zeros up to `size`."""
    probs = jnp.exp(_numerics.log_probs(logits, temperature))
    probs = jnp.sort(probs, axis=-1, descending=True)
    missing = size - probs.shape[-1]
    return jnp.pad(probs, [(0, 0)] * (probs.ndim - 1) + [(0, missing)])


def mft_loss(
    student_logits: Float[Array, "*batch classes"],
    teacher_logits: Float[Array, "*batch classes"],
    labels: Int[Array, "*batch"],
    *,
    margin: ScalarLike = 0.2,
    temperature: ScalarLike = 1.0,
    where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
    r"""Divergence from a teacher corrected towards the label, as little as needed.

    Minifinetuning: the model before finetuning teaches it, after as much of the
    label's mass is mixed in as makes the label win by a margin :math:`m`:

    .. math::
      \ell = \tau^2 \, \mathrm{KL}(\mathrm{sg}[q] \,\|\, p^s), \qquad
      q = (1 - \mu) p^t + \mu e_y, \qquad p = \mathrm{softmax}(z / \tau)

    With :math:`a` the teacher's most probable class,

    .. math::
      \mu = \frac{p^t_a - p^t_y + m}{1 + p^t_a - p^t_y} \text{ if } a \ne y,
      \text{ else } \frac{\min(p^t_y + m, 1) - p^t_y}{1 - p^t_y}

    so that :math:`q_y = q_a + m` where the teacher was wrong and, where it was right,
    :math:`m` more than it was. Denominators have the 1e-7 of the authors' code. The
    target is not differentiated (:math:`\mathrm{sg}`). The paper's margin is 0.2.

    Args:
      student_logits: unnormalised log-probabilities, `[..., num_classes]`.
      teacher_logits: unnormalised log-probabilities, `[..., num_classes]`.
      labels: integer classes, `[...]`. One that is no class gives NaN.
      margin: by how much the label must win, :math:`m`; from 0 to 1.
      temperature: softens both distributions; a positive scalar.
      where: which tokens are valid, `[...]`. The loss and the gradient of every other
        token are exactly zero, whatever its logits and label hold.

    Returns:
      The loss of each token in nats, `[...]`, in at least float32.

    Raises:
      ValueError: if shapes do not fit, a concrete temperature is not positive, or a
        concrete `margin` is not between 0 and 1.
      TypeError: if the logits are not floating-point, the labels not integer, or
        `where` not boolean.

    Examples:
      >>> import jax.numpy as jnp
      >>> from kdjax import losses
      >>> student_logits = jnp.log(jnp.array([0.4, 0.6]))
      >>> teacher_logits = jnp.log(jnp.array([0.8, 0.2]))  # Target: 0.4 and 0.6.
      >>> print(losses.mft_loss(
      ...     student_logits, teacher_logits, jnp.array(1)).round(4))
      0.0

    References:
      Belcak et al., `Minifinetuning: Low-Data Generation Domain Adaptation through
      Corrective Self-Distillation <https://arxiv.org/abs/2506.15702>`_, 2025, and the
      authors' code.
    """
    _checks.check_logits(student_logits=student_logits, teacher_logits=teacher_logits)
    _checks.check_labels(student_logits, labels)
    _checks.check_positive(temperature=temperature)
    _checks.check_fraction(margin=margin)

    student_logits, teacher_logits = _masking.drop_invalid(
        where, student_logits, teacher_logits
    )
    labels = _masking.drop_invalid_labels(where, labels)
    temperature, margin = _numerics.scalars(student_logits, temperature, margin)
    teacher = _numerics.log_probs(teacher_logits, temperature)
    share = _correction(jnp.exp(teacher), labels, margin)[..., None]
    label = jax.nn.one_hot(labels, teacher.shape[-1], dtype=teacher.dtype)
    target = (1 - share) * jnp.exp(teacher) + share * label
    student = _numerics.log_probs(student_logits, temperature)
    target = jax.lax.stop_gradient(jnp.log(target))
    divergence = _numerics.kl(target, student)
    return _masking.zero_invalid(where, temperature**2 * divergence)


def _correction(
    teacher_probs: jax.Array, labels: jax.Array, margin: jax.Array
) -> jax.Array:
    """The share of the label to mix in; NaN if it is no class."""
    of_label = _numerics.at_label(teacher_probs, labels)
    largest = jnp.max(teacher_probs, axis=-1)
    gap = largest - of_label
    wrong = (gap + margin) / (1 + gap + 1e-7)
    raised = jnp.where(of_label > 1 - margin, 1, of_label + margin)
    right = (raised - largest) / (1 - largest + 1e-7)
    top = jnp.argmax(teacher_probs, axis=-1)
    is_right = top == labels.astype(top.dtype)
    return jnp.where(is_right, right, wrong)
