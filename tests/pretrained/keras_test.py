"""Keras's ResNet-50 of a `model.json` against its equations in NumPy, and its file."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from kdjax import models, networks, pretrained
from kdjax.models.resnet import Bottleneck
from kdjax.pretrained import tfjs_files
from kdjax.types import Outputs, UserError

STAGES = {2: "abc", 3: "abcd", 4: "abcdef", 5: "abc"}


def weights(rng):
    """Random weights by the names of `keras.applications` until 2019."""
    made = {}

    def unit(conv, norm, size, inputs, outputs):
        scale = np.sqrt(2 / (size * size * inputs))
        made[f"{conv}/kernel"] = scale * rng.normal(size=(size, size, inputs, outputs))
        made[f"{conv}/bias"] = 0.1 * rng.normal(size=outputs)
        made[f"{norm}/gamma"] = rng.uniform(0.25, 0.75, outputs)
        made[f"{norm}/beta"] = 0.1 * rng.normal(size=outputs)
        made[f"{norm}/moving_mean"] = 0.1 * rng.normal(size=outputs)
        made[f"{norm}/moving_variance"] = rng.uniform(0.5, 1.5, outputs)

    unit("conv1", "bn_conv1", 7, 3, 64)
    inputs = 64
    for stage, blocks in STAGES.items():
        width = 16 * 2**stage
        for block in blocks:
            conv, norm = f"res{stage}{block}_branch", f"bn{stage}{block}_branch"
            unit(f"{conv}2a", f"{norm}2a", 1, inputs, width)
            unit(f"{conv}2b", f"{norm}2b", 3, width, width)
            unit(f"{conv}2c", f"{norm}2c", 1, width, 4 * width)
            if block == "a":
                unit(f"{conv}1", f"{norm}1", 1, inputs, 4 * width)
            inputs = 4 * width
    made["fc1000/kernel"] = 0.05 * rng.normal(size=(2048, 1000))
    made["fc1000/bias"] = rng.normal(size=1000)
    return {name: x.astype(np.float32) for name, x in made.items()}


def since_2019(name):
    """The newer name of the same."""
    module, leaf = name.split("/")
    if module in ("conv1", "bn_conv1"):
        return f"conv1_{'conv' if module == 'conv1' else 'bn'}/{leaf}"
    if module == "fc1000":
        return f"predictions/{leaf}"
    kind, branch = module.split("_branch")
    stage, block = kind[-2], "abcdef".index(kind[-1]) + 1
    number = {"2a": 1, "2b": 2, "2c": 3, "1": 0}[branch]
    what = "conv" if kind.startswith("res") else "bn"
    return f"conv{stage}_block{block}_{number}_{what}/{leaf}"


class Reference:
    """He et al. 2016, as Keras's `ResNet50` was in 2018, in float64."""

    def __init__(self, tensors):
        self.tensors = {name: x.astype(np.float64) for name, x in tensors.items()}

    def unit(self, x, conv, norm, stride=1):
        kernel = self.tensors[f"{conv}/kernel"]
        pad = len(kernel) // 2
        padded = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
        windows = np.lib.stride_tricks.sliding_window_view(
            padded, kernel.shape[:2], axis=(1, 2)
        )[:, ::stride, ::stride]
        y = np.einsum("bhwcij,ijco->bhwo", windows, kernel, optimize=True)
        y = y + self.tensors[f"{conv}/bias"]
        gamma, beta, mean, variance = (
            self.tensors[f"{norm}/{leaf}"]
            for leaf in ("gamma", "beta", "moving_mean", "moving_variance")
        )
        return (y - mean) / np.sqrt(variance + 1e-3) * gamma + beta

    def block(self, x, stage, block, stride):
        conv, norm = f"res{stage}{block}_branch", f"bn{stage}{block}_branch"
        y = np.maximum(self.unit(x, f"{conv}2a", f"{norm}2a", stride), 0)
        y = np.maximum(self.unit(y, f"{conv}2b", f"{norm}2b"), 0)
        y = self.unit(y, f"{conv}2c", f"{norm}2c")
        if block == "a":
            x = self.unit(x, f"{conv}1", f"{norm}1", stride)
        return x + y

    def logits(self, x):
        x = np.maximum(self.unit(x, "conv1", "bn_conv1", 2), 0)
        padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))
        x = windows[:, ::2, ::2].max((-1, -2))
        for stage, blocks in STAGES.items():
            for block in blocks:
                stride = 2 if stage > 2 and block == "a" else 1
                x = np.maximum(self.block(x, stage, block, stride), 0)
        pooled = x.mean((1, 2))
        return pooled @ self.tensors["fc1000/kernel"] + self.tensors["fc1000/bias"]


