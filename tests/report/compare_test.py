"""Work directories side by side: what is alike is paired, what is not is refused."""

import dataclasses
import json

import numpy as np
import pytest
from scipy import stats

from kdjax import report
from kdjax.report import __main__ as command
from kdjax.report import compare, study, sweep
from kdjax.types import UserError

LABELS = np.random.default_rng(0).integers(0, 5, 200)
CONFIG = {"dataset": {"name": "digits"}, "student": {"model": {"name": "mlp"}}}


def _logits(seed, signal):
    rng = np.random.default_rng(seed)
    return signal * np.eye(5)[LABELS] + rng.normal(size=(200, 5))


def _write_run(path, config=CONFIG, data=None, **about):
    results = [report.ModelResult("teacher", 0, _logits(0, 6))]
    for seed in (0, 1, 2):
        results.append(report.ModelResult("student", seed, _logits(10 + seed, 4)))
        results.append(report.ModelResult("baseline", seed, _logits(20 + seed, 2)))
    info = report.RunInfo(path.name, "c", 4.0, config=config, data=data or {}, **about)
    made = report.build(results, {}, info, LABELS)
    (path / "report").mkdir(parents=True)
    (path / "report" / "report.json").write_text(json.dumps(made))
    return made


def _write_study(path, values, unit="accuracy", config=CONFIG, **about):
    about = dict(num_examples=200, unit=unit, config=config) | about
    made = study.build(
        study.About(path.name, "c", **about), [study.Arm("a", "Arm", values)]
    )
    (path / "report").mkdir(parents=True)
    (path / "report" / "report.json").write_text(json.dumps(made))


def _write_sweep(path, hidden=None):
    rows = [
        {
            "values": {"distill.temperature": t, **(hidden or {})},
            "seed": seed,
            "status": "done",
            "test_accuracy": 80 + t + seed,
            "validation_accuracy": 80 + t + seed,
        }
        for t in (1.0, 4.0)
        for seed in (0, 1, 2)
    ]
    axes = {"distill.temperature": [1.0, 4.0]}
    about = study.About(path.name, "c", num_examples=200, config=CONFIG)
    made = sweep.build(about, sweep.parse({"axes": axes, "rows": rows}))
    sweep.write(made, path / "report")


def _build(tmp_path, *names, **options):
    return compare.build([compare.read(tmp_path / x) for x in names], **options)


def _arm(made, title):
    return next(arm for arm in made["arms"] if arm["title"] == title)


def test_a_run_a_study_and_a_sweep_are_paired_by_seed(tmp_path):
    run = _write_run(tmp_path / "run")
    _write_study(tmp_path / "study", {1: 91.0, 2: 92.0, 7: 93.0})
    _write_sweep(tmp_path / "sweep")
    made = _build(tmp_path, "run", "study", "sweep")
    baseline = run["roles"]["baseline"]["last"]["accuracy"]["values"]
    arm = _arm(made, "study: Arm")
    assert arm["against"] == "run: Baseline (no teacher)"
    assert arm["gain"]["seeds"] == [1, 2]
    paired = stats.ttest_rel([91.0, 92.0], baseline[1:]).confidence_interval(0.95)
    assert arm["gain"]["low"] == pytest.approx(paired.low)
    assert arm["gain"]["high"] == pytest.approx(paired.high)
    best = _arm(made, "sweep: temperature = 4")
    assert best["values"] == [84.0, 85.0, 86.0]
    assert "out of 2 settings" in best["note"]
    assert _arm(made, "run: Teacher")["gain"] is None  # Its seed is no student's.


def test_errors_and_accuracies_of_as_many_examples_are_one_unit(tmp_path):
    _write_study(tmp_path / "accuracy", {0: 90.0, 1: 91.0})
    _write_study(tmp_path / "errors", {0: 20, 1: 16}, unit="errors")
    made = _build(tmp_path, "accuracy", "errors")
    assert _arm(made, "errors: Arm")["values"] == pytest.approx([90.0, 92.0])
    assert _arm(made, "errors: Arm")["gain"]["values"] == pytest.approx([0.0, 1.0])


