"""Data sets out of files: the embedded digits, .npz archives, folders of images."""

import gzip
import importlib.util
import io
import pathlib
import zipfile
import zlib
from collections.abc import Mapping

import numpy as np

from kdjax.data import _images
from kdjax.data._source import ArraySource, Records, RecordSource, spread
from kdjax.data._splits import cut
from kdjax.types import UserError

# Names of a split, in files and folders.
ALIASES = {"train": ("train",), "validation": ("validation", "val"), "test": ("test",)}
_SUFFIXES = (".png", ".jpg", ".jpeg")
_NPZ_KEYS = ("train_images", "train_labels", "test_images", "test_labels")
# What NumPy and zipfile say of damage, of pickles, and of an .npy file.
_DAMAGE = (
    OSError,
    ValueError,
    EOFError,
    AttributeError,
    TypeError,
    NotImplementedError,
    zipfile.BadZipFile,
    zlib.error,
)
_NUM_PROBES = 32  # Images that tell whether a folder is grey.


def digits() -> dict[str, ArraySource]:
    """The 1,797 handwritten digits of 8x8 pixels that scikit-learn carries.

    1,437 to train and 360 to test, the classes evenly in both; always the same ones.
    """
    # Its place, without importing scikit-learn, which takes seconds.
    spec = importlib.util.find_spec("sklearn")
    if spec is None or spec.origin is None:
        raise UserError(
            "Expected scikit-learn, which carries the digits: pip install scikit-learn."
        )
    path = pathlib.Path(spec.origin).parent / "datasets" / "data" / "digits.csv.gz"
    table = np.loadtxt(io.BytesIO(gzip.decompress(path.read_bytes())), delimiter=",")
    images = np.round(table[:, :-1] * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
    names = tuple(str(digit) for digit in range(10))
    whole = ArraySource(
        images, table[:, -1].astype(np.int32), name="digits", class_names=names
    )
    train, test = cut(whole.labels, 360)
    return {"train": whole.subset(train), "test": whole.subset(test)}


def read_npz(path: pathlib.Path, name: str) -> dict[str, ArraySource]:
    """The splits of an .npz archive; no pickle in it is ever executed.

    Raises:
      UserError: if it is damaged, a key is missing, or arrays don't fit together.
    """
    arrays = load_npz(path)
    missing = [key for key in _NPZ_KEYS if key not in arrays]
    if missing:
        raise UserError(
            f"Expected {path} to have the keys {', '.join(_NPZ_KEYS)}, got "
            f"{', '.join(arrays) or 'none'}: add {', '.join(missing)}."
        )
    pairs = {}
    for split in ("train", "validation", "test"):
        if f"{split}_images" in arrays:
            pairs[split] = _checked_pair(arrays, split, path)
    names = _class_names(arrays, pairs["train"][1], path)
    for split, (_, labels) in pairs.items():
        if labels.min() < 0 or labels.max() >= len(names):
            raise UserError(
                f"Expected labels from 0 to {len(names) - 1}, as train has or "
                f"class_names says, got {labels.min()} to {labels.max()} in "
                f"{split}_labels of {path}."
            )
    return {
        split: ArraySource(images, labels, name=name, class_names=names)
        for split, (images, labels) in pairs.items()
    }


def load_npz(path: pathlib.Path) -> dict[str, np.ndarray]:
    try:
        # Opened here, because NumPy leaves a damaged archive open.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return {key: np.asarray(array) for key, array in archive.items()}
    except _DAMAGE as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"Expected an .npz archive of plain arrays at {path}, got one that can't "
            f"be read ({reason}): make it again with numpy.savez."
        ) from error


