"""The report of a sweep: statistics by an independent way, and an honest choice."""

import csv
import html.parser
import io
import itertools
import json

import hypothesis
import numpy as np
import pytest
import rich.console
from hypothesis import strategies as st
from scipy import stats

from kdjax.report import plots, study, sweep, sweep_figures, sweep_rows
from kdjax.types import UserError

TEMPERATURES, ALPHAS = (1.0, 4.0, 20.0), (0.1, 0.9)
WIDTHS = ([30], [100])
SEEDS = (0, 1, 2)
HOSTILE = "</pre><script>alert(1)</script>"


def _about(**changes):
    return study.About(**(dict(name="s", command="c", num_examples=1000) | changes))


def _found(seed=0, **changes):
    """Three temperatures, two alphas, two widths and three seeds; noise as scores."""
    rng = np.random.default_rng(seed)

    def row(values, seed):
        # In steps of 0.1 %: whole numbers of errors of 1000.
        test, validation = (round(x, 1) for x in rng.normal(90, 2, 2))
        return {
            "values": values,
            "seed": seed,
            "status": "done",
            "group": "g",
            "steps": 100,
            "test_accuracy": test,
            "validation_accuracy": validation,
            "test_nll": rng.random(),
            "ece": 1.0,
            "agreement": 95.0,
            "curve": [[1, validation - 5], [2, validation]],
        }

    settings = itertools.product(TEMPERATURES, ALPHAS, WIDTHS)
    keys = ("distill.temperature", "distill.alpha", "student.model.hidden")
    found = {
        "axes": dict(zip(keys, (TEMPERATURES, ALPHAS, WIDTHS), strict=True)),
        "rows": [
            row(dict(zip(keys, values, strict=True)), seed)
            for values in settings
            for seed in SEEDS
        ],
        "baseline_rows": [row({keys[2]: w}, seed) for w in WIDTHS for seed in SEEDS],
        "plan": {"programs": 2, "note": HOSTILE},
        "seconds": {"students": 12.0},
    }
    return json.loads(json.dumps(found | changes))  # As a file has it.


def _build(found=None, **about):
    return sweep.build(_about(**about), sweep.parse(found or _found()))


def _rows_of(found, values, kind="rows"):
    return [row for row in found[kind] if row["values"] == values]


@hypothesis.settings(max_examples=15, deadline=None)
@hypothesis.given(st.integers(0, 10**6))
def test_statistics_of_a_setting_are_those_of_scipy(seed):
    found = _found(seed)
    for cell in _build(found)["cells"]:
        rows = _rows_of(found, cell["values"])
        for key, name in (("test", "test_accuracy"), ("test_nll", "test_nll")):
            values = [row[name] for row in rows]
            low, high = stats.t.interval(
                0.95, len(values) - 1, np.mean(values), stats.sem(values)
            )
            assert cell[key]["mean"] == pytest.approx(np.mean(values))
            assert cell[key]["sd"] == pytest.approx(np.std(values, ddof=1))
            assert cell[key]["low"] == pytest.approx(low)
            assert cell[key]["high"] == pytest.approx(high)
            assert cell[key]["n"] == len(SEEDS)
        width = {"student.model.hidden": cell["values"]["student.model.hidden"]}
        alone = _rows_of(found, width, "baseline_rows")
        paired = stats.ttest_rel(
            *([row["test_accuracy"] for row in x] for x in (rows, alone))
        )
        interval = paired.confidence_interval(0.95)
        assert cell["gain"]["low"] == pytest.approx(interval.low)
        assert cell["gain"]["high"] == pytest.approx(interval.high)
        assert cell["gain"]["p_value"] == pytest.approx(paired.pvalue)


@hypothesis.settings(max_examples=15, deadline=None)
@hypothesis.given(st.integers(0, 10**6))
def test_the_test_split_has_no_part_in_the_choice(seed):
    found = _found(seed)
    best = _build(found)["best"]
    by_hand = max(
        (row["values"] for row in found["rows"]),
        key=lambda values: np.mean(
            [row["validation_accuracy"] for row in _rows_of(found, values)]
        ),
    )
    assert best["values"] == by_hand
    for row in found["rows"]:
        row["test_accuracy"] = 100 - row["test_accuracy"]
    assert _build(found)["best"]["values"] == by_hand


