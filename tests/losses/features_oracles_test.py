"""Losses of features against loops over their equations, and laws of their own.

The losses run operation by operation here, and compiled in the contract.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import losses

RNG = np.random.default_rng(0)
MAP = (2, 5, 4, 3)
STUDENT, TEACHER = RNG.normal(size=(2, *MAP))
SMALL = RNG.normal(size=(2, 3, 6, 2))  # No divisors of the others' sizes.
VECTORS, WORDS = RNG.normal(size=(2, 3, 2, 4))
VARIANCE, MARGINS = np.array([0.5, 1.0, 3.0]), np.array([-0.1, -0.6, -2.0])


def _pool(x, height, width):
    """By its definition: each part from the floor of its start to the ceiling."""
    out = np.zeros((len(x), height, width, x.shape[-1]))
    for i in range(height):
        for j in range(width):
            top, bottom = (
                i * x.shape[1] // height,
                math.ceil((i + 1) * x.shape[1] / height),
            )
            left, right = (
                j * x.shape[2] // width,
                math.ceil((j + 1) * x.shape[2] / width),
            )
            out[:, i, j] = x[:, top:bottom, left:right].mean(axis=(1, 2))
    return out


def _of_one_size(loss_fn):
    """The loss of maps, both averaged to the smaller of their sizes."""

    def pooled(s, t):
        size = min(s.shape[1], t.shape[1]), min(s.shape[2], t.shape[2])
        return loss_fn(_pool(s, *size), _pool(t, *size))

    return pooled


def _by_example(loss_fn):
    def each(*arrays):
        return [loss_fn(*rows) for rows in zip(*arrays, strict=True)]

    return each


def _unit(x):
    return x / np.sqrt(np.sum(x**2))


def _hint(s, t):
    return sum((a - b) ** 2 for a, b in zip(s.flat, t.flat, strict=True)) / s.size


def _vid(mean, teacher):
    total = 0.0
    for h, w, c in np.ndindex(mean.shape):
        error = (mean[h, w, c] - teacher[h, w, c]) ** 2
        total += 0.5 * (error / VARIANCE[c] + math.log(VARIANCE[c]))
    return total / mean.size


def _attention(power, form):
    def maps(f):
        return _unit(
            np.array(
                [sum(abs(c) ** power for c in place) for row in f for place in row]
            )
        )

    def loss(s, t):
        squares = sum((a - b) ** 2 for a, b in zip(maps(s), maps(t), strict=True))
        return math.sqrt(squares) if form == "paper" else squares / len(maps(s))

    return loss


def _cat(size, form):
    def loss(s, t):
        s, t = (_pool(x[None], size, size)[0] for x in (s, t))
        total = 0.0
        for c in range(s.shape[-1]):
            a, b = s[..., c], t[..., c]
            if form == "paper":
                total += np.sum((_unit(a) - _unit(b)) ** 2)
            else:
                total += np.mean((a - b) ** 2)
        return total / s.shape[-1]

    return loss


def _kernel(name, a, b, variance):
    if name == "gaussian":
        return math.exp(-np.sum((a - b) ** 2) / (2 * variance))
    return np.dot(a, b) ** (2 if name == "polynomial" else 1)


def _nst(name):
    def loss(s, t):
        s, t = ([_unit(f[..., c].ravel()) for c in range(f.shape[-1])] for f in (s, t))
        variance = np.mean([np.sum((a - b) ** 2) for a in s for b in t])

        def mean(x, y):
            return np.mean([_kernel(name, a, b, variance) for a in x for b in y])

        return mean(s, s) + mean(t, t) - 2 * mean(s, t)

    return loss


def _matrix(first, second):
    matrix = np.zeros((first.shape[-1], second.shape[-1]))
    for c, d in np.ndindex(matrix.shape):
        products = [
            first[h, w, c] * second[h, w, d] for h, w in np.ndindex(first.shape[:2])
        ]
        matrix[c, d] = np.mean(products)
    return matrix


def _fsp(s, t):
    """Of the first and second map of each side."""
    s, t = ([_matrix(*pair) for pair in zip(*side, strict=True)] for side in (s, t))
    return [np.mean((a - b) ** 2) for a, b in zip(s, t, strict=True)]


def _factor(s, t):
    return np.mean(np.abs(_unit(s.ravel()) - _unit(t.ravel())))


def _cwd(temperature):
    def loss(s, t):
        total = 0.0
        for c in range(s.shape[-1]):
            p, q = (np.exp(x[..., c].ravel() / temperature) for x in (t, s))
            p, q = p / p.sum(), q / q.sum()
            total += sum(p * np.log(p / q))
        return temperature**2 * total / s.shape[-1]

    return loss


def _pkd(s, t):
    for x in (s, t):
        for c in range(x.shape[-1]):
            values = list(x[..., c].flat)
            mean = sum(values) / len(values)
            variance = sum((v - mean) ** 2 for v in values) / (len(values) - 1)
            x[..., c] = (x[..., c] - mean) / (math.sqrt(variance) + 1e-6)
    return [0.5 * np.mean((a - b) ** 2) for a, b in zip(s, t, strict=True)]


def _ab(margin):
    def loss(s, t):
        total = 0.0
        for a, b in zip(s.flat, t.flat, strict=True):
            if a > -margin and b <= 0:
                total += (a + margin) ** 2
            if a <= margin and b > 0:
                total += (a - margin) ** 2
        return total

    return loss


def _ofd(s, t):
    """The three cases of the authors' code."""
    total = 0.0
    for h, w, c in np.ndindex(s.shape):
        a, b, margin = s[h, w, c], t[h, w, c], MARGINS[c]
        if a > margin and b <= margin:
            total += (a - margin) ** 2
        elif (a > b and margin < b <= 0) or b > 0:
            total += (a - b) ** 2
    return total


