"""Trainings of any state by any pure step, those of one kind with one program."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
from ml_collections import ConfigDict

from kdjax import parallel, steps
from kdjax.data import loaders, text
from kdjax.training import Training
from kdjax.types import HParams

# Their inputs are the batch of a step, and not the whole data set.
_BY_BATCH = (loaders.StreamingLoader, text.TextLoader)


@dataclasses.dataclass(frozen=True)
class Trainings:
    """Makes trainings.

    Attributes:
      config: when to log, to evaluate and to save.
      devices: where they run.
      programs: those compiled so far, by key.
    """

    config: ConfigDict
    devices: parallel.Parallel
    programs: dict[str, Any] = dataclasses.field(default_factory=dict)

    def make(
        self,
        *,
        key: str,
        name: str,
        train: ConfigDict,
        init: Callable[[], Any],
        train_step: Callable[..., tuple[Any, steps.Metrics]],
        constants: Any,
        hparams: HParams,
        evaluate: Callable[[Any], dict[str, float]],
        loader: loaders.Loader,
        num_steps: int | None = None,
        diagnose_step: Callable[..., steps.Metrics] | None = None,
    ) -> Training:
        """A training of any state, by any pure step.

        Args:
          key: names the compiled program, which trainings of the same key share.
          name: for messages.
          train: for how many epochs.
          init: makes the state; it has a `step`.
          train_step: maps state, `constants`, batch and `hparams` to a new state and
            metrics, each a scalar; `'loss'` is one of them.
          constants: what every step reads and none changes.
          hparams: the schedules.
          evaluate: from a state to further metrics.
          loader: gives the batches.
          num_steps: by default as many as the epochs of `train` have.
          diagnose_step: maps the same as `train_step` to metrics alone; it runs every
            `config.diagnose_every_steps`.
        """
        config = self.config
        resident = not isinstance(loader, _BY_BATCH)
        if key not in self.programs:
            self.programs[key] = self.devices.train_program(
                train_step, loader.batch, resident=resident
            )
        diagnose = None
        if diagnose_step is not None and config.diagnose_every_steps:
            diagnose = self.programs.setdefault(
                f"diagnose {key}",
                self.devices.diagnose_program(
                    diagnose_step, loader.batch, resident=resident
                ),
            )
        # Convolutions inside a loop lose their threads on CPU.
        one_by_one = not resident or jax.default_backend() == "cpu"
        return Training(
            name=name,
            init=init,
            programs=self.programs[key],
            loader=loader,
            hparams=hparams,
            constants=constants,
            num_steps=num_steps or train.num_epochs * loader.steps_per_epoch,
            steps_per_epoch=loader.steps_per_epoch,
            evaluate=evaluate,
            parallel=self.devices,
            steps_per_dispatch=1 if one_by_one else config.steps_per_dispatch,
            log_every_steps=config.log_every_steps,
            eval_every_epochs=config.eval_every_epochs,
            checkpoint_every_steps=config.checkpoint_every_steps,
            keep_checkpoints=config.keep_checkpoints,
            diagnose=diagnose,
            diagnose_every_steps=config.diagnose_every_steps,
        )
