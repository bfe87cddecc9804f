"""The names of other libraries, as their code makes them, all find their place."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from kdjax import models
from kdjax.pretrained import layouts, vision_layouts

RENAMES = [layout.rename for layout in vision_layouts.LAYOUTS.values()]
SHAPES = {"Conv": (1, 1, 1, 1), "BatchNorm": (1,), "Dense": (1, 1)}


def unit(conv, norm):
    return [(conv, "Conv"), (norm, "BatchNorm")]


def resnet(counts, convs, shortcut, head, projected):
    """Of torchvision (`downsample`, `fc`) and pytorch-cifar (`shortcut`, `linear`)."""
    yield from unit("conv1", "bn1")
    for stage, count in enumerate(counts, start=1):
        for block in range(count):
            prefix = f"layer{stage}.{block}."
            for n in range(1, convs + 1):
                yield from unit(f"{prefix}conv{n}", f"{prefix}bn{n}")
            if block == 0 and stage in projected:
                yield from unit(f"{prefix}{shortcut}.0", f"{prefix}{shortcut}.1")
    yield head, "Dense"


def wide_resnet(blocks):
    yield "conv1", "Conv"
    for stage in (1, 2, 3):
        for block in range(blocks):
            prefix = f"block{stage}.layer.{block}."
            yield from unit(f"{prefix}conv1", f"{prefix}bn1")
            yield from unit(f"{prefix}conv2", f"{prefix}bn2")
            if block == 0:
                yield f"{prefix}convShortcut", "Conv"
    yield "bn1", "BatchNorm"
    yield "fc", "Dense"


def vgg_repdistiller(counts):
    for stage, count in enumerate(counts):
        for i in range(count):
            yield from unit(f"block{stage}.{3 * i}", f"block{stage}.{3 * i + 1}")
    yield "classifier", "Dense"


def vgg_torchvision(counts):
    place = 0
    for count in counts:
        for _ in range(count):
            yield from unit(f"features.{place}", f"features.{place + 1}")
            place += 3
        place += 1  # Max-pooling.
    yield "classifier.1", "Dense"
    yield "classifier.2", "BatchNorm"
    yield "classifier.5", "Dense"


def vgg_original(counts):
    place = 0
    for count in counts:
        for _ in range(count):
            yield f"features.{place}", "Conv"
            place += 2
        place += 1  # Max-pooling.
    for place in (0, 3, 6):
        yield f"classifier.{place}", "Dense"


def efficientnet_lite(counts):
    """Of efficientnet-lite-pytorch."""
    yield from unit("_conv_stem", "_bn0")
    for block in range(sum(counts)):
        prefix = f"_blocks.{block}._"
        if block:
            yield from unit(f"{prefix}expand_conv", f"{prefix}bn0")
        yield from unit(f"{prefix}depthwise_conv", f"{prefix}bn1")
        yield from unit(f"{prefix}project_conv", f"{prefix}bn2")
    yield from unit("_conv_head", "_bn1")
    yield "_fc", "Dense"


def mobilenet_torchvision():
    yield from unit("features.0.0", "features.0.1")
    for block in range(1, 18):
        prefix = f"features.{block}.conv."
        pairs = [("0.0", "0.1"), ("1.0", "1.1"), ("2", "3")]
        for conv, norm in pairs if block > 1 else [("0.0", "0.1"), ("1", "2")]:
            yield from unit(prefix + conv, prefix + norm)
    yield from unit("features.18.0", "features.18.1")
    yield "classifier.1", "Dense"


def mobilenet_repdistiller():
    yield from unit("conv1.0", "conv1.1")
    for group, count in enumerate((1, 2, 3, 4, 3, 3, 1)):
        for block in range(count):
            for place in (0, 3, 6):
                prefix = f"blocks.{group}.{block}.conv."
                yield from unit(f"{prefix}{place}", f"{prefix}{place + 1}")
    yield from unit("conv2.0", "conv2.1")
    yield "classifier.0", "Dense"


def shufflenet_torchvision():
    yield from unit("conv1.0", "conv1.1")
    for stage, count in zip((2, 3, 4), (4, 8, 4), strict=True):
        for block in range(count):
            if block == 0:
                for place in (0, 2):
                    prefix = f"stage{stage}.0.branch1."
                    yield from unit(f"{prefix}{place}", f"{prefix}{place + 1}")
            for place in (0, 3, 5):
                prefix = f"stage{stage}.{block}.branch2."
                yield from unit(f"{prefix}{place}", f"{prefix}{place + 1}")
    yield from unit("conv5.0", "conv5.1")
    yield "fc", "Dense"


def shufflenet_repdistiller(first, last):
    """`first` convolutions in the first block of a stage, three in the others."""
    yield from unit("conv1", "bn1")
    for stage, count in enumerate((4, 8, 4), start=1):
        for block in range(count):
            for n in range(1, 1 + (3 if block else first)):
                prefix = f"layer{stage}.{block}."
                yield from unit(f"{prefix}conv{n}", f"{prefix}bn{n}")
    if last:
        yield from unit("conv2", "bn2")
    yield "linear", "Dense"


# A model, the modules of another library's, and some of their places.
FAMILIES = {
    "resnet56": (
        {},
        resnet((9, 9, 9), 2, "shortcut", "linear", (2, 3)),
        {
            "conv1": "Conv_0",
            "layer1.8.conv2": "BasicBlock_8/Conv_1",
            "layer2.0.bn1": "BasicBlock_9/BatchNorm_0",
            "layer2.0.shortcut.0": "BasicBlock_9/Conv_2",
            "layer2.0.shortcut.1": "BasicBlock_9/BatchNorm_2",
            "linear": "Dense_0",
        },
    ),
    "resnet8x4": (
        {},
        resnet((1, 1, 1), 2, "downsample", "fc", (1, 2, 3)),
        {"layer3.0.downsample.0": "BasicBlock_2/Conv_2", "fc": "Dense_0"},
    ),
    "resnet34": (
        {},
        resnet((3, 4, 6, 3), 2, "downsample", "fc", (2, 3, 4)),
        {
            "layer2.0.downsample.0": "BasicBlock_3/Conv_2",
            "layer4.2.bn2": "BasicBlock_15/BatchNorm_1",
        },
    ),
    "resnet50": (
        {},
        resnet((3, 4, 6, 3), 3, "downsample", "fc", (1, 2, 3, 4)),
        {
            "layer1.0.downsample.1": "Bottleneck_0/BatchNorm_3",
            "layer3.5.conv3": "Bottleneck_12/Conv_2",
        },
    ),
    "wrn_16_2": (
        {},
        wide_resnet(2),
        {
            "block2.layer.0.convShortcut": "PreactBlock_2/Conv_2",
            "block3.layer.1.bn2": "PreactBlock_5/BatchNorm_1",
            "bn1": "BatchNorm_0",
        },
    ),
    "vgg13": (
        {},
        vgg_repdistiller((2, 2, 2, 2, 2)),
        {"block1.3": "Conv_3", "block4.4": "BatchNorm_9", "classifier": "Dense_0"},
    ),
    "vgg16": (
        {"small_images": False, "hidden": (512,)},
        vgg_torchvision((2, 2, 3, 3, 3)),
        {
            "features.7": "Conv_2",
            "features.41": "BatchNorm_12",
            "classifier.1": "Dense_0",
            "classifier.2": "BatchNorm_13",
            "classifier.5": "Dense_1",
        },
    ),
    "vgg11_imagenet": (
        {},
        vgg_original((1, 1, 2, 2, 2)),
        {"features.18": "Conv_7", "classifier.0": "Dense_0", "classifier.6": "Dense_2"},
    ),
    "efficientnet_lite0": (
        {},
        efficientnet_lite((1, 2, 2, 3, 3, 4, 1)),
        {
            "_conv_head": "Conv_1",
            "_blocks.0._project_conv": "InvertedResidual_0/Conv_1",
            "_blocks.10._expand_conv": "InvertedResidual_10/Conv_0",
            "_blocks.10._depthwise_conv": "InvertedResidual_10/Conv_1",
            "_blocks.10._bn2": "InvertedResidual_10/BatchNorm_2",
        },
    ),
    "mobilenet_v2": (
        {},
        mobilenet_torchvision(),
        {
            "features.1.conv.1": "InvertedResidual_0/Conv_1",
            "features.10.conv.0.0": "InvertedResidual_9/Conv_0",
            "features.10.conv.3": "InvertedResidual_9/BatchNorm_2",
            "features.18.0": "Conv_1",
        },
    ),
    "mobilenet_v2_half_cifar": (
        {},
        mobilenet_repdistiller(),
        {"blocks.1.0.conv.3": "InvertedResidual_1/Conv_1", "conv2.1": "BatchNorm_1"},
    ),
    "shufflenet_v2": (
        {},
        shufflenet_torchvision(),
        {
            "stage2.0.branch1.2": "SplitBlock_0/Conv_1",
            "stage2.0.branch2.0": "SplitBlock_0/Conv_2",
            "stage3.1.branch2.3": "SplitBlock_5/Conv_1",
            "conv5.0": "Conv_1",
        },
    ),
    "shufflenet_v2_cifar": (
        {},
        shufflenet_repdistiller(5, last=True),
        {"layer1.0.conv5": "SplitBlock_0/Conv_4", "conv2": "Conv_1"},
    ),
    "shufflenet_v1_cifar": (
        {},
        shufflenet_repdistiller(3, last=False),
        {"layer2.7.bn3": "GroupedBlock_11/BatchNorm_2", "linear": "Dense_0"},
    ),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_all_names_find_their_place(name):
    """One layout, and no other, leads to every variable of the model."""
    arguments, modules, places = FAMILIES[name]
    kinds = dict(modules)
    tensors = {}
    for module, kind in kinds.items():
        tensors[f"{module}.weight"] = np.zeros(SHAPES[kind])
        if kind == "BatchNorm":
            tensors[f"{module}.running_mean"] = np.zeros(1)
            tensors[f"{module}.running_var"] = np.zeros(1)
        if kind != "Conv" or name.startswith("vgg"):
            tensors[f"{module}.bias"] = np.zeros(1)
    expected = traverse_util.flatten_dict(shapes(name, **arguments), sep="/").keys()
    renamed = [rename(tensors, expected) for rename in RENAMES]
    (complete,) = [r for r in renamed if set(r.values()) == expected]
    assert complete.keys() == tensors.keys()
    leaves = {"Conv": "kernel", "Dense": "kernel", "BatchNorm": "scale"}
    for module, place in places.items():
        ours = f"params/{place}/{leaves[kinds[module]]}"
        assert complete[f"{module}.weight"] == ours


def shapes(name, **arguments):
    module = models.create(name, num_classes=10, **arguments)
    init = functools.partial(module.init, train=False)
    return jax.eval_shape(init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))


def test_names_of_no_family_are_left_alone():
    tensors = {"encoder.0.weight": np.zeros((2, 2)), "alpha": np.zeros(1)}
    for rename in RENAMES:
        assert rename(tensors, ["params/Dense_0/kernel"]) == {}


def test_axes():
    kernel = np.arange(120).reshape(2, 3, 4, 5)
    ours = layouts.from_torch("params/Conv_0/kernel", kernel)
    assert ours.shape == (4, 5, 3, 2)
    assert ours[3, 1, 2, 0] == kernel[0, 2, 3, 1]
    matrix = np.arange(6).reshape(2, 3)
    np.testing.assert_array_equal(
        layouts.from_torch("params/Dense_0/kernel", matrix), matrix.T
    )
    for path in ("params/Dense_0/bias", "batch_stats/BatchNorm_0/mean"):
        np.testing.assert_array_equal(layouts.from_torch(path, matrix[0]), matrix[0])


def test_linear_layers_behind_a_map_see_its_places_in_our_order():
    """The first one of VGG: flattened by channel there, by place here."""
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(3, 512 * 49)).astype(np.float32)
    maps = rng.normal(size=(2, 512, 7, 7)).astype(np.float32)
    expected = maps.reshape(2, -1) @ weight.T
    convert = vision_layouts.LAYOUTS["vgg"].convert
    kernel = convert("params/Dense_0/kernel", weight)
    found = maps.transpose(0, 2, 3, 1).reshape(2, -1) @ kernel
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)
    other = rng.normal(size=(3, 4)).astype(np.float32)
    np.testing.assert_array_equal(convert("params/Dense_1/kernel", other), other.T)
