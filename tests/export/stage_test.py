"""The stage `export`, from models to a card: whole, compared, resumable, honest."""

import dataclasses
import json
import re

import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import export, losses, pretrained
from kdjax.export import files, formats, onnx_files, writing
from kdjax.report import quantities
from kdjax.types import UserError
from tests.export.conftest import SETTINGS, model, truth

QUICK = dataclasses.replace(SETTINGS, formats=("safetensors", "onnx", "onnx_int8"))


@pytest.fixture(scope="module")
def models():
    return [
        model("teacher", "mlp", seed=0, hidden=(32,)),
        model("student", "mlp", seed=1, hidden=(8,)),
    ]


@pytest.fixture(scope="module")
def exported(models, examples, tmp_path_factory):
    """A directory, and what was found out about the files in it."""
    directory = tmp_path_factory.mktemp("run") / "export"
    return directory, export.write(models, examples, directory, SETTINGS)


def test_every_model_is_there_in_every_format_whole(exported):
    directory, made = exported
    found = {str(p.relative_to(directory)) for p in directory.rglob("*") if p.is_file()}
    names = [one.file for one in export.FORMATS.values()]
    assert found == {f"{role}/{x}" for role in ("teacher", "student") for x in names}
    assert {one["file"] for one in made["files"]} == found
    for one in made["files"]:
        assert one["bytes"] == (directory / one["file"]).stat().st_size


def test_what_is_said_of_a_file_is_what_the_model_does(exported, models, examples):
    _, made = exported
    for one in models:
        logits = truth(one, examples.test["images"])
        accuracy = 100 * np.mean(logits.argmax(-1) == examples.labels)
        assert made["models"][one.role]["accuracy"] == pytest.approx(accuracy)
        nll = losses.cross_entropy(*map(jnp.asarray, (logits, examples.labels)))
        nll = float(nll.mean())
        assert made["models"][one.role]["nll"] == pytest.approx(nll, rel=1e-5)
        for entry in made["files"]:
            if entry["role"] == one.role and "int8" not in entry["format"]:
                assert entry["accuracy"] == pytest.approx(accuracy)
                assert entry["nll"] == pytest.approx(nll, rel=1e-3)
                assert entry["max_deviation"] < 1e-4 < entry["max_logit"]


def test_int8_is_smaller_and_not_the_same(exported):
    by_file = {one["file"]: one for one in exported[1]["files"]}
    small, large = (by_file[f"teacher/model{x}.onnx"] for x in (".int8", ""))
    assert small["bytes"] < 0.6 * large["bytes"]
    assert small["max_deviation"] > 1e-4
    assert small["allowed_difference"] == 1.0


def test_parameters_and_flops_are_counted(exported):
    teacher = exported[1]["models"]["teacher"]
    assert teacher["parameters"] == 64 * 32 + 32 + 32 * 10 + 10
    assert teacher["flops"] == 2 * (64 * 32 + 32 * 10)


def test_weights_load_back_as_a_pretrained_model(exported, models):
    directory, _ = exported
    for one in models:
        path = directory / one.role / "model.safetensors"
        read = pretrained.load(path, one.variables)
        kernel = read["params"]["Dense_0"]["kernel"]
        np.testing.assert_array_equal(
            kernel, one.variables["params"]["Dense_0"]["kernel"]
        )


def test_a_file_that_is_there_is_kept_and_a_missing_one_made_again(
    models, examples, tmp_path
):
    one = models[1:]
    first = export.write(one, examples, tmp_path, QUICK)
    kept, lost = (tmp_path / f"student/model.{x}" for x in ("safetensors", "onnx"))
    before, content = kept.stat().st_mtime_ns, lost.read_bytes()
    lost.unlink()
    second = export.write(one, examples, tmp_path, QUICK)
    assert kept.stat().st_mtime_ns == before
    assert lost.read_bytes() == content
    digests = [[x["sha256"] for x in made["files"]] for made in (first, second)]
    assert digests[0] == digests[1]


def test_a_killed_export_leaves_no_half_file(tmp_path):
    path = tmp_path / "student" / "model.onnx"
    with pytest.raises(KeyboardInterrupt):
        _half(path, KeyboardInterrupt)
    assert not path.exists()
    with files.replacing(path) as temporary:
        temporary.write_bytes(b"whole")
    with pytest.raises(RuntimeError):
        _half(path, RuntimeError)
    assert path.read_bytes() == b"whole"
    assert list(path.parent.iterdir()) == [path]


def _half(path, error):
    with files.replacing(path) as temporary:
        temporary.write_bytes(b"half")
        raise error


