"""Reading: the right entries, or the shard at fault by its name."""

import dataclasses
import subprocess
import sys

import numpy as np
import pytest

from kdjax import teacher_cache
from kdjax.teacher_cache import Float32, Manifest, TopK
from kdjax.teacher_cache.__main__ import main
from kdjax.types import UserError

MANIFEST = Manifest(
    num_examples=53,
    num_views=3,
    encoding=Float32(7),
    shard_size=20,
    teacher_fingerprint="t",
    dataset_fingerprint="d",
    augmentation={},
    preprocessing={},
    seed=0,
)


def compute(ids, view):
    position = ids[:, None] * 7.0 + np.arange(7)[None] + 1000.0 * view
    return np.sin(position).astype(np.float32) * 5


class Counter:
    def __init__(self):
        self.calls = []

    def __call__(self, ids, view):
        self.calls.append((view, int(ids[0])))
        return compute(ids, view)


@pytest.fixture
def path(tmp_path):
    teacher_cache.write(tmp_path / "cache", MANIFEST, compute, batch_size=20)
    return tmp_path / "cache"


@pytest.mark.parametrize(
    "ids", [[5], [52, 0, 19, 20], [7, 7, 41, 7], list(range(53))[::-1], []]
)
@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.uint8])
def test_entries_come_in_the_order_of_the_ids(path, ids, dtype):
    ids = np.asarray(ids, dtype)
    found = teacher_cache.open(path).read(2, ids)
    np.testing.assert_array_equal(
        found["teacher_logits"], compute(ids.astype(np.int64), 2).reshape(len(ids), 7)
    )
    assert found["teacher_logits"].dtype == np.float32


def test_topk_reads_each_of_its_arrays(tmp_path):
    encoding = TopK(7, 2, (1.0, 4.0))
    manifest = dataclasses.replace(MANIFEST, encoding=encoding)
    teacher_cache.write(tmp_path, manifest, compute, batch_size=20)
    cache = teacher_cache.open(tmp_path, manifest)
    everything, some = cache.read_all(), cache.read(1, np.array([50, 3]))
    assert some.keys() == encoding.arrays().keys()
    for name, x in some.items():
        np.testing.assert_array_equal(x, everything[name][1, [50, 3]])
    assert cache.nbytes == sum(x.nbytes for x in everything.values())


@pytest.mark.parametrize(
    ("view", "ids", "error", "expected"),
    [
        (3, [0], IndexError, "a view between 0 and 2, got 3"),
        (-1, [0], IndexError, "a view between 0 and 2, got -1"),
        (0, [0, 53], IndexError, "ids between 0 and 52, got 53"),
        (0, [-1], IndexError, "ids between 0 and 52, got -1"),
        (0, [0.5], TypeError, "integers"),
        (0, [[1]], TypeError, "integers"),
    ],
)
def test_ids_out_of_range_are_told(path, view, ids, error, expected):
    with pytest.raises(error, match=expected):
        teacher_cache.open(path).read(view, np.asarray(ids))


def _flip(path, position=25):
    content = bytearray(path.read_bytes())
    content[position] ^= 4
    path.write_bytes(content)


