"""Log-probabilities, and divergences of them that no extreme logit breaks."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, ScalarLike


def scalars(like: jax.Array, *values: ScalarLike) -> tuple[jax.Array, ...]:
    """Returns hyperparameters, traced or not, as arrays of the dtype of `like`."""
    return tuple(jnp.asarray(x, like.dtype) for x in values)


def log_probs(
    logits: Float[Array, "*batch classes"], temperature: ScalarLike = 1.0
) -> Float[Array, "*batch classes"]:
    """Log-probabilities of `logits / temperature`; a class at -inf stays there.

    Such a class is kept out of the division, whose derivative in the temperature
    would be 0 * inf.
    """
    (temperature,) = scalars(logits, temperature)
    excluded = jnp.isneginf(logits)
    softened = jnp.where(excluded, 0, logits) / temperature
    return jax.nn.log_softmax(jnp.where(excluded, -jnp.inf, softened))


def kl(
    log_p: Float[Array, "*batch classes"], log_q: Float[Array, "*batch classes"]
) -> Float[Array, "*batch"]:
    r"""KL(p || q) of two normalised distributions, with 0 log 0 = 0.

    The sum of :math:`p (\log p - \log q)` loses all its digits where the two are
    close, as at a high temperature: terms of order :math:`v = \log q - \log p` cancel
    to one of order :math:`v^2`. Adding :math:`q - p`, whose sum is zero, class by
    class leaves nothing to cancel: :math:`p (e^v - 1 - v)`, never negative.
    """
    possible = ~jnp.isneginf(log_p)  # True for NaN, which is not to be hidden.
    p = jnp.where(possible, jnp.exp(log_p), 0)
    v = jnp.where(possible, log_q, 0) - jnp.where(possible, log_p, 0)
    # For a small v a series, as expm1(v) - v would cancel in turn; its first omitted
    # term is 5e-11 of the sum. For a large one, q: exp(v) may overflow.
    is_small = jnp.abs(v) < 0.1
    u = jnp.where(is_small, v, 0)
    series = jnp.zeros_like(u)
    for n in (40320, 5040, 720, 120, 24, 6, 2):
        series = series * u + 1 / n
    large = jnp.exp(log_q) - p - p * jnp.where(is_small, 0, v)
    return jnp.sum(jnp.where(is_small & possible, p * u**2 * series, large), axis=-1)


def cross_entropy(
    p: Float[Array, "*batch classes"], log_q: Float[Array, "*batch classes"]
) -> Float[Array, "*batch"]:
    """Sum of -p log q over the classes, with 0 log 0 = 0."""
    impossible = (p == 0) & jnp.isneginf(log_q)
    return -jnp.sum(p * jnp.where(impossible, 0, log_q), axis=-1)


def is_label(
    logits: Float[Array, "*batch classes"], labels: Int[Array, "*batch"]
) -> Bool[Array, "*batch classes"]:
    """Which entry of each row of `logits` its label names."""
    return jax.nn.one_hot(labels, logits.shape[-1], dtype=jnp.bool_)


def nan_unless_class(
    values: Float[Array, "*batch"],
    labels: Int[Array, "*batch"],
    logits: Float[Array, "*batch classes"],
) -> Float[Array, "*batch"]:
    """Returns `values`, NaN where a label is not a class of `logits`."""
    is_class = (labels >= 0) & (labels < logits.shape[-1])
    return jnp.where(is_class, values, jnp.nan)


def at_label(
    values: Float[Array, "*batch classes"], labels: Int[Array, "*batch"]
) -> Float[Array, "*batch"]:
    """The entry of each row at its label; NaN if the label is not a class.

    Indexing alone would read class C - 1 for a label of -1, without a word.
    """
    index = jnp.clip(labels, 0, values.shape[-1] - 1)[..., None]
    picked = jnp.take_along_axis(values, index, axis=-1)[..., 0]
    return nan_unless_class(picked, labels, values)


def log_mixture(
    log_p: Float[Array, "*batch classes"],
    log_q: Float[Array, "*batch classes"],
    weight: ScalarLike,
) -> Float[Array, "*batch classes"]:
    """Log of (1 - weight) p + weight q, from 0 to 1; never by way of p and q."""
    (weight,) = scalars(log_p, weight)
    log_p, log_q = log_p + jnp.log1p(-weight), log_q + jnp.log(weight)
    # Both at -inf: no derivative to speak of, so none is taken.
    impossible = jnp.isneginf(log_p) & jnp.isneginf(log_q)
    log_p, log_q = (jnp.where(impossible, 0, x) for x in (log_p, log_q))
    return jnp.where(impossible, -jnp.inf, jnp.logaddexp(log_p, log_q))


def log_sum(
    log_probs: Float[Array, "*batch classes"],
) -> Float[Array, "*batch"]:
    """Log of the sum over the classes; -inf, with zero gradient, if all are at -inf."""
    impossible = jnp.all(jnp.isneginf(log_probs), axis=-1)
    total = jax.nn.logsumexp(jnp.where(impossible[..., None], 0, log_probs), axis=-1)
    return jnp.where(impossible, -jnp.inf, total)


def absolute(x: jax.Array) -> jax.Array:
    """Absolute values, whose slope at 0 is 0; JAX's is 1 there."""
    return jnp.where(x == 0, 0, jnp.abs(x))


def norm(x: Float[Array, "*batch dim"]) -> Float[Array, "*batch"]:
    """Euclidean length; its gradient at the zero vector is zero, not NaN."""
    squares = jnp.sum(x**2, axis=-1)
    is_zero = squares == 0
    return jnp.where(is_zero, 0, jnp.sqrt(jnp.where(is_zero, 1, squares)))
