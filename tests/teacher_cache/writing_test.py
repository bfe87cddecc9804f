"""The teacher pass: whatever stops it, the cache is that of a pass that ran through."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import types

import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import teacher_cache
from kdjax.teacher_cache import Float16, Float32, Manifest, TopK
from kdjax.types import UserError

ENCODINGS = [Float32(7), Float16(7), TopK(7, 2, (1.0, 4.0))]


def manifest_of(**changes):
    fields = dict(
        num_examples=53,
        num_views=2,
        encoding=Float32(7),
        shard_size=11,
        teacher_fingerprint="t",
        dataset_fingerprint="d",
        augmentation={"crop": 4, "flip": True},
        preprocessing={"mean": [0.5]},
        seed=0,
    )
    return Manifest(**(fields | changes))


def compute(ids, view):
    """Logits that differ in every (id, view, class), like a teacher's."""
    position = ids[:, None] * 7.0 + np.arange(7)[None] + 1000.0 * view
    return np.sin(position).astype(np.float32) * 5


class Counter:
    """A `compute`, and the calls it got."""

    def __init__(self, fn=compute):
        self.calls = []
        self._fn = fn

    def __call__(self, ids, view):
        self.calls.append((view, tuple(ids)))
        return self._fn(ids, view)


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for name in expected:
        np.testing.assert_array_equal(found[name], np.asarray(expected[name]))
        assert found[name].dtype == np.asarray(expected[name]).dtype


