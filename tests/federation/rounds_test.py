"""Rounds: against NumPy, one client at a time, on many devices, and what crosses."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from kdjax import federation, losses, models, networks, optimizers, schedules, steps
from kdjax.federation import Broadcast, ServerState, Shard, Upload, selection
from kdjax.objectives import Term, weighted_sum
from kdjax.types import Outputs

CLIENTS, CAPACITY, CLASSES, BATCH = 6, 20, 3, 8
RATE = 0.5
NETWORK = networks.from_linen(
    models.create("mlp", num_classes=CLASSES, hidden=()),
    name="mlp",
    image_shape=(2, 2, 1),
    num_classes=CLASSES,
    mean=(0.0,),
    std=(1.0,),
)
SGD = optimizers.sgd()


def _hparams(dropout=0.0, rate=RATE, **more):
    values = dict(
        learning_rate=rate, momentum=0.0, weight_decay=0.0, ema_decay=0.0, **more
    )
    named = values | {f"server.{name}": x for name, x in values.items()}
    named["dropout"] = dropout
    return {name: schedules.Constant(x) for name, x in named.items()}


def _shards(seed=0):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(3, CAPACITY, CLIENTS).astype(np.int32)
    image = rng.integers(0, 256, (CLIENTS, CAPACITY, 2, 2, 1), np.uint8)
    label = rng.integers(0, CLASSES, (CLIENTS, CAPACITY), np.int32)
    return Shard({"image": jnp.asarray(image), "label": jnp.asarray(label)}, sizes)


def _of(shards, client):
    return jax.tree.map(lambda x: jnp.asarray(x[client]), shards)


def _label_loss(student, teacher, batch, values):
    del teacher, values
    return losses.cross_entropy(student.logits, batch["label"], where=batch["mask"])


def _no_teacher(variables, batch, values):
    del variables, batch, values
    return Outputs(jnp.zeros(0))


HARD = {"hard": Term(_label_loss, lambda values: 1.0)}


@functools.cache
def _local_update(num_epochs=2, batch_size=BATCH):
    return _updates_by(HARD, _no_teacher, num_epochs, batch_size)


def _updates_by(terms, teacher, num_epochs=2, batch_size=BATCH):
    step = steps.make_train_step(NETWORK.apply, teacher, weighted_sum(terms), SGD)
    return federation.make_local_update(
        step, SGD, num_epochs=num_epochs, batch_size=batch_size
    )


def _average(pool):
    del pool
    return federation.average


@functools.cache  # Programs are compiled once.
def _round(local_update=None, make_fuse=_average, **kwargs):
    step = federation.make_round_step(
        _local_update() if local_update is None else local_update,
        make_fuse,
        num_clients=CLIENTS,
        num_participants=kwargs.pop("num_participants", 3),
        **kwargs,
    )
    return jax.jit(step)


def _server(memory=0):
    variables = NETWORK.init(jax.random.key(0))
    return federation.init_server(variables, jax.random.key(1), memory=memory)


def _run(step, state, hparams, shards, rounds=1, pool=()):
    for _ in range(rounds):
        constants = {"shards": shards, "pool": pool}
        state, metrics = step(state, constants, {}, hparams)
    return state, metrics


def _assert_equal(actual, expected):
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


def _assert_close(actual, expected, **kwargs):
    check = functools.partial(np.testing.assert_allclose, atol=1e-6, rtol=1e-5)
    jax.tree.map(check, actual, expected)


def _differs(one, other):
    return any(
        bool(jnp.any(x != y))
        for x, y in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    )


def _client_key(state, client):
    key = selection.key_of(state.rng, selection.Purpose.CLIENTS, state.step)
    return jax.random.fold_in(key, client)


def _chosen(state, count=3):
    return federation.participants(state.rng, state.step, CLIENTS, count).tolist()


# Clients.


def test_an_epoch_in_one_batch_is_a_step_of_gradient_descent():
    """Softmax regression, by NumPy."""
    shard = _of(_shards(), 0)
    variables = NETWORK.init(jax.random.key(0))
    update = _local_update(num_epochs=1, batch_size=CAPACITY)
    upload, loss = jax.jit(update)(
        Broadcast(variables, {}), shard, _hparams(), jax.random.key(3)
    )
    size = int(shard.size)
    x = np.asarray(shard.examples["image"][:size], np.float64).reshape(size, -1) / 255
    onehot = np.eye(CLASSES)[np.asarray(shard.examples["label"][:size])]
    dense = jax.tree.map(np.float64, variables["params"]["Dense_0"])
    logits = x @ dense["kernel"] + dense["bias"]
    probs = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    grad = (probs - onehot) / size
    found = upload.variables["params"]["Dense_0"]
    np.testing.assert_allclose(
        found["kernel"], dense["kernel"] - RATE * x.T @ grad, rtol=1e-5, atol=1e-6
    )
    np.testing.assert_allclose(
        found["bias"], dense["bias"] - RATE * grad.sum(0), rtol=1e-5, atol=1e-6
    )
    assert upload.num_examples == size
    expected = -np.log((probs * onehot).sum(-1)).mean()
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


@pytest.mark.parametrize("size", [3, 16, 17])
def test_each_epoch_shows_every_example_once(size):
    """A step that adds up what it sees stands in for training."""

    def count(state, teacher_variables, batch, hparams):
        seen = (
            jnp.zeros(CAPACITY)
            .at[batch["image"]]
            .add(batch["mask"].astype(jnp.float32))
        )
        state = state.replace(params=state.params + seen)
        return state, {"loss": jnp.float32(1)}

    ids = jnp.arange(CAPACITY, dtype=jnp.int32)
    shard = Shard({"image": ids, "label": ids}, jnp.int32(size))
    rng = jax.random.key(0)
    none = steps.TrainState(jnp.int32(0), jnp.zeros(CAPACITY), {}, (), None, rng)
    state, loss = federation.run_epochs(
        count,
        none,
        {},
        shard,
        {},
        rng=rng,
        num_epochs=4,
        batch_size=BATCH,
    )
    np.testing.assert_array_equal(state.params, 4.0 * (np.arange(CAPACITY) < size))
    assert loss == 1


def test_each_epoch_has_an_order_of_its_own():
    """A step that writes down what it sees, one example at a time."""

    def note(state, teacher_variables, batch, hparams):
        seen = state.params.at[state.step].set(batch["image"][0])
        return state.replace(step=state.step + 1, params=seen), {"loss": jnp.float32(0)}

    ids, rng = jnp.arange(CAPACITY, dtype=jnp.int32), jax.random.key(0)
    none = jnp.zeros(3 * CAPACITY, jnp.int32)
    state, _ = federation.run_epochs(
        note,
        steps.TrainState(jnp.int32(0), none, {}, (), None, rng),
        {},
        Shard({"image": ids, "label": ids}, jnp.int32(CAPACITY)),
        {},
        rng=rng,
        num_epochs=3,
        batch_size=1,
    )
    orders = np.asarray(state.params).reshape(3, CAPACITY)
    np.testing.assert_array_equal(np.sort(orders), [np.arange(CAPACITY)] * 3)
    assert len({tuple(order) for order in [*orders, np.asarray(ids)]}) == 4


def test_padding_changes_nothing():
    shard = _of(_shards(), 1)
    more = jax.tree.map(
        lambda x: jnp.pad(x, [(0, 13)] + [(0, 0)] * (x.ndim - 1), constant_values=1),
        shard.examples,
    )
    update = jax.jit(_local_update())
    broadcast = Broadcast(NETWORK.init(jax.random.key(0)), {})
    arguments = _hparams(), jax.random.key(2)
    short, _ = update(broadcast, shard, *arguments)
    padded, _ = update(broadcast, Shard(more, shard.size), *arguments)
    _assert_close(padded, short)


@pytest.mark.parametrize("kind", ["round", "epoch"])
def test_schedules_are_of_rounds_and_of_local_epochs(kind):
    """A rate of 0 from the second on: the first moves, the second does not."""
    shards = jax.tree.map(jnp.asarray, _shards())
    rate = schedules.Step(RATE, 0.0, (1,))
    hparams = _hparams() | {"learning_rate": rate}
    rounds = kind == "round"
    step = _round() if rounds else _local_step()
    state = _server() if rounds else _own_models(range(CLIENTS))

    def read(state):
        return state.variables if rounds else state.clients.params

    constants = {"shards": shards, "teacher": {}, "pool": ()}
    first, _ = step(state, constants, {}, hparams)
    second, _ = step(first, constants, {}, hparams)
    whole, _ = step(state, constants, {}, _hparams())
    assert _differs(read(first), read(state))
    _assert_close(read(first), read(whole))
    _assert_close(read(second), read(first))


# Rounds.


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_rounds_are_what_clients_do_one_by_one(dropout):
    """Each participant trained alone, and the mean weighed by those who arrived."""
    shards, hparams, state = _shards(), _hparams(dropout), _server()
    local_update, step = jax.jit(_local_update()), _round()
    missing = 0
    for _ in range(4):
        clients = _chosen(state)
        here = federation.arrivals(
            state.rng, state.step, jnp.asarray(clients), dropout
        ).tolist()
        found = [
            local_update(
                Broadcast(state.variables, {}),
                _of(shards, client),
                hparams,
                _client_key(state, client),
            )
            for client in clients
        ]
        uploads = [upload for upload, _ in found]
        sizes = np.array([float(u.num_examples) for u in uploads]) * here
        missing += 3 - sum(here)
        expected = jax.tree.map(
            lambda *x, s=sizes: np.tensordot(s / s.sum(), np.stack(x), 1),
            *(u.variables for u in uploads),
        )
        state, metrics = _run(step, state, hparams, shards)
        _assert_close(state.variables, expected)
        assert metrics["arrived"] == sum(here)
        mean = np.average([loss for _, loss in found], weights=sizes)
        np.testing.assert_allclose(metrics["loss"], mean, rtol=1e-5)
    assert bool(missing) == bool(dropout)


def test_where_nobody_arrives_the_model_stays():
    state = _server(memory=2)
    new, metrics = _run(_round(), state, _hparams(dropout=1.0), _shards())
    _assert_equal(new.variables, state.variables)
    assert (new.step, metrics["arrived"], metrics["loss"]) == (1, 0, 0)


def test_who_takes_part_is_a_function_of_seed_and_round():
    rng = jax.random.key(7)
    rounds = [federation.participants(rng, i, 20, 4).tolist() for i in range(30)]
    assert all(len(set(clients)) == 4 for clients in rounds)
    assert {c for clients in rounds for c in clients} == set(range(20))
    assert rounds[11] == federation.participants(rng, 11, 20, 4).tolist()
    assert len({tuple(x) for x in rounds}) > 25
    other = jax.random.key(8)
    assert rounds[0] != federation.participants(other, 0, 20, 4).tolist()


def test_whether_a_client_arrives_does_not_depend_on_the_others():
    rng, everyone = jax.random.key(0), jnp.arange(200)
    here = federation.arrivals(rng, 3, everyone, 0.25)
    some = jnp.asarray([5, 40, 3])
    np.testing.assert_array_equal(federation.arrivals(rng, 3, some, 0.25), here[some])
    assert 0.6 < float(here.mean()) < 0.9
    assert _differs(here, federation.arrivals(rng, 4, everyone, 0.25))


def test_eight_devices_are_one():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharded = NamedSharding(mesh, PartitionSpec("data"))

    def place(tree):
        return jax.lax.with_sharding_constraint(tree, sharded)

    hparams, shards = _hparams(dropout=0.3), _shards()
    one, alone = _run(_round(num_participants=5), _server(), hparams, shards, rounds=3)
    step = _round(num_participants=5, num_devices=8, place=place)
    everywhere = NamedSharding(mesh, PartitionSpec())
    put = functools.partial(jax.device_put, device=everywhere)
    arguments = {"shards": put(shards), "pool": ()}, {}, put(hparams)
    many = put(_server())
    for _ in range(3):
        many, metrics = step(many, *arguments)
    _assert_close(many.variables, one.variables)
    _assert_close(metrics, alone)
    # Of five participants and three ghosts each device holds one.
    text = step.lower(many, *arguments).compile().as_text()
    assert f"u8[1,{CAPACITY},2,2,1]" in text


# What crosses.


def test_the_server_sees_uploads_alone():
    """Other pixels and labels under the same uploads: the same bits everywhere."""

    def held(broadcast, shard, hparams, rng):
        size = shard.size.astype(jnp.float32)
        moved = jax.tree.map(lambda x: x + size, broadcast.variables)
        return Upload(moved, size), jnp.float32(0)

    shards, other = _shards(0), _shards(1).replace(size=_shards(0).size)
    for fuse in (_average, _distil):
        step = _round(held, fuse)
        pool = _pool()
        one, _ = _run(step, _server(2), _hparams(), shards, 2, pool)
        two, _ = _run(step, _server(2), _hparams(), other, 2, pool)
        _assert_equal(jax.tree.leaves(two)[:-1], jax.tree.leaves(one)[:-1])


def _first(uploads, weights, hparams, rng):
    return jax.tree.map(lambda x: x[0], uploads.variables)


@pytest.mark.parametrize("step", [0, 1, 2])
def test_clients_see_their_own_examples_alone(step):
    """All others' examples change; what the first participant uploads does not."""
    state, shards = _server().replace(step=jnp.int32(step)), _shards()
    client = _chosen(state)[0]
    changed = jax.tree.map(
        lambda mine, others: others.at[client].set(mine[client]),
        shards,
        jax.tree.map(jnp.asarray, _shards(1)),
    )
    program = _round(make_fuse=_only_first)
    one, _ = _run(program, state, _hparams(), shards)
    two, _ = _run(program, state, _hparams(), changed)
    _assert_equal(two.variables, one.variables)
    assert _differs(one.variables, state.variables)
    three, _ = _run(program, state, _hparams(), _shards(1))
    assert _differs(three.variables, one.variables)


