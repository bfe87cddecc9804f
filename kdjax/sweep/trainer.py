"""Trains the students of a group together, and says how good each became."""

import functools
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from kdjax import metric_writers, metrics, students
from kdjax.builders.sweep import Experiment, Group, Stored
from kdjax.checkpoints import BEST_METRIC, Checkpoints
from kdjax.data import sources
from kdjax.steps import make_predict_step
from kdjax.sweep import pool, programs
from kdjax.sweep.pool import GOING, Pool
from kdjax.training import Training, fit, predict_split
from kdjax.types import HParams, Variables
from kdjax.workdir import begin, finish

VALIDATION = f"{BEST_METRIC}/"  # And the row: a column of metrics.jsonl.


class Chunk(NamedTuple):
    """Students of a group that train in one program.

    Attributes:
      group: whose.
      rows: their places in it; one may come again to fill the devices.
      form: `'vmap'` or `'loop'`.
    """

    group: Group
    rows: tuple[int, ...]
    form: str

    @property
    def seeds(self) -> list[int]:
        return [self.group.rows[row].seed for row in self.rows]


class Start(NamedTuple):
    """Where a student goes on: its state, and whether it is frozen."""

    state: Any
    stopped: int


class Trainer:
    """Makes the trainings of a sweep; those of the same kind share programs.

    Args:
      experiment: the sweep.
      teacher: the variables of its teacher.
      stored: reads the arrays of a cache.
      teacher_logits: on the test split; None where they are not known yet.
    """

    def __init__(
        self,
        experiment: Experiment,
        teacher: Variables,
        stored: Callable[[Stored], Mapping[str, np.ndarray]],
        teacher_logits: np.ndarray | None = None,
    ):
        self._splits = experiment.offline.splits
        self._parallel = experiment.offline.devices
        self._batch_size = experiment.batch_size
        self._teacher = teacher
        self._stored = stored
        self._teacher_logits = teacher_logits
        self._programs: dict[Any, Callable[[int], programs.Program]] = {}
        self._predict = functools.cache(_predict_program)

    @property
    def num_devices(self) -> int:
        return self._parallel.num_devices

    def training(
        self,
        chunk: Chunk,
        *,
        num_steps: int,
        init: Callable[[], Pool] | None = None,
        name: str = "",
    ) -> Training:
        """The training of a chunk, of `kdjax.training`; its state is a `Pool`."""
        group, seeds = chunk.group, chunk.seeds
        shape = self._shape(chunk)
        batch_seeds = list(dict.fromkeys(seeds))
        which = [batch_seeds.index(seed) for seed in seeds]
        if shape is not None:
            batch_seeds = seeds[:: shape[1]]
        extras = {} if group.cache is None else self._stored(group.cache)
        loader = group.loader(batch_seeds, extras)
        devices = programs.Devices(self._parallel.mode, self._parallel.mesh, shape)
        key = (group.key, shape, tuple(which) if shape is None else ())
        if key not in self._programs:
            self._programs[key] = programs.make(group, loader, devices, which)
        constants, hparams = self._read(chunk, shape)
        return group.training(
            name=name or group.name,
            init=init or functools.partial(self._init, chunk),
            programs=self._programs[key],
            loader=loader,
            hparams=hparams,
            constants=constants,
            num_steps=num_steps,
            evaluate=functools.partial(self._evaluate, chunk),
            parallel=devices,
        )

    def train(
        self,
        chunk: Chunk,
        directory: pathlib.Path,
        inputs: Mapping[str, Any],
        *,
        num_steps: int,
        starts: Callable[[], Mapping[int, Start]] | None = None,
        name: str = "",
    ) -> Mapping[str, Any]:
        """The results of a chunk by row: trained now, or read back where it is done.

        Args:
          chunk: who trains.
          directory: receives checkpoints, metrics and results.
          inputs: what the result depends on; JSON-able.
          num_steps: until when, counted from a student's first.
          starts: where each goes on; by default at the beginning.
          name: for messages.
        """
        result = begin(directory, inputs)
        if result is not None:
            return result
        started = time.monotonic()
        init = None
        if starts is not None:
            init = functools.partial(self._resume, chunk, starts)
        training = self.training(chunk, num_steps=num_steps, init=init, name=name)
        if starts is not None:
            _save_first(training, directory)
        state, saved = fit(training, directory)
        saved.close()
        result = {
            "steps": num_steps,
            "rows": self._results(chunk, state, directory),
            "seconds": time.monotonic() - started,
        }
        finish(directory, result)
        return result

    def ends(
        self, chunk: Chunk, directory: pathlib.Path, num_steps: int
    ) -> dict[int, Start]:
        """Where the students of a finished chunk are, from its last checkpoint."""
        training = self.training(chunk, num_steps=num_steps)
        like = training.init()
        saved = Checkpoints(directory / "checkpoints", keep=training.keep_checkpoints)
        state = saved.restore(num_steps, like)
        saved.close()
        found: dict[int, Start] = {}
        for row, own in zip(chunk.rows, pool.unstack(state), strict=True):
            found.setdefault(row, Start(*own))  # What fills the devices comes later.
        return found

    def _shape(self, chunk: Chunk) -> pool.Shape:
        if chunk.form == "loop":
            return None
        shape = pool.shape_of(chunk.seeds)
        if any(size % self.num_devices == 0 for size in shape):
            return shape
        return len(chunk.rows), 1

    def _read(self, chunk: Chunk, shape: pool.Shape) -> tuple[Any, HParams]:
        """The constants and the schedules of a program, as its form has them."""
        teacher = chunk.group.teacher(self._teacher)
        schedules = [chunk.group.hparams[row] for row in chunk.rows]
        if shape is None:
            return (teacher, tuple(schedules)), {}
        stacked = students.stack_hparams(schedules)
        return teacher, jax.tree.map(lambda x: x.reshape(*shape, *x.shape[1:]), stacked)

    def _init(self, chunk: Chunk) -> Pool:
        states = [chunk.group.init(row) for row in chunk.rows]
        return pool.init(states, _frozen(chunk), self._shape(chunk))

    def _resume(self, chunk: Chunk, starts: Callable[[], Mapping[int, Start]]) -> Pool:
        found = starts()
        states = [found[row].state for row in chunk.rows]
        frozen = [
            stopped if stopped != GOING else found[row].stopped
            for row, stopped in zip(chunk.rows, _frozen(chunk), strict=True)
        ]
        return pool.init(states, frozen, self._shape(chunk))

    def _logits(
        self, chunk: Chunk, state: Pool, source: sources.Source
    ) -> tuple[np.ndarray, np.ndarray]:
        """Of every student, `[students, examples, classes]`, and the labels."""
        apply_fn: Any = chunk.group.network.apply  # A function can be a key.
        program = self._predict(apply_fn, state.stacked)
        if state.stacked:
            variables = state.each.eval_variables
            found, labels = predict_split(program, variables, source, self._batch_size)
            flat = found.reshape(len(found), -1, found.shape[-1])
            return np.moveaxis(flat, 1, 0), labels
        every = []
        for each in state.each:
            variables = each.eval_variables
            found, labels = predict_split(program, variables, source, self._batch_size)
            every.append(found)
        return np.stack(every), labels

    def _evaluate(self, chunk: Chunk, state: Pool) -> dict[str, float]:
        """The accuracy on held-out examples, by row; none where none are held out."""
        if not len(self._splits.validation):
            return {}
        logits, labels = self._logits(chunk, state, self._splits.validation)
        right = (logits.argmax(axis=-1) == labels).mean(axis=-1)
        found = {
            f"{VALIDATION}{row}": float(x)
            for row, x in zip(chunk.rows, right, strict=True)
        }
        return {f"{VALIDATION}mean": float(np.mean(list(found.values()))), **found}

    def _results(
        self, chunk: Chunk, state: Pool, directory: pathlib.Path
    ) -> dict[str, dict[str, Any]]:
        logits, labels = self._logits(chunk, state, self._splits.test)
        curves = _curves(directory)
        held_out = self._evaluate(chunk, state)
        found: dict[str, dict[str, Any]] = {}
        stopped = [int(x) for x in np.asarray(jax.device_get(state.stopped)).ravel()]
        for row, own, frozen in zip(chunk.rows, logits, stopped, strict=True):
            scores: dict[str, Any] = {
                "test_accuracy": 100 * metrics.accuracy(own, labels),
                "test_nll": metrics.negative_log_likelihood(own, labels),
                "ece": 100 * metrics.expected_calibration_error(own, labels),
            }
            if self._teacher_logits is not None:
                agreed = metrics.agreement(own, self._teacher_logits)
                scores["agreement"] = 100 * agreed
            if held_out:
                scores[BEST_METRIC] = 100 * held_out[f"{VALIDATION}{row}"]
            # What diverged may have no finite ones.
            finite = {k: float(x) for k, x in scores.items() if np.isfinite(x)}
            result = {"stopped": frozen, "curve": curves.get(row, []), **finite}
            found.setdefault(str(row), result)
        return found


