"""A federation from a config to its report; killed servers; mistakes in the config."""

import dataclasses
import json
import pathlib
import runpy

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import training
from kdjax.builders import _federation as building
from kdjax.builders._parts import assemble
from kdjax.recipes import federated
from kdjax.types import UserError

ROOT = pathlib.Path(__file__).parents[2]
LEVEL = "dirichlet_1.0"


def _config(**updates):
    path = ROOT / "configs" / "federated.py"
    config = runpy.run_path(str(path))["get_config"]("smoke")
    config.seeds = (0,)
    small = dict(
        methods=("fedavg", "fedgkd", "personal"),
        levels=(1.0,),
        personal_teacher="fedavg",
    )
    config.federated.update(small)
    config.update_from_flattened_dict(updates)
    return config


@pytest.fixture(scope="module")
def experiment():
    return federated.build(_config())


@pytest.fixture(scope="module")
def finished(experiment, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("federated")
    federated.run(experiment, workdir)
    return workdir


def _equal(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_a_run_leaves_every_result(experiment, finished):
    report = json.loads((finished / "report" / "report.json").read_text())
    assert [arm["name"] for arm in report["arms"]] == [
        f"fedavg_{LEVEL}",
        f"fedgkd_{LEVEL}",
        f"alone_own_{LEVEL}",
        f"personal_own_{LEVEL}",
        f"alone_everybody_{LEVEL}",
        f"personal_everybody_{LEVEL}",
    ]
    figures = {path.stem for path in (finished / "report" / "figures").iterdir()}
    assert figures == {"arms", f"rounds_{LEVEL}", f"clients_{LEVEL}"}
    directory = finished / "rounds" / LEVEL / "fedavg" / "seed0"
    rows = [
        json.loads(x)
        for x in (directory / "metrics.jsonl").read_text().split("\n")
        if x
    ]
    result = json.loads((directory / "result.json").read_text())
    assert len(rows) == 3
    assert rows[-1]["test_accuracy"] == result["accuracy"]


def test_a_second_run_changes_nothing(experiment, finished):
    files = [*finished.glob("*/*/*/*/result.json"), *finished.glob("**/*.safetensors")]
    times = {path: path.stat().st_mtime_ns for path in files}
    federated.run(experiment, finished, ("rounds", "personal"))
    assert {path: path.stat().st_mtime_ns for path in files} == times
    assert len(times) == 8


def test_another_federation_is_refused(finished):
    other = federated.build(_config(**{"federated.dropout": 0.5}))
    with pytest.raises(UserError, match=r"federated\.dropout was 0\.2, is 0\.5"):
        federated.run(other, finished, ("rounds",))


def test_a_resumed_server_equals_an_uninterrupted_one(experiment, tmp_path):
    made = experiment.round_training("fedgkd", LEVEL, 0)
    whole, saved = training.fit(made, tmp_path / "whole")
    saved.close()
    _, saved = training.fit(dataclasses.replace(made, num_steps=1), tmp_path / "killed")
    saved.close()
    resumed, saved = training.fit(made, tmp_path / "killed")
    saved.close()
    assert int(resumed.step) == made.num_steps == 3
    _equal(resumed.variables, whole.variables)
    _equal(resumed.history, whole.history)
    rows = [(tmp_path / x / "metrics.jsonl").read_text() for x in ("whole", "killed")]
    assert rows[0] == rows[1]


def test_own_accuracy_weighs_classes_by_the_clients_share(experiment):
    """By a loop over clients, test images and classes."""
    state = experiment.personal_training(LEVEL, 0, None).init()
    keys = jax.random.split(jax.random.key(0), 6)
    params = jax.vmap(experiment.personal_network.init)(keys)["params"]
    state = state.replace(clients=state.clients.replace(params=params))
    scores = experiment.personal_scores(state, LEVEL, 0)
    test = experiment.splits.test
    examples = test.take(np.arange(len(test)))
    counts, everybody = experiment.label_counts(LEVEL, 0), []
    for client, own in enumerate(counts):
        variables = {"params": jax.tree.map(lambda x, c=client: x[c], params)}
        outputs, _ = experiment.personal_network.apply(
            variables, jnp.asarray(examples["image"]), train=False
        )
        right = np.asarray(outputs.logits).argmax(-1) == examples["label"]
        everybody.append(right.mean())
        expected = sum(
            number / own.sum() * right[examples["label"] == label].mean()
            for label, number in enumerate(own)
        )
        assert scores["own_by_client"][client] == pytest.approx(100 * expected)
    assert scores["everybody"] == pytest.approx(100 * np.mean(everybody))
    assert scores["own"] == pytest.approx(np.mean(scores["own_by_client"]))


def test_own_models_begin_alike_whoever_teaches(experiment):
    teacher = experiment.network.init(jax.random.key(5))
    alone = experiment.personal_training(LEVEL, 0, None).init()
    taught = experiment.personal_training(LEVEL, 0, teacher).init()
    _equal(alone.clients.params, taught.clients.params)


def test_without_weight_a_teacher_teaches_nothing(tmp_path):
    made = federated.build(_config(**{"distill.alpha": 0.0}))
    teacher = made.network.init(jax.random.key(5))
    states = []
    for name, one in (("alone", None), ("taught", teacher)):
        state, saved = training.fit(
            made.personal_training(LEVEL, 0, one), tmp_path / name
        )
        saved.close()
        states.append(state.clients.params)
    for x, y in zip(*map(jax.tree.leaves, states), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6)


def test_traffic_is_parameters_twice_or_three_times(experiment):
    sizes = jax.tree.map(np.size, experiment.network.init(jax.random.key(0)))
    parameters = 4 * sum(jax.tree.leaves(sizes))
    assert experiment.traffic["fedavg"] == (parameters, parameters + 4)
    assert experiment.traffic["fedgkd"] == (2 * parameters, parameters + 4)
    assert experiment.traffic["feddf"] == experiment.traffic["fedavg"]


def test_schedules_span_the_rounds(experiment):
    made = experiment.round_training("fedavg", LEVEL, 0)
    rate = made.hparams["learning_rate"]
    rates = [float(rate(i)) for i in range(made.num_steps + 1)]
    assert rates[-1] == pytest.approx(0.0, abs=1e-9)
    assert rates[0] > rates[1] > rates[2] > 1e-5


def test_clients_of_every_seed_fill_the_same_program():
    made = building.Federation(assemble(_config(seeds=(0, 1))), {LEVEL: 1.0})
    one, two = made.shards(LEVEL, 0), made.shards(LEVEL, 1)
    assert jax.tree.map(np.shape, one) == jax.tree.map(np.shape, two)
    assert one.size.sum() == two.size.sum() == 1200
    assert one.size.tolist() != two.size.tolist()


@pytest.mark.parametrize(
    ("updates", "expected"),
    [
        ({"federated.methods": ("fedprox",)}, "federated.methods to be some of"),
        ({"federated.methods": ()}, "federated.methods to be some of"),
        ({"federated.levels": (0.0,)}, "federated.levels to be different positive"),
        ({"federated.published.fedavg": (71.81,)}, "to have for each method pairs"),
        ({"federated.partition": "iid"}, "federated.partition to be one of"),
        ({"federated.partition": "shards"}, "whole numbers"),
        ({"federated.participation": 0.0}, "federated.participation to be above 0"),
        ({"federated.dropout": 1.5}, "federated.dropout to be a number between"),
        ({"federated.rounds": 0}, "federated.rounds to be a positive number"),
        ({"federated.personal_teacher": "feddf"}, "to be among federated.methods"),
        ({"federated.feddf.average": "votes"}, "federated.feddf.average to be one of"),
        ({"federated.num_clients": 500}, "have fewer clients"),
        ({"parallel": "pmap"}, "Expected parallel='jit'"),
        ({"teacher.train.augment.crop_padding": 1}, "teacher.train.augment.crop_pad"),
        ({"student.train.ema_decay": 0.5}, "student.train.ema_decay"),
    ],
)
def test_a_mistake_is_one_sentence(updates, expected):
    with pytest.raises(UserError, match=expected):
        federated.build(_config(**updates))


@pytest.mark.parametrize(
    ("updates", "expected"),
    [
        ({"num_public": 90}, "to divide into batches"),
        ({"classes": (0, 1)}, "at least 3 different classes"),
        ({"classes": (0, 1, 12)}, "below 10"),
    ],
)
def test_a_mistake_in_fedmd_is_one_sentence(updates, expected):
    config = _config(**{"federated.methods": ("fedmd",)})
    config.federated.fedmd.update(updates)
    with pytest.raises(UserError, match=expected):
        federated.build(config)


def test_public_images_may_be_those_that_no_client_has():
    config = _config(**{"federated.methods": ("fedavg", "feddf")})
    config.dataset.validation, config.federated.public.name = 160, "validation"
    parts = assemble(config)
    made = building.Federation(parts, {LEVEL: 1.0})
    pool = made.round_training("feddf", LEVEL, 0).constants["pool"]
    held_out = parts.splits.validation
    np.testing.assert_array_equal(pool, held_out.take(np.arange(160))["image"])


@pytest.mark.parametrize(
    ("validation", "path", "expected"),
    [
        (0, None, r"Expected dataset\.validation to set"),
        (160, "x.npz", r"without a path, .*, got x\.npz"),
    ],
)
def test_what_cannot_be_set_aside_is_not_public(validation, path, expected):
    config = _config(**{"federated.methods": ("fedavg", "feddf")})
    config.dataset.validation = validation
    config.federated.public.update(name="validation", path=path)
    with pytest.raises(UserError, match=expected):
        federated.build(config)


def test_images_of_another_size_are_not_public(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {
        f"{split}_{kind}": x
        for split in ("train", "test")
        for kind, x in (
            ("images", rng.integers(0, 256, (20, 9, 9), np.uint8)),
            ("labels", np.arange(20) % 10),
        )
    }
    np.savez(tmp_path / "other.npz", **arrays)
    config = _config(**{"federated.methods": ("feddf",)})
    config.federated.personal_teacher = "feddf"
    config.federated.public.path = str(tmp_path / "other.npz")
    with pytest.raises(UserError, match=r"images of \(8, 8, 1\)"):
        federated.build(config)


@pytest.mark.slow
def test_the_whole_of_smoke(tmp_path):
    path = ROOT / "configs" / "federated.py"
    experiment = federated.build(runpy.run_path(str(path))["get_config"]("smoke"))
    federated.run(experiment, tmp_path)
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    names = {arm["name"] for arm in report["arms"]}
    assert {"solo", "fedmd", "pooled", "feddf_dirichlet_10.0"} <= names
