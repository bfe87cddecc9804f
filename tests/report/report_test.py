"""Tests of what a report leaves on disk."""

import dataclasses
import json
import re

import matplotlib
import numpy as np
from PIL import Image

from kdjax import report


def test_json_is_strict_and_round_trips(written):
    made, directory, _ = written

    def refuse(constant):
        raise AssertionError(constant)

    text = (directory / "report.json").read_text()
    assert json.loads(text, parse_constant=refuse) == made


def test_values_that_json_lacks_become_null_or_text(synthetic):
    run = synthetic.run(
        config={"rate": float("nan"), "shape": (1, np.int64(2)), 3: np.float32(0.5)},
        hardware={"cores": np.int32(2), "path": json},
    )
    made = report.build(synthetic.results(), {}, run, synthetic.labels)
    assert made["config"] == {"rate": None, "shape": [1, 2], "3": 0.5}
    assert made["hardware"] == {"cores": 2, "path": str(json)}
    json.dumps(made, allow_nan=False)


def test_the_documented_keys_are_there(written):
    made, _, _ = written
    names = {name for name in re.findall(r"`(\w+)`", report.__doc__)}
    documented = names & {*made, *made["roles"]["student"], *made["gain"]}
    fields = {field.name for field in dataclasses.fields(report.RunInfo)} - {"bands"}
    assert set(made) - fields <= documented
    assert set(made["roles"]["student"]) <= documented
    assert set(made["gain"]) <= documented
    assert fields <= set(made)


def test_every_figure_is_drawn_and_not_blank(written):
    _, directory, paths = written
    names = {path.stem for path in paths if path.suffix == ".png"}
    assert names == {
        "gain",
        "validation_accuracy",
        "loss_hard",
        "loss_soft",
        "reliability",
        "soft_labels",
    }
    for name in names:
        pixels = np.asarray(Image.open(directory / "figures" / f"{name}.png"))
        assert min(pixels.shape[:2]) > 400
        assert pixels[..., :3].std() > 5
    leftovers = [p.name for p in directory.rglob("*") if p.name.endswith(".tmp")]
    assert leftovers == []


def test_a_users_matplotlib_style_changes_nothing_and_is_kept(written, tmp_path):
    made, directory, _ = written
    before = matplotlib.rcParams["backend"]
    own = {"lines.marker": "x", "axes.linewidth": 9, "svg.fonttype": "path"}
    with matplotlib.rc_context({**own, "backend": "pdf"}):
        report.write(made, tmp_path)
        assert {key: matplotlib.rcParams[key] for key in own} == own
        assert matplotlib.rcParams["backend"] == "pdf"
    matplotlib.rcParams["backend"] = before
    assert (tmp_path / "report.html").read_text() == (
        directory / "report.html"
    ).read_text()


def test_writing_again_replaces_the_report(written):
    made, directory, paths = written
    for path in paths:
        path.write_bytes(b"an earlier report")
    assert report.write(made, directory) == paths
    assert json.loads((directory / "report.json").read_text()) == made
    assert all(path.read_bytes() != b"an earlier report" for path in paths)
