"""FedMD: what clients of different architectures share, and what they keep."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import federation, losses, models, networks, optimizers, schedules, steps
from kdjax.federation import Epochs, Group, PeersState, Shard
from kdjax.objectives import Term, weighted_sum
from kdjax.types import Outputs

CLASSES, PUBLIC, RATE = 3, 24, 0.5
SGD = optimizers.sgd()


def _network(hidden):
    return networks.from_linen(
        models.create("mlp", num_classes=CLASSES, hidden=hidden),
        name="mlp",
        image_shape=(2, 2, 1),
        num_classes=CLASSES,
        mean=(0.0,),
        std=(1.0,),
    )


NETWORKS = {(0, 2): _network(()), (1,): _network((5,))}


def _hard(student, teacher, batch, values):
    return losses.cross_entropy(student.logits, batch["label"], where=batch["mask"])


def _near(student, teacher, batch, values):
    return losses.fedmd_loss(student.logits, teacher.logits, where=batch["mask"])


def _group(clients, network):
    def teacher(variables, batch, values):
        del variables, values
        return Outputs(batch.get("teacher_logits", jnp.zeros(0)))

    label_step, digest_step = (
        steps.make_train_step(
            network.apply,
            teacher,
            weighted_sum({"term": Term(loss, lambda values: 1.0)}),
            SGD,
        )
        for loss in (_hard, _near)
    )
    return Group(clients, network.apply, label_step, digest_step, SGD)


GROUPS = tuple(_group(*pair) for pair in NETWORKS.items())


def _state():
    groups = []
    for clients, network in NETWORKS.items():
        each = [network.init(jax.random.key(c)) for c in clients]
        groups.append(jax.tree.map(lambda *x: jnp.stack(x), *each))
    return PeersState(jnp.int32(0), tuple(groups), jax.random.key(9))


def _hparams(dropout=0.0):
    values = dict(learning_rate=RATE, momentum=0.0, weight_decay=0.0, ema_decay=0.0)
    values["dropout"] = dropout
    return {name: schedules.Constant(x) for name, x in values.items()}


def _examples(seed, *shape):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (*shape, 2, 2, 1), np.uint8)
    label = rng.integers(0, CLASSES, shape, np.int32)
    return {"image": jnp.asarray(image), "label": jnp.asarray(label)}


def _constants(seed=1):
    shards = tuple(
        Shard(_examples(seed + clients[0], len(clients), 6), jnp.full(len(clients), 6))
        for clients in NETWORKS
    )
    return {"public": Shard(_examples(0, PUBLIC), jnp.int32(PUBLIC)), "shards": shards}


@functools.cache  # Programs are compiled once.
def _round(digest=1, revisit=1, shares=True):
    return jax.jit(
        federation.make_consensus_step(
            GROUPS,
            Epochs(digest, PUBLIC),
            Epochs(revisit, 4),
            num_public=PUBLIC,
            shares=shares,
        )
    )


def _run(step, constants, dropout=0.0):
    return step(_state(), constants, {}, _hparams(dropout))


def _of(state, client):
    """The variables of one client."""
    for clients, group in zip(NETWORKS, state.groups, strict=True):
        if client in clients:
            row = clients.index(client)
            return jax.tree.map(lambda x, row=row: np.asarray(x[row]), group)
    raise AssertionError


def _same(one, other):
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return all(np.array_equal(x, y) for x, y in pairs)


def test_a_digest_is_a_step_towards_the_mean_of_all_logits():
    """For the linear client by NumPy: the gradient of a mean absolute error."""
    new, metrics = _run(_round(revisit=0), _constants())
    x = np.asarray(_constants()["public"].examples["image"], np.float64)
    x = x.reshape(PUBLIC, -1) / 255
    before = [_of(_state(), client)["params"] for client in range(3)]
    logits = [_logits(params, x) for params in before]
    signs = np.sign(logits[2] - np.mean(logits, axis=0)) / (PUBLIC * CLASSES)
    expected = before[2]["Dense_0"]["kernel"] - RATE * x.T @ signs
    found = _of(new, 2)["params"]["Dense_0"]["kernel"]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
    assert metrics["arrived"] == 3


def _logits(params, x):
    layers = [params[name] for name in sorted(params)]
    for layer in layers[:-1]:
        x = np.maximum(x @ layer["kernel"] + layer["bias"], 0)
    return x @ layers[-1]["kernel"] + layers[-1]["bias"]


@pytest.mark.parametrize("client", [0, 1, 2])
def test_private_examples_reach_no_other_client(client):
    """Within a round logits are those of before it: others' bits stay the same."""
    step, constants = _round(), _constants()
    changed = list(constants["shards"])
    for i, clients in enumerate(NETWORKS):
        if client in clients:
            row = clients.index(client)
            changed[i] = jax.tree.map(
                lambda x, y, row=row: x.at[row].set(y[row]),
                changed[i],
                _constants(50)["shards"][i],
            )
    one, _ = _run(step, constants)
    two, _ = _run(step, {**constants, "shards": tuple(changed)})
    for other in range(3):
        assert _same(_of(two, other), _of(one, other)) == (other != client)


