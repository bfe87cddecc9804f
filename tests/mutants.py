"""Tests the tests: breaks the code in one place at a time and sees a test fail.

    python tests/mutants.py             # all, two at a time; some 30 minutes
    python tests/mutants.py dkd wsld    # those whose line contains one of the words

Each line of `mutants.txt` is one change of one function in a copy of the package; the
tests of that function then run on the copy. Exits with status 1 if one survives, or if
the text to change is gone.
"""

import concurrent.futures
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import NamedTuple

ROOT = pathlib.Path(__file__).parents[1]
TIMEOUT = 600  # Seconds for the tests of one mutant.


class Mutant(NamedTuple):
    """One change, and the tests that should see it."""

    path: str  # In the package.
    function: str  # Or '*', for the whole file.
    old: str
    new: str
    tests: str  # A file of tests.
    words: str  # What pytest picks them by: `-k`.

    def __str__(self) -> str:
        return f"{self.path}: {self.function}: {self.old!r} ==> {self.new!r}"


def read_mutants(text: str) -> Iterator[Mutant]:
    """The mutants of a text in the format that `mutants.txt` explains."""
    for line in text.splitlines():
        if line.startswith("["):
            head, _, words = line.strip("[]").partition(" -k ")
            path, tests = head.split()
        elif line and not line.startswith("#"):
            function, _, change = line.partition(": ")
            old, _, new = change.replace("\\n", "\n").partition(" ==>")
            picked = words or function.lstrip("_")
            yield Mutant(path, function, old, new.removeprefix(" "), tests, picked)


def mutate(source: str, mutant: Mutant) -> str:
    """The source of the file with the one change made."""
    start = 0 if mutant.function == "*" else source.find(f"def {mutant.function}(")
    place = source.find(mutant.old, start)
    if start < 0 or place < 0:
        raise LookupError("the text to change is gone")
    return source[:place] + mutant.new + source[place + len(mutant.old) :]


def is_caught(mutant: Mutant) -> bool:
    """Whether the tests fail on a copy of the package with the change."""
    with tempfile.TemporaryDirectory() as directory:
        copy = pathlib.Path(directory)
        for name in ("configs", "kdjax", "tests"):
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, copy / name, ignore=ignored)
        shutil.copy(ROOT / "pyproject.toml", copy)
        path = copy / "kdjax" / mutant.path
        path.write_text(mutate(path.read_text(), mutant))
        options = ["-x", "-q", "-n", "0", "-p", "no:cacheprovider", "-k", mutant.words]
        done = subprocess.run(
            [sys.executable, "-m", "pytest", *options, mutant.tests],
            cwd=copy,
            env=os.environ | {"PYTHONPATH": directory, "PYTHONDONTWRITEBYTECODE": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=TIMEOUT,
        )
    # 1: a test failed. Other numbers: there was none to run, or none could be read.
    if done.returncode not in (0, 1):
        raise RuntimeError(f"pytest stopped with {done.returncode}:\n{done.stdout}")
    return done.returncode == 1


def main(words: list[str]) -> int:
    """Prints the fate of every mutant chosen; returns the number not caught."""
    mutants = read_mutants(pathlib.Path(__file__).with_suffix(".txt").read_text())
    chosen = [m for m in mutants if not words or any(word in str(m) for word in words)]
    not_caught = 0
    with concurrent.futures.ThreadPoolExecutor(max_workers=2) as pool:
        futures = {pool.submit(is_caught, mutant): mutant for mutant in chosen}
        for future in concurrent.futures.as_completed(futures):
            try:
                fate = "caught" if future.result() else "SURVIVED"
            except (LookupError, RuntimeError, subprocess.TimeoutExpired) as error:
                fate = f"ERROR, {error}:"
            not_caught += fate != "caught"
            print(f"{fate:8}  {futures[future]}", flush=True)
    print(f"{len(chosen) - not_caught} of {len(chosen)} mutants caught")
    return not_caught


if __name__ == "__main__":
    sys.exit(min(main(sys.argv[1:]), 1))
