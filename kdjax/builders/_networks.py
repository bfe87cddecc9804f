"""Networks and optimizers, each from its section of a config."""

from collections.abc import Callable

import jax.numpy as jnp
from flax import linen as nn
from ml_collections import ConfigDict

from kdjax import models, networks, optimizers, parallel
from kdjax.data import sources
from kdjax.types import UserError

# Mean and standard deviation of red, green and blue in units of [0, 1], as the weights
# of others were trained with.
NORMALIZATIONS = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),  # torchvision, timm.
    "symmetric": ((0.5,) * 3, (0.5,) * 3),  # To [-1, 1]: ViT of timm.
    "efficientnet_lite": ((127 / 255,) * 3, (128 / 255,) * 3),
    # Bytes less the mean, blue before red: ResNet and VGG of Keras.
    "caffe": ((123.68 / 255, 116.779 / 255, 103.939 / 255), (1 / 255,) * 3),
}


def network(
    config: ConfigDict,
    source: sources.Source,
    devices: parallel.Parallel,
    change: Callable[[nn.Module], nn.Module] = lambda module: module,
) -> networks.Network:
    """The model of a `teacher` or `student` section, for the images of `source`.

    Its module is changed before it becomes a network.
    """
    arguments = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in config.model.items()
        if name not in ("name", "dtype")
    }
    module = models.create(
        config.model.name,
        num_classes=source.num_classes,
        dtype=jnp.dtype(config.model.dtype),
        axis_name=devices.axis_name,
        **arguments,
    )
    mean, std = _statistics(config.normalize, source)
    return networks.from_linen(
        change(module),
        name=config.model.name,
        image_shape=source.image_shape,
        num_classes=source.num_classes,
        mean=mean,
        std=std,
        reverse_channels=config.normalize == "caffe",
        resize=config.resize,
    )


def _statistics(
    normalize: str, source: sources.Source
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation by channel, of pixels in [0, 1]."""
    channels = source.image_shape[-1]
    if normalize == "dataset":
        mean, std = sources.channel_statistics(source)
        return tuple(mean.tolist()), tuple(std.tolist())
    if normalize == "unit":
        return (0.0,) * channels, (1.0,) * channels
    if channels != 3:
        raise UserError(
            f"Expected images of 3 channels for normalize={normalize!r}, got "
            f"{channels}: use 'dataset' or 'unit'."
        )
    return NORMALIZATIONS[normalize]


def optimizer_fn(
    train: ConfigDict, *, spare_unreached: bool = False
) -> optimizers.OptimizerFn:
    """The optimizer of a `train` section; its numbers are in `optimizer_hparams`."""
    config = train.optimizer
    switches = dict(
        clip=config.clip_norm > 0,
        max_norm=config.max_norm > 0,
        spare_unreached=spare_unreached,
    )
    if config.name == "sgd":
        return optimizers.sgd(nesterov=config.nesterov, **switches)
    return optimizers.adamw(**switches)
