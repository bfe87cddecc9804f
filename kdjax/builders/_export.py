"""A trained student that learns once more, rounded to eight bits as it computes."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
from ml_collections import ConfigDict

from kdjax import networks, steps
from kdjax.builders._networks import network
from kdjax.builders._parts import Parts
from kdjax.models import convolutions, quantized


def quantization_aware(parts: Parts, weights: pathlib.Path) -> Parts:
    """The same distillation, from trained weights, of the rounded student.

    As many epochs as `export.qat_epochs`, at a share of the learning rate; all else,
    the teacher's cache too, is that of the student's own training.
    """
    config = parts.config.copy_and_resolve_references()
    train = config.student.train
    train.num_views = train.num_views or train.num_epochs  # Those of the cache.
    train.num_epochs = config.export.qat_epochs
    train.learning_rate.base *= config.export.qat_learning_rate
    train.learning_rate.update(schedule="cosine", warmup_epochs=0.0)
    config.student.pretrained = str(weights)
    student = _plain(
        network(config.student, parts.splits.train, parts.devices, quantized.rounded)
    )
    predict = parts.devices.predict_program(steps.make_predict_step(student.apply))
    return dataclasses.replace(
        parts,
        config=config,
        student=student,
        predict={**parts.predict, "student": predict},
        programs={},
    )


def in_float32(
    trained: Mapping[str, networks.Network],
    config: ConfigDict,
    make: Callable[[ConfigDict], networks.Network],
) -> dict[str, networks.Network]:
    """Models as they are exported, whatever they were trained in.

    Their variables are in float32 anyway, and few runtimes compute in bfloat16.

    Args:
      trained: by role.
      config: with a section for each role.
      make: a model of such a section.
    """
    made = dict(trained)
    for role in made:
        if config[role].model.dtype != "float32":
            section = config[role].copy_and_resolve_references()
            section.model.dtype = "float32"
            made[role] = make(section)
    return made


def _plain(net: networks.Network) -> networks.Network:
    """The network, of plain operations: what rounding knows."""

    def init(rng: jax.Array) -> Any:
        with convolutions.plain():
            return net.init(rng)

    def apply(*args: Any, **kwargs: Any) -> Any:
        with convolutions.plain():
            return net.apply(*args, **kwargs)

    return dataclasses.replace(net, init=init, apply=apply)
