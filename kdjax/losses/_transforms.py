"""What may be done to logits, or to a gradient, before a loss."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray, ScalarLike

from kdjax.losses import _checks, _masking, _numerics


def standardize_logits(
    logits: Float[Array, "*batch classes"],
    *,
    where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch classes"]:
    r"""Logits with mean 0 and standard deviation 1 over the classes.

    Applied to both sides before any other loss of logits, so that the student need
    not match the teacher's range, only its order and proportions:

    .. math::
      \mathcal{Z}(z)_c = \frac{z_c - \bar z}{10^{-7} + \sigma(z)}, \qquad
      \sigma^2(z) = \frac{1}{C - 1} \sum_c (z_c - \bar z)^2

    The deviation is the unbiased one, as PyTorch's default in the authors' code;
    NumPy's and JAX's default would be 5.4 % smaller for 10 classes. Gradients flow
    through mean and deviation. Equal logits become zeros, with zero gradient. A
    class at -inf stays there and is left out of mean and deviation. The authors then
    use a base temperature of 2 and weigh the term 9.

    Args:
      logits: unnormalised log-probabilities, `[..., num_classes]`.
      where: which examples are valid, `[...]`. All other rows are zeros with zero
        gradient, even if they are not finite.

    Returns:
      The standardised logits, `[..., num_classes]`, in at least float32.

    Raises:
      ValueError: if `where` does not fit the logits.
      TypeError: if the logits are not floating-point, or `where` is not boolean.

    Examples:
      >>> import jax.numpy as jnp
      >>> from kdjax import losses
      >>> print(losses.standardize_logits(jnp.array([10.0, 20.0, 30.0])))
      [-1.  0.  1.]

    References:
      Sun et al., `Logit Standardization in Knowledge Distillation
      <https://arxiv.org/abs/2403.01427>`_, CVPR 2024, equation 12.
    """
    _checks.check_logits(logits=logits)

    (logits,) = _masking.drop_invalid(where, logits)
    is_class = ~jnp.isneginf(logits)
    known = jnp.where(is_class, logits, 0)
    count = jnp.sum(is_class, axis=-1, keepdims=True, dtype=logits.dtype)
    mean = jnp.sum(known, axis=-1, keepdims=True) / jnp.maximum(count, 1)
    centred = jnp.where(is_class, known - mean, 0)
    deviation = _numerics.norm(centred)[..., None] / jnp.sqrt(jnp.maximum(count - 1, 1))
    return jnp.where(is_class, centred / (1e-7 + deviation), -jnp.inf)


def permute_non_argmax(
    teacher_logits: Float[Array, "*batch classes"], rng: PRNGKeyArray
) -> Float[Array, "*batch classes"]:
    """Logits with all but the largest shuffled among the other classes.

    Dark knowledge with permuted predictions, a control for born-again networks: the
    teacher keeps its prediction and how sure of it it is, and loses what it knows of
    which classes are alike. Pass the result to `soft_target_loss` or `forward_kl`.
    Each example has a permutation of its own, uniformly drawn; of equal largest
    logits the first stays.

    Args:
      teacher_logits: unnormalised log-probabilities, `[..., num_classes]`.
      rng: a key for this use, of which one is derived for each example.

    Returns:
      The permuted logits, `[..., num_classes]`, in their own dtype.

    Raises:
      TypeError: if the logits are not floating-point.
      ValueError: if they have no axis of classes.

    Examples:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from kdjax import losses
      >>> teacher_logits = jnp.array([0.0, 9.0, 1.0, 2.0])
      >>> permuted = losses.permute_non_argmax(teacher_logits, jax.random.key(0))
      >>> print(permuted[1], jnp.sort(permuted))
      9.0 [0. 1. 2. 9.]

    References:
      Furlanello et al., `Born-Again Neural Networks
      <https://arxiv.org/abs/1805.04770>`_, ICML 2018, equation 10.
    """
    _checks.check_logits(teacher_logits=teacher_logits)

    num_classes = teacher_logits.shape[-1]
    rows = teacher_logits.reshape(-1, num_classes)

    def permute(row: jax.Array, rng: jax.Array) -> jax.Array:
        largest = jnp.argmax(row)
        # Both begin with the largest; then the others, in a random order and in theirs.
        drawn = jnp.argsort(jax.random.uniform(rng, row.shape).at[largest].set(-1))
        places = jnp.argsort(jnp.arange(num_classes).at[largest].set(-1))
        return row.at[places].set(row[drawn])

    permuted = jax.vmap(permute)(rows, jax.random.split(rng, len(rows)))
    return permuted.reshape(teacher_logits.shape)


@jax.custom_jvp
def _reverse(x: jax.Array, scale: jax.Array) -> jax.Array:
    del scale
    return x


@_reverse.defjvp
def _reverse_jvp(primals: tuple, tangents: tuple) -> tuple:
    return primals[0], -primals[1] * tangents[0]


def reverse_gradient(
    x: Float[Array, "*shape"], *, scale: ScalarLike = 1.0
) -> Float[Array, "*shape"]:
    r"""The identity, whose gradient is multiplied by a negative number.

    .. math:: y = x, \qquad \frac{\partial y}{\partial x} := -\lambda

    One optimizer then minimises a loss in the student and maximises it in `x`:
    curriculum temperature makes the task harder by :math:`\tau = 1 + 20 \,
    \sigma(\mathrm{reverse}(\theta))`, with :math:`\lambda` rising from 0 to 1 by half
    a cosine over the first 10 epochs.

    Args:
      x: any floating-point array.
      scale: the factor :math:`\lambda`; zero stops the gradient. It has none itself.

    Returns:
      `x`.

    Raises:
      TypeError: if `x` is not floating-point.

    Examples:
      >>> import jax
      >>> from kdjax import losses
      >>> print(jax.grad(lambda x: losses.reverse_gradient(x, scale=0.5) ** 2)(3.0))
      -3.0

    References:
      Ganin and Lempitsky, `Unsupervised Domain Adaptation by Backpropagation
      <https://arxiv.org/abs/1409.7495>`_, ICML 2015, section 3.2; as used by Li et
      al., `Curriculum Temperature for Knowledge Distillation
      <https://arxiv.org/abs/2211.16231>`_, AAAI 2023, section 3.2.
    """
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"Expected floating-point x, got {x.dtype}.")
    return _reverse(x, *_numerics.scalars(x, scale))


def taid_target(
    student_logits: Float[Array, "*batch classes"],
    teacher_logits: Float[Array, "*batch classes"],
    *,
    interpolation: ScalarLike,
    where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch classes"]:
    r"""Logits on the way from the student's own to the teacher's.

    .. math:: z = (1 - t) \, \mathrm{sg}[z^s] + t \, z^t

    An intermediate teacher, never further from the student than it can learn. The
    student's part is not differentiated (:math:`\mathrm{sg}`). Any loss of logits
    takes the result in the teacher's place.

    Args:
      student_logits: unnormalised log-probabilities, `[..., num_classes]`.
      teacher_logits: unnormalised log-probabilities, `[..., num_classes]`.
      interpolation: how far on the way, :math:`t`; from 0 to 1, growing in training.
      where: which examples are valid, `[...]`. All other rows are zeros with zero
        gradient, even if they are not finite.

    Returns:
      The target's logits, `[..., num_classes]`, in at least float32.

    Raises:
      ValueError: if the shapes differ, `where` does not fit them, or a concrete
        `interpolation` is not between 0 and 1.
      TypeError: if either array is not floating-point, or `where` is not boolean.

    Examples:
      >>> import jax.numpy as jnp
      >>> from kdjax import losses
      >>> print(losses.taid_target(
      ...     jnp.array([0.0, 4.0]), jnp.array([8.0, 0.0]), interpolation=0.25))
      [2. 3.]

    References:
      Shing et al., `TAID: Temporally Adaptive Interpolated Distillation
      <https://arxiv.org/abs/2501.16937>`_, ICLR 2025, equation 3.
    """
    _checks.check_logits(student_logits=student_logits, teacher_logits=teacher_logits)
    _checks.check_fraction(interpolation=interpolation)

    student_logits, teacher_logits = _masking.drop_invalid(
        where, student_logits, teacher_logits
    )
    (interpolation,) = _numerics.scalars(student_logits, interpolation)
    student_logits = jax.lax.stop_gradient(student_logits)
    # A class at -inf on a side that has a share stays there: not 0 * inf.
    excluded = jnp.isneginf(student_logits) & (interpolation < 1)
    excluded |= jnp.isneginf(teacher_logits) & (interpolation > 0)
    student_logits, teacher_logits = (
        jnp.where(jnp.isneginf(x), 0, x) for x in (student_logits, teacher_logits)
    )
    mixed = (1 - interpolation) * student_logits + interpolation * teacher_logits
    return jnp.where(excluded, -jnp.inf, mixed)


def taid_loss(
    student_logits: Float[Array, "*batch classes"],
    teacher_logits: Float[Array, "*batch classes"],
    *,
    interpolation: ScalarLike,
    where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
    r"""Cross-entropy of the student with a target on its way to the teacher.

    .. math::
      \ell = -\sum_c q_c \log p^s_c, \qquad
      q = \mathrm{softmax}\bigl((1 - t) \, \mathrm{sg}[z^s] + t \, z^t\bigr)

    The target is `taid_target`. Cross-entropy, not divergence: the value, by whose
    relative change the authors advance :math:`t`, includes the target's entropy. The
    gradient is that of the divergence, zero where the student equals the teacher
    and, for the target follows the student, at :math:`t = 0`.

    Args:
      student_logits: unnormalised log-probabilities, `[..., num_classes]`.
      teacher_logits: unnormalised log-probabilities, `[..., num_classes]`.
      interpolation: how far on the way, :math:`t`; from 0 to 1, growing in training.
      where: which examples are valid, `[...]`. The loss and the gradient of every
        other example are exactly zero, even if its logits are not finite.

    Returns:
      The loss of each example in nats, `[...]`, in at least float32.

    Raises:
      ValueError: if the shapes differ, `where` does not fit them, or a concrete
        `interpolation` is not between 0 and 1.
      TypeError: if either array is not floating-point, or `where` is not boolean.

    Examples:
      >>> import jax.numpy as jnp
      >>> from kdjax import losses
      >>> logits = jnp.array([0.0, 0.0])
      >>> print(losses.taid_loss(logits, logits, interpolation=0.5).round(4))
      0.6931

    References:
      Shing et al., `TAID: Temporally Adaptive Interpolated Distillation
      <https://arxiv.org/abs/2501.16937>`_, ICLR 2025, equations 3 and 4.
    """
    target_logits = taid_target(
        student_logits, teacher_logits, interpolation=interpolation, where=where
    )
    (student_logits,) = _masking.drop_invalid(where, student_logits)
    target = jnp.exp(_numerics.log_probs(target_logits))
    loss = _numerics.cross_entropy(target, _numerics.log_probs(student_logits))
    return _masking.zero_invalid(where, loss)
