"""The plan of a sweep: which programs, in which form, how large, and for how long.

Nothing is believed: each form of a group's program is compiled and run for a few steps,
and the faster one is taken. What does not fit in memory is cut into chunks.
"""

import os
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax

from kdjax.builders.sweep import Group, Options
from kdjax.sweep import programs
from kdjax.sweep.trainer import Chunk, Trainer, chunks
from kdjax.types import UserError

SHARE = 0.8  # Of the memory that is free.
MIN_SECONDS = 1.0  # Of measuring, unless MAX_CALLS are made before.
MAX_CALLS = 5
LOOPED = 4  # Students by which the form `loop` is measured: it is linear in them.


class Measured(NamedTuple):
    """One form of a program.

    Attributes:
      seconds: a step of one student takes, the students being many.
      compile_seconds: until the first call was done.
      peak_bytes: of memory.
      state_bytes: of it, what each further student adds to a loop.
    """

    seconds: float
    compile_seconds: float
    peak_bytes: int
    state_bytes: int


def make(
    trainer: Trainer, groups: Sequence[Group], options: Options
) -> list[dict[str, Any]]:
    """Measures the programs of all groups; JSON-able, an entry for each."""
    return [_entry(trainer, group, options) for group in groups]


def chunks_of(
    trainer: Trainer, group: Group, rows: Sequence[int], entry: Mapping[str, Any]
) -> list[Chunk]:
    """Shares out some students of a group as its plan says."""
    return chunks(
        group, rows, entry["form"], entry["students_per_program"], trainer.num_devices
    )


def lines(entries: Sequence[Mapping[str, Any]]) -> list[str]:
    """The plan in words."""
    found = []
    for entry in entries:
        what = ", ".join(f"{k} = {x}" for k, x in entry["values"].items())
        found.append(
            f"{entry['group']}{f' ({what})' if what else ''}: {entry['students']} "
            f"students in {entry['programs']} program(s) of up to "
            f"{entry['students_per_program']}, {entry['steps']} steps each, by "
            f"{entry['form']}: {entry['why']}; "
            f"{entry['peak_bytes'] / 2**20:,.0f} MiB at most, about "
            f"{_duration(entry['predicted_seconds'])}."
        )
    total = sum(entry["predicted_seconds"] for entry in entries)
    students = sum(entry["students"] for entry in entries)
    found.append(
        f"In all {students} students, about {_duration(total)} without evaluation."
    )
    return found


def free_bytes() -> int | None:
    """The memory of the device that is free; None where that is not known."""
    device = jax.local_devices()[0]
    stats = device.memory_stats() or {}
    if "bytes_limit" in stats:
        return stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    if device.platform != "cpu":
        return None
    try:
        with open("/proc/meminfo") as file:
            known = dict(line.split(":") for line in file)
        return 1024 * int(known["MemAvailable"].split()[0])
    except (OSError, KeyError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _entry(trainer: Trainer, group: Group, options: Options) -> dict[str, Any]:
    limit = options.max_gigabytes * 2**30
    if not limit and (free := free_bytes()) is not None:
        limit = SHARE * free
    forms, why = _forms(trainer, options)
    found = {form: _fit(trainer, group, form, limit, options) for form in forms}
    form = min(found, key=lambda x: found[x][1].seconds)
    most, best = found[form]
    if not why:
        why = ", ".join(
            f"{1000 * x.seconds:.2f} ms a student's step by {form}"
            for form, (_, x) in found.items()
        )
    parts = chunks(group, range(len(group.rows)), form, most, trainer.num_devices)
    shapes = {len(part.rows) for part in parts}
    students = len(group.rows)
    return {
        "group": group.name,
        "role": group.role,
        "values": group.values,
        "students": students,
        "steps": group.num_steps,
        "form": form,
        "why": why,
        "programs": len(parts),
        "students_per_program": most,
        "peak_bytes": best.peak_bytes,
        "seconds_by_form": {form: x.seconds for form, (_, x) in found.items()},
        "compile_seconds": len(shapes) * best.compile_seconds,
        "predicted_seconds": best.seconds * students * group.num_steps
        + len(shapes) * best.compile_seconds,
    }


def _forms(trainer: Trainer, options: Options) -> tuple[tuple[str, ...], str]:
    """The forms to measure, and why no other."""
    if options.form != "measured":
        return (options.form,), "sweep_options.form says so"
    if trainer.num_devices > 1:
        return ("vmap",), f"{trainer.num_devices} devices share the students"
    return ("vmap", "loop"), ""


def _fit(
    trainer: Trainer, group: Group, form: str, limit: float, options: Options
) -> tuple[int, Measured]:
    """The most students that fit in a program of this form, and what it takes."""
    most = min(len(group.rows), options.max_students or len(group.rows))
    while True:
        size = min(most, LOOPED) if form == "loop" else most
        chunk = chunks(group, range(len(group.rows)), form, size, trainer.num_devices)[
            0
        ]
        found = _measure(trainer, chunk, limit)
        if found is None:
            fits = max(size // 2, 1)
        else:
            whole = found.peak_bytes + (most - size) * found.state_bytes
            if not limit or whole <= limit:
                return most, found._replace(peak_bytes=whole)
            fits = max(int(most * limit / whole), 1)
        if most == 1:
            raise UserError(
                f"Expected room for one student of {group.name}, which takes more "
                f"than the {limit / 2**20:,.0f} MiB there are: make it smaller, its "
                "batch too, or raise sweep_options.max_gigabytes."
            )
        most = min(fits, most - 1)


def _measure(trainer: Trainer, chunk: Chunk, limit: float) -> Measured | None:
    """Compiles a program and runs a few calls; None where memory does not suffice."""
    training = trainer.training(chunk, num_steps=chunk.group.num_steps)
    count = min(training.steps_per_dispatch, training.steps_per_epoch)
    program: Any = training.programs(count)
    try:
        state = training.parallel.replicate(training.init())
        arguments = training.parallel.replicate((training.constants, training.hparams))
        inputs = next(training.loader.inputs(0))
        state_bytes = programs.count_bytes(state) // len(chunk.rows)
        started = time.monotonic()
        peak = program.peak_bytes(state, *arguments, inputs)
        if limit and peak > limit and len(chunk.rows) > 1:
            return Measured(float("inf"), 0.0, peak, 0)
        state, _ = jax.block_until_ready(program(state, *arguments, inputs))
        compile_seconds = time.monotonic() - started
        calls, started = 0, time.monotonic()
        while calls < MAX_CALLS and time.monotonic() - started < MIN_SECONDS:
            state, _ = program(state, *arguments, inputs)
            calls += 1
        jax.block_until_ready(state)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return None
    seconds = (time.monotonic() - started) / calls / count / len(chunk.rows)
    return Measured(seconds, compile_seconds, peak, state_bytes)


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