def test_a_file_of_another_model_is_found_out(models, examples, tmp_path):
    """The comparison sees what is in the file, not what should be."""
    teacher, student = models
    onnx_files.write(teacher, tmp_path / "student" / "model.onnx")
    settings = dataclasses.replace(QUICK, formats=("onnx",))
    made = export.write([student], examples, tmp_path, settings)
    (one,) = made["files"]
    wrong, right = (truth(x, examples.test["images"]) for x in (teacher, student))
    change = 100 * (
        np.mean(wrong.argmax(-1) == examples.labels)
        - np.mean(right.argmax(-1) == examples.labels)
    )
    assert abs(change) > 0.1
    assert one["accuracy_difference"] == pytest.approx(change)
    assert not one["within"]
    sentence = export.exceeded(made)
    assert "student/model.onnx" in sentence
    assert f"{abs(change):.2f} of 0.1" in sentence


def entry(difference, points):
    return {
        "file": "f",
        "accuracy_difference": difference,
        "allowed_difference": points,
    }


@pytest.mark.parametrize(
    ("difference", "points", "within"),
    [(0.1, 0.1, True), (-0.1, 0.1, True), (-0.11, 0.1, False), (-1.01, 1.0, False)],
)
def test_what_is_allowed_is_allowed_exactly(difference, points, within):
    assert writing.is_within(difference, points) == within
    made = {"files": [entry(difference, points) | {"within": within}]}
    assert bool(export.exceeded(made)) != within


STORY = export.Story(
    {"teacher": ["Trained."], "student": ["Distilled."]}, ["* Digits."], "@misc{x}"
)


@pytest.fixture
def carded(exported, models, capsys):
    directory, made = exported
    about = {
        "name": "digits",
        "command": "python -m kdjax.main",
        "dataset": "digits",
        "num_examples": 50,
        "versions": {"jax": "1"},
        "hardware": {
            "platform": "cpu",
            "device_kind": "cpu",
            "cpu": "AMD EPYC",
            "cores": 2,
        },
        "commit": None,
        "settings": {"batch_size": 16},
    }
    made = json.loads(json.dumps({"about": about, **made}, sort_keys=True))
    named = [str(i) for i in range(10)]
    for role in made["models"].values():
        role["class_names"] = named
    export.report(made, STORY, directory)
    return directory, made, capsys.readouterr().out


def test_the_card_has_a_row_a_file_lineage_licence_and_citation(carded):
    directory, made, printed = carded
    card = (directory / "README.md").read_text()
    for words in ("Trained.", "Distilled.", "* Digits.", "@misc{x}", "not stated"):
        assert words in card
    assert "| Student, ONNX int8 |" in card
    assert card.count("\n| ") == 1 + 1 + len(made["files"])
    assert "uint8 `[batch, 8, 8, 1]`" in card
    assert '"mean": [0.3]' in card
    assert "Student, StableHLO" in printed
    assert "✓ Every file is as accurate" in printed
    for name in ("accuracy.svg", "accuracy.png"):
        assert (directory / name).stat().st_size > 1000
    assert "](accuracy.svg)" in card


def test_the_code_in_the_card_runs(carded, monkeypatch):
    directory, _, _ = carded
    card = (directory / "README.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", card, re.S)
    assert len(blocks) == len(export.FORMATS)
    monkeypatch.chdir(directory)
    shapes = []
    for block in blocks:
        names = {}
        exec(block, names)
        if "logits" in names:
            shapes.append(np.shape(names["logits"]))
    assert shapes == [(1, 10)] * 3


def test_a_file_that_is_off_is_marked_in_the_card(carded, exported, capsys):
    directory, made, _ = carded
    made["files"][0].update(within=False, accuracy_difference=-3.0)
    export.report(made, STORY, directory)
    assert "✗ Expected files as accurate as their models" in capsys.readouterr().out
    card = (directory / "README.md").read_text()
    assert "**`teacher/model.safetensors` is not as accurate as its model**" in card
    assert f"{quantities.MINUS}3.00 ✗" in card


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(formats=("tflite",)), "export.formats out of safetensors, stablehlo"),
        (dict(formats=()), "got none"),
        (dict(formats=("onnx_int8",)), "'onnx' in export.formats, of which"),
        (dict(formats=("onnx",), qat_epochs=2), "for which export.qat_epochs trains"),
        (dict(pixels="int8"), "export.pixels out of uint8, float32, got 'int8'"),
        (dict(calibration=0), "export.calibration of 1 or more, got 0"),
    ],
)
def test_mistakes_in_the_section_are_told(changes, words):
    with pytest.raises(UserError, match=re.escape(words)):
        dataclasses.replace(SETTINGS, **changes)


def test_a_missing_package_is_told_before_anything_is_written(
    models, examples, tmp_path, monkeypatch
):
    def missing(name):
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(onnx_files.importlib, "import_module", missing)
    with pytest.raises(UserError, match=r"pip install 'kdjax\[export\]'"):
        export.write(models, examples, tmp_path / "export", QUICK)
    assert not (tmp_path / "export").exists()
    settings = dataclasses.replace(QUICK, formats=("safetensors",))
    export.write(models, examples, tmp_path / "export", settings)
    assert formats.FORMATS["safetensors"].file == "model.safetensors"
