"""Sweeps as wholes: groups, plans, who diverges or stops, proposals, mistakes."""

import jax
import numpy as np
import pytest

from kdjax import sweep
from kdjax.builders import sweep as builder
from kdjax.recipes import sweep as recipe
from kdjax.sweep import plan, pool
from kdjax.sweep.trainer import chunks
from kdjax.types import UserError

TEMPERATURE = "distill.temperature"
TEMPERATURES = {TEMPERATURE: (1.0, 4.0)}


def _statuses(found):
    return [row["status"] for row in found["rows"]]


def test_numbers_share_a_program_and_structure_does_not(make_config):
    experiment = builder.build(
        make_config(
            {
                "distill.temperature": (1.0, 4.0),
                "student.train.optimizer.clip_norm": (0.0, 1.0, 2.0),
                "student.model.hidden": ((5,), (7, 3)),
                "student.train.batch_size": (80,),
            }
        )
    )
    groups = {
        (group.values["student.model.hidden"][0], len(group.rows)): group
        for group in experiment.groups
    }
    # Clipping or not is another program; by how much is not.
    assert set(groups) == {(5, 4), (5, 8), (7, 4), (7, 8)}
    assert experiment.fixed == {"student.train.batch_size": 80}
    assert experiment.axes["student.model.hidden"] == [[5], [7, 3]]
    assert groups[7, 8].values["student.model.hidden"] == [7, 3]
    values = [row.values for group in experiment.groups for row in group.rows]
    assert all(x.keys() == experiment.axes.keys() for x in values)
    # Without a teacher the temperature is none of theirs.
    assert sum(len(group.rows) for group in experiment.baselines) == 12


def test_other_views_are_another_cache(make_config):
    experiment = builder.build(make_config({"student.train.num_views": (1, 2)}))
    names = [group.cache.name for group in experiment.groups]
    assert names[1] == "cache"
    assert names[0].startswith("cache-")


def test_students_of_a_seed_share_its_batches():
    assert pool.shape_of([1, 1, 0, 0]) == (2, 2)
    assert pool.shape_of([1, 0, 0, 0]) == (4, 1)
    assert pool.shape_of([7, 7, 7]) == (1, 3)


@pytest.mark.parametrize(("most", "sizes"), [(0, [6]), (4, [4, 2]), (3, [2, 2, 2])])
def test_chunks_keep_the_students_of_a_seed_together(most, sizes, make_config):
    axes = {**TEMPERATURES, "seed": range(3)}
    (group,) = builder.build(make_config(axes)).groups
    found = chunks(group, range(6), "vmap", most, 1)
    assert [len(chunk.rows) for chunk in found] == sizes
    assert all(pool.shape_of(chunk.seeds)[1] == 2 for chunk in found)
    assert sorted(row for chunk in found for row in chunk.rows) == list(range(6))


@pytest.mark.parametrize(
    ("form", "each", "gibibytes", "most"),
    [("vmap", 10, 0.0, 16), ("vmap", 10, 0.1, 10), ("loop", 10, 0.1, 10)],
)
def test_what_does_not_fit_in_memory_is_cut_into_chunks(
    form, each, gibibytes, most, make_config, monkeypatch, on_one_device
):
    axes = {"distill.temperature": tuple(range(1, 17)), "seed": (0,)}
    experiment = builder.build(make_config(axes, form=form, max_gigabytes=gibibytes))
    unit = 2**30 // 1000
    trainer = sweep.Trainer(experiment, {}, lambda stored: {})

    def measure(trainer, chunk, limit):
        peak = each * len(chunk.rows) * unit
        return plan.Measured(0.5, 1.0, peak, each * unit)

    monkeypatch.setattr(plan, "_measure", measure)
    (entry,) = plan.make(trainer, experiment.groups, experiment.options)
    assert entry["students_per_program"] == most
    assert entry["peak_bytes"] == each * most * unit
    assert entry["programs"] == (1 if most == 16 else 2)
    assert entry["predicted_seconds"] >= 0.5 * 16 * 15
    monkeypatch.setattr(plan, "free_bytes", lambda: unit)
    experiment = builder.build(make_config(axes, form=form))
    with pytest.raises(UserError, match="Expected room for one student of student0"):
        plan.make(trainer, experiment.groups, experiment.options)


