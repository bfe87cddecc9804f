"""Students and teachers, by name.

Every model is called as `model(images, train=...)`, with float images `[B, H, W, C]`,
or, those of `ENCODERS`, with a dict of `tokens` and `mask`, both `[B, L]`. It returns
its logits in float32 and its features by name:

* `stem`, and `stage1`, `stage2`...: the last activations at one resolution;
* `stage1_preact` and so on: the same before their ReLU, where one follows;
* `pooled`: what the classifier sees, `[B, C]`, in float32;
* `hidden1`...: the hidden layers of `mlp` and `lenet5`;
* `embeddings`, and `block1`, `block2`...: the tokens of a transformer,
  `[B, L, D]`, with `block1_queries`, `block1_keys`, `block1_values`, and
  `block1_scores`, `[B, heads, L, L]`.
"""

import dataclasses
import difflib
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from kdjax.models.bert import Bert
from kdjax.models.cnn import CNN
from kdjax.models.efficientnet_lite import EfficientNetLite
from kdjax.models.lenet import LeNet5
from kdjax.models.mlp import MLP
from kdjax.models.mobilenet import MobileNetV2
from kdjax.models.mobilenet_v3 import MobileNetV3
from kdjax.models.resnet import CifarResNet, ResNet
from kdjax.models.shufflenet import ShuffleNetV1, ShuffleNetV2
from kdjax.models.vgg import VGG
from kdjax.models.vit import ViT
from kdjax.models.wide_resnet import WideResNet
from kdjax.types import UserError

_partial = functools.partial
_X4 = (32, 64, 128, 256)
_deit = _partial(ViT, patch_size=16, depth=12, distilled=True)
_original_vgg = _partial(VGG, small_images=False, original=True, hidden=())

MODELS: dict[str, Callable[..., nn.Module]] = {
    # Any images.
    "mlp": MLP,
    "cnn": CNN,
    "lenet5": LeNet5,
    "lenet5_half": _partial(LeNet5, widths=(3, 8, 60, 42)),
    "vit": ViT,
    # Images of CIFAR's size, about 8x8 to 64x64.
    "resnet8": _partial(CifarResNet, depth=8),
    "resnet14": _partial(CifarResNet, depth=14),
    "resnet20": _partial(CifarResNet, depth=20),
    "resnet32": _partial(CifarResNet, depth=32),
    "resnet44": _partial(CifarResNet, depth=44),
    "resnet56": _partial(CifarResNet, depth=56),
    "resnet110": _partial(CifarResNet, depth=110),
    "resnet8x4": _partial(CifarResNet, depth=8, widths=_X4),
    "resnet32x4": _partial(CifarResNet, depth=32, widths=_X4),
    "wrn_16_1": _partial(WideResNet, depth=16, widen=1),
    "wrn_16_2": _partial(WideResNet, depth=16, widen=2),
    "wrn_40_1": _partial(WideResNet, depth=40, widen=1),
    "wrn_40_2": _partial(WideResNet, depth=40, widen=2),
    "vgg8": _partial(VGG, depth=8),
    "vgg11": _partial(VGG, depth=11),
    "vgg13": _partial(VGG, depth=13),
    "vgg16": _partial(VGG, depth=16),
    "vgg19": _partial(VGG, depth=19),
    "resnet18_cifar": _partial(ResNet, depth=18, small_images=True),
    "resnet34_cifar": _partial(ResNet, depth=34, small_images=True),
    "resnet50_cifar": _partial(ResNet, depth=50, small_images=True),
    "mobilenet_v2_half_cifar": _partial(
        MobileNetV2,
        widths=(16, 8, 12, 16, 32, 48, 80, 160),
        dropout=0.0,
        small_images=True,
    ),
    "shufflenet_v1_cifar": ShuffleNetV1,
    "shufflenet_v2_cifar": _partial(ShuffleNetV2, small_images=True),
    # Images of ImageNet's size.
    "resnet18": _partial(ResNet, depth=18),
    "resnet34": _partial(ResNet, depth=34),
    "resnet50": _partial(ResNet, depth=50),
    "resnet101": _partial(ResNet, depth=101),
    "resnet152": _partial(ResNet, depth=152),
    # The form of Keras, with the epsilon of its weights until 2019.
    "resnet50_keras": _partial(ResNet, depth=50, keras=True, epsilon=1e-3),
    "vgg11_imagenet": _partial(_original_vgg, depth=11, use_batch_norm=False),
    "vgg13_imagenet": _partial(_original_vgg, depth=13, use_batch_norm=False),
    "vgg16_imagenet": _partial(_original_vgg, depth=16, use_batch_norm=False),
    "vgg19_imagenet": _partial(_original_vgg, depth=19, use_batch_norm=False),
    "vgg11_bn_imagenet": _partial(_original_vgg, depth=11, use_batch_norm=True),
    "vgg13_bn_imagenet": _partial(_original_vgg, depth=13, use_batch_norm=True),
    "vgg16_bn_imagenet": _partial(_original_vgg, depth=16, use_batch_norm=True),
    "vgg19_bn_imagenet": _partial(_original_vgg, depth=19, use_batch_norm=True),
    "mobilenet_v2": MobileNetV2,
    "mobilenet_v3_small": _partial(MobileNetV3, small=True),
    "mobilenet_v3_large": _partial(MobileNetV3, small=False),
    "efficientnet_lite0": _partial(EfficientNetLite, width=1.0, depth=1.0),
    "efficientnet_lite1": _partial(EfficientNetLite, width=1.0, depth=1.1),
    "efficientnet_lite2": _partial(EfficientNetLite, width=1.1, depth=1.2, dropout=0.3),
    "efficientnet_lite3": _partial(EfficientNetLite, width=1.2, depth=1.4, dropout=0.3),
    "efficientnet_lite4": _partial(EfficientNetLite, width=1.4, depth=1.8, dropout=0.3),
    "shufflenet_v2": ShuffleNetV2,
    "shufflenet_v2_x0_5": _partial(ShuffleNetV2, widths=(48, 96, 192, 1024)),
    "shufflenet_v2_x1_5": _partial(ShuffleNetV2, widths=(176, 352, 704, 1024)),
    "shufflenet_v2_x2_0": _partial(ShuffleNetV2, widths=(244, 488, 976, 2048)),
    "vit_tiny": _partial(ViT, patch_size=16, dim=192, depth=12, heads=3),
    "vit_small": _partial(ViT, patch_size=16, dim=384, depth=12, heads=6),
    "vit_base": _partial(ViT, patch_size=16, dim=768, depth=12, heads=12),
    "deit_tiny": _partial(_deit, dim=192, heads=3),
    "deit_small": _partial(_deit, dim=384, heads=6),
    "deit_base": _partial(_deit, dim=768, heads=12),
}