def _checked_pair(
    arrays: Mapping[str, np.ndarray], split: str, path: pathlib.Path
) -> tuple[np.ndarray, np.ndarray]:
    """Images `[N, H, W, C]` and labels `[N]` of one split."""
    images = arrays[f"{split}_images"]
    labels = arrays.get(f"{split}_labels", np.empty(0, np.int32))
    if images.dtype != np.uint8 or images.ndim not in (3, 4):
        raise UserError(
            f"Expected {split}_images of {path} as uint8 [N, height, width(, channels)]"
            f", got {images.dtype} {list(images.shape)}: scale to 0..255 and convert."
        )
    if labels.dtype.kind not in "iu" or labels.ndim != 1:
        raise UserError(
            f"Expected {split}_labels of {path} as integers [N], got {labels.dtype} "
            f"{list(labels.shape)}."
        )
    if len(images) != len(labels):
        raise UserError(
            f"Expected as many {split}_labels as {split}_images in {path}, got "
            f"{len(labels)} and {len(images)}."
        )
    if not images.size:
        raise UserError(f"Expected examples in {split}_images of {path}, got none.")
    images = images[..., None] if images.ndim == 3 else images
    expected = arrays["train_images"].shape[1:]
    if arrays[f"{split}_images"].shape[1:] != expected:
        raise UserError(
            f"Expected {split}_images of {path} in the shape of train_images, "
            f"{list(expected)}, got {list(arrays[f'{split}_images'].shape[1:])}."
        )
    return images, labels


def _class_names(
    arrays: Mapping[str, np.ndarray], train_labels: np.ndarray, path: pathlib.Path
) -> tuple[str, ...]:
    if "class_names" not in arrays:
        return tuple(str(label) for label in range(int(train_labels.max()) + 1))
    names = arrays["class_names"]
    if names.ndim != 1 or names.dtype.kind != "U":
        raise UserError(
            f"Expected class_names of {path} as strings [num_classes], got "
            f"{names.dtype} {list(names.shape)}."
        )
    return tuple(names.tolist())


def read_folder(
    path: pathlib.Path, name: str, image_size: int | None
) -> dict[str, RecordSource]:
    """The splits of a folder `train/<class>/*.png` or `.jpg`, and so on.

    Raises:
      UserError: if there is no train split, a split has no images or other classes, or
        an image can't be read.
    """
    folders = {}
    for split, aliases in ALIASES.items():
        found = [path / alias for alias in aliases if (path / alias).is_dir()]
        if found:
            folders[split] = found[0]
    if "train" not in folders:
        raise UserError(
            f"Expected folders train/ and test/ of one folder a class in {path}, got "
            f"{', '.join(sorted(x.name for x in path.iterdir())) or 'nothing'}."
        )
    classes = _classes(folders["train"])
    for folder in folders.values():
        if _classes(folder) != classes:
            different = sorted(set(_classes(folder)) ^ set(classes))
            raise UserError(
                f"Expected the classes of {folders['train']} in {folder} too, got "
                f"others: {', '.join(different[:5])} in one of them only."
            )
    records = {split: _records(folder, classes) for split, folder in folders.items()}
    shape = _image_shape(records["train"], image_size)
    return {
        split: RecordSource(
            some,
            name=name,
            class_names=classes,
            image_shape=shape,
            resize=image_size is not None,
        )
        for split, some in records.items()
    }


def _classes(folder: pathlib.Path) -> tuple[str, ...]:
    return tuple(
        sorted(x.name for x in folder.iterdir() if x.is_dir() and x.name[0] != ".")
    )


def _records(folder: pathlib.Path, classes: tuple[str, ...]) -> Records:
    """The images of one split, sorted by class and name."""
    files, labels = [], []
    for label, name in enumerate(classes):
        some = sorted(
            x
            for x in (folder / name).iterdir()
            if x.suffix.lower() in _SUFFIXES and x.name[0] != "."
        )
        files += some
        labels += [label] * len(some)
    if not files:
        raise UserError(
            f"Expected images ({', '.join(_SUFFIXES)}) in {folder}/<class>/, got none."
        )

    def read(place: int) -> tuple[bytes, int, str]:
        try:
            return files[place].read_bytes(), labels[place], str(files[place])
        except OSError as error:
            raise _images.unreadable(str(files[place]), error) from error

    identity = ("folder", tuple(str(x.relative_to(folder)) for x in files))
    return Records(read, len(files), identity, np.asarray(labels, np.int32))


def _image_shape(records: Records, image_size: int | None) -> tuple[int, int, int]:
    """That of the first image, unless `image_size` says; grey if all probes are."""
    probes = [records.read(int(i)) for i in spread(records.size, _NUM_PROBES)]
    grey = all(_images.is_grey(encoded, name) for encoded, _, name in probes)
    channels = 1 if grey else 3
    if image_size is not None:
        return (image_size, image_size, channels)
    encoded, _, name = probes[0]
    height, width, _ = _images.decode(encoded, channels, name).shape
    return (height, width, channels)
