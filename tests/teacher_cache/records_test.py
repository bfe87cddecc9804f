"""Records: logits and features of an example come back together."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import teacher_cache
from kdjax.teacher_cache import Float16, Float32, Record
from kdjax.teacher_cache.encodings import from_description
from kdjax.types import Outputs, UserError

SHAPES = (("pooled", (5,)), ("stage2", (2, 3, 5)), ("stage1", (4, 3, 2)))
CLASSES = 7
WIDTH = 7 + 5 + 30 + 24


def _outputs(batch=(11,), scale=1.0):
    rng = np.random.default_rng(0)

    def values(shape):
        drawn = rng.normal(size=(*batch, *shape)).astype(np.float32)
        return jnp.asarray(scale * drawn)

    names = [*SHAPES, ("not stored", (2, 2))]
    return Outputs(values((CLASSES,)), {name: values(shape) for name, shape in names})


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("batch", [(11,), (2, 3)])
def test_what_is_stored_comes_back_under_its_name(dtype, batch):
    encoding, outputs = Record(CLASSES, SHAPES, dtype), _outputs(batch)
    entries = encoding.encode(encoding.flatten(outputs))
    found = encoding.outputs({**entries, "image": jnp.zeros((1, 2, 2))})
    assert set(found.features) == {name for name, _ in SHAPES}
    tolerance = {"rtol": 0} if dtype == "float32" else {"rtol": 2.0**-11}
    np.testing.assert_allclose(found.logits, outputs.logits, **tolerance, atol=1e-7)
    for name, _ in SHAPES:
        expected = outputs.features[name]
        assert found.features[name].dtype == jnp.float32
        np.testing.assert_allclose(
            found.features[name], expected, **tolerance, atol=1e-7
        )


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_an_entry_is_one_vector_of_the_announced_size(dtype):
    encoding = Record(CLASSES, SHAPES, dtype)
    entries = encoding.encode(encoding.flatten(_outputs()))
    ((name, (shape, announced)),) = encoding.arrays().items()
    assert entries.keys() == {name}
    assert entries[name].shape == (11, *shape) == (11, WIDTH)
    assert entries[name].dtype == announced == np.dtype(dtype)
    assert encoding.bytes_per_entry == WIDTH * np.dtype(dtype).itemsize


def test_float32_keeps_every_bit():
    encoding, outputs = Record(CLASSES, SHAPES, "float32"), _outputs(scale=1e-30)
    found = encoding.outputs(encoding.encode(encoding.flatten(outputs)))
    jax.tree.map(
        np.testing.assert_array_equal,
        {name: outputs.features[name] for name, _ in SHAPES},
        dict(found.features),
    )
    np.testing.assert_array_equal(found.logits, outputs.logits)


def test_a_description_makes_the_same_encoding_after_json():
    encoding = Record(CLASSES, SHAPES, "float16")
    manifest = _manifest(encoding)
    found = teacher_cache.manifest.from_json(manifest.to_json())
    assert found.encoding == encoding
    assert from_description(encoding.description()) == encoding
    assert not manifest.differences(found)


def test_other_features_are_another_cache():
    expected = _manifest(Record(CLASSES, SHAPES, "float16"))
    found = _manifest(Record(CLASSES, SHAPES[:2], "float16"))
    assert "encoding.features" in " ".join(expected.differences(found))


@pytest.mark.parametrize(
    ("dtype", "bad", "expected"),
    [
        ("float16", 7e4, r"within 65504 .*'float16', got 70000: use 'float32'"),
        ("float16", np.nan, r"got nan"),
        ("float32", np.inf, r"got inf"),
    ],
)
def test_a_feature_that_cannot_be_stored_is_refused(dtype, bad, expected):
    encoding = Record(CLASSES, SHAPES, dtype)
    values = np.array(encoding.flatten(_outputs()))
    encoding.check_logits(values)
    values[3, -1] = bad
    with pytest.raises(UserError, match=expected):
        encoding.check_logits(values)


def test_rounding_and_deviations_are_those_of_all_values():
    values = 100 * np.asarray(Record(CLASSES, SHAPES, "float16").flatten(_outputs()))
    half, full = (Record(CLASSES, SHAPES, x) for x in ("float16", "float32"))
    deviations = half.deviations(half.encode(jnp.asarray(values)), jnp.asarray(values))
    (found,) = deviations.values()
    assert 0 < float(np.max(found)) <= half.rounding(values)
    assert half.rounding(values) == Float16(WIDTH).rounding(values)
    assert full.rounding(values) == Float32(WIDTH).rounding(values) == 0
    moved = values.copy()
    moved[:, -1] += 3
    entries = full.encode(jnp.asarray(values))
    (found,) = full.deviations(entries, jnp.asarray(moved)).values()
    np.testing.assert_allclose(found, 3, rtol=1e-4)


def _manifest(encoding):
    return teacher_cache.Manifest(
        num_examples=13,
        num_views=2,
        encoding=encoding,
        shard_size=5,
        teacher_fingerprint="a",
        dataset_fingerprint="b",
        augmentation={},
        preprocessing={},
        seed=0,
    )


def _compute(ids, view):
    rng = np.random.default_rng(view)
    return rng.normal(size=(13, WIDTH)).astype(np.float32)[ids]


def test_a_cache_of_records_is_written_read_and_verified(tmp_path):
    manifest = _manifest(Record(CLASSES, SHAPES, "float32"))
    teacher_cache.write(tmp_path / "cache", manifest, _compute, batch_size=4)
    cache = teacher_cache.open(tmp_path / "cache", manifest)
    ids = np.array([12, 0, 7])
    (found,) = cache.read(1, ids).values()
    np.testing.assert_array_equal(found, _compute(ids, 1))
    report = teacher_cache.verify(cache, _compute, num_samples=20, seed=0)
    assert report.agrees
    assert max(report.deviations.values()) == 0


def test_logits_alone_are_flattened_and_returned_as_they_were():
    logits = _outputs().logits
    encoding = Float32(CLASSES)
    assert encoding.width == CLASSES
    assert encoding.flatten(Outputs(logits)) is logits
    found = encoding.outputs(encoding.encode(logits), 4.0)
    np.testing.assert_array_equal(found.logits, logits)
    assert not found.features
