"""Cohorts: alone, together, in turns; what each peer learns from, and what is alike."""

import dataclasses
import json
import pathlib
import runpy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from ml_collections import config_dict

from kdjax import cohorts, training
from kdjax.builders._objectives import label_objective
from kdjax.builders._parts import assemble
from kdjax.builders._roles import Role
from kdjax.cohorts import Group
from kdjax.recipes import mutual
from kdjax.types import UserError

ROOT = pathlib.Path(__file__).parents[2]
RATE = 0.3


def _mlp(width):
    return dict(name="mlp", hidden=(width,), dropout=0.0, dtype="float32")


def _config(**updates):
    path = ROOT / "configs" / "mutual.py"
    config = runpy.run_path(str(path))["get_config"]("smoke")
    with config.unlocked():
        config.student.model = _mlp(13)
        config.mutual.partners = config_dict.ConfigDict()
    train = config.student.train
    train.update(num_epochs=1, batch_size=120)
    train.optimizer.update(name="sgd", momentum=0.0, weight_decay=0.0)
    train.learning_rate.update(schedule="constant", base=RATE)
    config.update_from_flattened_dict({"log_every_steps": 1, **updates})
    return config


@pytest.fixture(scope="module")
def experiment():
    return mutual.build(_config())


@pytest.fixture(scope="module")
def cohort(experiment):
    return experiment.cohorts["peers3"]


@pytest.fixture(scope="module")
def parts():
    return assemble(_config())


def _steps(made, count=1, state=None):
    state = made.init() if state is None else state
    inputs, rows = made.loader.inputs(0), []
    for _ in range(count):
        state, row = made.programs(1)(
            jax.tree.map(jnp.copy, state), {}, made.hparams, next(inputs)
        )
        rows.append({name: float(x[0]) for name, x in row.items()})
    return state, rows


def _batch(made):
    return jax.jit(made.loader.batch)(next(made.loader.inputs(0)), 0)


def _peers(state):
    """The states of the peers of a cohort of one architecture."""
    stack = state.groups[0]
    return [jax.tree.map(lambda x, k=k: x[k], stack) for k in range(len(stack.step))]


def _pick(state, peers):
    """A cohort of one architecture of some of its peers, in this order."""
    (stack,) = state.groups
    return state.replace(groups=(jax.tree.map(lambda x: x[np.array(peers)], stack),))


def _assert_close(a, b, **tolerance):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), a, b)


def test_peers_who_do_not_listen_equal_single_trainings(cohort, parts):
    alone = cohort.training(0, False)
    state, rows = _steps(alone, 4)
    assert rows[0]["mutual"] > 0
    for k, peer in enumerate(_peers(state)):
        single = parts.baseline_training(k)  # Initial weights; the order is seed 0's.
        single = dataclasses.replace(single, loader=alone.loader)
        expected, _ = _steps(single, 4)
        _assert_close(peer.params, expected.params, rtol=2e-5, atol=1e-6)


def test_a_cohort_learns_other_things_than_its_members_alone(cohort):
    (together, _), (alone, _) = (
        _steps(cohort.training(0, x), 2) for x in (True, False)
    )
    difference = jax.tree.map(
        lambda x, y: jnp.max(jnp.abs(x - y)),
        together.groups[0].params,
        alone.groups[0].params,
    )
    assert max(jax.tree.leaves(difference)) > 1e-3


def test_a_small_cohort_starts_as_the_first_of_a_large_one(experiment):
    small, large = (
        _peers(experiment.cohorts[x].training(5, True).init())
        for x in ("peers2", "peers3")
    )
    for a, b in zip(small, large, strict=False):
        jax.tree.map(np.testing.assert_array_equal, a.params, b.params)


def _update_by_hand(cohort, own, others, batch):
    """One step of gradient descent on CE + mean KL(other || own), others given."""
    label = np.asarray(batch["label"])
    network = cohort.networks[0]

    def loss(params):
        outputs, _ = network.apply({"params": params}, batch["image"], train=True)
        log_p = jax.nn.log_softmax(outputs.logits)
        hard = -log_p[jnp.arange(len(label)), label]
        soft = [jnp.sum(q * (jnp.log(q) - log_p), axis=-1) for q in others]
        return jnp.mean(hard + sum(soft) / len(soft))

    return jax.tree.map(lambda x, g: x - RATE * g, own, jax.grad(loss)(own))


