"""What tells a teacher's idea of its training data: losses to make images by."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from kdjax.losses import _checks, _embeddings, _masking, _numerics


def one_hot_loss(
    teacher_logits: Float[Array, "*batch classes"],
    *,
    where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
    r"""How unsure a teacher is of its own prediction.

    Real images have outputs close to one-hot; so should those that a generator makes
    without seeing any. The cross-entropy with the teacher's largest class:

    .. math:: \ell = -\log \max_c \, \mathrm{softmax}(z^t)_c

    For the generator of data-free learning, which the gradient reaches through the
    teacher. The paper weighs it 1.

    Args:
      teacher_logits: unnormalised log-probabilities of generated examples,
        `[..., num_classes]`.
      where: which examples are valid, `[...]`. The loss and the gradient of every
        other example are exactly zero, even if its logits are not finite.

    Returns:
      The loss of each example in nats, `[...]`, in at least float32.

    Raises:
      ValueError: if `where` does not fit the logits.
      TypeError: if the logits are not floating-point, or `where` is not boolean.

    Examples:
      >>> import jax.numpy as jnp
      >>> from kdjax import losses
      >>> teacher_logits = jnp.array([[2.0, 0.0], [0.0, 0.0]])
      >>> print(losses.one_hot_loss(teacher_logits).round(4))
      [0.1269 0.6931]

    References:
      Chen et al., `Data-Free Learning of Student Networks
      <https://arxiv.org/abs/1904.01186>`_, ICCV 2019, equation 3.
    """
    _checks.check_logits(teacher_logits=teacher_logits)

    (teacher_logits,) = _masking.drop_invalid(where, teacher_logits)
    log_probs = _numerics.log_probs(teacher_logits)
    # Of equal largest classes the first, as the authors' code: a label, not a maximum.
    loss = -_numerics.at_label(log_probs, jnp.argmax(log_probs, axis=-1))
    return _masking.zero_invalid(where, loss)


def activation_loss(
    teacher_features: Float[Array, " batch *shape"],
    *,
    form: str = "paper",
    where: Bool[Array, " batch"] | None = None,
) -> Float[Array, " batch"]:
    r"""Size of the teacher's features, with a minus.

    Filters answer to what they were trained on: images that leave them silent are
    not of the kind.

    .. math:: \ell = -\sum_n |f^t_n|

    Form `'author_code'`: the mean over the entries takes the place of the sum, and
    the weight is 0.1. The features are those that the last layer receives.

    Args:
      teacher_features: of generated examples, `[batch, ...]`.
      form: `'paper'` or `'author_code'`.
      where: which examples are valid, `[batch]`. The loss and the gradient of every
        other example are exactly zero, even if its features are not finite.

    Returns:
      The loss of each example in units of the features, never positive, `[batch]`,
      in at least float32.

    Raises:
      ValueError: if `where` does not fit the features, or `form` is unknown.
      TypeError: if the features are not floating-point, or `where` is not boolean.

    Examples:
      >>> import jax.numpy as jnp
      >>> from kdjax import losses
      >>> print(losses.activation_loss(jnp.array([[1.0, -3.0]]), form="author_code"))
      [-2.]

    References:
      Chen et al., `Data-Free Learning of Student Networks
      <https://arxiv.org/abs/1904.01186>`_, ICCV 2019, equation 4.
    """
    _embeddings.check_batches(teacher_features=teacher_features)
    _checks.check_choice(("paper", "author_code"), form=form)

    (features,) = _embeddings.flatten_valid(where, teacher_features)
    loss = -jnp.sum(_numerics.absolute(features), axis=-1)
    if form == "author_code":
        loss = loss / features.shape[1]
    return _masking.zero_invalid(where, loss)


def information_entropy_loss(
    teacher_logits: Float[Array, "batch classes"],
    *,
    form: str = "paper",
    where: Bool[Array, " batch"] | None = None,
) -> Float[Array, " batch"]:
    r"""Entropy of the classes of a batch, with a minus.

    A generator is to make examples of all classes equally often. With
    :math:`\bar p` the mean of the batch's probabilities,

    .. math::
      \ell_b = \frac{1}{C} \sum_c p^t_{bc} \log \bar p_c, \qquad
      \frac{1}{B} \sum_b \ell_b = -\frac{1}{C} H(\bar p)

    Form `'author_code'`: the logarithm is to base 10, and there is no :math:`1 / C`;
    its weight is 5. Couples examples: entry :math:`b` is the part of example
    :math:`b`'s probabilities.

    Args:
      teacher_logits: unnormalised log-probabilities of generated examples,
        `[batch, num_classes]`.
      form: `'paper'` or `'author_code'`.
      where: which examples are valid, `[batch]`. The loss and the gradient of every
        other example are exactly zero, and it is not in the mean.

    Returns:
      The loss of each example, in nats per class or in digits, never positive,
      `[batch]`, in at least float32.

    Raises:
      ValueError: if `where` does not fit the logits, or `form` is unknown.
      TypeError: if the logits are not floating-point, or `where` is not boolean.

    Examples:
      >>> import jax.numpy as jnp
      >>> from kdjax import losses
      >>> teacher_logits = jnp.array([[99.0, 0.0], [0.0, 99.0]])  # One of each.
      >>> print(losses.information_entropy_loss(
      ...     teacher_logits, form="author_code").round(4))
      [-0.301 -0.301]

    References:
      Chen et al., `Data-Free Learning of Student Networks
      <https://arxiv.org/abs/1904.01186>`_, ICCV 2019, equations 5 and 6.
    """
    _embeddings.check_batches(teacher_logits=teacher_logits)
    _checks.check_choice(("paper", "author_code"), form=form)

    (teacher_logits,) = _masking.drop_invalid(where, teacher_logits)
    log_probs = _numerics.log_probs(teacher_logits)
    valid = _embeddings.is_valid(where, log_probs)[:, None]
    total = _numerics.log_sum(jnp.where(valid, log_probs, -jnp.inf).T)
    log_mean = jnp.broadcast_to(
        (total - jnp.log(_masking.num_valid(where, log_probs)))[None], log_probs.shape
    )
    loss = -_numerics.cross_entropy(jnp.exp(log_probs), log_mean)
    classes = teacher_logits.shape[1]
    loss = loss / (classes if form == "paper" else math.log(10))
    return _masking.zero_invalid(where, loss)


def batch_norm_statistics_loss(
    teacher_features: Float[Array, "batch *spatial channels"],
    running_mean: Float[Array, " channels"],
    running_var: Float[Array, " channels"],
    *,
    where: Bool[Array, " batch"] | None = None,
) -> Float[Array, " batch"]:
    r"""Distance of a batch's feature statistics from those of the training data.

    A batch normalisation layer remembers the mean and variance of its input over the
    training set: images that are inverted from the teacher should have them too.

    .. math::
      \ell = \|\mu(f) - \hat\mu\|_2 + \|\sigma^2(f) - \hat\sigma^2\|_2

    For one layer, of which the features are the input; DeepInversion adds up all, at
    a weight of 0.01 on ImageNet, and uses lengths, not squared ones. The variance is
    that of the batch, divided by the count. Couples examples: each has the value of
    the whole batch, so that the mean is the paper's.

    Args:
      teacher_features: the input of the layer, `[batch, ..., channels]`.
      running_mean: the layer's :math:`\hat\mu`, `[channels]`.
      running_var: the layer's :math:`\hat\sigma^2`, `[channels]`.
      where: which examples are valid, `[batch]`. The loss and the gradient of every
        other example are exactly zero, and it is in no statistic.

    Returns:
      The loss, the same for each valid example, in units of the features and their
      squares, `[batch]`, in at least float32.

    Raises:
      ValueError: if the shapes do not fit.
      TypeError: if an array is not floating-point, or `where` is not boolean.

    Examples:
      >>> import jax.numpy as jnp
      >>> from kdjax import losses
      >>> teacher_features = jnp.array([[0.0], [2.0]])  # Mean 1, variance 1.
      >>> print(losses.batch_norm_statistics_loss(
      ...     teacher_features, jnp.array([4.0]), jnp.array([1.5])))
      [3.5 3.5]

    References:
      Yin et al., `Dreaming to Distill: Data-free Knowledge Transfer via DeepInversion
      <https://arxiv.org/abs/1912.08795>`_, CVPR 2020, equation 4.
    """
    _embeddings.check_batches(teacher_features=teacher_features)
    for name, x in (("running_mean", running_mean), ("running_var", running_var)):
        if x.shape != teacher_features.shape[-1:]:
            raise ValueError(
                f"Expected {name} {teacher_features.shape[-1:]}, one for each channel "
                f"of {teacher_features.shape}, got {x.shape}."
            )

    (flat,) = _embeddings.flatten_valid(where, teacher_features)
    features = flat.reshape(len(flat), -1, teacher_features.shape[-1])
    valid = _embeddings.is_valid(where, flat)[:, None, None]
    count = _masking.num_valid(where, flat) * features.shape[1]
    mean = jnp.sum(features, axis=(0, 1)) / count
    squares = jnp.where(valid, (features - mean[None, None]) ** 2, 0)
    var = jnp.sum(squares, axis=(0, 1)) / count
    loss = _numerics.norm(mean - running_mean.astype(mean.dtype))
    loss += _numerics.norm(var - running_var.astype(var.dtype))
    return _masking.zero_invalid(where, jnp.broadcast_to(loss, flat.shape[:1]))


def image_total_variation(
    images: Float[Array, "batch height width channels"],
    *,
    form: str = "paper",
    where: Bool[Array, " batch"] | None = None,
) -> Float[Array, " batch"]:
    r"""Length of the differences between neighbouring pixels.

    A prior of natural images, which are smooth. With :math:`D_d x` the differences of
    the pixels that are neighbours in direction :math:`d`: horizontal, vertical and
    both diagonals,

    .. math:: \ell = \sum_{d=1}^{4} \|D_d \, x\|_2

    Form `'author_code'`: the length is that of the differences of the whole batch,
    in one, and each example has this value; it grows as the root of the batch size.
    Couples examples in that form only. DeepInversion weighs it 1e-4 on ImageNet.
    Not to be confused with `total_variation`, of two distributions.

    Args:
      images: `[batch, height, width, channels]`.
      form: `'paper'` or `'author_code'`.
      where: which examples are valid, `[batch]`. The loss and the gradient of every
        other example are exactly zero, even if its pixels are not finite.

    Returns:
      The loss of each example in units of the pixels, `[batch]`, in at least float32.

    Raises:
      ValueError: if the images are not `[batch, height, width, channels]`, `where`
        does not fit them, or `form` is unknown.
      TypeError: if the images are not floating-point, or `where` is not boolean.

    Examples:
      >>> import jax.numpy as jnp
      >>> from kdjax import losses
      >>> images = jnp.array([[[[0.0], [3.0]], [[4.0], [4.0]]]])
      >>> print(losses.image_total_variation(images).round(2))  # 3 + sqrt(17) + 4 + 1
      [12.12]

    References:
      Mordvintsev et al., `Inceptionism: Going Deeper into Neural Networks
      <https://research.google/blog/inceptionism-going-deeper-into-neural-networks/>`_,
      2015; as used by Yin et al., `Dreaming to Distill: Data-free Knowledge Transfer
      via DeepInversion <https://arxiv.org/abs/1912.08795>`_, CVPR 2020, equation 3.
    """
    _embeddings.check_batches(images=images)
    if images.ndim != 4:
        raise ValueError(
            f"Expected images [batch, height, width, channels], got {images.shape}."
        )
    _checks.check_choice(("paper", "author_code"), form=form)

    (flat,) = _embeddings.flatten_valid(where, images)
    x = flat.reshape(images.shape)
    differences = (
        x[:, :, :-1] - x[:, :, 1:],
        x[:, :-1] - x[:, 1:],
        x[:, 1:, :-1] - x[:, :-1, 1:],
        x[:, :-1, :-1] - x[:, 1:, 1:],
    )
    lengths = [_length(d, form) for d in differences]
    return _masking.zero_invalid(where, sum(lengths, jnp.zeros_like(flat[:, 0])))


def _length(difference: jax.Array, form: str) -> jax.Array:
    """Of each example, `[batch]`, or of all together, the same for each."""
    if form == "author_code":
        length = _numerics.norm(difference.reshape(-1))
        return jnp.broadcast_to(length, difference.shape[:1])
    return _numerics.norm(difference.reshape(difference.shape[0], -1))
