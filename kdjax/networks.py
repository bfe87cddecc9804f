"""A model as two functions: what the layers above see of a student or a teacher."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from kdjax.types import ApplyFn, Outputs, Variables


class Normalization(NamedTuple):
    """What a model expects to be done to pixels; see `from_linen`."""

    mean: Sequence[float]
    std: Sequence[float]
    reverse_channels: bool = False


# As the weights of others were trained with.
NORMALIZATIONS = {
    # torchvision, and most of timm.
    "imagenet": Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    # To [-1, 1]: ViT of timm.
    "symmetric": Normalization((0.5,) * 3, (0.5,) * 3),
    "efficientnet_lite": Normalization((127 / 255,) * 3, (128 / 255,) * 3),
    # Bytes less their mean, blue before red: ResNet and VGG of Keras.
    "caffe": Normalization(
        (123.68 / 255, 116.779 / 255, 103.939 / 255), (1 / 255,) * 3, True
    ),
}


@dataclasses.dataclass(frozen=True)
class Network:
    """A student or a teacher.

    A Haiku, Equinox or NNX model joins by giving these two functions.

    Attributes:
      name: for messages and reports.
      init: makes the variables from a key.
      apply: maps variables and uint8 pixels to outputs and updated collections.
      image_shape: of one input, `(height, width, channels)`.
      num_classes: the number of logits.
      description: what must be equal for two networks to give the same logits from
        the same variables; JSON-able.
      example_fn: from a number of examples to inputs of this network, where these are
        not images; then `image_shape` is empty.
      classifiers: gives the paths of the modules whose shapes follow the number of
        classes, such as `params/Dense_0`; none: it can't be told.
    """

    name: str
    init: Callable[[jax.Array], Variables]
    apply: ApplyFn
    image_shape: tuple[int, ...]
    num_classes: int
    description: dict
    example_fn: Callable[[int], Any] | None = None
    classifiers: Callable[[], tuple[str, ...]] = tuple

    def example(self, batch_size: int = 1) -> Any:
        """Inputs as the network takes them, all zeros (and no padding)."""
        if self.example_fn is not None:
            return self.example_fn(batch_size)
        return jnp.zeros((batch_size, *self.image_shape), jnp.uint8)


def from_linen(
    module: nn.Module,
    *,
    name: str,
    image_shape: Sequence[int],
    num_classes: int,
    mean: Sequence[float],
    std: Sequence[float],
    reverse_channels: bool = False,
    resize: int = 0,
) -> Network:
    """A Linen module on pixels scaled to [0, 1], then normalised by channel.

    Args:
      module: called as `module(images, train=...)`, returns `Outputs`.
      name: for messages and reports.
      image_shape: of one input, `(height, width, channels)`.
      num_classes: the number of logits.
      mean: by channel, in units of [0, 1].
      std: by channel, in units of [0, 1].
      reverse_channels: whether the module sees the channels in reverse, blue first.
      resize: side in pixels that images are brought to before the module sees them,
        by linear interpolation; 0: none.
    """
    seen_shape = (resize, resize, image_shape[-1]) if resize else tuple(image_shape)
    normalize = _normalizer(Normalization(mean, std, reverse_channels), resize)

    @jax.jit  # Once for all seeds.
    def init(rng: jax.Array) -> Variables:
        images = jnp.zeros((1, *seen_shape), jnp.float32)
        return module.init(rng, images, train=False)

    return Network(
        name=name,
        init=init,
        apply=_apply(module, normalize),
        image_shape=tuple(image_shape),
        num_classes=num_classes,
        classifiers=functools.partial(_classifiers, module, seen_shape),
        description={
            "model": name,
            "mean": [round(float(x), 6) for x in mean],
            "std": [round(float(x), 6) for x in std],
        }
        | ({"channels": "reversed"} if reverse_channels else {})
        | ({"resize": resize} if resize else {}),
    )


def _normalizer(
    normalization: Normalization, resize: int
) -> Callable[[jax.Array], jax.Array]:
    """What turns pixels 0 to 255 into what a module sees."""
    mean, std = (np.asarray(x, np.float32) for x in normalization[:2])

    def normalize(images: jax.Array) -> jax.Array:
        pixels = images.astype(jnp.float32) / 255
        shape = (1,) * (pixels.ndim - 1) + (-1,)
        pixels = (pixels - mean.reshape(shape)) / std.reshape(shape)
        pixels = pixels[..., ::-1] if normalization.reverse_channels else pixels
        return _resized(pixels, resize) if resize else pixels

    return normalize


def _resized(images: jax.Array, side: int) -> jax.Array:
    """Square images `[B, side, side, C]`, by two products with constant matrices.

    Exporters know these for a batch of any size, unlike `jax.image.resize`.
    """
    rows, columns = (_interpolation(size, side) for size in images.shape[1:3])
    images = jnp.einsum("yh,bhwc->bywc", rows, images, precision="highest")
    return jnp.einsum("xw,bywc->byxc", columns, images, precision="highest")


def _interpolation(old: int, new: int) -> np.ndarray:
    """Weights `[new, old]`: a triangle as wide as the larger pixels are."""
    centres = (np.arange(new)[:, None] + 0.5) * old / new
    distances = np.abs(np.arange(old) + 0.5 - centres)
    weights = np.maximum(1 - distances / max(old / new, 1), 0)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


def of_tokens(
    module: nn.Module, *, name: str, num_classes: int, vocabulary: str
) -> Network:
    """A Linen module on rows of tokens.

    Its inputs are a dict: `tokens`, int32 `[B, L]`, and `mask`, `[B, L]`, which is
    False for padding.

    Args:
      module: called as `module(inputs, train=...)`, returns `Outputs`.
      name: for messages and reports.
      num_classes: the number of logits.
      vocabulary: a digest of what the tokens stand for.
    """

    def example(batch_size: int) -> Any:
        shape = batch_size, 4  # Any length will do.
        return {"tokens": jnp.zeros(shape, jnp.int32), "mask": jnp.ones(shape, bool)}

    @jax.jit  # Once for all seeds.
    def init(rng: jax.Array) -> Variables:
        return module.init(rng, example(1), train=False)

    return Network(
        name=name,
        init=init,
        apply=_apply(module, lambda inputs: inputs),
        image_shape=(),
        num_classes=num_classes,
        description={"model": name, "vocabulary": vocabulary},
        example_fn=example,
    )


def _apply(module: nn.Module, prepare: Callable[[Any], Any]) -> ApplyFn:
    """The module's `apply`, with the collections that training changes."""

    def apply(
        variables: Variables,
        images: Any,
        *,
        train: bool,
        rng: jax.Array | None = None,
    ) -> tuple[Outputs, Variables]:
        model_state = {k: v for k, v in variables.items() if k != "params"}
        inputs = prepare(images)
        if not train:
            outputs: Any = module.apply(variables, inputs, train=False)
            return outputs, model_state
        rngs = None if rng is None else {"dropout": rng}
        outputs, new_state = module.apply(
            variables, inputs, train=True, rngs=rngs, mutable=list(model_state)
        )
        return outputs, dict(new_state)

    return apply


def _classifiers(module: nn.Module, image_shape: tuple[int, ...]) -> tuple[str, ...]:
    """Modules of other shapes in a model of one class more than `num_classes`."""

    def shapes(made: nn.Module) -> dict[str, Any]:
        images = jnp.zeros((1, *image_shape), jnp.float32)
        init = functools.partial(made.init, train=False)
        variables = jax.eval_shape(init, jax.random.key(0), images)
        return flax.traverse_util.flatten_dict(variables, sep="/")

    own = shapes(module)
    other = shapes(module.clone(num_classes=module.num_classes + 1))
    differing = (path for path in own if own[path].shape != other[path].shape)
    return tuple(dict.fromkeys(path.rpartition("/")[0] for path in differing))
