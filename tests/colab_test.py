"""Notebooks run from top to bottom, define nothing, and are committed clean."""

import ast
import json
import pathlib
import re
import shutil

import nbclient
import nbformat
import pytest

ROOT = pathlib.Path(__file__).parents[1]
NOTEBOOKS = sorted(ROOT.glob("colab/*.ipynb"))


def read(path):
    return nbformat.read(path, as_version=nbformat.NO_CONVERT)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def python_of(cell):
    """The cell's source, without the lines that IPython runs in a shell."""
    return re.sub(r"^(\s*)[!%].*$", r"\1pass", cell.source, flags=re.MULTILINE)


def test_there_are_notebooks():
    assert [path.name for path in NOTEBOOKS] == ["cifar_kd.ipynb"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_valid_and_clean(path):
    notebook = read(path)
    nbformat.validate(notebook)
    for cell in code_cells(notebook):
        assert cell.outputs == []
        assert cell.execution_count is None
    ids = [cell.id for cell in notebook.cells]
    assert len(set(ids)) == len(ids)
    # Names rather than random ids: a difference shows what has changed.
    assert all(cell_id.replace("-", "").isalpha() for cell_id in ids)
    assert path.read_text() == nbformat.writes(notebook) + "\n"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_defines_nothing(path):
    definitions = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda
    for cell in code_cells(read(path)):
        nodes = ast.walk(ast.parse(python_of(cell)))
        assert not any(isinstance(node, definitions) for node in nodes), cell.id


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_prose_stands_before_code(path):
    kinds = [cell.cell_type for cell in read(path).cells]
    assert kinds[0] == "markdown"
    assert kinds.count("markdown") >= len(kinds) / 3


@pytest.mark.slow
def test_cifar_kd_runs(tmp_path, monkeypatch):
    """The whole notebook in its smoke form, in an empty folder with the configs."""
    monkeypatch.setenv("KDJAX_SMOKE", "1")
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    notebook = read(ROOT / "colab" / "cifar_kd.ipynb")
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=1200, resources=resources).execute()

    outputs = {cell.id: cell.outputs for cell in code_cells(notebook)}
    assert "x cpu" in text_of(outputs["devices"])
    report_path = tmp_path / "runs" / "cifar_kd" / "report" / "report.json"
    report = json.loads(report_path.read_text())
    assert text_of(outputs["headline"]).strip() == report["headline"]
    [page] = shown_in(outputs["report"], "text/html")
    assert "&lt;html" in page
    drawn = list(report_path.parent.glob("figures/*.png"))
    assert len(shown_in(outputs["figures"], "image/png")) == len(drawn)
    assert len(shown_in(outputs["soft-labels"], "image/png")) == 1
    check_temperatures(text_of(outputs["loss"]))
    for some in outputs.values():
        assert "Warning" not in text_of(some, "stderr")


def text_of(outputs, stream="stdout"):
    return "".join(o.text for o in outputs if o.get("name") == stream)


def shown_in(outputs, kind):
    return [o.data[kind] for o in outputs if kind in o.get("data", {})]


def check_temperatures(table):
    """What the notebook's prose says of temperature holds in its own numbers."""
    _, *lines = table.splitlines()
    rows = [[float(word) for word in line.split()] for line in lines]
    temperatures, likeliest, entropies, _, _, without = zip(*rows, strict=True)
    assert temperatures == (1, 2, 4, 8, 16)
    assert list(likeliest) == sorted(likeliest, reverse=True)
    assert list(entropies) == sorted(entropies)
    assert list(without) == sorted(without, reverse=True)
