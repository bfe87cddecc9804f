"""What all recipes do alike: stages in order, trainings made once, variables kept."""

import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import rich.console

from kdjax import measure, parallel, pretrained, report
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


def run_stages(
    stages: Mapping[str, Callable[[], None]],
    wanted: Sequence[str],
    workdir: pathlib.Path,
) -> None:
    """Runs the wanted stages, in the order of `stages`, and adds up what they take.

    Raises:
      UserError: if a stage is unknown, or the disk is full.
    """
    unknown = [stage for stage in wanted if stage not in stages]
    if unknown:
        raise UserError(
            f"Expected --stages out of {', '.join(stages)}, got {', '.join(unknown)}."
        )
    workdir.mkdir(parents=True, exist_ok=True)
    with full_disk_is_a_user_error(workdir):
        for stage, run in stages.items():
            if stage in wanted:
                started = time.monotonic()
                run()
                if stage != "report":  # It is about the others.
                    _add_seconds(workdir, stage, time.monotonic() - started)


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


def keep_variables(directory: pathlib.Path, variables: Variables) -> None:
    """Writes a model's variables where `load_variables` finds them."""
    if parallel.is_main_process():
        pretrained.save_safetensors(directory / VARIABLES, jax.device_get(variables))


def load_variables(network: Network, directory: pathlib.Path) -> Variables:
    """The variables that a finished training left, on the host."""
    require(directory)
    like = network.init(jax.random.key(0))
    return pretrained.load(directory / VARIABLES, like)


def about(
    workdir: pathlib.Path,
    command: str,
    *,
    num_examples: int,
    config: Mapping[str, Any],
    source: str = "",
    unit: report.Unit = "accuracy",
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
    )


def write_study(
    made: report.Report, workdir: pathlib.Path, drawings: Sequence[Drawing] = ()
) -> None:
    """Writes a study into the work directory, and prints its table."""
    if parallel.is_main_process():
        study.write(made, workdir / "report", drawings)
        study.print_table(made, rich.console.Console())


def _add_seconds(workdir: pathlib.Path, stage: str, seconds: float) -> None:
    """Adds up what a stage took over all runs that came to its end."""
    if parallel.is_main_process():
        total = read_json(workdir / SECONDS) or {}
        total[stage] = total.get(stage, 0.0) + seconds
        write_json(workdir / SECONDS, total)