def _review(s, t):
    parts, weights = [_hint(s, t)], [1.0]
    for side in (4, 2, 1):
        if side < min(s.shape[:2]):
            pooled = (_pool(x[None], side, side)[0] for x in (s, t))
            parts.append(_hint(*pooled))
            weights.append(weights[-1] / 2)
    return np.dot(parts, weights) / sum(weights)


def _cosine(s, t):
    return 1 - np.dot(s, t) / math.sqrt(np.dot(s, s) * np.dot(t, t))


class Oracle(NamedTuple):
    loss_fn: Callable[..., jax.Array]
    expected: Callable[..., list[float]]
    arrays: tuple = (STUDENT, TEACHER)
    others: tuple = ()


def _set(name, **keywords):
    return functools.partial(getattr(losses, name), **keywords)


ORACLES = {
    "hint": Oracle(losses.hint_loss, _by_example(_hint)),
    "mgd": Oracle(losses.mgd_loss, _by_example(lambda s, t: s.size * _hint(s, t))),
    "cosine": Oracle(
        losses.cosine_loss,
        _by_example(_by_example(_cosine)),
        (VECTORS, WORDS),
    ),
    "attention": Oracle(
        losses.attention_transfer_loss,
        _of_one_size(_by_example(_attention(2, "paper"))),
        (STUDENT, SMALL),
    ),
    "attention_code": Oracle(
        _set("attention_transfer_loss", form="author_code", power=3.0),
        _of_one_size(_by_example(_attention(3, "author_code"))),
        (SMALL, TEACHER),
    ),
    "cat_kd": Oracle(losses.cat_kd_loss, _by_example(_cat(2, "paper"))),
    "cat_kd_code": Oracle(
        _set("cat_kd_loss", form="author_code", size=4),
        _by_example(_cat(4, "author_code")),
    ),
    "nst": Oracle(
        losses.nst_loss,
        _of_one_size(_by_example(_nst("polynomial"))),
        (STUDENT, SMALL),
    ),
    "nst_linear": Oracle(
        _set("nst_loss", kernel="linear"), _by_example(_nst("linear"))
    ),
    "nst_gaussian": Oracle(
        _set("nst_loss", kernel="gaussian"), _by_example(_nst("gaussian"))
    ),
    "factor": Oracle(losses.factor_loss, _by_example(_factor)),
    "factor_repdistiller": Oracle(
        _set("factor_loss", form="repdistiller"),
        _of_one_size(
            _by_example(lambda s, t: _factor(*(np.sum(x**2, -1) for x in (s, t))))
        ),
        (SMALL, TEACHER),
    ),
    "cwd": Oracle(_set("cwd_loss", temperature=2.0), _by_example(_cwd(2.0))),
    "pkd": Oracle(losses.pkd_loss, lambda s, t: _pkd(s.copy(), t.copy())),
    "ab": Oracle(_set("ab_loss", margin=0.7), _by_example(_ab(0.7))),
    "ofd": Oracle(losses.ofd_loss, _by_example(_ofd), others=(MARGINS,)),
    "review": Oracle(losses.review_loss, _by_example(_review)),
    "vid": Oracle(
        lambda s, t, variance: losses.vid_loss(s, variance, t),
        _by_example(_vid),
        others=(VARIANCE,),
    ),
}


