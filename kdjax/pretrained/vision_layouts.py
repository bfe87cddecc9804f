"""How others name the parameters of the image models that we have."""

from collections.abc import Mapping

import numpy as np

from kdjax.pretrained.layouts import Counted, Layout, Renamed, from_torch, unchanged

# Sorts behind `features`.
_CLASSIFIER = {"^classifier": "head"}


def _vgg(path: str, array: np.ndarray) -> np.ndarray:
    """The first linear layer sees 7x7 places: PyTorch's by channel, ours by place."""
    if path == "params/Dense_0/kernel" and array.shape[1] == 512 * 7 * 7:
        return (
            array.reshape(-1, 512, 7, 7).transpose(2, 3, 1, 0).reshape(-1, len(array))
        )
    return from_torch(path, array)


LAYOUTS: Mapping[str, Layout] = {
    # ResNets of torchvision and of most CIFAR code; ShuffleNets of RepDistiller.
    "resnet": Renamed(
        Counted(
            block=r"layer\d\.\d+",
            inside=r"(conv|bn)[1-5]|(shortcut|downsample)\.[01]",
            outside=r"(conv|bn)[12]|fc|linear",
        )
    ),
    # Keras's ResNets, by their names until 2019 and since.
    "keras_resnet": Renamed(
        Counted(
            block=r"layer\d\.\w+",
            inside=r"conv\w|shortcut",
            outside=r"(bn_)?conv1|fc1000|conv1_(conv|bn)|predictions",
            spelling={
                r"^(?:res|bn)(\d)([a-z]\d*)_branch2([a-c])$": r"layer\1.\2.conv\3",
                r"^(?:res|bn)(\d)([a-z]\d*)_branch1$": r"layer\1.\2.shortcut",
                r"^conv(\d)_block(\d+)_0_(?:conv|bn)$": r"layer\1.\2.shortcut",
                r"^conv(\d)_block(\d+)_([1-3])_(?:conv|bn)$": r"layer\1.\2.conv\3",
            },
        ),
        convert=unchanged,
    ),
    "wide_resnet": Renamed(
        Counted(
            block=r"block\d\.layer\.\d+",
            inside=r"(conv|bn)[12]|convShortcut",
            outside=r"conv1|bn1|fc",
        )
    ),
    # torchvision's, and RepDistiller's; without blocks.
    "vgg": Renamed(
        Counted(
            block=r"(?!)",
            inside=r"(?!)",
            outside=r"(features|block\d)\.\d+|head(\.\d+)?",
            spelling=_CLASSIFIER,
        ),
        convert=_vgg,
    ),
    # torchvision's.
    "mobilenet_v2": Renamed(
        Counted(
            block=r"features\.\d+\.conv",
            inside=r"\d+(\.\d+)?",
            outside=r"features\.(0|18)\.[01]|classifier\.1",
        )
    ),
    # RepDistiller's.
    "mobilenet_v2_small": Renamed(
        Counted(
            block=r"blocks\.\d\.\d\.conv",
            inside=r"\d",
            outside=r"conv[12]\.[01]|classifier\.0",
        )
    ),
    # torchvision's.
    "shufflenet_v2": Renamed(
        Counted(
            block=r"stage\d\.\d",
            inside=r"branch[12]\.\d",
            outside=r"conv[15]\.[01]|fc",
        )
    ),
}
