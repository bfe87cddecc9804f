"""Losses of a review of all layers, and of the last one under a given classifier."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, ScalarLike

from kdjax.losses import _embeddings, _maps, _masking, _numerics, _pooling


def review_loss(
    student_features: Float[Array, " batch *shape"],
    teacher_features: Float[Array, " batch *shape"],
    *,
    where: Bool[Array, " batch"] | None = None,
) -> Float[Array, " batch"]:
    r"""Mean squared differences of maps, and of their averages on coarser grids.

    Hierarchical context: what is compared is each place as well as the image in 16, 4
    and 1 parts, of a side :math:`l` of 4, 2 and 1 where less than the map's. With
    :math:`\phi_l` the average to a square of :math:`l`, by `adaptive_average_pool`:

    .. math::
      \ell = \frac{1}{\sum_k 2^{-k}} \Bigl( \mathrm{MSE}(f^s, f^t)
        + \sum_{k=1}^{K} 2^{-k} \, \mathrm{MSE}(\phi_{l_k}(f^s), \phi_{l_k}(f^t))
        \Bigr)

    where :math:`K` is the number of grids, and the sum of weights begins with the 1 at
    :math:`k = 0`. Vectors, such as averages over all places, have no grids: theirs is
    the mean squared difference. The student's maps are those that
    `adapters.ReviewFusion` makes of its layers from the last to the first, and the
    losses of all levels add up. The
    published weight is 5 for CIFAR-100 and 1 or 8 for ImageNet, risen to over 20
    epochs.

    Args:
      student_features: fused maps of one level, `[batch, height, width, channels]`, or
        vectors, `[batch, channels]`.
      teacher_features: maps or vectors of the same level.
      where: which examples are valid, `[batch]`. The loss and the gradient of every
        other example are exactly zero, even if its features are not finite.

    Returns:
      The loss of each example in squared feature units, `[batch]`, in at least
      float32.

    Raises:
      ValueError: if the shapes differ, or `where` does not fit them.
      TypeError: if either array is not floating-point, or `where` is not boolean.

    Examples:
      >>> import jax.numpy as jnp
      >>> from kdjax import losses
      >>> student_features = jnp.array([[1.0, -1.0], [-1.0, 1.0]]).reshape(1, 2, 2, 1)
      >>> teacher_features = jnp.zeros((1, 2, 2, 1))
      >>> print(losses.review_loss(student_features, teacher_features).round(4))
      [0.6667]

    References:
      Chen et al., `Distilling Knowledge via Knowledge Review
      <https://arxiv.org/abs/2104.09044>`_, CVPR 2021, section 3.
    """
    _maps.check_same_features(
        student_features=student_features, teacher_features=teacher_features
    )

    student, teacher = _maps.drop_invalid(where, student_features, teacher_features)
    difference = student - teacher  # Averages are linear.
    loss, weight, total = _maps.example_mean(difference**2), 1.0, 1.0
    for side in (4, 2, 1):
        if difference.ndim == 4 and side < min(difference.shape[1:3]):
            weight = weight / 2
            total += weight
            coarse = _pooling.adaptive_average_pool(difference, size=(side, side))
            loss = loss + weight * _maps.example_mean(coarse**2)
    return _masking.zero_invalid(where, loss / total)


def srrl_loss(
    student_features: Float[Array, "batch *_ channels"],
    teacher_features: Float[Array, "batch *_ channels"],
    student_logits: Float[Array, "batch classes"],
    teacher_logits: Float[Array, "batch classes"],
    *,
    logits_weight: ScalarLike = 1.0,
    where: Bool[Array, " batch"] | None = None,
) -> Float[Array, " batch"]:
    r"""Squared differences of averaged features, and of one classifier's logits.

    Softmax regression representation: of all that the student's features could be, the
    teacher's own classifier tells what matters. It sees the student's averaged
    features, through `adapters.Connector` with a ReLU, in place of the teacher's:

    .. math::
      \ell = \frac{1}{C} \bigl\| \bar f^s - \bar f^t \bigr\|_2^2
        + \frac{\lambda}{K} \bigl\| W \bar f^s + b - z^t \bigr\|_2^2

    for averages :math:`\bar f` over the places, :math:`C` channels and :math:`K`
    classes. The gradient flows through the classifier, which itself is the teacher's
    and does not learn. Both terms weigh 1 in the published tables, beside the labels
    at 1 for the student's own classifier.

    Args:
      student_features: mapped to the teacher's channels, `[batch, ..., channels]`.
      teacher_features: `[batch, ..., channels]`.
      student_logits: of the teacher's classifier for the student's mapped features, as
        `adapters.classify` gives them, `[batch, num_classes]`.
      teacher_logits: of the teacher, `[batch, num_classes]`.
      logits_weight: the weight :math:`\lambda` of the second term.
      where: which examples are valid, `[batch]`. The loss and the gradient of every
        other example are exactly zero, even if its features are not finite.

    Returns:
      The loss of each example in squared units of features and logits, `[batch]`, in at
      least float32.

    Raises:
      ValueError: if the shapes do not fit.
      TypeError: if an array is not floating-point, or `where` is not boolean.

    Examples:
      >>> import jax.numpy as jnp
      >>> from kdjax import losses
      >>> student_features = jnp.array([[0.0, 2.0]]).reshape(1, 1, 2, 1)
      >>> teacher_features = jnp.array([[3.0]])
      >>> student_logits = jnp.array([[1.0, 2.0]])
      >>> teacher_logits = jnp.array([[1.0, 4.0]])
      >>> print(losses.srrl_loss(
      ...     student_features, teacher_features, student_logits, teacher_logits))
      [6.]

    References:
      Yang et al., `Knowledge Distillation via Softmax Regression Representation
      Learning <https://openreview.net/forum?id=ZzwDy_wiWv>`_, ICLR 2021, section 3.
    """
    features = {
        "student_features": student_features,
        "teacher_features": teacher_features,
    }
    logits = {"student_logits": student_logits, "teacher_logits": teacher_logits}
    _embeddings.check_batches(**features, **logits)
    if student_features.shape[-1] != teacher_features.shape[-1]:
        raise ValueError(
            f"Expected features of the same channels, got student_features "
            f"{student_features.shape}, teacher_features {teacher_features.shape}: map "
            "the student's first, as adapters.Connector does."
        )
    _maps.check_same_features(**logits)

    arrays = _maps.drop_invalid(where, *features.values(), *logits.values())
    student, teacher = (jnp.mean(_maps.places(x), axis=1) for x in arrays[:2])
    (logits_weight,) = _numerics.scalars(student, logits_weight)
    loss = jnp.mean((student - teacher) ** 2, axis=-1)
    loss += logits_weight * jnp.mean((arrays[2] - arrays[3]) ** 2, axis=-1)
    return _masking.zero_invalid(where, loss)
