"""Losses of what a network does from layer to layer, and from channel to channel."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from kdjax.losses import _checks, _embeddings, _maps, _masking, _numerics


def fsp_matrix(
    first_features: Float[Array, "batch _ _ first_channels"],
    second_features: Float[Array, "batch _ _ second_channels"],
) -> Float[Array, "batch first_channels second_channels"]:
    r"""Inner products of the channels of two layers of one network.

    The flow of the solution procedure: how the features of one layer go into those of
    a later one.

    .. math:: G_{cd} = \frac{1}{H W} \sum_{h,w} f^1_{hwc} \, f^2_{hwd}

    Where the heights or widths differ, the larger map is averaged to the smaller by
    `adaptive_average_pool` first. The paper takes the maximum instead.

    Args:
      first_features: maps of a layer, `[batch, height, width, first_channels]`.
      second_features: maps of a later layer, which may be of another size,
        `[batch, height, width, second_channels]`.

    Returns:
      The matrix of each example in squared feature units, `[batch, first_channels,
      second_channels]`, in at least float32.

    Raises:
      ValueError: if the features are not maps of one batch.
      TypeError: if either array is not floating-point.

    Examples:
      >>> import jax.numpy as jnp
      >>> from kdjax import losses
      >>> first_features = jnp.array([1.0, 3.0]).reshape(1, 1, 2, 1)
      >>> second_features = jnp.array([[1.0, 0.0], [1.0, 2.0]]).reshape(1, 1, 2, 2)
      >>> print(losses.fsp_matrix(first_features, second_features))
      [[[2. 3.]]]

    References:
      Yim et al., `A Gift from Knowledge Distillation
      <https://openaccess.thecvf.com/content_cvpr_2017/html/Yim_A_Gift_From_CVPR_2017_paper.html>`_,
      CVPR 2017, equation 1.
    """
    _maps.check_maps(first_features=first_features, second_features=second_features)
    maps = _maps.drop_invalid(None, first_features, second_features)
    first, second = (_maps.places(x) for x in _maps.match_sizes(*maps))
    products = jnp.matmul(
        jnp.swapaxes(first, 1, 2), second, precision=jax.lax.Precision.HIGHEST
    )
    return products / first.shape[1]


def fsp_loss(
    student_features: tuple[
        Float[Array, "batch _ _ first_channels"],
        Float[Array, "batch _ _ second_channels"],
    ],
    teacher_features: tuple[
        Float[Array, "batch _ _ first_channels"],
        Float[Array, "batch _ _ second_channels"],
    ],
    *,
    where: Bool[Array, " batch"] | None = None,
) -> Float[Array, " batch"]:
    r"""Mean squared difference of the flows between two layers.

    The student is to solve the problem by the same steps, whatever the features are
    that it takes them with. With :math:`G` of `fsp_matrix`, between the same two
    layers of both networks,

    .. math::
      \ell = \frac{1}{C_1 C_2} \sum_{c,d} (G^s_{cd} - G^t_{cd})^2

    The mean over the matrix is RepDistiller's, at a weight of 50 on each of the pairs
    of successive layers, in a first stage of training that has no other loss; the
    paper has the sum. Heights and widths of the two networks may differ, channels may
    not.

    Args:
      student_features: maps of an earlier and of a later layer,
        `[batch, height, width, channels]` each.
      teacher_features: maps of the teacher's earlier and later layer, each with as
        many channels as the student's.
      where: which examples are valid, `[batch]`. The loss and the gradient of every
        other example are exactly zero, even if its features are not finite.

    Returns:
      The loss of each example, in the fourth power of feature units, `[batch]`, in at
      least float32.

    Raises:
      ValueError: if the features are not two pairs of maps of one batch with the same
        channels, or `where` does not fit them.
      TypeError: if an array is not floating-point, or `where` is not boolean.

    Examples:
      >>> import jax.numpy as jnp
      >>> from kdjax import losses
      >>> student_features = jnp.ones((1, 4, 4, 2)), jnp.ones((1, 2, 2, 3))
      >>> teacher_features = 2 * jnp.ones((1, 8, 8, 2)), jnp.ones((1, 4, 4, 3))
      >>> print(losses.fsp_loss(student_features, teacher_features))
      [1.]

    References:
      Yim et al., `A Gift from Knowledge Distillation
      <https://openaccess.thecvf.com/content_cvpr_2017/html/Yim_A_Gift_From_CVPR_2017_paper.html>`_,
      CVPR 2017, equation 2.
    """
    names = ("student_features", "teacher_features")
    sides = (student_features, teacher_features)
    for name, pair in zip(names, sides, strict=True):
        if len(pair) != 2:
            raise ValueError(f"Expected {name} of two layers, got {len(pair)}.")
    arrays = {
        f"{n}[{i}]": x
        for n, p in zip(names, sides, strict=True)
        for i, x in enumerate(p)
    }
    _maps.check_maps(**arrays)
    channels = [tuple(x.shape[-1] for x in pair) for pair in sides]
    if channels[0] != channels[1]:
        raise ValueError(
            "Expected layers with the same channels, got student_features "
            f"{channels[0]}, teacher_features {channels[1]}: take layers of one width, "
            "or map the student's by an adapter."
        )

    first_s, second_s, first_t, second_t = _maps.drop_invalid(where, *arrays.values())
    difference = fsp_matrix(first_s, second_s) - fsp_matrix(first_t, second_t)
    return _masking.zero_invalid(where, _maps.example_mean(difference**2))


def nst_loss(
    student_features: Float[Array, "batch _ _ _"],
    teacher_features: Float[Array, "batch _ _ _"],
    *,
    kernel: str = "polynomial",
    where: Bool[Array, " batch"] | None = None,
) -> Float[Array, " batch"]:
    r"""Maximum mean discrepancy of the channels' patterns of activation.

    A neuron is selective for some of the places of an image. The student's neurons,
    taken as a sample of patterns, are to be distributed as the teacher's: in any
    order, and in any number. With :math:`u_c` the places of channel :math:`c`, of
    length 1,

    .. math::
      \ell = \frac{1}{C_t^2} \sum_{c,d} k(u^t_c, u^t_d)
        + \frac{1}{C_s^2} \sum_{c,d} k(u^s_c, u^s_d)
        - \frac{2}{C_s C_t} \sum_{c,d} k(u^s_c, u^t_d)

    The kernel :math:`k(a, b)` is :math:`(a^\top b)^2`, :math:`a^\top b`, or
    :math:`\exp(-\|a - b\|^2 / 2 \sigma^2)` with :math:`\sigma^2` the mean of
    :math:`\|u^s_c - u^t_d\|^2`, through which the gradient flows. RepDistiller's
    tables have the first, at a weight of 50.

    Where the heights or widths differ, the larger map is averaged to the smaller by
    `adaptive_average_pool` first. A channel of zeros stays so, and has no gradient.

    Args:
      student_features: maps, `[batch, height, width, channels]`.
      teacher_features: maps, which may be of another size and depth,
        `[batch, height, width, channels]`.
      kernel: `'polynomial'`, `'linear'` or `'gaussian'`.
      where: which examples are valid, `[batch]`. The loss and the gradient of every
        other example are exactly zero, even if its features are not finite.

    Returns:
      The loss of each example, without unit, `[batch]`, in at least float32.

    Raises:
      ValueError: if the features are not maps of one batch, `where` does not fit them,
        or `kernel` is unknown.
      TypeError: if either array is not floating-point, or `where` is not boolean.

    Examples:
      >>> import jax.numpy as jnp
      >>> from kdjax import losses
      >>> student_features = jnp.array([2.0, 0.0]).reshape(1, 1, 2, 1)
      >>> teacher_features = jnp.array([[0.0, 3.0], [5.0, 0.0]]).reshape(1, 1, 2, 2)
      >>> print(losses.nst_loss(student_features, teacher_features))
      [0.5]

    References:
      Huang and Wang, `Like What You Like: Knowledge Distill via Neuron Selectivity
      Transfer <https://arxiv.org/abs/1707.01219>`_, 2017, section 4.
    """
    _maps.check_maps(
        student_features=student_features, teacher_features=teacher_features
    )
    _checks.check_choice(("polynomial", "linear", "gaussian"), kernel=kernel)

    maps = _maps.drop_invalid(where, student_features, teacher_features)
    student, teacher = (
        _embeddings.unit(jnp.swapaxes(_maps.places(x), 1, 2))
        for x in _maps.match_sizes(*maps)
    )
    own, others, across = _kernels(student, teacher, kernel)
    loss = sum(_maps.example_mean(x) for x in (own, others)) - 2 * _maps.example_mean(
        across
    )
    return _masking.zero_invalid(where, loss)


def _kernels(
    student: jax.Array, teacher: jax.Array, kernel: str
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Kernels of student's, of teacher's, and of one of each's channels."""
    pairs = (student, student), (teacher, teacher), (student, teacher)
    products = [_embeddings.inner(x, y) for x, y in pairs]
    if kernel == "polynomial":
        products = [x**2 for x in products]
    elif kernel == "gaussian":
        squares = [
            jnp.sum(x**2, axis=-1)[:, :, None] + jnp.sum(y**2, axis=-1)[:, None] - 2 * z
            for (x, y), z in zip(pairs, products, strict=True)
        ]
        variance = jnp.mean(squares[2], axis=(1, 2), keepdims=True)
        # Of rounding errors alone, where all patterns are one.
        variance = jnp.where(variance > 1e-6, variance, 1)
        products = [jnp.exp(-x / (2 * variance)) for x in squares]
    return products[0], products[1], products[2]


