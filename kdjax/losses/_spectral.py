"""Losses of correlations of channels, of kernels and of singular vectors."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from kdjax.losses import _checks, _embeddings, _masking


def cka_loss(
    student_features: Float[Array, " batch *student_shape"],
    teacher_features: Float[Array, " batch *teacher_shape"],
    *,
    debiased: bool = False,
    where: Bool[Array, " batch"] | None = None,
) -> Float[Array, " batch"]:
    r"""One minus the linear centred kernel alignment of two representations.

    Alignment is the correlation of the examples' similarities on the two sides: 1
    where the student's features are the teacher's up to rotation and scale. With
    :math:`X`, one flattened example a row, and :math:`H` the centring matrix,

    .. math::
      \ell_i = \frac{B}{2} \sum_j (\hat K^s_{ij} - \hat K^t_{ij})^2, \qquad
      \hat K = \frac{K}{\|K\|_F}, \qquad K = H X X^\top H

    Half the squared distance of two unit vectors is one minus their product.

    Couples examples: entry :math:`i` is the part of row :math:`i`, and the mean of
    all is one minus the alignment. Where all examples of one side are alike, the
    alignment is 0; where they are on both sides, so is the loss.

    The alignment of features wider than the batch is large by chance. `debiased`
    leaves the diagonals out and centres accordingly, which makes numerator and
    denominators unbiased estimates of those of the whole data; it needs 4 examples,
    and is 0 for fewer.

    Args:
      student_features: of any shape, `[batch, ...]`.
      teacher_features: of any shape, which may be another, `[batch, ...]`.
      debiased: whether to use the unbiased estimates.
      where: which examples are valid, `[batch]`. The loss and the gradient of every
        other example are exactly zero, and it is in no kernel.

    Returns:
      The loss of each example, without unit, `[batch]`, in at least float32.

    Raises:
      ValueError: if the batches differ, or `where` does not fit them.
      TypeError: if either array is not floating-point, or `where` is not boolean.

    Examples:
      >>> import jax.numpy as jnp
      >>> from kdjax import losses
      >>> teacher_features = jnp.array([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]])
      >>> student_features = 3 * teacher_features[:, ::-1]  # Rotated and scaled.
      >>> print(losses.cka_loss(student_features, teacher_features).round(4))
      [0. 0. 0.]

    References:
      Kornblith et al., `Similarity of Neural Network Representations Revisited
      <https://arxiv.org/abs/1905.00414>`_, ICML 2019, section 3; the unbiased
      estimate is that of Song et al., `Feature Selection via Dependence Maximization
      <https://jmlr.org/papers/v13/song12a.html>`_, JMLR 2012, section 3.
    """
    _embeddings.check_batches(
        student_features=student_features, teacher_features=teacher_features
    )

    student, teacher = _embeddings.flatten_valid(
        where, student_features, teacher_features
    )
    valid = _embeddings.is_valid(where, student)
    center = _center_without_diagonal if debiased else _center
    kernels = [center(x, valid) for x in (student, teacher)]
    student, teacher = (_embeddings.unit(kernel.reshape(-1)) for kernel in kernels)
    rows = jnp.sum(((student - teacher) ** 2).reshape(len(valid), -1), axis=-1)
    exists = [jnp.any(kernel != 0) for kernel in kernels]
    count = _masking.num_valid(where, student[: len(valid)])
    loss = 0.5 * count * rows + 0.5 * (exists[0] ^ exists[1]).astype(rows.dtype)
    return _masking.zero_invalid(where, loss)


def _center(x: jax.Array, valid: jax.Array) -> jax.Array:
    """Inner products of the rows less their mean, zero where one is not valid."""
    mask = valid.astype(x.dtype)[:, None]
    x = x - jnp.sum(x, axis=0, keepdims=True) / jnp.maximum(jnp.sum(mask), 1)
    return _embeddings.inner(mask * x, mask * x)


def _center_without_diagonal(x: jax.Array, valid: jax.Array) -> jax.Array:
    """Inner products of different rows, centred so that all rows sum to 0."""
    count = jnp.sum(valid.astype(x.dtype))
    # Removing the mean first changes nothing but the rounding.
    kernel = _center(x, valid)
    pairs = valid[:, None] & valid[None] & ~jnp.eye(len(valid), dtype=jnp.bool_)
    kernel = jnp.where(pairs, kernel, 0)
    rows = jnp.sum(kernel, axis=-1, keepdims=True) / jnp.maximum(count - 2, 1)
    total = jnp.sum(rows) / jnp.maximum(count - 1, 1)
    return jnp.where(pairs & (count > 3), kernel - rows - rows.T + total, 0)


def ickd_loss(
    student_features: Float[Array, "batch height width channels"],
    teacher_features: Float[Array, "batch teacher_height teacher_width channels"],
    *,
    form: str = "paper",
    where: Bool[Array, " batch"] | None = None,
) -> Float[Array, " batch"]:
    r"""Squared difference of the correlations between channels.

    How alike the channels are says how diverse the features are, and needs no
    correspondence of positions. With :math:`F`, one channel of an example a row,

    .. math::
      \ell = \frac{1}{C^2} \|G^s - G^t\|_F^2, \qquad G = F F^\top

    Form `'author_code'`: the rows of :math:`G` are divided by their lengths and
    the sum by :math:`C`, which does not depend on the size of the maps. An adapter
    that gives the student the teacher's number of channels comes before.

    Args:
      student_features: `[batch, height, width, channels]`.
      teacher_features: `[batch, height, width, channels]`; the height and width may
        be others.
      form: `'paper'` or `'author_code'`.
      where: which examples are valid, `[batch]`. The loss and the gradient of every
        other example are exactly zero, even if its features are not finite.

    Returns:
      The loss of each example, in units of the features to the fourth power or
      without unit, `[batch]`, in at least float32.

    Raises:
      ValueError: if the shapes do not fit, or `form` is unknown.
      TypeError: if either array is not floating-point, or `where` is not boolean.

    Examples:
      >>> import jax.numpy as jnp
      >>> from kdjax import losses
      >>> student_features = jnp.array([[[[1.0, 0.0], [0.0, 1.0]]]])  # Unrelated.
      >>> teacher_features = jnp.array([[[[1.0, 1.0]]]])  # The same.
      >>> print(losses.ickd_loss(student_features, teacher_features))
      [0.5]

    References:
      Liu et al., `Exploring Inter-Channel Correlation for Diversity-preserved
      Knowledge Distillation <https://arxiv.org/abs/2202.03680>`_, ICCV 2021,
      section 3.
    """
    _check_maps(student_features=student_features, teacher_features=teacher_features)
    _checks.check_choice(("paper", "author_code"), form=form)

    channels = student_features.shape[-1]
    grams = [_channel_products(x, where) for x in (student_features, teacher_features)]
    if form == "author_code":
        grams = [_embeddings.unit(gram) for gram in grams]
    dtype = jnp.result_type(*grams)
    student, teacher = (gram.astype(dtype) for gram in grams)
    loss = jnp.sum((student - teacher) ** 2, axis=(1, 2))
    loss = loss / (channels**2 if form == "paper" else channels)
    return _masking.zero_invalid(where, loss)


def _check_maps(**arrays: jax.Array) -> None:
    """Raises unless all are floating feature maps of one batch and channels."""
    _embeddings.check_batches(**arrays)
    for name, x in arrays.items():
        if x.ndim != 4:
            raise ValueError(
                f"Expected {name} [batch, height, width, channels], got {x.shape}."
            )
    if len({x.shape[-1] for x in arrays.values()}) > 1:
        found = ", ".join(f"{name} {x.shape}" for name, x in arrays.items())
        raise ValueError(
            f"Expected equally many channels, got {found}: adapt the student's."
        )


def _channel_products(x: jax.Array, where: jax.Array | None) -> jax.Array:
    """Inner products of the channels of each example, `[batch, C, C]`."""
    (flat,) = _embeddings.flatten_valid(where, x)
    channels = jnp.swapaxes(flat.reshape(x.shape[0], -1, x.shape[-1]), 1, 2)
    return _embeddings.inner(channels, channels)


def kdsvd_loss(
    student_features: tuple[Float[Array, "batch _ _ _"], ...],
    teacher_features: tuple[Float[Array, "batch _ _ _"], ...],
    *,
    num_vectors: int = 1,
    where: Bool[Array, " batch"] | None = None,
) -> Float[Array, " batch"]:
    r"""Squared difference of how singular vectors change from stage to stage.

    Each stage's map is compressed, by singular value decomposition over its
    positions, to the :math:`k` directions :math:`V` of its channels that carry most;
    what is distilled is their relation to those of the stage before:

    .. math::
      \ell = \sum_{l > 1} \sum_{c, d, i} \bigl(R^s_{l,cdi} - R^t_{l,cdi}\bigr)^2,
      \qquad R_{l,cdi} = \exp\bigl(-(V_{l,ci} - V_{l-1,di})^2 / 8\bigr)

    Every vector is scaled by its share of the teacher's singular values, which have
    length 1 together. Of the student's first :math:`k + 3` vectors each takes the
    place of that teacher's vector which it is most parallel to, and its sign; a
    teacher's vector points where its entries sum to no less than 0, for a
    decomposition leaves that open.

    The derivative of a vector grows as another's singular value comes close; it is
    left out where the two agree to rounding, so that it is finite.

    Args:
      student_features: at least two stages, `[batch, height, width, channels]` each.
      teacher_features: as many, with the same channels at each stage; the heights
        and widths may be others.
      num_vectors: the number :math:`k` of directions.
      where: which examples are valid, `[batch]`. The loss and the gradient of every
        other example are exactly zero, even if its features are not finite.

    Returns:
      The loss of each example, without unit, `[batch]`, in at least float32.

    Raises:
      ValueError: if there are fewer than 2 stages, the shapes do not fit, or
        `num_vectors` is not positive.
      TypeError: if an array is not floating-point, or `where` is not boolean.

    Examples:
      >>> import jax.numpy as jnp
      >>> from kdjax import losses
      >>> same, other = jnp.array([[[[1.0, 0.0]]]]), jnp.array([[[[0.0, 1.0]]]])
      >>> print(losses.kdsvd_loss((same, other), (same, same)).round(4))
      [0.]

    References:
      Lee et al., `Self-supervised Knowledge Distillation Using Singular Value
      Decomposition <https://arxiv.org/abs/1807.06819>`_, ECCV 2018, section 3; with
      one vector as in RepDistiller.
    """
    _checks.check_positive(num_vectors=num_vectors)
    if len(student_features) != len(teacher_features) or len(student_features) < 2:
        raise ValueError(
            "Expected at least 2 stages, as many of the student as of the teacher, "
            f"got {len(student_features)} and {len(teacher_features)}."
        )
    loss, before = jnp.zeros(()), None
    for student, teacher in zip(student_features, teacher_features, strict=True):
        _check_maps(student_features=student, teacher_features=teacher)
        vectors = _aligned_vectors(student, teacher, num_vectors, where)
        if before is not None:
            of_student, of_teacher = (
                jnp.exp(-((x[:, :, None] - y[:, None]) ** 2) / 8)
                for x, y in zip(vectors, before, strict=True)
            )
            stage = jnp.sum((of_student - of_teacher) ** 2, axis=(1, 2, 3))
            loss = loss.astype(stage.dtype) + stage
        before = vectors
    return _masking.zero_invalid(where, loss)


def _aligned_vectors(
    student: jax.Array, teacher: jax.Array, count: int, where: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    """Scaled right singular vectors of both sides in one order, `[batch, C, k]`."""
    channels = teacher.shape[-1]
    count = min(count, channels)
    values, teacher = _singular_vectors(_channel_products(teacher, where), count)
    _, student = _singular_vectors(
        _channel_products(student, where), min(count + 3, channels)
    )
    sign = jnp.where(jnp.sum(teacher, axis=1, keepdims=True) < 0, -1, 1)
    teacher = teacher * sign.astype(teacher.dtype)
    wide = jnp.result_type(student, teacher)
    student, teacher = student.astype(wide), teacher.astype(wide)
    cosines = _embeddings.inner(
        jnp.swapaxes(student, 1, 2), jnp.swapaxes(teacher, 1, 2)
    )
    chosen = jax.nn.one_hot(
        jnp.argmax(jnp.abs(cosines), axis=1), cosines.shape[1], axis=1
    )
    aligned = jnp.matmul(
        student, (chosen.astype(wide) * jnp.sign(cosines)), precision="highest"
    )
    scale = _embeddings.unit(values)[:, None].astype(wide)
    return scale * aligned, scale * teacher


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _singular_vectors(gram: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """The largest singular values, and right vectors `[..., C, count]`, by `X^T X`."""
    values, vectors, _, _ = _decompose(gram)
    return values[..., :count], vectors[..., :count]


def _decompose(gram: jax.Array) -> tuple[jax.Array, ...]:
    """All singular values, largest first, their vectors, squares, and their noise."""
    squares, vectors = jax.lax.platform_dependent(
        gram, cpu=_eigh_one_by_one, default=_eigh
    )
    squares, vectors = jnp.maximum(squares[..., ::-1], 0), vectors[..., ::-1]
    noise = gram.shape[-1] * jnp.finfo(gram.dtype).eps * squares[..., :1]
    return jnp.sqrt(squares), vectors, squares, noise


def _eigh(gram: jax.Array) -> tuple[jax.Array, jax.Array]:
    values, vectors = jnp.linalg.eigh(gram)
    return values, vectors


def _eigh_one_by_one(gram: jax.Array) -> tuple[jax.Array, jax.Array]:
    """As `_eigh`, of one matrix at a time, under `vmap` too.

    On CPU a batch of them waits for threads of the very pool that it runs on and, in a
    larger program such as a train step, hangs for good (seen in jaxlib 0.10.2).
    """
    one = jax.custom_batching.sequential_vmap(_eigh)
    flat = gram.reshape(-1, *gram.shape[-2:])
    values, vectors = jax.lax.map(one, flat)
    return values.reshape(gram.shape[:-1]), vectors.reshape(gram.shape)


@_singular_vectors.defjvp
def _singular_vectors_jvp(count: int, primals: tuple, tangents: tuple) -> tuple:
    """First-order perturbation, without the terms of equal singular values."""
    values, vectors, squares, noise = _decompose(primals[0])
    change = jnp.matmul(tangents[0], vectors, precision="highest")
    change = jnp.matmul(jnp.swapaxes(vectors, -1, -2), change, precision="highest")
    gap = squares[..., None, :] - squares[..., :, None]
    known = jnp.abs(gap) > noise[..., None]
    mixing = jnp.where(known, change / jnp.where(known, gap, 1), 0)
    of_vectors = jnp.matmul(vectors, mixing, precision="highest")
    is_large = squares > noise
    of_squares = jnp.diagonal(change, axis1=-2, axis2=-1)
    of_values = jnp.where(
        is_large, of_squares / (2 * jnp.where(is_large, values, 1)), 0
    )
    return (
        (values[..., :count], vectors[..., :count]),
        (of_values[..., :count], of_vectors[..., :count]),
    )
