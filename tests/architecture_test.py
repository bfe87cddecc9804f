"""A module imports only from rows above its own, and few may import some packages."""

import ast
import pathlib
import sys

import pytest

PACKAGE = pathlib.Path(__file__).parents[1] / "kdjax"

# Modules of one row know nothing of each other. A name whose module is yet to be
# written does no harm; a module without a name fails.
ROWS = (
    ("losses", "types", "timing"),
    ("schedules", "fingerprints", "metrics", "members"),
    ("objectives", "models", "data", "teacher_cache"),
    (
        "adapters",
        "optimizers",
        "networks",
        "progress",
        "measure",
        "metric_writers",
        "probes",
        "sampling",
    ),
    ("features",),
    ("steps",),
    (
        "parallel",
        "checkpoints",
        "cohorts",
        "data_free",
        "federation",
        "hyper_gradients",
        "mean_teacher",
        "students",
    ),
    ("pretrained", "training", "workdir"),
    ("default_config",),
    ("builders",),
    ("report", "sweep", "citations"),
    ("export",),
    ("recipes",),
    ("main",),
)

# All that these may import, besides the standard library.
ONLY = {
    "losses": {"jax", "jaxtyping"},
    "types": {"jax", "flax"},
    "schedules": {"jax", "flax"},
    "metrics": {"jax", "jaxtyping", "numpy"},
    "objectives": {"jax"},
    "steps": {"jax", "flax", "optax"},
}

# Packages for these alone: nobody below `builders` sees a config.
RESERVED = {
    "ml_collections": {"builders", "default_config", "main"},
    "absl": {"main"},
    "tensorflow": set(),
    "torch": set(),
}


def _layer(name):
    """The row of a module of kdjax, counted from 0; None if it has none."""
    return next((i for i, row in enumerate(ROWS) if name in row), None)


def _imports(source, package):
    """Every imported name, in full; of `from a import b` both a and a.b."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*parts, *filter(None, [node.module])])
            yield from (f"{origin}.{alias.name}" for alias in node.names)


def _violations(path, source):
    """Sentences on what the module at `path`, relative to the package, may not do."""
    module = path.parts[0].removesuffix(".py")
    layer = _layer(module)
    if layer is None:
        if module != "__init__":
            yield f"{module} is in no row"
        return
    package = ["kdjax", *path.parts[:-1]]
    for name in _imports(source, package):
        root, *rest = name.split(".")
        if root != "kdjax":
            yield from _outside(module, root)
            continue
        other = rest[0]
        if other == module:
            continue
        if _layer(other) is None or _layer(other) >= layer:
            yield f"{module} imports {name}, which is not above it"
        if any(part.startswith("_") for part in rest[1:]):
            yield f"{module} imports {name}, which is private to {other}"


def _outside(module, root):
    if root in sys.stdlib_module_names:
        return
    if module not in RESERVED.get(root, {module}):
        yield f"{module} imports {root}, which is reserved"
    if root not in ONLY.get(module, {root}):
        yield f"{module} imports {root}"


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=str)
def test_imports_go_one_way(path):
    assert not list(_violations(path.relative_to(PACKAGE), path.read_text()))


@pytest.mark.parametrize(
    ("path", "source", "words"),
    [
        ("losses/_logits.py", "import flax", "losses imports flax"),
        ("losses/__init__.py", "from optax import adam", "losses imports optax"),
        ("losses/_logits.py", "from kdjax import metrics", "is not above it"),
        ("losses/_logits.py", "from ..types import Outputs", "is not above it"),
        ("steps.py", "import kdjax.builders", "is not above it"),
        ("steps.py", "def f():\n  from kdjax import recipes", "is not above it"),
        ("schedules.py", "from kdjax.metrics import accuracy", "is not above it"),
        ("steps.py", "from kdjax.losses._logits import f", "private to losses"),
        ("data/sources.py", "from ml_collections import config_dict", "is reserved"),
        ("recipes/offline.py", "import ml_collections", "is reserved"),
        ("models/resnet.py", "import torch.nn", "is reserved"),
        ("nonsense.py", "", "is in no row"),
    ],
)
def test_the_rule_sees_what_breaks_it(path, source, words):
    found = list(_violations(pathlib.PurePath(path), source))
    assert len(found) == 1
    assert words in found[0]


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("losses/_logits.py", "from kdjax.losses import _checks\nimport functools"),
        ("losses/_logits.py", "from . import _checks\nfrom ._checks import f"),
        ("builders/__init__.py", "import ml_collections\nfrom kdjax import steps"),
        ("main.py", "from absl import flags\nimport kdjax.recipes.offline"),
        ("__init__.py", "from kdjax import losses"),
    ],
)
def test_the_rule_allows_what_keeps_it(path, source):
    assert not list(_violations(pathlib.PurePath(path), source))


def test_every_module_has_one_row():
    names = [name for row in ROWS for name in row]
    assert len(names) == len(set(names))
    assert set(ONLY) <= set(names)