@pytest.mark.parametrize("encoding", ENCODINGS, ids=str)
@pytest.mark.parametrize("shard_size", [1, 11, 13, 53, 100])
def test_what_is_written_is_read(tmp_path, encoding, shard_size):
    manifest = manifest_of(encoding=encoding, shard_size=shard_size)
    num_shards = 2 * -(-53 // shard_size)
    written = teacher_cache.write(tmp_path, manifest, compute, batch_size=8)
    assert written == num_shards
    found = teacher_cache.open(tmp_path, manifest).read_all()
    logits = np.stack([compute(np.arange(53), view) for view in range(2)])
    assert_equal(found, encoding.encode(jnp.asarray(logits)))


def test_compute_sees_one_shape_and_no_id_of_another_shard(tmp_path):
    counter = Counter()
    teacher_cache.write(tmp_path, manifest_of(), counter, batch_size=8)
    assert {len(ids) for _, ids in counter.calls} == {8}
    for _, ids in counter.calls:
        assert len({i // 11 for i in ids}) == 1
    assert {(v, i) for v, ids in counter.calls for i in ids} == {
        (view, i) for view in range(2) for i in range(53)
    }


def test_a_second_pass_computes_nothing(tmp_path):
    teacher_cache.write(tmp_path, manifest_of(), compute, batch_size=8)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    counter = Counter()
    assert teacher_cache.write(tmp_path, manifest_of(), counter, batch_size=8) == 0
    assert not counter.calls
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == before


def test_a_failed_pass_goes_on_and_recomputes_only_what_is_missing(tmp_path):
    calls = Counter()

    def failing(ids, view):
        if len(calls.calls) == 9:
            raise RuntimeError("out of memory")
        return calls(ids, view)

    with pytest.raises(RuntimeError, match="out of memory"):
        teacher_cache.write(tmp_path, manifest_of(), failing, batch_size=8)
    done = len(list((tmp_path / "done").iterdir()))
    assert 0 < done < 10
    with pytest.raises(UserError, match=f"{10 - done} of 10 shards are missing"):
        teacher_cache.open(tmp_path, manifest_of())
    counter = Counter()
    assert (
        teacher_cache.write(tmp_path, manifest_of(), counter, batch_size=8) == 10 - done
    )
    assert len(counter.calls) == 2 * (10 - done)
    whole = tmp_path / "whole"
    teacher_cache.write(whole, manifest_of(), compute, batch_size=8)
    assert_equal(
        teacher_cache.open(tmp_path).read_all(), teacher_cache.open(whole).read_all()
    )


KILLED = """
import sys, time
import numpy as np
from kdjax import teacher_cache

def compute(ids, view):
    time.sleep(0.02)
    position = ids[:, None] * 600.0 + np.arange(600)[None] + 1e5 * view
    return np.sin(position).astype(np.float32) * 5

manifest = teacher_cache.Manifest(
    num_examples=530, num_views=2, encoding=teacher_cache.Float32(600), shard_size=50,
    teacher_fingerprint="t", dataset_fingerprint="d", augmentation={},
    preprocessing={}, seed=0)
teacher_cache.write(sys.argv[1], manifest, compute, batch_size=50)
"""


ENVIRONMENT = os.environ | {"JAX_PLATFORMS": "cpu"}


def _start(path, script):
    command = [sys.executable, str(script), str(path)]
    return subprocess.Popen(command, env=ENVIRONMENT)


MOMENTS = {
    "the manifest": lambda p: (p / "manifest.json").exists(),
    "a shard half written": lambda p: any(p.glob("teacher_logits/c/0/*/*__lock")),
    "a shard without its marker": lambda p: (
        len(list(p.glob("teacher_logits/c/*/*/0"))) > len(list(p.glob("done/*"))) > 1
    ),
    "the second view": lambda p: any(p.glob("teacher_logits/c/1/*/0")),
}


def _killed_when(condition, path, script):
    """Runs the pass at `path` and kills it once `condition` is seen, if it is seen."""
    process = _start(path, script)
    while process.poll() is None:
        if condition(path):
            process.send_signal(signal.SIGKILL)
            break
    return process.wait(timeout=60) == -signal.SIGKILL


def test_killed_at_any_moment_and_run_again_equals_uninterrupted(tmp_path):
    script = tmp_path / "pass.py"
    script.write_text(KILLED)
    path = tmp_path / "killed"
    path.mkdir()
    for name, condition in MOMENTS.items():
        # Some moments last for less than a look at the directory on a busy machine.
        for attempt in range(10):
            trial = shutil.copytree(path, tmp_path / f"{name} {attempt}")
            if _killed_when(condition, trial, script):
                path = trial
                break
        assert path == trial, f"not in time for {name}"
        with pytest.raises(UserError, match=r"are missing|found no manifest"):
            teacher_cache.open(path)
    names: dict = {}
    exec(KILLED.rpartition("teacher_cache.write")[0], names)
    manifest, counter = names["manifest"], Counter(names["compute"])
    missing = 22 - len(list(path.glob("done/*[0-9]")))
    assert 0 < missing < 22
    # What was done is trusted, and nothing else.
    assert teacher_cache.write(path, manifest, counter, batch_size=50) == missing
    assert len(counter.calls) == missing
    whole = tmp_path / "whole"
    teacher_cache.write(whole, manifest, names["compute"], batch_size=50)
    assert_equal(
        teacher_cache.open(path).read_all(), teacher_cache.open(whole).read_all()
    )


def test_a_shard_without_a_marker_is_not_trusted(tmp_path):
    manifest = manifest_of(shard_size=20)
    teacher_cache.write(tmp_path, manifest, compute, batch_size=8)
    # The last shard of a view fills its file in part, and is the hardest to replace.
    data = tmp_path / "teacher_logits" / "c" / "1" / "2" / "0"
    whole = data.read_bytes()
    for damaged in (b"", whole[:40], whole[:-30] + bytes(30)):
        data.write_bytes(damaged)
        (tmp_path / "done" / "00001-000002").unlink()
        assert teacher_cache.write(tmp_path, manifest, compute, batch_size=8) == 1
        assert data.read_bytes() == whole
        teacher_cache.open(tmp_path).read_all()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"sha256": "x"}'])
def test_a_marker_that_says_nothing_is_none(tmp_path, content):
    teacher_cache.write(tmp_path, manifest_of(), compute, batch_size=8)
    (tmp_path / "done" / "00000-000003").write_bytes(content)
    assert teacher_cache.write(tmp_path, manifest_of(), compute, batch_size=8) == 1


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        (dict(teacher_fingerprint="u"), ["teacher_fingerprint"]),
        (dict(dataset_fingerprint="u"), ["dataset_fingerprint"]),
        (dict(augmentation={"crop": 2, "flip": True}), ["augmentation.crop"]),
        (dict(augmentation={"crop": 4}), ["augmentation.flip"]),
        (dict(preprocessing={"mean": [0.4]}), ["preprocessing.mean"]),
        (dict(seed=1, num_views=3), ["seed", "num_views"]),
        (dict(num_examples=54), ["num_examples"]),
        (dict(encoding=Float16(7)), ["encoding.name"]),
        (dict(encoding=Float32(8)), ["encoding.num_classes"]),
    ],
)
def test_a_foreign_cache_is_refused_with_all_that_differs(tmp_path, changes, names):
    teacher_cache.write(tmp_path, manifest_of(), compute, batch_size=8)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    other = manifest_of(**changes)
    counter = Counter()
    for use in (
        lambda: teacher_cache.open(tmp_path, other),
        lambda: teacher_cache.write(tmp_path, other, counter, batch_size=8),
    ):
        with pytest.raises(UserError) as caught:
            use()
        text = str(caught.value)
        assert all(f"{name} (expected" in text for name in names)
        assert text.count("(expected") == len(names)
        assert "another --workdir, or delete" in text
    assert not counter.calls
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def test_another_environment_is_noted_and_not_refused(tmp_path, caplog):
    teacher_cache.write(tmp_path, manifest_of(), compute, batch_size=8)
    assert not caplog.records
    other = manifest_of(environment={"backend": "tpu"})
    teacher_cache.open(tmp_path, other)
    assert "backend (expected 'tpu', found 'cpu')" in caplog.text


