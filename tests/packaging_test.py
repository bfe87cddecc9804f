"""The promises about the package itself: what it needs, ships and says."""

import doctest
import email
import hashlib
import os
import pathlib
import re
import subprocess
import sys
import tomllib
import zipfile

import pytest

ROOT = pathlib.Path(__file__).parents[1]
README_COMMANDS = (
    "pip install -e . && python -m kdjax.main --config=configs/digits_kd.py",
    "pip install -e '.[test]' && pytest",
)

# Runs the code on standard input where only jax, jaxtyping and what they depend on can
# be imported, as their installed metadata says.
ISOLATED = """
import importlib.abc, importlib.metadata, re, sys

def closure(names):
    seen = set()
    while names:
        name = re.sub("[-_.]+", "-", names.pop()).lower()
        try:
            requirements = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        if name not in seen:
            seen.add(name)
            names += [re.match("[A-Za-z0-9._-]+", r)[0] for r in requirements
                      if "extra ==" not in r]
    return seen

wanted = closure(["jax", "jaxtyping"])
owners = importlib.metadata.packages_distributions()
forbidden = {
    package for package, names in owners.items()
    if not wanted & {re.sub("[-_.]+", "-", name).lower() for name in names}
} - {"kdjax"} - set(sys.stdlib_module_names)

class Forbid(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] in forbidden:
            raise ModuleNotFoundError(f"{name} is neither jax, jaxtyping nor theirs")

assert {"flax", "optax", "orbax"} <= forbidden and not {"jax", "numpy"} & forbidden
sys.meta_path.insert(0, Forbid())
exec(compile(sys.stdin.read(), "example", "exec"), {"__name__": "__main__"})
"""

TRY_LOSSES = """
import sys
from kdjax import losses
ours = {name for name in sys.modules if name.startswith("kdjax.")}
others = {name for name in ours if name.split(".")[1] != "losses"}
assert not others, f"kdjax.losses imports {others}"
import jax, jax.numpy as jnp
logits = jnp.array([[2.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
teacher_logits = jnp.array([[3.0, 0.0, 0.0], [1.0, 1.0, 1.0]])
values = losses.soft_target_loss(logits, teacher_logits, temperature=4.0)
assert jnp.allclose(values, jnp.array([0.3527, 0.0]), atol=1e-4), values
"""


def run_isolated(code: str, directory: pathlib.Path) -> None:
    """Runs `code` away from the repository, without the rest of the ecosystem."""
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", ISOLATED],
        input=code,
        cwd=directory,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr


def readme_example() -> str:
    """The first Python block of the README that uses the losses, as plain code."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    block = next(block for block in blocks if "losses" in block)
    return doctest.script_from_examples(block) if ">>>" in block else block


def test_losses_need_only_jax_and_jaxtyping(tmp_path):
    run_isolated(TRY_LOSSES, tmp_path)


def test_isolation_isolates(tmp_path):
    with pytest.raises(AssertionError, match="neither jax, jaxtyping nor theirs"):
        run_isolated("import kdjax.losses, optax", tmp_path)


def test_readme_example_needs_only_jax_and_jaxtyping(tmp_path):
    example = readme_example()
    run_isolated(example, tmp_path)
    code = [line for line in example.splitlines() if line and line[0] != "#"]
    assert len(code) <= 12


@pytest.mark.parametrize("command", README_COMMANDS)
def test_readme_names_the_two_commands(command):
    assert command in (ROOT / "README.md").read_text()


def test_ci_runs_the_test_command_of_the_readme():
    path = ROOT / ".ci" / "run"
    assert os.access(path, os.X_OK)
    assert path.read_text().rstrip().endswith("\n" + README_COMMANDS[1])
    subprocess.run(["bash", "-n", path], check=True)


def test_version_and_python_are_the_same_everywhere():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    changelog = (ROOT / "CHANGELOG.md").read_text()
    assert re.search(r"## \[(.*?)\]", changelog)[1] == project["version"]
    minimum = project["requires-python"].removeprefix(">=")
    assert f"{minimum} or later" in (ROOT / "CONTRIBUTING.md").read_text()
    assert f"{minimum} or later" in (ROOT / ".ci" / "run").read_text()


def test_licence_is_the_apache_licence():
    """To the byte as published at https://www.apache.org/licenses/LICENSE-2.0.txt."""
    digest = hashlib.sha256((ROOT / "LICENSE").read_bytes()).hexdigest()
    assert digest == "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"


@pytest.mark.slow
def test_wheel_works_in_an_empty_environment(tmp_path):
    """Needs a package index: builds the wheel, and installs jax and jaxtyping only."""

    def python(*arguments, executable=sys.executable, **options):
        command = [executable, *map(str, arguments)]
        subprocess.run(command, check=True, cwd=tmp_path, **options)

    python("-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir=.", ROOT)
    [wheel] = tmp_path.glob("kdjax-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        [metadata] = [name for name in names if name.endswith("/METADATA")]
        described = email.message_from_bytes(archive.read(metadata))
    source = {path.relative_to(ROOT).as_posix() for path in ROOT.glob("kdjax/**/*.py")}
    shipped = {name for name in names if ".dist-info/" not in name}
    assert shipped == source | {"kdjax/py.typed", "kdjax/citations.bib"}
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert described["License-Expression"] == "Apache-2.0"

    python("-m", "venv", "environment")
    inside = tmp_path / "environment" / "bin" / "python"
    install = ("-m", "pip", "install", "--quiet")
    python(*install, "jax", "jaxtyping", executable=inside)
    python(*install, "--no-deps", wheel, executable=inside)
    python("-W", "error", "-c", TRY_LOSSES, executable=inside)
    python("-W", "error", "-c", readme_example(), executable=inside)
