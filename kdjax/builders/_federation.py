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
    label_objective,
    optimizer_hparams,
)
from kdjax.builders._parts import Parts
from kdjax.builders._roles import Role, no_teacher, run_teacher
from kdjax.data import partitions, sources
from kdjax.federation import Broadcast, ServerState, Shard, Upload
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
    def labels(self) -> np.ndarray:
        return sources.labels(self.parts.splits.train)

    @functools.cached_property
    def _partitions(self) -> dict[tuple[str, int], list[np.ndarray]]:
        """The ids of each client, by level and seed."""
        divide = DIVISIONS[self.config.partition]
        return {
            (name, seed): divide(self.labels, self.config.num_clients, level, seed)
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
            self.labels, self._partitions[level, seed], classes
        )

    @functools.cached_property
    def public(self) -> sources.Splits:
        section = self.config.public
        if section.name == "validation":
            return self._held_out
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

    @property
    def _held_out(self) -> sources.Splits:
        """What no client has, of the private data set, as a public one."""
        private = self.parts.splits
        if self.config.public.path is not None:
            raise UserError(
                "Expected federated.public.name='validation' without a path, as its "
                f"images are of the private data set, got {self.config.public.path}."
            )
        if not len(private.validation):
            raise UserError(
                "Expected dataset.validation to set examples aside for "
                "federated.public.name='validation', got 0: say how many."
            )
        return dataclasses.replace(private, train=private.validation)

    def round_training(self, method: str, level: str, seed: int) -> Training:
        train = self.parts.config.teacher.train
        return self.parts.custom_training(
            key=method,
            name=f"{method}, {level}, seed {seed}",
            train=train,
            seed=seed,
            init=functools.partial(self.server, method, seed),
            train_step=self._round_step(method),
            constants={"shards": self.shards(level, seed), "pool": self._pool(method)},
            hparams=self._hparams(method),
            evaluate=lambda state: {"test_accuracy": self.accuracy(state.variables)},
            loader=NoBatches(),
            num_steps=self.config.rounds,
        )

    def server(self, method: str, seed: int) -> ServerState:
        """Before the first round."""
        init_rng, rng = jax.random.split(jax.random.key(seed))
        memory = self.config.fedgkd.memory if method == "fedgkd" else 0
        variables = self.parts.teacher.init(init_rng)
        return federation.init_server(variables, rng, memory=memory)

    def client(
        self, method: str, level: str, seed: int, client: int
    ) -> Callable[[Broadcast, int], Upload]:
        """What one client by itself, with its own examples alone, does in a round."""
        shard = jax.tree.map(lambda x: x[client], self.shards(level, seed))
        local_update, hparams = self.local_update(method), self._hparams(method)
        rng = self.server(method, seed).rng
        program = jax.jit(functools.partial(federation.work, local_update))

        def work(message: Broadcast, round_index: int) -> Upload:
            arguments = client, shard, rng, round_index, hparams
            upload, _ = program(message, *arguments)
            return upload

        return work

    def serve(
        self, method: str
    ) -> Callable[[ServerState, Upload, np.ndarray], ServerState]:
        """The server by itself: what it does with the uploads of a round."""
        fuse = self._make_fuse(method)(self._pool(method))
        program = jax.jit(functools.partial(federation.serve, fuse))
        return lambda *arguments: program(*arguments, self._hparams(method))

    def _pool(self, method: str) -> Any:
        if method != "feddf":
            return ()
        train = self.public.train
        return train.take(np.arange(len(train)))["image"]

    def _hparams(self, method: str) -> HParams:
        """Schedules of the rounds, and the server's, of its steps in a round."""
        train = ConfigDict(self.parts.config.teacher.train)
        train.num_epochs = self.config.rounds  # A step is a round.
        return {
            **optimizer_hparams(train, 1),
            **self._built(method).hparams,
            "dropout": schedules.Constant(self.config.dropout),
            **self._server_hparams(),
        }

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
        named: HParams = {"learning_rate": rate, **constant}
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
            self._make_fuse(method),
            num_clients=self.config.num_clients,
            num_participants=self.num_participants,
            num_devices=devices.num_devices,
            place=place,
        )

    def _make_fuse(self, method: str) -> Callable[[Any], federation.Fuse]:
        """From the pool of images without labels to what the server does."""
        return self._distil if method == "feddf" else lambda pool: federation.average

    def _distil(self, pool: Any) -> federation.Fuse:
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
            jnp.asarray(pool),
            num_steps=section.num_steps,
            batch_size=section.batch_size,
        )

    @functools.cached_property
    def _predict(self) -> Callable[[Variables, Any], np.ndarray]:
        predict_step = steps.make_predict_step(self.parts.teacher.apply)
        return self.parts.devices.predict_program(predict_step)

    def eval_size(self, count: int = 1) -> int:
        """How many images `count` models see at once."""
        devices = self.parts.devices.num_devices
        return devices * max(1, _EVAL_IMAGES // (count * devices))

    def accuracy(self, variables: Variables) -> float:
        test = self.parts.splits.test
        logits, labels = predict_split(self._predict, variables, test, self.eval_size())
        return 100 * float(np.mean(logits.argmax(axis=-1) == labels))

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