def _probs(cohort, params, batch):
    outputs, _ = cohort.networks[0].apply(
        {"params": params}, batch["image"], train=True
    )
    return jnp.asarray(scipy.special.softmax(np.float64(outputs.logits), axis=-1), "f4")


def test_simultaneous_updates_are_gradients_at_the_same_weights(cohort):
    made = cohort.training(0, True)
    batch, before = _batch(made), [peer.params for peer in _peers(made.init())]
    after = _peers(_steps(made)[0])
    probs = [_probs(cohort, params, batch) for params in before]
    for k, peer in enumerate(after):
        others = [q for j, q in enumerate(probs) if j != k]
        expected = _update_by_hand(cohort, before[k], others, batch)
        _assert_close(peer.params, expected, rtol=1e-4, atol=2e-6)


def test_alternating_updates_see_the_peers_before_them_updated():
    config = _config(**{"mutual.updates": "alternating"})
    cohort = mutual.build(config).cohorts["peers3"]
    made = cohort.training(0, True)
    batch, params = _batch(made), [peer.params for peer in _peers(made.init())]
    after = _peers(_steps(made)[0])
    for k, peer in enumerate(after):
        others = [_probs(cohort, x, batch) for j, x in enumerate(params) if j != k]
        params[k] = _update_by_hand(cohort, params[k], others, batch)
        _assert_close(peer.params, params[k], rtol=1e-4, atol=2e-6)


