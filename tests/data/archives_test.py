"""Laws of .npz archives."""

import io
import zipfile

import numpy as np
import pytest

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


def test_an_archive_reads_back(tmp_path):
    arrays = _arrays()
    splits = _load_npz(tmp_path, arrays)
    for name in ("train", "test"):
        source = getattr(splits, name)
        assert isinstance(source, sources.Source)
        examples = _everything(source)
        np.testing.assert_array_equal(examples["image"], arrays[f"{name}_images"])
        np.testing.assert_array_equal(examples["label"], arrays[f"{name}_labels"])
        assert examples["label"].dtype == np.int32
        assert source.image_shape == (4, 5, 3)
        assert source.class_names == ("0", "1", "2")
    assert len(splits.validation) == 0


def test_grey_images_get_a_channel_and_classes_their_names(tmp_path):
    arrays = _arrays(channels=1)
    arrays |= {k: x[..., 0] for k, x in arrays.items() if k.endswith("images")}
    names = np.array(["cat", "dog", "eel", "fox"])
    splits = _load_npz(tmp_path, arrays | {"class_names": names})
    assert splits.train.image_shape == (4, 5, 1)
    assert splits.train.class_names == ("cat", "dog", "eel", "fox")
    assert splits.test.num_classes == 4


def test_a_validation_split_of_its_own_is_kept(tmp_path):
    arrays = _arrays()
    arrays["validation_images"] = arrays["test_images"][:5] // 2
    arrays["validation_labels"] = arrays["test_labels"][:5]
    splits = _load_npz(tmp_path, arrays, validation=10)
    assert len(splits.train) == 30
    image = _everything(splits.validation)["image"]
    np.testing.assert_array_equal(image, arrays["validation_images"])


def test_images_are_brought_to_a_size(tmp_path):
    splits = _load_npz(tmp_path, _arrays(height=8, width=12), image_size=6)
    assert splits.train.image_shape == (6, 6, 3)
    assert _everything(splits.test)["image"].shape == (12, 6, 6, 3)


MISTAKES = {
    "missing key": (
        dict(test_labels=None),
        r"keys train_images, .*got train_images, .*: add test_labels",
    ),
    "floats": (
        dict(train_images=np.zeros((30, 4, 5, 3))),
        r"Expected train_images of .*set\.npz as uint8 .*got float64 \[30, 4, 5, 3\]",
    ),
    "flat": (
        dict(train_images=np.zeros((30, 60), np.uint8)),
        r"uint8 \[N, height, width\(, channels\)\], got uint8 \[30, 60\]",
    ),
    "float labels": (
        dict(test_labels=np.zeros(12)),
        r"test_labels of .* as integers \[N\], got float64 \[12\]",
    ),
    "one-hot labels": (dict(train_labels=np.eye(30, dtype=int)), r"\[30, 30\]"),
    "count": (
        dict(test_labels=np.arange(11) % 3),
        "as many test_labels as test_images in .*, got 11 and 12",
    ),
    "label too large": (
        dict(test_labels=np.arange(12) % 4),
        "labels from 0 to 2, .*got 0 to 3 in test_labels",
    ),
    "negative label": (dict(train_labels=np.arange(30) % 3 - 1), "got -1 to 1"),
    "empty": (
        dict(
            test_images=np.zeros((0, 4, 5, 3), np.uint8), test_labels=np.zeros(0, int)
        ),
        "Expected examples in test_images of .*, got none",
    ),
    "another shape": (
        dict(test_images=np.zeros((12, 5, 4, 3), np.uint8)),
        r"in the shape of train_images, \[4, 5, 3\], got \[5, 4, 3\]",
    ),
    "names": (
        dict(class_names=np.arange(3)),
        r"class_names of .* as strings \[num_classes\], got int64 \[3\]",
    ),
    "pickle": (
        dict(class_names=np.array([{"a": 1}, "b", "c"], dtype=object)),
        "plain arrays at .*Object arrays cannot be loaded",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_an_archive_is_one_sentence(tmp_path, mistake):
    changed, expected = MISTAKES[mistake]
    arrays = {k: x for k, x in (_arrays() | changed).items() if x is not None}
    with pytest.raises(UserError, match=expected):
        _load_npz(tmp_path, arrays)


def _damaged(tmp_path, how):
    path = tmp_path / "set.npz"
    np.savez(path, **_arrays())
    content = bytearray(path.read_bytes())
    if how == "truncated":
        content = content[: len(content) // 2]
    elif how == "flipped":
        content[len(content) // 3] ^= 255
    elif how == "text":
        content = b"accuracy,loss\n1,2\n"
    elif how == "array":
        buffer = io.BytesIO()
        np.save(buffer, np.zeros(3))
        content = buffer.getvalue()
    elif how == "pickle":
        content = b"\x80\x04K\x01."
    path.write_bytes(content)
    return str(path)


@pytest.mark.parametrize("how", ["truncated", "flipped", "text", "array", "pickle"])
def test_a_damaged_archive_is_one_sentence(tmp_path, how):
    path = _damaged(tmp_path, how)
    with pytest.raises(UserError, match=r"set\.npz, got one that can't be read"):
        sources.load("set", path=path)


def test_a_foreign_zip_is_one_sentence(tmp_path):
    with zipfile.ZipFile(tmp_path / "set.npz", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(UserError, match="Expected"):
        sources.load("set", path=str(tmp_path / "set.npz"))


def test_a_missing_path_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match=r"nothing\.npz, but there is nothing"):
        sources.load("set", path=str(tmp_path / "nothing.npz"))