def test_a_cache_keeps_its_shards(tmp_path):
    teacher_cache.write(tmp_path, manifest_of(), compute, batch_size=8)
    other = manifest_of(shard_size=7)
    assert teacher_cache.write(tmp_path, other, compute, batch_size=8) == 0
    assert teacher_cache.open(tmp_path, other).manifest.shard_size == 11


def test_shards_without_a_manifest_are_not_taken_for_ones_own(tmp_path):
    teacher_cache.write(tmp_path, manifest_of(), compute, batch_size=8)
    (tmp_path / "manifest.json").unlink()
    with pytest.raises(UserError, match=r"manifest\.json beside the shards"):
        teacher_cache.write(tmp_path, manifest_of(), compute, batch_size=8)


@pytest.mark.parametrize(
    ("logits_fn", "expected"),
    [
        (lambda ids, view: compute(ids, view)[:, :5], "7 classes.*got .8, 5."),
        (lambda ids, view: compute(ids, view)[:3], r"8 examples.*got .3, 7."),
        (lambda ids, view: compute(ids, view) * np.float32(np.nan), "finite logits"),
        (lambda ids, view: compute(ids, view) * np.float32(1e6), "within 65504"),
    ],
)
def test_logits_that_cannot_be_stored_are_told(tmp_path, logits_fn, expected):
    manifest = manifest_of(encoding=Float16(7))
    with pytest.raises(UserError, match=expected):
        teacher_cache.write(tmp_path, manifest, logits_fn, batch_size=8)
    assert not list(tmp_path.glob("done/*"))


def test_two_writers_at_once_do_no_harm(tmp_path):
    def slow(ids, view):
        time.sleep(0.002)
        return compute(ids, view)

    computed = []

    def run():
        computed.append(
            teacher_cache.write(tmp_path, manifest_of(), slow, batch_size=8)
        )

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(computed) == 3
    found = teacher_cache.open(tmp_path, manifest_of()).read_all()
    expected = np.stack([compute(np.arange(53), view) for view in range(2)])
    np.testing.assert_array_equal(found["teacher_logits"], expected)


def test_progress_counts_what_was_done_before(tmp_path):
    said = []
    teacher_cache.write(
        tmp_path,
        manifest_of(),
        compute,
        batch_size=8,
        progress=lambda *x: said.append(x),
    )
    assert said[0] == (0, 106)
    assert said[-1] == (106, 106)
    assert said == sorted(said)
    for name in ("00000-000000", "00001-000004"):  # 11 examples, and 9.
        (tmp_path / "done" / name).unlink()
    said.clear()
    teacher_cache.write(
        tmp_path,
        manifest_of(),
        compute,
        batch_size=8,
        progress=lambda *x: said.append(x),
    )
    assert said[0] == (86, 106)
    assert said[-1] == (106, 106)


def test_a_disk_too_small_is_told_before_the_first_batch(tmp_path, monkeypatch):
    usage = types.SimpleNamespace(free=2**20)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    counter = Counter()
    manifest = manifest_of(num_examples=53_000, shard_size=1000)
    with pytest.raises(UserError, match=r"2\.8 MiB of disk space.*found 1\.0 MiB free"):
        teacher_cache.write(tmp_path / "cache", manifest, counter, batch_size=8)
    assert not counter.calls
    assert not (tmp_path / "cache" / "manifest.json").exists()


