"""The stage `export` of a run: which student, what is said of it, when not again."""

import importlib
import json
import pathlib
import runpy

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import default_config, export, pretrained
from kdjax.recipes import _export, offline
from kdjax.types import UserError

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"


def rows(directory, *accuracies):
    directory.mkdir(parents=True)
    text = "".join(
        json.dumps({"step": step, "validation_accuracy": accuracy}) + "\n"
        for step, accuracy in enumerate(accuracies, start=1)
    )
    (directory / "metrics.jsonl").write_text(text)


def test_the_seed_is_the_best_on_validation_after_the_last_epoch(tmp_path):
    rows(tmp_path / "seed0", 0.1, 0.7)
    rows(tmp_path / "seed3", 0.2, 0.8)
    rows(tmp_path / "seed5", 0.9, 0.6)
    seed, why = _export.best_seed({x: tmp_path / f"seed{x}" for x in (0, 3, 5)})
    assert seed == 3
    assert why.startswith("Seed 3, the best of 3 on the validation split")
    assert "80.00 %" in why


def test_the_seed_is_the_first_where_nothing_was_held_out(tmp_path):
    seed, why = _export.best_seed({x: tmp_path / f"seed{x}" for x in (4, 7)})
    assert (seed, why.split(":")[0]) == (4, "Seed 4, the first")


def test_examples_are_spread_evenly_and_no_example_twice():
    ids = _export.spread(1000, 10)
    assert (ids[0], ids[-1], len(set(ids))) == (0, 999, 10)
    assert np.ptp(np.diff(ids)) <= 1
    np.testing.assert_array_equal(_export.spread(5, 10), np.arange(5))


def test_a_label_in_running_text_is_the_token_after():
    train, test = (np.arange(n * 6).reshape(n, 6) for n in (7, 4))
    data = _export.of_windows("a book", train, test, None)
    config = default_config.get_config().export
    config.update(test_examples=3, calibration=2)
    found = data.examples(export.Settings(**config))
    np.testing.assert_array_equal(found.test["tokens"] + 1, found.labels)
    assert found.test["tokens"].shape == found.test["mask"].shape == (3, 5)
    assert found.test["mask"].all()
    np.testing.assert_array_equal(found.calibration["tokens"], train[[0, 6], :-1])
    assert (data.longest, data.counts) == (5, {"train": 7, "test": 4})


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished run of seconds, whose student has a convolution."""
    config = default_config.smoke(default_config.get_config())
    config.seeds = (0,)
    config.teacher.model = dict(name="mlp", dtype="float32", hidden=(16,))
    for role in (config.teacher, config.student):
        role.train.num_epochs = 1
    config.export.update(runs=3, qat_epochs=1, formats=("onnx", "onnx_int8"))
    workdir = tmp_path_factory.mktemp("run")
    offline.run(offline.build(config), workdir, ("teacher", "cache", "student"))
    return config, workdir


@pytest.mark.slow
def test_a_run_is_exported_once_with_a_student_that_knows_of_eight_bits(trained):
    config, workdir = trained
    experiment = offline.build(config)
    offline.run(experiment, workdir, ("export",), command="again")
    made = json.loads((workdir / "export" / "export.json").read_text())
    assert [one["file"] for one in made["files"]] == [
        f"{role}/model{kind}.onnx"
        for role in ("teacher", "student", "student_qat")
        for kind in ("", ".int8")
    ]
    assert made["about"]["command"] == "again"
    card = (workdir / "export" / "README.md").read_text()
    for words in ("Seed 0, the best of 1", "hinton2015distilling", "rounded to eight"):
        assert words in card
    paths = [workdir / "export" / one["file"] for one in made["files"]]
    times = [path.stat().st_mtime_ns for path in paths]
    offline.run(experiment, workdir, ("export",))
    assert times == [path.stat().st_mtime_ns for path in paths]
    config.export.calibration = 8
    with pytest.raises(UserError, match="calibration was 512, is 8"):
        offline.run(offline.build(config), workdir, ("export",))


def test_nothing_is_exported_before_it_is_trained(tmp_path):
    config = default_config.smoke(default_config.get_config())
    with pytest.raises(UserError, match="Expected a finished training in"):
        offline.run(offline.build(config), tmp_path, ("export",))
    assert not (tmp_path / "export").exists()


def test_models_are_exported_in_float32_whatever_they_were_trained_in():
    config = default_config.smoke(default_config.get_config())
    config.student.model = dict(name="mlp", dtype="bfloat16", hidden=(8,))
    experiment = offline.build(config)
    assert experiment.exported["teacher"] is experiment.teacher
    images = experiment.splits.test.take(np.arange(4))["image"]
    variables = experiment.student.init(jax.random.key(0))

    def text(network):
        def logits(variables, images):
            return network.apply(variables, images, train=False)[0].logits

        return str(jax.make_jaxpr(logits)(variables, jnp.asarray(images)))

    assert "bf16" in text(experiment.student)
    assert "bf16" not in text(experiment.exported["student"])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lm_kd", "tinybert"])
def test_a_model_of_texts_is_exported_with_its_tokenizer(name, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    tokenizers = pytest.importorskip("tokenizers")
    config = runpy.run_path(str(CONFIGS / f"{name}.py"))["get_config"]("smoke")
    config.seeds = (0,)
    config.export.update(runs=3)
    made = importlib.import_module(f"kdjax.recipes.{config.recipe}")
    made.run(made.build(config), tmp_path, None)
    made.run(made.build(config), tmp_path, ("export",))
    text = "Nothing here is worth a second look."
    tokenizer = tokenizers.Tokenizer.from_file(
        str(tmp_path / "export" / "tokenizer.json")
    )
    tokens = np.array([tokenizer.encode(text).ids[:8]], np.int32)
    path = tmp_path / "export" / "student" / "model.onnx"
    session = onnxruntime.InferenceSession(str(path))
    feed = {"tokens": tokens, "mask": np.ones(tokens.shape, bool)}
    (logits,) = session.run(["logits"], feed)
    network = made.build(config).exported["student"]
    (weights,) = (tmp_path / "export").glob("student/model.safetensors")
    variables = pretrained.load(weights, network.init(jax.random.key(0)))
    inputs = jax.tree.map(jnp.asarray, feed)
    expected = network.apply(variables, inputs, train=False)[0].logits
    np.testing.assert_allclose(logits, expected, atol=1e-5)
    card = (tmp_path / "export" / "README.md").read_text()
    for words in ("tokenizer.json", "negative log-likelihood", "FLOPs a token"):
        assert words in card
