"""Tests of report/assemble.py and report/records.py."""

import dataclasses

import numpy as np
import pytest

from kdjax import report
from kdjax.types import UserError

# The numbers.


def test_metrics_of_every_role_are_those_of_its_logits(synthetic):
    made = synthetic.build()
    for role, entry in made["roles"].items():
        results = sorted(
            (r for r in synthetic.results() if r.role == role), key=lambda r: r.seed
        )
        assert entry["seeds"] == [r.seed for r in results]
        for epoch, name in (("last", "logits"), ("best", "best_logits")):
            logits = np.stack([getattr(r, name) for r in results]).astype(np.float64)
            wrong = (logits.argmax(-1) != synthetic.labels).sum(-1)
            assert entry[epoch]["errors"]["values"] == wrong.tolist()
            expected = 100 * (1 - wrong / len(synthetic.labels))
            np.testing.assert_allclose(entry[epoch]["accuracy"]["values"], expected)
            log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
            nll = -log_probs[
                :, np.arange(len(synthetic.labels)), synthetic.labels
            ].mean(-1)
            np.testing.assert_allclose(entry[epoch]["nll"]["values"], nll, rtol=1e-5)
            assert entry[epoch]["nll"]["mean"] == pytest.approx(nll.mean(), rel=1e-5)
        assert ("agreement" in entry["last"]) == (role != "teacher")


def test_student_and_baseline_are_compared_with_the_teacher(synthetic):
    made, results = synthetic.build(), synthetic.results()
    teacher = results[0].logits.astype(np.float64)
    teacher = teacher - np.log(np.exp(teacher).sum(-1, keepdims=True))
    for result in results[1:]:
        entry = made["roles"][result.role]
        i = entry["seeds"].index(result.seed)
        same = (result.logits.argmax(-1) == teacher.argmax(-1)).mean()
        assert entry["last"]["agreement"]["values"][i] == pytest.approx(100 * same)
        own = result.logits.astype(np.float64)
        own = own - np.log(np.exp(own).sum(-1, keepdims=True))
        forward_kl = (np.exp(teacher) * (teacher - own)).sum(-1).mean()
        measured = entry["last"]["forward_kl"]["values"][i]
        assert measured == pytest.approx(forward_kl, rel=1e-5)


def test_a_teacher_of_each_seed_is_compared_with_its_own_student(synthetic):
    results = synthetic.results(seeds=(1, 2))[1:]
    for seed in (1, 2):
        results.append(
            report.ModelResult("teacher", seed, synthetic.logits(50 + seed, 4.0))
        )
        # A student that is its teacher, so that only the right pairing agrees.
        i = next(
            i for i, r in enumerate(results) if (r.role, r.seed) == ("student", seed)
        )
        results[i] = dataclasses.replace(
            results[i], logits=synthetic.logits(50 + seed, 4.0)
        )
    made = synthetic.build(results)
    assert made["roles"]["student"]["last"]["agreement"]["values"] == [100.0, 100.0]


def test_the_gain_pairs_seeds_and_not_positions(synthetic):
    results = synthetic.results()
    made, shuffled = synthetic.build(results), synthetic.build(results[::-1])
    student, baseline = (
        {
            r.seed: (r.logits.argmax(-1) == synthetic.labels).mean()
            for r in results
            if r.role == x
        }
        for x in ("student", "baseline")
    )
    gain = made["gain"]["last"]["accuracy"]
    assert gain["seeds"] == [1, 2, 3]
    expected = [100 * (student[seed] - baseline[seed]) for seed in (1, 2, 3)]
    np.testing.assert_allclose(gain["values"], expected)
    assert shuffled["gain"] == made["gain"]


def test_the_gap_closed_is_a_share_of_the_way_from_baseline_to_teacher(synthetic):
    for unit in ("accuracy", "errors"):
        made = synthetic.build(unit=unit)
        teacher, student, baseline = (
            made["roles"][role]["last"][unit]["mean"]
            for role in ("teacher", "student", "baseline")
        )
        expected = (student - baseline) / (teacher - baseline)
        assert 0 < expected < 1
        assert made["gain"]["gap_closed"] == pytest.approx(expected)


def test_a_teacher_below_the_baseline_leaves_no_gap_to_close(synthetic):
    results = [
        report.ModelResult("teacher", 0, synthetic.logits(0, 0.5)),
        *synthetic.results()[1:],
    ]
    assert synthetic.build(results)["gain"]["gap_closed"] is None


