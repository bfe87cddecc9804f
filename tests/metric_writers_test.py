"""Laws of the metric files: exact values, exact resume, nothing lost, clear errors."""

import json
import math
import os
import pathlib
import random
import resource
import signal
import struct
import subprocess
import sys
import time

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorboardX.proto import event_pb2
from tensorboardX.record_writer import masked_crc32c

from kdjax import metric_writers
from kdjax.metric_writers import FILE_NAME, MetricWriter, read
from kdjax.types import UserError


def metrics_at(step):
    return {"loss": 10 / (step + 3), "validation_accuracy": step / 7}


def write_steps(directory, steps, start_step=0, **arguments):
    with MetricWriter(directory, start_step=start_step, **arguments) as writer:
        for step in steps:
            writer.write(step, metrics_at(step))


def events_in(path):
    """Events of a file, by the TFRecord format's own definition; checks all sums."""
    data, place = path.read_bytes(), 0
    while place < len(data):
        length, length_sum = struct.unpack_from("<QI", data, place)
        content = data[place + 12 : place + 12 + length]
        (content_sum,) = struct.unpack_from("<I", data, place + 12 + length)
        assert length_sum == masked_crc32c(data[place : place + 8])
        assert content_sum == masked_crc32c(content)
        yield event_pb2.Event.FromString(content)
        place += 16 + length


def as_tensorboard_sees(directory):
    """Scalars by tag, after the purges that TensorBoard's reader applies."""
    seen = {}
    for path in sorted(directory.glob("*tfevents*")):
        for event in events_in(path):
            if event.session_log.status == event_pb2.SessionLog.START:
                for points in seen.values():
                    points[:] = [point for point in points if point[0] < event.step]
            for value in event.summary.value:
                points = seen.setdefault(value.tag, [])
                points.append((event.step, value.simple_value))
    return seen


def float32_points(rows):
    names = [name for name in rows[0] if name != "step"]
    return {n: [(r["step"], float(np.float32(r[n]))) for r in rows] for n in names}


def test_rows_come_back_in_both_formats(tmp_path):
    write_steps(tmp_path / "new" / "folder", range(1, 6))
    rows = read(tmp_path / "new" / "folder")
    assert rows == [{"step": step} | metrics_at(step) for step in range(1, 6)]
    assert as_tensorboard_sees(tmp_path / "new" / "folder") == float32_points(rows)


def test_event_file_begins_as_tensorboard_expects(tmp_path):
    before = time.time()
    write_steps(tmp_path, [10], start_step=9)
    [path] = tmp_path.glob("*tfevents*")
    version, purge, scalars = events_in(path)
    assert version.file_version == "brain.Event:2"
    assert purge.step == 10
    assert scalars.step == 10
    assert before <= scalars.wall_time <= time.time()


def test_nothing_written_is_no_rows(tmp_path):
    assert read(tmp_path) == []
    assert read(tmp_path / "absent") == []


@settings(deadline=None)  # A disk may be slow.
@given(st.floats())
def test_floats_are_exact(tmp_path_factory, value):
    directory = tmp_path_factory.mktemp("metrics")
    with MetricWriter(directory, tensorboard=False) as writer:
        writer.write(1, {"value": value})
    [row] = read(directory)
    assert row["value"] == value or (math.isnan(row["value"]) and math.isnan(value))
    assert math.copysign(1, row["value"]) == math.copysign(1, value) or value != value


def test_json_is_strict(tmp_path):
    with MetricWriter(tmp_path) as writer:
        writer.write(1, {"a": math.nan, "b": math.inf, "c": -math.inf, "d": 0.1})

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    [line] = (tmp_path / FILE_NAME).read_text().splitlines()
    row = json.loads(line, parse_constant=refuse)
    assert row == {"step": 1, "a": "NaN", "b": "Infinity", "c": "-Infinity", "d": 0.1}
    assert as_tensorboard_sees(tmp_path)["c"] == [(1, -math.inf)]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (3, 3),
        (True, 1),
        (np.float32(0.1), 0.10000000149011612),
        (np.int64(2**53 + 1), 2**53 + 1),
        (np.array(0.5), 0.5),
        (jnp.float32(0.1), 0.10000000149011612),
        (jnp.bfloat16(0.3), float(ml_dtypes.bfloat16(0.3))),
        (jnp.int32(7), 7),
    ],
)
def test_scalars_of_many_kinds(tmp_path, value, expected):
    with MetricWriter(tmp_path) as writer:
        writer.write(1, {"value": value})
    [row] = read(tmp_path)
    assert row["value"] == expected
    assert type(row["value"]) is type(expected)


@pytest.mark.parametrize("value", [np.zeros(3), np.zeros((1,)), jnp.zeros((1, 1))])
def test_arrays_are_refused(tmp_path, value, as_in_production):
    with MetricWriter(tmp_path) as writer:
        with pytest.raises(ValueError, match=r"Expected a scalar for 'loss'.*shape \("):
            writer.write(1, {"loss": value})
        writer.write(1, {"loss": 1.0})
    assert read(tmp_path) == [{"step": 1, "loss": 1.0}]