def _only_first(pool):
    del pool
    return _first


def test_those_who_do_not_take_part_change_nothing():
    state, shards = _server(), _shards()
    keep = jnp.isin(jnp.arange(CLIENTS), jnp.asarray(_chosen(state)))
    changed = jax.tree.map(
        lambda x, y: jnp.where(keep.reshape(-1, *(1,) * (x.ndim - 1)), x, y),
        shards,
        _shards(1),
    )
    assert _differs(changed, shards)
    one, _ = _run(_round(), state, _hparams(), shards)
    two, _ = _run(_round(), state, _hparams(), changed)
    _assert_equal(two.variables, one.variables)


def test_those_who_drop_out_change_nothing():
    state, hparams, shards = _server(), _hparams(dropout=0.4), _shards()
    clients = jnp.asarray(_chosen(state))
    here = federation.arrivals(state.rng, state.step, clients, 0.4)
    lost = clients[jnp.argmin(here)]
    assert 0 < int(here.sum()) < 3
    changed = jax.tree.map(
        lambda x, y: jnp.asarray(x).at[lost].set(y[lost]), shards, _shards(1)
    )
    for fuse in (_average, _distil):
        one, _ = _run(_round(make_fuse=fuse), state, hparams, shards, 1, _pool())
        two, _ = _run(_round(make_fuse=fuse), state, hparams, changed, 1, _pool())
        _assert_equal(two.variables, one.variables)


