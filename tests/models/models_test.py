"""What holds for every model: size, values, shapes, dtypes, names of features."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from kdjax import models
from kdjax.models.convolutions import Conv
from kdjax.models.layers import Dropout
from kdjax.models.shufflenet import ShuffleNetV1, ShuffleNetV2
from kdjax.types import UserError

# Trainable parameters for ten classes (LeNet, gray 28x28), 100 (CIFAR) or 1000.
# T: as torchvision publishes with its weights. R: as RepDistiller, the code of Tian et
# al. 2020, has. D: as timm has of DeiT and EfficientNet-Lite. By hand:
# * LeNet-5: 156 + 2,416 + 48,120 + 10,164 + 850, as LeCun et al. but with all maps
#   connected; half: 78 + 608 + 12,060 + 2,562 + 430.
# * ResNet of depth 6 n + 2: stem 464, first blocks 4,672 + 14,528 + 57,728 (with 1x1
#   shortcuts), classifier 6,500: resnet8 has 83,892. Each further n adds 4,672 +
#   18,560 + 73,984 = 97,216.
# * WRN-16-1: stem 432, stages 9,344 + 32,992 + 131,520, last BatchNorm 128, classifier
#   6,500; WRN-40-1 has four more blocks a stage: + 4 * 97,216.
# * VGG: biased convolutions. From 13 to 16 to 19: + 590,592 + 2 * 2,360,832 each; 11
#   is 13 less 37,056 and 147,840.
# * ResNet-50 of Keras: T, and a bias for each of the 26,560 features of convolutions.
# * ResNets of CIFAR: T, less 64 * 3 * (49 - 9) in the stem and 900 rows of 513 (or
#   2,049) in the classifier. ShuffleNetV2: T, less 24 * 3 * (9 - 1) and 900 * 1,025.
PARAMETERS = {
    "mlp": 1_276_810,  # 785 * 800 + 801 * 800 + 801 * 10, with biases.
    # 26 * 32 + 801 * 64 + 3137 * 512 + 513 * 10, as McMahan et al. 2017 count it.
    "cnn": 1_663_370,
    "lenet5": 61_706,
    "lenet5_half": 15_738,
    # Patches 49 * 192, class token and positions 66 * 192, blocks as in vit_tiny, last
    # LayerNorm 2 * 192, classifier 193 * 100.
    "vit": 5_380_132,
    "resnet8": 83_892,
    "resnet14": 181_108,
    "resnet20": 278_324,  # R
    "resnet32": 472_756,  # R
    "resnet44": 667_188,
    "resnet56": 861_620,  # R
    "resnet110": 1_736_564,  # R
    "resnet8x4": 1_233_540,  # R
    "resnet32x4": 7_433_860,  # R
    "wrn_16_1": 180_916,
    "wrn_16_2": 703_284,  # R
    "wrn_40_1": 569_780,  # R
    "wrn_40_2": 2_255_156,  # R
    "vgg8": 3_965_028,  # R
    "vgg11": 9_277_284,
    "vgg13": 9_462_180,  # R
    "vgg16": 14_774_436,
    "vgg19": 20_086_692,
    "resnet18_cifar": 11_220_132,
    "resnet34_cifar": 21_328_292,
    "resnet50_cifar": 23_705_252,  # R
    "mobilenet_v2_half_cifar": 812_836,  # R
    "shufflenet_v1_cifar": 949_258,  # R
    "shufflenet_v2_cifar": 1_355_528,  # R
    "resnet18": 11_689_512,  # T
    "resnet34": 21_797_672,  # T
    "resnet50": 25_557_032,  # T
    "resnet101": 44_549_160,  # T
    "resnet152": 60_192_808,  # T
    "resnet50_keras": 25_583_592,
    "vgg11_imagenet": 132_863_336,  # T
    "vgg13_imagenet": 133_047_848,  # T
    "vgg16_imagenet": 138_357_544,  # T
    "vgg19_imagenet": 143_667_240,  # T
    "vgg11_bn_imagenet": 132_868_840,  # T
    "vgg13_bn_imagenet": 133_053_736,  # T
    "vgg16_bn_imagenet": 138_365_992,  # T
    "vgg19_bn_imagenet": 143_678_248,  # T
    "mobilenet_v2": 3_504_872,  # T
    "mobilenet_v3_small": 2_542_856,  # T
    "mobilenet_v3_large": 5_483_032,  # T
    "efficientnet_lite0": 4_652_008,  # D
    "efficientnet_lite1": 5_416_680,  # D
    "efficientnet_lite2": 6_092_072,  # D
    "efficientnet_lite3": 8_197_096,  # D
    "efficientnet_lite4": 13_006_568,  # D
    "shufflenet_v2": 2_278_604,  # T
    "shufflenet_v2_x0_5": 1_366_792,  # T
    "shufflenet_v2_x1_5": 3_503_624,  # T
    "shufflenet_v2_x2_0": 7_393_996,  # T
    "vit_tiny": 5_717_416,  # D
    "vit_small": 22_050_664,  # D
    "vit_base": 86_567_656,  # D
    "deit_tiny": 5_910_800,  # D
    "deit_small": 22_436_432,  # D
    "deit_base": 87_338_192,  # D
}
IMAGENET = ("resnet18", "resnet34", "resnet50", "mobilenet_v2", "shufflenet_v2")
TRANSFORMERS = ("vit_tiny", "vit_small", "vit_base")
# Others of the same families, larger, and of ImageNet too.
LARGER = tuple(PARAMETERS)[tuple(PARAMETERS).index("resnet101") :]
LARGER = tuple(x for x in LARGER if x not in IMAGENET + TRANSFORMERS)
SIZES = [
    pytest.param(name, marks=pytest.mark.slow if name in LARGER else ())
    for name in PARAMETERS
]

# Logits of PyTorch 2.13 in float32 for one 40x32 image and parameters that depend on
# their shape alone (`noise`): of torchvision 0.29's models, and below the line of
# models written in PyTorch after RepDistiller, which has no package.
PYTORCH = {
    "resnet18": (27.8866, -2.73606, 4.83982, 2.1681),
    "resnet50": (15834.8, 3458.17, -14248.4, -10831.4),
    "mobilenet_v2": (7.69651, 0.754865, 2.19579, 0.184117),
    "shufflenet_v2": (1.87031, -0.251236, -0.182831, 0.0744372),
    # ---
    "wrn_16_2": (6.08249, -5.63467, -0.834954, 3.26622),
    "shufflenet_v1_cifar": (129.964, -8.71096, -50.873, 2.22399),
    "mobilenet_v2_half_cifar": (582.956, -139.466, 62.574, -207.503),
    "vgg11": (9.11749, -1.69402, 0.528057, -0.299402),
}


def task(name):
    """The image shape and number of classes that a model is for."""
    if name.startswith(("mlp", "cnn", "lenet")):
        return (28, 28, 1), 10
    large = name in IMAGENET + TRANSFORMERS + LARGER
    return ((224, 224, 3), 1000) if large else ((32, 32, 3), 100)


@functools.cache
def shapes_of(name, image_shape, num_classes, dtype=jnp.float32):
    """Shapes of variables, logits and features in training; nothing is computed."""
    module = models.create(name, num_classes=num_classes, dtype=dtype)

    def init(rng, images):
        rngs = {"params": rng, "dropout": rng}
        outputs, variables = module.init_with_output(rngs, images, train=True)
        # Apart, since `Outputs` is checked to hold arrays.
        return variables, outputs.logits, dict(outputs.features)

    # Flax's BatchNorm itself promotes bfloat16 to float32.
    promotion = "strict" if dtype == jnp.float32 else "standard"
    with jax.numpy_dtype_promotion(promotion):
        images = jax.ShapeDtypeStruct((4, *image_shape), jnp.float32)
        return jax.eval_shape(init, jax.random.key(0), images)


def test_every_model_is_in_the_table_of_sizes():
    assert models.MODELS.keys() == PARAMETERS.keys()


@pytest.mark.parametrize("name", SIZES)
def test_number_of_parameters(name):
    variables, *_ = shapes_of(name, *task(name), jnp.bfloat16)
    sizes = [math.prod(leaf.shape) for leaf in jax.tree.leaves(variables["params"])]
    assert sum(sizes) == PARAMETERS[name]


@pytest.mark.parametrize("name", SIZES)
def test_bfloat16_is_only_for_activations(name):
    variables, logits, features = shapes_of(name, *task(name), jnp.bfloat16)
    for leaf in jax.tree.leaves(variables):
        assert leaf.dtype == jnp.float32
    assert logits.shape == (4, task(name)[1])
    assert logits.dtype == jnp.float32
    for feature, value in features.items():
        expected = jnp.float32 if feature.startswith("pooled") else jnp.bfloat16
        assert value.dtype == expected, feature


@pytest.mark.parametrize(
    "name",
    [
        *("mlp", "lenet5", "vit", "resnet8", "wrn_16_1", "vgg8", "resnet18_cifar"),
        *IMAGENET,
        *("mobilenet_v2_half_cifar", "shufflenet_v1_cifar", "shufflenet_v2_cifar"),
    ],
)
def test_small_images(name):
    image_shape = (8, 8, task(name)[0][-1])
    _, logits, features = shapes_of(name, image_shape, 10)
    assert logits.shape == (4, 10)
    for feature, value in features.items():
        assert value.size > 0, feature


@pytest.mark.parametrize(
    "name",
    [
        *("mlp", "resnet8", "wrn_16_1", "vgg8", "resnet18", "resnet50"),
        *("mobilenet_v2", "shufflenet_v1_cifar", "shufflenet_v2"),
        *("mobilenet_v3_small", "efficientnet_lite0"),
    ],
)
def test_the_axis_name_and_dtype_reach_every_layer(name):
    dtype = jnp.float16
    module = models.create(name, num_classes=9, dtype=dtype, axis_name="devices")
    seen = []

    def watch(call, args, kwargs, context):
        seen.append(context.module)
        return call(*args, **kwargs)

    def init(images):
        rngs = {"params": jax.random.key(0), "dropout": jax.random.key(0)}
        with nn.intercept_methods(watch), jax.numpy_dtype_promotion("standard"):
            return module.init(rngs, images, train=True)

    images = jnp.zeros((2, 4, *task(name)[0]))
    jax.eval_shape(jax.vmap(init, axis_name="devices"), images)
    layers = [m for m in seen if isinstance(m, nn.BatchNorm | Dropout)]
    assert layers
    for layer in seen:
        if hasattr(layer, "axis_name"):
            assert layer.axis_name == "devices", layer.path
        if isinstance(layer, nn.BatchNorm | Conv):
            assert layer.dtype == dtype, layer.path
    norms = [m.momentum for m in seen if isinstance(m, nn.BatchNorm)]
    assert set(norms) <= {0.9}


# Height and width, equal, of `stem` (None: there is none), `stage1`, `stage2`...
RESOLUTIONS = {
    "lenet5": (None, 28, 10),
    "resnet20": (32, 32, 16, 8),
    "resnet8x4": (32, 32, 16, 8),
    "wrn_16_2": (32, 32, 16, 8),
    "vgg8": (32, 16, 8, 4, 4),
    "resnet18_cifar": (32, 32, 16, 8, 4),
    "resnet50_cifar": (32, 32, 16, 8, 4),
    "mobilenet_v2_half_cifar": (16, 16, 8, 4, 2),
    "shufflenet_v1_cifar": (32, 16, 8, 4),
    "shufflenet_v2_cifar": (32, 16, 8, 4),
    "resnet50": (112, 56, 28, 14, 7),
    "mobilenet_v2": (112, 56, 28, 14, 7),
    "shufflenet_v2": (112, 28, 14, 7),
    "mobilenet_v3_small": (112, 56, 28, 14, 7),
    "efficientnet_lite0": (112, 56, 28, 14, 7),
}
NO_PREACT = (
    "mobilenet_v2",
    "mobilenet_v2_half_cifar",
    "mobilenet_v3_small",
    "efficientnet_lite0",
)


@pytest.mark.parametrize("name", RESOLUTIONS)
def test_features(name):
    features = dict(shapes_of(name, *task(name), jnp.bfloat16)[2])
    assert features.pop("pooled").ndim == 2
    features.pop("hidden1", None)
    features.pop("stem_preact", None)
    stem, *stages = RESOLUTIONS[name]
    if stem:
        assert features.pop("stem").shape[1:3] == (stem, stem)
    for number, size in enumerate(stages, start=1):
        value = features.pop(f"stage{number}")
        assert value.shape[:3] == (4, size, size)
        if name not in NO_PREACT:
            assert features.pop(f"stage{number}_preact").shape == value.shape
    assert not features


def test_vgg_pools_once_more_from_64_pixels_on():
    for size, last in ((32, 4), (63, 7), (64, 4)):
        features = shapes_of("vgg8", (size, size, 3), 10)[2]
        assert features["stage4"].shape[1:3] == (last, last)


def noise(shape, seed):
    """Uniform in [-1, 1), of integer arithmetic: the same in every library."""
    i = np.arange(math.prod(shape), dtype=np.uint64)
    bits = i * i * np.uint64(2654435761) + i * np.uint64(40503) + np.uint64(seed)
    return (bits % np.uint64(2**32) / 2**31 - 1).reshape(shape).astype(np.float32)


def parameter(path, like):
    """A variable, as `noise` in PyTorch's order of axes."""
    leaf = path[-1].key
    if leaf != "kernel":
        seed = {"scale": 2, "bias": 3, "mean": 4, "var": 5}[leaf]
        return np.float32(leaf in ("scale", "var")) + noise(like.shape, seed) / 2
    *window, inputs, outputs = like.shape
    shape = (outputs, inputs, *window)
    value = noise(shape, 1) * np.float32(math.sqrt(6 / math.prod(shape[1:])))
    return np.moveaxis(value, (0, 1), (-1, -2))