@pytest.mark.parametrize("oracle", ORACLES.values(), ids=ORACLES.keys())
def test_values_are_those_of_a_loop_over_the_equation(oracle):
    arrays = [jnp.asarray(x, jnp.float32) for x in (*oracle.arrays, *oracle.others)]
    expected = oracle.expected(*(x.copy() for x in oracle.arrays))
    np.testing.assert_allclose(oracle.loss_fn(*arrays), expected, rtol=2e-5)


def test_fsp_is_a_loop_over_its_equation():
    first, second = (STUDENT, TEACHER), (TEACHER[:, ::-1], STUDENT[:, :, ::-1])
    actual = losses.fsp_loss(*(tuple(map(jnp.float32, x)) for x in (first, second)))
    np.testing.assert_allclose(actual, _fsp(first, second), rtol=2e-5)


def test_semckd_is_the_weighted_sum_of_hints():
    maps, small, words = (jnp.float32(x) for x in (STUDENT, SMALL, VECTORS[:2]))
    students = [[maps, small, words], [words, small, maps]]
    teachers = [
        [x + 1 + i + j for j, x in enumerate(r)] for i, r in enumerate(students)
    ]
    attention = np.arange(12.0).reshape(2, 2, 3)
    expected = [
        sum(attention[b, i, j] * (1 + i + j) ** 2 for i in range(2) for j in range(3))
        / 2
        for b in range(2)
    ]
    actual = losses.semckd_loss(students, teachers, jnp.float32(attention))
    np.testing.assert_allclose(actual, expected, rtol=1e-6)


def test_srrl_is_two_mean_squares():
    classifier = np.array([[1.0, 2.0], [0.0, -1.0], [3.0, 0.5]])
    student, teacher = (
        np.mean(x, axis=(1, 2)) for x in (STUDENT, SMALL[..., [0, 1, 1]])
    )
    expected = np.mean((student - teacher) ** 2, axis=1)
    expected += 0.3 * np.mean(((student - teacher) @ classifier) ** 2, axis=1)
    actual = losses.srrl_loss(
        *map(jnp.float32, (STUDENT, SMALL[..., [0, 1, 1]])),
        *(jnp.float32(x @ classifier) for x in (student, teacher)),
        logits_weight=0.3,
    )
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


@pytest.mark.parametrize("size", [(5, 4), (2, 2), (3, 4), (4, 3), (1, 1), (7, 8)])
def test_pooling_is_its_definition(size):
    actual = losses.adaptive_average_pool(jnp.float32(STUDENT), size=size)
    np.testing.assert_allclose(actual, _pool(STUDENT, *size), rtol=1e-5, atol=1e-6)