def test_what_is_lost_on_the_way_may_be_anything():
    """NaN in the parameters of those who drop out."""
    state, hparams = _server(), _hparams(dropout=0.4)
    clients = jnp.asarray(_chosen(state))
    here = federation.arrivals(state.rng, state.step, clients, 0.4)
    sizes = jnp.zeros(CLIENTS, jnp.int32).at[clients].set(jnp.where(here, 4, 5))

    def broken(broadcast, shard, hparams, rng):
        bad = jnp.where(shard.size == 5, jnp.nan, 1.0)
        moved = jax.tree.map(lambda x: x + bad, broadcast.variables)
        return Upload(moved, shard.size.astype(jnp.float32)), jnp.float32(0)

    new, _ = _run(_round(broken), state, hparams, _shards().replace(size=sizes))
    _assert_close(new.variables, jax.tree.map(lambda x: x + 1, state.variables))
    assert not bool(here.all())


@pytest.mark.parametrize("leak", ["image", "more", "dtype"])
def test_an_upload_of_anything_else_is_refused(leak):
    def leaking(broadcast, shard, hparams, rng):
        variables = dict(broadcast.variables)
        size = shard.size.astype(jnp.float32)
        if leak == "image":
            variables["images"] = shard.examples["image"]
        elif leak == "more":
            size = jnp.stack([size, size])
        else:
            size = shard.size
        return Upload(variables, size), jnp.float32(0)

    with pytest.raises(ValueError, match="Expected Upload to cross"):
        _run(_round(leaking), _server(), _hparams(), _shards())


