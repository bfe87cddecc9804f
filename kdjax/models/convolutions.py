"""Two-dimensional convolutions that are fast on CPU too.

On an accelerator `conv` is `lax.conv_general_dilated` and nothing else. On CPU it
takes, by shape alone, the first of these forms that applies:

* depthwise: a shifted multiply-add for each tap of the kernel, the gradients included;
* 1x1 without padding: a matrix product, or a batch of them for groups;
* all others: XLA's own convolution.

In all forms the images and the gradient of the output are first *materialized*. Left
to itself, XLA computes the activations that led to a convolution once more, element by
element in transposed order, inside the transposition that the gradient of the kernel
needs: a third of the training step of a ResNet-20.

Exporters want the operation itself: within `plain()` there is no other form.

`benchmarks/convolutions.py` measures each form against XLA's own, and a whole step: on
two CPU cores one of a ResNet-20 with 128 images takes 323 ms, 390 ms with XLA's
convolutions alone, and 123 ms in PyTorch 2.13, whose 3x3 gradients are three times as
fast as XLA's.
"""

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax

from kdjax.models import _windows
from kdjax.models._windows import Padding, Pads

_is_plain = contextvars.ContextVar("is_plain", default=False)


@contextlib.contextmanager
def plain() -> Iterator[None]:
    """Within it, `conv` is `lax.conv_general_dilated` and nothing else, on CPU too.

    For programs that are made for other runtimes, which know a convolution by that
    operation. What `jax.jit` has traced before stays as it was.
    """
    token = _is_plain.set(True)
    try:
        yield
    finally:
        _is_plain.reset(token)


class _Window(NamedTuple):
    """How the kernel moves over the images."""

    strides: tuple[int, int]
    pads: Pads
    groups: int


def conv(
    images: jax.Array,
    kernel: jax.Array,
    *,
    strides: tuple[int, int] = (1, 1),
    padding: Padding = "SAME",
    feature_group_count: int = 1,
) -> jax.Array:
    r"""Images correlated with a kernel, as every library's "convolution".

    .. math::
      y_{b,h,w,o} = \sum_{i,j,c} x_{b,\, h s_h + i - p_h,\, w s_w + j - p_w,\, c} \,
      k_{i,j,c,o}

    with zeros outside of the images. Values and gradients are those of
    `lax.conv_general_dilated` up to the order of sums; on CPU, half precision is
    computed in float32 and rounded once. It maps, shards over the batch and repeats to
    the last bit. It has a first derivative in reverse mode, and no others.

    Args:
      images: `[B, H, W, C]`.
      kernel: `[kernel height, kernel width, C / groups, features]`, of the images'
        dtype.
      strides: steps of the kernel down and across, in pixels.
      padding: 'SAME', 'VALID', or the rows and columns of zeros to add,
        `((top, bottom), (left, right))`; PyTorch's `padding=1` is `((1, 1), (1, 1))`.
      feature_group_count: into how many groups the channels and the features fall,
        each seeing only its own; as many as channels for a depthwise convolution.

    Returns:
      The features, `[B, H', W', features]`, of the images' dtype.

    Raises:
      ValueError: if the shapes, the groups, the strides or the padding don't fit.
      TypeError: if the dtypes differ or are not floating-point.

    Examples:
      >>> import jax.numpy as jnp
      >>> images, kernel = jnp.ones((1, 4, 4, 2)), jnp.ones((3, 3, 2, 1))
      >>> features = conv(images, kernel, strides=(2, 2), padding=((1, 1), (1, 1)))
      >>> print(features[0, :, :, 0])
      [[ 8. 12.]
       [12. 18.]]
    """
    _windows.check_arrays(images, kernel, feature_group_count)
    pads = _windows.explicit_pads(images, kernel, strides, padding)
    window = _Window((strides[0], strides[1]), pads, feature_group_count)
    if _is_plain.get():
        return _stock(window, images, kernel)
    return _conv(images, kernel, window)


class Conv(nn.Module):
    """`flax.linen.Conv` for images, computed by `conv`.

    Parameters have the names, shapes and initial values of `flax.linen.Conv`, so that
    checkpoints of either load into the other.

    Attributes:
      features: how many features there are in the output.
      kernel_size: height and width of the kernel.
      strides: steps of the kernel, both or down and across.
      padding: as for `conv`.
      feature_group_count: as for `conv`.
      use_bias: whether to add a learned constant to each feature.
      dtype: of the computation; by default that of images and kernel together.
      kernel_init: the initializer of the kernel.
    """

    features: int
    kernel_size: tuple[int, int]
    strides: int | tuple[int, int] = 1
    padding: Padding = "SAME"
    feature_group_count: int = 1
    use_bias: bool = False
    dtype: Any = None
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """Images `[B, H, W, C]` to features `[B, H', W', features]`."""
        channels = images.shape[-1] // self.feature_group_count
        shape = (*self.kernel_size, channels, self.features)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
        bias = None
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, shape[-1:], jnp.float32)
        images, kernel, bias = nn.dtypes.promote_dtype(
            images, kernel, bias, dtype=self.dtype
        )
        strides = self.strides
        features = conv(
            images,
            kernel,
            strides=(strides, strides) if isinstance(strides, int) else strides,
            padding=self.padding,
            feature_group_count=self.feature_group_count,
        )
        return features if bias is None else features + bias.reshape(1, 1, 1, -1)


