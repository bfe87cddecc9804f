"""How a teacher, a student or a baseline is trained, whatever the seed."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from kdjax import features, networks, optimizers, steps
from kdjax.builders._networks import optimizer_fn
from kdjax.builders._objectives import Built
from kdjax.builders._starts import start_from
from kdjax.teacher_cache import Encoding
from kdjax.types import (
    ApplyFn,
    Batch,
    HParams,
    Outputs,
    UserError,
    Values,
    Variables,
)


def no_teacher(variables: Variables, batch: Batch, values: Values) -> Outputs:
    del variables, batch, values
    return Outputs(logits=jnp.zeros((0,)))  # No label term reads it.


def run_teacher(
    apply_fn: ApplyFn, variables: Variables, batch: Batch, values: Values
) -> Outputs:
    del values
    outputs, _ = apply_fn(variables, batch["image"], train=False)
    return outputs


def read_teacher(
    encoding: Encoding,
    variables: Variables,
    batch: Batch,
    values: Values,
) -> Outputs:
    del variables
    return encoding.outputs(batch, values["temperature"])


@dataclasses.dataclass(frozen=True)
class Role:
    """How a role is trained, whatever the seed."""

    name: str
    network: networks.Network
    train: ConfigDict
    built: Built
    teacher_fn: steps.TeacherFn = no_teacher
    teacher: networks.Network | None = None
    start: str | None = None  # A file of weights.

    def init_state(self, seed: int, hparams: HParams) -> steps.TrainState:
        init_rng, rng = jax.random.split(jax.random.key(seed))
        variables = self._init(init_rng, hparams)
        if self.start is not None:
            variables = start_from(self.start, variables, self.network, self.name)
        if self.train.num_microbatches > 1 and "batch_stats" in variables:
            raise UserError(
                f"Expected num_microbatches=1 for the {self.name}, whose BatchNorm "
                "would see parts of the batch and learn something else, got "
                f"{self.train.num_microbatches}: use a smaller batch_size, more "
                "devices, or a model without BatchNorm."
            )
        ema = self.train.ema_decay > 0
        return steps.init_state(variables, self._optimizer_fn, hparams, rng, ema=ema)

    @property
    def _optimizer_fn(self) -> optimizers.OptimizerFn:
        return optimizer_fn(self.train, spare_unreached=self.built.staged)

    def _init(self, rng: jax.Array, hparams: HParams) -> Variables:
        if self.teacher is None:
            return self.network.init(rng)
        teacher = features.describe(self.teacher)
        values = steps.hyperparameters(hparams, jnp.zeros((), jnp.int32))
        return features.init(rng, self.network, teacher, self.built.adapters, values)

    def train_step(self, axis_name: str | None) -> steps.TrainStep:
        return steps.make_train_step(
            self.network.apply,
            self.teacher_fn,
            self.built.objective,
            self._optimizer_fn,
            adapters=self.built.adapters,
            num_microbatches=self.train.num_microbatches,
            axis_name=axis_name,
        )

    def diagnose_step(self, axis_name: str | None) -> Any:
        return steps.make_diagnose_step(
            self.network.apply,
            self.teacher_fn,
            self.built.terms,
            adapters=self.built.adapters,
            num_microbatches=self.train.num_microbatches,
            axis_name=axis_name,
        )
