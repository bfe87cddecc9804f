"""FedMD from a config: clients of different architectures, and what they agree on."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from kdjax import federation, losses, members, networks, schedules, steps
from kdjax.builders._checks import plain
from kdjax.builders._federation import NoBatches, shard_of
from kdjax.builders._networks import network, optimizer_fn, with_model
from kdjax.builders._objectives import label_objective, optimizer_hparams
from kdjax.builders._parts import Parts
from kdjax.builders._roles import no_teacher
from kdjax.data import partitions, sources
from kdjax.federation import Epochs, Group, PeersState, PublicLogits, Shard
from kdjax.training import Training, predict_split
from kdjax.types import Batch, Outputs, UserError, Values, Variables

ARMS = ("solo", "fedmd", "pooled")
_EVAL_IMAGES = 240  # At once, by every client.


@dataclasses.dataclass(frozen=True)
class FedMD:
    """Clients of several architectures, ready to run.

    An arm is `'fedmd'`; `'solo'`, where each client is alone with its examples; or
    `'pooled'`, where each is alone with the examples of all.

    Attributes:
      networks: by name of the architecture.
      clients: their numbers, by name of the architecture.
      num_classes: public ones, then private ones.
      num_examples: of the test split.
      start: makes the training before the rounds, of an arm and a seed.
      rounds: makes that of the rounds, from what the former left `by_name`.
      by_name: the clients' variables, stacked, by architecture.
      shapes: of these.
      scores: of the clients' models on the private classes of the test split, in %.
      bytes_each_way: that one client sends, and gets, in a round.
      accept_gain: the least mean gain over clients alone, or `None`.
      label_counts: private examples by client and class, of a seed.
      inputs: by arm and seed what the result depends on; JSON-able.
    """

    networks: Mapping[str, networks.Network]
    clients: Mapping[str, tuple[int, ...]]
    num_classes: int
    num_examples: int
    start: Callable[[str, int], Training]
    rounds: Callable[[str, int, Mapping[str, Variables]], Training]
    by_name: Callable[[PeersState], dict[str, Variables]]
    shapes: Callable[[], Mapping[str, Variables]]
    scores: Callable[[PeersState], Mapping[str, Any]]
    bytes_each_way: int
    accept_gain: float | None
    label_counts: Callable[[int], np.ndarray]
    inputs: Callable[[str, int], Mapping[str, Any]]


def build_fedmd(parts: Parts, public: sources.Splits) -> FedMD:
    """Reads `federated.fedmd`, and `student.train` as how clients learn labels."""
    made = _Peers(parts, public)
    classes, num_classes = made.config.classes, parts.splits.train.num_classes
    if max(classes) >= num_classes:
        raise UserError(
            f"Expected federated.fedmd.classes below {num_classes}, as many as the "
            f"data set has, got {tuple(classes)}."
        )
    num_public = made.config.num_public
    agreed = jax.ShapeDtypeStruct((num_public, made.num_classes), jnp.float32)
    return FedMD(
        networks=made.networks,
        clients=made.clients,
        num_classes=made.num_classes,
        num_examples=len(made.test),
        start=made.start,
        rounds=made.rounds,
        by_name=made.by_name,
        shapes=made.shapes,
        scores=made.scores,
        bytes_each_way=federation.num_bytes(PublicLogits(agreed)),
        accept_gain=made.config.accept_gain,
        label_counts=made.label_counts,
        inputs=made.inputs,
    )


@dataclasses.dataclass(frozen=True, eq=False)
class _Peers:
    """What is made when it is needed."""

    parts: Parts
    public: sources.Splits

    @property
    def config(self) -> ConfigDict:
        return self.parts.config.federated.fedmd

    @property
    def num_classes(self) -> int:
        return self.public.train.num_classes + len(self.config.classes)

    @functools.cached_property
    def clients(self) -> dict[str, tuple[int, ...]]:
        first, clients = 0, {}
        for name, model in self.config.models.items():
            clients[name] = tuple(range(first, first + model.clients))
            first += model.clients
        return clients

    @functools.cached_property
    def num_clients(self) -> int:
        return sum(map(len, self.clients.values()))

    @functools.cached_property
    def networks(self) -> dict[str, networks.Network]:
        nets = {}
        for name, model in self.config.models.items():
            model = {k: x for k, x in model.items() if k != "clients"}
            section = with_model(self.parts.config.student, model)
            nets[name] = network(section, self._public, self.parts.devices)
        return nets

    @functools.cached_property
    def _public(self) -> sources.ArraySource:
        """The public train split, in a set that has the private classes too."""
        names = self.parts.splits.train.class_names
        return self._with_classes(
            self.public.train,
            np.arange(len(self.public.train)),
            sources.labels(self.public.train),
            (*self.public.train.class_names, *(names[c] for c in self.config.classes)),
        )

    @functools.cached_property
    def _private(self) -> sources.ArraySource:
        return self._renumbered(self.parts.splits.train)

    @functools.cached_property
    def test(self) -> sources.ArraySource:
        return self._renumbered(self.parts.splits.test)

    def _renumbered(self, source: sources.Source) -> sources.ArraySource:
        """The examples of the private classes, numbered after the public ones."""
        labels, classes = sources.labels(source), list(self.config.classes)
        ids = np.flatnonzero(np.isin(labels, classes))
        numbers = np.full(source.num_classes, -1)
        numbers[classes] = self.public.train.num_classes + np.arange(len(classes))
        return self._with_classes(
            source, ids, numbers[labels[ids]], self._public.class_names
        )

    @staticmethod
    def _with_classes(source, ids, labels, class_names) -> sources.ArraySource:
        images = source.take(ids)["image"]
        return sources.ArraySource(
            images, labels, name=source.name, class_names=class_names
        )

    def _partition(self, seed: int) -> list[np.ndarray]:
        private = range(self.public.train.num_classes, self.num_classes)
        return partitions.few(
            self._private.labels,
            self.num_clients,
            private,
            classes_per_client=self.config.classes_per_client,
            count=self.config.examples_per_class,
            seed=seed,
        )

    def label_counts(self, seed: int) -> np.ndarray:
        counts = partitions.label_counts(
            self._private.labels, self._partition(seed), self.num_classes
        )
        return counts[:, self.public.train.num_classes :]

    def _constants(self, arm: str, seed: int) -> dict[str, Any]:
        own = self._partition(seed)
        everything = np.concatenate(own)
        held = [everything] * len(own) if arm == "pooled" else own
        # Padded alike, so that one program serves every arm.
        shards = shard_of(self._private, held, len(everything))
        taken = self._public.take(np.arange(len(self._public)))
        return {
            "shards": tuple(
                jax.tree.map(lambda x, c=clients: x[list(c)], shards)
                for clients in self.clients.values()
            ),
            "public": Shard(taken, np.int32(len(self._public))),
        }

    @functools.cached_property
    def _groups(self) -> tuple[Group, ...]:
        train = self.parts.config.student.train
        return tuple(
            Group(
                clients=self.clients[name],
                apply_fn=net.apply,
                label_step=steps.make_train_step(
                    net.apply,
                    no_teacher,
                    label_objective(train).objective,
                    optimizer_fn(train),
                ),
                digest_step=steps.make_train_step(
                    net.apply, _read_consensus, _digest, optimizer_fn(train)
                ),
                optimizer_fn=optimizer_fn(train),
            )
            for name, net in self.networks.items()
        )

    def start(self, arm: str, seed: int) -> Training:
        train = self.parts.config.student.train
        public = Epochs(self.config.public_epochs, self.config.digest.batch_size)
        private = Epochs(train.num_epochs, train.batch_size)

        def init() -> PeersState:
            init_rng, rng = jax.random.split(jax.random.key(seed))
            groups = tuple(self._init(init_rng).values())
            return PeersState(jnp.zeros((), jnp.int32), groups, rng)

        step = federation.make_start_step(self._groups, public, private)
        kind = "pooled" if arm == "pooled" else "start"
        return self._training(
            "fedmd start", kind, arm, seed, init, step, public.num_epochs + 1
        )

    def rounds(self, arm: str, seed: int, begun: Mapping[str, Variables]) -> Training:
        def init() -> PeersState:
            rng = jax.random.fold_in(jax.random.key(seed), 1)
            groups = tuple(begun[name] for name in self.networks)
            return PeersState(jnp.zeros((), jnp.int32), groups, rng)

        step = federation.make_consensus_step(
            self._groups,
            Epochs(**self.config.digest.to_dict()),
            Epochs(**self.config.revisit.to_dict()),
            num_public=self.config.num_public,
            shares=arm == "fedmd",
        )
        key = "fedmd" if arm == "fedmd" else "fedmd alone"
        rounds = self.parts.config.federated.rounds
        return self._training(key, arm, arm, seed, init, step, rounds)

    def _init(self, rng: jax.Array) -> dict[str, Variables]:
        groups = {}
        for name, net in self.networks.items():
            each = [net.init(jax.random.fold_in(rng, c)) for c in self.clients[name]]
            groups[name] = members.stack(each)
        return groups

    def shapes(self) -> Mapping[str, Variables]:
        return jax.eval_shape(self._init, jax.random.key(0))

    def by_name(self, state: PeersState) -> dict[str, Variables]:
        return dict(zip(self.networks, state.groups, strict=True))

    def _training(self, key, name, arm, seed, init, step, num_steps) -> Training:
        train = ConfigDict(self.parts.config.student.train)
        train.num_epochs = num_steps  # Of schedules: a step is a round.
        dropout = schedules.Constant(self.parts.config.federated.dropout)
        return self.parts.custom_training(
            key=key,
            name=f"{name}, seed {seed}",
            train=train,
            seed=seed,
            init=init,
            train_step=step,
            constants=self._constants(arm, seed),
            hparams={
                **optimizer_hparams(train, 1),
                **label_objective(train).hparams,
                "dropout": dropout,
            },
            evaluate=lambda state: {"test_accuracy": self.scores(state)["accuracy"]},
            loader=NoBatches(),
            num_steps=num_steps,
        )

    @functools.cached_property
    def _predict(self) -> Callable[[Variables, Any], np.ndarray]:
        def predict(groups, images):
            logits = [
                jax.vmap(
                    lambda own, g=g: g.apply_fn(own, images, train=False)[0].logits
                )(own)
                for g, own in zip(self._groups, groups, strict=True)
            ]
            return jnp.moveaxis(jnp.concatenate(logits), 0, 1)

        return self.parts.devices.predict_program(predict)

    def scores(self, state: PeersState) -> Mapping[str, Any]:
        """Accuracy on the private classes: in the mean over clients, and of each."""
        devices = self.parts.devices.num_devices
        size = devices * max(1, _EVAL_IMAGES // devices)
        logits, labels = predict_split(self._predict, state.groups, self.test, size)
        right = np.mean(logits.argmax(axis=-1) == labels[:, None], axis=0)
        return {
            "accuracy": 100 * float(right.mean()),
            "accuracy_by_client": (100 * right).tolist(),
        }

    def inputs(self, arm: str, seed: int) -> Mapping[str, Any]:
        federated = plain(self.parts.config.federated)
        return {
            "arm": arm,
            "seed": seed,
            "public": self.public.train.fingerprint(),
            "private": self.parts.splits.train.fingerprint(),
            "fedmd": federated["fedmd"],
            "rounds": federated["rounds"],
            "dropout": federated["dropout"],
            "student": plain(self.parts.config.student),
        }


def _read_consensus(variables: Variables, batch: Batch, values: Values) -> Outputs:
    del variables, values
    return Outputs(batch["teacher_logits"])


def _digest(
    student: Outputs, teacher: Outputs, batch: Batch, values: Values
) -> dict[str, jax.Array]:
    del values
    loss = losses.fedmd_loss(student.logits, teacher.logits, where=batch["mask"])
    return {"loss": loss}
