"""Temperature and alpha learned on validation examples, and a grid of fixed ones."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from kdjax import builders, hyper_gradients, losses, optimizers, schedules
from kdjax import teacher_cache as caches
from kdjax.builders._checks import expect, plain
from kdjax.builders._parts import Parts, assemble
from kdjax.training import Training, predict_split
from kdjax.types import UserError, Variables

LINKS = {"temperature": hyper_gradients.POSITIVE, "alpha": hyper_gradients.FRACTION}


@dataclasses.dataclass(frozen=True)
class Experiment:
    """One teacher, students of a grid, and students that learn where they are in it.

    Attributes:
      base: teacher, cache and baseline, as for one student.
      start: temperature and alpha where the learning begins.
      cells: temperature and alpha of each student of the grid.
      learned_training: makes the training of a seed, from the teacher's variables and
        the open cache (`None` where the teacher runs online).
      fixed_training: the same with a fixed temperature and alpha, given first.
      learned_inputs: what the former depends on, further to `base.inputs`; JSON-able.
      accuracy: of a student's variables on validation and test, in %.
      accept_gain: the least mean difference from the grid's median, or None.
    """

    base: builders.Experiment
    start: tuple[float, float]
    cells: tuple[tuple[float, float], ...]
    learned_training: Callable[[int, Variables, caches.Cache | None], Training]
    fixed_training: Callable[
        [float, float, int, Variables, caches.Cache | None], Training
    ]
    learned_inputs: Mapping[str, Any]
    accuracy: Callable[[Variables], dict[str, float]]
    accept_gain: float | None


def build(config: ConfigDict) -> Experiment:
    """Reads a whole config, and raises `UserError` on the first thing wrong with it."""
    parts = assemble(config)
    check(config, parts)
    section = config.learned_temperature
    return Experiment(
        base=builders.experiment(parts),
        start=(config.distill.temperature, config.distill.alpha),
        cells=tuple(itertools.product(section.temperatures, section.alphas)),
        learned_training=functools.partial(_learned_training, parts),
        fixed_training=functools.partial(_fixed_training, parts),
        learned_inputs={
            name: plain(section[name])
            for name in ("learn", "learning_rate", "b2", "batch_size", "num_terms")
        }
        | {"validation": parts.splits.validation.fingerprint()},
        accuracy=functools.partial(_accuracy, parts),
        accept_gain=section.accept_gain,
    )


def check(config: ConfigDict, parts: Parts) -> None:
    """Raises `UserError` on the first value out of its range."""
    name, train = "learned_temperature", config.student.train
    expect(
        config,
        f"{name}.learn",
        lambda x: x and set(x) <= set(LINKS) and len(set(x)) == len(x),
        f"some of {tuple(LINKS)}",
    )
    expect(config, f"{name}.b2", lambda x: 0 <= x < 1, "a number from 0 to below 1")
    for key in ("learning_rate", "batch_size", "num_terms"):
        expect(config, f"{name}.{key}", lambda x: x > 0, "a positive number")
    expect(config, f"{name}.temperatures", _are(lambda x: x > 0), "positive numbers")
    expect(config, f"{name}.alphas", _are(lambda x: 0 <= x <= 1), "from 0 to 1")
    expect(config, "distill.alpha", lambda x: 0 < x < 1, "between 0 and 1, neither")
    for key in ("temperature_schedule", "alpha_schedule"):
        expect(config, f"distill.{key}", lambda x: x == "constant", "'constant'")
    expect(
        config,
        "student.train.optimizer.name",
        lambda x: x == "sgd",
        "'sgd', for the update of Adam has no derivative where a gradient is zero",
    )
    expect(config, "parallel", lambda x: x == "jit", "'jit'")
    if train.ema_decay or not len(parts.splits.validation):
        raise UserError(
            "Expected student.train.ema_decay=0 and a validation split to learn on, "
            f"got {train.ema_decay} and {len(parts.splits.validation)} examples: set "
            "dataset.validation."
        )


def _are(holds: Callable[[float], bool]) -> Callable[[Any], bool]:
    return lambda xs: len(xs) > 0 and len(set(xs)) == len(xs) and all(map(holds, xs))


def _fixed_training(
    parts: Parts,
    temperature: float,
    alpha: float,
    seed: int,
    teacher_variables: Variables,
    cache: caches.Cache | None,
) -> Training:
    """The student of a seed with other numbers, by the program of all others."""
    made = parts.student_training(seed, teacher_variables, cache)
    fixed = {"temperature": temperature, "alpha": alpha}
    constants = {name: schedules.Constant(x) for name, x in fixed.items()}
    return dataclasses.replace(
        made,
        name=f"T = {temperature:g}, alpha = {alpha:g}, seed {seed}",
        hparams={**made.hparams, **constants},
    )


def _learned_training(
    parts: Parts, seed: int, teacher_variables: Variables, cache: caches.Cache | None
) -> Training:
    config, section = parts.config, parts.config.learned_temperature
    made = parts.student_training(seed, teacher_variables, cache)
    role, constants = parts.student_role(teacher_variables, cache)
    links = {name: LINKS[name] for name in section.learn}
    rates = {"learning_rate": section.learning_rate, "weight_decay": 0.0}
    rates |= {"b1": 0.9, "b2": section.b2}
    own = {f"{hyper_gradients.OWN}{n}": schedules.Constant(x) for n, x in rates.items()}
    hparams: dict[str, Any] = {**made.hparams, **own}
    optimizer_fn = optimizers.adamw()

    def init() -> hyper_gradients.Learner:
        start = {name: config.distill[name] for name in links}
        return hyper_gradients.init(made.init(), start, links, optimizer_fn, hparams)

    validation_fn = hyper_gradients.make_validation_fn(
        parts.student.apply, losses.cross_entropy, section.batch_size
    )
    held_out = parts.splits.validation.take(np.arange(len(parts.splits.validation)))
    return parts.custom_training(
        key="learned",
        name=f"learned, seed {seed}",
        train=config.student.train,
        seed=seed,
        init=init,
        train_step=hyper_gradients.make_train_step(
            role.train_step(parts.devices.axis_name),
            validation_fn,
            links,
            optimizer_fn,
            num_terms=section.num_terms,
        ),
        constants={"teacher": constants, "held_out": held_out},
        hparams=hparams,
        evaluate=lambda state: made.evaluate(state.student),
        loader=made.loader,
    )


def _accuracy(parts: Parts, variables: Variables) -> dict[str, float]:
    found = {}
    for name in ("validation", "test"):
        logits, labels = predict_split(
            parts.predict["student"],
            variables,
            getattr(parts.splits, name),
            parts.config.student.train.batch_size,
        )
        found[name] = 100 * float(np.mean(logits.argmax(axis=-1) == labels))
    return found