def test_simultaneous_updates_do_not_depend_on_the_order_of_the_peers(cohort):
    made = cohort.training(0, True)
    order = np.array([2, 0, 1])
    state = made.init()
    shuffled = state.replace(
        groups=(jax.tree.map(lambda x: x[order], state.groups[0]),)
    )
    state, _ = _steps(made, 3, state)
    shuffled, _ = _steps(made, 3, shuffled)
    expected = jax.tree.map(lambda x: x[order], state.groups[0].params)
    _assert_close(shuffled.groups[0].params, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("update", cohorts.UPDATES)
def test_a_cohort_of_one_is_a_plain_training(update, parts):
    train = parts.config.student.train
    role = Role("peer", parts.student, train, label_objective(train))
    single = parts.baseline_training(0)
    groups = [Group(role.network.apply, role.train_step(None), (0,))]
    step = jax.jit(cohorts.make_train_step(groups, update=update))
    state = cohorts.init_state([single.init()], groups)
    for i in range(3):
        batch = jax.jit(single.loader.batch)(next(single.loader.inputs(0)), i)
        state, _ = step(state, {}, batch, single.hparams)
    expected, _ = _steps(single, 3)
    _assert_close(_peers(state)[0].params, expected.params, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("update", cohorts.UPDATES)
def test_equal_peers_have_nothing_to_teach_each_other(update):
    """They predict with the dropout that their own steps have."""
    config = _config(**{"student.model.dropout": 0.5, "mutual.updates": update})
    cohort = mutual.build(config).cohorts["peers2"]
    made = cohort.training(0, True)
    state = _pick(made.init(), [0, 0])
    _, (row,) = _steps(made, 1, state)
    # In turns, the second sees the first updated.
    bounds = {"simultaneous": (0, 1e-6), "alternating": (1e-6, 1)}[update]
    assert bounds[0] <= row["mutual"] <= bounds[1]


def _mixed():
    config = _config(**{"mutual.sizes": ()})
    with config.unlocked():
        config.mutual.partners.first = _mlp(17)
        config.mutual.partners.second = _mlp(13)
    return mutual.build(config)


def test_peers_of_several_architectures_keep_their_places():
    experiment = _mixed()
    cohort = experiment.cohorts["mixed"]
    state, rows = _steps(cohort.training(0, True), 2)
    assert [len(group.step) for group in state.groups] == [2, 1]
    logits, labels = cohort.logits(state, experiment.splits.validation)
    assert logits.shape == (3, len(labels), 10)
    examples = experiment.splits.validation.take(np.arange(len(labels)))
    images = jnp.asarray(examples["image"])
    for k, variables in enumerate(cohort.variables(state)):
        outputs, _ = cohort.networks[k].apply(variables, images, train=False)
        np.testing.assert_allclose(logits[k], outputs.logits, rtol=1e-4, atol=1e-5)
    assert rows[1]["loss"] < rows[0]["loss"]


def test_scores_by_hand():
    logits = np.log([[[0.8, 0.2], [0.6, 0.4]], [[0.4, 0.6], [0.1, 0.9]]])
    scores = cohorts.scores(np.float32(logits), np.array([0, 1]))
    assert scores["accuracy"] == [0.5, 0.5]
    assert scores["ensemble_accuracy"] == 1.0
    assert scores["disagreement"] == 1.0


@pytest.fixture(scope="module")
def finished(experiment, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("mutual")
    mutual.run(experiment, workdir)
    return experiment, workdir


def test_the_report_compares_each_cohort_with_its_members_alone(finished):
    experiment, workdir = finished
    report = json.loads((workdir / "report" / "report.json").read_text())
    arms = {arm["name"]: arm for arm in report["arms"]}
    assert {p.name for p in (workdir / "alone").iterdir()} == {"peers3"}
    accuracy = {}
    for kind, place in (("alone", "peers3"), ("mutual", "peers2")):
        directory = workdir / kind / place
        results = [
            json.loads((directory / f"seed{seed}" / "result.json").read_text())
            for seed in experiment.seeds
        ]
        accuracy[kind] = [100 * np.mean(x["accuracy"][:2]) for x in results]
        np.testing.assert_allclose(arms[f"{kind}/peers2"]["values"], accuracy[kind])
    gain = np.subtract(accuracy["mutual"], accuracy["alone"])
    np.testing.assert_allclose(arms["mutual/peers2"]["gain"]["values"], gain)
    for name in ("accuracy_by_size", "gain_by_peer", "disagreement"):
        assert (workdir / "report" / "figures" / f"{name}.png").exists()


def test_disagreement_is_watched_over_training(finished):
    _, workdir = finished
    lines = (workdir / "mutual" / "peers3" / "seed0" / "metrics.jsonl").read_text()
    last = json.loads(lines.splitlines()[-1])
    assert 0 < last["validation_disagreement"] < 1
    each = [last[f"validation_accuracy_{k}"] for k in range(3)]
    np.testing.assert_allclose(last["validation_accuracy"], np.mean(each))


def test_a_resumed_cohort_equals_an_uninterrupted_one(finished, tmp_path):
    experiment, workdir = finished
    made = experiment.cohorts["peers2"].training(1, True)
    for num_steps in (4, made.num_steps):
        part = dataclasses.replace(made, num_steps=num_steps)
        state, saved = training.fit(part, tmp_path)
        saved.close()
    rows = workdir / "mutual" / "peers2" / "seed1" / "metrics.jsonl"
    assert (
        rows.read_text().splitlines()[-1]
        == ((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    )
    logits, _ = experiment.cohorts["peers2"].logits(state, experiment.splits.test)
    with np.load(rows.with_name("predictions.npz")) as arrays:
        np.testing.assert_array_equal(arrays["logits"], logits)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("mutual.sizes", (1, 2), "at least 2"),
        ("mutual.sizes", (2, 2), "different numbers"),
        ("mutual.sizes", (), "neither"),
        ("mutual.updates", "random", "one of"),
        ("mutual.weight", 0.0, "positive"),
        ("mutual.temperature", -1.0, "positive"),
        ("student.model.name", "resnet21", "resnet20"),
    ],
)
def test_a_mistake_is_one_sentence(key, value, expected):
    with pytest.raises(UserError, match=expected):
        mutual.build(_config(**{key: value}))
