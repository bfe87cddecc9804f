"""Losses of the distance between a student's features and its teacher's."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, ScalarLike

from kdjax.losses import _checks, _embeddings, _maps, _masking


def hint_loss(
    student_features: Float[Array, " batch *shape"],
    teacher_features: Float[Array, " batch *shape"],
    *,
    where: Bool[Array, " batch"] | None = None,
) -> Float[Array, " batch"]:
    r"""Mean squared difference of features.

    A layer of the teacher, the hint, guides a layer of the student, mapped to the
    hint's shape by an adapter :math:`r` such as `adapters.Regressor`:

    .. math:: \ell = \frac{1}{n} \sum_{i=1}^n \bigl(r(f^s)_i - f^t_i\bigr)^2

    The mean over the :math:`n` elements is that of RepDistiller, which weighs it 100;
    the paper has half the sum, :math:`n / 2` times this, in a first stage of its own.
    At a weight of 1 it is also the whole loss of SimKD, on the last maps with
    `adapters.SimKDProjector`, and that of TinyBERT's hidden states.

    Args:
      student_features: of the student, mapped to the teacher's shape, `[batch, ...]`.
      teacher_features: the hint, `[batch, ...]`.
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
      >>> student_features = jnp.array([[1.0, 2.0], [0.0, 0.0]])
      >>> teacher_features = jnp.array([[1.0, 0.0], [0.0, 0.0]])
      >>> print(losses.hint_loss(student_features, teacher_features))
      [2. 0.]

    References:
      Romero et al., `FitNets: Hints for Thin Deep Nets
      <https://arxiv.org/abs/1412.6550>`_, ICLR 2015, equation 3.

      Chen et al., `Knowledge Distillation with the Reused Teacher Classifier
      <https://arxiv.org/abs/2203.14001>`_, CVPR 2022, section 3.
    """
    _maps.check_same_features(
        student_features=student_features, teacher_features=teacher_features
    )

    student, teacher = _embeddings.flatten_valid(
        where, student_features, teacher_features
    )
    loss = jnp.mean((student - teacher) ** 2, axis=-1)
    return _masking.zero_invalid(where, loss)


def cosine_loss(
    student_features: Float[Array, "*batch dim"],
    teacher_features: Float[Array, "*batch dim"],
    *,
    where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
    r"""One minus the cosine of the angle between feature vectors.

    The student's vectors are to point where the teacher's do, at any length:

    .. math:: \ell = 1 - \frac{\langle f^s, f^t \rangle}{\|f^s\|_2 \, \|f^t\|_2}

    A vector of zeros is at a right angle to all others: its loss is 1, without
    gradient. DistilBERT weighs the mean over the tokens that are not padding 1, on
    the last hidden states, beside 5 for its soft targets and 2 for its labels.

    Args:
      student_features: of the teacher's dimension, `[..., dim]`.
      teacher_features: `[..., dim]`.
      where: which vectors are valid, `[...]`. The loss and the gradient of every
        other vector are exactly zero, even if it is not finite.

    Returns:
      The loss of each vector, from 0 to 2, `[...]`, in at least float32.

    Raises:
      ValueError: if the shapes differ, or `where` does not fit them.
      TypeError: if either array is not floating-point, or `where` is not boolean.

    Examples:
      >>> import jax.numpy as jnp
      >>> from kdjax import losses
      >>> student_features = jnp.array([[3.0, 0.0], [0.0, 2.0], [-1.0, 0.0]])
      >>> teacher_features = jnp.array([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
      >>> print(losses.cosine_loss(student_features, teacher_features))
      [0. 1. 2.]

    References:
      Sanh et al., `DistilBERT, a Distilled Version of BERT
      <https://arxiv.org/abs/1910.01108>`_, 2019, section 3.
    """
    for name, x in (
        ("student_features", student_features),
        ("teacher_features", teacher_features),
    ):
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise TypeError(f"Expected floating-point {name}, got {x.dtype}.")
        if x.ndim == 0 or x.shape[-1] == 0:
            raise ValueError(f"Expected {name} [..., dim], got {x.shape}.")
    if student_features.shape != teacher_features.shape:
        raise ValueError(
            f"Expected arguments of one shape, got student_features "
            f"{student_features.shape}, teacher_features {teacher_features.shape}: map "
            "one to the other first, as an adapter does."
        )

    student, teacher = _masking.drop_invalid(where, student_features, teacher_features)
    student, teacher = _embeddings.unit(student), _embeddings.unit(teacher)
    # Half the squared distance, whose digits don't cancel where the two are near; a
    # vector of zeros lacks half.
    missing = 2 - sum(
        jnp.any(x != 0, axis=-1).astype(x.dtype) for x in (student, teacher)
    )
    loss = 0.5 * (jnp.sum((student - teacher) ** 2, axis=-1) + missing)
    return _masking.zero_invalid(where, loss)


def vid_loss(
    student_mean: Float[Array, "batch *places channels"],
    student_variance: Float[Array, " channels"],
    teacher_features: Float[Array, "batch *places channels"],
    *,
    where: Bool[Array, " batch"] | None = None,
) -> Float[Array, " batch"]:
    r"""Negative log-likelihood of the teacher's features, by a Gaussian of the student.

    Variational information distillation: a lower bound on the information that the
    two layers share. The student predicts the mean of the teacher's features, and
    each channel has a learned variance, so that channels which can't be predicted
    weigh less, `adapters.VariationalRegressor`:

    .. math::
      \ell = \frac{1}{n} \sum_{p,c} \frac{1}{2} \left(
        \frac{(\mu_{pc} - f^t_{pc})^2}{\sigma_c^2} + \log \sigma_c^2 \right)

    The mean over the :math:`n` elements is the authors' code's, at a weight of 1; the
    paper has the sum. The constant :math:`\frac{1}{2} \log 2 \pi` is left out, and the
    loss may be negative.

    Args:
      student_mean: what the student predicts, `[batch, ..., channels]`.
      student_variance: of each channel; positive, `[channels]`.
      teacher_features: `[batch, ..., channels]`.
      where: which examples are valid, `[batch]`. The loss and the gradient of every
        other example are exactly zero, even if its features are not finite.

    Returns:
      The loss of each example in nats an element, `[batch]`, in at least float32.

    Raises:
      ValueError: if the shapes do not fit.
      TypeError: if an array is not floating-point, or `where` is not boolean.

    Examples:
      >>> import jax.numpy as jnp
      >>> from kdjax import losses
      >>> student_mean = jnp.array([[2.0, 1.0], [0.0, 0.0]])
      >>> teacher_features = jnp.zeros((2, 2))
      >>> print(losses.vid_loss(
      ...     student_mean, jnp.array([4.0, 1.0]), teacher_features).round(4))
      [0.8466 0.3466]

    References:
      Ahn et al., `Variational Information Distillation for Knowledge Transfer
      <https://arxiv.org/abs/1904.05835>`_, CVPR 2019, section 2.
    """
    _maps.check_same_features(
        student_mean=student_mean, teacher_features=teacher_features
    )
    if not jnp.issubdtype(student_variance.dtype, jnp.floating):
        raise TypeError(
            f"Expected floating-point student_variance, got {student_variance.dtype}."
        )
    if student_variance.shape != teacher_features.shape[-1:]:
        raise ValueError(
            f"Expected student_variance {teacher_features.shape[-1:]}, one for each "
            f"channel, got {student_variance.shape}."
        )

    mean, teacher = _maps.drop_invalid(where, student_mean, teacher_features)
    variance = student_variance.astype(mean.dtype)[None, None]
    squares = (_maps.places(mean) - _maps.places(teacher)) ** 2
    loss = 0.5 * _maps.example_mean(squares / variance + jnp.log(variance))
    return _masking.zero_invalid(where, loss)


def mgd_loss(
    student_features: Float[Array, " batch *shape"],
    teacher_features: Float[Array, " batch *shape"],
    *,
    where: Bool[Array, " batch"] | None = None,
) -> Float[Array, " batch"]:
    r"""Summed squared difference of generated features and the teacher's.

    Masked generative distillation: the student's features, with a random part masked
    out, pass two convolutions :math:`G` that are to generate all of the teacher's.
    Then the part that is left has to represent the whole:

    .. math:: \ell = \sum_i \bigl(G(m \odot r(f^s))_i - f^t_i\bigr)^2

    `adapters.MaskedGenerator` is :math:`G` with its mask, and `mgd_mask` the mask
    :math:`m` alone. As the sum over all elements is large, its weight is small: 7e-5
    on the last maps of classifiers, with 15 % of the channels masked, and 2e-5 on
    those of detectors, with 65 % of the places.

    Args:
      student_features: generated from the student's, `[batch, ...]`.
      teacher_features: `[batch, ...]`.
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
      >>> student_features = jnp.ones((1, 2, 2, 3))
      >>> teacher_features = jnp.zeros((1, 2, 2, 3))
      >>> print(losses.mgd_loss(student_features, teacher_features))
      [12.]

    References:
      Yang et al., `Masked Generative Distillation
      <https://arxiv.org/abs/2205.01529>`_, ECCV 2022, section 3.
    """
    _maps.check_same_features(
        student_features=student_features, teacher_features=teacher_features
    )

    student, teacher = _embeddings.flatten_valid(
        where, student_features, teacher_features
    )
    loss = jnp.sum((student - teacher) ** 2, axis=-1)
    return _masking.zero_invalid(where, loss)


def mgd_mask(
    rng: jax.Array,
    features: Float[Array, "batch height width channels"],
    *,
    masked: ScalarLike = 0.5,
    over: str = "places",
) -> Bool[Array, "batch _ _ _"]:
    r"""Which places, or which channels, of each example are kept, at random.

    .. math:: m_{bhw} \sim \mathrm{Bernoulli}(1 - \lambda), \qquad
      \text{or} \quad m_{bc} \sim \mathrm{Bernoulli}(1 - \lambda)

    What is kept is not scaled up. The published detectors mask places, 65 % of them
    in most settings, and classifiers channels, 15 % of them.

    Args:
      rng: a key for this use.
      features: whose shape the mask is for, `[batch, height, width, channels]`.
      masked: the fraction :math:`\lambda`, expected, that is not kept.
      over: `'places'`, all channels alike, or `'channels'`, all places alike.

    Returns:
      True for what is kept, `[batch, height, width, 1]` or `[batch, 1, 1, channels]`.

    Raises:
      ValueError: if `over` is unknown, a concrete `masked` is not between 0 and 1, or
        the features are no maps.
      TypeError: if `features` are not floating-point.

    Examples:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from kdjax import losses
      >>> mask = losses.mgd_mask(
      ...     jax.random.key(0), jnp.ones((2, 50, 50, 8)), masked=0.7)
      >>> print(mask.shape, jnp.mean(mask, dtype=jnp.float32).round(1))
      (2, 50, 50, 1) 0.3

    References:
      Yang et al., `Masked Generative Distillation
      <https://arxiv.org/abs/2205.01529>`_, ECCV 2022, section 3.
    """
    _maps.check_maps(features=features)
    _checks.check_fraction(masked=masked)
    _checks.check_choice(("places", "channels"), over=over)
    batch, height, width, channels = features.shape
    shape = (batch, height, width, 1) if over == "places" else (batch, 1, 1, channels)
    return jax.random.bernoulli(rng, 1 - jnp.asarray(masked), shape)