def test_the_faster_form_is_taken_and_the_reason_given(
    make_config, make_trainer, on_one_device, capsys
):
    experiment = builder.build(make_config({**TEMPERATURES, "seed": range(2)}))
    entries = sweep.make_plan(experiment, make_trainer(experiment))
    assert [entry["group"] for entry in entries] == ["student0", "baseline0"]
    assert entries[0]["peak_bytes"] > entries[1]["peak_bytes"] > 0
    for entry in entries:
        by_form = entry["seconds_by_form"]
        assert entry["form"] == min(by_form, key=by_form.get)
        assert "ms a student's step by loop" in entry["why"]
    recipe.dry_run(experiment)
    printed = capsys.readouterr().out
    assert "student0: 4 students in 1 program(s)" in printed
    assert "In all 6 students" in printed


@pytest.mark.parametrize("form", ["vmap", "loop"])
def test_a_student_that_diverges_is_frozen_and_the_others_go_on_bit_equal(
    form, make_config, make_trainer, tmp_path, on_one_device
):
    axes = {"student.train.learning_rate.base": (1e-3, float("inf"), 2e-3)}
    experiment = builder.build(make_config(axes))
    (group,) = experiment.groups
    trainer = make_trainer(experiment)
    whole = chunks(group, range(6), form, 0, 1)[0]
    assert whole.rows == (0, 2, 4, 1, 3, 5)  # Rows 2 and 3 diverge.
    found = []
    for i, rows in enumerate((whole.rows, (0, 0, 4, 1, 1, 5))):
        chunk = whole._replace(rows=rows)
        result = trainer.train(chunk, tmp_path / str(i), {}, num_steps=15)
        found.append((result["rows"], trainer.ends(chunk, tmp_path / str(i), 15)))
    results, ends = found[0]
    assert [results[row]["stopped"] for row in "012345"] == [-1, -1, 1, 1, -1, -1]
    assert "test_nll" not in results["2"]  # Its weights are not finite.
    assert ends[2].state.step == 1
    for row in (0, 1, 4, 5):
        jax.tree.map(
            np.testing.assert_array_equal,
            ends[row].state.params,
            found[1][1][row].state.params,
        )


def test_a_whole_sweep_leaves_a_row_for_each_student(
    make_config, run_sweep, on_one_device, capsys, tmp_path
):
    axes = {
        **TEMPERATURES,
        "student.train.learning_rate.base": (1e-3, float("inf")),
        "seed": (4, 2),
    }
    found = run_sweep(make_config(axes, form="vmap", max_students=4))
    assert _statuses(found).count("done") == 4
    assert _statuses(found).count("diverged at step 1") == 4
    assert "diverged at step 1" in capsys.readouterr().out
    assert {row["seed"] for row in found["rows"]} == {4, 2}
    for row in found["rows"]:
        assert 0 <= row["test_accuracy"] <= 100
        assert 0 <= row["agreement"] <= 100
        assert [epoch for epoch, _ in row["curve"]] == [1.0]
    assert len(found["baseline_rows"]) == 4  # Two rates, two seeds.
    lines = (tmp_path / "sweep" / "sweep" / "rows.csv").read_text().splitlines()
    assert lines[0].startswith("role,distill.temperature,student.train.learning_rate")
    assert len(lines) == 1 + 8 + 4
    assert lines[1].startswith(f"student,{found['rows'][0]['values'][TEMPERATURE]},")
    # Done once, it is read, and no other sweep takes its place.
    again = run_sweep(make_config(axes, form="vmap", max_students=4))
    assert again == found
    with pytest.raises(UserError, match="sweep was"):
        run_sweep(make_config(TEMPERATURES))


