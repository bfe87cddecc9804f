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


def _at(x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.take_along_axis(x, y[:, None], axis=-1)[:, 0]


def _nkd(s: jax.Array, t: jax.Array, y: jax.Array) -> jax.Array:
    target = -_at(softmax(t), y) * _at(log_softmax(s), y)
    label = 1000 * jax.nn.one_hot(y, s.shape[-1])
    return target - 1.5 * jnp.sum(softmax(t - label) * log_softmax(s - label), axis=-1)


def _wsld(s: jax.Array, t: jax.Array, y: jax.Array) -> jax.Array:
    hard = [-_at(log_softmax(x), y) for x in (s, t)]
    weight = jax.lax.stop_gradient(1 - jnp.exp(-hard[0] / (hard[1] + 1e-7)))
    return 4 * weight * _cross(softmax(t / 2), s / 2)


def _wttm(s: jax.Array, t: jax.Array) -> jax.Array:
    return jnp.sum(softmax(t) ** 0.25, axis=-1) * _kl(softmax(t / 4), softmax(s))


def _cwtm(s: jax.Array, t: jax.Array, y: jax.Array) -> jax.Array:
    confidence = jnp.max(softmax(t), axis=-1)
    return -confidence / jnp.mean(confidence) * _at(log_softmax(s), y)


def _virtual(s: jax.Array, y: jax.Array) -> jax.Array:
    probs = jnp.full(s.shape, 0.01 / (s.shape[-1] - 1))
    probs = jnp.where(jax.nn.one_hot(y, s.shape[-1]) == 1, 0.99, probs)
    return _kl(softmax(jnp.log(probs) / 20), softmax(s / 20))


def _taid(s: jax.Array, t: jax.Array) -> jax.Array:
    return _cross(softmax(0.5 * jax.lax.stop_gradient(s) + 0.5 * t), s)


def _adaptive(s: jax.Array, t: jax.Array) -> jax.Array:
    p, q = softmax(t), softmax(s)
    order = jnp.argsort(-p, axis=-1)
    gap = jnp.take_along_axis(jnp.abs(p - q), order, axis=-1)
    mass = jnp.cumsum(jnp.take_along_axis(p, order, axis=-1), axis=-1)
    head = jnp.sum(jnp.where(mass <= 0.5, gap, 0), axis=-1) / jnp.sum(gap, axis=-1)
    head = jax.lax.stop_gradient(head)
    return head * _kl(p, q) + (1 - head) * _kl(q, p)


def _uld(s: jax.Array, t: jax.Array) -> jax.Array:
    p, q = (jnp.sort(softmax(x), axis=-1) for x in (t, s))
    return jnp.sum(jnp.abs(p - q), axis=-1)


def _mft(s: jax.Array, t: jax.Array, y: jax.Array) -> jax.Array:
    p = softmax(t)
    largest, label = jnp.max(p, axis=-1), _at(p, y)
    wrong = (largest - label + 0.2) / (1 + largest - label + 1e-7)
    right = (jnp.minimum(label + 0.2, 1) - largest) / (1 - largest + 1e-7)
    share = jnp.where(jnp.argmax(p, axis=-1) == y, right, wrong)[:, None]
    target = (1 - share) * p + share * jax.nn.one_hot(y, p.shape[-1])
    return _kl(target, softmax(s))


def _minillm(s: jax.Array, t: jax.Array, y: jax.Array) -> jax.Array:
    p, q = softmax(t), softmax(s)
    weight = _at(q, y) / (0.2 * _at(p, y) + 0.8 * _at(q, y))
    return jax.lax.stop_gradient(weight) * _kl(q, p)


def _top_k(s: jax.Array, t: jax.Array) -> jax.Array:
    p, q = softmax(t), softmax(s)
    kept, places = jax.lax.top_k(p, 64)
    own = jnp.take_along_axis(q, places, axis=-1)
    rest = [1 - jnp.sum(x, axis=-1, keepdims=True) for x in (kept, own)]
    return _kl(
        *(jnp.concatenate(x, axis=-1) for x in zip((kept, own), rest, strict=True))
    )


def _exits(s: jax.Array, t: jax.Array) -> jax.Array:
    t = softmax(jax.lax.stop_gradient(t) / 3)
    return 9 * jnp.sum(jax.vmap(lambda x: _kl(t, softmax(x / 3)))(s), axis=0)


def _exit_features(s: jax.Array, t: jax.Array) -> jax.Array:
    t = jax.lax.stop_gradient(t)[None]
    squares = (s - t) ** 2 * ((s > 0) | (t > 0))
    return jnp.sum(squares, axis=(0, 2, 3, 4))


def _pkt(x: jax.Array) -> jax.Array:
    similar = (_unit(x) @ _unit(x).T + 1) / 2
    return similar / jnp.sum(similar, axis=-1, keepdims=True)


def _angles(x: jax.Array) -> jax.Array:
    difference = x[None] - x[:, None]
    lengths = jnp.linalg.norm(difference + 1e-12, axis=-1, keepdims=True)
    unit = difference / lengths
    return jnp.einsum("ijd,ikd->ijk", unit, unit)


def _rkd_angle(s: jax.Array, t: jax.Array) -> jax.Array:
    return jnp.mean(_huber(_angles(s) - _angles(t)), axis=(1, 2))


def _standard(x: jax.Array) -> jax.Array:
    mean = jnp.mean(x, axis=(0, 1, 2), keepdims=True)
    return (x - mean) / (jnp.std(x, axis=(0, 1, 2), keepdims=True, ddof=1) + 1e-6)


def _cka(s: jax.Array, t: jax.Array) -> jax.Array:
    kernels = [_gram(x - jnp.mean(x, axis=0, keepdims=True)) for x in (s, t)]
    kernels = [x / jnp.linalg.norm(x) for x in kernels]
    return len(s) * jnp.sum(kernels[0] * (kernels[1] - kernels[0]), axis=-1) * -1


def _channels(x: jax.Array) -> jax.Array:
    x = x.reshape(x.shape[0], -1, x.shape[-1])
    return jnp.einsum("bnc,bnd->bcd", x, x)


def _ickd(s: jax.Array, t: jax.Array) -> jax.Array:
    return jnp.mean((_channels(s) - _channels(t)) ** 2, axis=(1, 2))


def _activation_boundary(s: jax.Array, t: jax.Array) -> jax.Array:
    wrong = (s > -1) & (t <= 0), (s <= 1) & (t > 0)
    squares = (s + 1) ** 2 * wrong[0] + (s - 1) ** 2 * wrong[1]
    return jnp.sum(squares, axis=(1, 2, 3))


def _overhaul(s: jax.Array, t: jax.Array, margins: jax.Array) -> jax.Array:
    target = jnp.maximum(t, margins)
    squares = (s - target) ** 2 * ((s > target) | (target > 0))
    return jnp.sum(squares, axis=(1, 2, 3))


def _fsp(s: tuple[jax.Array, ...], t: tuple[jax.Array, ...]) -> jax.Array:
    grams = [
        jnp.einsum("bhwc,bhwd->bcd", *x) / (x[0].shape[1] * x[0].shape[2])
        for x in (s, t)
    ]
    return jnp.mean((grams[0] - grams[1]) ** 2, axis=(1, 2))


def _relation(x: jax.Array, y: jax.Array) -> jax.Array:
    x, y = (v.reshape(*v.shape[:2], 4, -1) for v in (x, y))
    return softmax(jnp.einsum("bqhd,bkhd->bhqk", x, y) / x.shape[-1] ** 0.5)


def _minilm(pairs: tuple[tuple[int, int], ...], *x: jax.Array) -> jax.Array:
    return sum(
        jnp.mean(_kl(_relation(x[3 + i], x[3 + j]), _relation(x[i], x[j])), axis=1)
        for i, j in pairs
    )


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
    "ab_loss": _activation_boundary,
    "adaptive_kl": _adaptive,
    "byot_feature_loss": _exit_features,
    "byot_loss": _exits,
    "cka_loss": _cka,
    "cwtm_loss": _cwtm,
    "fsp_loss": _fsp,
    "hidden_cosine_loss": lambda s, t: 1 - jnp.sum(_unit(s) * _unit(t), axis=-1),
    "ickd_loss": _ickd,
    "logit_matching_loss": lambda s, t: 0.5 * jnp.var(s - t, axis=-1),
    "mft_loss": _mft,
    "mgd_loss": lambda s, t: jnp.sum((s - t) ** 2, axis=(1, 2, 3)),
    "minillm_step_loss": _minillm,
    "minilm_loss": functools.partial(_minilm, ((0, 1), (2, 2))),
    "minilm_relation_loss": lambda *x: _minilm(((0, 0), (1, 1), (2, 2)), *x) / 3,
    "mutual_loss": lambda s, t: jnp.mean(
        jax.vmap(functools.partial(_forward, s))(t), axis=0
    ),
    "nkd_loss": _nkd,
    "ofd_loss": _overhaul,
    "one_hot_loss": lambda t: -jnp.max(log_softmax(t), axis=-1),
    "patient_loss": lambda s, t: jnp.sum((_unit(s) - _unit(t)) ** 2, axis=-1),
    "pkd_loss": lambda s, t: (
        jnp.mean((_standard(s) - _standard(t)) ** 2, axis=(1, 2, 3)) / 2
    ),
    "pkt_loss": lambda s, t: jnp.sum(_pkt(t) * jnp.log(_pkt(t) / _pkt(s)), axis=-1),
    "rkd_angle_loss": _rkd_angle,
    "taid_loss": _taid,
    "tinybert_attention_loss": lambda s, t: jnp.mean((s - t) ** 2, axis=(1, 3)),
    "tinybert_hidden_loss": lambda s, t: jnp.mean((s - t) ** 2, axis=-1),
    "tinybert_prediction_loss": lambda s, t: _cross(softmax(t), s),
    "top_k_kl": _top_k,
    "uld_loss": _uld,
    "vid_loss": lambda s, v, t: jnp.mean(
        0.5 * ((s - t) ** 2 / v + jnp.log(v)), axis=(1, 2, 3)
    ),
    "virtual_teacher_loss": _virtual,
    "wsld_loss": _wsld,
    "wttm_loss": _wttm,
    "zskt_generator_loss": lambda s, t: -_forward(s, t),
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
