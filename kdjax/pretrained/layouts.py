"""How the names and the axes of another library's file become those of our models.

A file has one layout, that of the family of its model. `vision_layouts` and its
neighbours hold a table each; a new family is a line in one of them.
"""

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

Tensors = Mapping[str, np.ndarray]

Layout = Callable[[Tensors, Mapping[str, Any]], dict[str, np.ndarray]]
"""The tensors of a file by paths such as `params/Conv_0/kernel`, with the axes that we
have, given the model's arrays by path; a tensor that has no place keeps its name."""

Rename = Callable[[Tensors, Mapping[str, Any]], dict[str, str]]
"""The names in a file to our paths, given the model's arrays by path."""

Convert = Callable[[str, np.ndarray], np.ndarray]
"""A tensor with the axes that we have, given the path that it goes to."""


def from_torch(path: str, array: np.ndarray) -> np.ndarray:
    """The axes of PyTorch's convolutions and linear layers in the order of Flax."""
    if path.endswith("/kernel") and array.ndim == 4:
        return array.transpose(2, 3, 1, 0)  # OIHW to HWIO.
    if path.endswith("/kernel") and array.ndim == 2:
        return array.T
    return array


def unchanged(path: str, array: np.ndarray) -> np.ndarray:
    """Keras has the axes of Flax."""
    del path
    return array


def of_names_alone(
    conversions: Mapping[str, Callable[[Tensors], dict[str, np.ndarray]]],
) -> dict[str, Layout]:
    """Layouts of conversions that need not be told what the model has."""

    def layout(convert: Callable[[Tensors], dict[str, np.ndarray]]) -> Layout:
        return lambda tensors, expected: convert(tensors)

    return {name: layout(convert) for name, convert in conversions.items()}


@dataclasses.dataclass(frozen=True)
class Renamed:
    """A `Layout` whose tensors are ours one by one, by other names and axes.

    Attributes:
      rename: gives our paths of those names that are of the family.
      convert: gives a tensor our axes.
      ignored: names, as a regular expression, that a file may hold and no model needs.
    """

    rename: Rename
    convert: Convert = from_torch
    ignored: str = r"(.*\.)?num_batches_tracked"  # Flax keeps no such count.

    def __call__(
        self, tensors: Tensors, expected: Mapping[str, Any]
    ) -> dict[str, np.ndarray]:
        kept = {
            name: x
            for name, x in tensors.items()
            if not re.fullmatch(self.ignored, name)
        }
        renamed = self.rename(kept, expected)
        found = {}
        for name, x in kept.items():
            ours = renamed.get(name)
            found[ours or name] = x if ours is None else self.convert(ours, x)
        return found


@dataclasses.dataclass(frozen=True)
class Counted:
    r"""A `Rename` for names that tell a module's place, but not its number.

    Within a model, and within each of its blocks, Flax numbers the modules of one kind
    in the order of their use: `Conv_0`, `Conv_1`... Other libraries' names mostly sort
    into that same order, and where they do not, `spelling` brings them into it.

    Attributes:
      block: the prefix of a block's modules, as a regular expression.
      inside: the rest of their names.
      outside: the names of all other modules.
      spelling: replacements in the names, by regular expression, in their order; the
        three above, and the sorting, see the names with these done.
      parameters: our paths of the parameters that are of no module.
    """

    block: str
    inside: str
    outside: str
    spelling: Mapping[str, str] = dataclasses.field(default_factory=dict)
    parameters: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def __call__(self, tensors: Tensors, expected: Iterable[str]) -> dict[str, str]:
        """Our paths of those tensors whose names are of this family."""
        kind_of_block = _kind_of_block(expected)
        numbers: dict[str, int] = {}
        scopes: dict[str, str] = {"": ""}
        renamed = {k: v for k, v in self.parameters.items() if k in tensors}
        modules = _modules(tensors)
        for module in sorted(modules, key=lambda name: _in_order(self._spell(name))):
            prefix = self._prefix(self._spell(module))
            kind = _kind(modules[module], tensors)
            if prefix is None or kind is None:
                continue
            if prefix not in scopes:
                scopes[prefix] = f"{kind_of_block}_{len(scopes) - 1}/"
            number = numbers[prefix + kind] = numbers.get(prefix + kind, -1) + 1
            for leaf, name in modules[module].items():
                if path := _LEAVES[kind].get(leaf):
                    renamed[name] = path.format(f"{scopes[prefix]}{kind}_{number}")
        return renamed

    def _spell(self, module: str) -> str:
        for pattern, replacement in self.spelling.items():
            module = re.sub(pattern, replacement, module)
        return module

    def _prefix(self, module: str) -> str | None:
        """The block that a module is in, '' for none; None if it's no such name."""
        if inside := re.fullmatch(rf"({self.block})\.(?:{self.inside})", module):
            return inside[1]
        return "" if re.fullmatch(self.outside, module) else None


# What Keras calls them.
_SYNONYMS = {
    "kernel": "weight",
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}

_AFFINE = {"weight": "params/{}/kernel", "bias": "params/{}/bias"}
_SCALE = {"weight": "params/{}/scale", "bias": "params/{}/bias"}
_LEAVES = {
    "Conv": _AFFINE,
    "Dense": _AFFINE,
    "LayerNorm": _SCALE,
    "BatchNorm": _SCALE
    | {"running_mean": "batch_stats/{}/mean", "running_var": "batch_stats/{}/var"},
}


def _modules(tensors: Tensors) -> dict[str, dict[str, str]]:
    """The names of all tensors by module, and by what they are in it."""
    modules: dict[str, dict[str, str]] = {}
    for name in tensors:
        if match := re.fullmatch(r"(.+)[./](\w+)", name):
            leaf = _SYNONYMS.get(match[2], match[2])
            modules.setdefault(match[1], {})[leaf] = name
    return modules


def _kind(leaves: Mapping[str, str], tensors: Tensors) -> str | None:
    if "running_mean" in leaves:
        return "BatchNorm"
    if "weight" not in leaves:
        return None
    ndim = tensors[leaves["weight"]].ndim
    return {4: "Conv", 2: "Dense", 1: "LayerNorm"}.get(ndim)


def _kind_of_block(paths: Iterable[str]) -> str:
    """`BasicBlock` of `params/BasicBlock_0/Conv_0/kernel`; '' if there is no such."""
    blocks = (path.split("/")[1] for path in paths if path.count("/") == 3)
    return next(blocks, "").rpartition("_")[0]


def _in_order(name: str) -> list[tuple[int, str]]:
    """A key that sorts `layer1.10` after `layer1.9`."""
    return [
        (int(part), "") if part.isdigit() else (-1, part)
        for part in re.split(r"(\d+)", name)
    ]