DAMAGES = {
    "a flipped byte": _flip,
    "a flipped byte at the end": lambda p: _flip(p, -3),
    "an empty file": lambda p: p.write_bytes(b""),
    "half a file": lambda p: p.write_bytes(p.read_bytes()[: p.stat().st_size // 2]),
    "a missing file": lambda p: p.unlink(),
    "another shard's file": lambda p: p.write_bytes(
        (p.parents[1] / "0" / "0").read_bytes()
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_named_and_only_the_shard_recomputed(path, name):
    DAMAGES[name](path / "teacher_logits" / "c" / "1" / "1" / "0")
    cache = teacher_cache.open(path, MANIFEST)
    where = r"view 1, ids 20 to 39 .*python -m kdjax.teacher_cache repair "
    with pytest.raises(UserError, match=where):
        cache.read_all()
    if name != "another shard's file":  # Sound chunks: only their digest tells.
        with pytest.raises(UserError, match=where):
            cache.read(1, np.array([3, 21, 52]))
    sound = cache.read(1, np.array([3, 52]))  # What is sound can still be had.
    np.testing.assert_array_equal(
        sound["teacher_logits"], compute(np.array([3, 52]), 1)
    )
    assert [str(shard) for shard in teacher_cache.repair(path)] == [
        "view 1, ids 20 to 39"
    ]
    with pytest.raises(UserError, match="1 of 9 shards are missing"):
        teacher_cache.open(path, MANIFEST)
    counter = Counter()
    assert teacher_cache.write(path, MANIFEST, counter, batch_size=20) == 1
    assert counter.calls == [(1, 20)]
    found = teacher_cache.open(path, MANIFEST).read_all()["teacher_logits"]
    expected = np.stack([compute(np.arange(53), view) for view in range(3)])
    np.testing.assert_array_equal(found, expected)


def test_a_missing_file_says_which(path):
    (path / "teacher_logits" / "c" / "2" / "0" / "0").unlink()
    with pytest.raises(UserError, match="the file teacher_logits/c/2/0/0 is missing"):
        teacher_cache.open(path).read(2, np.array([0]))


def test_entries_of_zeros_are_stored_and_not_taken_for_lost(tmp_path):
    teacher_cache.write(
        tmp_path, MANIFEST, lambda ids, view: np.zeros((len(ids), 7)), batch_size=20
    )
    assert not teacher_cache.open(tmp_path).read_all()["teacher_logits"].any()
    assert teacher_cache.repair(tmp_path) == []


def test_repair_of_a_sound_cache_drops_nothing(path):
    assert teacher_cache.repair(path) == []
    counter = Counter()
    assert teacher_cache.write(path, MANIFEST, counter, batch_size=20) == 0
    assert not counter.calls
    teacher_cache.open(path, MANIFEST).read_all()


@pytest.mark.parametrize(
    "name", ["complete.json", "manifest.json", "teacher_logits/zarr.json"]
)
def test_bad_metadata_is_told_and_repaired(path, name):
    content = (path / name).read_text()
    for damaged in ("", "{", content.replace("3", "4"), content[:-20]):
        (path / name).write_text(damaged)
        with pytest.raises(UserError, match="Expected"):
            teacher_cache.open(path, MANIFEST).read_all()
    if name == "manifest.json":
        with pytest.raises(UserError, match="delete"):
            teacher_cache.repair(path)
        return
    assert teacher_cache.repair(path) == []
    assert teacher_cache.write(path, MANIFEST, compute, batch_size=20) == 0
    teacher_cache.open(path, MANIFEST).read_all()


def test_a_manifest_changed_afterwards_is_noticed(path):
    text = (path / "manifest.json").read_text()
    (path / "manifest.json").write_text(text.replace('"jax": "', '"jax": "9'))
    with pytest.raises(UserError, match="belong together"):
        teacher_cache.open(path)


def test_no_cache_is_told(tmp_path):
    with pytest.raises(UserError, match=r"found no manifest\.json.*--stages=cache"):
        teacher_cache.open(tmp_path / "nothing", MANIFEST)
    assert not (tmp_path / "nothing").exists()


def test_the_command_repairs(path, capsys):
    _flip(path / "teacher_logits" / "c" / "0" / "2" / "0")
    assert main(["repair", str(path)]) == 0
    assert "view 0, ids 40 to 52" in capsys.readouterr().out
    assert main(["repair", str(path / "nowhere")]) == 2
    assert main(["mend"]) == 2
    assert "Expected `repair PATH`" in capsys.readouterr().err


@pytest.mark.slow
def test_the_command_is_there(path):
    command = [sys.executable, "-m", "kdjax.teacher_cache", "repair", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "0 bad shards" in done.stdout
