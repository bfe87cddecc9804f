"""Tests of report/study.py, study_page.py and plots.py."""

import html.parser
import io
import itertools
import json

import numpy as np
import pytest
import rich.console
from scipy import stats

from kdjax.report import plots, study, study_page
from kdjax.types import UserError

ALONE = {0: 90.0, 1: 91.0, 2: 90.5}
TOGETHER = {1: 92.0, 0: 91.5, 2: 92.0}


def _about(**changes):
    about = dict(name="<mutual>", command="run & report", num_examples=1000)
    return study.About(**(about | changes))


def _arms(**changes):
    together = dict(against="alone", published_gain=0.7, accept_gain=(0.3, 1.5))
    return [
        study.Arm("alone", "One by one", ALONE, published=92.37, accept=(91.0, None)),
        study.Arm("together", "Together", TOGETHER, **(together | changes)),
    ]


def test_differences_are_paired_by_seed_with_the_interval_of_a_t_test():
    arm = study.build(_about(), _arms())["arms"][1]
    pairs = [TOGETHER[seed] - ALONE[seed] for seed in (0, 1, 2)]
    assert arm["gain"]["values"] == pairs
    expected = stats.ttest_rel([91.5, 92.0, 92.0], [90.0, 91.0, 90.5])
    interval = expected.confidence_interval(0.95)
    assert arm["gain"]["low"] == pytest.approx(interval.low)
    assert arm["gain"]["high"] == pytest.approx(interval.high)
    assert arm["gain"]["p_value"] == pytest.approx(expected.pvalue)


def test_a_miss_is_told_as_a_miss():
    report = study.build(_about(), _arms(), facts=["Both saw the same order."])
    kinds = [found["kind"] for found in report["findings"]]
    assert kinds == ["miss", "hit", "fact"]
    assert "accepted ≥ 91: missed" in report["findings"][0]["text"]
    worse = study.build(_about(), _arms(accept_gain=(1.4, None)))
    assert [found["kind"] for found in worse["findings"]] == ["miss", "miss"]


def test_where_fewer_errors_are_better_so_is_a_negative_difference():
    arms = [
        study.Arm("hard", "Labels", {0: 150, 1: 140}),
        study.Arm("soft", "Soft targets", {0: 80, 1: 145}, against="hard"),
        study.Arm("worse", "Noise", {0: 300, 1: 310}, against="hard"),
    ]
    report = study.build(_about(unit="errors"), arms)
    assert report["headline"].startswith("Soft targets: \N{MINUS SIGN}32.5 errors")
    assert "1 of 2 seeds" in report["headline"]


def test_a_lower_perplexity_is_better():
    arms = [
        study.Arm("alone", "Text alone", {0: 40.0, 1: 41.0}),
        study.Arm("taught", "Taught", {0: 38.5, 1: 39.5}, against="alone"),
        study.Arm("worse", "Mistaught", {0: 42.0, 1: 40.9}, against="alone"),
    ]
    report = study.build(_about(unit="perplexity"), arms)
    assert report["headline"].startswith(
        "Taught: \N{MINUS SIGN}1.50 of perplexity against Text alone"
    )
    assert "2 of 2 seeds" in report["headline"]
    table = study_page.main_table(report)
    assert table.columns[1] == "Measured (perplexity)"


def test_one_seed_has_no_interval():
    arms = [
        study.Arm("a", "A", {0: 1.0}),
        study.Arm("b", "B", {0: 3.0}, against="a"),
    ]
    report = study.build(_about(), arms)
    assert report["arms"][1]["gain"]["low"] is None
    assert report["headline"] == "B: +2.00 points against A (1 of 1 seeds)."
    assert study.build(_about(), arms[:1])["headline"] == "A: accuracy 1.00."


@pytest.mark.parametrize(
    ("arms", "words"),
    [
        ([], "Expected arms of different names"),
        ([study.Arm("a", "A", {0: 1.0})] * 2, "Expected arms of different names"),
        ([study.Arm("a", "A", {})], "Expected a value of the arm 'a'"),
        ([study.Arm("a", "A", {0: 1.0}, against="b")], "got 'b'"),
    ],
)
def test_arms_that_cannot_be_reported(arms, words):
    with pytest.raises(UserError, match=words):
        study.build(_about(), arms)