def fill(module, images):
    """Variables for a model, all of them `parameter`s."""

    init = functools.partial(module.init, train=False)
    shapes = jax.eval_shape(init, jax.random.key(0), images)
    return jax.tree_util.tree_map_with_path(parameter, shapes)


@pytest.mark.parametrize("name", PYTORCH)
def test_logits_of_pytorch(name):
    module = models.create(name, num_classes=4)
    images = noise((1, 40, 32, 3), 6)
    apply = jax.jit(lambda v, x: module.apply(v, x, train=False).logits)
    logits = apply(fill(module, images), images)
    scale = max(map(abs, PYTORCH[name]))
    np.testing.assert_allclose(
        logits[0] / scale, np.array(PYTORCH[name]) / scale, atol=1e-4
    )


SMALL = {
    "lenet5_half": models.create("lenet5_half", num_classes=3),
    "resnet8": models.create("resnet8", num_classes=3),
    "wrn": models.WideResNet(3, depth=10, dropout=0.5),
    "vgg8": models.create("vgg8", num_classes=3),
    "shufflenet_v1": ShuffleNetV1(3, widths=(72, 144), counts=(2, 1)),
    "shufflenet_v2": ShuffleNetV2(3, widths=(16, 32, 8), counts=(2, 1)),
}


@pytest.mark.parametrize("name", SMALL)
def test_training_and_evaluation(name):
    """A pass in training moves all statistics; one in evaluation has no memory."""
    module = SMALL[name]
    images = noise((4, 8, 8, 3), 6)
    variables = fill(module, images)
    outputs, updates = jax.jit(
        lambda v, x, rng: module.apply(
            v, x, train=True, rngs={"dropout": rng}, mutable=["batch_stats"]
        )
    )(variables, images, jax.random.key(1))
    before, after = (x.get("batch_stats", {}) for x in (variables, updates))
    for old, new in zip(*map(jax.tree.leaves, (before, after)), strict=True):
        assert np.all(old != new)
    for value in jax.tree.leaves(outputs):
        assert np.all(np.isfinite(value))
    evaluate = jax.jit(lambda v, x: module.apply(v, x, train=False))
    one, two = evaluate(variables, images), evaluate(variables, images[::-1])
    np.testing.assert_allclose(one.logits, two.logits[::-1], rtol=1e-4)
    for feature, value in one.features.items():
        assert np.any(value < 0) or not feature.endswith("_preact")
        if feature.endswith("_preact") and name != "wrn":
            active = one.features[feature.removesuffix("_preact")]
            np.testing.assert_array_equal(jax.nn.relu(value), active)


