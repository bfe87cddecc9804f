"""Temperature and alpha by hyper-gradients, against a grid of fixed ones.

The stages `teacher`, `cache`, `learned`, `grid`, `baseline` and `report` leave in the
work directory:

    workdir/
      teacher/                   as in offline distillation
      cache/                     the teacher's logits
      learned/seed0/             inputs.json, checkpoints/, metrics.jsonl with the path
      grid/T4_alpha0.5/seed0/      of both numbers, TensorBoard files,
      baseline/seed0/              variables.safetensors, result.json with accuracies
      report/                    report.html, report.json, figures
"""

import functools
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from kdjax import fingerprints, metric_writers
from kdjax import teacher_cache as caches
from kdjax.builders.learned_temperature import Experiment, build
from kdjax.recipes import offline
from kdjax.recipes import stages as common
from kdjax.report import plots, statistics, study
from kdjax.report.drawing import Drawing
from kdjax.report.quantities import interval, number
from kdjax.training import Training
from kdjax.types import Variables
from kdjax.workdir import read_json, require

__all__ = ["build", "run"]

Results = Mapping[int, Mapping[str, float]]
"""By seed, what `result.json` holds."""


def _teacher(experiment: Experiment, workdir: pathlib.Path) -> None:
    offline.run_teacher(experiment.base, workdir)


def _cache(experiment: Experiment, workdir: pathlib.Path) -> None:
    offline.run_cache(experiment.base, workdir)


def _learned(experiment: Experiment, workdir: pathlib.Path) -> None:
    inputs = {"learned": experiment.learned_inputs}
    make = experiment.learned_training
    _students(experiment, workdir, "learned", make, inputs)


def _grid(experiment: Experiment, workdir: pathlib.Path) -> None:
    for cell in experiment.cells:
        make = functools.partial(experiment.fixed_training, *cell)
        inputs = {"temperature": cell[0], "alpha": cell[1]}
        _students(experiment, workdir, f"grid/{_name(cell)}", make, inputs)


def _name(cell: tuple[float, float]) -> str:
    return f"T{cell[0]:g}_alpha{cell[1]:g}"


def _students(
    experiment: Experiment,
    workdir: pathlib.Path,
    name: str,
    make: Callable[[int, Variables, caches.Cache | None], Training],
    inputs: Mapping[str, Any],
) -> None:
    """One student of each seed."""
    base = experiment.base
    variables = common.load_variables(base.teacher, workdir / "teacher")
    cache = None
    if base.cached:
        cache = caches.open(workdir / "cache", base.manifest(variables))
    known = {"teacher": fingerprints.fingerprint_tree(variables)}
    for seed in base.seeds:
        common.train(
            make(seed, variables, cache),
            workdir / name / f"seed{seed}",
            {**base.inputs["student"], **known, **inputs},
            functools.partial(_keep, experiment),
        )


def _baselines(experiment: Experiment, workdir: pathlib.Path) -> None:
    for seed in experiment.base.seeds:
        common.train(
            experiment.base.baseline_training(seed),
            workdir / "baseline" / f"seed{seed}",
            experiment.base.inputs["baseline"],
            functools.partial(_keep, experiment),
        )


def _keep(
    experiment: Experiment, state: Any, directory: pathlib.Path
) -> Mapping[str, Any]:
    common.keep_variables(directory, state.eval_variables)
    return experiment.accuracy(state.eval_variables)


def _results(
    experiment: Experiment, workdir: pathlib.Path, name: str
) -> dict[int, dict[str, float]]:
    found = {}
    for seed in experiment.base.seeds:
        directory = workdir / name / f"seed{seed}"
        require(directory)
        found[seed] = read_json(directory / "result.json") or {}
    return found


def _test(results: Results) -> dict[int, float]:
    return {seed: result["test"] for seed, result in results.items()}


def _report(experiment: Experiment, workdir: pathlib.Path, command: str) -> None:
    base = experiment.base
    about = common.about(
        workdir,
        command,
        num_examples=len(base.splits.test),
        config=base.config,
        source=base.published["source"],
        test=base.splits.test,
    )
    read = functools.partial(_results, experiment, workdir)
    cells = {cell: read(f"grid/{_name(cell)}") for cell in experiment.cells}
    learned, baseline = _test(read("learned")), _test(read("baseline"))
    arms = _arms(experiment, learned, baseline, cells)
    paths = {
        seed: metric_writers.read(workdir / "learned" / f"seed{seed}")
        for seed in base.seeds
    }
    made = study.build(
        about,
        arms,
        facts=[_end(paths), *_seconds(read("learned"), cells)],
        headline=_headline(arms),
    )
    drawings = [*_paths(experiment, paths), _heat(cells, paths)]
    common.write_study(made, workdir, drawings)