def test_bands_and_published_figures_are_compared_with_the_mean(synthetic):
    made = synthetic.build(
        unit="errors",
        published={"student": 74, "source": "a paper"},
        bands={"teacher": (None, 1000), "student": (0, 0.5), "baseline": (2, None)},
    )
    roles = made["roles"]
    measured = roles["student"]["last"]["errors"]["mean"]
    assert roles["student"]["published"] == {"value": 74, "difference": measured - 74}
    assert roles["teacher"]["published"] is None
    met = {role: entry["band"]["met"] for role, entry in roles.items()}
    assert met == {"teacher": True, "student": False, "baseline": True}
    kinds = [found["kind"] for found in made["findings"]]
    assert (kinds.count("hit"), kinds.count("miss")) == (2, 1)


def test_soft_labels_are_those_of_the_teacher_at_both_temperatures(synthetic):
    made, examples = synthetic.build(), synthetic.examples()
    for shown, logits in zip(
        made["examples"], examples.teacher_logits.astype(np.float64), strict=True
    ):
        sharp, soft = (np.exp(z) / np.exp(z).sum() for z in (logits, logits / 4.0))
        np.testing.assert_allclose(shown["probabilities"], sharp)
        np.testing.assert_allclose(shown["softened"], soft)


def test_of_many_classes_the_likeliest_and_the_labelled_one_are_shown(synthetic):
    examples = synthetic.examples(num_classes=40)
    labels = np.arange(211) % 40
    logits = np.eye(40)[labels]
    made = report.build(
        [report.ModelResult("teacher", 0, logits)],
        {},
        synthetic.run(),
        labels,
        examples,
    )
    for shown, row, label in zip(
        made["examples"], examples.teacher_logits, examples.labels, strict=True
    ):
        ids = shown["class_ids"]
        assert len(ids) == 10
        assert label in ids
        assert sorted(ids, key=lambda i: -row[i]) == ids
        assert set(np.argsort(-row)[:9].tolist()) <= set(ids)


def test_long_histories_are_thinned_but_keep_evaluations_and_the_end(synthetic):
    rows = [{"step": i, "epoch": i / 100, "hard": 1.0} for i in range(1, 5001)]
    rows[1233]["validation_accuracy"] = 0.5
    rows[-1]["validation_accuracy"] = 0.6
    result = report.ModelResult("student", 0, synthetic.logits(0, 2.0), None, rows)
    columns = synthetic.build([result])["roles"]["student"]["histories"][0]["columns"]
    assert 400 <= len(columns["step"]) <= 402
    known = [x for x in columns["validation_accuracy"] if x is not None]
    assert known == [0.5, 0.6]
    assert columns["step"][0] == 1
    assert columns["step"][-1] == 5000


# Refusals.


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_logits_that_are_not_finite_are_refused(synthetic, value):
    results = synthetic.results()
    results[3].logits[[5, 8], 2] = value
    with pytest.raises(UserError, match=r"finite test logits of student, seed 1.*in 2"):
        synthetic.build(results)
    results = synthetic.results()
    results[0].best_logits[0, 0] = value
    with pytest.raises(UserError, match="teacher, seed 9"):
        synthetic.build(results)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda results: [], "at least one model"),
        (lambda results: [*results, results[1]], "got two of student, seed 3"),
        (
            lambda results: [dataclasses.replace(results[0], logits=np.zeros((5, 7)))],
            r"logits \[211, num_classes\] of teacher.*got \[5, 7\]",
        ),
        (
            lambda results: [
                *results[1:],
                dataclasses.replace(
                    results[0], logits=np.zeros((211, 8)), best_logits=None
                ),
            ],
            "equally many classes.*teacher, seed 9: 8",
        ),
        (
            lambda results: [*results, dataclasses.replace(results[0], seed=8)],
            r"one teacher for all seeds or a teacher for seed 3?1?.*seeds \[9, 8\]",
        ),
    ],
)
def test_results_that_cannot_be_compared_are_refused(synthetic, change, message):
    with pytest.raises(UserError, match=message):
        synthetic.build(change(synthetic.results()))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"class_names": ["a", "b"]}, "7 class names, one per logit, got 2"),
        ({"published": {"studnet": 1}}, "keys of published.*studnet"),
        ({"bands": {"pupil": (1, 2)}}, "keys of bands.*pupil"),
    ],
)
def test_a_run_that_does_not_fit_is_refused(synthetic, changes, message):
    with pytest.raises(UserError, match=message):
        synthetic.build(**changes)


def test_labels_outside_the_classes_are_refused(synthetic):
    with pytest.raises(UserError, match="labels from 0 to 6, got 0 to 7"):
        report.build(
            synthetic.results(),
            {},
            synthetic.run(),
            np.append(synthetic.labels[:-1], 7).astype(np.int64),
        )