def test_hopeless_settings_stop_at_a_rung_and_the_rest_are_as_they_would_be(
    make_config, run_sweep, on_one_device
):
    axes = {"student.train.learning_rate.base": (0.0, 1e-3, 3e-3), "seed": (1, 2)}

    def config(**options):
        made = make_config(axes, form="vmap", **options)
        made.student.train.num_epochs = 3
        made.eval_every_epochs = 1
        return made

    raced = run_sweep(config(rungs=(1,), keep=0.5), "raced")
    whole = run_sweep(config(), "whole")
    statuses = dict(zip(map(_of, raced["rows"]), _statuses(raced), strict=True))
    stopped = {key for key, status in statuses.items() if status != "done"}
    assert len(stopped) == 2  # Both seeds of one setting of three.
    assert {statuses[key] for key in stopped} == {"stopped at step 15"}
    means = {}
    for row in raced["rows"]:
        means[_of(row)[0]] = means.get(_of(row)[0], 0) + row["curve"][0][1]
    assert {rate for rate, _ in stopped} == {min(means, key=means.get)}
    for row, full in zip(raced["rows"], whole["rows"], strict=True):
        length = 1 if _of(row) in stopped else 3
        np.testing.assert_allclose(row["curve"], full["curve"][:length], atol=0.5)
        if length == 3:
            assert row["test_nll"] == pytest.approx(full["test_nll"], abs=1e-4)


def _of(row):
    return row["values"]["student.train.learning_rate.base"], row["seed"]


@pytest.mark.slow
def test_optuna_proposes_batches_to_one_program(make_config, run_sweep, on_one_device):
    axes = {
        "distill.temperature": (1.0, 20.0, "log"),
        "student.train.learning_rate.base": (1e-4, 1e-2),
    }
    config = make_config(axes, trials=3, trials_at_once=2, form="vmap")
    found = run_sweep(config, "first")
    assert len(found["rows"]) == 3 * len(config.seeds)
    temperatures = found["axes"]["distill.temperature"]
    assert len(temperatures) == 3
    assert 1.0 <= min(temperatures) < max(temperatures) <= 20.0
    again = run_sweep(config, "second")
    assert [row["values"] for row in again["rows"]] == [
        row["values"] for row in found["rows"]
    ]


@pytest.mark.parametrize(
    ("axes", "options", "words"),
    [
        ({"teacher.model.hidden": ((5,),)}, {}, "which share a teacher, got 'teacher"),
        ({"distill.temprature": (1.0,)}, {}, "keys of the config"),
        ({"distill.temperature": ("warm",)}, {}, "keys of the config"),
        ({"distill.temperature": (0.0,)}, {}, "distill.temperature to be a positive"),
        ({"distill.temperature": ()}, {}, "once and with values"),
        ({"distill.temperature": (1.0, 1.0)}, {}, "students that differ"),
        ({("seed", "distill.alpha"): ((1,),)}, {}, "which go together"),
        ({"seed": (0.5,)}, {}, "seeds to be whole numbers"),
        (TEMPERATURES, {"form": "map"}, "sweep_options.form to be one of"),
        (TEMPERATURES, {"rungs": (3, 1)}, "rising numbers of epochs"),
        ({"distill.alpha": (0.1, 0.2, 0.3)}, {"trials": 3}, "Expected a range"),
        ({"student.model.hidden": (5, 9)}, {"trials": 3}, "Expected a range of a num"),
    ],
)
def test_a_mistake_is_one_sentence(axes, options, words, make_config, as_in_production):
    with pytest.raises(UserError, match=words):
        builder.build(make_config(axes, **options))


def test_only_the_offline_recipe_has_sweeps(make_config):
    config = make_config(TEMPERATURES)
    config.recipe = "mutual"
    with pytest.raises(UserError, match="Expected a sweep of the recipe 'offline'"):
        builder.build(config)
