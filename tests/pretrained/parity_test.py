"""Imported weights give the logits of torchvision and timm.

Random weights, with statistics of BatchNorm near those of the activations, so that the
logits are of order 1. Prints max |difference|: `pytest -m slow -s` with the extra
'parity'.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import models, pretrained

pytestmark = pytest.mark.slow

# Ours, the name there, and the side of the images.
TORCHVISION = (
    ("resnet18", "resnet18", 64),
    ("resnet34", "resnet34", 64),
    ("resnet50", "resnet50", 64),
    ("resnet101", "resnet101", 64),
    ("resnet152", "resnet152", 64),
    ("vgg11_imagenet", "vgg11", 96),
    ("vgg13_bn_imagenet", "vgg13_bn", 64),
    ("vgg16_bn_imagenet", "vgg16_bn", 256),
    ("vgg19_imagenet", "vgg19", 64),
    ("mobilenet_v2", "mobilenet_v2", 64),
    ("mobilenet_v3_small", "mobilenet_v3_small", 64),
    ("mobilenet_v3_large", "mobilenet_v3_large", 72),
    ("shufflenet_v2_x0_5", "shufflenet_v2_x0_5", 64),
    ("shufflenet_v2", "shufflenet_v2_x1_0", 64),
    ("shufflenet_v2_x1_5", "shufflenet_v2_x1_5", 64),
    ("shufflenet_v2_x2_0", "shufflenet_v2_x2_0", 64),
)
TIMM = (
    ("vit_tiny", "vit_tiny_patch16_224", 224),
    ("vit_small", "vit_small_patch16_224", 224),
    ("vit_base", "vit_base_patch16_224", 224),
    ("deit_tiny", "deit_tiny_distilled_patch16_224", 224),
    ("deit_small", "deit_small_distilled_patch16_224", 224),
    ("efficientnet_lite0", "tf_efficientnet_lite0", 72),
    ("efficientnet_lite1", "tf_efficientnet_lite1", 75),
    ("efficientnet_lite2", "tf_efficientnet_lite2", 72),
    ("efficientnet_lite3", "tf_efficientnet_lite3", 72),
    ("efficientnet_lite4", "tf_efficientnet_lite4", 72),
)


def _randomized(torch, net, images, scale):
    """The network with no trivial weight, ready for inference.

    `scale` is the mean one of BatchNorm.
    """
    rng = torch.Generator().manual_seed(1)
    norms = [m for m in net.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if "token" in name or name == "pos_embed":
                parameter.normal_(0, 0.5, generator=rng)
            elif parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=rng))
        for norm in norms:
            norm.weight.uniform_(scale / 2, 3 * scale / 2, generator=rng)
            norm.momentum = 1.0
        net.train()(images)
        for norm in norms:
            factor = 0.75 + 0.5 * torch.rand(norm.running_var.shape, generator=rng)
            norm.running_var.mul_(factor)
            noise = torch.randn(norm.running_mean.shape, generator=rng)
            norm.running_mean.add_(0.1 * noise * norm.running_var.sqrt())
    return net.eval()


def _compare(torch, name, net, size, **arguments):
    pixels = np.random.default_rng(0).normal(size=(4, size, size, 3)).astype(np.float32)
    images = torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy())
    torch.manual_seed(0)
    # Small where the network is deep: at 1/2 PyTorch's ResNet-101 is 4e-4 from its own
    # logits in float64.
    scale = 0.06 if name.startswith("resnet") else 0.5
    net = _randomized(torch, net, images, scale)
    with torch.no_grad():
        expected = net(images).numpy()
    module = models.create(name, num_classes=1000, **arguments)
    init = functools.partial(module.init, train=False)
    like = jax.eval_shape(init, jax.random.key(0), jnp.zeros(pixels.shape))
    tensors = {key: x.numpy() for key, x in net.state_dict().items()}
    variables = pretrained.to_variables(tensors, like)
    apply = jax.jit(lambda v, x: module.apply(v, x, train=False).logits)
    difference = np.abs(apply(variables, pixels) - expected).max()
    print(f"{name}: max |difference| {difference:.1e}, logits {expected.std():.2g}")
    assert difference < 1e-4
    assert 0.01 < expected.std() < 100


@pytest.fixture
def torch():
    module = pytest.importorskip("torch", reason="pip install 'kdjax[parity]'")
    module.manual_seed(0)
    return module


@pytest.mark.parametrize(("name", "theirs", "size"), TORCHVISION)
def test_torchvision(torch, name, theirs, size):
    library = pytest.importorskip("torchvision")
    _compare(torch, name, getattr(library.models, theirs)(), size)


@pytest.mark.parametrize(("name", "theirs", "size"), TIMM)
def test_timm(torch, name, theirs, size):
    library = pytest.importorskip("timm")
    _compare(torch, name, library.create_model(theirs), size)


def test_padding_of_pytorch_in_efficientnet_lite(torch):
    net = pytest.importorskip("timm").create_model("efficientnet_lite0")
    padding = {"same_padding": False, "epsilon": 1e-5}
    _compare(torch, "efficientnet_lite0", net, 72, **padding)