def factor_loss(
    student_factor: Float[Array, "batch _ _ _"],
    teacher_factor: Float[Array, "batch _ _ _"],
    *,
    form: str = "paper",
    where: Bool[Array, " batch"] | None = None,
) -> Float[Array, " batch"]:
    r"""Absolute difference of factors, normalised.

    Factor transfer: an autoencoder, the paraphraser, extracts the factors of the
    teacher's features before the student is trained; a translator extracts the
    student's along with it (`adapters.Paraphraser` and `adapters.Translator`):

    .. math::
      \ell = \frac{1}{n} \sum_{i=1}^n \left|
        \frac{F^s_i}{\|F^s\|_2} - \frac{F^t_i}{\|F^t\|_2} \right|

    The mean over the :math:`n` elements is the authors' code's, at a weight of 500;
    the paper writes the sum. Form `'repdistiller'`, by which RepDistiller's tables
    are made, under the same name and at a weight of 200, compares maps of attention
    instead: :math:`F_{hw} = \sum_c f_{hwc}^2` takes the place of the factor, the
    larger map is averaged to the smaller first, and channels may differ.

    Args:
      student_factor: of the translator, `[batch, height, width, channels]`.
      teacher_factor: of the paraphraser, `[batch, height, width, channels]`.
      form: `'paper'` or `'repdistiller'`.
      where: which examples are valid, `[batch]`. The loss and the gradient of every
        other example are exactly zero, even if its factors are not finite.

    Returns:
      The loss of each example, without unit, `[batch]`, in at least float32.

    Raises:
      ValueError: if the factors are not maps of one batch, of one shape for the
        paper's form, `where` does not fit them, or `form` is unknown.
      TypeError: if either array is not floating-point, or `where` is not boolean.

    Examples:
      >>> import jax.numpy as jnp
      >>> from kdjax import losses
      >>> student_factor = jnp.array([2.0, 0.0]).reshape(1, 1, 1, 2)
      >>> teacher_factor = jnp.array([0.0, 5.0]).reshape(1, 1, 1, 2)
      >>> print(losses.factor_loss(student_factor, teacher_factor).round(4))
      [1.]

    References:
      Kim et al., `Paraphrasing Complex Network: Network Compression via Factor
      Transfer <https://arxiv.org/abs/1802.04977>`_, NeurIPS 2018, section 3.
    """
    _checks.check_choice(("paper", "repdistiller"), form=form)
    _maps.check_maps(student_factor=student_factor, teacher_factor=teacher_factor)
    if form == "paper":
        _maps.check_same_features(
            student_factor=student_factor, teacher_factor=teacher_factor
        )

    factors = _maps.drop_invalid(where, student_factor, teacher_factor)
    if form == "repdistiller":
        factors = tuple(jnp.sum(x**2, axis=-1) for x in _maps.match_sizes(*factors))
    student, teacher = (_embeddings.unit(x.reshape(x.shape[0], -1)) for x in factors)
    loss = jnp.mean(_numerics.absolute(student - teacher), axis=-1)
    return _masking.zero_invalid(where, loss)
