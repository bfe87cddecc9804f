"""Losses of where in an image, and in which layer, a network looks."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, ScalarLike

from kdjax.losses import _checks, _embeddings, _maps, _masking, _numerics, _pooling


def attention_transfer_loss(
    student_features: Float[Array, "batch _ _ _"],
    teacher_features: Float[Array, "batch _ _ _"],
    *,
    power: ScalarLike = 2.0,
    form: str = "paper",
    where: Bool[Array, " batch"] | None = None,
) -> Float[Array, " batch"]:
    r"""Distance of the maps of attention, normalised.

    How strongly a layer responds at a place, in whatever channel, shows where the
    network looks. The student is to look where the teacher does:

    .. math::
      \ell = \left\| \frac{Q^s}{\|Q^s\|_2} - \frac{Q^t}{\|Q^t\|_2} \right\|_2, \qquad
      Q_{hw} = \sum_c |f_{hwc}|^p

    Form `'author_code'` is :math:`\ell^2 / (H W)`, the mean over places of the squared
    difference. The two differ by a factor of a hundred and more, so their weights do
    too: the paper's :math:`\beta / 2`, with :math:`\beta` of 1000 over the number of
    places, is for its own form, per layer. The authors' code weighs the other
    500, a :math:`\beta` of 1000 halved, and RepDistiller 1000.

    The channels of the two may differ. Where the heights or widths do, the larger map
    is averaged to the smaller by `adaptive_average_pool` first. A map of zeros stays
    so, and has no gradient.

    Args:
      student_features: maps, `[batch, height, width, channels]`.
      teacher_features: maps, which may be of another size and depth,
        `[batch, height, width, channels]`.
      power: the exponent :math:`p`, 2 in the published tables; positive.
      form: `'paper'` or `'author_code'`.
      where: which examples are valid, `[batch]`. The loss and the gradient of every
        other example are exactly zero, even if its features are not finite.

    Returns:
      The loss of each example, without unit, `[batch]`, in at least float32.

    Raises:
      ValueError: if the features are not maps of one batch, `where` does not fit them,
        `form` is unknown, or a concrete `power` is not positive.
      TypeError: if either array is not floating-point, or `where` is not boolean.

    Examples:
      >>> import jax.numpy as jnp
      >>> from kdjax import losses
      >>> student_features = jnp.array([2.0, 0.0]).reshape(1, 1, 2, 1)
      >>> teacher_features = jnp.array([[0.0, 0.0], [3.0, 4.0]]).reshape(1, 1, 2, 2)
      >>> print(losses.attention_transfer_loss(
      ...     student_features, teacher_features).round(4))
      [1.4142]

    References:
      Zagoruyko and Komodakis, `Paying More Attention to Attention
      <https://arxiv.org/abs/1612.03928>`_, ICLR 2017, section 3.1, equation 2.
    """
    _maps.check_maps(
        student_features=student_features, teacher_features=teacher_features
    )
    _checks.check_choice(("paper", "author_code"), form=form)
    _checks.check_positive(power=power)

    maps = _maps.drop_invalid(where, student_features, teacher_features)
    student, teacher = (_attention(x, power) for x in _maps.match_sizes(*maps))
    if form == "paper":
        loss = _numerics.norm(student - teacher)
    else:
        loss = jnp.mean((student - teacher) ** 2, axis=-1)
    return _masking.zero_invalid(where, loss)


def _attention(features: jax.Array, power: ScalarLike) -> jax.Array:
    """The sum over channels of a power of the responses, of length 1, `[B, HW]`."""
    (power,) = _numerics.scalars(features, power)
    is_zero = features == 0
    # A power below 1 has an infinite slope at 0.
    powers = jnp.where(is_zero, 1, jnp.abs(features)) ** power
    sums = jnp.sum(jnp.where(is_zero, 0, powers), axis=-1)
    return _embeddings.unit(sums.reshape(sums.shape[0], -1))


def class_attention_maps(
    features: Float[Array, "batch height width channels"],
    kernel: Float[Array, "channels classes"],
    bias: Float[Array, " classes"] | None = None,
) -> Float[Array, "batch height width classes"]:
    r"""A linear classifier's logits at every place, instead of at their mean.

    .. math:: A_{hwk} = \sum_c f_{hwc} \, W_{ck} + b_k

    The mean over the places is the logits of a network that averages its last maps
    before its linear layer: the classifier moves before the average.

    Args:
      features: the last maps, `[batch, height, width, channels]`.
      kernel: of the linear layer, `[channels, num_classes]`.
      bias: of the linear layer, if it has one, `[num_classes]`.

    Returns:
      One map for each class, `[batch, height, width, num_classes]`, in at least
      float32.

    Raises:
      ValueError: if the shapes do not fit.
      TypeError: if an array is not floating-point.

    Examples:
      >>> import jax.numpy as jnp
      >>> from kdjax import losses
      >>> features = jnp.array([[1.0, 0.0], [0.0, 1.0]]).reshape(1, 1, 2, 2)
      >>> kernel = jnp.array([[1.0, -1.0, 0.0], [0.0, 2.0, 3.0]])
      >>> print(losses.class_attention_maps(features, kernel)[0, 0])
      [[ 1. -1.  0.]
       [ 0.  2.  3.]]

    References:
      Guo et al., `Class Attention Transfer Based Knowledge Distillation
      <https://arxiv.org/abs/2304.12777>`_, CVPR 2023, section 3.
    """
    _maps.check_maps(features=features)
    bias = jnp.zeros(kernel.shape[-1:], kernel.dtype) if bias is None else bias
    for name, x in (("kernel", kernel), ("bias", bias)):
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise TypeError(f"Expected floating-point {name}, got {x.dtype}.")
    if kernel.ndim != 2 or kernel.shape[0] != features.shape[-1]:
        raise ValueError(
            f"Expected kernel [channels, num_classes] for features {features.shape}, "
            f"got {kernel.shape}."
        )
    if bias.shape != kernel.shape[1:]:
        raise ValueError(f"Expected bias {kernel.shape[1:]}, got {bias.shape}.")

    arrays = _maps.drop_invalid(None, features[None], kernel[None], bias[None])
    features, kernel, bias = (x[0] for x in arrays)
    maps = jnp.matmul(features, kernel, precision=jax.lax.Precision.HIGHEST)
    return maps + bias.reshape(1, 1, 1, -1)


def cat_kd_loss(
    student_maps: Float[Array, "batch _ _ classes"],
    teacher_maps: Float[Array, "batch _ _ classes"],
    *,
    size: int = 2,
    form: str = "paper",
    where: Bool[Array, " batch"] | None = None,
) -> Float[Array, " batch"]:
    r"""Squared difference of the classes' attention maps, averaged to a few places.

    Where a network finds each class, also those it does not predict, is what it is
    taught here. With :math:`A` of `class_attention_maps` and :math:`\phi` the average
    to a small square:

    .. math::
      \ell = \frac{1}{K} \sum_{k=1}^K \left\|
        \frac{\phi(A^s_k)}{\|\phi(A^s_k)\|_2} - \frac{\phi(A^t_k)}{\|\phi(A^t_k)\|_2}
        \right\|_2^2

    Form `'author_code'` has the mean over the places as well, and leaves the
    normalisation out: so are the tables of distillation made, at a weight of 15 and
    a size of 2 for CIFAR-100 with ResNet-32x4 and ResNet-8x4, and of 0.5 and 4 for
    ImageNet. The experiments that transfer nothing but the maps do normalise, at a
    weight of 50, which for form `'paper'` is 50 over the number of places.

    Args:
      student_maps: one for each class, `[batch, height, width, num_classes]`.
      teacher_maps: which may be of another size, `[batch, height, width,
        num_classes]`.
      size: the height and width to average to.
      form: `'paper'` or `'author_code'`.
      where: which examples are valid, `[batch]`. The loss and the gradient of every
        other example are exactly zero, even if its maps are not finite.

    Returns:
      The loss of each example, without unit, or in squared logits, `[batch]`, in at
      least float32.

    Raises:
      ValueError: if the maps or `where` do not fit, `form` is unknown, or `size` is not
        positive.
      TypeError: if either array is not floating-point, or `where` is not boolean.

    Examples:
      >>> import jax.numpy as jnp
      >>> from kdjax import losses
      >>> student_maps = jnp.array([[4.0, 0.0], [0.0, 0.0]]).reshape(1, 2, 2, 1)
      >>> teacher_maps = jnp.array([[0.0, 0.0], [0.0, 1.0]]).reshape(1, 2, 2, 1)
      >>> print(losses.cat_kd_loss(student_maps, teacher_maps))
      [2.]

    References:
      Guo et al., `Class Attention Transfer Based Knowledge Distillation
      <https://arxiv.org/abs/2304.12777>`_, CVPR 2023, section 3.
    """
    _maps.check_maps(student_maps=student_maps, teacher_maps=teacher_maps)
    _checks.check_choice(("paper", "author_code"), form=form)
    if student_maps.shape[-1] != teacher_maps.shape[-1]:
        raise ValueError(
            "Expected maps of the same classes, got student_maps "
            f"{student_maps.shape}, teacher_maps {teacher_maps.shape}."
        )

    maps = _maps.drop_invalid(where, student_maps, teacher_maps)
    pooled = (_pooling.adaptive_average_pool(x, size=(size, size)) for x in maps)
    student, teacher = (jnp.swapaxes(_maps.places(x), 1, 2) for x in pooled)
    if form == "paper":
        student, teacher = _embeddings.unit(student), _embeddings.unit(teacher)
        loss = jnp.mean(jnp.sum((student - teacher) ** 2, axis=-1), axis=-1)
    else:
        loss = _maps.example_mean((student - teacher) ** 2)
    return _masking.zero_invalid(where, loss)


def semckd_loss(
    student_features: Sequence[Sequence[Float[Array, "batch ..."]]],
    teacher_features: Sequence[Sequence[Float[Array, "batch ..."]]],
    attention: Float[Array, "batch students teachers"],
    *,
    where: Bool[Array, " batch"] | None = None,
) -> Float[Array, " batch"]:
    r"""Mean squared differences of pairs of layers, weighted for each example.

    Semantic calibration: which teacher's layer suits a student's layer is not set by
    hand but learned, by an attention over all pairs of the two:

    .. math::
      \ell = \frac{1}{L_s} \sum_{i=1}^{L_s} \sum_{j=1}^{L_t} \alpha_{ij} \,
        \frac{1}{n_{ij}} \bigl\| r_{ij}(f^s_i) - f^t_j \bigr\|_2^2, \qquad
      \sum_j \alpha_{ij} = 1

    `adapters.SemanticAttention` makes all three arguments. The paper has the sum over
    the student's layers, the code their mean, as here, at a weight of 400.

    Args:
      student_features: student's layer `i` mapped to teacher's layer `j`, at `[i][j]`,
        `[batch, ...]`.
      teacher_features: teacher's layer `j` for student's layer `i`, at `[i][j]`, of the
        same shape.
      attention: the weights, `[batch, student's layers, teacher's layers]`.
      where: which examples are valid, `[batch]`. The loss and the gradient of every
        other example are exactly zero, even if its features are not finite.

    Returns:
      The loss of each example in squared feature units, `[batch]`, in at least
      float32.

    Raises:
      ValueError: if the shapes or the numbers of layers do not fit.
      TypeError: if an array is not floating-point, or `where` is not boolean.

    Examples:
      >>> import jax.numpy as jnp
      >>> from kdjax import losses
      >>> student_features = [[jnp.array([[1.0, 1.0]]), jnp.array([[3.0]])]]
      >>> teacher_features = [[jnp.zeros((1, 2)), jnp.zeros((1, 1))]]
      >>> attention = jnp.array([[[0.75, 0.25]]])
      >>> print(losses.semckd_loss(student_features, teacher_features, attention))
      [3.]

    References:
      Chen et al., `Cross-Layer Distillation with Semantic Calibration
      <https://arxiv.org/abs/2012.03236>`_, AAAI 2021, section 3.
    """
    _check_pairs(student_features, teacher_features, attention)
    students = [x for row in student_features for x in row]
    teachers = [x for row in teacher_features for x in row]

    weights, *flat = _embeddings.flatten_valid(where, attention, *students, *teachers)
    pairs = zip(flat[: len(students)], flat[len(students) :], strict=True)
    distances = [jnp.mean((x - y) ** 2, axis=-1) for x, y in pairs]
    loss = jnp.sum(weights * jnp.stack(distances, axis=-1), axis=-1)
    return _masking.zero_invalid(where, loss / attention.shape[1])


def _check_pairs(
    student_features: Sequence[Sequence[jax.Array]],
    teacher_features: Sequence[Sequence[jax.Array]],
    attention: jax.Array,
) -> None:
    """Raises unless there are two features of one shape for each weight.

    Raises:
      TypeError: if an array is not floating-point.
      ValueError: if the shapes or the numbers of layers do not fit.
    """
    _embeddings.check_batches(attention=attention)
    sides = {"student_features": student_features, "teacher_features": teacher_features}
    found = {name: [len(row) for row in rows] for name, rows in sides.items()}
    expected = [attention.shape[-1]] * attention.shape[1]
    if attention.ndim != 3 or any(x != expected for x in found.values()):
        rows = ", ".join(f"{name} in rows of {x}" for name, x in found.items())
        raise ValueError(
            "Expected attention [batch, student's layers, teacher's layers], got "
            f"{attention.shape} for {rows}."
        )
    for i in range(attention.shape[1]):
        for j in range(attention.shape[2]):
            pair = {f"{name}[{i}][{j}]": rows[i][j] for name, rows in sides.items()}
            _maps.check_same_features(**pair)
            _embeddings.check_batches(attention=attention, **pair)
