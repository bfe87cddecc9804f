"""The training loop: a compiled step, and everything that happens between steps."""

import contextlib
import dataclasses
import itertools
import pathlib
import signal
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from kdjax import metrics, parallel
from kdjax.checkpoints import BEST_METRIC, Checkpoints
from kdjax.data import loaders
from kdjax.data.sources import Source
from kdjax.metric_writers import MetricWriter
from kdjax.parallel import Parallel, TrainProgram
from kdjax.progress import stage
from kdjax.steps import TrainState
from kdjax.types import HParams, UserError, Variables


class Interrupted(Exception):
    """The process was asked to stop; the state is saved."""


@dataclasses.dataclass(frozen=True)
class Training:
    """Everything that `fit` needs to train one model, or several in one state.

    Attributes:
      name: what is trained, for messages: `'student, seed 0'`.
      init: makes the state before the first step: any pytree.
      programs: from a number of steps to the program that runs them in one dispatch;
        of its metrics the one called `'loss'` must stay finite.
      loader: gives the inputs of each step.
      hparams: the schedules.
      constants: what every step reads and none changes: the teacher's variables.
      num_steps: how long to train.
      steps_per_epoch: of the loader.
      evaluate: from a state to further metrics, now and then; the checkpoint with the
        highest `'validation_accuracy'` among them is kept as the best.
      parallel: devices.
      steps_per_dispatch: the most steps in one program.
      log_every_steps: between metric rows.
      eval_every_epochs: between evaluations; each saves a checkpoint.
      checkpoint_every_steps: between further checkpoints; 0 for none.
      keep_checkpoints: how many of the latest stay, beside the best.
      diagnose: a program, from state, constants, schedules and the inputs of the next
        step to further metrics of it; None for none.
      diagnose_every_steps: between two of these, from step 0 on.
    """

    name: str
    init: Callable[[], Any]
    programs: Callable[[int], TrainProgram]
    loader: loaders.Loader
    hparams: HParams
    constants: Any
    num_steps: int
    steps_per_epoch: int
    evaluate: Callable[[Any], dict[str, float]]
    parallel: Parallel
    steps_per_dispatch: int
    log_every_steps: int
    eval_every_epochs: int
    checkpoint_every_steps: int
    keep_checkpoints: int
    diagnose: Callable[[Any, Any, HParams, Any], Mapping[str, Any]] | None = None
    diagnose_every_steps: int = 0

    def is_diagnosed(self, step: int) -> bool:
        return self.diagnose is not None and step % self.diagnose_every_steps == 0

    def is_eval_step(self, step: int) -> bool:
        return step == self.num_steps or (
            step % (self.steps_per_epoch * self.eval_every_epochs) == 0
        )

    def is_checkpoint_step(self, step: int) -> bool:
        every = self.checkpoint_every_steps
        return self.is_eval_step(step) or (every > 0 and step % every == 0)

    def is_log_step(self, step: int) -> bool:
        return self.is_eval_step(step) or step % self.log_every_steps == 0

    def next_stop(self, step: int) -> int:
        """The first step after `step` at which the loop has something to do."""
        last = min(step + self.steps_per_dispatch, self.num_steps)
        for candidate in range(step + 1, last):
            if self.is_log_step(candidate) or self.is_checkpoint_step(candidate):
                return candidate
            if candidate % self.steps_per_epoch == 0 or self.is_diagnosed(candidate):
                return candidate  # A loader's inputs hold for one epoch.
        return last


def fit(training: Training, directory: pathlib.Path) -> tuple[Any, Checkpoints]:
    """Trains to the end, from the newest checkpoint in `directory` if there is one.

    The step number is the whole state of the data, so a resumed training equals an
    uninterrupted one to the last bit.

    Args:
      training: what to train.
      directory: receives `checkpoints/`, `metrics.jsonl` and TensorBoard files.

    Returns:
      The final state, and the open checkpoints, for the best one; close them.

    Raises:
      Interrupted: on SIGTERM or SIGINT, after the state is saved.
      UserError: if the loss is not finite, or the newest checkpoint is damaged.
    """
    checkpoints = Checkpoints(directory / "checkpoints", keep=training.keep_checkpoints)
    try:
        state = _run(training, directory, checkpoints)
        checkpoints.wait()
    except BaseException:
        # Whoever tries again in this process must not meet a save under way.
        checkpoints.close()
        raise
    return state, checkpoints


def _run(training: Training, directory: pathlib.Path, checkpoints: Checkpoints) -> Any:
    """The steps that are left; returns the final state."""
    state, start = _restore_or_init(training, checkpoints)
    constants, hparams = training.parallel.replicate(
        (training.constants, training.hparams)
    )
    main = parallel.is_main_process()
    guard = _FiniteGuard(training.name, checkpoints)
    with (
        _stop_signals() as stop_requested,
        MetricWriter(directory, start_step=start, enabled=main) as writer,
        stage(training.name, training.num_steps, start, enabled=main) as bar,
    ):
        step, inputs = start, _Inputs(training.loader.inputs(start))
        while step < training.num_steps:
            if training.diagnose is not None and training.is_diagnosed(step):
                found = training.diagnose(state, constants, hparams, inputs.peek())
                epoch = {"epoch": step / training.steps_per_epoch}
                writer.write(step, epoch | {k: float(x) for k, x in found.items()})
            stop = training.next_stop(step)
            state, rows = training.programs(stop - step)(
                state, constants, hparams, inputs.skip_to_last_of(stop - step)
            )
            guard.watch(step, rows)
            step, row = stop, {}
            if training.is_log_step(step):
                row = guard.last_row() | {"epoch": step / training.steps_per_epoch}
            if training.is_eval_step(step):
                row |= training.evaluate(state)
            if row:
                writer.write(step, row)
                bar.update(step, row)
            interrupted = stop_requested(step)
            if interrupted or training.is_checkpoint_step(step):
                guard.last_row()  # A state after a NaN is not worth keeping.
                checkpoints.save(step, state, _scores(row))
            if interrupted and step < training.num_steps:
                checkpoints.wait()
                raise Interrupted(f"{training.name} is saved at step {step}.")
    return state


