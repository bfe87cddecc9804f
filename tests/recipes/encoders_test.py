"""Distilling encoders: which layer teaches which, and what padding may not change."""

import functools
import json
import pathlib
import runpy

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import pretrained
from kdjax.recipes import encoders
from kdjax.types import UserError

ROOT = pathlib.Path(__file__).parents[2]
TRAIN = [f"{'good fine great'.split()[i % 3]} film number {i}\tpos" for i in range(30)]
TRAIN += [f"{'bad dull'.split()[i % 2]} film\tneg" for i in range(30)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reviews")
    for name, lines in {"train": TRAIN, "test": TRAIN[::3]}.items():
        text = "\n".join(["sentence\tlabel", *lines, ""])
        (folder / f"{name}.tsv").write_text(text)
    return str(folder)


def _config(folder, name="tinybert", **updates):
    path = ROOT / "configs" / f"{name}.py"
    config = runpy.run_path(str(path))["get_config"]("smoke")
    sizes = dict(dim=8, heads=2, hidden=12, dropout=0.0)
    config.teacher.model = dict(name="bert", dtype="float32", depth=4, **sizes)
    config.student.model = dict(name="bert", dtype="float32", depth=2, **sizes)
    config.dataset.path = folder
    config.encoders.lengths = (6, 9)
    for train in (
        config.teacher.train,
        config.student.train,
        config.encoders.layers.train,
        config.encoders.general.train,
    ):
        train.batch_size = 8
        train.num_epochs = min(1, train.num_epochs)
    config.seeds = (0,)
    config.update_from_flattened_dict(updates)
    return config


@pytest.fixture(scope="module")
def experiment(folder):
    return encoders.build(_config(folder))


@pytest.fixture(scope="module")
def teacher(experiment):
    return experiment.teacher.init(jax.random.key(3))


def _arm(experiment, name):
    (arm,) = (arm for arm in experiment.arms if arm.name == name)
    return arm


def _taps(experiment, arm):
    """Which of the teacher's features each term of the layers' stage reads."""
    terms = _arm(experiment, arm).stages[0].inputs["distill"]["terms"]
    return {name: term["teacher_features"] for name, term in terms.items()}


def test_a_map_says_which_layers_teach(experiment):
    found = {name: _taps(experiment, name)["hidden"] for name in ("uniform", "top")}
    assert found == {"uniform": "block2,block4", "top": "block3,block4"}
    assert _taps(experiment, "bottom") == {
        "attention": "block1_scores,block2_scores",
        "embeddings": "embeddings",
        "hidden": "block1,block2",
    }
    assert set(_taps(experiment, "no_layers")) == {"embeddings"}


def test_arms_take_as_many_steps(experiment, teacher):
    """With labels alone as with a teacher, in two stages."""
    logits = np.zeros((len(TRAIN), 2), np.float32)
    steps = {}
    for arm in experiment.arms:
        start = experiment.student_start(0, teacher)
        trainings = [stage.training(0, start, teacher, logits) for stage in arm.stages]
        steps[arm.name] = sum(training.num_steps for training in trainings)
    assert set(steps.values()) == {2 * (len(TRAIN) // 8)}


def _step(training, inputs):
    state, metrics = training.programs(1)(
        training.parallel.replicate(training.init()),
        training.parallel.replicate(training.constants),
        training.parallel.replicate(training.hparams),
        inputs,
    )
    return state.params, metrics


@pytest.mark.parametrize(
    ("name", "depths"),
    [("tinybert", (2, 1)), pytest.param("minilm", (4, 2), marks=pytest.mark.slow)],
)
def test_longer_padding_changes_no_step(folder, name, depths):
    """Whatever the loss: the same numbers, and the same student after the update."""
    updates = {"teacher.model.depth": depths[0], "student.model.depth": depths[1]}
    experiment = encoders.build(_config(folder, name, **updates))
    teacher = experiment.teacher.init(jax.random.key(3))
    arm = _arm(experiment, experiment.main_arm)
    start = experiment.student_start(0, teacher)
    training = arm.stages[0].training(0, start, teacher, None)
    inputs = jax.device_get(next(training.loader.inputs(0)))
    longer = dict(inputs)
    for key in ("tokens", "token_mask"):
        longer[key] = np.pad(inputs[key], [(0, 0), (0, 5)])
    longer["tokens"] = np.where(longer["token_mask"], longer["tokens"], 4)
    one, other = (
        _step(training, training.parallel.shard(rows)) for rows in (inputs, longer)
    )
    same = functools.partial(np.testing.assert_allclose, rtol=2e-4, atol=1e-5)
    jax.tree.map(same, one[1], other[1])
    # Adam's first step is the sign of a gradient: of those that are none, of noise.
    far = [
        np.mean(np.abs(x - y) > 1e-5)
        for x, y in zip(*map(jax.tree.leaves, (one[0], other[0])), strict=True)
    ]
    assert np.mean(far) < 0.1
    assert one[1]["grad_norm"] > 0


def test_a_student_can_begin_with_its_teachers_layers(folder, teacher):
    settings = {"encoders.init_from_teacher": True}
    experiment = encoders.build(_config(folder, **settings))
    start = experiment.student_start(0, teacher)["params"]
    for own, theirs in (("block1", "block2"), ("block2", "block4"), ("norm", "norm")):
        jax.tree.map(
            np.testing.assert_array_equal, start[own], teacher["params"][theirs]
        )
    narrow = {**settings, "student.model.dim": 6}
    experiment = encoders.build(_config(folder, **narrow))
    with pytest.raises(UserError, match="of its teacher's dimensions"):
        experiment.student_start(0, teacher)


def test_a_pretrained_teacher_gets_a_new_classifier(folder, teacher, tmp_path):
    params = {k: x for k, x in teacher["params"].items() if k != "classifier"}
    path = tmp_path / "teacher.safetensors"
    pretrained.save_safetensors(path, {"params": jax.device_get(params)})
    settings = {"teacher.pretrained": str(path), "teacher.finetune": True}
    start = encoders.build(_config(folder, **settings)).teacher_start()["params"]
    jax.tree.map(np.testing.assert_array_equal, start["block3"], params["block3"])
    assert np.abs(start["classifier"]["kernel"]).max() > 0
    settings["teacher.finetune"] = False
    experiment = encoders.build(_config(folder, **settings))
    assert experiment.teacher_training is None
    with pytest.raises(UserError, match="params/classifier"):
        experiment.teacher_start()


@pytest.mark.parametrize(
    ("updates", "words"),
    [
        ({"encoders.lengths": (9, 6)}, "rising numbers"),
        ({"encoders.layer_map": "middle"}, "one of"),
        ({"encoders.main_arm": "best"}, "one of encoders.arms"),
        ({"encoders.arms.top.layer_map": "middle"}, "layer_map out of"),
        ({"encoders.arms.no_layers.without": "hiden"}, "got hiden"),
        ({"encoders.general.train.num_epochs": 1}, "encoders.corpus and"),
        ({"student.train.augment.flip": True}, "texts are not"),
        ({"dataset.streaming": True}, "fit into memory"),
        ({"student.model.depth": 5}, "at most the 4 layers"),
        ({"student.model.max_positions": 8}, "to have 9 positions"),
        ({"student.train.batch_size": 12}, "divide over 8 devices"),
        ({"student.train.batch_size": 80}, "at most"),
    ],
)
def test_a_mistake_is_one_sentence(folder, updates, words):
    with pytest.raises(UserError, match=words):
        encoders.build(_config(folder, **updates))


@pytest.mark.slow
def test_a_corpus_makes_a_general_stage(folder, tmp_path):
    """From which the students of every taught arm go on."""
    (tmp_path / "corpus.txt").write_text("\n".join(["a great film"] * 16))
    settings = {
        "encoders.corpus": str(tmp_path / "corpus.txt"),
        "encoders.general.train.num_epochs": 1,
    }
    config = _config(folder, **settings)
    config.encoders.general.terms = config.encoders.layers.terms
    experiment = encoders.build(config)
    encoders.run(experiment, tmp_path / "run")
    general, layers, labels = (
        json.loads((tmp_path / "run" / place / "inputs.json").read_text())
        for place in (
            "general/seed0",
            "students/top/seed0/layers",
            "students/labels/seed0/labels",
        )
    )
    assert general["start"] == labels["start"] != layers["start"]
    steps = json.loads((tmp_path / "run/general/seed0/result.json").read_text())
    assert steps["steps"] == 2
    report = json.loads((tmp_path / "run/report/report.json").read_text())
    assert report["arms"][0]["name"] == "teacher"
    assert jnp.isfinite(report["arms"][0]["summary"]["mean"])