@pytest.mark.parametrize(
    ("about", "words"),
    [
        (dict(config={"dataset": {"name": "mnist"}}), "on 200 test examples of mnist"),
        (dict(num_examples=300), "on 300 test examples of digits"),
        (dict(split="validation"), "on 200 validation examples"),
        (dict(data={"test": "x"}), "the fingerprints differ"),
        (dict(unit="perplexity"), "it reports perplexity"),
    ],
)
def test_what_cannot_be_compared_is_left_out_with_a_reason(tmp_path, about, words):
    _write_run(tmp_path / "run", data={"test": "y"})
    _write_study(tmp_path / "other", {0: 90.0}, **about)
    made = _build(tmp_path, "run", "other")
    assert not any(arm["title"].startswith("other") for arm in made["arms"])
    refused = [entry for entry in made["findings"] if entry["kind"] == "miss"]
    assert len(refused) == 1
    assert refused[0]["text"].startswith("other is left out: ")
    assert words in refused[0]["text"]


def test_equal_fingerprints_are_told_and_their_lack_is_too(tmp_path):
    for name in ("a", "b"):
        _write_study(tmp_path / name, {0: 90.0}, data={"test": "x"})
    _write_study(tmp_path / "c", {0: 90.0})
    texts = [e["text"] for e in _build(tmp_path, "a", "b")["findings"]]
    assert any("fingerprints are equal" in text for text in texts)
    texts = [e["text"] for e in _build(tmp_path, "a", "c")["findings"]]
    assert any("by name and number alone" in text for text in texts)


def test_pairs_of_other_students_and_of_no_seed_are_marked(tmp_path):
    other = CONFIG | {"student": {"model": {"name": "resnet8"}}}
    _write_study(tmp_path / "a", {0: 90.0, 1: 91.0})
    _write_study(tmp_path / "b", {0: 90.0, 1: 91.0}, config=other)
    _write_study(tmp_path / "c", {5: 90.0, 6: 91.0})
    _write_sweep(tmp_path / "d", hidden={"student.model.hidden": [30]})
    made = _build(tmp_path, "a", "b", "c", "d")
    assert _arm(made, "b: Arm")["note"] == "another student"
    assert _arm(made, "c: Arm")["note"] == "no seed in common"
    assert _arm(made, "c: Arm")["gain"] is None
    assert any(arm["note"].endswith("another student") for arm in made["arms"][3:])


def test_the_reference_can_be_chosen(tmp_path):
    _write_run(tmp_path / "run")
    made = _build(tmp_path, "run", against="run: Student (distilled)")
    against = {arm["against"] for arm in made["arms"]} - {None}
    assert against == {"run: Student (distilled)"}
    with pytest.raises(UserError, match="--against to be one of run: Teacher"):
        _build(tmp_path, "run", against="nobody")


def test_directories_of_one_name_are_refused(tmp_path):
    _write_study(tmp_path / "x" / "a", {0: 90.0})
    one = compare.read(tmp_path / "x" / "a")
    with pytest.raises(UserError, match="different names, got a, a"):
        compare.build([one, dataclasses.replace(one)])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "--stages=report"),
        ("{", "does not parse"),
        ("{}", "KeyError"),
        ('{"arms": [], "config": {}}', "KeyError: 'dataset'"),
        ('{"arms": 3, "config": {"dataset": {"name": "x"}}, "split": "test", '
         '"num_examples": 3, "unit": "accuracy"}', "TypeError"),
    ],
)  # fmt: skip
def test_a_directory_without_a_report_is_refused_in_a_sentence(
    tmp_path, capsys, content, words
):
    if content is not None:
        (tmp_path / "report").mkdir()
        (tmp_path / "report" / "report.json").write_text(content)
    assert command.main([str(tmp_path), f"--out={tmp_path / 'out'}"]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_the_command_writes_a_page_and_tells_where(tmp_path, capsys):
    _write_run(tmp_path / "run")
    _write_study(tmp_path / "other", {0: 90.0, 1: 91.0})
    arguments = [str(tmp_path / x) for x in ("run", "other")]
    assert command.main([*arguments, f"--out={tmp_path / 'out'}"]) == 0
    text = capsys.readouterr().out
    assert "other: Arm" in text
    assert text.strip().endswith("report.html")
    made = json.loads((tmp_path / "out" / "report.json").read_text())
    assert made["command"].startswith("python -m kdjax.report ")
    assert "4 results on 200 test examples of digits" in made["headline"]