def test_bytes_are_those_of_the_arrays():
    variables = NETWORK.init(jax.random.key(0))
    upload = Upload(variables, jnp.float32(3))
    assert federation.num_bytes(upload) == 4 * (4 * CLASSES + CLASSES + 1)
    shapes = jax.eval_shape(lambda: Broadcast(variables, variables))
    assert federation.num_bytes(shapes) == 8 * (4 * CLASSES + CLASSES)


# FedDF.


def _pool():
    return jnp.asarray(
        np.random.default_rng(5).integers(0, 256, (50, 2, 2, 1), np.uint8)
    )


def _distil(pool, num_steps=20):
    def objective(student, clients, batch, values):
        del values
        loss = losses.feddf_loss(
            student.logits,
            clients.logits,
            weights=clients.features["weights"],
            where=batch["mask"],
        )
        return {"loss": loss}

    teacher = federation.read_clients(NETWORK.apply)
    step = steps.make_train_step(NETWORK.apply, teacher, objective, SGD)
    return federation.make_distilled_average(
        step, SGD, pool, num_steps=num_steps, batch_size=BATCH
    )


def _fuse(num_steps):
    return jax.jit(_distil(_pool(), num_steps))


def _uploads(count=3, scale=3.0):
    each = [NETWORK.init(jax.random.key(10 + i)) for i in range(count)]
    stacked = jax.tree.map(lambda *x: scale * jnp.stack(x), *each)
    return Upload(stacked, jnp.asarray([10.0, 30.0, 20.0])[:count])


