"""Encodings: what comes back is what the docstrings promise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.teacher_cache import Float16, Float32, TopK
from kdjax.teacher_cache.encodings import from_description
from kdjax.types import UserError

GRID = (1.0, 4.0, 20.0)
ENCODINGS = [Float32(11), Float16(11), TopK(11, 3, GRID), TopK(11, 11, GRID)]


def _logits(shape=(7, 11), scale=4.0, seed=0):
    return (scale * np.random.default_rng(seed).normal(size=shape)).astype(np.float32)


def _softmax(logits, temperature):
    scaled = np.asarray(logits, np.float64) / temperature
    exps = np.exp(scaled - scaled.max(-1, keepdims=True))
    return exps / exps.sum(-1, keepdims=True)


@pytest.mark.parametrize("encoding", ENCODINGS, ids=str)
def test_entries_are_as_announced(encoding):
    entries = encoding.encode(jnp.asarray(_logits()))
    announced = encoding.arrays()
    assert entries.keys() == announced.keys()
    for name, (shape, dtype) in announced.items():
        assert entries[name].shape == (7, *shape)
        assert entries[name].dtype == dtype
    nbytes = sum(np.asarray(x[0]).nbytes for x in entries.values())
    assert encoding.bytes_per_entry == nbytes


@pytest.mark.parametrize("encoding", ENCODINGS, ids=str)
def test_a_description_makes_the_same_encoding(encoding):
    assert from_description(encoding.description()) == encoding


def test_float32_is_exact():
    logits = np.float32([[1e-40, -3e38, 0.1, -0.0], [np.pi, 1e10, -1e-10, 7]])
    encoding = Float32(4)
    decoded = np.asarray(encoding.decode(encoding.encode(jnp.asarray(logits)), 3.0))
    np.testing.assert_array_equal(decoded.view(np.int32), logits.view(np.int32))


@pytest.mark.parametrize("scale", [1e-7, 1e-3, 1.0, 30.0, 9000.0])
def test_float16_is_within_its_stated_error(scale):
    logits = _logits((200, 11), scale)
    encoding = Float16(11)
    decoded = np.asarray(encoding.decode(encoding.encode(jnp.asarray(logits))))
    bound = np.maximum(2.0**-11 * np.abs(logits.astype(np.float64)), 2.0**-25)
    assert (np.abs(decoded.astype(np.float64) - logits) <= bound).all()
    assert np.abs(decoded - logits).max() <= encoding.rounding(logits)
    # And no better than that: the statement is not idle.
    assert np.abs(decoded - logits).max() > encoding.rounding(logits) / 16


def test_float16_refuses_what_overflows():
    encoding = Float16(2)
    encoding.check_logits(np.float32([[65504, -65504]]))
    with pytest.raises(UserError, match=r"within 65504 .* got 70000: use 'float32'"):
        encoding.check_logits(np.float32([[0, -70000]]))


@pytest.mark.parametrize("encoding", ENCODINGS, ids=str)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_are_refused(encoding, bad):
    with pytest.raises(UserError, match="finite logits from the teacher"):
        encoding.check_logits(np.where(np.eye(11) > 0, bad, 1.0).astype(np.float32))


@pytest.mark.parametrize("temperature", GRID)
@pytest.mark.parametrize("k", [1, 3, 10])
def test_topk_is_exact_in_the_top_and_in_the_mass_of_the_tail(k, temperature):
    logits = _logits((50, 11))
    encoding = TopK(11, k, GRID)
    decoded = encoding.decode(encoding.encode(jnp.asarray(logits)), temperature)
    true, found = _softmax(logits, temperature), _softmax(decoded, temperature)
    top = np.argsort(-logits, axis=-1)[:, :k]
    true_top, found_top = (np.take_along_axis(x, top, -1) for x in (true, found))
    np.testing.assert_allclose(found_top, true_top, rtol=0, atol=1e-6)
    tail = 1 - found_top.sum(-1)
    np.testing.assert_allclose(tail, 1 - true_top.sum(-1), rtol=0, atol=1e-6)
    rest = np.ones_like(found, bool)
    np.put_along_axis(rest, top, False, -1)
    assert np.ptp(np.where(rest, found, tail[:, None] / (11 - k)), axis=-1).max() < 1e-6


@pytest.mark.parametrize("temperature", GRID)
def test_topk_loses_only_the_shape_of_the_tail(temperature):
    logits = _logits((50, 11))
    encoding = TopK(11, 3, GRID)
    decoded = encoding.decode(encoding.encode(jnp.asarray(logits)), temperature)
    true, found = _softmax(logits, temperature), _softmax(decoded, temperature)
    kl = np.sum(true * np.log(true / found), -1)
    tail = np.sort(true, -1)[:, :-3]
    mass = tail.sum(-1)
    shape = tail / mass[:, None]
    lost = mass * (np.log(11 - 3) + np.sum(shape * np.log(shape), -1))
    np.testing.assert_allclose(kl, lost, rtol=0, atol=2e-6)
    assert (kl <= mass * np.log(11 - 3) + 1e-6).all()


def test_topk_of_all_classes_is_exact_at_any_temperature():
    logits = jnp.asarray(_logits())
    encoding = TopK(11, 11, GRID)
    for temperature in (1.0, 3.0, 100.0):
        decoded = encoding.decode(encoding.encode(logits), temperature)
        np.testing.assert_array_equal(decoded, logits)


def test_topk_with_equal_logits_keeps_k_of_them():
    encoding = TopK(11, 3, GRID)
    entries = encoding.encode(jnp.zeros((2, 11)))
    assert all(len(set(row)) == 3 for row in np.asarray(entries["teacher_top_indices"]))
    np.testing.assert_allclose(encoding.decode(entries, 4.0), 0, atol=1e-5)


def test_more_classes_than_int16_counts():
    logits = jnp.zeros((1, 40_000)).at[0, 39_999].set(9.0)
    encoding = TopK(40_000, 2, (1.0,))
    decoded = encoding.decode(encoding.encode(logits), 1.0)
    assert int(jnp.argmax(decoded)) == 39_999
    assert TopK(2**15, 2, (1.0,)).arrays()["teacher_top_indices"][1] == np.int16


def test_a_traced_temperature_takes_the_nearest_of_the_grid():
    encoding = TopK(11, 3, GRID)
    entries = encoding.encode(jnp.asarray(_logits()))
    decode = jax.jit(encoding.decode)
    for traced, nearest in ((1.4, 1.0), (3.0, 4.0), (4.0, 4.0), (300.0, 20.0)):
        expected = encoding.decode(entries, nearest)
        np.testing.assert_allclose(decode(entries, traced), expected, 1e-6)
    # A sweep maps over temperatures, the entries shared.
    swept = jax.vmap(encoding.decode, in_axes=(None, 0))(entries, jnp.asarray(GRID))
    for row, temperature in zip(swept, GRID, strict=True):
        np.testing.assert_allclose(row, encoding.decode(entries, temperature), 1e-6)


@pytest.mark.parametrize("encoding", ENCODINGS, ids=str)
def test_other_entries_of_a_batch_do_not_disturb(encoding):
    entries = encoding.encode(jnp.asarray(_logits()))
    batch = {**entries, "image": jnp.zeros((7, 2, 2, 1), jnp.uint8)}
    expected = encoding.decode(entries, 4.0)
    np.testing.assert_array_equal(encoding.decode(batch, 4.0), expected)


@pytest.mark.parametrize("encoding", ENCODINGS, ids=str)
def test_deviations_are_those_of_the_logits(encoding):
    logits = _logits()
    entries = encoding.encode(jnp.asarray(logits))
    found = encoding.deviations(entries, jnp.asarray(logits))
    assert max(float(x.max()) for x in found.values()) <= encoding.rounding(logits)
    moved = encoding.deviations(entries, jnp.asarray(logits + np.float32(0.5)))
    first = next(iter(moved.values()))
    np.testing.assert_allclose(first, 0.5, atol=0.01)


def test_deviations_see_another_class_kept():
    logits = jnp.asarray([[5.0, 3.0, 1.0, 0.0]])
    encoding = TopK(4, 2, (1.0,))
    entries = encoding.encode(jnp.asarray([[5.0, 0.0, 1.0, 0.0]]))
    found = encoding.deviations(entries, logits)
    np.testing.assert_allclose(found["teacher_top_indices"], [2.0])


def test_a_temperature_off_the_grid_is_refused_with_the_grid():
    TopK(11, 3, GRID).check_temperature(4.0)
    Float16(11).check_temperature(7.7)
    with pytest.raises(UserError, match=r"\(1, 4, 20\).* got 8: add it"):
        TopK(11, 3, GRID).check_temperature(8)


@pytest.mark.parametrize(
    ("k", "temperatures", "expected"),
    [
        (0, GRID, "between 1 and 11"),
        (12, GRID, "between 1 and 11"),
        (3, (), "positive temperature"),
        (3, (1.0, -2.0), "positive temperature"),
    ],
)
def test_bad_parameters_of_topk_are_told(k, temperatures, expected):
    with pytest.raises(UserError, match=expected):
        TopK(11, k, temperatures)
