"""TensorFlow Datasets, really prepared and read, without TensorFlow."""

import pathlib
import subprocess
import sys

import numpy as np
import pytest

from kdjax.data import sources
from kdjax.types import UserError

# Run in a process of its own, to see what it imports. TFDS finds a builder of an
# unknown set in its folder, so that another process reads it by its name.
PREPARE = '''
import io, sys
import numpy as np
import tensorflow_datasets as tfds
from PIL import Image


def png(image):
    buffer = io.BytesIO()
    Image.fromarray(image.squeeze()).save(buffer, "PNG")
    buffer.seek(0)
    return buffer


class TinySet(tfds.core.GeneratorBasedBuilder):
    """Noise."""

    VERSION = tfds.core.Version("1.2.3")
    SHAPE = {shape}

    def _info(self):
        features = {{
            "photo": tfds.features.Image(shape=self.SHAPE),
            "kind": tfds.features.ClassLabel(names=["ant", "bee", "cow"]),
            "note": tfds.features.Text(),
        }}
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(features),
            supervised_keys=("photo", "kind"),
        )

    def _split_generators(self, manager):
        return {{"train": self._generate_examples(0, 40),
                "test": self._generate_examples(1, 15)}}

    def _generate_examples(self, seed, count):
        rng = np.random.default_rng(seed)
        shape = tuple(x or 9 for x in self.SHAPE)
        for i in range(count):
            image = rng.integers(0, 256, shape, dtype=np.uint8)
            image[0, 0] = i  # Tells which it is.
            yield i, {{"photo": png(image), "kind": i % 3, "note": str(i)}}


TinySet(data_dir=sys.argv[1], file_format="{file_format}").download_and_prepare(
    file_format="{file_format}"
)
assert "tensorflow" not in sys.modules
'''

READ = """
import sys
import numpy as np
from kdjax.data import sources

splits = sources.load("tiny_set", data_dir=sys.argv[1], validation=10)
np.save(sys.argv[2], splits.test.take(np.arange(15))["image"])
assert "tensorflow" not in sys.modules
"""


def _python(code, *arguments):
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tfds")
    _python(PREPARE.format(shape=(6, 5, 3), file_format="array_record"), directory)
    return directory


@pytest.fixture(scope="module")
def varying_dir(tmp_path_factory):
    directory = tmp_path_factory.mktemp("varying")
    shape = (None, None, 1)
    _python(PREPARE.format(shape=shape, file_format="array_record"), directory)
    return directory


def _load(data_dir, **kwargs):
    return sources.load("tiny_set", data_dir=str(data_dir), **kwargs)


def _images(seed, count):
    rng = np.random.default_rng(seed)
    images = []
    for i in range(count):
        images.append(rng.integers(0, 256, (6, 5, 3), dtype=np.uint8))
        images[-1][0, 0] = i
    return np.stack(images)


def _everything(source):
    return source.take(np.arange(len(source)))


@pytest.mark.parametrize("limit", [0, 2**31])
def test_a_prepared_set_reads_back(data_dir, limit):
    splits = _load(data_dir, in_memory_limit_bytes=limit)
    assert splits.train.class_names == ("ant", "bee", "cow")
    assert splits.train.image_shape == (6, 5, 3)
    for source, seed, count in ((splits.train, 0, 40), (splits.test, 1, 15)):
        examples = _everything(source)
        places = examples["image"][:, 0, 0, 0]  # Prepared sets are shuffled.
        np.testing.assert_array_equal(np.sort(places), np.arange(count))
        np.testing.assert_array_equal(examples["image"], _images(seed, count)[places])
        np.testing.assert_array_equal(examples["label"], places % 3)


def test_reading_does_not_import_tensorflow(data_dir, tmp_path):
    _python(READ, data_dir, tmp_path / "images.npy")
    expected = _everything(_load(data_dir).test)["image"]
    np.testing.assert_array_equal(np.load(tmp_path / "images.npy"), expected)