def _rates():
    return {
        name.removeprefix("server."): x
        for name, x in _hparams().items()
        if name.startswith("server.")
    }


def test_no_step_of_the_server_is_federated_averaging():
    uploads = _uploads()
    fused = _fuse(0)(uploads, uploads.num_examples, _rates(), jax.random.key(0))
    expected = losses.federated_average(uploads.variables, weights=uploads.num_examples)
    _assert_close(fused, expected)


def test_clients_who_agree_have_nothing_more_to_teach():
    one = NETWORK.init(jax.random.key(0))
    same = jax.tree.map(lambda x: jnp.stack([x, x, x]), one)
    weights = jnp.asarray([1.0, 5.0, 2.0])
    fused = _fuse(20)(Upload(same, weights), weights, _rates(), jax.random.key(0))
    _assert_close(fused, one)


def test_distillation_brings_the_average_nearer_to_the_ensemble():
    uploads, pool = _uploads(), _pool()
    predict = steps.make_predict_step(NETWORK.apply)
    clients = jax.vmap(predict, in_axes=(0, None))(uploads.variables, pool)

    def distance(num_steps):
        fused = _fuse(num_steps)(
            uploads, uploads.num_examples, _rates(), jax.random.key(0)
        )
        weights = uploads.num_examples
        return losses.feddf_loss(predict(fused, pool), clients, weights=weights).mean()

    first, later = distance(0), distance(100)
    assert later < first


# FedGKD.


@functools.cache
def _held_near(gamma):
    def near(student, teacher, batch, values):
        del values
        return losses.fedgkd_loss(
            student.logits,
            teacher.logits[None],
            weights=jnp.ones(1),
            where=batch["mask"],
        )

    def teacher(variables, batch, values):
        del values
        return NETWORK.apply(variables, batch["image"], train=False)[0]

    return _updates_by(HARD | {"near": Term(near, lambda values: gamma)}, teacher)


