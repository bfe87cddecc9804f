"""Losses whose teacher is given by a few of its classes, and how to draw them."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, ScalarLike, UInt8

from kdjax.losses import _checks, _masking, _numerics

MAX_VOCAB = 2**17
MAX_DRAWS = 2**7 - 1


def sample_sparse_targets(
    teacher_logits: Float[Array, "*batch classes"],
    rng: PRNGKeyArray,
    *,
    num_draws: int,
    temperature: ScalarLike = 1.0,
) -> tuple[Int[Array, "*batch draws"], Int[Array, "*batch draws"]]:
    r"""Classes drawn from the teacher, each with how often it was.

    Random sampling distillation: a frequency is an unbiased estimate of a probability,

    .. math::
      \mathbb{E}\left[\frac{n_c}{N}\right] = p^t_c, \qquad
      p^t = \mathrm{softmax}(z^t / \tau)

    over all classes, so that the gradient of `sparse_soft_target_loss` is right on
    average, where that of the teacher's largest probabilities, renormalised, is not.
    The authors use 50 draws, of which some 12 classes are different.

    The classes are different, the drawn ones first, in increasing order; the rest of
    an entry is class 0, zero times. So columns that are zero in all counts can be cut
    off. `pack_sparse_targets` makes 3 bytes of each class and count.

    Args:
      teacher_logits: unnormalised log-probabilities, `[..., num_classes]`.
      rng: a key for this use.
      num_draws: how many times to draw, :math:`N`. It sets shapes, so it is a Python
        integer.
      temperature: softens the distribution to draw from; a positive scalar.

    Returns:
      The classes and their counts, whose sum is `num_draws`, both
      `[..., num_draws]`, int32.

    Raises:
      ValueError: if there is no axis of classes, `num_draws` is less than 1, or a
        concrete temperature is not positive.
      TypeError: if the logits are not floating-point.

    Examples:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from kdjax import losses
      >>> teacher_logits = jnp.log(jnp.array([0.0, 1.0, 0.0]))  # Certain.
      >>> ids, counts = losses.sample_sparse_targets(
      ...     teacher_logits, jax.random.key(0), num_draws=4)
      >>> print(ids, counts)
      [1 0 0 0] [4 0 0 0]

    References:
      Anshumann et al., `Sparse Logit Sampling: Accelerating Knowledge Distillation in
      LLMs <https://arxiv.org/abs/2503.16870>`_, ACL 2025, section 4.
    """
    _checks.check_logits(teacher_logits=teacher_logits)
    _checks.check_positive(temperature=temperature)
    if num_draws < 1:
        raise ValueError(f"Expected num_draws of at least 1, got {num_draws}.")

    (teacher_logits,) = _masking.drop_invalid(None, teacher_logits)
    log_probs = _numerics.log_probs(teacher_logits, temperature)
    drawn = jnp.sort(_draw(jnp.exp(log_probs), rng, num_draws), axis=-1)
    counts = jnp.sum(drawn[..., None] == drawn[..., None, :], -1, dtype=jnp.int32)
    before = jnp.full_like(drawn[..., :1], -1)
    is_first = drawn != jnp.concatenate([before, drawn[..., :-1]], axis=-1)
    order = jnp.argsort(~is_first, axis=-1, stable=True)
    tokens, counts = (
        jnp.take_along_axis(jnp.where(is_first, x, 0), order, axis=-1)
        for x in (drawn, counts)
    )
    return tokens, counts


def _draw(probs: jax.Array, rng: jax.Array, num_draws: int) -> jax.Array:
    """Classes where uniform numbers fall among the summed probabilities.

    One number a draw; `jax.random.categorical` takes one a draw and class.
    """
    sums = jnp.cumsum(probs, axis=-1)
    numbers = jax.random.uniform(rng, (*probs.shape[:-1], num_draws), probs.dtype)
    numbers *= sums[..., -1:]
    rows = sums.reshape(-1, sums.shape[-1]), numbers.reshape(-1, num_draws)
    search = jax.vmap(lambda row, x: jnp.searchsorted(row, x, side="right"))
    drawn = search(*rows).reshape(numbers.shape).astype(jnp.int32)
    # A number that was rounded up to the sum is of the last class that is possible.
    last = jnp.argmax(sums == sums[..., -1:], axis=-1).astype(jnp.int32)
    return jnp.minimum(drawn, last[..., None])


def pack_sparse_targets(
    target_ids: Int[Array, "*batch draws"], target_counts: Int[Array, "*batch draws"]
) -> UInt8[Array, "*batch draws 3"]:
    r"""Classes and counts in 3 bytes each.

    17 bits of the class and 7 of its count, the lowest byte first:

    .. math:: c + 2^{17} n

    Beyond 131072 classes, or 127 draws, an entry does not fit; that is for the caller
    to know, as traced values cannot be refused. `unpack_sparse_targets` is the way
    back.

    Args:
      target_ids: classes, `[..., num_draws]`.
      target_counts: how often each was drawn, `[..., num_draws]`.

    Returns:
      Bytes, `[..., num_draws, 3]`.

    Raises:
      ValueError: if the shapes differ.
      TypeError: if an array is not integer.

    Examples:
      >>> import jax.numpy as jnp
      >>> from kdjax import losses
      >>> print(losses.pack_sparse_targets(jnp.array([131071, 5]), jnp.array([2, 50])))
      [[255 255   5]
       [  5   0 100]]

    References:
      Anshumann et al., `Sparse Logit Sampling: Accelerating Knowledge Distillation in
      LLMs <https://arxiv.org/abs/2503.16870>`_, ACL 2025, appendix, on storage.
    """
    _check_integers(target_ids=target_ids, target_counts=target_counts)
    if target_ids.shape != target_counts.shape:
        raise ValueError(
            f"Expected a count for each class, got target_ids {target_ids.shape} and "
            f"target_counts {target_counts.shape}."
        )
    counts = target_counts.astype(jnp.uint32) * MAX_VOCAB
    bits = target_ids.astype(jnp.uint32) + counts
    return jnp.stack([(bits >> n).astype(jnp.uint8) for n in (0, 8, 16)], axis=-1)


def unpack_sparse_targets(
    packed: UInt8[Array, "*batch draws 3"],
) -> tuple[Int[Array, "*batch draws"], Int[Array, "*batch draws"]]:
    r"""Classes and counts out of 3 bytes each.

    The inverse of `pack_sparse_targets`: with the bytes :math:`b`,

    .. math::
      b_0 + 2^8 b_1 + 2^{16} b_2 = c + 2^{17} n, \qquad 0 \le c < 2^{17}

    Args:
      packed: bytes, `[..., num_draws, 3]`.

    Returns:
      The classes and their counts, both `[..., num_draws]`, int32.

    Raises:
      ValueError: if the last axis is not 3 bytes.
      TypeError: if the array is not of bytes.

    Examples:
      >>> import jax.numpy as jnp
      >>> from kdjax import losses
      >>> ids, counts = jnp.array([131071, 5]), jnp.array([2, 50])
      >>> packed = losses.pack_sparse_targets(ids, counts)
      >>> print(*losses.unpack_sparse_targets(packed))
      [131071      5] [ 2 50]

    References:
      Anshumann et al., `Sparse Logit Sampling: Accelerating Knowledge Distillation in
      LLMs <https://arxiv.org/abs/2503.16870>`_, ACL 2025, appendix, on storage.
    """
    if packed.dtype != jnp.uint8:
        raise TypeError(f"Expected uint8 packed, got {packed.dtype}.")
    if packed.ndim < 2 or packed.shape[-1] != 3:
        raise ValueError(f"Expected packed [..., num_draws, 3], got {packed.shape}.")
    low, middle, high = jnp.moveaxis(packed.astype(jnp.int32), -1, 0)
    bits = low + (middle << 8) + (high << 16)
    return bits % MAX_VOCAB, bits // MAX_VOCAB


def sparse_soft_target_loss(
    student_logits: Float[Array, "*batch classes"],
    target_ids: Int[Array, "*batch draws"],
    target_counts: Int[Array, "*batch draws"],
    *,
    temperature: ScalarLike = 1.0,
    where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
    r"""Cross-entropy of the student with classes drawn from the teacher.

    With :math:`n_c` the count of class :math:`c` among the draws,

    .. math::
      \ell = -\tau^2 \sum_c \frac{n_c}{\sum_{c'} n_{c'}} \log p^s_c, \qquad
      p^s = \mathrm{softmax}(z^s / \tau)

    Over the draws of `sample_sparse_targets` at the same temperature, the mean of
    this is `soft_target_loss` plus :math:`\tau^2` times the teacher's entropy, a
    constant: the gradient is unbiased. Classes that no count names cost no memory in
    the cache, but each logit gets its gradient.

    Args:
      student_logits: unnormalised log-probabilities, `[..., num_classes]`.
      target_ids: the classes drawn, `[..., num_draws]`. One that is no class gives
        NaN, unless its count is 0.
      target_counts: how often each was drawn, not negative, `[..., num_draws]`.
      temperature: what the classes were drawn at; softens the student as well.
      where: which examples are valid, `[...]`. The loss and the gradient of every
        other example are exactly zero, whatever its entries hold.

    Returns:
      The loss of each example in nats, `[...]`, in at least float32; 0 if nothing was
      drawn.

    Raises:
      ValueError: if shapes do not fit, or a concrete temperature is not positive.
      TypeError: if the logits are not floating-point, classes and counts not integer,
        or `where` not boolean.

    Examples:
      >>> import jax.numpy as jnp
      >>> from kdjax import losses
      >>> student_logits = jnp.array([2.0, 0.0, 0.0])
      >>> ids, counts = jnp.array([0, 2, 0]), jnp.array([2, 2, 0])
      >>> loss = losses.sparse_soft_target_loss(student_logits, ids, counts)
      >>> print(f"{loss:.4f}")
      1.2395

    References:
      Anshumann et al., `Sparse Logit Sampling: Accelerating Knowledge Distillation in
      LLMs <https://arxiv.org/abs/2503.16870>`_, ACL 2025, section 4.
    """
    _checks.check_logits(student_logits=student_logits)
    check_targets(student_logits, target_ids=target_ids, target_counts=target_counts)
    _checks.check_positive(temperature=temperature)

    (student_logits,) = _masking.drop_invalid(where, student_logits)
    (temperature,) = _numerics.scalars(student_logits, temperature)
    target_ids, target_counts = drop_targets(where, target_ids, target_counts)
    log_probs = _numerics.log_probs(student_logits, temperature)
    num_classes = student_logits.shape[-1]
    at_targets = jnp.take_along_axis(
        log_probs, jnp.clip(target_ids, 0, num_classes - 1), axis=-1
    )
    is_class = (target_ids >= 0) & (target_ids < num_classes)
    at_targets = jnp.where(is_class, at_targets, jnp.nan)
    loss = temperature**2 * mean_cost(at_targets, target_counts)
    return _masking.zero_invalid(where, loss)


def mean_cost(log_probs: jax.Array, counts: jax.Array) -> jax.Array:
    """Minus the mean log-probability of the draws, 0 without any."""
    counted = -jnp.where(counts > 0, log_probs, 0) * counts.astype(log_probs.dtype)
    num_draws = jnp.maximum(jnp.sum(counts, axis=-1), 1)
    return jnp.sum(counted, axis=-1) / num_draws.astype(log_probs.dtype)


def drop_targets(where: jax.Array | None, *arrays: jax.Array) -> tuple[jax.Array, ...]:
    """The arrays `[..., K]`, zero where an example is not valid."""
    if where is None:
        return arrays
    return tuple(jnp.where(where[..., None], x, 0) for x in arrays)


def check_targets(like: jax.Array, **arrays: jax.Array) -> None:
    """Raises unless all are integers, of one shape `[..., K]` for the rows of `like`.

    Raises:
      TypeError: if an array is not integer.
      ValueError: if shapes do not fit.
    """
    _check_integers(**arrays)
    shapes = {x.shape for x in arrays.values()}
    if len(shapes) > 1 or next(iter(shapes))[:-1] != like.shape[:-1]:
        found = ", ".join(f"{name} {x.shape}" for name, x in arrays.items())
        raise ValueError(
            f"Expected {(*like.shape[:-1], 'K')}, one row for each of {like.shape}, "
            f"got {found}."
        )


def _check_integers(**arrays: jax.Array) -> None:
    for name, x in arrays.items():
        if not jnp.issubdtype(x.dtype, jnp.integer):
            raise TypeError(f"Expected integer {name}, got {x.dtype}.")
        if x.ndim == 0:
            raise ValueError(f"Expected {name} [..., num_draws], got {x.shape}.")