def save(folder, tensors, shards=3, **more):
    """A `model.json` with its bytes cut into shards of about equal length."""
    content = b"".join(x.tobytes() for x in tensors.values())
    length = -(-len(content) // shards)
    paths = [f"group1-shard{i + 1}of{shards}.bin" for i in range(shards)]
    for i, path in enumerate(paths):
        (folder / path).write_bytes(content[i * length : (i + 1) * length])
    entries = [
        {"name": name, "shape": x.shape, "dtype": x.dtype.name} | more.get(name, {})
        for name, x in tensors.items()
    ]
    group = {"paths": paths, "weights": entries}
    model = {"format": "layers-model", "weightsManifest": [group]}
    path = folder / "model.json"
    path.write_text(json.dumps(model))
    return path


@pytest.mark.slow
def test_resnet50_gives_what_its_equations_do(tmp_path):
    """Prints max |difference| in float32."""
    tensors = weights(np.random.default_rng(0))
    images = np.random.default_rng(1).normal(size=(2, 64, 48, 3)).astype(np.float32)
    module = models.create("resnet50_keras", num_classes=1000)
    init = functools.partial(module.init, train=False)
    like = jax.eval_shape(init, jax.random.key(0), jnp.zeros(images.shape))
    variables = pretrained.load(save(tmp_path, tensors), like)
    logits = jax.jit(lambda v, x: module.apply(v, x, train=False).logits)(
        variables, images
    )
    expected = Reference(tensors).logits(images.astype(np.float64))
    difference = np.abs(logits - expected).max()
    print(f"resnet50_keras: {difference:.1e}, logits {expected.std():.2g}")
    assert difference < 1e-4
    renamed = {since_2019(name): x for name, x in tensors.items()}
    again = pretrained.to_variables(renamed, like)
    jax.tree.map(np.testing.assert_array_equal, again, variables)


def test_a_block_with_its_stride_on_the_first_convolution():
    """And biases, and the epsilon of Keras, at whose side variances are small."""
    rng = np.random.default_rng(0)
    tensors = weights(rng)
    names = {"2a": 0, "2b": 1, "2c": 2, "1": 3}
    variables = {"params": {}, "batch_stats": {}}
    for branch, number in names.items():
        conv, norm = (
            {
                leaf: tensors[f"{kind}3a_branch{branch}/{leaf}"]
                for leaf in leaves.split()
            }
            for kind, leaves in (
                ("res", "kernel bias"),
                ("bn", "gamma beta moving_mean moving_variance"),
            )
        )
        norm["moving_variance"] *= 0.01
        variables["params"] |= {
            f"Conv_{number}": conv,
            f"BatchNorm_{number}": {"scale": norm["gamma"], "bias": norm["beta"]},
        }
        variables["batch_stats"][f"BatchNorm_{number}"] = {
            "mean": norm["moving_mean"],
            "var": norm["moving_variance"],
        }
    images = rng.normal(size=(2, 6, 5, 256)).astype(np.float32)
    module = Bottleneck(128, 2, jnp.float32, None, keras=True, epsilon=1e-3)
    found = module.apply(variables, jnp.asarray(images), train=False)
    expected = Reference(tensors).block(images.astype(np.float64), 3, "a", 2)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-3)


class Sees(nn.Module):
    """Returns the pixels that it is shown."""

    @nn.compact
    def __call__(self, images, *, train):
        del train
        return Outputs(images)