def _arms(
    experiment: Experiment,
    learned: Mapping[int, float],
    baseline: Mapping[int, float],
    cells: Mapping[tuple[float, float], Results],
) -> list[study.Arm]:
    seeds = experiment.base.seeds
    tests = {cell: _test(results) for cell, results in cells.items()}
    median = {s: float(np.median([tests[c][s] for c in tests])) for s in seeds}
    chosen = max(
        cells, key=lambda c: np.mean([r["validation"] for r in cells[c].values()])
    )
    start, least = experiment.start, experiment.accept_gain
    arms = [
        study.Arm("baseline", "Without a teacher", baseline),
        study.Arm(
            "median",
            f"Median of the grid of {len(cells)}",
            median,
            note="over the settings, for each seed",
        ),
        study.Arm(
            "learned",
            "Learned temperature and alpha",
            learned,
            against="median",
            accept_gain=None if least is None else (least, None),
            note=f"from T = {start[0]:g}, alpha = {start[1]:g}",
        ),
        study.Arm(
            "chosen",
            f"Grid, best by validation: T = {chosen[0]:g}, alpha = {chosen[1]:g}",
            tests[chosen],
            against="learned",
            note=f"out of {len(cells)} times as many students",
        ),
    ]
    if start in tests:
        arms.append(
            study.Arm(
                "start", "Grid, where learning began", tests[start], against="learned"
            )
        )
    return arms


def _headline(arms: list[study.Arm]) -> str:
    """Whether learning beats the grid's median, by the interval over seeds."""
    by_name = {arm.name: arm for arm in arms}
    gain = statistics.paired_difference(
        dict(by_name["learned"].values), dict(by_name["median"].values)
    )
    assert gain is not None
    mean = number(gain["mean"], 2, signed=True)
    claim = f"learned temperature and alpha against the grid's median: {mean} points"
    if gain["low"] is None:
        return f"One seed: {claim}."
    better = sum(x > 0 for x in gain["values"])
    verdict = "No"
    if gain["low"] > 0:
        verdict = "Yes"
    elif gain["high"] > 0:
        verdict = "Not shown"
    return (
        f"{verdict}: {claim} (95 % CI {interval(gain, 2)}, {better} of {gain['n']} "
        "seeds)."
    )


def _end(paths: Mapping[int, list[dict[str, Any]]]) -> str:
    """Where the learning ended."""
    parts = []
    for name in ("temperature", "alpha"):
        ends = [
            [row[name] for row in rows if name in row][-1] for rows in paths.values()
        ]
        shown = f"{np.mean(ends):.3g}"
        if len(ends) > 1:
            shown += f" ± {np.std(ends, ddof=1):.2g}"
        parts.append(f"{name} {shown}")
    return f"The learning ended at {' and '.join(parts)}, mean ± sd over seeds."


def _seconds(
    learned: Results, cells: Mapping[tuple[float, float], Results]
) -> list[str]:
    """What the two ways cost."""
    one = float(np.mean([result["seconds"] for result in learned.values()]))
    grid = sum(r["seconds"] for of_cell in cells.values() for r in of_cell.values())
    count = sum(len(of_cell) for of_cell in cells.values())
    ratio = one / (grid / count)
    return [
        f"A student that learns took {ratio:.1f} times as long as one of the grid, "
        f"compilation included; the grid has {count // len(learned)} for each."
    ]


def _paths(
    experiment: Experiment, paths: Mapping[int, list[dict[str, Any]]]
) -> list[Drawing]:
    """Temperature and alpha over steps."""
    drawings = []
    for name in ("temperature", "alpha"):
        runs = [
            {row["step"]: row[name] for row in rows if name in row}
            for rows in paths.values()
        ]
        steps = sorted(set.intersection(*(set(run) for run in runs)))
        values = [[run[step] for step in steps] for run in runs]
        learns = name in experiment.learned_inputs["learn"]
        drawings.append(
            plots.lines(
                f"path_{name}",
                f"The {name} over training. Thin: seeds; thick: their mean."
                + ("" if learns else " It was not learned."),
                [plots.Series("learned", steps, values)],
                xlabel="Step",
                ylabel=name.capitalize(),
                title=f"The path of {name}",
            )
        )
    return drawings


def _heat(
    cells: Mapping[tuple[float, float], Results],
    paths: Mapping[int, list[dict[str, Any]]],
) -> Drawing:
    """Test accuracy over the grid."""
    temperatures, alphas = (list(dict.fromkeys(x)) for x in zip(*cells, strict=True))
    values = [
        [np.mean(list(_test(cells[t, a]).values())) for t in temperatures]
        for a in alphas
    ]
    return plots.heatmap(
        "grid",
        f"Test accuracy (%) of the grid, mean over {len(paths)} seeds.",
        values,
        rows=[f"{a:g}" for a in alphas],
        columns=[f"{t:g}" for t in temperatures],
        ylabel="Alpha",
        xlabel="Temperature",
        title="The fixed grid",
        digits=2,
        label="Test accuracy (%)",
    )


run = common.Runner(
    {
        "teacher": _teacher,
        "cache": _cache,
        "learned": _learned,
        "grid": _grid,
        "baseline": _baselines,
    },
    _report,
)