class _Parser(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.text = [], []

    def handle_starttag(self, tag, attrs):
        if tag not in ("meta", "br", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_files_hold_the_report_and_escape_what_came_from_outside(tmp_path):
    report = study.build(_about(config={"x": "</pre><script>"}), _arms())
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (3, 4, 4, c)).astype(np.uint8) for c in (1, 3)]
    drawings = [
        plots.lines(
            "curves",
            "Two curves.",
            [
                plots.Series("a", range(30), rng.normal(size=(3, 30))),
                plots.Series("level", range(30), np.zeros(30), reference=True),
            ],
            xlabel="Step",
            ylabel="Accuracy (%)",
        ),
        plots.heatmap(
            "grid",
            "Errors.",
            [[1.0, np.nan], [2.0, 3.0]],
            rows=["30", "300"],
            columns=["1", "2"],
            ylabel="Width",
            xlabel="T",
        ),
        plots.image_grid("images", "Generated.", images, ["step 0", "step 9"]),
    ]
    paths = study.write(report, tmp_path, drawings)
    assert [path.name for path in paths[2:]] == [
        "arms.png",
        "curves.png",
        "grid.png",
        "images.png",
    ]
    assert all(path.read_bytes()[:4] == b"\x89PNG" for path in paths[2:])
    assert json.loads(paths[1].read_text()) == report
    page = paths[0].read_text()
    parser = _Parser()
    parser.feed(page)
    assert not parser.open
    assert "<script" not in page
    text = "".join(parser.text)
    assert "<mutual>" in text
    assert "run & report" in text
    assert page.count("<svg") == 4


def test_the_dots_of_a_seed_and_of_a_published_figure_are_where_they_belong():
    report = study.build(_about(), _arms())
    (axes,) = plots.dots("arms", report).draw().axes
    drawn = [line.get_xdata().tolist() for line in axes.lines]
    assert [90.0, 91.0, 90.5] in drawn
    assert [91.5, 92.0, 92.0] in drawn
    assert [92.37] in drawn
    assert [label.get_text() for label in axes.get_yticklabels()] == [
        "One by one",
        "Together",
    ]


def test_thick_lines_are_means_over_runs():
    runs = [[1.0, 2.0], [3.0, 6.0]]
    drawn = plots.lines(
        "x", "X.", [plots.Series("a", [0, 1], runs)], xlabel="x", ylabel="y"
    )
    (axes,) = drawn.draw().axes
    widest = max(axes.lines, key=lambda line: line.get_linewidth())
    assert widest.get_ydata().tolist() == [2.0, 4.0]


def test_the_terminal_table_has_every_arm_and_verdict():
    console = rich.console.Console(file=io.StringIO(), width=200)
    study.print_table(study.build(_about(), _arms()), console)
    text = console.file.getvalue()
    for expected in ("One by one", "90.50 ± 0.50 (n = 3)", "+1.33", "≥ 91: missed"):
        assert expected in text
    assert "Remarks" not in text  # No arm has any.


def test_a_few_points_on_a_log_scale_are_the_ticks():
    series = [plots.Series("a", [6, 24], [1.0, 2.0])]
    drawn = plots.lines("x", "X.", series, xlabel="x", ylabel="y", xscale="log")
    (axes,) = drawn.draw().axes
    assert [label.get_text() for label in axes.get_xticklabels()] == ["6", "24"]
    assert not axes.get_xticks(minor=True).size


def test_a_value_far_out_does_not_take_all_colours():
    values = np.array([[87.8, 87.9, 87.4], [87.5, 87.0, 21.8]])
    drawn = plots.heatmap(
        "h", "H.", values, rows="ab", columns="cde", ylabel="", xlabel=""
    )
    figure = drawn.draw()
    low, high = figure.axes[0].images[0].get_clim()
    assert 80 < low < 87.0
    assert high == 87.9
    assert [text.get_text() for text in figure.axes[0].texts][-1] == "21.8"
    assert figure.axes[1].images or figure.axes[1].collections  # Its bar.
    plain = plots.heatmap(
        "h", "H.", values[:, :2], rows="ab", columns="cd", ylabel="", xlabel=""
    )
    assert plain.draw().axes[0].images[0].get_clim() == (87.0, 87.9)


@pytest.mark.parametrize(
    "columns",
    [
        [f"{0.1 * i:.1f}" for i in range(13)],
        "black blue brown circle gray green no rectangle red teal triangle yellow "
        "yes".split(),
    ],
)
def test_headings_of_columns_do_not_run_into_each_other(columns):
    drawn = plots.heatmap(
        "h", "H.", np.ones((2, 13)), rows="ab", columns=columns, ylabel="", xlabel=""
    )
    figure = drawn.draw()
    figure.canvas.draw()
    labels = figure.axes[0].get_xticklabels()
    if labels[0].get_rotation() == 0:
        boxes = [label.get_window_extent() for label in labels]
        assert all(a.x1 < b.x0 for a, b in itertools.pairwise(boxes))
    else:  # Slanted, so that each ends at its column, and begins below those before.
        assert {label.get_ha() for label in labels} == {"right"}
    assert (labels[0].get_rotation() == 0) == (max(map(len, columns)) < 4)