@pytest.mark.parametrize("name", networks.NORMALIZATIONS)
def test_pixels_are_what_the_weights_were_trained_on(name):
    """As each library writes it, of bytes."""
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 4, 3), np.uint8)
    network = networks.from_linen(
        Sees(),
        name="sees",
        image_shape=images.shape[1:],
        num_classes=2,
        **networks.NORMALIZATIONS[name]._asdict(),
    )
    found = network.apply({}, jnp.asarray(images), train=False)[0].logits
    x = images.astype(np.float64)
    expected = {
        "imagenet": (x / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225],
        "symmetric": x / 127.5 - 1,
        "efficientnet_lite": (x - 127) / 128,
        "caffe": x[..., ::-1] - [103.939, 116.779, 123.68],
    }
    np.testing.assert_allclose(found, expected[name], rtol=1e-4, atol=1e-4)
    assert ("channels" in network.description) == (name == "caffe")


TENSORS = {
    "a/kernel": np.arange(6, dtype=np.float32).reshape(2, 3),
    "a/bias": np.float32([0.5, -1.0]),
    "b/gamma": np.float32(3.0).reshape(()),
}


@pytest.mark.parametrize("shards", [1, 2, 5])
def test_tensors_come_back_wherever_the_shards_are_cut(tmp_path, shards):
    found = tfjs_files.read(save(tmp_path, TENSORS, shards))
    assert found.keys() == TENSORS.keys()
    for name, x in TENSORS.items():
        assert found[name].dtype == np.float32
        np.testing.assert_array_equal(found[name], x)


def test_quantized_tensors_are_restored(tmp_path):
    """As the converter has it: value = integer * scale + min; halves are halves."""
    tensors = {
        "bytes": np.array([[0, 255], [7, 128]], np.uint8),
        "words": np.array([0, 65535], np.uint16),
        "halves": np.array([0.1, -3.0], np.float16),
    }
    steps = {"bytes": (0.5, -2.0), "words": (0.25, 1.0)}
    more = {
        name: {
            "dtype": "float32",
            "quantization": {
                "dtype": tensors[name].dtype.name,
                "scale": scale,
                "min": least,
            },
        }
        for name, (scale, least) in steps.items()
    }
    half = {"dtype": "float32", "quantization": {"dtype": "float16"}}
    found = tfjs_files.read(save(tmp_path, tensors, **more, halves=half))
    for name, (scale, least) in steps.items():
        np.testing.assert_array_equal(found[name], tensors[name] * scale + least)
        assert found[name].dtype == np.float32
    np.testing.assert_array_equal(found["halves"], tensors["halves"].astype(np.float32))


def _edit(path, change):
    model = json.loads(path.read_text())
    change(model["weightsManifest"][0])
    path.write_text(json.dumps(model))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda g: g.update(paths=["../secret.bin"]), "not in the same directory"),
        (lambda g: g.update(paths=["/etc/hostname"]), "not in the same directory"),
        (lambda g: g["paths"].pop(), "a/bias reaches beyond the shards"),
        (lambda g: g["paths"].append("lost.bin"), "FileNotFoundError"),
        (lambda g: g["weights"].pop(), "36 bytes, 32 are named"),
        (lambda g: g["weights"][0].update(shape=[-1, 3]), "a/kernel reaches beyond"),
        (lambda g: g["weights"][0].update(dtype="string"), "KeyError: 'string'"),
        (lambda g: g.pop("weights"), "KeyError: 'weights'"),
    ],
)
def test_a_manifest_that_lies_is_a_sentence(tmp_path, change, message):
    (tmp_path.parent / "secret.bin").write_bytes(bytes(36))
    path = save(tmp_path, TENSORS, 3)
    _edit(path, change)
    with pytest.raises(UserError, match=f"Expected a Keras model.*{message}"):
        tfjs_files.read(path)


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"\xff\xfe", b'{"a": 1'])
def test_another_file_is_a_sentence(tmp_path, content):
    path = tmp_path / "model.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"Expected a Keras model of TensorFlow\.js"):
        tfjs_files.read(path)


def test_the_fingerprint_is_that_of_the_shards_too(tmp_path):
    path = save(tmp_path, TENSORS, 2)
    before = pretrained.fingerprint(path)
    assert pretrained.fingerprint(path) == before
    shard = tmp_path / "group1-shard2of2.bin"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    assert pretrained.fingerprint(path) != before
