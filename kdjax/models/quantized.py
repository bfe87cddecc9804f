"""A model that computes as its eight-bit file will, and can be trained so.

Every convolution and every dense layer sees its kernel and its inputs rounded to the
256 values that eight bits have: kernels symmetric around zero, with a scale for each
output channel; inputs with a scale and a zero point for the array. In the backward
pass rounding is the identity (straight-through). Parameters stay what they are, in
name, shape and dtype.

BatchNorm after a convolution multiplies whole channels of its kernel, so it can be
folded into it afterwards without a change of what is rounded to what.
"""

import importlib
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from kdjax.types import UserError


def rounded(module: nn.Module) -> nn.Module:
    """The module with rounded convolutions and dense layers.

    To be initialised and applied within `convolutions.plain()`: what is intercepted
    are the operations of JAX themselves.

    Raises:
      UserError: without the package qwix.

    References:
      Jacob et al., `Quantization and Training of Neural Networks for Efficient
      Integer-Arithmetic-Only Inference <https://arxiv.org/abs/1712.05877>`_, CVPR 2018,
      section 3.
    """
    _require_qwix()
    import qwix

    def round_to(x: jax.Array, **how: Any) -> jax.Array:
        values = qwix.dequantize(qwix.quantize(x, jnp.int8, **how)).astype(x.dtype)
        return x + lax.stop_gradient(values - x)

    def conv(images: jax.Array, kernel: jax.Array, *args: Any, **kwargs: Any) -> Any:
        images = round_to(images, calibration_method="minmax")
        kernel = round_to(kernel, channelwise_axes=(3,))
        return lax_conv(images, kernel, *args, **kwargs)

    def dot(x: jax.Array, kernel: jax.Array, *args: Any, **kwargs: Any) -> Any:
        x = round_to(x, calibration_method="minmax")
        kernel = round_to(kernel, channelwise_axes=(kernel.ndim - 1,))
        return lax_dot(x, kernel, *args, **kwargs)

    lax_conv, lax_dot = lax.conv_general_dilated, lax.dot_general

    class Rounding(qwix.QuantizationProvider):
        def get_intercept_map(self) -> dict[str, Any]:
            return super().get_intercept_map() | {
                "jax.lax.conv_general_dilated": conv,
                "jax.lax.dot_general": dot,
            }

    return qwix.quantize_model(module, Rounding([qwix.QuantizationRule()]))


def _require_qwix() -> None:
    try:
        importlib.import_module("qwix")
    except ImportError as error:
        raise UserError(
            "Expected the package qwix to train in eight bits (export.qat_epochs), but "
            f"it does not import ({error}): pip install 'kdjax[export]'."
        ) from error