@pytest.mark.parametrize("limit", [0, 2**31])
def test_validation_is_cut_from_train(data_dir, limit):
    splits = _load(data_dir, validation=0.25, in_memory_limit_bytes=limit)
    places = [
        set(_everything(x)["image"][:, 0, 0, 0].tolist())
        for x in (splits.train, splits.validation)
    ]
    assert len(places[1]) == 10
    assert places[0] | places[1] == set(range(40))
    assert not places[0] & places[1]


def test_images_that_vary_need_an_image_size(varying_dir):
    with pytest.raises(UserError, match="image_size for tiny_set, whose images vary"):
        _load(varying_dir)
    splits = _load(varying_dir, image_size=7)
    assert _everything(splits.train)["image"].shape == (40, 7, 7, 1)


def test_a_set_without_random_access_says_so(data_dir, tmp_path):
    # TFDS writes TFRecords with TensorFlow alone, so the metadata have to do.
    target = tmp_path / "tiny_set" / "1.2.3"
    target.mkdir(parents=True)
    for file in (data_dir / "tiny_set" / "1.2.3").iterdir():
        name = file.name.replace("array_record", "tfrecord")
        content = file.read_bytes()
        if file.suffix == ".json":
            content = content.replace(b"array_record", b"tfrecord")
        (target / name).write_bytes(content)
    with pytest.raises(UserError, match=r"as array_record, .* got .*prepare it again"):
        _load(tmp_path)


def test_damaged_records_are_one_sentence(data_dir, tmp_path):
    target = tmp_path / "tiny_set" / "1.2.3"
    target.mkdir(parents=True)
    for file in (data_dir / "tiny_set" / "1.2.3").iterdir():
        content = file.read_bytes()
        if "test.array_record" in file.name:
            content = content[: len(content) // 2]
        (target / file.name).write_bytes(content)
    with pytest.raises(UserError, match=r"to read test of tiny_set.*prepare it again"):
        _load(tmp_path)


def test_an_unknown_name_gets_its_nearest_neighbours(tmp_path):
    with pytest.raises(UserError, match=r"got 'cifar11'.*did you mean cifar10"):
        sources.load("cifar11", data_dir=str(tmp_path))
    with pytest.raises(UserError, match=r"got 'digitz'.*did you mean digits"):
        sources.load("digitz")


def test_a_set_that_does_not_classify_images_is_refused(tmp_path, monkeypatch):
    import tensorflow_datasets as tfds

    builder = tfds.builder("ag_news_subset", data_dir=str(tmp_path))
    monkeypatch.setattr(builder, "is_prepared", lambda: True)
    monkeypatch.setattr(tfds, "builder", lambda *_, **__: builder)
    with pytest.raises(UserError, match="one class each, got ag_news_subset"):
        sources.load("ag_news_subset")


def _unreachable(*_, **__):
    raise OSError(-2, "Name or service not known")


def test_an_unreachable_download_says_how_to_supply_the_files(tmp_path, monkeypatch):
    monkeypatch.setattr("socket.getaddrinfo", _unreachable)
    monkeypatch.setattr("urllib.request.getproxies", dict)
    with pytest.raises(UserError) as caught:
        sources.load("mnist", data_dir=str(tmp_path))
    message = str(caught.value)
    assert "Expected to download mnist from" in message
    assert "--config.dataset.path=FILE.npz" in message
    assert "--config.dataset.data_dir=DIR" in message
    assert not list(pathlib.Path(tmp_path).rglob("*.array_record*"))


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ConnectionError("the host is gone\nafter all"), "but: the host is gone after"),
        (ModuleNotFoundError("x", name="tensorflow"), "pip install tensorflow"),
        (AssertionError("Manual directory is empty"), "Manual directory is empty"),
    ],
)
def test_a_failed_preparation_is_one_sentence(tmp_path, monkeypatch, error, expected):
    import tensorflow_datasets as tfds

    def fail(*_, **__):
        raise error

    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", fail)
    monkeypatch.setattr("kdjax.data._tfds._check_reachable", lambda *_: None)
    with pytest.raises(UserError, match=expected) as caught:
        sources.load("mnist", data_dir=str(tmp_path))
    assert "array_record" in str(caught.value)
