"""Sparse teachers of texts: 3 bytes a class, and back without a bit lost."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import losses, teacher_cache
from kdjax.teacher_cache import DrawnTokens, TopTokens
from kdjax.teacher_cache.encodings import from_description
from kdjax.types import UserError

VOCAB, LENGTH, COUNT = 131072, 3, 5


def _logits(vocab=301, count=COUNT):
    rng = np.random.default_rng(0)
    return jnp.asarray(rng.normal(size=(count, LENGTH, vocab)).astype(np.float32) * 3)


def _stored(encoding, values, path):
    """What comes back of a cache with these values, by its files."""
    manifest = teacher_cache.Manifest(
        num_examples=len(values),
        num_views=1,
        encoding=encoding,
        shard_size=2,
        teacher_fingerprint="a",
        dataset_fingerprint="b",
        augmentation={},
        preprocessing={},
        seed=0,
    )
    table = np.asarray(values)
    teacher_cache.write(path, manifest, lambda ids, view: table[ids], batch_size=2)
    cache = teacher_cache.open(path, manifest)
    shuffled = np.array([4, 0, 3, 1, 2])
    found = cache.read(0, shuffled)
    whole = cache.read_all()
    for name, x in found.items():
        np.testing.assert_array_equal(x, whole[name][0][shuffled])
    return {name: x[0] for name, x in whole.items()}


def test_draws_come_back_exactly_in_three_bytes_a_class(tmp_path):
    encoding = DrawnTokens(VOCAB, LENGTH, num_draws=127)
    assert encoding.bytes_per_entry == 3 * LENGTH * 127
    rng = np.random.default_rng(1)
    ids = rng.integers(0, VOCAB, (COUNT, LENGTH, 127)).astype(np.int32)
    ids[0] = VOCAB - 1
    counts = rng.integers(0, 128, ids.shape).astype(np.int32)
    counts[0] = 127
    words = encoding.words(jnp.asarray(ids), jnp.asarray(counts))
    assert words.dtype == jnp.float32  # As the cache is given everything.
    # The largest word of all, for every class of a text, stands for a lost file.
    words = words.at[0, -1].set(0)
    entries = _stored(encoding, words, tmp_path / "cache")
    packed = entries[teacher_cache.tokens.DRAWS]
    assert packed.nbytes == COUNT * 3 * LENGTH * 127
    back_ids, back_counts = losses.unpack_sparse_targets(jnp.asarray(packed))
    ids[0, -1, -1] = counts[0, -1, -1] = 0
    np.testing.assert_array_equal(back_ids, ids)
    np.testing.assert_array_equal(back_counts, counts)


def test_decoded_draws_are_their_frequencies():
    encoding = DrawnTokens(301, LENGTH, num_draws=50)
    ids, counts = encoding.draw(_logits(), jax.random.key(0))
    entries = encoding.encode(encoding.words(ids, counts))
    probs = np.exp(encoding.decode(entries))
    np.testing.assert_allclose(probs.sum(axis=-1), 1, rtol=1e-6)
    expected = np.zeros(probs.shape)
    np.put_along_axis(expected, np.asarray(ids[..., :1]), counts[..., :1] / 50, -1)
    first = np.take_along_axis(probs, np.asarray(ids[..., :1]), axis=-1)
    np.testing.assert_allclose(first, counts[..., :1] / 50, rtol=1e-6)
    assert ((probs > 0).sum(axis=-1) == (np.asarray(counts) > 0).sum(axis=-1)).all()


def test_top_classes_come_back_with_the_mass_of_the_rest(tmp_path):
    encoding = TopTokens(301, LENGTH, k=7)
    logits = _logits()
    assert encoding.bytes_per_entry == LENGTH * (7 * 4 + 4)
    entries = _stored(encoding, encoding.values(logits), tmp_path / "cache")
    log_probs = np.asarray(jax.nn.log_softmax(logits))
    order = np.argsort(-log_probs, axis=-1)[..., :7]
    np.testing.assert_array_equal(entries["teacher_top_indices"], order)
    top = np.take_along_axis(log_probs, order, axis=-1)
    np.testing.assert_allclose(entries["teacher_top_logits"], top, rtol=2.0**-11)
    missing = 1 - np.exp(top).sum(axis=-1)
    np.testing.assert_allclose(np.exp(entries["teacher_tail"]), missing, rtol=1e-3)
    decoded = np.exp(encoding.decode(entries))
    np.testing.assert_allclose(decoded.sum(axis=-1), 1, rtol=2e-3)


def test_all_classes_leave_no_tail():
    encoding = TopTokens(11, LENGTH, k=11)
    logits = _logits(11)
    entries = encoding.encode(encoding.values(logits))
    decoded = encoding.decode(entries)
    np.testing.assert_allclose(decoded, jax.nn.log_softmax(logits), rtol=2.0**-10)
    assert (np.exp(entries["teacher_tail"]) == 0).all()


@pytest.mark.parametrize(
    "encoding", [DrawnTokens(301, LENGTH, 50), TopTokens(301, LENGTH, 7)]
)
def test_a_description_is_the_encoding_and_its_own_values_do_not_deviate(encoding):
    assert from_description(encoding.description()) == encoding
    logits = _logits()
    if isinstance(encoding, DrawnTokens):
        values = encoding.words(*encoding.draw(logits, jax.random.key(0)))
        other = encoding.words(*encoding.draw(logits, jax.random.key(1)))
    else:
        values, other = (encoding.values(x) for x in (logits, logits[::-1]))
    entries = encoding.encode(values)
    for gap in encoding.deviations(entries, values).values():
        assert (np.asarray(gap) == 0).all()
    for gap in encoding.deviations(entries, other).values():
        assert np.asarray(gap).max() > 0.01


def test_the_kind_of_index_grows_with_the_vocabulary():
    for vocab, kind in ((2**16, np.uint16), (2**16 + 1, np.uint32)):
        arrays = TopTokens(vocab, 1, 2).arrays()
        assert arrays["teacher_top_indices"] == ((1, 2), np.dtype(kind))


def test_what_does_not_fit_is_told():
    with pytest.raises(UserError, match="at most 131072 tokens"):
        DrawnTokens(VOCAB + 1, 2, 50)
    with pytest.raises(UserError, match=r"lm.draws.*got 11 and 128"):
        DrawnTokens(11, 2, 128)
    with pytest.raises(UserError, match=r"lm.top_k from 1 to the 11"):
        TopTokens(11, 2, 12)
