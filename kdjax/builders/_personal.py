"""Clients' own models, taught by a global one, from a config."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kdjax import features, federation, steps
from kdjax.builders._federation import Federation, NoBatches
from kdjax.builders._objectives import (
    Built,
    Sides,
    distill_objective,
    label_objective,
    optimizer_hparams,
)
from kdjax.builders._parts import Parts
from kdjax.builders._roles import Role, no_teacher, run_teacher
from kdjax.builders._terms import Setting
from kdjax.federation import ClientsState
from kdjax.training import Training, predict_split
from kdjax.types import Variables


@dataclasses.dataclass(frozen=True, eq=False)
class Personal:
    """What is made when it is needed."""

    federation: Federation

    @property
    def parts(self) -> Parts:
        return self.federation.parts

    @functools.cached_property
    def _predict_all(self) -> Callable[[Variables, Any], np.ndarray]:
        predict_step = steps.make_predict_step(self.parts.student.apply)
        every = jax.vmap(predict_step, in_axes=(0, None), out_axes=1)
        return self.parts.devices.predict_program(every)

    def training(self, level: str, seed: int, teacher: Variables | None) -> Training:
        train = self.parts.config.student.train
        built = label_objective(train)
        teacher_fn, name = no_teacher, "alone"
        if teacher is not None:
            built = self._distillation()
            teacher_fn = functools.partial(run_teacher, self.parts.teacher.apply)
            name = "personal"
        role = Role("student", self.parts.student, train, built, teacher_fn)
        hparams = {**optimizer_hparams(train, 1), **built.hparams}

        def init() -> ClientsState:
            # All begin alike, as they would from one broadcast.
            one = role.init_state(seed, hparams)
            keys = jax.random.split(one.rng, self.federation.config.num_clients)
            clients = jax.vmap(lambda rng: dataclasses.replace(one, rng=rng))(keys)
            return ClientsState(jnp.zeros((), jnp.int32), clients)

        return self.parts.custom_training(
            key=name,
            name=f"{name}, {level}, seed {seed}",
            train=train,
            seed=seed,
            init=init,
            train_step=federation.make_local_step(
                role.train_step(None), batch_size=train.batch_size
            ),
            constants={
                "shards": self.federation.shards(level, seed),
                "teacher": teacher or {},
            },
            hparams=hparams,
            evaluate=lambda state: {},
            loader=NoBatches(),
        )

    def _distillation(self) -> Built:
        """What a client's own model minimises beside its teacher."""
        train = self.parts.config.student.train
        sides = Sides(
            features.describe(self.parts.student),
            features.describe(self.parts.teacher),
            Setting(train.batch_size, lambda: self.federation.labels),
        )
        return distill_objective(
            self.parts.config.distill, train, train.num_epochs, sides
        )

    def scores(self, state: ClientsState, level: str, seed: int) -> Mapping[str, Any]:
        """Accuracy on all classes alike, and on each client's own mixture of them.

        The latter weighs the test images of each class by the client's share of it.
        """
        counts = self.federation.label_counts(level, seed)
        logits, labels = predict_split(
            self._predict_all,
            state.clients.eval_variables,
            self.parts.splits.test,
            self.federation.eval_size(len(counts)),
        )
        right = logits.argmax(axis=-1) == labels[:, None]  # [N, clients]
        classes = np.arange(counts.shape[1])
        by_class = [right[labels == c].mean(axis=0) for c in classes]
        shares = counts / counts.sum(axis=1, keepdims=True)
        own = np.sum(np.stack(by_class, axis=1) * shares, axis=1)
        return {
            "own": 100 * float(own.mean()),
            "everybody": 100 * float(right.mean()),
            "own_by_client": (100 * own).tolist(),
        }
