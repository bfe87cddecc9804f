"""Names and weights of other libraries give the logits that these recorded.

`record_logits.py` made the file; these tests need no PyTorch.
"""

import functools
import json
import pathlib
import runpy

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import models, pretrained
from kdjax.types import UserError

HERE = pathlib.Path(__file__).parent
RECORDED = json.loads((HERE / "recorded.json").read_text())
SMALL = {"patch_size": 16, "dim": 24, "depth": 2, "heads": 3}
MODULES = {
    "mobilenet_v3_small": models.create("mobilenet_v3_small", num_classes=4),
    "efficientnet_lite0": models.create("efficientnet_lite0", num_classes=4),
    "vit": models.create("vit", num_classes=4, **SMALL),
    "deit": models.create("vit", num_classes=4, distilled=True, **SMALL),
}


@pytest.fixture(scope="module")
def recorder():
    return runpy.run_path(str(HERE / "record_logits.py"))


@pytest.mark.parametrize("name", RECORDED)
def test_imported_weights_give_the_recorded_logits(name, recorder):
    tensors = {
        key: recorder["weight"](key, shape)
        for key, shape in RECORDED[name]["shapes"].items()
    }
    module = MODULES[name]
    images = recorder["noise"]((1, 3, 32, 32), 6).transpose(0, 2, 3, 1)
    init = functools.partial(module.init, train=False)
    like = jax.eval_shape(init, jax.random.key(0), jnp.zeros(images.shape))
    variables = pretrained.to_variables(tensors, like)
    apply = jax.jit(lambda v, x: module.apply(v, x, train=False).logits)
    expected = np.array(RECORDED[name]["logits"])
    scale = np.abs(expected).max()
    logits = apply(variables, images)[0]
    np.testing.assert_allclose(logits / scale, expected / scale, atol=2e-5)


def test_a_distilled_model_is_not_taken_for_a_plain_one(recorder):
    """Nor the other way: the second token and the second head are named."""
    tensors = {
        key: recorder["weight"](key, shape)
        for key, shape in RECORDED["deit"]["shapes"].items()
    }
    init = functools.partial(MODULES["vit"].init, train=False)
    like = jax.eval_shape(init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    expected = "3 are unknown; the first is params/Dense_1/bias"
    with pytest.raises(UserError, match=expected):
        pretrained.to_variables(tensors, like)
