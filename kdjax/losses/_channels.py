"""Losses that compare features channel by channel."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, ScalarLike

from kdjax.losses import _checks, _embeddings, _maps, _masking, _numerics


def cwd_loss(
    student_features: Float[Array, "batch height width channels"],
    teacher_features: Float[Array, "batch height width channels"],
    *,
    temperature: ScalarLike = 1.0,
    where: Bool[Array, " batch"] | None = None,
) -> Float[Array, " batch"]:
    r"""Divergence of the channels' distributions over the places.

    Each channel's softmax over the image says where what it stands for is, and the
    student need be right where the teacher's channel is active only. For dense
    prediction, on logits as well as on features:

    .. math::
      \ell = \frac{\tau^2}{C} \sum_{c=1}^C \mathrm{KL}\!\left(
        \mathrm{softmax}_{hw}(f^t_{hwc} / \tau) \,\|\,
        \mathrm{softmax}_{hw}(f^s_{hwc} / \tau)\right)

    MMRazor weighs it 10 on each level of a detector's pyramid, at a temperature of 1.

    Args:
      student_features: maps, `[batch, height, width, channels]`.
      teacher_features: maps of the same shape, `[batch, height, width, channels]`.
      temperature: softens both distributions; a positive scalar.
      where: which examples are valid, `[batch]`. The loss and the gradient of every
        other example are exactly zero, even if its features are not finite.

    Returns:
      The loss of each example in nats, `[batch]`, in at least float32.

    Raises:
      ValueError: if the features are not maps of one shape, `where` does not fit them,
        or a concrete temperature is not positive.
      TypeError: if either array is not floating-point, or `where` is not boolean.

    Examples:
      >>> import jax.numpy as jnp
      >>> from kdjax import losses
      >>> student_features = jnp.zeros((1, 1, 2, 1))
      >>> teacher_features = jnp.array([100.0, 0.0]).reshape(1, 1, 2, 1)
      >>> print(losses.cwd_loss(student_features, teacher_features).round(4))
      [0.6931]

    References:
      Shu et al., `Channel-wise Knowledge Distillation for Dense Prediction
      <https://arxiv.org/abs/2011.13256>`_, ICCV 2021, section 3.
    """
    _maps.check_maps(
        student_features=student_features, teacher_features=teacher_features
    )
    _maps.check_same_features(
        student_features=student_features, teacher_features=teacher_features
    )
    _checks.check_positive(temperature=temperature)

    features = _maps.drop_invalid(where, student_features, teacher_features)
    student, teacher = (
        _numerics.log_probs(jnp.swapaxes(_maps.places(x), 1, 2), temperature)
        for x in features
    )
    (temperature,) = _numerics.scalars(student, temperature)
    loss = temperature**2 * jnp.mean(_numerics.kl(teacher, student), axis=-1)
    return _masking.zero_invalid(where, loss)


def pkd_loss(
    student_features: Float[Array, "batch *places channels"],
    teacher_features: Float[Array, "batch *places channels"],
    *,
    where: Bool[Array, " batch"] | None = None,
) -> Float[Array, " batch"]:
    r"""One minus Pearson's correlation of each channel, as a squared difference.

    Magnitudes of two detectors' features differ, and one level of a pyramid, or one
    channel, may drown the others. So each channel is standardised over all places of
    all examples, :math:`\hat f = (f - \mu) / (\sigma + 10^{-6})`:

    .. math::
      \ell_b = \frac{1}{P C} \sum_{p,c} \frac{1}{2}
        (\hat f^s_{bpc} - \hat f^t_{bpc})^2

    Couples examples: by the mean and the standard deviation, of the sample, over the
    batch. The mean of the losses is the published value, which is :math:`1 - \rho`
    averaged over channels, up to the small constant and to a factor of :math:`1 - 1 /
    n` for the :math:`n` places. A channel that does not vary has no gradient. The
    paper weighs this 6, on all levels of the pyramid.

    Args:
      student_features: `[batch, ..., channels]`; resize maps of another size first.
      teacher_features: of the same shape, `[batch, ..., channels]`.
      where: which examples are valid, `[batch]`. The loss and the gradient of every
        other example are exactly zero, and it takes part in no mean.

    Returns:
      The loss of each example, without unit, `[batch]`, in at least float32.

    Raises:
      ValueError: if the shapes differ, or `where` does not fit them.
      TypeError: if either array is not floating-point, or `where` is not boolean.

    Examples:
      >>> import jax.numpy as jnp
      >>> from kdjax import losses
      >>> student_features = jnp.array([1.0, 2.0, 3.0, 4.0]).reshape(1, 2, 2, 1)
      >>> teacher_features = 7 - 10 * student_features  # A correlation of -1.
      >>> print(losses.pkd_loss(student_features, teacher_features).round(4))
      [1.5]

    References:
      Cao et al., `PKD: General Distillation Framework for Object Detectors via Pearson
      Correlation Coefficient <https://arxiv.org/abs/2207.02039>`_, NeurIPS 2022,
      section 3.
    """
    _maps.check_same_features(
        student_features=student_features, teacher_features=teacher_features
    )

    features = _maps.drop_invalid(where, student_features, teacher_features)
    student, teacher = (_standardize(_maps.places(x), where) for x in features)
    loss = 0.5 * _maps.example_mean((student - teacher) ** 2)
    return _masking.zero_invalid(where, loss)


def _standardize(x: jax.Array, where: jax.Array | None) -> jax.Array:
    """Channels of `[B, P, C]` at mean 0 and standard deviation 1; 0 where invalid."""
    count = _masking.num_valid(where, x) * x.shape[1]
    valid = _embeddings.is_valid(where, x).astype(x.dtype)[:, None, None]
    centred = valid * (x - jnp.sum(x, axis=(0, 1), keepdims=True) / count)
    rows = jnp.moveaxis(centred, -1, 0).reshape(x.shape[-1], -1)
    deviation = _numerics.norm(rows) / jnp.sqrt(jnp.maximum(count - 1, 1))
    return centred / (deviation[None, None] + 1e-6)
