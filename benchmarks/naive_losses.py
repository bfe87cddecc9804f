"""The formulas of losses, written down the obvious way: what losses.py compares with.

At the defaults of the losses themselves or, where they have none, at what `KEYWORDS` of
losses.py gives; without masks, checks, or care for extreme numbers.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

log_softmax, softmax = jax.nn.log_softmax, jax.nn.softmax


def _kl(teacher: jax.Array, student: jax.Array) -> jax.Array:
    return jnp.sum(teacher * (jnp.log(teacher) - jnp.log(student)), axis=-1)


def _cross(probs: jax.Array, student: jax.Array) -> jax.Array:
    return -jnp.sum(probs * jnp.log(softmax(student)), axis=-1)


def _unit(x: jax.Array) -> jax.Array:
    x = x.reshape(x.shape[0], -1)
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


def _gram(x: jax.Array) -> jax.Array:
    """Inner products of the examples."""
    x = x.reshape(x.shape[0], -1)
    return x @ x.T


def _distances(x: jax.Array) -> jax.Array:
    """Between all pairs, by all differences: `[B, B, dim]` of them."""
    squares = jnp.sum((x[:, None] - x) ** 2, axis=-1) + jnp.eye(x.shape[0])
    distances = jnp.sqrt(squares) * (1 - jnp.eye(x.shape[0]))
    return distances / (jnp.sum(distances) / (x.shape[0] * (x.shape[0] - 1)))


def _huber(x: jax.Array) -> jax.Array:
    return jnp.where(jnp.abs(x) < 1, 0.5 * x**2, jnp.abs(x) - 0.5)


def _correlation(x: jax.Array, y: jax.Array) -> jax.Array:
    x, y = (v - jnp.mean(v, axis=-1, keepdims=True) for v in (x, y))
    lengths = jnp.linalg.norm(x, axis=-1) * jnp.linalg.norm(y, axis=-1)
    return jnp.sum(x * y, axis=-1) / (lengths + 1e-8)


def _mixed(s: jax.Array, t: jax.Array, weight: float) -> tuple[jax.Array, ...]:
    p, q = softmax(t), softmax(s)
    return p, q, weight * p + (1 - weight) * q


def _jensen_shannon(s: jax.Array, t: jax.Array) -> jax.Array:
    p, q, middle = _mixed(s, t, 0.5)
    return 0.5 * _kl(p, middle) + 0.5 * _kl(q, middle)


def _skew_forward(s: jax.Array, t: jax.Array) -> jax.Array:
    p, _, mixture = _mixed(s, t, 0.1)
    return _kl(p, mixture)


def _skew_reverse(s: jax.Array, t: jax.Array) -> jax.Array:
    _, q, mixture = _mixed(s, t, 0.9)
    return _kl(q, mixture)


def _forward(s: jax.Array, t: jax.Array) -> jax.Array:
    return _kl(softmax(t), softmax(s))


def _dkd(s: jax.Array, t: jax.Array, y: jax.Array) -> jax.Array:
    """By the target's logit less 1000, as in the authors' code."""
    target = jax.nn.one_hot(y, s.shape[-1])
    p, q = softmax(t / 4), softmax(s / 4)
    pairs = [jnp.sum(target * x, axis=-1) for x in (p, q)]
    binary = [jnp.stack([x, 1 - x], axis=-1) for x in pairs]
    others = [softmax(x / 4 - 1000 * target) for x in (t, s)]
    logs = [log_softmax(x / 4 - 1000 * target) for x in (t, s)]
    rest = jnp.sum(others[0] * (logs[0] - logs[1]), axis=-1)
    return 16 * (_kl(*binary) + 8 * rest)


def _dist(s: jax.Array, t: jax.Array) -> jax.Array:
    p, q = softmax(t), softmax(s)
    return 1 - _correlation(q, p) + 1 - jnp.mean(_correlation(q.T, p.T))


def _similarity(s: jax.Array, t: jax.Array) -> jax.Array:
    grams = [_unit(_gram(x)) for x in (s, t)]
    return jnp.mean((grams[0] - grams[1]) ** 2, axis=-1)


def _rkd_distance(s: jax.Array, t: jax.Array) -> jax.Array:
    return jnp.mean(_huber(_distances(s) - _distances(t)), axis=-1)


def _nst(s: jax.Array, t: jax.Array) -> jax.Array:
    s, t = (x.reshape(x.shape[0], -1, x.shape[-1]) for x in (s, t))
    s, t = (x / jnp.linalg.norm(x, axis=1, keepdims=True) for x in (s, t))

    def kernel(x: jax.Array, y: jax.Array) -> jax.Array:
        return jnp.mean(jnp.einsum("bnc,bnd->bcd", x, y) ** 2, axis=(1, 2))

    return kernel(t, t) + kernel(s, s) - 2 * kernel(s, t)


def _contrastive(s: jax.Array, t: jax.Array) -> jax.Array:
    return -jnp.diag(log_softmax(_unit(s) @ _unit(t).T / 0.07))


def _attention(x: jax.Array) -> jax.Array:
    return _unit(jnp.sum(x**2, axis=-1))


def _cwd(s: jax.Array, t: jax.Array) -> jax.Array:
    s, t = (softmax(x.reshape(x.shape[0], -1, x.shape[-1]), axis=1) for x in (s, t))
    return jnp.mean(jnp.sum(t * (jnp.log(t) - jnp.log(s)), axis=1), axis=-1)


NAIVE: dict[str, Callable[..., jax.Array]] = {
    "attention_transfer_loss": lambda s, t: jnp.linalg.norm(
        _attention(s) - _attention(t), axis=-1
    ),
    "consistency_loss": lambda s, t: jnp.mean((softmax(s) - softmax(t)) ** 2, axis=-1),
    "contrastive_loss": _contrastive,
    "cosine_loss": lambda s, t: (
        1
        - jnp.sum(s * t, axis=-1)
        / (jnp.linalg.norm(s, axis=-1) * jnp.linalg.norm(t, axis=-1))
    ),
    "cross_entropy": lambda s, y: _cross(jax.nn.one_hot(y, s.shape[-1]), s),
    "cwd_loss": _cwd,
    "dfad_loss": lambda s, t: jnp.mean(jnp.abs(s - t), axis=-1),
    "dist_loss": _dist,
    "dkd_loss": _dkd,
    "fedmd_loss": lambda s, t: jnp.mean(jnp.abs(s - t), axis=-1),
    "forward_kl": _forward,
    "hard_target_loss": lambda s, t: _cross(
        jax.nn.one_hot(jnp.argmax(t, axis=-1), s.shape[-1]), s
    ),
    "hint_loss": lambda s, t: jnp.mean((s - t) ** 2, axis=(1, 2, 3)),
    "jensen_shannon": _jensen_shannon,
    "multi_teacher_loss": lambda s, t: jnp.mean(
        jax.vmap(functools.partial(_forward, s))(t), axis=0
    ),
    "nst_loss": _nst,
    "reverse_kl": lambda s, t: _kl(softmax(s), softmax(t)),
    "rkd_distance_loss": _rkd_distance,
    "similarity_preserving_loss": _similarity,
    "skew_forward_kl": _skew_forward,
    "skew_reverse_kl": _skew_reverse,
    "soft_cross_entropy": lambda s, p: _cross(p, s),
    "soft_target_loss": _forward,
    "symmetric_kl": lambda s, t: 0.5 * (_forward(s, t) + _forward(t, s)),
    "total_variation": lambda s, t: (
        0.5 * jnp.sum(jnp.abs(softmax(s) - softmax(t)), axis=-1)
    ),
    "ttm_loss": lambda s, t: _kl(softmax(t / 4), softmax(s)),
}
NAIVE |= {
    f"linear_{name}": lambda s, w, t, v, loss=NAIVE[name]: loss(s @ w, t @ v)
    for name in (
        "forward_kl",
        "jensen_shannon",
        "reverse_kl",
        "skew_forward_kl",
        "skew_reverse_kl",
        "soft_target_loss",
        "symmetric_kl",
        "total_variation",
    )
}
NAIVE["linear_cross_entropy"] = lambda s, w, y: NAIVE["cross_entropy"](s @ w, y)

OPTAX: dict[str, Callable[..., jax.Array]] = {
    "cosine_loss": optax.losses.cosine_distance,
    "cross_entropy": optax.losses.softmax_cross_entropy_with_integer_labels,
    "forward_kl": lambda s, t: optax.losses.kl_divergence(log_softmax(s), softmax(t)),
    "hint_loss": lambda s, t: jnp.mean(
        optax.losses.squared_error(s, t), axis=(1, 2, 3)
    ),
    "soft_cross_entropy": optax.losses.softmax_cross_entropy,
}
