"""Laws of folders of images."""

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


def _write_folder(path, arrays, splits=("train", "test"), suffix=".png"):
    for split in splits:
        pairs = zip(arrays[f"{split}_images"], arrays[f"{split}_labels"], strict=True)
        for i, (image, label) in enumerate(pairs):
            file = path / split / f"class{label}" / f"{i:03d}{suffix}"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.squeeze()).save(file)


@pytest.mark.parametrize("limit", [0, 2**31])
def test_a_folder_reads_back_from_disk_and_from_memory(tmp_path, limit):
    arrays = _arrays()
    _write_folder(tmp_path, arrays)
    splits = sources.load("set", path=str(tmp_path), in_memory_limit_bytes=limit)
    kind = sources.ArraySource if limit else sources.RecordSource
    assert isinstance(splits.train, kind)
    assert splits.train.class_names == ("class0", "class1", "class2")
    by_class = np.argsort(arrays["test_labels"], kind="stable")
    examples = _everything(splits.test)
    np.testing.assert_array_equal(examples["image"], arrays["test_images"][by_class])
    np.testing.assert_array_equal(examples["label"], arrays["test_labels"][by_class])
    some = splits.test.take(np.array([7, 2, 7]))
    np.testing.assert_array_equal(some["image"], examples["image"][[7, 2, 7]])


def test_a_folder_of_grey_images_has_one_channel(tmp_path):
    _write_folder(tmp_path, _arrays(channels=1))
    assert sources.load("set", path=str(tmp_path)).train.image_shape == (4, 5, 1)


def test_images_of_many_sizes_need_an_image_size(tmp_path):
    _write_folder(tmp_path, _arrays(height=12, width=16))
    wide = tmp_path / "train" / "class1" / "wide.PNG"
    Image.fromarray(np.full((10, 30, 4), 9, np.uint8)).save(wide)
    with pytest.raises(UserError, match=r"12x16, got .*wide\.PNG of 10x30: set"):
        sources.load("set", path=str(tmp_path))
    for limit in (0, 2**31):
        splits = sources.load(
            "set", path=str(tmp_path), image_size=8, in_memory_limit_bytes=limit
        )
        assert _everything(splits.train)["image"].shape == (31, 8, 8, 3)


def test_the_shorter_side_is_resized_and_the_longer_one_cut(tmp_path):
    # Left third red, middle green, right blue: only the middle survives a square.
    image = np.zeros((10, 30, 3), np.uint8)
    for channel in range(3):
        image[:, 10 * channel : 10 * channel + 10, channel] = 200
    arrays = _arrays()
    for split in ("train", "test"):
        arrays[f"{split}_images"] = [image] * len(arrays[f"{split}_labels"])
    _write_folder(tmp_path, arrays)
    splits = sources.load("set", path=str(tmp_path), image_size=5)
    shown = _everything(splits.train)["image"][0].astype(int)
    np.testing.assert_array_equal(shown[:, 1:4, 1], 200)
    assert shown[..., 0].max() < 100
    assert shown[..., 2].max() < 100


def test_without_a_test_folder_validation_is_the_test(tmp_path):
    arrays = _arrays()
    arrays["val_images"], arrays["val_labels"] = (
        arrays["test_images"],
        arrays["test_labels"],
    )
    _write_folder(tmp_path, arrays, ("train", "val"))
    splits = sources.load("set", path=str(tmp_path), validation=6)
    assert [len(x) for x in (splits.train, splits.validation, splits.test)] == [
        24,
        6,
        12,
    ]


def test_a_validation_folder_is_kept(tmp_path):
    arrays = _arrays()
    arrays["val_images"] = arrays["test_images"][:3]
    arrays["val_labels"] = arrays["test_labels"][:3]
    _write_folder(tmp_path, arrays, ("train", "val", "test"))
    splits = sources.load("set", path=str(tmp_path), validation=6)
    assert len(splits.validation) == 3
    assert len(splits.train) == 30


def test_mistakes_in_a_folder_are_one_sentence(tmp_path):
    with pytest.raises(UserError, match=r"folders train/ and test/.*got nothing"):
        sources.load("set", path=str(tmp_path))
    (tmp_path / "train").mkdir()
    with pytest.raises(UserError, match=r"Expected images .* in .*train.*got none"):
        sources.load("set", path=str(tmp_path))
    _write_folder(tmp_path, _arrays(), ("train",))
    with pytest.raises(UserError, match="Expected a test split"):
        sources.load("set", path=str(tmp_path))
    arrays = _arrays()
    arrays["test_labels"] = arrays["test_labels"] + 1
    _write_folder(tmp_path, arrays, ("test",))
    with pytest.raises(UserError, match="others: class0, class3 in one of them only"):
        sources.load("set", path=str(tmp_path))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"not an image", "got .*002.png .*replace or remove"),
        (None, "got .*002.png .*replace or remove"),
    ],
)
def test_an_unreadable_image_is_named(tmp_path, content, expected):
    _write_folder(tmp_path, _arrays(height=30, width=30))
    victim = tmp_path / "train" / "class2" / "002.png"
    content = content or victim.read_bytes()[:1500]
    victim.write_bytes(content)
    with pytest.raises(UserError, match=expected):
        sources.load("set", path=str(tmp_path))


def test_sixteen_bits_are_refused_rather_than_clipped(tmp_path):
    _write_folder(tmp_path, _arrays(channels=1))
    deep = np.full((4, 5), 4000, np.uint16)
    Image.fromarray(deep).save(tmp_path / "test" / "class0" / "deep.png")
    with pytest.raises(UserError, match=r"8 bits a channel, got .*deep\.png"):
        sources.load("set", path=str(tmp_path))