@hypothesis.settings(max_examples=15, deadline=None)
@hypothesis.given(st.integers(0, 10**6))
def test_the_order_of_the_rows_does_not_matter(seed):
    found = _found(seed)
    shuffled = json.loads(json.dumps(found))
    np.random.default_rng(seed).shuffle(shuffled["rows"])
    first, second = (
        {json.dumps(c["values"], sort_keys=True): c for c in _build(x)["cells"]}
        for x in (found, shuffled)
    )
    assert first == second


def _broken(status, accuracy=None):
    """The setting that would be chosen loses its second seed, the worst of the three.

    So the mean over those that are left is higher still.
    """
    found = _found()
    best = _build(found)["best"]["values"]
    rows = _rows_of(found, best)
    scores = sorted(row["validation_accuracy"] for row in rows)
    for row, score in zip((rows[1], rows[0], rows[2]), scores, strict=True):
        row["validation_accuracy"] = score
    row = rows[1]
    row["status"] = status
    if accuracy is None:
        del row["test_accuracy"]
    else:
        row["test_accuracy"] = accuracy
    return found, best


@pytest.mark.parametrize(
    ("status", "kind"), [("diverged at step 7", "miss"), ("stopped at step 7", "fact")]
)
def test_who_is_not_done_is_named_counts_in_no_mean_and_is_not_chosen(status, kind):
    found, best = _broken(status, accuracy=10.0)
    report = _build(found)
    assert report["best"]["values"] != best
    (cell,) = (cell for cell in report["cells"] if cell["values"] == best)
    others = [_rows_of(found, best)[i]["test_accuracy"] for i in (0, 2)]
    assert cell["test"]["values"] == others
    assert cell["seeds"] == [0, 2]
    assert cell["missing"] == 1
    assert cell["gain"]["n"] == 2  # Paired with the same two seeds.
    told = [entry for entry in report["findings"] if status.split()[0] in entry["text"]]
    assert [entry["kind"] for entry in told] == [kind]
    assert f"seed 1 ({status})" in told[0]["text"]
    assert "1 of 42 students" in told[0]["text"]


def test_a_setting_of_which_no_student_is_done_has_no_cell():
    found = _found()
    values = found["rows"][0]["values"]
    for row in _rows_of(found, values):
        row.update(status="diverged at step 1", test_accuracy=None)
    report = _build(found)
    assert values not in [cell["values"] for cell in report["cells"]]
    assert len(report["rows"]) == 36
    assert list(sweep_figures.drawings(report))


def test_without_validation_nothing_is_chosen():
    found = _found()
    for row in found["rows"]:
        row["validation_accuracy"] = None
    report = _build(found)
    assert report["best"] is None
    assert "nothing was chosen" in report["headline"]
    assert "is no result" in report["findings"][0]["text"]


def test_errors_are_whole_examples():
    report = _build(unit="errors")
    for cell in report["cells"]:
        for value in cell["test"]["values"]:
            assert value == int(value)
    row = report["rows"][0]
    assert row["errors"] == round(1000 - 10 * row["scores"]["test_accuracy"])


def test_the_csv_has_every_student_once():
    report = _build()
    lines = list(csv.DictReader(io.StringIO(sweep.as_csv(report))))
    assert len(lines) == 42
    assert sum(line["teacher"] == "no" for line in lines) == 6
    for line, row in zip(lines, report["rows"], strict=False):
        assert float(line["test_accuracy"]) == row["scores"]["test_accuracy"]
        for path, value in row["values"].items():
            assert json.loads(line[path]) == value


