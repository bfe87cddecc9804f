"""What servers make of the uploads of a round."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from kdjax import losses, steps
from kdjax.federation.messages import Upload
from kdjax.optimizers import OptimizerFn
from kdjax.steps import TrainStep
from kdjax.types import ApplyFn, Batch, HParams, Outputs, Values, Variables

Fuse = Callable[[Upload, jax.Array, HParams, jax.Array], Variables]
"""Maps stacked uploads, weights `[clients]`, schedules and a key to a new model."""


def average(
    uploads: Upload, weights: jax.Array, hparams: HParams, rng: jax.Array
) -> Variables:
    """Federated averaging, McMahan et al. 2017."""
    del hparams, rng
    return losses.federated_average(uploads.variables, weights=weights)


def make_distilled_average(
    train_step: TrainStep,
    optimizer_fn: OptimizerFn,
    pool: Any,
    *,
    num_steps: int,
    batch_size: int,
) -> Fuse:
    """Builds FedDF's fusion: the average, then trained on the clients' predictions.

    The ensemble of the round's clients teaches, on images without labels.

    Args:
      train_step: of the student; its teacher is that of `read_clients`.
      optimizer_fn: that of `train_step`.
      pool: images without labels, `[N, H, W, C]`.
      num_steps: of the server in each round.
      batch_size: of the server.

    References:
      Lin et al., `Ensemble Distillation for Robust Model Fusion in Federated Learning
      <https://arxiv.org/abs/2006.07242>`_, NeurIPS 2020, algorithm 1.
    """

    def fuse(uploads, weights, hparams, rng):
        rng, order_rng = jax.random.split(rng)
        start = average(uploads, weights, hparams, rng)
        teachers = {"clients": uploads.variables, "weights": weights}

        def one_step(state, index):
            key = jax.random.fold_in(order_rng, index)
            ids = jax.random.randint(key, (batch_size,), 0, len(pool))
            batch = {
                "image": pool[ids],
                "label": jnp.zeros(batch_size, jnp.int32),  # Nobody knows them.
                "mask": jnp.ones(batch_size, bool),
            }
            state, _ = train_step(state, teachers, batch, hparams)
            return state, None

        state = steps.init_state(start, optimizer_fn, hparams, rng)
        state, _ = jax.lax.scan(one_step, state, jnp.arange(num_steps))
        return state.eval_variables

    return fuse


def read_clients(apply_fn: ApplyFn) -> steps.TeacherFn:
    """The clients as one teacher: logits `[clients, B, num_classes]`, and weights.

    Its variables are `clients`, stacked, and `weights`; the latter come back among
    the features.
    """

    def teacher_fn(variables: Variables, batch: Batch, values: Values) -> Outputs:
        del values
        logits = jax.vmap(
            lambda client: apply_fn(client, batch["image"], train=False)[0].logits
        )(variables["clients"])
        return Outputs(logits, {"weights": variables["weights"]})

    return teacher_fn
