"""ONNX files: what is in them, and that they say what the model says."""

import collections
import dataclasses

import jax
import numpy as np
import onnx
import onnxruntime
import pytest

from kdjax import export, models, networks
from kdjax.export import onnx_files, quantization
from kdjax.models.decoder import DECODERS
from tests.export.conftest import images, model, truth

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

SMALL = {
    "resnet8": dict(image_shape=(8, 8, 3)),
    "depthwise": dict(image_shape=(9, 9, 3)),
    "mlp": dict(hidden=(16,)),
    "vit": dict(patch_size=4, dim=24, depth=1, heads=2),
}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Each model and its file."""
    made = {}
    for name, arguments in SMALL.items():
        one = model("student", name, **arguments)
        made[name] = one, tmp_path_factory.mktemp(name) / "model.onnx"
        onnx_files.write(*made[name])
    return made


def kinds(path):
    return collections.Counter(node.op_type for node in onnx.load(path).graph.node)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("count", [1, 5])
def test_a_file_says_what_its_model_says_of_raw_pixels(written, name, count):
    one, path = written[name]
    pixels = images(count, one.network.image_shape)
    session = onnxruntime.InferenceSession(path)
    (logits,) = session.run(None, {"images": pixels})
    expected = truth(one, pixels)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(logits / scale, expected / scale, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", SMALL)
def test_inputs_and_outputs_have_names_and_an_open_batch(written, name):
    one, path = written[name]
    graph = onnx.load(path).graph
    (given,), (made,) = graph.input, graph.output
    sizes = [x.dim_param or x.dim_value for x in given.type.tensor_type.shape.dim]
    assert (given.name, sizes) == ("images", ["batch", *one.network.image_shape])
    assert given.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    sizes = [x.dim_param or x.dim_value for x in made.type.tensor_type.shape.dim]
    assert (made.name, sizes) == ("logits", ["batch", 10])


def test_convolutions_are_convolutions_and_batchnorm_is_folded_into_them(written):
    resnet, depthwise = (kinds(written[name][1]) for name in ("resnet8", "depthwise"))
    assert (resnet["Conv"], depthwise["Conv"]) == (9, 3)
    # None of convolutions; jax2onnx forgets a pooling's own padding.
    assert (resnet["Pad"], depthwise["Pad"]) == (0, 2)
    for found in (resnet, depthwise):
        assert not found.keys() & {"BatchNormalization", "Slice", "Einsum"}
        assert found["Transpose"] <= 2


def test_a_depthwise_convolution_has_a_group_for_each_channel(written):
    assert groups(written["depthwise"][1]) == [1, 8, 1]


def groups(path):
    return [
        attribute.i
        for node in onnx.load(path).graph.node
        for attribute in node.attribute
        if node.op_type == "Conv" and attribute.name == "group"
    ]


def test_a_file_has_standard_operators_only_and_says_what_it_is(written):
    proto = onnx.load(written["resnet8"][1])
    assert [one.domain for one in proto.opset_import] == [""]
    assert proto.producer_name == "kdjax"
    props = {one.key: one.value for one in proto.metadata_props}
    assert props["model"] == "resnet8"
    assert '"mean": [0.3, 0.3, 0.3]' in props["preprocessing"]


def test_pixels_may_be_floats_of_the_same_values(tmp_path):
    one = model("student", "mlp", pixels="float32", hidden=(16,))
    onnx_files.write(one, tmp_path / "model.onnx")
    pixels = images(3)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    (logits,) = session.run(None, {"images": pixels.astype(np.float32)})
    np.testing.assert_allclose(logits, truth(one, pixels), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "node"),
    [("resnet8", "QuantizeLinear"), ("mlp", "DynamicQuantizeLinear")],
)
def test_eight_bits_are_static_around_convolutions_and_dynamic_elsewhere(
    written, tmp_path, name, node
):
    one, path = written[name]
    shape = one.network.image_shape
    quantization.write(path, tmp_path / "int8.onnx", {"images": images(64, shape)})
    assert kinds(tmp_path / "int8.onnx")[node]
    pixels = images(5, shape, seed=1)
    logits = onnx_files.load(tmp_path / "int8.onnx")({"images": pixels})
    expected = truth(one, pixels)
    # Close, and not the same: something was rounded.
    error = np.abs(logits - expected).max() / np.abs(expected).max()
    assert 1e-4 < error < 0.2


def test_static_eight_bits_have_a_scale_for_each_output_channel(written, tmp_path):
    one, path = written["resnet8"]
    pixels = {"images": images(64, one.network.image_shape)}
    quantization.write(path, tmp_path / "int8.onnx", pixels)
    graph = onnx.load(tmp_path / "int8.onnx").graph
    sizes = {x.name: tuple(x.dims) for x in graph.initializer}
    kernels = {x: sizes[x] for x in sizes if x.endswith("_quantized") and "_W_" in x}
    assert len(kernels) == 9
    for node in graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in kernels:
            assert sizes[node.input[1]] == kernels[node.input[0]][:1]


def test_the_metadata_of_a_file_are_those_of_its_eight_bits(written, tmp_path):
    _, path = written["mlp"]
    quantization.write(path, tmp_path / "int8.onnx", {"images": images(9)})
    assert (
        onnx.load(tmp_path / "int8.onnx").metadata_props
        == onnx.load(path).metadata_props
    )


@pytest.mark.parametrize("style", ["llama", "gpt2"])
def test_a_decoder_reads_texts_of_any_number_and_length(style, tmp_path):
    module = models.create(
        style, num_classes=20, among=DECODERS, dim=16, depth=1, heads=2
    )
    network = networks.of_tokens(module, name=style, num_classes=20, vocabulary="")
    variables = network.init(jax.random.key(0))
    one = export.of_network("student", network, variables)
    onnx_files.write(dataclasses.replace(one, longest=9), tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    for shape in ((1, 9), (3, 4)):
        tokens = np.arange(np.prod(shape), dtype=np.int32).reshape(shape) % 20
        mask = np.ones(shape, bool)
        mask[-1, 2:] = False  # Padding after a text changes nothing before it.
        feed = {"tokens": tokens, "mask": mask}
        (logits,) = session.run(None, feed)
        expected = jax.jit(one.logits)(variables, *feed.values())
        np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-6)
    quantization.write(tmp_path / "model.onnx", tmp_path / "int8.onnx", {})
    products = kinds(tmp_path / "int8.onnx")
    assert products["MatMulInteger"] == {"llama": 6, "gpt2": 5}[style]
    assert not products["Gemm"] + products["Einsum"]
    (rounded,) = onnxruntime.InferenceSession(tmp_path / "int8.onnx").run(None, feed)
    assert 0 < np.abs(rounded - expected).max() < 0.01
