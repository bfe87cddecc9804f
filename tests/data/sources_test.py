"""Laws of sources: the embedded digits, splits, fingerprints, statistics."""

import numpy as np
import pytest
from PIL import Image

from kdjax.data import sources
from kdjax.types import UserError


def _arrays(height=4, width=5, channels=3, train=30, test=12):
    rng = np.random.default_rng(0)
    shape = (height, width, channels)
    return {
        "train_images": rng.integers(0, 256, (train, *shape), dtype=np.uint8),
        "train_labels": np.arange(train) % 3,
        "test_images": rng.integers(0, 256, (test, *shape), dtype=np.uint8),
        "test_labels": np.arange(test) % 3,
    }


def _everything(source):
    return source.take(np.arange(len(source)))


def _load_npz(tmp_path, arrays, **kwargs):
    np.savez(tmp_path / "set.npz", **arrays)
    return sources.load("set", path=str(tmp_path / "set.npz"), **kwargs)


def _write_folder(path, arrays, splits=("train", "test"), suffix=".png"):
    for split in splits:
        pairs = zip(arrays[f"{split}_images"], arrays[f"{split}_labels"], strict=True)
        for i, (image, label) in enumerate(pairs):
            file = path / split / f"class{label}" / f"{i:03d}{suffix}"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.squeeze()).save(file)


# The embedded digits.


