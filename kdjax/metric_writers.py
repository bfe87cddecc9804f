"""Metrics of a training on disk: JSON lines for programs, TensorBoard for eyes.

A row for step s describes the state after s updates. A killed run may leave rows beyond
its last checkpoint, and half a row at the end; resuming from a checkpoint of step k
keeps the rows with step <= k and writes the others again, so that the file of a resumed
run equals that of an uninterrupted one. For that, write the rows of a step before its
checkpoint is saved.
"""

import contextlib
import json
import math
import os
import pathlib
import struct
import time
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO, SupportsFloat

from kdjax.types import UserError

FILE_NAME = "metrics.jsonl"

Row = dict[str, int | float]

# JSON has no such numbers. As strings they are told apart, which null would not do.
_NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


class MetricWriter:
    """Appends rows of scalars to `metrics.jsonl` and to a TensorBoard event file.

    Each row is one write to the file, so a killed process loses at most the row it is
    writing. Floats are written so that reading gives back the same bits; NaN and the
    infinities, which strict JSON lacks, as the strings "NaN", "Infinity", "-Infinity".

    TensorBoard itself hides what an earlier process wrote beyond `start_step`; its
    files are never changed.

    Args:
      directory: where the files go; made if needed.
      start_step: the step of the checkpoint that was restored: rows beyond it go.
        0 means that training begins anew: all rows go.
      tensorboard: whether to write event files too.
      enabled: False writes nothing: for every process of a run but one.

    Raises:
      UserError: if the directory can't be written to or the disk is full (also from
        `write`), or if `metrics.jsonl` holds something else than rows.

    Examples:
      >>> import tempfile
      >>> directory = tempfile.mkdtemp()
      >>> with MetricWriter(directory) as writer:
      ...     writer.write(100, {"loss": 0.1})
      ...     writer.write(200, {"loss": math.inf})
      >>> read(directory)
      [{'step': 100, 'loss': 0.1}, {'step': 200, 'loss': inf}]
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        start_step: int = 0,
        tensorboard: bool = True,
        enabled: bool = True,
    ):
        self._start_step = start_step
        self._last_step = start_step
        self._files = contextlib.ExitStack()
        self._lines: BinaryIO | None = None
        self._events: BinaryIO | None = None
        self._kept: list[set[str]] = []
        if enabled:
            with self._files, _explained(directory):
                self._begin(pathlib.Path(directory), tensorboard)
                self._files = self._files.pop_all()  # Open, unless that failed.

    def write(self, step: int, scalars: Mapping[str, SupportsFloat]) -> None:
        """Appends the row of `step`: numbers, or arrays of one number, by name.

        Several rows may share a step. A row of `start_step` that is on disk already is
        left as it is: a resumed run may come by the step where it was restored.

        Raises:
          ValueError: if `step` is less than an earlier one, or a value has a shape.
        """
        if self._lines is None:
            return
        if step < self._last_step:
            raise ValueError(
                f"Expected ascending steps, got {step} after {self._last_step}."
            )
        if step == self._start_step and set(scalars) in self._kept:
            return
        row = {"step": step} | {k: _number(k, v) for k, v in scalars.items()}
        self._last_step = step
        with _explained(self._lines.name):
            _append(self._lines, _encode(row))
            if self._events is not None:
                _append(self._events, _scalar_event(row))

    def close(self) -> None:
        """Closes the files."""
        self._files.close()

    def __enter__(self) -> "MetricWriter":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def _begin(self, directory: pathlib.Path, tensorboard: bool) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._kept = _truncate(directory / FILE_NAME, self._start_step)
        self._lines = self._open(directory / FILE_NAME)
        if tensorboard:
            self._events = self._open(_new_event_file(directory))
            purge_step = self._start_step + 1 if self._start_step else 0
            _append(self._events, _first_events(purge_step))

    def _open(self, path: pathlib.Path) -> BinaryIO:
        # Unbuffered: a full disk shows in the write that meets it, not when closing.
        return self._files.enter_context(open(path, "ab", buffering=0))


def read(directory: str | os.PathLike[str]) -> list[Row]:
    """The rows in `directory`, in order of writing; `[]` where nothing was written.

    Half a row at the end, of a process that is writing or was killed, is left out.

    Raises:
      UserError: if a line before the last is no row.
    """
    path = pathlib.Path(directory) / FILE_NAME
    with _explained(path, verb="read"):
        lines = path.read_bytes().split(b"\n") if path.exists() else [b""]
    return [_decode(path, i, line) for i, line in enumerate(lines[:-1], start=1)]


def _truncate(path: pathlib.Path, start_step: int) -> list[set[str]]:
    """Drops the rows beyond `start_step`, all at once or not at all.

    Returns the names in each row of `start_step` itself.
    """
    rows = read(path.parent) if start_step > 0 else []
    kept = [row for row in rows if row["step"] <= start_step]
    encoded = b"".join(map(_encode, kept))
    if path.exists() and path.read_bytes() != encoded:
        _replace(path, encoded)
    return [set(row) - {"step"} for row in kept if row["step"] == start_step]


def _replace(path: pathlib.Path, content: bytes) -> None:
    temporary = path.with_suffix(".tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def _append(file: BinaryIO, record: bytes) -> None:
    """Appends all of `record`, or nothing: a disk about to be full takes a part."""
    size = os.fstat(file.fileno()).st_size
    try:
        while record:
            record = record[file.write(record) :]
    except OSError:
        with contextlib.suppress(OSError):
            os.ftruncate(file.fileno(), size)
        raise


def _number(name: str, value: SupportsFloat) -> int | float:
    if name == "step":
        raise ValueError("Expected names of metrics, got 'step', the row's own.")
    shape = getattr(value, "shape", ())
    if shape != ():
        raise ValueError(f"Expected a scalar for {name!r}, got the shape {shape}.")
    plain = value.item() if hasattr(value, "item") else value
    return int(plain) if isinstance(plain, int) else float(plain)


def _encode(row: Row) -> bytes:
    plain = {k: v if math.isfinite(v) else _spell(v) for k, v in row.items()}
    return json.dumps(plain, allow_nan=False).encode() + b"\n"


def _spell(value: float) -> str:
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _decode(path: pathlib.Path, number: int, line: bytes) -> Row:
    try:
        row = json.loads(line)
        row["step"] = int(row["step"])
        return {k: _NON_FINITE[v] if isinstance(v, str) else v for k, v in row.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"Expected one JSON object of numbers a line in {path}, got "
            f"{line[:40]!r} in line {number}: restore the file, or move it away."
        ) from error


def _new_event_file(directory: pathlib.Path) -> pathlib.Path:
    """A path after all earlier ones: TensorBoard reads event files in their order."""
    stem = "events.out.tfevents"
    suffixes = [path.suffix[1:] for path in directory.glob(f"{stem}.*")]
    number = max((int(suffix) for suffix in suffixes if suffix.isdecimal()), default=0)
    return directory / f"{stem}.{number + 1:010d}"


def _first_events(purge_step: int) -> bytes:
    """Events that hide from TensorBoard what was written for `purge_step` and after."""
    # Imported late: it brings in PyTorch where that is installed, for seconds.
    from tensorboardX.proto import event_pb2

    now = time.time()
    version = event_pb2.Event(wall_time=now, file_version="brain.Event:2")
    start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
    purge = event_pb2.Event(wall_time=now, step=purge_step, session_log=start)
    return _record(version) + _record(purge)


def _scalar_event(row: Row) -> bytes:
    from tensorboardX.proto import event_pb2, summary_pb2

    values = [
        summary_pb2.Summary.Value(tag=name, simple_value=value)
        for name, value in row.items()
        if name != "step"
    ]
    summary = summary_pb2.Summary(value=values)
    return _record(
        event_pb2.Event(wall_time=time.time(), step=row["step"], summary=summary)
    )


def _record(event: Any) -> bytes:
    """An event as a TFRecord: length, its checksum, content, its checksum.

    `tensorboardX.SummaryWriter` would write it from a thread that a full disk ends in
    silence, after which the training hangs on its queue; and it names files by the
    second, so that a run resumed within one overwrites the file before.
    """
    from tensorboardX.record_writer import masked_crc32c

    content = event.SerializeToString()
    length = struct.pack("<Q", len(content))
    return b"".join(
        [
            length,
            struct.pack("<I", masked_crc32c(length)),
            content,
            struct.pack("<I", masked_crc32c(content)),
        ]
    )


@contextlib.contextmanager
def _explained(path: str | os.PathLike[str], verb: str = "write") -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"Could not {verb} metrics in {path}: {error.strerror or error}. Free the "
            "disk or mend the path, and run the same command again."
        ) from error