def test_public_labels_are_not_used_in_a_round():
    constants = _constants()
    examples = constants["public"].examples
    other = {**examples, "label": (examples["label"] + 1) % CLASSES}
    changed = {**constants, "public": constants["public"].replace(examples=other)}
    one, _ = _run(_round(), constants)
    two, _ = _run(_round(), changed)
    assert _same(two.groups, one.groups)


@pytest.mark.parametrize("step", range(4))
def test_who_drops_out_keeps_its_model_and_is_not_heard(step):
    dropout, state = 0.5, _state().replace(step=jnp.int32(step))
    # In the order of the groups.
    everyone = jnp.asarray([c for clients in NETWORKS for c in clients])
    here = federation.arrivals(state.rng, state.step, everyone, dropout)
    arrived = {int(c) for c, is_here in zip(everyone, here, strict=True) if is_here}
    new, metrics = _round()(state, _constants(), {}, _hparams(dropout))
    assert metrics["arrived"] == len(arrived)
    for client in range(3):
        assert _same(_of(new, client), _of(state, client)) == (client not in arrived)
    # Other models of those who are lost: the others do not notice.
    changed = []
    for clients, group in zip(NETWORKS, state.groups, strict=True):
        lost = jnp.asarray([c not in arrived for c in clients])

        def move(x, lost=lost):
            return x + lost.astype(x.dtype).reshape(-1, *(1,) * (x.ndim - 1))

        changed.append(jax.tree.map(move, group))
    other = state.replace(groups=tuple(changed))
    other, _ = _round()(other, _constants(), {}, _hparams(dropout))
    for client in arrived:
        assert _same(_of(other, client), _of(new, client))


def test_where_nobody_arrives_all_keep_their_models():
    new, metrics = _run(_round(), _constants(), dropout=1.0)
    assert _same(new.groups, _state().groups)
    assert np.isfinite(metrics["loss"])
    assert new.step == 1


def test_no_digest_is_being_alone():
    one, _ = _run(_round(digest=0), _constants())
    two, _ = _run(_round(shares=False), _constants())
    assert _same(one.groups, two.groups)


def test_before_the_rounds_clients_learn_public_labels_then_their_own():
    step = jax.jit(federation.make_start_step(GROUPS, Epochs(1, PUBLIC), Epochs(2, 4)))
    one, _ = _run(step, _constants())
    two, _ = _run(step, _constants(50) | {"public": _constants()["public"]})
    assert _same(two.groups, one.groups)  # Nothing private yet.
    x = np.asarray(_constants()["public"].examples["image"], np.float64)
    x = x.reshape(PUBLIC, -1) / 255
    params = _of(_state(), 0)["params"]
    probs = np.exp(_logits(params, x))
    probs /= probs.sum(-1, keepdims=True)
    onehot = np.eye(CLASSES)[np.asarray(_constants()["public"].examples["label"])]
    expected = params["Dense_0"]["kernel"] - RATE * x.T @ (probs - onehot) / PUBLIC
    found = _of(one, 0)["params"]["Dense_0"]["kernel"]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
    after, _ = step(one, _constants(), {}, _hparams())
    public = {**_constants(), "public": Shard(_examples(70, PUBLIC), jnp.int32(PUBLIC))}
    other, _ = step(one, public, {}, _hparams())
    assert _same(other.groups, after.groups)  # Nothing public any more.
    assert not _same(after.groups, one.groups)