def test_unknown_model():
    with pytest.raises(UserError, match=r"got 'resnet_20': did you mean .*resnet20"):
        models.create("resnet_20", num_classes=10)
    with pytest.raises(
        UserError, match=r"did you mean mlp, cnn, lenet5, .*, deit_base"
    ):
        models.create("?", num_classes=10)


@pytest.mark.parametrize(
    ("name", "argument"),
    [("wrn_16_2", "drop_rate"), ("mlp", "depth"), ("resnet20", "depth")],
)
def test_unexpected_argument(name, argument):
    """The depth of `resnet20` is no argument either: its name gives it."""
    with pytest.raises(UserError, match=f"got '{argument}'") as error:
        models.create(name, num_classes=10, **{argument: 1})
    allowed = {"wrn_16_2": "dropout", "mlp": "hidden", "resnet20": "widths"}
    assert allowed[name] in str(error.value)
    assert "parent" not in str(error.value)


def test_arguments_reach_the_model():
    module = models.create(
        "wrn_40_2", num_classes=7, dtype=jnp.bfloat16, axis_name="batch", dropout=0.3
    )
    assert (module.depth, module.widen, module.dropout) == (40, 2, 0.3)
    assert (module.num_classes, module.axis_name) == (7, "batch")
    assert module.dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (models.CifarResNet(10, depth=21), r"6 n \+ 2, got 21"),
        (models.WideResNet(10, depth=17), r"6 n \+ 4, got 17"),
        (models.VGG(10, depth=12), r"\[8, 11, 13, 16, 19\], got 12"),
        (models.ResNet(10, depth=56), r"\[18, 34, 50, 101, 152\], got 56"),
        (models.ResNet(10, depth=18, keras=True), r"keras=False and .* got True"),
    ],
)
def test_impossible_depth(module, expected):
    with pytest.raises(ValueError, match=expected):
        jax.eval_shape(
            lambda rng: module.init(rng, jnp.zeros((1, 32, 32, 3)), train=False),
            jax.random.key(0),
        )