class _Parser(html.parser.HTMLParser):
    """Checks that tags nest, and collects the text."""

    def __init__(self):
        super().__init__()
        self.open, self.text = [], []

    def handle_starttag(self, tag, attributes):
        if tag not in ("meta", "path", "use", "rect", "circle", "image"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in ("meta", "path", "use", "rect", "circle", "image"):
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_files_hold_the_report_and_escape_what_came_from_outside(tmp_path):
    report = _build(name=HOSTILE)
    paths = sweep.write(report, tmp_path)
    names = [path.name for path in paths]
    assert names[:3] == ["report.html", "report.json", "rows.csv"]
    for name in ("temperature_lines", "heat_temperature_alpha", "parallel_coordinates"):
        assert f"{name}.png" in names
    assert "validation_accuracy.png" in names
    assert json.loads(paths[1].read_text()) == report
    page = paths[0].read_text()
    parser = _Parser()
    parser.feed(page)
    assert not parser.open
    assert "<script" not in page
    assert HOSTILE in "".join(parser.text)
    assert page.count("<svg") == len(names) - 3


def test_heat_maps_hold_the_means_and_one_is_drawn_for_each_width():
    report = _build()
    maps = [d for d in sweep_figures.drawings(report) if d.name.startswith("heat")]
    assert len(maps) == len(WIDTHS)
    for width, drawn in zip(WIDTHS, maps, strict=True):
        values = np.asarray(drawn.draw().axes[0].images[0].get_array())
        for i, j in np.ndindex(len(ALPHAS), len(TEMPERATURES)):
            (mean,) = (
                cell["test"]["mean"]
                for cell in report["cells"]
                if list(cell["values"].values()) == [TEMPERATURES[j], ALPHAS[i], width]
            )
            assert values[i, j] == pytest.approx(mean)


def test_lines_over_temperature_are_by_width_at_the_chosen_alpha():
    report = _build()
    lines = next(d for d in sweep_figures.drawings(report) if "lines" in d.name)
    alpha = report["best"]["values"]["distill.alpha"]
    assert f"alpha = {alpha:g}" in lines.caption
    (axes,) = lines.draw().axes
    drawn = [line.get_ydata().tolist() for line in axes.lines]
    for width in WIDTHS:
        means = [
            cell["test"]["mean"]
            for cell in report["cells"]
            if cell["values"]["student.model.hidden"] == width
            and cell["values"]["distill.alpha"] == alpha
        ]
        assert any(y == pytest.approx(means) for y in drawn)
    for level in (baseline["test"]["mean"] for baseline in report["baselines"]):
        assert any(y == pytest.approx([level] * 3) for y in drawn)
    # The level without a teacher has the colour of its width, and widths differ.
    shown = {line.get_label(): line for line in axes.lines}
    colors = [shown[f"hidden = {width[0]}"].get_color() for width in WIDTHS]
    assert len(set(colors)) == 2
    dotted = [line.get_color() for line in axes.lines if line.get_linestyle() == ":"]
    assert dotted == colors


def test_a_seed_that_is_not_done_leaves_a_gap_and_not_a_mean():
    found, best = _broken("diverged at step 7")
    report = _build(found)
    (axes,) = next(iter(sweep_figures.drawings(report))).draw().axes
    (cell,) = (cell for cell in report["cells"] if cell["values"] == best)
    x = TEMPERATURES.index(best["distill.temperature"])
    centre = report["best"]["values"]["distill.alpha"]
    if centre == best["distill.alpha"]:
        assert any(
            line.get_ydata()[x] == pytest.approx(cell["test"]["mean"])
            for line in axes.lines
        )
    runs = [[1.0, np.nan], [3.0, 5.0]]
    drawn = plots.lines(
        "x", "X.", [plots.Series("a", [0, 1], runs)], xlabel="", ylabel=""
    )
    widest = max(drawn.draw().axes[0].lines, key=lambda line: line.get_linewidth())
    assert widest.get_ydata().tolist() == [2.0, 5.0]


def test_the_chosen_setting_is_the_thick_one_among_the_parallel_lines():
    report = _build()
    drawn = next(d for d in sweep_figures.drawings(report) if "parallel" in d.name)
    (axes,) = drawn.draw().axes
    thick = max(axes.lines, key=lambda line: line.get_linewidth())
    values = report["best"]["values"]
    expected = [
        TEMPERATURES.index(values["distill.temperature"]) / 2,
        float(ALPHAS.index(values["distill.alpha"])),
        float(WIDTHS.index(values["student.model.hidden"])),
        1.0,  # It has the highest validation accuracy.
    ]
    assert list(thick.get_ydata()) == pytest.approx(expected)
    assert len(axes.lines) == len(report["cells"])


def test_one_axis_and_one_seed_make_a_report_too(tmp_path):
    found = _found()
    rows = [
        row
        for row in found["rows"]
        if row["seed"] == 0
        and row["values"]["distill.alpha"] == 0.9
        and row["values"]["student.model.hidden"] == [30]
    ]
    for row in rows:
        row["values"] = {"distill.temperature": row["values"]["distill.temperature"]}
    axes = {"distill.temperature": list(TEMPERATURES), "seed": [0]}
    alone = [dict(found["baseline_rows"][0], values={})]  # Of any setting.
    report = _build(found | {"rows": rows, "axes": axes, "baseline_rows": alone})
    assert all(cell["gain"]["n"] == 1 for cell in report["cells"])
    assert all(cell["test"]["sd"] is None for cell in report["cells"])
    assert report["axes"] == {"distill.temperature": list(TEMPERATURES)}
    paths = sweep.write(report, tmp_path)
    assert "temperature_lines.png" in [path.name for path in paths]
    lines = next(iter(sweep_figures.drawings(report))).draw().axes[0].lines
    (level,) = (line for line in lines if line.get_linestyle() == ":")
    assert level.get_ydata() == pytest.approx([alone[0]["test_accuracy"]] * 3)


def test_the_terminal_has_the_best_first():
    console = rich.console.Console(file=io.StringIO(), width=200)
    report = _build()
    sweep.print_table(report, console)
    text = console.file.getvalue()
    first = next(line for line in text.splitlines() if line.startswith("│ 1 "))
    cells = [cell.strip() for cell in first.split("│")]
    values = report["best"]["values"].values()
    assert cells[2:5] == [sweep_rows.text(value) for value in values]
    assert "no teacher" in text


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (None, "no such file"),
        ({"rows": []}, "no row"),
        ({"rows": [{"values": {}, "seed": 0}]}, "KeyError"),
        ({"axes": 3}, "AttributeError"),
        (
            {
                "rows": [
                    {"values": {}, "seed": 0, "status": "done", "test_accuracy": "NaN"}
                ]
            },
            "no finite test_accuracy",
        ),
        (
            {"rows": [dict(_found()["rows"][0]), dict(_found()["rows"][0])]},
            "two rows of",
        ),
    ],
)
def test_rows_that_are_none_are_refused_in_a_sentence(tmp_path, change, words):
    path = tmp_path / "rows.json"
    if change is not None:
        path.write_text(json.dumps(_found() | change))
    with pytest.raises(UserError, match=words):
        sweep.read(path)