def materialize(x: jax.Array) -> jax.Array:
    """Returns `x`, bit for bit, as an array that XLA's CPU backend computes once.

    XLA fuses the elementwise operations that lead to an array into *every* operation
    that reads it, recomputing them each time, unless they end in one that it holds to
    be expensive. The division by 1 here is one that it can't see through, and costs
    nothing beside the memory traffic. (`lax.optimization_barrier` is no help: the CPU
    backend drops it before it fuses.)
    """
    two, one = jnp.asarray(2, x.dtype), jnp.asarray(1, x.dtype)
    return x / jnp.where(jnp.isnan(x), two, one)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _conv(images: jax.Array, kernel: jax.Array, window: _Window) -> jax.Array:
    return lax.platform_dependent(
        images,
        kernel,
        cpu=functools.partial(_on_cpu, window),
        default=functools.partial(_stock, window),
    )


def _conv_fwd(
    images: jax.Array, kernel: jax.Array, window: _Window
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _conv(images, kernel, window), (images, kernel)


def _conv_bwd(
    window: _Window, residuals: tuple[jax.Array, jax.Array], grad: jax.Array
) -> tuple[jax.Array, jax.Array]:
    return lax.platform_dependent(
        *residuals,
        grad,
        cpu=functools.partial(_grads_on_cpu, window),
        default=functools.partial(_stock_grads, window),
    )


_conv.defvjp(_conv_fwd, _conv_bwd)


def _on_cpu(window: _Window, images: jax.Array, kernel: jax.Array) -> jax.Array:
    form, _ = _forms(images, kernel, window)
    wide, wide_kernel = _widen(images), _widen(kernel)
    return form(window, materialize(wide), wide_kernel).astype(images.dtype)


def _grads_on_cpu(
    window: _Window, images: jax.Array, kernel: jax.Array, grad: jax.Array
) -> tuple[jax.Array, jax.Array]:
    _, form_grads = _forms(images, kernel, window)
    wide, wide_kernel, wide_grad = _widen(images), _widen(kernel), _widen(grad)
    image_grad, kernel_grad = form_grads(
        window, materialize(wide), wide_kernel, materialize(wide_grad)
    )
    return image_grad.astype(images.dtype), kernel_grad.astype(kernel.dtype)


def _forms(
    images: jax.Array, kernel: jax.Array, window: _Window
) -> tuple[Callable[..., jax.Array], Callable[..., tuple[jax.Array, jax.Array]]]:
    """The forward and the backward pass for these shapes, on CPU."""
    if window.groups == images.shape[-1] == kernel.shape[-1]:
        return _depthwise, _depthwise_grads
    if kernel.shape[:2] == (1, 1) and sum(window.pads, ()) == (0, 0, 0, 0):
        return _pointwise, _pointwise_grads
    return _stock, _stock_grads


def _widen(x: jax.Array) -> jax.Array:
    return x if jnp.finfo(x.dtype).bits >= 32 else x.astype(jnp.float32)


# XLA's own convolution.


def _stock(window: _Window, images: jax.Array, kernel: jax.Array) -> jax.Array:
    return lax.conv_general_dilated(
        images,
        kernel,
        window.strides,
        window.pads,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=window.groups,
    )


def _stock_grads(
    window: _Window, images: jax.Array, kernel: jax.Array, grad: jax.Array
) -> tuple[jax.Array, jax.Array]:
    _, pullback = jax.vjp(functools.partial(_stock, window), images, kernel)
    return pullback(grad)


# A 1x1 kernel is a matrix, or one for each group.


def _pointwise(window: _Window, images: jax.Array, kernel: jax.Array) -> jax.Array:
    seen = images[:, :: window.strides[0], :: window.strides[1]]
    rows, matrices = _by_group(seen, window), _by_group(kernel, window)
    features = jnp.einsum("ngc,cgf->ngf", rows, matrices)
    return features.reshape(*seen.shape[:-1], kernel.shape[-1])


def _pointwise_grads(
    window: _Window, images: jax.Array, kernel: jax.Array, grad: jax.Array
) -> tuple[jax.Array, jax.Array]:
    seen = images[:, :: window.strides[0], :: window.strides[1]]
    rows, matrices = _by_group(seen, window), _by_group(kernel, window)
    grad_rows = _by_group(grad, window)
    seen_grad = jnp.einsum("ngf,cgf->ngc", grad_rows, matrices)
    kernel_grad = jnp.einsum("ngc,ngf->cgf", rows, grad_rows)
    image_grad = _spread(seen_grad.reshape(seen.shape), window, images.shape)
    return image_grad, kernel_grad.reshape(kernel.shape)


def _by_group(x: jax.Array, window: _Window) -> jax.Array:
    """`[..., groups * n]` to `[rows, groups, n]`."""
    return x.reshape(-1, window.groups, x.shape[-1] // window.groups)


def _spread(grad: jax.Array, window: _Window, shape: tuple[int, ...]) -> jax.Array:
    """The pixels that strides picked, back at their places among zeros."""
    if window.strides == (1, 1):
        return grad
    config = [(0, 0, 0)]
    for axis, stride in zip((1, 2), window.strides, strict=True):
        spread = (grad.shape[axis] - 1) * stride + 1
        config.append((0, shape[axis] - spread, stride - 1))
    return lax.pad(grad, jnp.zeros((), grad.dtype), [*config, (0, 0, 0)])


# A depthwise kernel is a sum over its taps of shifted, scaled images.


def _depthwise(window: _Window, images: jax.Array, kernel: jax.Array) -> jax.Array:
    padded = _pad(images, window.pads)
    taps = np.ndindex(kernel.shape[:2])
    return _sum(
        _seen_by(tap, window, padded, kernel) * kernel[tap][None, None] for tap in taps
    )


def _depthwise_grads(
    window: _Window, images: jax.Array, kernel: jax.Array, grad: jax.Array
) -> tuple[jax.Array, jax.Array]:
    padded = _pad(images, window.pads)
    tap_grads = [
        jnp.sum(_seen_by(tap, window, padded, kernel) * grad, axis=(0, 1, 2))
        for tap in np.ndindex(kernel.shape[:2])
    ]
    image_grad = _depthwise_image_grad(window, images.shape, kernel, grad)
    return image_grad, jnp.stack(tap_grads).reshape(kernel.shape)


def _seen_by(
    tap: tuple[int, ...], window: _Window, padded: jax.Array, kernel: jax.Array
) -> jax.Array:
    """What one tap of the kernel meets as it moves over padded images."""
    slices = []
    for axis in (0, 1):
        size, stride = padded.shape[axis + 1], window.strides[axis]
        last = tap[axis] + size - kernel.shape[axis]
        slices.append(slice(tap[axis], last + 1, stride))
    return padded[:, slices[0], slices[1]]


def _depthwise_image_grad(
    window: _Window, shape: tuple[int, ...], kernel: jax.Array, grad: jax.Array
) -> jax.Array:
    """The flipped kernel over the gradient, one phase of the strides at a time.

    Row `stride * a + phase` of the padded images is met by the taps
    `phase + stride * t`, in row `a - t` of the output.
    """
    (down, across), ((top, bottom), (left, right)) = window.strides, window.pads
    rows = -(-(shape[1] + top + bottom) // down)
    columns = -(-(shape[2] + left + right) // across)
    phases = [
        [
            _sum_of_shifts(kernel[i::down, j::across], grad, (rows, columns))
            for j in range(across)
        ]
        for i in range(down)
    ]
    whole = jnp.stack([jnp.stack(row, axis=3) for row in phases], axis=2)
    whole = whole.reshape(shape[0], rows * down, columns * across, shape[3])
    return whole[:, top : top + shape[1], left : left + shape[2]]


def _sum_of_shifts(
    kernel: jax.Array, grad: jax.Array, size: tuple[int, int]
) -> jax.Array:
    """The sum over taps `(i, j)` of `grad` moved by `i` down and `j` across."""
    if not kernel.size:  # Strides larger than the kernel leave some phases unseen.
        return jnp.zeros((grad.shape[0], *size, grad.shape[3]), grad.dtype)
    pads = [
        (taps - 1, max(0, cells - have))
        for taps, cells, have in zip(
            kernel.shape[:2], size, grad.shape[1:3], strict=True
        )
    ]
    padded = _pad(grad, (pads[0], pads[1]))
    last_i, last_j = kernel.shape[0] - 1, kernel.shape[1] - 1
    return _sum(
        padded[:, last_i - i : last_i - i + size[0], last_j - j : last_j - j + size[1]]
        * kernel[i, j][None, None]
        for i, j in np.ndindex(kernel.shape[:2])
    )


def _pad(images: jax.Array, pads: Pads) -> jax.Array:
    return jnp.pad(images, ((0, 0), *pads, (0, 0)))


def _sum(arrays: Iterator[jax.Array]) -> jax.Array:
    return functools.reduce(jnp.add, arrays)