def _frozen(chunk: Chunk) -> list[int]:
    """`GOING`, but for those that only fill the devices."""
    rows = chunk.rows
    return [GOING if row not in rows[:i] else 0 for i, row in enumerate(rows)]


def _save_first(training: Training, directory: pathlib.Path) -> None:
    """Begins the checkpoints with the state that students come from elsewhere with."""
    saved = Checkpoints(directory / "checkpoints", keep=training.keep_checkpoints)
    if saved.latest_step is None:
        state = training.init()
        saved.save(int(state.step), state, {})
    saved.close()


def _predict_program(apply_fn: Any, stacked: bool) -> Callable[[Any, Any], np.ndarray]:
    step = make_predict_step(apply_fn)
    if stacked:
        step = jax.vmap(jax.vmap(step, (0, None), 1), (0, None), 1)
    program = jax.jit(step)
    return lambda variables, images: np.asarray(program(variables, images))


def _curves(directory: pathlib.Path) -> dict[int, list[list[float]]]:
    """Epoch and validation accuracy in % of each row, as the training went."""
    found: dict[int, list[list[float]]] = {}
    for entry in metric_writers.read(directory):
        for name, value in entry.items():
            row = name.removeprefix(VALIDATION)
            if row != name and row.isdecimal():
                point = [entry["epoch"], 100 * value]
                found.setdefault(int(row), []).append(point)
    return found


def chunks(
    group: Group, rows: Sequence[int], form: str, most: int, num_devices: int
) -> list[Chunk]:
    """Shares out students over programs of at most `most`; 0 for one program.

    Those of one seed stay together where they fit, as they share batches.
    """
    by_seed: dict[int, list[int]] = {}
    for row in rows:
        by_seed.setdefault(group.rows[row].seed, []).append(row)
    parts: list[list[int]] = [[]]
    for found in by_seed.values():
        size = most or len(rows)
        pieces = [found[i : i + size] for i in range(0, len(found), size)]
        for piece in pieces:
            if most and len(parts[-1]) + len(piece) > most and parts[-1]:
                parts.append([])
            parts[-1] += piece
    filled = [_fill(group, part, form, num_devices) for part in parts]
    return [Chunk(group, tuple(part), form) for part in filled]


def _fill(group: Group, rows: list[int], form: str, num_devices: int) -> list[int]:
    """Repeats the last student until all devices have as many."""
    shape = pool.shape_of([group.rows[row].seed for row in rows])
    if form == "loop" or any(size % num_devices == 0 for size in shape):
        return rows
    return rows + rows[-1:] * (-len(rows) % num_devices)
