"""Weights from elsewhere give here what they gave there, or a sentence says why not."""

import copy
import functools
import os
import pathlib

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest
import safetensors.numpy

from kdjax import models, pretrained
from kdjax.pretrained import layouts
from kdjax.types import UserError

MODULE = models.CifarResNet(3, depth=8, widths=(3, 4, 5, 7))


@pytest.fixture(scope="module")
def like():
    init = functools.partial(MODULE.init, train=False)
    return jax.eval_shape(init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))


def state_dict(shortcut="shortcut", head="linear"):
    """Random weights of `MODULE`, named and shaped as in PyTorch."""
    rng = np.random.default_rng(0)
    weights = {}

    def conv(name, norm, inputs, outputs, size):
        shape = (outputs, inputs, size, size)
        weights[f"{name}.weight"] = rng.normal(size=shape) / size
        for leaf in ("weight", "bias", "running_mean", "running_var"):
            weights[f"{norm}.{leaf}"] = rng.uniform(0.5, 1.5, outputs)
        weights[f"{norm}.num_batches_tracked"] = np.array(9)

    conv("conv1", "bn1", 3, 3, 3)
    for stage, (inputs, outputs) in enumerate(((3, 4), (4, 5), (5, 7)), start=1):
        block = f"layer{stage}.0."
        conv(f"{block}conv1", f"{block}bn1", inputs, outputs, 3)
        conv(f"{block}conv2", f"{block}bn2", outputs, outputs, 3)
        conv(f"{block}{shortcut}.0", f"{block}{shortcut}.1", inputs, outputs, 1)
    weights[f"{head}.weight"] = rng.normal(size=(3, 7))
    weights[f"{head}.bias"] = rng.normal(size=3)
    return {
        name: x.astype(np.float32) if x.dtype == np.float64 else x
        for name, x in weights.items()
    }


def forward(weights, x):
    """He et al. 2016, section 4.2, in NumPy and in PyTorch's order of axes."""

    def conv_norm(x, conv, norm, stride=1):
        kernel = weights[f"{conv}.weight"].astype(np.float64)
        pad = kernel.shape[-1] // 2
        padded = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
        windows = np.lib.stride_tricks.sliding_window_view(
            padded, kernel.shape[2:], axis=(2, 3)
        )[:, :, ::stride, ::stride]
        y = np.einsum("bihwxy,oixy->bohw", windows, kernel)
        scale, bias, mean, var = (
            weights[f"{norm}.{leaf}"].reshape(-1, 1, 1)
            for leaf in ("weight", "bias", "running_mean", "running_var")
        )
        return (y - mean) / np.sqrt(var + 1e-5) * scale + bias

    x = np.maximum(conv_norm(x, "conv1", "bn1"), 0)
    for stage in (1, 2, 3):
        block = f"layer{stage}.0."
        stride = 1 if stage == 1 else 2
        y = conv_norm(x, f"{block}conv1", f"{block}bn1", stride)
        y = conv_norm(np.maximum(y, 0), f"{block}conv2", f"{block}bn2")
        x = conv_norm(x, f"{block}shortcut.0", f"{block}shortcut.1", stride)
        x = np.maximum(x + y, 0)
    return x.mean((2, 3)) @ weights["linear.weight"].T + weights["linear.bias"]


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_imported_weights_compute_what_they_did(torch_save, tmp_path, like, suffix):
    weights = state_dict()
    path = tmp_path / f"resnet8{suffix}"
    save = torch_save if suffix == ".pth" else safetensors.numpy.save_file
    save(weights, path)
    variables = pretrained.load(path, like)
    images = np.random.default_rng(1).normal(size=(2, 8, 6, 3))
    outputs = MODULE.apply(variables, jnp.float32(images), train=False)
    expected = forward(weights, images.transpose(0, 3, 1, 2))
    np.testing.assert_allclose(outputs.logits, expected, rtol=1e-4, atol=1e-4)


def assert_equal_trees(one, two):
    assert jax.tree.structure(one) == jax.tree.structure(two)
    jax.tree.map(np.testing.assert_array_equal, one, two)


def test_names_do_not_matter_where_the_layout_is_one(like):
    expected = pretrained.to_variables(state_dict(), like)
    torchvision = state_dict("downsample", "fc")
    assert_equal_trees(pretrained.to_variables(torchvision, like), expected)
    for prefix in ("module.", "_orig_mod.", "module.model."):
        wrapped = {prefix + name: x for name, x in state_dict().items()}
        assert_equal_trees(pretrained.to_variables(wrapped, like), expected)


def test_half_precision_becomes_the_dtype_of_the_model(tmp_path, like):
    for dtype in (np.float16, ml_dtypes.bfloat16):
        weights = {k: x.astype(dtype) for k, x in state_dict().items()}
        path = tmp_path / "half.safetensors"
        safetensors.numpy.save_file(weights, path)
        variables = pretrained.load(path, like)
        kernel = variables["params"]["Dense_0"]["kernel"]
        assert kernel.dtype == np.float32
        np.testing.assert_array_equal(kernel, np.float32(weights["linear.weight"].T))


