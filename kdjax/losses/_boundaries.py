"""Losses of features before the ReLU: which neurons are active, and how much."""

import jax.numpy as jnp
from jax.scipy.stats import norm
from jaxtyping import Array, Bool, Float, ScalarLike

from kdjax.losses import _checks, _maps, _masking, _numerics


def ab_loss(
    student_features: Float[Array, " batch *shape"],
    teacher_features: Float[Array, " batch *shape"],
    *,
    margin: ScalarLike = 1.0,
    where: Bool[Array, " batch"] | None = None,
) -> Float[Array, " batch"]:
    r"""Squared hinge of the student's activation, by which side the teacher's is on.

    What a layer of ReLUs separates is set by which of its neurons are active. The
    student's features before the ReLU are to be beyond a margin :math:`m` on the
    teacher's side of zero:

    .. math::
      \ell = \sum_i \begin{cases}
        \max(0, m - s_i)^2 & t_i > 0 \\
        \max(0, m + s_i)^2 & t_i \le 0
      \end{cases}

    The sum over all elements is the paper's, for each of :math:`n` layers weighed
    :math:`2^{i - n + 1}` by RepDistiller, from the first, at :math:`i = 0`, to the
    last; all times 0.003. It belongs in a first stage of training without another
    loss, and is not zero where the student equals the teacher within the margin.

    Args:
      student_features: before the ReLU, as `adapters.Connector` gives them,
        `[batch, ...]`.
      teacher_features: before the ReLU, `[batch, ...]`.
      margin: the margin :math:`m`, 1 in the paper; a positive scalar.
      where: which examples are valid, `[batch]`. The loss and the gradient of every
        other example are exactly zero, even if its features are not finite.

    Returns:
      The loss of each example in squared feature units, `[batch]`, in at least
      float32.

    Raises:
      ValueError: if the shapes differ, `where` does not fit them, or a concrete margin
        is not positive.
      TypeError: if either array is not floating-point, or `where` is not boolean.

    Examples:
      >>> import jax.numpy as jnp
      >>> from kdjax import losses
      >>> student_features = jnp.array([[-1.0, 0.0], [5.0, -5.0]])
      >>> teacher_features = jnp.array([[0.1, 0.1], [0.1, -0.1]])
      >>> print(losses.ab_loss(student_features, teacher_features))
      [5. 0.]

    References:
      Heo et al., `Knowledge Transfer via Distillation of Activation Boundaries Formed
      by Hidden Neurons <https://arxiv.org/abs/1811.03233>`_, AAAI 2019, section 3.
    """
    _maps.check_same_features(
        student_features=student_features, teacher_features=teacher_features
    )
    _checks.check_positive(margin=margin)

    student, teacher = _maps.drop_invalid(where, student_features, teacher_features)
    (margin,) = _numerics.scalars(student, margin)
    # A teacher's NaN is on neither side.
    side = jnp.where(teacher > 0, 1, jnp.where(teacher <= 0, -1, jnp.nan))
    hinge = jnp.maximum(margin - side.astype(student.dtype) * student, 0)
    return _masking.zero_invalid(where, _maps.example_sum(hinge**2))


def ofd_margins(
    scale: Float[Array, " channels"], bias: Float[Array, " channels"]
) -> Float[Array, " channels"]:
    r"""What a channel of the teacher is on average where it is negative.

    From the scale :math:`\gamma` and the bias :math:`\beta` of the BatchNorm before
    the ReLU, whose output is taken to be normal. With its density :math:`\varphi` and
    distribution :math:`\Phi`,

    .. math::
      m = \mathrm{E}[x \mid x < 0] = \beta - |\gamma| \,
        \frac{\varphi(\beta / \gamma)}{\Phi(-\beta / |\gamma|)}, \qquad
      x \sim \mathcal{N}(\beta, \gamma^2)

    A channel with less than 0.1 % of its values below zero has a margin of
    :math:`-3 |\gamma|`, as in the authors' code, and one without scale
    :math:`\min(\beta, 0)`.

    Args:
      scale: of the BatchNorm, of either sign, `[channels]`.
      bias: of the BatchNorm, `[channels]`.

    Returns:
      The margins in feature units, not positive, `[channels]`, in at least float32.

    Raises:
      ValueError: if the shapes differ, or are no vectors.
      TypeError: if either array is not floating-point.

    Examples:
      >>> import jax.numpy as jnp
      >>> from kdjax import losses
      >>> scale, bias = jnp.array([1.0, 2.0, 1.0]), jnp.array([0.0, 0.0, 9.0])
      >>> print([round(float(m), 4) for m in losses.ofd_margins(scale, bias)])
      [-0.7979, -1.5958, -3.0]

    References:
      Heo et al., `A Comprehensive Overhaul of Feature Distillation
      <https://arxiv.org/abs/1904.01866>`_, ICCV 2019, section 3.
    """
    for name, x in (("scale", scale), ("bias", bias)):
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise TypeError(f"Expected floating-point {name}, got {x.dtype}.")
    if scale.ndim != 1 or scale.shape != bias.shape:
        raise ValueError(
            f"Expected scale and bias [channels], got {scale.shape} and {bias.shape}."
        )

    scale, bias = _masking.drop_invalid(None, scale, bias)
    deviation = jnp.abs(scale)
    has_scale = deviation > 0
    z = bias / jnp.where(has_scale, deviation, 1)
    share = norm.cdf(-z)
    is_seen = share > 1e-3
    mean = bias - deviation * norm.pdf(z) / jnp.where(is_seen, share, 1)
    margins = jnp.where(is_seen, mean, -3 * deviation)
    return jnp.where(has_scale, margins, jnp.minimum(bias, 0))


