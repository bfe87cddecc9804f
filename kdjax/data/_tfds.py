"""Data sets of TensorFlow Datasets, read without TensorFlow."""

import contextlib
import difflib
import pathlib
import socket
import urllib.parse
import urllib.request
from collections.abc import Iterator
from typing import Any

import numpy as np

from kdjax.data._source import Records, RecordSource
from kdjax.types import UserError

_HOW_TO_SUPPLY = (
    "give the files yourself, as --config.dataset.path=FILE.npz or a folder of images, "
    "or --config.dataset.data_dir=DIR with the set prepared by "
    "tfds.builder(NAME).download_and_prepare(file_format='array_record')"
)


def read_tfds(
    name: str, data_dir: str | None, image_size: int | None
) -> dict[str, RecordSource]:
    """The splits of a data set by its name, prepared first where it is not yet.

    Raises:
      UserError: if there is no such set, it can't be had, or it does not classify
        images.
    """
    # Seconds to import, and needed by nobody else.
    import tensorflow_datasets as tfds

    builder = _builder(tfds, name, data_dir)
    if not builder.is_prepared():
        _prepare(builder, name)
    image, label = _features(tfds, builder, name)
    shape, resize = _image_shape(builder.info.features[image], image_size, name)
    sources = {}
    for split in ("train", "validation", "test"):
        if split not in builder.info.splits:
            continue
        records = _records(tfds, builder, split, image, label)
        if split == "train" or records.read(0)[1] >= 0:  # -1: labels kept secret.
            sources[split] = RecordSource(
                records,
                name=name,
                class_names=builder.info.features[label].names,
                image_shape=shape,
                resize=resize,
            )
    if "train" not in sources:
        raise UserError(
            f"Expected a train split in {name}, got "
            f"{', '.join(builder.info.splits) or 'none'}."
        )
    return sources


def _builder(tfds: Any, name: str, data_dir: str | None) -> Any:
    try:
        return tfds.builder(name, data_dir=data_dir, try_gcs=False)
    except tfds.core.DatasetNotFoundError as error:
        known = ["digits", *tfds.list_builders(with_community_datasets=False)]
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
        raise UserError(
            f"Expected dataset.name to be 'digits' or a name of TensorFlow Datasets, "
            f"got {name!r}{_where(data_dir)}: did you mean "
            f"{' or '.join(near or ['digits'])}?"
        ) from error
    except (ValueError, AssertionError, OSError) as error:
        raise UserError(
            f"Expected {name!r} to be a data set and version that TensorFlow Datasets "
            f"has{_where(data_dir)}, got: {_first_line(error)}"
        ) from error


def _where(data_dir: str | None) -> str:
    return f" (data_dir={data_dir})" if data_dir else ""


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _prepare(builder: Any, name: str) -> None:
    """Downloads a set, and writes it in the one format of random access."""
    _check_reachable(builder, name)
    try:
        builder.download_and_prepare(file_format="array_record")
    except ModuleNotFoundError as error:
        raise UserError(
            f"Expected TensorFlow Datasets to prepare {name}, but it needs "
            f"{error.name} to do so: pip install {error.name} (once; reading needs "
            f"none), or {_HOW_TO_SUPPLY}."
        ) from error
    except (OSError, AssertionError, RuntimeError, ValueError) as error:
        raise UserError(
            f"Expected TensorFlow Datasets to download and prepare {name}, but: "
            f"{' '.join(str(error).split())[:300]}; {_HOW_TO_SUPPLY}."
        ) from error


def _check_reachable(builder: Any, name: str) -> None:
    """Fails at once where downloading would try again for minutes."""
    downloads = pathlib.Path(builder._data_dir_root) / "downloads"
    here = any(path.is_file() for path in downloads.rglob("*"))
    if urllib.request.getproxies() or here:
        return  # A proxy knows more names than we do; or all may be here already.
    hosts = {urllib.parse.urlparse(url).hostname for url in builder.url_infos or ()}
    for host in sorted(filter(None, hosts)):
        try:
            socket.getaddrinfo(host, 443)
        except OSError as error:
            raise UserError(
                f"Expected to download {name} from {host}, but it cannot be reached "
                f"({error.strerror}): {_HOW_TO_SUPPLY}."
            ) from error


def _features(tfds: Any, builder: Any, name: str) -> tuple[str, str]:
    """The names of the image and of the label."""
    features = builder.info.features
    pairs: list[tuple[str, ...]] = [
        builder.info.supervised_keys or (),
        ("image", "label"),
    ]
    for pair in pairs:
        if len(pair) == 2 and all(isinstance(key, str) for key in pair):
            image, label = (dict(features).get(key) for key in pair)
            if isinstance(image, tfds.features.Image) and isinstance(
                label, tfds.features.ClassLabel
            ):
                return pair[0], pair[1]
    raise UserError(
        f"Expected a data set of images, one class each, got {name} with the features "
        f"{', '.join(features)}."
    )


def _image_shape(
    feature: Any, image_size: int | None, name: str
) -> tuple[tuple[int, int, int], bool]:
    """What images are brought to, and whether any need be."""
    height, width, channels = feature.shape
    if np.dtype(feature.np_dtype) != np.uint8 or channels not in (None, 1, 3):
        raise UserError(
            f"Expected grey or RGB images of 8 bits, got {name} with "
            f"{np.dtype(feature.np_dtype)} {list(feature.shape)}."
        )
    if image_size is not None:
        return (image_size, image_size, channels or 3), True
    if height is None or width is None:
        raise UserError(
            f"Expected dataset.image_size for {name}, whose images vary in size: set "
            "it, for example to 224."
        )
    return (height, width, channels or 3), False


def _records(tfds: Any, builder: Any, split: str, image: str, label: str) -> Records:
    with _explained(builder, split):
        # Pillow decodes, not whichever of two libraries TFDS finds: one set of bits.
        records = builder.as_data_source(
            split, decoders={image: tfds.decode.SkipDecoding()}
        )
        size = len(records)
    if not size:
        raise UserError(
            f"Expected examples in {split} of {builder.info.full_name}, got none."
        )
    name = f"{builder.info.full_name}, {split}"

    def read(place: int) -> tuple[bytes, int, str]:
        with _explained(builder, split):
            record = records[place]
            if record[image] is None or record[label] is None:  # No error, no data.
                raise OSError(f"record {place} is empty")
        return record[image], int(record[label]), f"image {place} of {name}"

    return Records(read, size, ("tfds", builder.info.full_name, split))


@contextlib.contextmanager
def _explained(builder: Any, split: str) -> Iterator[None]:
    """Turns what TFDS says of files into one sentence."""
    try:
        yield
    except NotImplementedError as error:
        raise UserError(
            f"Expected {builder.info.full_name} in {builder.data_dir} as array_record, "
            f"which has random access, got {builder.info.file_format}: prepare it again"
            " in another data_dir, with file_format='array_record'."
        ) from error
    except (OSError, RuntimeError, ValueError, IndexError) as error:
        raise UserError(
            f"Expected to read {split} of {builder.info.full_name} in "
            f"{builder.data_dir}, but: {_first_line(error)}; prepare it again."
        ) from error
