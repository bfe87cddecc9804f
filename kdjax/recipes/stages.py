"""What all recipes do alike: stages in order, trainings made once, variables kept."""

import dataclasses
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import rich.console

from kdjax import measure, parallel, pretrained, progress, report
from kdjax import teacher_cache as caches
from kdjax.data.sources import Source
from kdjax.networks import Network
from kdjax.report import study
from kdjax.report.drawing import Drawing
from kdjax.training import Training, fit
from kdjax.types import UserError, Variables
from kdjax.workdir import (
    begin,
    finish,
    full_disk_is_a_user_error,
    read_json,
    require,
    write_json,
)

SECONDS = "seconds.json"  # Wall time by stage.
VARIABLES = "variables.safetensors"
REPORT = "report"  # The last stage of every recipe.


@dataclasses.dataclass(frozen=True)
class Runner:
    """A recipe's `run`: its stages in order, and a report of what they left.

    Attributes:
      work: what each stage does, of an experiment and a work directory, by name.
      report: writes the report, of the same and the command that repeats the run.
      optional: likewise, but stages that run only when they are named, at the end.
    """

    work: Mapping[str, Callable[[Any, pathlib.Path], None]]
    report: Callable[[Any, pathlib.Path, str], None]
    optional: Mapping[str, Callable[[Any, pathlib.Path, str], None]] = (
        dataclasses.field(default_factory=dict)
    )

    @property
    def stages(self) -> tuple[str, ...]:
        """The names of the stages that run unless others are named, in their order."""
        return (*self.work, REPORT)

    def __call__(
        self,
        experiment: Any,
        workdir: pathlib.Path,
        stages: Sequence[str] | None = None,
        *,
        command: str = "",
    ) -> None:
        """Runs the stages, in order; whatever is done already is skipped.

        Args:
          experiment: what to run, as the recipe's `build` gives it.
          workdir: receives every result, and what each stage took.
          stages: some of `self.stages` and of `self.optional`; by default the first.
          command: that repeats the run, for the report.

        Raises:
          UserError: if a stage is unknown, the disk is full, or something else outside
            the code is wrong.
          Interrupted: if the process was asked to stop; run again to go on.
        """
        wanted = self.stages if stages is None else stages
        known = (*self.stages, *self.optional)
        unknown = [stage for stage in wanted if stage not in known]
        if unknown:
            raise UserError(
                f"Expected --stages out of {', '.join(known)}, got "
                f"{', '.join(unknown)}."
            )
        workdir.mkdir(parents=True, exist_ok=True)
        with full_disk_is_a_user_error(workdir):
            for stage, work in self.work.items():
                if stage in wanted:
                    started = time.monotonic()
                    work(experiment, workdir)
                    _add_seconds(workdir, stage, time.monotonic() - started)
            last = {REPORT: self.report, **self.optional}
            for stage, write in last.items():
                if stage in wanted and parallel.is_main_process():
                    write(experiment, workdir, command)


def write_cache(
    directory: pathlib.Path,
    manifest: caches.Manifest,
    compute: Callable[[np.ndarray, int], np.ndarray],
    *,
    batch_size: int,
    name: str,
) -> None:
    """Stores a teacher's outputs for every view of every example, with a bar."""
    num_entries = manifest.num_views * manifest.num_examples
    main = parallel.is_main_process()
    with progress.stage(name, num_entries, enabled=main) as bar:
        caches.write(
            directory,
            manifest,
            compute,
            batch_size=batch_size,
            progress=lambda done, total: bar.update(done),
        )


def train(
    training: Training,
    directory: pathlib.Path,
    inputs: Mapping[str, Any],
    keep: Callable[[Any, pathlib.Path], Mapping[str, Any]],
) -> Mapping[str, Any]:
    """The result of a training: made now, or read back where it is done already.

    Args:
      training: what to train.
      directory: receives checkpoints, metrics and result.
      inputs: what the result depends on; JSON-able.
      keep: takes the final state and the directory, writes what is to be kept, and
        returns what `result.json` shall hold besides steps, epochs and seconds.

    Raises:
      UserError: if the directory was begun with other inputs.
    """
    result = begin(directory, inputs)
    if result is not None:
        return result
    started = time.monotonic()
    state, saved = fit(training, directory)
    saved.close()
    result = {
        "steps": training.num_steps,
        "epochs": training.num_steps / training.steps_per_epoch,
        "seconds": time.monotonic() - started,
        **keep(state, directory),
    }
    finish(directory, result)
    return result


def import_model(
    network: Network,
    path: str,
    directory: pathlib.Path,
    inputs: Mapping[str, Any],
    keep: Callable[[Variables, pathlib.Path], Mapping[str, Any]],
) -> Mapping[str, Any]:
    """As `train`, but for a model whose variables are read from a file."""
    result = begin(directory, inputs)
    if result is not None:
        return result
    started = time.monotonic()
    like = jax.eval_shape(network.init, jax.random.key(0))
    kept = keep(pretrained.load(path, like), directory)
    result = {"steps": 0, "seconds": time.monotonic() - started, **kept}
    finish(directory, result)
    return result


def keep_variables(directory: pathlib.Path, variables: Variables) -> None:
    """Writes a model's variables where `load_variables` finds them."""
    if parallel.is_main_process():
        pretrained.save_safetensors(directory / VARIABLES, jax.device_get(variables))


def load_variables(network: Network, directory: pathlib.Path) -> Variables:
    """The variables that a finished training left, on the host."""
    require(directory)
    like = jax.eval_shape(network.init, jax.random.key(0))
    return pretrained.load(directory / VARIABLES, like)


def about(
    workdir: pathlib.Path,
    command: str,
    *,
    num_examples: int,
    config: Mapping[str, Any],
    source: str = "",
    unit: report.Unit = "accuracy",
    test: Source | None = None,
) -> study.About:
    """What a study's report says of how it came about."""
    return study.About(
        name=workdir.name,
        command=command,
        num_examples=num_examples,
        unit=unit,
        source=source,
        config=config,
        versions=measure.versions(),
        hardware=measure.hardware(),
        commit=measure.commit(),
        stage_seconds=read_json(workdir / SECONDS) or {},
        data={} if test is None else {"test": test.fingerprint()},
    )


def write_study(
    made: report.Report, workdir: pathlib.Path, drawings: Sequence[Drawing] = ()
) -> None:
    """Writes a study into the work directory, and prints its table."""
    study.write(made, workdir / "report", drawings)
    study.print_table(made, rich.console.Console())


def _add_seconds(workdir: pathlib.Path, stage: str, seconds: float) -> None:
    """Adds up what a stage took over all runs that came to its end."""
    if parallel.is_main_process():
        total = read_json(workdir / SECONDS) or {}
        total[stage] = total.get(stage, 0.0) + seconds
        write_json(workdir / SECONDS, total)