def split_evaluator(
    predict: Callable[[Variables, Any], np.ndarray],
    validation: Source,
    batch_size: int,
) -> Callable[[TrainState], dict[str, float]]:
    """Metrics on the validation split; none where it is empty."""

    def evaluate(state: TrainState) -> dict[str, float]:
        if not len(validation):
            return {}
        variables = state.eval_variables
        return scores(*predict_split(predict, variables, validation, batch_size))

    return evaluate


def scores(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """What a row of metrics says of the validation split."""
    return {
        BEST_METRIC: float(metrics.accuracy(logits, labels)),
        "validation_nll": float(metrics.negative_log_likelihood(logits, labels)),
    }


def predict_split(
    predict: Callable[[Variables, Any], np.ndarray],
    variables: Variables,
    source: Source,
    batch_size: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Logits `[N, num_classes]` and labels `[N]` of a split, in its order."""
    logits, labels = [], []
    for batch in loaders.eval_batches(source, batch_size):
        mask = batch["mask"]
        logits.append(predict(variables, batch["image"])[mask])
        labels.append(batch["label"][mask])
    return np.concatenate(logits), np.concatenate(labels)


class _FiniteGuard:
    """Stops a training whose loss is no longer finite.

    Looks at the metrics of a dispatch only when the next one is under way, so that
    the device never waits for the host.
    """

    def __init__(self, name: str, checkpoints: Checkpoints):
        self._name = name
        self._checkpoints = checkpoints
        self._pending: tuple[int, Mapping[str, Any]] | None = None

    def watch(self, start: int, rows: Mapping[str, Any]) -> None:
        """Takes the metrics of the steps from `start`, and checks those before."""
        previous, self._pending = self._pending, (start, rows)
        if previous is not None:
            self._check(*previous)

    def last_row(self) -> dict[str, float]:
        """The newest step's metrics, checked."""
        assert self._pending is not None
        start, rows = self._pending
        self._check(start, rows)
        return {name: float(values[-1]) for name, values in rows.items()}

    def _check(self, start: int, rows: Mapping[str, Any]) -> None:
        finite = np.isfinite(rows["loss"])
        if finite.all():
            return
        index = int(np.argmin(finite))
        broken = [
            f"{name}={float(values[index])}"
            for name, values in rows.items()
            if not np.isfinite(values[index])
        ]
        self._checkpoints.wait()
        saved = self._checkpoints.latest_step
        keep = "none was saved" if saved is None else f"step {saved} is kept"
        raise UserError(
            f"Expected a finite loss, got {', '.join(broken)} at step {start + index} "
            f"of {self._name} (last good checkpoint: {keep} in "
            f"{self._checkpoints.directory}): lower the learning rate, clip the "
            "gradient (optimizer.clip_norm), or look at the term named."
        )


def _restore_or_init(training: Training, checkpoints: Checkpoints) -> tuple[Any, int]:
    state, step = training.init(), checkpoints.latest_step
    if step is None:
        return training.parallel.replicate(state), 0
    return training.parallel.replicate(checkpoints.restore(step, state)), step


class _Inputs:
    """A loader's inputs, of which the next may be seen before it is taken."""

    def __init__(self, inputs: Iterator[Any]):
        self._inputs = inputs
        self._seen: list[Any] = []

    def peek(self) -> Any:
        """The inputs of the next step."""
        if not self._seen:
            self._seen.append(next(self._inputs))
        return self._seen[0]

    def skip_to_last_of(self, count: int) -> Any:
        """The inputs of the last of the next `count` steps."""
        seen, self._seen = self._seen, []
        return next(
            itertools.islice(itertools.chain(seen, self._inputs), count - 1, None)
        )


def _scores(row: Mapping[str, float]) -> dict[str, float]:
    return {name: row[name] for name in (BEST_METRIC,) if name in row}


@contextlib.contextmanager
def _stop_signals() -> Iterator[Callable[[int], bool]]:
    """Turns SIGTERM and SIGINT into a question: were we asked to stop?"""
    received = []
    handlers = {
        number: signal.signal(number, lambda *_: received.append(True))
        for number in (signal.SIGTERM, signal.SIGINT)
    }

    def stop_requested(step: int) -> bool:
        # Every process has to stop at the same step, whichever got the signal.
        if jax.process_count() > 1:
            mine = np.asarray([bool(received)])
            return bool(multihost_utils.process_allgather(mine).any())
        return bool(received)

    try:
        yield stop_requested
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