def ofd_loss(
    student_features: Float[Array, "batch *places channels"],
    teacher_features: Float[Array, "batch *places channels"],
    margins: Float[Array, " channels"],
    *,
    where: Bool[Array, " batch"] | None = None,
) -> Float[Array, " batch"]:
    r"""Squared difference before the ReLU, where what is negative need only be so.

    The teacher's positive features matter as they are. Its negative ones need only
    stay so: they are raised to the channel's margin :math:`m_c`, negative, and the
    student may be anywhere below them:

    .. math::
      \ell = \sum_{p,c} \begin{cases}
        0 & s_{pc} \le u_{pc} \le 0 \\
        (s_{pc} - u_{pc})^2 & \text{else}
      \end{cases}, \qquad u_{pc} = \max(f^t_{pc}, m_c)

    `ofd_margins` gives the margins. The published codes sum over :math:`n` layers with
    weights :math:`2^{-(n - i - 1)}`, from the first, at :math:`i = 0`, to the last,
    times 1e-3 for CIFAR, 1e-4 for ImageNet and 1e-5 for segmentation. They leave the
    teacher's BatchNorm in training mode, by which its statistics drift; here the
    teacher is in inference.

    Args:
      student_features: before the ReLU, as `adapters.Connector` gives them,
        `[batch, ..., channels]`.
      teacher_features: before the ReLU, `[batch, ..., channels]`.
      margins: of each channel, `[channels]`.
      where: which examples are valid, `[batch]`. The loss and the gradient of every
        other example are exactly zero, even if its features are not finite.

    Returns:
      The loss of each example in squared feature units, `[batch]`, in at least
      float32.

    Raises:
      ValueError: if the shapes do not fit.
      TypeError: if an array is not floating-point, or `where` is not boolean.

    Examples:
      >>> import jax.numpy as jnp
      >>> from kdjax import losses
      >>> student_features = jnp.array([[1.0, -9.0], [1.0, -0.5]])
      >>> teacher_features = jnp.array([[3.0, -8.0], [-8.0, -0.7]])
      >>> margins = jnp.array([-1.0, -1.0])
      >>> print(losses.ofd_loss(student_features, teacher_features, margins).round(4))
      [4.   4.04]

    References:
      Heo et al., `A Comprehensive Overhaul of Feature Distillation
      <https://arxiv.org/abs/1904.01866>`_, ICCV 2019, section 3.
    """
    _maps.check_same_features(
        student_features=student_features, teacher_features=teacher_features
    )
    if not jnp.issubdtype(margins.dtype, jnp.floating):
        raise TypeError(f"Expected floating-point margins, got {margins.dtype}.")
    if margins.shape != teacher_features.shape[-1:]:
        raise ValueError(
            f"Expected margins {teacher_features.shape[-1:]}, one for each channel, "
            f"got {margins.shape}."
        )

    features = _maps.drop_invalid(where, student_features, teacher_features)
    student, teacher = (_maps.places(x) for x in features)
    target = jnp.maximum(teacher, margins.astype(teacher.dtype)[None, None])
    is_fine = (student <= target) & (target <= 0)
    squares = jnp.where(is_fine, 0, (student - target) ** 2)
    return _masking.zero_invalid(where, _maps.example_sum(squares))