def test_the_digits_are_all_there():
    splits = sources.load("digits", validation=237)
    parts = [splits.train, splits.validation, splits.test]
    assert [len(x) for x in parts] == [1200, 237, 360]
    assert splits.train.image_shape == (8, 8, 1)
    assert splits.train.class_names == tuple("0123456789")
    labels = np.concatenate([_everything(x)["label"] for x in parts])
    images = np.concatenate([_everything(x)["image"] for x in parts])
    # Class counts of the data set's own description.
    counts = [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    np.testing.assert_array_equal(np.bincount(labels), counts)
    assert images.min() == 0
    assert images.max() == 255
    assert len(np.unique(images)) == 17


def test_the_digits_are_those_of_scikit_learn():
    from sklearn import datasets

    original = datasets.load_digits()
    expected = np.round(original.images * (255 / 16)).astype(np.uint8)
    splits = sources.load("digits")
    parts = [_everything(x) for x in (splits.train, splits.test)]
    actual = sorted(
        (int(label), image.tobytes())
        for part in parts
        for image, label in zip(part["image"], part["label"], strict=True)
    )
    pairs = zip(original.target, expected, strict=True)
    assert actual == sorted((int(y), x.tobytes()) for y, x in pairs)


# Splits.


def test_a_few_examples_are_of_all_classes_evenly_and_of_the_whole():
    whole = sources.load("digits", validation=0)
    few = sources.load("digits", validation=40, max_examples=200)
    again = sources.load("digits", validation=40, max_examples=200)
    assert [len(x) for x in (few.train, few.validation, few.test)] == [160, 40, 200]
    assert few.train.fingerprint() == again.train.fingerprint()
    for some, of in ((few.train, whole.train), (few.test, whole.test)):
        counts, all_counts = (np.bincount(_everything(x)["label"]) for x in (some, of))
        shares = all_counts * len(some) / len(of)
        assert np.abs(counts - shares).max() <= 1
        rows = {x.tobytes() for x in _everything(of)["image"]}
        assert {x.tobytes() for x in _everything(some)["image"]} <= rows


@pytest.mark.parametrize("max_examples", [0, 5000])
def test_as_many_examples_as_there_are_change_nothing(max_examples):
    whole = sources.load("digits", validation=0.1)
    same = sources.load("digits", validation=0.1, max_examples=max_examples)
    assert same.train.fingerprint() == whole.train.fingerprint()
    assert same.test.fingerprint() == whole.test.fingerprint()


def test_a_negative_number_of_examples_is_refused():
    with pytest.raises(UserError, match="max_examples >= 0, got -1"):
        sources.load("digits", max_examples=-1)


@pytest.mark.parametrize(("validation", "size"), [(0, 0), (0.2, 287), (300, 300)])
def test_validation_is_cut_from_train_disjoint_and_even(validation, size):
    whole = _everything(sources.load("digits").train)
    splits = sources.load("digits", validation=validation)
    train, held_out = _everything(splits.train), _everything(splits.validation)
    assert len(held_out["label"]) == size
    assert len(train["label"]) + size == len(whole["label"]) == 1437
    joined = [*train["image"], *held_out["image"]]
    assert sorted(x.tobytes() for x in joined) == sorted(
        x.tobytes() for x in whole["image"]
    )
    share = np.bincount(whole["label"]) * size / 1437
    held_out_counts = np.bincount(held_out["label"], minlength=10)
    assert np.all(np.abs(held_out_counts - share) <= 1)


def test_a_cut_has_every_id_once_and_is_always_the_same():
    labels = np.random.default_rng(0).integers(0, 5, 101)
    large, small = sources.cut(labels, 17)
    np.testing.assert_array_equal(np.sort(np.concatenate([large, small])), range(101))
    again = sources.cut(labels, 17)
    np.testing.assert_array_equal(again[1], small)
    assert len(small) == 17


def test_a_cut_holds_out_by_chance_and_not_by_place():
    _, small = sources.cut(np.zeros(1000, int), 500)
    assert 200 < np.sum(small < 500) < 300


@pytest.mark.parametrize(
    ("validation", "expected"),
    [
        (1437, "leave something to train on, got 1437 of 1437"),
        (0.9999, "got 1437 of 1437"),
        (-1, "a count, or a fraction below 1, got -1"),
        (1.5, "got 1.5"),
    ],
)
def test_too_large_a_validation_split_is_refused(validation, expected):
    with pytest.raises(UserError, match=expected):
        sources.load("digits", validation=validation)


def test_an_unusable_image_size_is_refused():
    with pytest.raises(UserError, match="image_size >= 1, got 0"):
        sources.load("digits", image_size=0)


# Fingerprints and statistics.


def test_a_fingerprint_tells_every_pixel_label_and_order(tmp_path):
    arrays = _arrays()
    base = _load_npz(tmp_path, arrays).train.fingerprint()
    assert base == _load_npz(tmp_path, arrays).train.fingerprint()
    changed = {k: x.copy() for k, x in arrays.items()}
    changed["train_images"][3, 1, 2, 0] ^= 1
    relabelled = {k: x.copy() for k, x in arrays.items()}
    relabelled["train_labels"][4] = 0
    reversed_ = {k: x[::-1] for k, x in arrays.items()}
    others = [
        _load_npz(tmp_path, x).train.fingerprint()
        for x in (changed, relabelled, reversed_)
    ]
    assert len({base, *others}) == 4


def test_a_fingerprint_on_disk_tells_files_sizes_and_subsets(tmp_path):
    _write_folder(tmp_path, _arrays())

    def train(**kwargs):
        kwargs = dict(path=str(tmp_path), in_memory_limit_bytes=0) | kwargs
        return sources.load("set", **kwargs).train

    prints = [train().fingerprint(), train(image_size=4).fingerprint()]
    prints += [train(validation=3).fingerprint()]
    assert train().fingerprint() == prints[0]
    file = tmp_path / "train" / "class0" / "000.png"
    Image.fromarray(np.zeros((4, 5, 3), np.uint8)).save(file)
    prints.append(train().fingerprint())
    file.rename(file.with_name("0000.png"))
    prints.append(train().fingerprint())
    assert len(set(prints)) == 5


def test_subsets_of_subsets_on_disk_are_those_of_memory(tmp_path):
    _write_folder(tmp_path, _arrays())
    on_disk = sources.load("set", path=str(tmp_path), in_memory_limit_bytes=0).train
    in_memory = sources.load("set", path=str(tmp_path)).train
    outer, inner = np.array([20, 3, 11, 7]), np.array([2, 0])
    expected = in_memory.take(outer[inner])
    for source in (on_disk, in_memory):
        actual = _everything(source.subset(outer).subset(inner))
        np.testing.assert_array_equal(actual["image"], expected["image"])
        np.testing.assert_array_equal(actual["label"], expected["label"])


def test_a_fingerprint_on_disk_tells_the_examples_that_it_does_not_read(tmp_path):
    _write_folder(tmp_path, _arrays(train=90))
    train = sources.load("set", path=str(tmp_path), in_memory_limit_bytes=0).train
    read = []

    def fingerprint(ids):
        subset = train.subset(ids)
        take = subset.take
        subset.take = lambda x: read.append(x.tolist()) or take(x)
        return subset.fingerprint()

    ids = np.arange(80)
    expected = fingerprint(ids)
    unread = min(set(range(80)) - set(read[0]))
    actual = fingerprint(np.where(ids == unread, 85, ids))
    assert read[1] == read[0]
    assert actual != expected


def test_statistics_are_those_of_numpy_in_double_precision(tmp_path):
    arrays = _arrays(train=301)
    arrays["train_images"][..., 2] = 51
    mean, std = sources.channel_statistics(_load_npz(tmp_path, arrays).train)
    pixels = arrays["train_images"].reshape(-1, 3) / 255
    np.testing.assert_allclose(mean, pixels.mean(0), rtol=1e-12)
    np.testing.assert_allclose(std[:2], pixels.std(0)[:2], rtol=1e-12)
    assert mean[2] == pytest.approx(0.2)
    assert std[2] == 1  # A constant channel has no scale to divide by.


def test_statistics_of_a_set_on_disk_come_from_a_fixed_sample(tmp_path):
    _write_folder(tmp_path, _arrays())
    on_disk = sources.load("set", path=str(tmp_path), in_memory_limit_bytes=0).train
    in_memory = sources.load("set", path=str(tmp_path)).train
    all_of_it = sources.channel_statistics(on_disk)
    np.testing.assert_array_equal(all_of_it, sources.channel_statistics(in_memory))
    sample = sources.channel_statistics(on_disk, limit=5)
    np.testing.assert_array_equal(sample, sources.channel_statistics(on_disk, limit=5))
    assert not np.array_equal(sample, all_of_it)


def test_statistics_of_nothing_are_refused():
    with pytest.raises(ValueError, match="got none"):
        sources.channel_statistics(sources.load("digits").validation)