def test_step_is_a_reserved_name(tmp_path):
    with MetricWriter(tmp_path) as writer, pytest.raises(ValueError, match="'step'"):
        writer.write(1, {"step": 1.0})


def test_steps_ascend(tmp_path):
    with MetricWriter(tmp_path, start_step=5) as writer:
        writer.write(6, {"loss": 1.0})
        writer.write(6, {"validation_accuracy": 1.0})
        with pytest.raises(ValueError, match="Expected ascending steps, got 5 after 6"):
            writer.write(5, {"loss": 1.0})
    assert [row["step"] for row in read(tmp_path)] == [6, 6]


@pytest.mark.parametrize("checkpoint", [1, 3, 7, 9])
@pytest.mark.parametrize("killed_at", [3, 7, 9])
def test_resumed_equals_uninterrupted(tmp_path, checkpoint, killed_at):
    write_steps(tmp_path / "whole", range(10))
    write_steps(tmp_path / "killed", range(killed_at + 1))
    start = min(checkpoint, killed_at)
    write_steps(tmp_path / "killed", range(start + 1, 10), start_step=start)
    whole, killed = (tmp_path / name / FILE_NAME for name in ("whole", "killed"))
    assert killed.read_bytes() == whole.read_bytes()
    seen = as_tensorboard_sees(tmp_path / "killed")
    assert seen == as_tensorboard_sees(tmp_path / "whole")


def test_without_a_checkpoint_all_begins_anew(tmp_path):
    write_steps(tmp_path, range(6))
    write_steps(tmp_path, range(3), start_step=0)
    assert [row["step"] for row in read(tmp_path)] == [0, 1, 2]
    steps = [step for step, _ in as_tensorboard_sees(tmp_path)["loss"]]
    assert steps == [0, 1, 2]


def test_row_of_the_checkpoint_is_not_written_twice(tmp_path):
    write_steps(tmp_path, [4, 5, 6])
    with MetricWriter(tmp_path, start_step=5) as writer:
        writer.write(5, metrics_at(5))  # On disk already.
        writer.write(5, {"agreement": 0.5})  # Another row of that step.
        writer.write(6, metrics_at(6))
    expected = [
        *({"step": step} | metrics_at(step) for step in (4, 5)),
        {"step": 5, "agreement": 0.5},
        {"step": 6} | metrics_at(6),
    ]
    assert read(tmp_path) == expected


def test_row_of_the_checkpoint_is_written_if_it_is_missing(tmp_path):
    write_steps(tmp_path, [4])
    write_steps(tmp_path, [5, 6], start_step=5)
    assert [row["step"] for row in read(tmp_path)] == [4, 5, 6]


@pytest.mark.parametrize("half", [b'{"st', b'{"step": 3, "loss": 1.0}', b"\0\0\0"])
def test_half_a_line_at_the_end_is_dropped(tmp_path, half):
    write_steps(tmp_path, [1, 2])
    with open(tmp_path / FILE_NAME, "ab") as file:
        file.write(half)
    assert [row["step"] for row in read(tmp_path)] == [1, 2]
    write_steps(tmp_path, [3], start_step=2)
    assert [row["step"] for row in read(tmp_path)] == [1, 2, 3]


@pytest.mark.parametrize(
    "damage", [b"{\n", b"[]\n", b'{"loss": 1.0}\n', b'{"step": 1, "a": "b"}\n', b"\n"]
)
def test_a_damaged_line_is_named_and_nothing_is_changed(tmp_path, damage):
    write_steps(tmp_path, [1])
    path = tmp_path / FILE_NAME
    path.write_bytes(path.read_bytes() + damage + b'{"step": 2}\n')
    content = path.read_bytes()
    with pytest.raises(UserError, match=r"Expected one JSON object .* in line 2"):
        read(tmp_path)
    with pytest.raises(UserError, match="in line 2"):
        MetricWriter(tmp_path, start_step=2)
    assert path.read_bytes() == content


def test_files_that_need_no_change_are_left_alone(tmp_path):
    write_steps(tmp_path, [1, 2])
    path = tmp_path / FILE_NAME
    before = path.stat().st_ino
    write_steps(tmp_path, [], start_step=2)
    assert path.stat().st_ino == before
    write_steps(tmp_path, [], start_step=1)
    assert path.stat().st_ino != before  # Replaced whole.
    assert {p.name for p in tmp_path.glob("*.*") if "events" not in p.name} == {
        FILE_NAME
    }


