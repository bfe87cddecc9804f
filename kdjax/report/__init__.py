"""The report of a run: what distillation bought, in a terminal and on a page.

>>> import tempfile
>>> import numpy as np
>>> from kdjax import report
>>> rng = np.random.default_rng(0)
>>> labels = rng.integers(0, 10, 100)
>>> right = np.eye(10)[labels]
>>> results = [
...     report.ModelResult(role, seed, signal * right + rng.normal(size=(100, 10)))
...     for role, signal in (("teacher", 5), ("student", 4), ("baseline", 2))
...     for seed in (0, 1, 2)
... ]
>>> run = report.RunInfo("digits", "python -m kdjax.main", temperature=4.0)
>>> made = report.build(results, {}, run, labels)
>>> made["headline"][:21], made["gain"]["last"]["accuracy"]["n"]
('Distillation bought +', 3)
>>> with tempfile.TemporaryDirectory() as directory:
...     paths = report.write(made, directory)
>>> print(*(path.name for path in paths))
report.html report.json gain.png reliability.png

A report is a dict that JSON can hold; `report.json` is that dict, and tables, figures
and page are made from it alone. Accuracy, ECE and agreement are in percent; NLL and KL
in nats; `None` (JSON's null) stands where a number does not exist. Its keys:

* `format`: 1; `created`: when, UTC; the fields of :class:`RunInfo` but `bands`;
  `seeds`; `num_examples`, `num_classes` of the split that all metrics are on;
* `headline`: the result in one sentence; `findings`: further ones, each `text` and
  `kind` (`hit` or `miss` of an acceptance band, or `fact`);
* `roles`: by `teacher`, `student`, `baseline`, those that there are:

  * `seeds`, in the order of every `values` below;
  * `last`, `best`: after the last epoch, and at the epoch best by validation (null
    unless every seed has one): for each metric `mean`, `sd` (null for one seed), `n`,
    `values`. The metrics are `accuracy`, `errors`, `nll`, `ece`, and against the
    teacher `agreement`, `forward_kl`, `rank_correlation`;
  * `sampling_error`: the standard error of the headline metric that the finite number
    of test examples leaves;
  * `published`: `value`, and `difference` of the measured mean from it; `band`: `low`,
    `high`, `met`; `cost`: the fields of :class:`kdjax.measure.ModelCost`;
  * `seconds`: training time, summed up as a metric is;
  * `reliability`: by bin of confidence `count`, `confidence`, `accuracy`;
  * `histories`: `seed`, and `columns` of the metric rows by name;

* `gain`: `last` and `best`: for each metric the paired difference, student minus
  baseline over the seeds that both have: `mean`, `sd`, `n`, `values`, `seeds`, `low`
  and `high` of the t-interval at `confidence`, `p_value`; and `gap_closed`, the share
  of the distance from baseline to teacher that the student has covered (null where
  the teacher is not the better one);
* `examples`: `label`, `label_name`, `image_png` (base64), and of the likeliest classes
  `classes`, `class_ids`, `probabilities` (T = 1), `softened` (at `temperature`).
"""

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from kdjax.report import drawing, figures, page, soft_labels
from kdjax.report.assemble import Report, build
from kdjax.report.files import replace
from kdjax.report.records import ROLES, Examples, ModelResult, Role, RunInfo, Unit
from kdjax.report.table import print_table

__all__ = [
    "ROLES",
    "Examples",
    "ModelResult",
    "Report",
    "Role",
    "RunInfo",
    "Unit",
    "build",
    "print_table",
    "write",
]


def write(
    report: Mapping[str, Any], directory: str | os.PathLike
) -> list[pathlib.Path]:
    """Writes `report.json`, `report.html` and `figures/*.png`.

    Each file appears whole or not at all; those of an earlier report are replaced.

    Args:
      report: as from `build`.
      directory: made if it is not there.

    Returns:
      The files written, the page first.
    """
    directory = pathlib.Path(directory)
    (directory / "figures").mkdir(parents=True, exist_ok=True)
    page_path, json_path = directory / "report.html", directory / "report.json"
    replace(page_path, page.render(report).encode())
    text = json.dumps(report, allow_nan=False, ensure_ascii=False, indent=1)
    replace(json_path, text.encode())
    drawn = {figure.name: figure.draw for figure in figures.drawings(report)}
    if report["examples"]:
        drawn["soft_labels"] = lambda: soft_labels.sheet(report)
    paths = [page_path, json_path]
    for name, draw in drawn.items():
        paths.append(directory / "figures" / f"{name}.png")
        replace(paths[-1], drawing.png(draw()))
    return paths
