"""Several processes fill one cache, in lockstep or by themselves."""

import dataclasses
import os
import pathlib
import socket
import subprocess
import sys
import threading

import numpy as np
import pytest

from kdjax import teacher_cache
from kdjax.teacher_cache import Float32, Manifest, Processes
from kdjax.types import UserError

MANIFEST = Manifest(
    num_examples=53,
    num_views=2,
    encoding=Float32(7),
    shard_size=10,
    teacher_fingerprint="t",
    dataset_fingerprint="d",
    augmentation={},
    preprocessing={},
    seed=0,
)
ROOT = str(pathlib.Path(teacher_cache.__file__).parents[2])


def compute(ids, view):
    position = ids[:, None] * 7.0 + np.arange(7)[None] + 1000.0 * view
    return np.sin(position).astype(np.float32) * 5


EXPECTED = np.stack([compute(np.arange(53), view) for view in range(2)])


class Group:
    """Threads that gather as processes do."""

    def __init__(self, count):
        self.count = count
        self._barrier = threading.Barrier(count, timeout=60)
        self._slots = [None] * count

    def process(self, index):
        def gather(array):
            self._slots[index] = np.array(array)
            self._barrier.wait()
            result = np.stack(self._slots)
            self._barrier.wait()
            return result

        return Processes(index, self.count, gather)

    def run(self, fn):
        """Calls `fn(process)` in each; returns results and errors."""
        outcomes = [None] * self.count

        def call(index):
            try:
                outcomes[index] = fn(self.process(index))
            except Exception as error:
                outcomes[index] = error

        threads = [threading.Thread(target=call, args=(i,)) for i in range(self.count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return outcomes


@pytest.mark.parametrize("count", [1, 2, 3])
def test_in_lockstep_all_compute_and_the_owner_stores(tmp_path, count):
    calls = [[] for _ in range(count)]

    def one(process):
        def fn(ids, view):
            calls[process.index].append((view, tuple(ids)))
            return compute(ids, view)

        return teacher_cache.write(
            tmp_path, MANIFEST, fn, batch_size=8, processes=process
        )

    assert Group(count).run(one) == [12] * count
    assert all(other == calls[0] for other in calls)
    assert len(calls[0]) == 2 * (5 * 2 + 1)
    found = teacher_cache.open(tmp_path, MANIFEST).read_all()["teacher_logits"]
    np.testing.assert_array_equal(found, EXPECTED)


def test_in_lockstep_only_the_owner_needs_the_logits(tmp_path):
    def one(process):
        def fn(ids, view):
            block = 6 * view + int(ids[0]) // 10
            return compute(ids, view) if process.owns(block) else None

        return teacher_cache.write(
            tmp_path, MANIFEST, fn, batch_size=8, processes=process
        )

    assert Group(2).run(one) == [12, 12]
    found = teacher_cache.open(tmp_path, MANIFEST).read_all()["teacher_logits"]
    np.testing.assert_array_equal(found, EXPECTED)


def test_in_lockstep_all_resume_at_the_same_shards(tmp_path):
    teacher_cache.write(tmp_path, MANIFEST, compute, batch_size=8)
    for name in ("00000-000001", "00001-000005"):
        (tmp_path / "done" / name).unlink()
    calls = [[], []]

    def one(process):
        def fn(ids, view):
            calls[process.index].append((view, int(ids[0])))
            return compute(ids, view)

        return teacher_cache.write(
            tmp_path, MANIFEST, fn, batch_size=10, processes=process
        )

    assert Group(2).run(one) == [2, 2]
    assert calls == [[(0, 10), (1, 50)]] * 2


@pytest.mark.parametrize("bad", [0, 1])
def test_in_lockstep_a_failure_of_one_stops_all(tmp_path, bad):
    def one(process):
        def fn(ids, view):
            logits = compute(ids, view)
            return logits * np.float32(np.nan) if process.index == bad else logits

        return teacher_cache.write(
            tmp_path, MANIFEST, fn, batch_size=8, processes=process
        )

    outcomes = Group(2).run(one)
    assert all(isinstance(x, UserError) for x in outcomes)
    assert "finite logits" in str(outcomes[bad])
    assert f"process {bad} failed" in str(outcomes[1 - bad])


def test_in_lockstep_a_foreign_cache_stops_all(tmp_path):
    teacher_cache.write(tmp_path, MANIFEST, compute, batch_size=8)
    other = dataclasses.replace(MANIFEST, seed=1)
    outcomes = Group(2).run(
        lambda process: teacher_cache.write(
            tmp_path, other, compute, batch_size=8, processes=process
        )
    )
    assert "seed (expected 1, found 0)" in str(outcomes[0])
    assert all(isinstance(x, UserError) for x in outcomes)


def test_independent_processes_compute_what_they_own(tmp_path):
    written = []
    for index in (2, 0, 1):
        with pytest.raises(UserError, match=r"found no manifest|are missing"):
            teacher_cache.open(tmp_path, MANIFEST)
        written.append(
            teacher_cache.write(
                tmp_path,
                MANIFEST,
                compute,
                batch_size=8,
                processes=Processes(index, 3),
            )
        )
    assert written == [4, 4, 4]
    found = teacher_cache.open(tmp_path, MANIFEST).read_all()["teacher_logits"]
    np.testing.assert_array_equal(found, EXPECTED)


TWO_PROCESSES = """
import sys
import jax
import jax.numpy as jnp
import numpy as np

path, root, port, index = sys.argv[1:]
sys.path.insert(0, root)
jax.config.update("jax_num_cpu_devices", 2)
jax.distributed.initialize("localhost:" + port, num_processes=2, process_id=int(index))
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from kdjax import teacher_cache

mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
rows = NamedSharding(mesh, P("data"))
program = jax.jit(
    lambda ids, view: jnp.sin(ids[:, None] * 7.0 + jnp.arange(7.0)[None] + view),
    in_shardings=(rows, None), out_shardings=NamedSharding(mesh, P()))

def compute(ids, view):
    return program(jax.device_put(ids.astype(np.float32), rows), np.float32(view))

manifest = teacher_cache.Manifest(
    num_examples=53, num_views=2, encoding=teacher_cache.Float32(7), shard_size=10,
    teacher_fingerprint="t", dataset_fingerprint="d", augmentation={},
    preprocessing={}, seed=0)
print(teacher_cache.write(path, manifest, compute, batch_size=8))
print(teacher_cache.write(path, manifest, compute, batch_size=8))
cache = teacher_cache.open(path, manifest)
print(teacher_cache.verify(cache, compute, num_samples=20, seed=0).agrees)
jax.distributed.shutdown()
"""


@pytest.mark.slow
def test_two_real_processes(tmp_path):
    script = tmp_path / "two.py"
    script.write_text(TWO_PROCESSES)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    processes = [
        subprocess.Popen(
            [sys.executable, str(script), str(tmp_path / "c"), ROOT, port, str(index)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"JAX_PLATFORMS": "cpu"},
        )
        for index in range(2)
    ]
    outputs = [process.communicate(timeout=180) for process in processes]
    for process, (out, err) in zip(processes, outputs, strict=True):
        assert process.returncode == 0, err
        said = [line for line in out.splitlines() if not line.startswith("[Gloo]")]
        assert said == ["12", "0", "True"]
    found = teacher_cache.open(tmp_path / "c").read_all()["teacher_logits"]
    ids = np.arange(53)[:, None] * 7.0 + np.arange(7)[None]
    expected = np.stack([np.sin(ids + view) for view in range(2)])
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5)
