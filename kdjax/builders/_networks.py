"""Networks and optimizers, each from its section of a config."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from ml_collections import ConfigDict

from kdjax import models, networks, optimizers, parallel
from kdjax.data import sources
from kdjax.networks import NORMALIZATIONS, Normalization
from kdjax.types import UserError

# Keys of a section that say how its model sees images.
SEEN_BY = ("normalize", "resize")


def with_model(section: ConfigDict, model: Any) -> ConfigDict:
    """Another model's section, which sees images as that of `section` does."""
    return ConfigDict({"model": model, **{key: section[key] for key in SEEN_BY}})


def network(
    config: ConfigDict,
    source: sources.Source,
    devices: parallel.Parallel,
    change: Callable[[nn.Module], nn.Module] = lambda module: module,
) -> networks.Network:
    """The model of a `teacher` or `student` section, for the images of `source`.

    Its module is changed before it becomes a network.
    """
    arguments: dict[str, Any] = {
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
    return networks.from_linen(
        change(module),
        name=config.model.name,
        image_shape=source.image_shape,
        num_classes=source.num_classes,
        **_normalization(config.normalize, source)._asdict(),
        resize=config.resize,
    )


def _normalization(normalize: str, source: sources.Source) -> Normalization:
    """By its name: of the data, of none, or of others' weights."""
    channels = source.image_shape[-1]
    if normalize == "dataset":
        mean, std = sources.channel_statistics(source)
        return Normalization(mean.tolist(), std.tolist())
    if normalize == "unit":
        return Normalization((0.0,) * channels, (1.0,) * channels)
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
