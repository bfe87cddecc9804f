"""Federations whose clients share parameters, from a config."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from kdjax import (
    features,
    federation,
    fingerprints,
    losses,
    optimizers,
    schedules,
    steps,
)
from kdjax.builders._checks import plain
from kdjax.builders._networks import optimizer_fn
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
from kdjax.data import partitions, sources
from kdjax.federation import Broadcast, ClientsState, ServerState, Shard, Upload
from kdjax.training import Training, predict_split
from kdjax.types import Batch, HParams, Outputs, UserError, Values, Variables

ROUNDS = ("fedavg", "feddf", "fedgkd")  # Methods whose clients share parameters.
DIVISIONS = {"dirichlet": partitions.dirichlet, "shards": partitions.shards}
_EVAL_IMAGES = 1000  # At once.


class NoBatches:
    """A loader for steps that make batches of their own."""

    steps_per_epoch = 1

    def inputs(self, start_step: int) -> Iterator[Mapping[str, Any]]:
        del start_step
        return itertools.repeat({})

    def batch(
        self, inputs: Any, step: jax.Array, *, index: Any = 0, count: int = 1
    ) -> Batch:
        del inputs, step, index, count
        return {}


@dataclasses.dataclass(frozen=True, eq=False)
class Federation:
    """What is made when it is needed."""

    parts: Parts
    levels: Mapping[str, Any]

    @property
    def config(self) -> ConfigDict:
        return self.parts.config.federated

    @property
    def num_participants(self) -> int:
        return max(1, round(self.config.participation * self.config.num_clients))

    def check(self) -> None:
        """Reads and divides what will be needed: a mistake shows before any round."""
        methods = set(self.config.methods)
        if methods.intersection(ROUNDS):
            _ = self._partitions
        if methods.intersection(("feddf", "fedmd")):
            _ = self.public

    @functools.cached_property
    def _labels(self) -> np.ndarray:
        return sources.labels(self.parts.splits.train)

    @functools.cached_property
    def _partitions(self) -> dict[tuple[str, int], list[np.ndarray]]:
        """The ids of each client, by level and seed."""
        divide = DIVISIONS[self.config.partition]
        return {
            (name, seed): divide(self._labels, self.config.num_clients, level, seed)
            for name, level in self.levels.items()
            for seed in self.parts.config.seeds
        }

    def shards(self, level: str, seed: int) -> Shard:
        """The clients' examples, all padded alike: one program serves all cells."""
        sizes = [len(ids) for parts in self._partitions.values() for ids in parts]
        return shard_of(
            self.parts.splits.train, self._partitions[level, seed], max(sizes)
        )

    def label_counts(self, level: str, seed: int) -> np.ndarray:
        classes = self.parts.splits.train.num_classes
        return partitions.label_counts(
            self._labels, self._partitions[level, seed], classes
        )

    @functools.cached_property
    def public(self) -> sources.Splits:
        section = self.config.public
        splits = sources.load(
            section.name, path=section.path, data_dir=section.data_dir
        )
        shapes = splits.train.image_shape, self.parts.splits.train.image_shape
        if shapes[0] != shapes[1]:
            raise UserError(
                f"Expected federated.public to have images of {shapes[1]}, as the "
                f"private data set has, got {shapes[0]}: choose another."
            )
        return splits

    def round_training(self, method: str, level: str, seed: int) -> Training:
        section = ConfigDict(self.parts.config.teacher.train)
        section.num_epochs = self.config.rounds  # Of schedules: a step is a round.
        hparams = {
            **optimizer_hparams(section, 1),
            **self._built(method).hparams,
            "dropout": schedules.Constant(self.config.dropout),
            **self._server_hparams(),
        }
        pool = {}
        if method == "feddf":
            train = self.public.train
            pool = train.take(np.arange(len(train)))["image"]

        def init() -> ServerState:
            init_rng, rng = jax.random.split(jax.random.key(seed))
            memory = self.config.fedgkd.memory if method == "fedgkd" else 0
            variables = self.parts.teacher.init(init_rng)
            return federation.init_server(variables, rng, memory=memory)

        return self.parts.custom_training(
            key=method,
            name=f"{method}, {level}, seed {seed}",
            train=section,
            seed=seed,
            init=init,
            train_step=self._round_step(method),
            constants={"shards": self.shards(level, seed), "pool": pool},
            hparams=hparams,
            evaluate=lambda state: {"test_accuracy": self.accuracy(state.variables)},
            loader=NoBatches(),
            num_steps=self.config.rounds,
        )

    def _built(self, method: str) -> Built:
        """What a client minimises in a round."""
        built = label_objective(self.parts.config.teacher.train)
        if method != "fedgkd":
            return built

        def objective(
            student: Outputs, teacher: Outputs, batch: Batch, values: Values
        ) -> dict[str, jax.Array]:
            terms = built.objective(student, teacher, batch, values)
            near = losses.fedgkd_loss(
                student.logits,
                teacher.logits[None],
                weights=jnp.ones(1),
                where=batch["mask"],
            )
            loss = terms["loss"] + values["gamma"] * near
            return {**terms, "fedgkd": near, "loss": loss}

        gamma = schedules.Constant(self.config.fedgkd.gamma)
        return built._replace(
            objective=objective, hparams={**built.hparams, "gamma": gamma}
        )

    def _server_hparams(self) -> HParams:
        section = self.config.feddf
        rate = schedules.Cosine(section.learning_rate, 0.0, section.num_steps)
        constants = dict(b1=0.9, b2=0.999, weight_decay=0.0, ema_decay=0.0)
        constants["clip_norm"] = section.clip_norm
        constant = {k: schedules.Constant(x) for k, x in constants.items()}
        named = {"learning_rate": rate, **constant}
        return {federation.SERVER + name: x for name, x in named.items()}

    def local_update(self, method: str) -> federation.LocalUpdate:
        """What a client of a method does in a round."""
        train = self.parts.config.teacher.train
        apply = self.parts.teacher.apply
        teacher = functools.partial(run_teacher, apply)
        role = Role(
            "client",
            self.parts.teacher,
            train,
            self._built(method),
            teacher if method == "fedgkd" else no_teacher,
        )
        return federation.make_local_update(
            role.train_step(None),
            optimizer_fn(train),
            num_epochs=train.num_epochs,
            batch_size=train.batch_size,
        )

    def _round_step(self, method: str) -> Any:
        devices = self.parts.devices

        def place(tree: Any) -> Any:
            return jax.lax.with_sharding_constraint(tree, devices.sharded)

        return federation.make_round_step(
            self.local_update(method),
            self._make_fuse if method == "feddf" else lambda pool: federation.average,
            num_clients=self.config.num_clients,
            num_participants=self.num_participants,
            num_devices=devices.num_devices,
            place=place,
        )

    def _make_fuse(self, pool: Any) -> federation.Fuse:
        section, apply = self.config.feddf, self.parts.teacher.apply

        def objective(
            student: Outputs, clients: Outputs, batch: Batch, values: Values
        ) -> dict[str, jax.Array]:
            del values
            loss = losses.feddf_loss(
                student.logits,
                clients.logits,
                average=section.average,
                weights=clients.features["weights"],
                where=batch["mask"],
            )
            return {"loss": loss}

        optimizer = optimizers.adamw(clip=section.clip_norm > 0)
        step = steps.make_train_step(
            apply, federation.read_clients(apply), objective, optimizer
        )
        return federation.make_distilled_average(
            step,
            optimizer,
            pool,
            num_steps=section.num_steps,
            batch_size=section.batch_size,
        )

    @functools.cached_property
    def _predict(self) -> Callable[[Variables, Any], np.ndarray]:
        predict_step = steps.make_predict_step(self.parts.teacher.apply)
        return self.parts.devices.predict_program(predict_step)

    @functools.cached_property
    def _predict_all(self) -> Callable[[Variables, Any], np.ndarray]:
        predict_step = steps.make_predict_step(self.parts.student.apply)
        every = jax.vmap(predict_step, in_axes=(0, None), out_axes=1)
        return self.parts.devices.predict_program(every)

    def _eval_size(self, count: int = 1) -> int:
        devices = self.parts.devices.num_devices
        return devices * max(1, _EVAL_IMAGES // (count * devices))

    def accuracy(self, variables: Variables) -> float:
        test = self.parts.splits.test
        logits, labels = predict_split(
            self._predict, variables, test, self._eval_size()
        )
        return 100 * float(np.mean(logits.argmax(axis=-1) == labels))

    def personal_training(
        self, level: str, seed: int, teacher: Variables | None
    ) -> Training:
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
            keys = jax.random.split(one.rng, self.config.num_clients)
            clients = jax.vmap(lambda rng: one.replace(rng=rng))(keys)
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
            constants={"shards": self.shards(level, seed), "teacher": teacher or {}},
            hparams=hparams,
            evaluate=lambda state: {},
            loader=NoBatches(),
        )

    def _distillation(self) -> Built:
        """What a client's own model minimises beside its teacher."""
        train = self.parts.config.student.train
        described = map(features.describe, (self.parts.student, self.parts.teacher))
        sides = Sides(*described, Setting(train.batch_size, lambda: self._labels))
        return distill_objective(
            self.parts.config.distill, train, train.num_epochs, sides
        )

    def personal_scores(
        self, state: ClientsState, level: str, seed: int
    ) -> Mapping[str, Any]:
        """Accuracy on all classes alike, and on each client's own mixture of them.

        The latter weighs the test images of each class by the client's share of it.
        """
        counts = self.label_counts(level, seed)
        logits, labels = predict_split(
            self._predict_all,
            state.clients.eval_variables,
            self.parts.splits.test,
            self._eval_size(len(counts)),
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

    def traffic(self) -> dict[str, tuple[int, int]]:
        """Bytes down to and up from one client in a round."""
        variables = jax.eval_shape(self.parts.teacher.init, jax.random.key(0))
        size = jax.ShapeDtypeStruct((), jnp.float32)
        up = federation.num_bytes(Upload(variables, size))
        return {
            method: (
                federation.num_bytes(
                    Broadcast(variables, variables if method == "fedgkd" else {})
                ),
                up,
            )
            for method in ROUNDS
        }

    def inputs(self, method: str, level: str, seed: int) -> Mapping[str, Any]:
        settings = plain(self.config)
        kept = ["num_clients", "participation", "dropout", "rounds"]
        kept += [method] if method in settings else []
        common = self.parts.inputs()
        made = {
            "method": method,
            "partition": fingerprints.fingerprint_tree(self._partitions[level, seed]),
            "federated": {key: settings[key] for key in kept},
            "global": common["teacher"],
        }
        if method == "feddf":
            made["public"] = self.public.train.fingerprint()
        if method in ("personal", "alone"):
            made["own"] = common["baseline"]
        if method == "personal":
            made["distill"] = plain(self.parts.config.distill)
        return made


def shard_of(
    source: sources.Source, parts: Sequence[np.ndarray], capacity: int
) -> Shard:
    """The examples of each client on a row of its own, `[clients, capacity, ...]`."""
    ids, sizes = partitions.pad(parts)
    ids = np.pad(ids, ((0, 0), (0, capacity - ids.shape[1])))
    taken = source.take(ids.reshape(-1))
    examples = {name: x.reshape(*ids.shape, *x.shape[1:]) for name, x in taken.items()}
    return Shard(examples, sizes)