def test_without_a_weight_fedgkd_is_fedavg():
    hparams, shards = _hparams(), _shards()
    free, _ = _run(_round(), _server(), hparams, shards, 2)
    held, _ = _run(_round(_held_near(0.0)), _server(3), hparams, shards, 2)
    _assert_close(held.variables, free.variables)


def test_a_large_weight_holds_clients_near_the_global_models():
    hparams, shards, start = _hparams(rate=0.1), _shards(), _server(3)

    def moved(gamma):
        state, _ = _run(_round(_held_near(gamma)), start, hparams, shards)
        return sum(
            float(jnp.sum((x - y) ** 2))
            for x, y in zip(
                jax.tree.leaves(state.variables),
                jax.tree.leaves(start.variables),
                strict=True,
            )
        )

    assert moved(8.0) < 0.8 * moved(0.0)


def test_the_teacher_is_the_mean_of_the_last_global_models():
    """Of as many as there have been; a client that uploads its teacher shows it."""

    def echo(broadcast, shard, hparams, rng):
        moved = jax.tree.map(lambda x: x + 1, broadcast.variables)
        return Upload(moved, shard.size.astype(jnp.float32)), jnp.float32(0)

    def show(broadcast, shard, hparams, rng):
        return Upload(broadcast.teacher, shard.size.astype(jnp.float32)), jnp.float32(0)

    state, shards, hparams = _server(memory=3), _shards(), _hparams()
    past = [state.variables]
    for _ in range(5):
        shown, _ = _run(_round(show), state, hparams, shards)
        mean = jax.tree.map(lambda *x: np.mean(x, axis=0), *past[-3:])
        _assert_close(shown.variables, mean)
        state, _ = _run(_round(echo), state, hparams, shards)
        past.append(state.variables)


def test_a_server_state_is_all_there_is():
    """Go on from a copy on the host after two rounds: the same bits as without."""
    hparams, shards, step = _hparams(0.2), _shards(), _round(_held_near(0.2))
    whole, _ = _run(step, _server(2), hparams, shards, 5)
    half, _ = _run(step, _server(2), hparams, shards, 2)
    saved = jax.device_get(half.replace(rng=jax.random.key_data(half.rng)))
    restored = ServerState(
        saved.step, saved.variables, saved.history, jax.random.wrap_key_data(saved.rng)
    )
    resumed, _ = _run(step, restored, hparams, shards, 3)
    _assert_equal(resumed.variables, whole.variables)
    _assert_equal(resumed.history, whole.history)


# Own models.


@functools.cache
def _local_step():
    objective = weighted_sum(HARD)
    train_step = steps.make_train_step(NETWORK.apply, _no_teacher, objective, SGD)
    return jax.jit(federation.make_local_step(train_step, batch_size=BATCH))


def _own_models(clients):
    variables = NETWORK.init(jax.random.key(0))
    states = [
        steps.init_state(variables, SGD, _hparams(), jax.random.key(c)) for c in clients
    ]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *states)
    return federation.ClientsState(jnp.int32(0), stacked)


def test_own_models_are_trained_apart():
    """All clients in one state equal each by itself, and keep to their examples."""
    shards = jax.tree.map(jnp.asarray, _shards())

    def train(clients, shards):
        state = _own_models(clients)
        for _ in range(2):
            constants = {"shards": shards, "teacher": {}}
            state, metrics = _local_step()(state, constants, {}, _hparams())
        return state.clients.params, metrics["loss"]

    together, loss = train(range(CLIENTS), shards)
    alone = [
        train([c], jax.tree.map(lambda x, c=c: x[c : c + 1], shards))
        for c in range(CLIENTS)
    ]
    stacked = jax.tree.map(lambda *x: jnp.concatenate(x), *(x for x, _ in alone))
    _assert_close(together, stacked)
    mean = np.average([x for _, x in alone], weights=np.asarray(shards.size))
    np.testing.assert_allclose(loss, mean, rtol=1e-5)
