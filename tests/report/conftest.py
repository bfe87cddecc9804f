"""A small run to report: labels, logits, costs, histories and examples."""

import dataclasses
import types

import numpy as np
import pytest

from kdjax import measure, report

NUM_CLASSES = 7
LABELS = np.random.default_rng(0).integers(0, NUM_CLASSES, 211)
HOSTILE = "</script><img src=x onerror=alert(1)> & \"$x_1$\" 'q' 猫"


def _logits(seed, signal):
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=(len(LABELS), NUM_CLASSES))
    return (signal * np.eye(NUM_CLASSES)[LABELS] + noise).astype(np.float32)


def _history(seed, terms):
    rng = np.random.default_rng(seed)
    rows = []
    for epoch in range(1, 31):
        row = {"step": 10 * epoch, "epoch": float(epoch), "loss": 2.0 / epoch}
        row |= {term: 2.0 / epoch + 0.1 * rng.random() for term in terms}
        if epoch % 2 == 0:
            row["validation_accuracy"] = 0.9 - 0.5 / epoch + 0.01 * rng.random()
        rows.append(row)
    return rows


def _results(seeds=(3, 1, 2)):
    """One teacher, and for each seed a student better than its baseline."""
    results = [report.ModelResult("teacher", 9, _logits(9, 5.0), _logits(10, 5.0))]
    for seed in seeds:
        for role, signal, terms in (
            ("student", 3.5, ("hard", "soft")),
            ("baseline", 2.0, ("hard",)),
        ):
            offset = 100 * seed + len(role)
            results.append(
                report.ModelResult(
                    role,
                    seed,
                    _logits(offset, signal),
                    _logits(offset + 1, signal),
                    _history(offset, terms),
                    seconds=2.5,
                )
            )
    return results


def _costs():
    def cost(parameters, milliseconds):
        return measure.ModelCost(
            parameters=parameters,
            nbytes=4 * parameters,
            flops=2.0 * parameters,
            latency_ms=measure.Quantiles(milliseconds, 2 * milliseconds),
            latency_runs=50,
            throughput=1000.0 / milliseconds,
            batch_size=128,
            throughput_runs=10,
            compile_seconds=1.5,
        )

    return {
        "teacher": cost(855_770, 4.0),
        "student": cost(272_474, 2.0),
        "baseline": cost(272_474, 2.0),
    }


def _examples(num_classes=NUM_CLASSES):
    rng = np.random.default_rng(5)
    return report.Examples(
        images=rng.integers(0, 256, (3, 6, 5, 3)).astype(np.uint8),
        labels=np.array([2, 0, 6]),
        teacher_logits=rng.normal(size=(3, num_classes)).astype(np.float32) * 4,
    )


def _run(**changes):
    run = report.RunInfo(
        name="synthetic",
        command="python -m kdjax.main --config=configs/digits_kd.py",
        temperature=4.0,
        config={"distill": {"temperature": 4.0, "alpha": 0.9}},
        versions={"jax": "0.10.2"},
        hardware={"platform": "cpu", "device_kind": "cpu"},
        commit="0123abc",
        stage_seconds={"teacher": 75, "student": 3.5},
    )
    return dataclasses.replace(run, **changes)


def _build(results=None, **changes):
    results = _results() if results is None else results
    return report.build(results, _costs(), _run(**changes), LABELS, _examples())


@pytest.fixture(scope="session")
def synthetic():
    """The parts of the run, and `build`, which makes its report."""
    return types.SimpleNamespace(
        labels=LABELS,
        num_classes=NUM_CLASSES,
        hostile=HOSTILE,
        logits=_logits,
        history=_history,
        results=_results,
        costs=_costs,
        examples=_examples,
        run=_run,
        build=_build,
    )


@pytest.fixture(scope="session")
def written(tmp_path_factory):
    """A report with everything in it, where it was written, and its files."""
    made = _build(
        published={"source": "Hinton, https://arxiv.org/abs/1503.02531", "student": 90},
        bands={"teacher": (95, None), "student": (None, 10.5)},
        class_names=[HOSTILE, *"bcdefg"],
        notes=[f"A note: {HOSTILE}"],
        name=f"name {HOSTILE}",
    )
    directory = tmp_path_factory.mktemp("run") / "not" / "yet"
    return made, directory, report.write(made, directory)
