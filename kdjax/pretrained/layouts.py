"""How other libraries name the parameters of the models that we have.

Within a model, and within each of its blocks, Flax numbers the modules of one kind in
the order of their use: `Conv_0`, `Conv_1`... The names of PyTorch, of the families
below, sort into that same order, so a layout need only tell what is a block's prefix.
"""

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping

import numpy as np

Tensors = Mapping[str, np.ndarray]

Rename = Callable[[Tensors, Iterable[str]], dict[str, str]]
"""The names in a file to paths such as `params/Conv_0/kernel`, given the model's."""


@dataclasses.dataclass(frozen=True)
class Layout:
    """The names of one family of PyTorch models, as regular expressions.

    Attributes:
      block: the prefix of a block's modules.
      inside: the rest of their names.
      outside: the names of all other modules.
    """

    block: str
    inside: str
    outside: str

    def __call__(self, tensors: Tensors, expected: Iterable[str]) -> dict[str, str]:
        """Our paths of those tensors whose names are of this family."""
        kind_of_block = _kind_of_block(expected)
        numbers: dict[str, int] = {}
        scopes: dict[str, str] = {"": ""}
        renamed = {}
        for module in sorted({n.rpartition(".")[0] for n in tensors}, key=_in_order):
            prefix = self._prefix(module)
            kind = _kind(module, tensors)
            if prefix is None or kind is None:
                continue
            if prefix not in scopes:
                scopes[prefix] = f"{kind_of_block}_{len(scopes) - 1}/"
            number = numbers[prefix + kind] = numbers.get(prefix + kind, -1) + 1
            for leaf, path in _LEAVES[kind].items():
                if f"{module}.{leaf}" in tensors:
                    ours = path.format(f"{scopes[prefix]}{kind}_{number}")
                    renamed[f"{module}.{leaf}"] = ours
        return renamed

    def _prefix(self, module: str) -> str | None:
        """The block that a module is in, '' for none; None if it's no such name."""
        if inside := re.fullmatch(rf"({self.block})\.(?:{self.inside})", module):
            return inside[1]
        return "" if re.fullmatch(self.outside, module) else None


LAYOUTS: Mapping[str, Layout] = {
    # ResNets of torchvision and of most CIFAR code; ShuffleNets of RepDistiller.
    "resnet": Layout(
        block=r"layer\d\.\d+",
        inside=r"(conv|bn)[1-5]|(shortcut|downsample)\.[01]",
        outside=r"(conv|bn)[12]|fc|linear",
    ),
    "wide_resnet": Layout(
        block=r"block\d\.layer\.\d+",
        inside=r"(conv|bn)[12]|convShortcut",
        outside=r"conv1|bn1|fc",
    ),
    # torchvision's, and RepDistiller's; without blocks.
    "vgg": Layout(
        block=r"(?!)",
        inside=r"(?!)",
        outside=r"(features|block\d)\.\d+|classifier(\.\d+)?",
    ),
    # torchvision's.
    "mobilenet_v2": Layout(
        block=r"features\.\d+\.conv",
        inside=r"\d+(\.\d+)?",
        outside=r"features\.(0|18)\.[01]|classifier\.1",
    ),
    # RepDistiller's.
    "mobilenet_v2_small": Layout(
        block=r"blocks\.\d\.\d\.conv",
        inside=r"\d",
        outside=r"conv[12]\.[01]|classifier\.0",
    ),
    # torchvision's.
    "shufflenet_v2": Layout(
        block=r"stage\d\.\d", inside=r"branch[12]\.\d", outside=r"conv[15]\.[01]|fc"
    ),
}

_AFFINE = {"weight": "params/{}/kernel", "bias": "params/{}/bias"}
_LEAVES = {
    "Conv": _AFFINE,
    "Dense": _AFFINE,
    "BatchNorm": {
        "weight": "params/{}/scale",
        "bias": "params/{}/bias",
        "running_mean": "batch_stats/{}/mean",
        "running_var": "batch_stats/{}/var",
    },
}


def to_flax(path: str, array: np.ndarray) -> np.ndarray:
    """A PyTorch tensor with its axes in the order of Flax."""
    if path.endswith("/kernel") and array.ndim == 4:
        return array.transpose(2, 3, 1, 0)  # OIHW to HWIO.
    if path.endswith("/kernel") and array.ndim == 2:
        return array.T
    return array


def _kind(module: str, tensors: Tensors) -> str | None:
    if f"{module}.running_mean" in tensors:
        return "BatchNorm"
    weight = tensors.get(f"{module}.weight")
    return None if weight is None else {4: "Conv", 2: "Dense"}.get(weight.ndim)


def _kind_of_block(paths: Iterable[str]) -> str:
    """`BasicBlock` of `params/BasicBlock_0/Conv_0/kernel`; '' if there is no such."""
    blocks = (path.split("/")[1] for path in paths if path.count("/") == 3)
    return next(blocks, "").rpartition("_")[0]


def _in_order(name: str) -> list[tuple[int, str]]:
    """A key that sorts `layer1.10` after `layer1.9`, and the classifier last."""
    return [(int(name.startswith("classifier")), "")] + [
        (int(part), "") if part.isdigit() else (-1, part)
        for part in re.split(r"(\d+)", name)
    ]