def test_a_rename_of_the_users_own(like):
    """Names of no known layout, each led to ours by a function."""
    weights = {"/".join(reversed(k.split("."))): x for k, x in state_dict().items()}

    def rename(tensors, expected):
        theirs = {".".join(reversed(k.split("/"))): k for k in tensors}
        resnet = pretrained.LAYOUTS["resnet"].rename
        by_torch = {name: tensors[k] for name, k in theirs.items()}
        return {theirs[k]: ours for k, ours in resnet(by_torch, expected).items()}

    weights = {k: x for k, x in weights.items() if "num_batches" not in k}
    with pytest.raises(UserError, match="Expected the names of a layout out of resnet"):
        pretrained.to_variables(weights, like)
    found = pretrained.to_variables(weights, like, layout=layouts.Renamed(rename))
    assert_equal_trees(found, pretrained.to_variables(state_dict(), like))


def change(**changes):
    """The state dict with some tensors replaced, or without those that are None."""
    changed = state_dict() | {k.replace("__", "."): x for k, x in changes.items()}
    return {name: x for name, x in changed.items() if x is not None}


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (
            change(bn1__bias=None),
            "52 arrays .* 1 are missing and 0 are unknown.* params/BatchNorm_0/bias "
            r"\(nearest: params/BatchNorm_0/scale,",
        ),
        (
            change(layer9__0__conv1__weight=np.zeros((1, 1, 1, 1), np.float32)),
            "are missing",
        ),
        (
            change(extra__weight=np.zeros(1, np.float32)),
            r"0 are missing and 1 are unknown; the first is extra.weight \(nearest",
        ),
        (
            change(linear__weight=np.zeros((10, 7), np.float32)),
            r"Dense_0/kernel of shape \(7, 3\), got \(7, 10\).*number of classes",
        ),
        (
            change(linear__bias=np.zeros(3, np.int8)),
            "Dense_0/bias in floating point, got int8",
        ),
        ({}, "got no tensor"),
    ],
)
def test_what_does_not_fit_is_named(tensors, message, like):
    with pytest.raises(UserError, match=message):
        pretrained.to_variables(tensors, like)


def variables_like(like):
    rng = np.random.default_rng(2)
    return jax.tree.map(lambda x: np.float32(rng.normal(size=x.shape)), like)


def test_saved_variables_come_back(tmp_path, like):
    variables = variables_like(like)
    path = tmp_path / "student.safetensors"
    pretrained.save_safetensors(path, variables, model="resnet8")
    assert_equal_trees(pretrained.load(path, like), variables)
    assert_equal_trees(pretrained.load(str(path), like), variables)
    assert list(tmp_path.iterdir()) == [path]
    with safetensors.safe_open(path, "numpy") as file:
        assert file.metadata() == {"format": "kdjax", "model": "resnet8"}


def test_a_number_and_any_order_in_memory_come_back(tmp_path):
    kernel = np.arange(6, dtype=np.float32).reshape(2, 3)
    variables = {"params": {"scale": np.float32(2.5), "kernel": kernel.T}}
    path = tmp_path / "student.safetensors"
    pretrained.save_safetensors(path, variables)
    assert_equal_trees(pretrained.load(path, variables), variables)


def test_a_file_of_another_model_says_of_which(tmp_path, like):
    variables = copy.deepcopy(variables_like(like))
    del variables["params"]["Dense_0"]["bias"]
    path = tmp_path / "student.safetensors"
    pretrained.save_safetensors(path, variables, model="resnet8")
    with pytest.raises(
        UserError, match=r"student\.safetensors \(of a 'resnet8'.*"
    ) as e:
        pretrained.load(path, like)
    assert "the first is params/Dense_0/bias" in str(e.value)


def test_an_orbax_directory(tmp_path, like):
    variables = variables_like(like)
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save((tmp_path / "teacher").absolute(), variables)
    assert_equal_trees(pretrained.load(tmp_path / "teacher", like), variables)


@pytest.mark.parametrize("suffix", [".safetensors", ".h5", ".pth"])
def test_a_file_that_does_not_read(tmp_path, like, suffix):
    path = tmp_path / f"teacher{suffix}"
    with pytest.raises(UserError, match="there are none: give an Orbax"):
        pretrained.load(path, like)
    path.write_bytes(b"\x10\0\0\0\0\0\0\0not what it says")
    with pytest.raises(UserError, match=f"teacher{suffix}, but it|teacher{suffix} at"):
        pretrained.load(path, like)


def test_safetensors_cut_short(tmp_path, like):
    path = tmp_path / "student.safetensors"
    pretrained.save_safetensors(path, variables_like(like))
    content = path.read_bytes()
    for length in (0, 7, 100, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(UserError, match="does not read"):
            pretrained.load(path, like)


def test_resnet56_scores_what_its_file_name_claims():
    """93.20 % of the 10,000 test images of CIFAR-10, unnormalised (torch-optim)."""
    if "KDJAX_DATA" not in os.environ:
        pytest.skip(
            "python benchmarks/fetch_data.py --out=data cifar10 resnet56_cifar10, then "
            "KDJAX_DATA=data"
        )
    data = pathlib.Path(os.environ["KDJAX_DATA"])
    with np.load(data / "cifar10.npz") as arrays:
        images, labels = arrays["test_images"], arrays["test_labels"]
    module = models.create("resnet56", num_classes=10)
    init = functools.partial(module.init, train=False)
    like = jax.eval_shape(init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    variables = pretrained.load(data / "resnet56_cifar10.safetensors", like)

    @jax.jit
    def correct(images, labels):
        outputs = module.apply(variables, jnp.float32(images) / 255, train=False)
        return jnp.sum(jnp.argmax(outputs.logits, -1) == labels)

    batches = zip(*(np.split(x, 20) for x in (images, labels)), strict=True)
    total = sum(int(correct(*batch)) for batch in batches)
    assert total / len(labels) == pytest.approx(0.9320, abs=0.001)