def test_rows_are_read_as_they_were_written(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(_found()))
    assert sweep.read(path) == sweep.parse(_found())


def test_axes_of_one_name_keep_as_much_of_their_path_as_tells_them_apart():
    paths = ["student.train.epochs", "teacher.train.epochs", "distill.alpha"]
    assert list(sweep_rows.titles(paths).values()) == [
        "student.train.epochs",
        "teacher.train.epochs",
        "alpha",
    ]


def _proposed(count=20):
    """Settings of which each has values of its own, as optuna proposes them."""
    rng = np.random.default_rng(1)
    values = np.exp(rng.uniform(0, 3, count)).tolist()
    rows = [
        {
            "values": {"distill.temperature": t, "distill.alpha": 1 / t},
            "seed": seed,
            "status": "done",
            "test_accuracy": 80 + seed,
            "validation_accuracy": 80 + np.log(t),
        }
        for t in values
        for seed in (0, 1)
    ]
    axes = {"distill.temperature": values, "distill.alpha": [1 / t for t in values]}
    fixed = {"student.train.num_epochs": 3}
    return {"axes": axes, "rows": rows, "fixed": fixed}


def test_many_values_are_dots_on_a_scale_of_their_own(tmp_path):
    report = _build(_proposed())
    names = [path.stem for path in sweep.write(report, tmp_path)]
    assert {"temperature_dots", "alpha_dots", "parallel_coordinates"} <= set(names)
    assert not any("heat" in name or "lines" in name for name in names)
    drawn = {d.name: d for d in sweep_figures.drawings(report)}
    (axes,) = drawn["temperature_dots"].draw().axes
    dots, diamond = axes.lines
    assert len(dots.get_xdata()) == 20
    assert diamond.get_xdata()[0] == max(dots.get_xdata())  # By construction the best.
    (axes,) = drawn["parallel_coordinates"].draw().axes
    for line in axes.lines:  # Log T and log 1 / T: one axis upside down.
        first, second, score = line.get_ydata()
        assert first == pytest.approx(1 - second)
        assert first == pytest.approx(score)
    page = (tmp_path / "report.html").read_text().replace("\N{NO-BREAK SPACE}", " ")
    assert "All with num epochs = 3." in page


def test_models_are_an_axis_too():
    assert sweep_rows.text({"name": "resnet8", "dtype": "float32"}) == "resnet8 float32"
    assert sweep_rows.text({}) == "none"
    found = _found()
    for row in (*found["rows"], *found["baseline_rows"]):
        row["values"]["student.model"] = {
            "name": "mlp",
            "hidden": row["values"].pop("student.model.hidden"),
        }
    found["axes"]["student.model"] = [
        {"name": "mlp", "hidden": width}
        for width in found["axes"].pop("student.model.hidden")
    ]
    report = _build(found)
    assert all(cell["gain"]["n"] == 3 for cell in report["cells"])
    for drawn in sweep_figures.drawings(report):
        drawn.draw()