# Of texts; `vocab_size` is the tokenizer's.
ENCODERS: dict[str, Callable[..., nn.Module]] = {
    "bert": Bert,
    "bert_base": _partial(Bert, dim=768, depth=12, heads=12, hidden=3072),
    "distilbert_base": _partial(
        Bert, dim=768, depth=6, heads=12, hidden=3072, segments=0, pooler="relu"
    ),
    "minilm_l12": _partial(Bert, dim=384, depth=12, heads=12, hidden=1536),
    "minilm_l6": _partial(Bert, dim=384, depth=6, heads=12, hidden=1536),
    "tinybert_4": _partial(Bert, dim=312, depth=4, heads=12, hidden=1200),
    "tinybert_6": _partial(Bert, dim=768, depth=6, heads=12, hidden=3072),
}


def create(
    name: str,
    *,
    num_classes: int,
    dtype: Any = jnp.float32,
    axis_name: str | None = None,
    among: Mapping[str, Callable[..., nn.Module]] = MODELS,
    **kwargs: Any,
) -> nn.Module:
    """A student or a teacher by name.

    Args:
      name: one of `among`.
      num_classes: the number of logits.
      dtype: of the computation; parameters, statistics and logits are float32.
      axis_name: the `pmap` axis, for BatchNorm and dropout; none under `jit`.
      among: the models there are, by name: those of images, or `ENCODERS`.
      **kwargs: the model's own attributes, where its name does not fix them.

    Raises:
      UserError: if there is no such model, or it has no such attribute.

    Examples:
      >>> create("wrn_40_2", num_classes=100, dropout=0.3).widen
      2
    """
    if name not in among:
        near = difflib.get_close_matches(name, among, n=3, cutoff=0.4) or list(among)
        raise UserError(
            f"Expected the name of a model, got {name!r}: did you mean "
            f"{', '.join(near)}?"
        )
    allowed = _attributes(among[name])
    if unexpected := [argument for argument in kwargs if argument not in allowed]:
        raise UserError(
            f"Expected for {name!r} no arguments but "
            f"{', '.join(['num_classes', 'dtype', *allowed])}, got {unexpected[0]!r}."
        )
    common = dict(num_classes=num_classes, dtype=dtype, axis_name=axis_name)
    return among[name](**common, **kwargs)


def _attributes(make: Callable[..., nn.Module]) -> list[str]:
    """What may be given beside the common arguments and those the table fixes."""
    fixed = {"num_classes", "dtype", "axis_name", "parent", "name"}
    if isinstance(make, functools.partial):
        fixed |= make.keywords.keys()
        make = make.func
    return [f.name for f in dataclasses.fields(make) if f.name not in fixed]  # type: ignore[arg-type]
