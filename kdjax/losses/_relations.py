"""Losses that compare how the examples of a batch relate in two embedding spaces."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, ScalarLike

from kdjax.losses import _checks, _embeddings, _masking, _numerics


def rkd_distance_loss(
    student_embedding: Float[Array, "batch student_dim"],
    teacher_embedding: Float[Array, "batch teacher_dim"],
    *,
    where: Bool[Array, " batch"] | None = None,
) -> Float[Array, " batch"]:
    r"""Huber difference of the distances between examples, in units of their mean.

    Relational distillation of pairs: the student may place the examples anywhere, in
    any dimension, as long as near and far are as for the teacher:

    .. math::
      \ell_i = \frac{1}{B} \sum_j h\!\left(\frac{\|e^s_i - e^s_j\|}{\mu^s}
        - \frac{\|e^t_i - e^t_j\|}{\mu^t}\right), \qquad
      h(x) = \begin{cases} x^2 / 2 & |x| \le 1 \\ |x| - 1/2 & |x| > 1 \end{cases}

    Each side's :math:`\mu` is its mean distance over the pairs of different examples;
    the gradient flows through the student's. Couples examples: entry :math:`i` is the
    part of the pairs of example :math:`i`, and the mean of all is the paper's value.
    Two examples at one point are at distance 0, which has no gradient. The paper
    weighs this 25, and `rkd_angle_loss` 50, on embeddings not normalised.

    Args:
      student_embedding: one vector an example, `[batch, student_dim]`.
      teacher_embedding: one vector an example, `[batch, teacher_dim]`.
      where: which examples are valid, `[batch]`. The loss and the gradient of every
        other example are exactly zero, and it is in no pair.

    Returns:
      The loss of each example, without unit, `[batch]`, in at least float32.

    Raises:
      ValueError: if the batches differ, or `where` does not fit them.
      TypeError: if either array is not floating-point, or `where` is not boolean.

    Examples:
      >>> import jax.numpy as jnp
      >>> from kdjax import losses
      >>> student_embedding = jnp.array([[0.0], [1.0], [2.0]])
      >>> teacher_embedding = jnp.array([[0.0, 0.0], [0.0, 3.0], [0.0, 6.0]])
      >>> print(losses.rkd_distance_loss(student_embedding, teacher_embedding))
      [0. 0. 0.]

    References:
      Park et al., `Relational Knowledge Distillation
      <https://arxiv.org/abs/1904.05068>`_, CVPR 2019, equations 5 to 8.
    """
    _embeddings.check_batches(
        student_embedding=student_embedding, teacher_embedding=teacher_embedding
    )

    student, teacher = _embeddings.flatten_valid(
        where, student_embedding, teacher_embedding
    )
    pairs = _embeddings.pairs(where, student)
    difference = _relative_distances(student, pairs) - _relative_distances(
        teacher, pairs
    )
    loss = jnp.sum(_huber(difference), axis=-1) / _masking.num_valid(where, student)
    return _masking.zero_invalid(where, loss)


def _relative_distances(x: jax.Array, pairs: jax.Array) -> jax.Array:
    """Distances of the rows of `x` over their mean, where `pairs`, else 0."""
    # By differences: from inner products, near points would be at noise's distance.
    distances = jnp.where(pairs, _numerics.norm(x[:, None] - x[None]), 0)
    count = jnp.maximum(jnp.sum(pairs.astype(x.dtype)), 1)
    mean = jnp.sum(distances) / count
    return distances / jnp.where(mean > 0, mean, 1)


def _huber(x: jax.Array) -> jax.Array:
    size = jnp.abs(x)
    return jnp.where(size < 1, 0.5 * x**2, size - 0.5)


def rkd_angle_loss(
    student_embedding: Float[Array, "batch student_dim"],
    teacher_embedding: Float[Array, "batch teacher_dim"],
    *,
    where: Bool[Array, " batch"] | None = None,
) -> Float[Array, " batch"]:
    r"""Huber difference of the cosines of the angles between three examples.

    Relational distillation of triplets, which see more of the structure than
    distances do. With :math:`u_{ij}` the unit vector from example :math:`i` to
    :math:`j`, zero where they coincide,

    .. math::
      \ell_i = \frac{1}{B^2} \sum_{j,k} h\bigl(\langle u^s_{ij}, u^s_{ik} \rangle
        - \langle u^t_{ij}, u^t_{ik} \rangle\bigr)

    :math:`h` is the Huber loss of `rkd_distance_loss`. Couples examples: entry
    :math:`i` is the part of the angles at example :math:`i`, and the mean of all is
    the paper's value. It takes memory for :math:`B^2 (B + D)` numbers. The paper
    weighs it 50.

    Args:
      student_embedding: one vector an example, `[batch, student_dim]`.
      teacher_embedding: one vector an example, `[batch, teacher_dim]`.
      where: which examples are valid, `[batch]`. The loss and the gradient of every
        other example are exactly zero, and it is in no triplet.

    Returns:
      The loss of each example, without unit, `[batch]`, in at least float32.

    Raises:
      ValueError: if the batches differ, or `where` does not fit them.
      TypeError: if either array is not floating-point, or `where` is not boolean.

    Examples:
      >>> import jax.numpy as jnp
      >>> from kdjax import losses
      >>> student_embedding = jnp.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
      >>> teacher_embedding = jnp.array([[0.0, 0.0], [1.0, 0.0], [-1.0, 0.0]])
      >>> print(losses.rkd_angle_loss(student_embedding, teacher_embedding).round(4))
      [0.1111 0.0095 0.0095]

    References:
      Park et al., `Relational Knowledge Distillation
      <https://arxiv.org/abs/1904.05068>`_, CVPR 2019, equations 9 and 10.
    """
    _embeddings.check_batches(
        student_embedding=student_embedding, teacher_embedding=teacher_embedding
    )

    student, teacher = _embeddings.flatten_valid(
        where, student_embedding, teacher_embedding
    )
    pairs = _embeddings.pairs(where, student)
    loss = jnp.sum(_huber(_angles(student, pairs) - _angles(teacher, pairs)), (1, 2))
    loss = loss / _masking.num_valid(where, student) ** 2
    return _masking.zero_invalid(where, loss)


def _angles(x: jax.Array, pairs: jax.Array) -> jax.Array:
    """Cosines of the angles at row i between rows j and k, `[i, j, k]`."""
    # Zeroed before they become unit vectors too, as rounding may differ for a pair.
    steps = jnp.where(pairs[..., None], x[None] - x[:, None], 0)
    units = _embeddings.unit(steps)
    return _embeddings.inner(units, units)


def similarity_preserving_loss(
    student_features: Float[Array, " batch *student_shape"],
    teacher_features: Float[Array, " batch *teacher_shape"],
    *,
    where: Bool[Array, " batch"] | None = None,
) -> Float[Array, " batch"]:
    r"""Squared difference of the similarities of the examples' activations.

    Inputs that activate the teacher alike should activate the student alike. With
    :math:`Q`, one flattened example a row,

    .. math::
      \ell_i = \frac{1}{B} \sum_j (G^s_{ij} - G^t_{ij})^2, \qquad
      G_{i:} = \frac{(Q Q^\top)_{i:}}{\|(Q Q^\top)_{i:}\|_2}

    Couples examples: entry :math:`i` is the part of row :math:`i`, and the mean of
    all is the paper's :math:`\|G^s - G^t\|_F^2 / B^2`. An example without any
    activation has a row of zeros. The paper weighs this 3000, on the last feature
    maps. The rows are of length 1 in the Euclidean norm: some ports divide by their
    sum of absolute values, which is another loss.

    Args:
      student_features: of any shape, `[batch, ...]`.
      teacher_features: of any shape, which may be another, `[batch, ...]`.
      where: which examples are valid, `[batch]`. The loss and the gradient of every
        other example are exactly zero, and it is in no row.

    Returns:
      The loss of each example, without unit, `[batch]`, in at least float32.

    Raises:
      ValueError: if the batches differ, or `where` does not fit them.
      TypeError: if either array is not floating-point, or `where` is not boolean.

    Examples:
      >>> import jax.numpy as jnp
      >>> from kdjax import losses
      >>> student_features = jnp.array([[1.0, 0.0], [0.0, 1.0]])  # Unrelated.
      >>> teacher_features = jnp.array([[1.0, 0.0], [1.0, 0.0]])  # The same.
      >>> print(losses.similarity_preserving_loss(
      ...     student_features, teacher_features).round(4))
      [0.2929 0.2929]

    References:
      Tung and Mori, `Similarity-Preserving Knowledge Distillation
      <https://arxiv.org/abs/1907.09682>`_, ICCV 2019, equations 1 to 4.
    """
    _embeddings.check_batches(
        student_features=student_features, teacher_features=teacher_features
    )

    student, teacher = _embeddings.flatten_valid(
        where, student_features, teacher_features
    )
    grams = [_embeddings.unit(_embeddings.inner(x, x)) for x in (student, teacher)]
    loss = jnp.sum((grams[0] - grams[1]) ** 2, axis=-1)
    return _masking.zero_invalid(where, loss / _masking.num_valid(where, student))


def pkt_loss(
    student_embedding: Float[Array, "batch student_dim"],
    teacher_embedding: Float[Array, "batch teacher_dim"],
    *,
    form: str = "paper",
    where: Bool[Array, " batch"] | None = None,
) -> Float[Array, " batch"]:
    r"""Divergence of the probabilities that examples are neighbours.

    Probabilistic knowledge transfer: for each example, a distribution over the
    others by cosine similarity, which the student matches:

    .. math::
      \ell_i = \sum_{j \ne i} p^t_{ij} \log \frac{p^t_{ij}}{p^s_{ij}}, \qquad
      p_{ij} = \frac{k(e_i, e_j)}{\sum_{l \ne i} k(e_i, e_l)}, \qquad
      k(a, b) = \frac{1}{2} \left(\frac{a^\top b}{\|a\| \|b\|} + 1\right)

    Form `'author_code'`: an example is a neighbour of itself as well, and the mean
    over :math:`j` takes the place of the sum, which RepDistiller's tables were made
    with, at a weight of 30000. In both, 1e-7 is added to the lengths and inside the
    logarithm, as in the code: opposite examples have a similarity of 0.

    Couples examples: entry :math:`i` is the part of the neighbours of example
    :math:`i`; the paper sums them over the batch.

    Args:
      student_embedding: one vector an example, `[batch, student_dim]`.
      teacher_embedding: one vector an example, `[batch, teacher_dim]`.
      form: `'paper'` or `'author_code'`.
      where: which examples are valid, `[batch]`. The loss and the gradient of every
        other example are exactly zero, and it is nobody's neighbour.

    Returns:
      The loss of each example in nats, `[batch]`, in at least float32.

    Raises:
      ValueError: if the batches differ, `where` does not fit them, or `form` is
        unknown.
      TypeError: if either array is not floating-point, or `where` is not boolean.

    Examples:
      >>> import jax.numpy as jnp
      >>> from kdjax import losses
      >>> student_embedding = jnp.array([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
      >>> teacher_embedding = jnp.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
      >>> print(losses.pkt_loss(student_embedding, teacher_embedding).round(1))
      [0.1 0.2 0.1]

    References:
      Passalis and Tefas, `Learning Deep Representations with Probabilistic Knowledge
      Transfer <https://arxiv.org/abs/1803.10837>`_, ECCV 2018, equations 3 to 7.
    """
    _embeddings.check_batches(
        student_embedding=student_embedding, teacher_embedding=teacher_embedding
    )
    _checks.check_choice(("paper", "author_code"), form=form)

    student, teacher = _embeddings.flatten_valid(
        where, student_embedding, teacher_embedding
    )
    neighbours = _embeddings.pairs(where, student)
    if form == "author_code":
        valid = _embeddings.is_valid(where, student)
        neighbours = valid[:, None] & valid[None]
    p, q = (_neighbour_probs(x, neighbours) for x in (teacher, student))
    loss = jnp.sum(p * (jnp.log(p + 1e-7) - jnp.log(q + 1e-7)), axis=-1)
    if form == "author_code":
        loss = loss / _masking.num_valid(where, student)
    return _masking.zero_invalid(where, loss)


def _neighbour_probs(x: jax.Array, neighbours: jax.Array) -> jax.Array:
    x = x / (_numerics.norm(x)[:, None] + 1e-7)
    similarity = jnp.where(neighbours, 0.5 * (_embeddings.inner(x, x) + 1), 0)
    total = jnp.sum(similarity, axis=-1, keepdims=True)
    return similarity / jnp.where(total > 0, total, 1)


def correlation_congruence_loss(
    student_embedding: Float[Array, "batch student_dim"],
    teacher_embedding: Float[Array, "batch teacher_dim"],
    *,
    form: str = "paper",
    gamma: ScalarLike = 0.4,
    order: int = 2,
    where: Bool[Array, " batch"] | None = None,
) -> Float[Array, " batch"]:
    r"""Squared difference of the correlations of the examples, by a Gaussian kernel.

    Correlation congruence: not only each example's embedding is to be the teacher's,
    but the correlations between them. The kernel of the unit vectors :math:`e` is
    taken to a low order :math:`P`:

    .. math::
      \ell_i = \frac{1}{B} \sum_j (K^s_{ij} - K^t_{ij})^2, \qquad
      K_{ij} = \sum_{p=0}^{P} \frac{e^{-2 \gamma} (2 \gamma)^p}{p!}
        \langle e_i, e_j \rangle^p \approx e^{-\gamma \|e_i - e_j\|^2}

    Form `'repdistiller'`, by which RepDistiller's tables were made, under the same
    name and at a weight of 0.02, compares no correlations: with :math:`\delta_i =
    |e^s_i - e^t_i|`, of embeddings of one dimension that are not normalised,
    :math:`\ell_i = \frac{B}{B - 1} \langle \delta_i, \delta_{i+1} \rangle`, zero for
    the last example. It depends on the order of the batch, and only one of two
    neighbours need be right.

    Couples examples: entry :math:`i` is the part of row :math:`i`, or of the pair
    that example :math:`i` begins, and the mean of all is the published value.

    Args:
      student_embedding: one vector an example, `[batch, student_dim]`.
      teacher_embedding: one vector an example, `[batch, teacher_dim]`.
      form: `'paper'` or `'repdistiller'`; the latter has no use for the next two.
      gamma: the kernel's inverse width; positive.
      order: the highest power :math:`P`; an integer that is not negative.
      where: which examples are valid, `[batch]`. The loss and the gradient of every
        other example are exactly zero; its neighbours are neighbours of each other.

    Returns:
      The loss of each example, without unit or in squared units of the embeddings,
      `[batch]`, in at least float32.

    Raises:
      ValueError: if the shapes do not fit, `form` is unknown, a concrete `gamma` is
        not positive, or `order` is negative.
      TypeError: if either array is not floating-point, or `where` is not boolean.

    Examples:
      >>> import jax.numpy as jnp
      >>> from kdjax import losses
      >>> student_embedding = jnp.array([[1.0, 0.0], [0.0, 1.0]])
      >>> teacher_embedding = jnp.array([[1.0, 0.0], [-1.0, 0.0]])
      >>> print(losses.correlation_congruence_loss(
      ...     student_embedding, teacher_embedding, gamma=0.5, order=1).round(4))
      [0.0677 0.0677]

    References:
      Peng et al., `Correlation Congruence for Knowledge Distillation
      <https://arxiv.org/abs/1904.01802>`_, ICCV 2019, sections 3.3 and 3.4; the
      default width and order are the paper's.
    """
    _checks.check_choice(("paper", "repdistiller"), form=form)
    _checks.check_positive(gamma=gamma)
    if order < 0:
        raise ValueError(f"Expected order >= 0, got {order}.")
    check = (
        _embeddings.check_batches if form == "paper" else _embeddings.check_embeddings
    )
    check(student_embedding=student_embedding, teacher_embedding=teacher_embedding)

    student, teacher = _embeddings.flatten_valid(
        where, student_embedding, teacher_embedding
    )
    if form == "paper":
        student, teacher = (_kernel(x, gamma, order) for x in (student, teacher))
        valid = _embeddings.is_valid(where, student)
        squares = jnp.where(valid[None], (student - teacher) ** 2, 0)
        loss = jnp.sum(squares, axis=-1) / _masking.num_valid(where, student)
    else:
        loss = _successive_products(_numerics.absolute(student - teacher), where)
    return _masking.zero_invalid(where, loss)


def _kernel(x: jax.Array, gamma: ScalarLike, order: int) -> jax.Array:
    """The Gaussian kernel of the directions of the rows, as a polynomial."""
    (gamma,) = _numerics.scalars(x, gamma)
    x = _embeddings.unit(x)
    products = 2 * gamma * _embeddings.inner(x, x)
    total = jnp.ones_like(products)
    for power in range(order, 0, -1):
        total = 1 + total * products / power
    return jnp.exp(-2 * gamma) * total


def _successive_products(x: jax.Array, where: jax.Array | None) -> jax.Array:
    """Inner products of each valid row with the next one, scaled for their mean."""
    size = x.shape[0]
    place = jnp.where(_embeddings.is_valid(where, x), jnp.arange(size), size)
    following = jax.lax.cummin(jnp.append(place[1:], size), reverse=True)
    others = jnp.take(x, following, axis=0, mode="fill", fill_value=0)
    count = _masking.num_valid(where, x)
    return count / jnp.maximum(count - 1, 1) * jnp.sum(x * others, axis=-1)