def test_a_failed_replacement_changes_nothing(tmp_path, monkeypatch):
    write_steps(tmp_path, [1, 2])
    content = (tmp_path / FILE_NAME).read_bytes()

    def fail(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(UserError, match="No space left on device"):
        MetricWriter(tmp_path, start_step=1)
    assert (tmp_path / FILE_NAME).read_bytes() == content
    assert not list(tmp_path.glob("*.tmp"))


def test_half_an_event_stays_in_its_file(tmp_path):
    write_steps(tmp_path, [1, 2])
    [first] = tmp_path.glob("*tfevents*")
    os.truncate(first, first.stat().st_size - 5)
    write_steps(tmp_path, [3], start_step=2)
    *_, second = sorted(tmp_path.glob("*tfevents*"))
    assert [event.step for event in events_in(second)] == [0, 3, 3]


def test_files_are_closed_when_opening_fails(tmp_path, monkeypatch):
    def fail(directory):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(metric_writers, "_new_event_file", fail)
    with pytest.raises(UserError) as error:
        MetricWriter(tmp_path)
    opened = [os.path.realpath(path) for path in pathlib.Path("/dev/fd").iterdir()]
    assert str(tmp_path / FILE_NAME) not in opened
    assert "No space left on device" in str(error.value)


def test_foreign_event_files_are_no_obstacle(tmp_path):
    (tmp_path / "events.out.tfevents.1700000000.host.profile-empty").touch()
    write_steps(tmp_path, [1])
    write_steps(tmp_path, [2], start_step=1)
    assert len(as_tensorboard_sees(tmp_path)["loss"]) == 2


def test_disabled_writer_touches_nothing(tmp_path):
    write_steps(tmp_path / "absent", [1, 2], enabled=False)
    assert not (tmp_path / "absent").exists()


def test_tensorboard_can_be_left_out(tmp_path):
    write_steps(tmp_path, [1], tensorboard=False)
    assert [path.name for path in tmp_path.iterdir()] == [FILE_NAME]


@pytest.mark.parametrize("tensorboard", [True, False])
def test_unusable_directories_are_explained(tmp_path, tensorboard):
    (tmp_path / "file").write_text("kept")
    with pytest.raises(UserError, match=r"Could not write metrics in .*file"):
        MetricWriter(tmp_path / "file", tensorboard=tensorboard)
    (tmp_path / FILE_NAME).mkdir()
    with pytest.raises(UserError, match="directory"):
        MetricWriter(tmp_path, tensorboard=tensorboard)
    assert (tmp_path / "file").read_text() == "kept"


def test_full_device_is_an_error_at_once():
    with (
        open("/dev/full", "ab", buffering=0) as file,
        pytest.raises(OSError, match="No space left"),
    ):
        metric_writers._append(file, b"record")


FULL_DISK = """
import resource, sys
from kdjax.metric_writers import MetricWriter
from kdjax.types import UserError
with MetricWriter(sys.argv[1], tensorboard=False) as writer:
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
    try:
        for step in range(100):
            row = {"loss": 10 / (step + 3), "validation_accuracy": step / 7}
            writer.write(step, row)
    except UserError as error:
        print(error)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
    writer.write(step + 1, {"loss": 0.0})
"""


def test_disk_that_fills_up_keeps_whole_rows(tmp_path):
    """A limit on the file's size stands in for the disk: it too takes a part first."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    assert limits[1] == resource.RLIM_INFINITY
    command = [sys.executable, "-c", FULL_DISK, str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout.startswith("Could not write metrics in ")
    assert "File too large" in result.stdout
    *rows, last = read(tmp_path)
    assert rows == [{"step": step} | metrics_at(step) for step in range(len(rows))]
    assert len(rows) > 10
    assert last == {"step": len(rows) + 1, "loss": 0.0}


WRITER = """
import sys
from kdjax.metric_writers import MetricWriter
directory, start = sys.argv[1], int(sys.argv[2])
with MetricWriter(directory, start_step=start) as writer:
    print("ready", flush=True)
    for step in range(start + 1, 10**9):
        writer.write(step, {"loss": 10 / (step + 3), "validation_accuracy": step / 7})
"""


def kill_a_writer(directory: pathlib.Path, start_step: int, delay: float) -> None:
    """Lets a process write for a while, then ends it without any warning."""
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(directory), str(start_step)],
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    process.communicate()


def test_kill_9_at_any_moment(tmp_path):
    random.seed(0)
    checkpoint = 0
    for _ in range(4):
        kill_a_writer(tmp_path, checkpoint, random.uniform(0, 0.05))
        rows = read(tmp_path)
        assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
        checkpoint = random.randint(checkpoint, len(rows))
    write_steps(tmp_path, range(checkpoint + 1, checkpoint + 50), start_step=checkpoint)
    write_steps(tmp_path / "whole", range(1, checkpoint + 50))
    assert read(tmp_path) == read(tmp_path / "whole")


def test_reopening_at_every_cut_of_the_file(tmp_path):
    """Every length that a kill can leave behind, not only those a test happens on."""
    write_steps(tmp_path, range(1, 6), tensorboard=False)
    whole = (tmp_path / FILE_NAME).read_bytes()
    for length in range(len(whole)):
        (tmp_path / FILE_NAME).write_bytes(whole[:length])
        start = len(read(tmp_path))
        write_steps(tmp_path, range(start + 1, 6), start, tensorboard=False)
        assert (tmp_path / FILE_NAME).read_bytes() == whole
