"""A contrastive loss of embeddings and a memory of all training examples'."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, ScalarLike

from kdjax.losses import _checks, _embeddings, _masking, _numerics

_INT = jnp.int32  # Of places in the training set, with 64-bit numbers on too.


class CRDMemory(NamedTuple):
    """What `crd_loss` remembers of all training examples; part of a checkpoint.

    Attributes:
      student_bank: averages of the student's embeddings, `[examples, dim]`.
      teacher_bank: averages of the teacher's embeddings, `[examples, dim]`.
      student_log_normalizer: logarithm of the constant that divides the scores of the
        student's embeddings, `[]`; -inf until the first update.
      teacher_log_normalizer: likewise for the teacher's.
    """

    student_bank: Float[Array, "examples dim"]
    teacher_bank: Float[Array, "examples dim"]
    student_log_normalizer: Float[Array, ""]
    teacher_log_normalizer: Float[Array, ""]


def init_crd_memory(rng: PRNGKeyArray, *, num_examples: int, dim: int) -> CRDMemory:
    r"""A memory of random embeddings, for `crd_loss`.

    .. math:: V_{nd} \sim \mathcal{U}\bigl(-\sqrt{3 / D}, \sqrt{3 / D}\bigr)

    Vectors of length 1 on average, of independent directions for the two networks.
    It takes 2 x 4 bytes for each example and dimension.

    Args:
      rng: a key for this use.
      num_examples: how many examples the training set has.
      dim: the dimension of the embeddings, 128 in the paper.

    Returns:
      The memory, in float32.

    Raises:
      ValueError: if a number is not positive.

    Examples:
      >>> import jax
      >>> from kdjax import losses
      >>> memory = losses.init_crd_memory(jax.random.key(0), num_examples=5, dim=3)
      >>> print(memory.student_bank.shape, memory.student_log_normalizer)
      (5, 3) -inf

    References:
      Tian et al., `Contrastive Representation Distillation
      <https://arxiv.org/abs/1910.10699>`_, ICLR 2020, section 3.3, and the authors'
      code.
    """
    _checks.check_positive(num_examples=num_examples, dim=dim)
    bound = (3 / dim) ** 0.5
    banks = jax.random.uniform(
        rng, (2, num_examples, dim), jnp.float32, minval=-bound, maxval=bound
    )
    # Two arrays, not one twice: a train step may be given their buffers to reuse.
    unset = [jnp.full((), -jnp.inf, jnp.float32) for _ in range(2)]
    return CRDMemory(banks[0], banks[1], *unset)


def sample_contrast_indices(
    rng: PRNGKeyArray,
    indices: Int[Array, " batch"],
    all_labels: Int[Array, " examples"],
    *,
    num_negatives: int,
    positives: str = "exact",
) -> Int[Array, "batch contrasts"]:
    r"""For each example a positive and many negatives of other classes.

    .. math:: j_0 \in \{i\} \text{ or } \{j : y_j = y_i\}, \qquad
      j_k \in \{j : y_j \ne y_i\}

    The negatives of an example are drawn uniformly and without replacement; where
    other classes have fewer examples than asked for, all are taken and repeated. The
    examples of a batch read them off one shuffled order, each from a place of its own:
    a sort of the training set a call, whatever the batch and the number of negatives.

    Args:
      rng: a key for this use.
      indices: the places of the batch's examples in the training set, `[batch]`.
      all_labels: the classes of the whole training set, `[examples]`.
      num_negatives: how many negatives each example has, 16384 in the paper.
      positives: `'exact'`, where the positive is the example itself, or `'relax'`,
        where it is drawn from the example's class, itself included.

    Returns:
      Places in the training set, the positive first, `[batch, 1 + num_negatives]`.

    Raises:
      ValueError: if `positives` is unknown, or a number is not positive.
      TypeError: if indices or labels are not integers.

    Examples:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from kdjax import losses
      >>> all_labels = jnp.array([0, 0, 0, 1])
      >>> print(losses.sample_contrast_indices(
      ...     jax.random.key(0), jnp.array([1]), all_labels, num_negatives=2))
      [[1 3 3]]

    References:
      Tian et al., `Contrastive Representation Distillation
      <https://arxiv.org/abs/1910.10699>`_, ICLR 2020, section 3.3; the two kinds of
      positives are those of the authors' code.
    """
    _checks.check_choice(("exact", "relax"), positives=positives)
    _checks.check_positive(num_negatives=num_negatives)
    _check_indices(indices=indices, all_labels=all_labels)

    rngs = jax.random.split(rng, 3)
    shuffled = jax.random.permutation(rngs[0], jnp.arange(len(all_labels), dtype=_INT))
    labels = all_labels[shuffled]
    # Places in this order, class by class, ascending in each.
    places = jnp.argsort(labels, stable=True).astype(_INT)
    own = all_labels[indices]
    first, last = (
        jnp.searchsorted(labels[places], own, side=side).astype(_INT)
        for side in ("left", "right")
    )
    available = jnp.maximum(len(labels) - (last - first), 1)
    start = jax.random.randint(rngs[1], own.shape, 0, available, _INT)
    order = start[:, None] + jnp.arange(num_negatives, dtype=_INT)[None]
    others = _leaving_out(places, first, last, order % available[:, None])
    if positives == "relax":
        chosen = jax.random.randint(rngs[2], own.shape, first, last, _INT)
        indices = shuffled[places[chosen]]
    return jnp.concatenate([indices.astype(_INT)[:, None], shuffled[others]], axis=1)


def _leaving_out(
    places: jax.Array, first: jax.Array, last: jax.Array, order: jax.Array
) -> jax.Array:
    """Where the `order`-th is, counting from 0 and none of `places[first:last]`."""

    def halve(bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bounds
        middle = (low + high) // 2
        counted = places[middle] - (middle - first[:, None])
        precedes = counted <= order
        is_open = low < high
        return (
            jnp.where(is_open & precedes, middle + 1, low),
            jnp.where(is_open & ~precedes, middle, high),
        )

    low, high = (jnp.broadcast_to(x[:, None], order.shape) for x in (first, last))
    # How many of those left out come before: a search for each at once.
    low, _ = jax.lax.while_loop(lambda x: jnp.any(x[0] < x[1]), halve, (low, high))
    return order + low - first[:, None]


def _check_indices(**arrays: jax.Array) -> None:
    for name, x in arrays.items():
        if not jnp.issubdtype(x.dtype, jnp.integer):
            raise TypeError(f"Expected integer {name}, got {x.dtype}.")


def crd_loss(
    student_embedding: Float[Array, "batch dim"],
    teacher_embedding: Float[Array, "batch dim"],
    memory: CRDMemory,
    contrast_indices: Int[Array, "batch contrasts"],
    *,
    temperature: ScalarLike = 0.07,
    where: Bool[Array, " batch"] | None = None,
) -> Float[Array, " batch"]:
    r"""Cost of telling the same example's remembered embedding from other examples'.

    Contrastive representation distillation: the student's embedding is to be near
    the teacher's remembered one of the same example, which comes first among the
    contrasted, and far from the :math:`K` others; and the other way around. With
    banks :math:`V` of :math:`N` examples,

    .. math::
      \ell = \sum_{\mathrm{sides}} \Bigl[ -\log \frac{o_0}{o_0 + K/N + \epsilon}
        - \sum_{k=1}^{K} \log \frac{K/N}{o_k + K/N + \epsilon} \Bigr], \qquad
      o^s_k = \frac{1}{Z^s} \exp\bigl(\langle e^s, V^t_{j_k} \rangle / \tau\bigr)

    and likewise :math:`o^t` with :math:`e^t` and :math:`V^s`; :math:`\epsilon =
    10^{-7}`. :math:`Z` is constant after the first update; before, it is that of
    this batch, which `update_crd_memory` then keeps, and is not differentiated. Then
    alone the examples of the batch depend on each other. The gradient flows to the
    teacher's embedding too, whose linear map is trained. Vectors of length 1 are
    expected. The paper weighs this 0.8.

    Args:
      student_embedding: one unit vector an example, `[batch, dim]`.
      teacher_embedding: one unit vector an example, `[batch, dim]`.
      memory: the banks and normalisers, taken as given: update them after the loss.
      contrast_indices: places in the training set, the positive first, as drawn by
        `sample_contrast_indices`, `[batch, 1 + K]`; NaN comes of one out of range.
      temperature: divides the inner products; a positive scalar.
      where: which examples are valid, `[batch]`. The loss and the gradient of every
        other example are exactly zero, whatever its indices.

    Returns:
      The loss of each example in nats, `[batch]`, in at least float32.

    Raises:
      ValueError: if shapes do not fit, or a concrete temperature is not positive.
      TypeError: if an embedding is not floating-point, `where` not boolean, or the
        indices not integers.

    Examples:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from kdjax import losses
      >>> memory = losses.init_crd_memory(jax.random.key(0), num_examples=5, dim=3)
      >>> embedding = jnp.array([[1.0, 0.0, 0.0]])
      >>> values = losses.crd_loss(
      ...     embedding, embedding, memory, jnp.array([[0, 3, 4]]))
      >>> print(values.shape)
      (1,)

    References:
      Tian et al., `Contrastive Representation Distillation
      <https://arxiv.org/abs/1910.10699>`_, ICLR 2020, equations 10 and 19; constants
      and memory as in the authors' code.
    """
    _checks.check_positive(temperature=temperature)
    _check_memory(student_embedding, teacher_embedding, memory, contrast_indices)

    student, teacher, log_normalizers, indices = _scores(
        student_embedding,
        teacher_embedding,
        memory,
        contrast_indices,
        temperature,
        where,
    )
    num_examples, num_negatives = len(memory.student_bank), indices.shape[1] - 1
    loss = jnp.zeros_like(student[:, 0])
    for scores, log_normalizer in zip((student, teacher), log_normalizers, strict=True):
        # In log space, o / (o + c) is a sigmoid; 1e-7 apart, c is K / N as well.
        noise = num_negatives / num_examples
        logits = scores - log_normalizer - jnp.log(noise + 1e-7).astype(scores.dtype)
        loss += jax.nn.softplus(-logits[:, 0])
        loss += jnp.sum(jax.nn.softplus(logits[:, 1:]), axis=1)
        loss += num_negatives * jnp.log1p(1e-7 / noise).astype(scores.dtype)
    return _masking.zero_invalid(where, loss)


def _check_memory(
    student_embedding: jax.Array,
    teacher_embedding: jax.Array,
    memory: CRDMemory,
    contrast_indices: jax.Array,
) -> None:
    _embeddings.check_embeddings(
        student_embedding=student_embedding, teacher_embedding=teacher_embedding
    )
    _check_indices(contrast_indices=contrast_indices)
    if memory.student_bank.shape[1] != student_embedding.shape[1]:
        raise ValueError(
            f"Expected embeddings of the memory's dimension, got "
            f"{student_embedding.shape} and a bank {memory.student_bank.shape}."
        )
    batch = len(student_embedding)
    if contrast_indices.shape[:1] != (batch,) or contrast_indices.shape[1] < 2:
        raise ValueError(
            f"Expected contrast_indices [{batch}, 1 + num_negatives], got "
            f"{contrast_indices.shape}."
        )


def _scores(
    student_embedding: jax.Array,
    teacher_embedding: jax.Array,
    memory: CRDMemory,
    contrast_indices: jax.Array,
    temperature: ScalarLike,
    where: jax.Array | None,
) -> tuple[jax.Array, jax.Array, tuple[jax.Array, ...], jax.Array]:
    """Inner products over the temperature, and the normalisers to go with them."""
    student, teacher = _masking.drop_invalid(
        where, student_embedding, teacher_embedding
    )
    (temperature,) = _numerics.scalars(student, temperature)
    indices = contrast_indices
    if where is not None:
        indices = jnp.where(where[:, None], indices, 0)

    def score(x: jax.Array, bank: jax.Array) -> jax.Array:
        # With all of the bank: [batch, K, dim] copies of its rows would be more.
        products = _embeddings.inner(x, bank.astype(x.dtype)) / temperature
        return jnp.take_along_axis(products, indices, axis=1)

    scores = score(student, memory.teacher_bank), score(teacher, memory.student_bank)
    stored = memory.student_log_normalizer, memory.teacher_log_normalizer
    log_count = jnp.log(_masking.num_valid(where, student) * indices.shape[1])
    log_normalizers = []
    for x, log_normalizer in zip(scores, stored, strict=True):
        known = x if where is None else jnp.where(where[:, None], x, -jnp.inf)
        log_mean = jax.nn.logsumexp(jax.lax.stop_gradient(known)) - log_count
        first = log_mean + jnp.log(len(memory.student_bank)).astype(x.dtype)
        is_set = ~jnp.isneginf(log_normalizer)
        log_normalizers.append(jnp.where(is_set, log_normalizer.astype(x.dtype), first))
    return *scores, tuple(log_normalizers), indices


def update_crd_memory(
    memory: CRDMemory,
    student_embedding: Float[Array, "batch dim"],
    teacher_embedding: Float[Array, "batch dim"],
    indices: Int[Array, " batch"],
    contrast_indices: Int[Array, "batch contrasts"],
    *,
    temperature: ScalarLike = 0.07,
    momentum: ScalarLike = 0.5,
    where: Bool[Array, " batch"] | None = None,
) -> CRDMemory:
    r"""The memory after a batch, for the next one.

    .. math::
      V_n \leftarrow \frac{m V_n + (1 - m) e_n}{\|m V_n + (1 - m) e_n\|}, \qquad
      Z = \frac{N}{B (K + 1)} \sum_{b,k} \exp(\langle e_b, V_{j_{bk}} \rangle / \tau)

    The normalisers :math:`Z` are set by the first batch that has a valid example, of
    the memory before it, and stay. Nothing is differentiated.

    Args:
      memory: the memory that the batch's `crd_loss` was given.
      student_embedding: one unit vector an example, `[batch, dim]`.
      teacher_embedding: one unit vector an example, `[batch, dim]`.
      indices: the places of the batch's examples in the training set, all different,
        `[batch]`.
      contrast_indices: those that `crd_loss` was given, `[batch, 1 + K]`.
      temperature: that which `crd_loss` was given.
      momentum: the share :math:`m` of the past, from 0 to 1.
      where: which examples are valid, `[batch]`; no other leaves a trace.

    Returns:
      The memory, in its own dtypes.

    Raises:
      ValueError: if shapes do not fit, a concrete temperature is not positive, or a
        concrete momentum is not between 0 and 1.
      TypeError: if an embedding is not floating-point, `where` not boolean, or the
        indices not integers.

    Examples:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from kdjax import losses
      >>> memory = losses.init_crd_memory(jax.random.key(0), num_examples=5, dim=2)
      >>> embedding = jnp.array([[1.0, 0.0]])
      >>> memory = losses.update_crd_memory(
      ...     memory, embedding, embedding, jnp.array([3]), jnp.array([[3, 1]]),
      ...     momentum=0.0)
      >>> print(memory.student_bank[3])
      [1. 0.]

    References:
      Tian et al., `Contrastive Representation Distillation
      <https://arxiv.org/abs/1910.10699>`_, ICLR 2020, section 3.3, and the authors'
      code.
    """
    _checks.check_positive(temperature=temperature)
    _checks.check_fraction(momentum=momentum)
    _check_memory(student_embedding, teacher_embedding, memory, contrast_indices)
    _check_indices(indices=indices)

    embeddings = jax.lax.stop_gradient((student_embedding, teacher_embedding))
    memory = jax.lax.stop_gradient(memory)
    *_, log_normalizers, _ = _scores(
        *embeddings, memory, contrast_indices, temperature, where
    )
    student, teacher = _masking.drop_invalid(where, *embeddings)
    (momentum,) = _numerics.scalars(student, momentum)
    # Writes beyond the end are dropped.
    num_examples = len(memory.student_bank)
    if where is not None:
        indices = jnp.where(where, indices, num_examples)

    def write(bank: jax.Array, x: jax.Array) -> jax.Array:
        past = jnp.take(bank, indices, axis=0, mode="clip").astype(x.dtype)
        rows = _embeddings.unit(momentum * past + (1 - momentum) * x)
        return bank.at[indices].set(rows.astype(bank.dtype), mode="drop")

    return CRDMemory(
        write(memory.student_bank, student),
        write(memory.teacher_bank, teacher),
        log_normalizers[0].astype(memory.student_log_normalizer.dtype),
        log_normalizers[1].astype(memory.teacher_log_normalizer.dtype),
    )