LIMITED = """
import resource, sys
import numpy as np
from kdjax import teacher_cache
from kdjax.types import UserError

limit = int(sys.argv[2])
calls = 0
def compute(ids, view):
    global calls
    calls += 1
    # From the third shard on, no file may grow beyond the limit.
    if limit and calls > 2:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, -1))
    rng = np.random.default_rng(int(ids[0]))
    return rng.normal(size=(len(ids), 600)).astype(np.float32)

manifest = teacher_cache.Manifest(
    num_examples=500, num_views=1, encoding=teacher_cache.Float32(600), shard_size=100,
    teacher_fingerprint="t", dataset_fingerprint="d", augmentation={},
    preprocessing={}, seed=0)
try:
    print(teacher_cache.write(sys.argv[1], manifest, compute, batch_size=100))
except UserError as error:
    print(error)
"""


def test_a_write_that_finds_no_room_is_told_and_goes_on_when_there_is(tmp_path):
    script = tmp_path / "pass.py"
    script.write_text(LIMITED)

    def run(limit):
        done = subprocess.run(
            [sys.executable, str(script), str(tmp_path / "c"), str(limit)],
            capture_output=True,
            text=True,
            timeout=120,
            env=ENVIRONMENT,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    told = run(50_000)
    assert "of disk space under" in told
    assert "finished shards are kept" in told
    assert "Traceback" not in told
    finished = len(list((tmp_path / "c" / "done").glob("*")))
    assert 1 <= finished < 5
    assert run(0).strip() == str(5 - finished)
    cache = teacher_cache.open(tmp_path / "c")
    for start in range(0, 500, 100):
        expected = np.random.default_rng(start).normal(size=(100, 600))
        found = cache.read(0, np.arange(start, start + 100))["teacher_logits"]
        np.testing.assert_array_equal(found, expected.astype(np.float32))


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MiB, where the user may mount one."""
    path = tmp_path / "disk"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(path)]
    if (
        not shutil.which("mount")
        or subprocess.run(mount, capture_output=True).returncode
    ):
        pytest.skip("needs the right to mount a file system")
    yield path
    subprocess.run(["umount", str(path)], check=True)


def test_a_disk_that_fills_up_is_told_and_harms_nothing(small_disk):
    filler = small_disk / "filler"
    manifest = manifest_of(num_examples=20_000, num_views=1, shard_size=2_000)
    calls = []

    def filling(ids, view):
        calls.append(ids)
        if len(calls) == 4:  # Somebody else takes all there is.
            with pytest.raises(OSError, match="No space"):
                filler.write_bytes(bytes(2**21))
        return compute(ids, view)

    with pytest.raises(UserError, match=r"of disk space under .*found 0\.0 MiB free"):
        teacher_cache.write(small_disk / "c", manifest, filling, batch_size=2_000)
    finished = len(list((small_disk / "c" / "done").iterdir()))
    assert 0 < finished < 10
    filler.unlink()
    again = teacher_cache.write(small_disk / "c", manifest, compute, batch_size=2_000)
    assert again == 10 - finished
    found = teacher_cache.open(small_disk / "c", manifest).read_all()
    expected = compute(np.arange(20_000), 0)
    np.testing.assert_array_equal(found["teacher_logits"][0], expected)


def test_a_path_that_cannot_be_one_is_a_sentence(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="Not a directory"):
        teacher_cache.write(tmp_path / "file", manifest_of(), compute, batch_size=8)
    with pytest.raises(UserError, match="batch_size > 0"):
        teacher_cache.write(tmp_path, manifest_of(), compute, batch_size=0)


def test_any_file_name_will_do(tmp_path):
    path = tmp_path / "a b%41?#é"
    teacher_cache.write(path, manifest_of(), compute, batch_size=8)
    assert (path / "complete.json").exists()
    teacher_cache.open(path, manifest_of()).read_all()


def test_an_object_store_by_its_url():
    url = "memory://bucket/some/cache"
    teacher_cache.write(url, manifest_of(), compute, batch_size=8)
    assert teacher_cache.write(url, manifest_of(), compute, batch_size=8) == 0
    found = teacher_cache.open(url, manifest_of()).read(1, np.array([52]))
    np.testing.assert_array_equal(found["teacher_logits"], compute(np.array([52]), 1))


def test_the_manifest_states_the_error_of_the_encoding(tmp_path):
    manifest = manifest_of(encoding=Float16(7))
    teacher_cache.write(tmp_path, manifest, compute, batch_size=8)
    written = json.loads((tmp_path / "manifest.json").read_text())
    assert "2^-11" in written["encoding_error"]
    assert written["environment"]["batch_size"] == 8
