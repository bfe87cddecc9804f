"""How many entries a second does the cache write and read, and how many bytes an entry?

Beside each figure stands the floor: `np.save` (with fsync) and `np.load` of the very
bytes that the encoding makes, uncompressed and unchecked, on the same disk. Logits are
Gaussian, which hardly compresses. Writing includes the encoding, compression, CRC-32C,
SHA-256 and fsync; reading includes both checks.

Run:
  python benchmarks/teacher_cache.py
"""

import argparse
import json
import os
import pathlib
import platform
import statistics
import tempfile
import time
from collections.abc import Callable

import jax
import numpy as np

from kdjax import teacher_cache

NUM_EXAMPLES = 50_000
BATCH = 256

CASES = {
    "50000x10 float32": teacher_cache.Float32(10),
    "50000x1000 float16": teacher_cache.Float16(1000),
    "50000x1000 topk (k=5)": teacher_cache.TopK(1000, 5, (1.0, 2.0, 4.0, 8.0, 20.0)),
}


def seconds(fn: Callable[[], object]) -> float:
    """How long a call takes."""
    started = time.perf_counter()
    fn()
    return time.perf_counter() - started


def save(path: pathlib.Path, arrays: dict[str, np.ndarray]) -> None:
    """The floor of writing: the bytes, and that they are on the disk."""
    for name, array in arrays.items():
        with open(path / f"{name}.npy", "wb") as file:
            np.save(file, array)
            file.flush()
            os.fsync(file.fileno())


def load(path: pathlib.Path, names: list[str]) -> dict[str, np.ndarray]:
    """The floor of reading."""
    return {name: np.load(path / f"{name}.npy") for name in names}


def measure(name: str, encoding: teacher_cache.Encoding, rounds: int) -> dict:
    """One case: medians over interleaved rounds, after one to warm up."""
    rng = np.random.default_rng(0)
    shape = (NUM_EXAMPLES, encoding.num_classes)
    logits = 3 * rng.standard_normal(shape, np.float32)
    manifest = teacher_cache.Manifest(
        num_examples=NUM_EXAMPLES,
        num_views=1,
        encoding=encoding,
        shard_size=8192,
        teacher_fingerprint="",
        dataset_fingerprint="",
        augmentation={},
        preprocessing={},
        seed=0,
    )
    samples: dict[str, list[float]] = {}
    for number in range(rounds + 1):
        with tempfile.TemporaryDirectory() as directory:
            path = pathlib.Path(directory)
            for key, value in one_round(path, manifest, logits, rng).items():
                if number:
                    samples.setdefault(key, []).append(value)
    return summary(name, encoding, samples)


def one_round(
    path: pathlib.Path,
    manifest: teacher_cache.Manifest,
    logits: np.ndarray,
    rng: np.random.Generator,
) -> dict[str, float]:
    """Seconds of each operation, and the bytes on the disk."""

    def write() -> None:
        teacher_cache.write(
            path / "cache", manifest, lambda ids, view: logits[ids], batch_size=BATCH
        )

    result = {"write": seconds(write)}
    cache = teacher_cache.open(path / "cache", manifest)
    arrays = {name: x[0] for name, x in cache.read_all().items()}
    result["save"] = seconds(lambda: save(path, arrays))
    result["read_all"] = seconds(cache.read_all)
    result["load"] = seconds(lambda: load(path, list(arrays)))
    batches = [rng.integers(0, NUM_EXAMPLES, BATCH) for _ in range(8)]
    result["read"] = seconds(lambda: [cache.read(0, ids) for ids in batches]) / 8
    files = [p for p in (path / "cache").rglob("*") if p.is_file()]
    result["bytes"] = float(sum(p.stat().st_size for p in files))
    return result


def summary(
    name: str, encoding: teacher_cache.Encoding, samples: dict[str, list[float]]
) -> dict:
    """The line to print."""
    median = {key: statistics.median(values) for key, values in samples.items()}

    def spread(key: str) -> list[float]:
        return [round(NUM_EXAMPLES / x) for x in (max(samples[key]), min(samples[key]))]

    return {
        "case": name,
        "write_entries_per_s": round(NUM_EXAMPLES / median["write"]),
        "write_entries_per_s_range": spread("write"),
        "write_over_np_save": round(median["write"] / median["save"], 2),
        "read_all_entries_per_s": round(NUM_EXAMPLES / median["read_all"]),
        "read_all_entries_per_s_range": spread("read_all"),
        "read_all_over_np_load": round(median["read_all"] / median["load"], 2),
        "random_batch_of_256_ms": round(1e3 * median["read"], 2),
        "stored_bytes_per_entry": round(median["bytes"] / NUM_EXAMPLES, 2),
        "raw_bytes_per_entry": encoding.bytes_per_entry,
        "rounds": len(samples["write"]),
        "device": jax.devices()[0].device_kind,
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        "jax": jax.__version__,
    }


def main() -> None:
    """Prints one JSON line a case."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    for name, encoding in CASES.items():
        print(json.dumps(measure(name, encoding, rounds)), flush=True)


if __name__ == "__main__":
    main()
