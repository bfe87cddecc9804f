"""Losses of the hidden states and attention scores of encoders, a value a token."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, ScalarLike

from kdjax.losses import _checks, _masking, _numerics


def tinybert_hidden_loss(
    student_hidden: Float[Array, "*batch dim"],
    teacher_hidden: Float[Array, "*batch dim"],
    *,
    where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
    r"""Mean squared difference of the hidden states of each token.

    .. math:: \ell = \frac{1}{D} \|h^s - h^t\|_2^2

    TinyBERT's loss of a layer's output and, as layer 0, of the embeddings. The
    student's states are mapped to the teacher's dimension before, by one matrix for
    all layers in the authors' code. Of :math:`M` student and :math:`N` teacher layers,
    student layer :math:`m` learns from :math:`m N / M`; the losses of all layers are
    added, each with weight 1. The authors average over padding as well, as one does
    by leaving `where` out.

    Args:
      student_hidden: mapped to the teacher's dimension, `[..., dim]`.
      teacher_hidden: of the same tokens, `[..., dim]`.
      where: which tokens are valid, `[...]`. The loss and the gradient of every other
        token are exactly zero, even if its hidden states are not finite.

    Returns:
      The loss of each token in squared feature units, `[...]`, in at least float32.

    Raises:
      ValueError: if the shapes differ, or `where` does not fit them.
      TypeError: if either array is not floating-point, or `where` is not boolean.

    Examples:
      >>> import jax.numpy as jnp
      >>> from kdjax import losses
      >>> student_hidden = jnp.array([[1.0, 2.0], [0.0, 0.0]])
      >>> teacher_hidden = jnp.array([[1.0, 0.0], [0.0, 0.0]])
      >>> print(losses.tinybert_hidden_loss(student_hidden, teacher_hidden))
      [2. 0.]

    References:
      Jiao et al., `TinyBERT: Distilling BERT for Natural Language Understanding
      <https://arxiv.org/abs/1909.10351>`_, EMNLP Findings 2020, section 3.
    """
    _check_hidden(student_hidden=student_hidden, teacher_hidden=teacher_hidden)

    student, teacher = _masking.drop_invalid(where, student_hidden, teacher_hidden)
    loss = jnp.mean((student - teacher) ** 2, axis=-1)
    return _masking.zero_invalid(where, loss)


def tinybert_attention_loss(
    student_scores: Float[Array, "*batch heads length length"],
    teacher_scores: Float[Array, "*batch heads length length"],
    *,
    form: str = "paper",
    where: Bool[Array, "*batch length"] | None = None,
) -> Float[Array, "*batch length"]:
    r"""Mean squared difference of the attention scores of each query.

    Of the scores :math:`A = Q K^\top / \sqrt{d}` before their softmax, which teach
    faster than after it: for query :math:`i`, over heads :math:`a` and keys :math:`j`,

    .. math::
      \ell_i = \frac{1}{H L} \sum_{a,j} (A^s_{aij} - A^t_{aij})^2

    :math:`L` counts the valid keys, those of `where`; the scores of the others, to
    which masks have added anything, play no part, nor do those at -inf on both sides.

    Form `'author_code'`: scores of at most -100, which a mask made, are set to 0 on
    each side, and :math:`L` counts padding; a true score below -100 is lost and a
    side whose mask is weaker is not. Without `where` its mean is the authors' value,
    padded queries included, which made the published tables.

    Couples the tokens of a sequence, but not the examples. Teacher layer
    :math:`m N / M` teaches student layer :math:`m`, and the losses of the layers are
    added, each with weight 1.

    Args:
      student_scores: before the softmax, `[..., num_heads, length, length]`, queries
        before keys.
      teacher_scores: of as many heads, `[..., num_heads, length, length]`.
      form: `'paper'` or `'author_code'`.
      where: which tokens are valid, as queries and as keys, `[..., length]`. The loss
        and the gradient of every other query, and the gradient of its scores as a
        key, are exactly zero, even if they are not finite.

    Returns:
      The loss of each query in squared scores, `[..., length]`, in at least float32.

    Raises:
      ValueError: if the shapes differ or are no attention, `where` does not fit them,
        or `form` is unknown.
      TypeError: if either array is not floating-point, or `where` is not boolean.

    Examples:
      >>> import jax.numpy as jnp
      >>> from kdjax import losses
      >>> student_scores = jnp.array([[[[1.0, 5.0], [3.0, 9.0]]]])
      >>> teacher_scores = jnp.zeros((1, 1, 2, 2))
      >>> where = jnp.array([[True, False]])  # The second token is padding.
      >>> print(losses.tinybert_attention_loss(
      ...     student_scores, teacher_scores, where=where))
      [[1. 0.]]

    References:
      Jiao et al., `TinyBERT: Distilling BERT for Natural Language Understanding
      <https://arxiv.org/abs/1909.10351>`_, EMNLP Findings 2020, section 3.
    """
    _check_scores(student_scores=student_scores, teacher_scores=teacher_scores)
    _checks.check_choice(("paper", "author_code"), form=form)
    *batch, num_heads, length, _ = student_scores.shape
    _checks.check_where(where, (*batch, length))

    student, teacher = _masking.drop_invalid(None, student_scores, teacher_scores)
    counts = jnp.ones(student.shape, jnp.bool_)
    if where is not None:
        valid = where[..., None, :, None] & where[..., None, None, :]
        counts = jnp.broadcast_to(valid, student.shape)
    if form == "paper":
        counts &= ~(jnp.isneginf(student) & jnp.isneginf(teacher))
        student, teacher = (jnp.where(counts, x, 0) for x in (student, teacher))
        number = jnp.sum(counts.astype(student.dtype), axis=(-3, -1))
    else:
        student, teacher = (
            jnp.where(counts & ~(x <= -1e2), x, 0) for x in (student, teacher)
        )
        number = jnp.asarray(num_heads * length, student.dtype)
    loss = jnp.sum((student - teacher) ** 2, axis=(-3, -1)) / jnp.maximum(number, 1)
    return _masking.zero_invalid(where, loss)


def tinybert_prediction_loss(
    student_logits: Float[Array, "*batch classes"],
    teacher_logits: Float[Array, "*batch classes"],
    *,
    temperature: ScalarLike = 1.0,
    form: str = "paper",
    where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
    r"""Cross-entropy of the student with the teacher's softened distribution.

    .. math::
      \ell = -\sum_c p^t_c \log p^s_c, \qquad p = \mathrm{softmax}(z / \tau)

    TinyBERT's loss of the prediction layer, with :math:`\tau = 1` and weight 1, in a
    stage of its own after those of the layers. It is `forward_kl` plus the teacher's
    entropy; no factor :math:`\tau^2` keeps the gradient's size.

    Form `'author_code'`: divided by the number of classes, as a mean over batch and
    classes is.

    Args:
      student_logits: unnormalised log-probabilities, `[..., num_classes]`.
      teacher_logits: unnormalised log-probabilities, `[..., num_classes]`.
      temperature: softens both distributions; a positive scalar.
      form: `'paper'` or `'author_code'`.
      where: which examples are valid, `[...]`. The loss and the gradient of every
        other example are exactly zero, even if its logits are not finite.

    Returns:
      The loss of each example in nats, `[...]`, in at least float32.

    Raises:
      ValueError: if the shapes differ, `where` does not fit them, `form` is unknown,
        or a concrete temperature is not positive.
      TypeError: if either array is not floating-point, or `where` is not boolean.

    Examples:
      >>> import jax.numpy as jnp
      >>> from kdjax import losses
      >>> logits = jnp.zeros(4)
      >>> print(losses.tinybert_prediction_loss(logits, logits).round(4))
      1.3863

    References:
      Jiao et al., `TinyBERT: Distilling BERT for Natural Language Understanding
      <https://arxiv.org/abs/1909.10351>`_, EMNLP Findings 2020, section 3.
    """
    _checks.check_logits(student_logits=student_logits, teacher_logits=teacher_logits)
    _checks.check_positive(temperature=temperature)
    _checks.check_choice(("paper", "author_code"), form=form)

    student_logits, teacher_logits = _masking.drop_invalid(
        where, student_logits, teacher_logits
    )
    target = jnp.exp(_numerics.log_probs(teacher_logits, temperature))
    student = _numerics.log_probs(student_logits, temperature)
    loss = _numerics.cross_entropy(target, student)
    if form == "author_code":
        loss = loss / student_logits.shape[-1]
    return _masking.zero_invalid(where, loss)


def patient_loss(
    student_hidden: Float[Array, "*batch dim"],
    teacher_hidden: Float[Array, "*batch dim"],
    *,
    where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
    r"""Squared distance of the directions of two hidden states.

    .. math::
      \ell = \left\| \frac{h^s}{\|h^s\|_2} - \frac{h^t}{\|h^t\|_2} \right\|_2^2

    Patient distillation compares the states of the [CLS] token in several layers, all
    but the last, either the teacher's last ones or every second. It is summed over
    the layers; the paper tries weights of 10, 100, 500 and 1000. A state of zeros has
    no direction: it stays zero, without a gradient.

    Args:
      student_hidden: of as many dimensions as the teacher's, `[..., dim]`.
      teacher_hidden: of the same tokens, `[..., dim]`.
      where: which vectors are valid, `[...]`. The loss and the gradient of every other
        one are exactly zero, even if it is not finite.

    Returns:
      The loss of each vector, without unit, from 0 to 4, `[...]`, in at least float32.

    Raises:
      ValueError: if the shapes differ, or `where` does not fit them.
      TypeError: if either array is not floating-point, or `where` is not boolean.

    Examples:
      >>> import jax.numpy as jnp
      >>> from kdjax import losses
      >>> print(losses.patient_loss(jnp.array([3.0, 0.0]), jnp.array([0.0, 5.0])))
      2.0

    References:
      Sun et al., `Patient Knowledge Distillation for BERT Model Compression
      <https://arxiv.org/abs/1908.09355>`_, EMNLP 2019, section 3.
    """
    _check_hidden(student_hidden=student_hidden, teacher_hidden=teacher_hidden)

    student, teacher = _masking.drop_invalid(where, student_hidden, teacher_hidden)
    difference = _direction(student) - _direction(teacher)
    return _masking.zero_invalid(where, jnp.sum(difference**2, axis=-1))


def hidden_cosine_loss(
    student_hidden: Float[Array, "*batch dim"],
    teacher_hidden: Float[Array, "*batch dim"],
    *,
    where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
    r"""One minus the cosine of the angle between two hidden states.

    .. math::
      \ell = 1 - \frac{\langle h^s, h^t \rangle}{\|h^s\|_2 \, \|h^t\|_2}

    DistilBERT aligns the last hidden states of each token so, with weight 1 beside 5
    for `soft_target_loss` at :math:`\tau = 2` and 2 for masked language modelling.
    Half of `patient_loss`, by which it is computed so that nothing cancels where the
    two agree; with a state of zeros it is 1, without a gradient.

    Args:
      student_hidden: of as many dimensions as the teacher's, `[..., dim]`.
      teacher_hidden: of the same tokens, `[..., dim]`.
      where: which tokens are valid, `[...]`. The loss and the gradient of every other
        token are exactly zero, even if its hidden states are not finite.

    Returns:
      The loss of each token, without unit, from 0 to 2, `[...]`, in at least float32.

    Raises:
      ValueError: if the shapes differ, or `where` does not fit them.
      TypeError: if either array is not floating-point, or `where` is not boolean.

    Examples:
      >>> import jax.numpy as jnp
      >>> from kdjax import losses
      >>> print(losses.hidden_cosine_loss(
      ...     jnp.array([[3.0, 0.0], [1.0, 1.0]]),
      ...     jnp.array([[0.0, 5.0], [1.0, 0.0]])).round(4))
      [1.     0.2929]

    References:
      Sanh et al., `DistilBERT, a distilled version of BERT
      <https://arxiv.org/abs/1910.01108>`_, 2019, section 2.
    """
    _check_hidden(student_hidden=student_hidden, teacher_hidden=teacher_hidden)

    student, teacher = _masking.drop_invalid(where, student_hidden, teacher_hidden)
    difference = _direction(student) - _direction(teacher)
    loss = 0.5 * jnp.sum(difference**2, axis=-1)
    is_zero = jnp.all(student == 0, axis=-1) | jnp.all(teacher == 0, axis=-1)
    is_zero &= ~jnp.isnan(loss)  # Which is not to be hidden.
    return _masking.zero_invalid(where, jnp.where(is_zero, 1, loss))


def _direction(x: jax.Array) -> jax.Array:
    """Rows of length 1; a row of zeros stays so, with a gradient of zero."""
    length = _numerics.norm(x)[..., None]
    is_zero = length == 0
    return jnp.where(is_zero, 0, x / jnp.where(is_zero, 1, length))


def _check_hidden(**arrays: jax.Array) -> None:
    """Raises, naming every argument, unless all are floating and of one shape.

    Raises:
      TypeError: if an array is not floating-point.
      ValueError: if shapes differ, or there is no dimension.
    """
    for name, x in arrays.items():
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise TypeError(f"Expected floating-point {name}, got {x.dtype}.")
        if x.ndim == 0 or x.shape[-1] == 0:
            raise ValueError(f"Expected {name} [..., dim], got {x.shape}.")
    if len({x.shape for x in arrays.values()}) > 1:
        found = ", ".join(f"{name} {x.shape}" for name, x in arrays.items())
        raise ValueError(
            f"Expected arguments of one shape, got {found}: map the student to the "
            "teacher's dimension first?"
        )


def _check_scores(**arrays: jax.Array) -> None:
    """Raises unless all are floating, `[..., heads, length, length]`, of one shape."""
    for name, x in arrays.items():
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise TypeError(f"Expected floating-point {name}, got {x.dtype}.")
        if x.ndim < 3 or x.shape[-1] != x.shape[-2]:
            raise ValueError(
                f"Expected {name} [..., num_heads, length, length], got {x.shape}."
            )
    if len({x.shape for x in arrays.values()}) > 1:
        found = ", ".join(f"{name} {x.shape}" for name, x in arrays.items())
        raise ValueError(
            f"Expected arguments of one shape, got {found}: has one of the models more "
            "heads? minilm_relation_loss takes any number."
        )
