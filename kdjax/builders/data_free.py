"""Distillation without data from a config: DAFL, DFAD, ZSKT, and noise as control."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from kdjax import data_free, members, networks, schedules, steps
from kdjax.builders._checks import expect, plain
from kdjax.builders._data_free_methods import METHODS
from kdjax.builders._networks import SEEN_BY, optimizer_fn
from kdjax.builders._objectives import optimizer_hparams
from kdjax.builders._parts import Parts, assemble
from kdjax.data import order, sources
from kdjax.data.noise import NoiseLoader
from kdjax.data_free import DataFreeState, Generator, Method, Models
from kdjax.models import generators
from kdjax.training import Training, split_evaluator
from kdjax.types import HParams, Variables

NUM_SHOWN = 10  # Latents whose images the report follows through training.


@dataclasses.dataclass(frozen=True)
class Arm:
    """One training of the students of all seeds.

    Attributes:
      method: whose student's objective and optimizer it has.
      on_noise: whether the images are normal noise: the control of the method.
      training: makes it, from the teacher's variables.
      images: what the first seed's generator makes of the same few latents, uint8
        `[n, height, width, channels]`.
      inputs: what the result depends on, besides the teacher; JSON-able.
    """

    method: str
    on_noise: bool
    training: Callable[[Variables], Training]
    images: Callable[[DataFreeState], np.ndarray]
    inputs: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Distillation without data, ready to run.

    Attributes:
      splits: of real images: the teacher's, the reference's, and those of the test.
      seeds: one student of each arm for every seed, the same at the start.
      teacher: the large network.
      student: the small one.
      teacher_pretrained: a file or directory to import the teacher from as it is; or
        `None`, if it is trained.
      teacher_training: makes the training of the teacher.
      real_training: that of a seed's student on real images, the upper bound.
      arms: by name: each method, and its control as `'dafl_noise'`.
      inputs: of the stages `'teacher'` and `'real'`; JSON-able.
      accuracy: of `'teacher'` or `'student'` variables on the test split, in %.
      published: what the literature reports, by arm, and what is accepted.
      config: the whole config, for the report.
    """

    splits: sources.Splits
    seeds: tuple[int, ...]
    teacher: networks.Network
    student: networks.Network
    teacher_pretrained: str | None
    teacher_training: Callable[[], Training]
    real_training: Callable[[int, Variables], Training]
    arms: Mapping[str, Arm]
    inputs: Mapping[str, Mapping[str, Any]]
    accuracy: Callable[[str, Variables], float]
    published: Mapping[str, Any]
    config: Mapping[str, Any]


def build(config: ConfigDict) -> Experiment:
    """Reads a whole config, and raises `UserError` on the first thing wrong with it."""
    parts = assemble(config)
    check(config)
    parts.check()
    parts.devices.check_batch_size("data_free.batch_size", config.data_free.batch_size)
    arms = {}
    for method in config.data_free.methods:
        arms[method] = _arm(parts, method, on_noise=False)
        arms[f"{method}_noise"] = _arm(parts, method, on_noise=True)
    inputs = parts.inputs()
    return Experiment(
        splits=parts.splits,
        seeds=tuple(config.seeds),
        teacher=parts.teacher,
        student=parts.student,
        teacher_pretrained=parts.teacher_pretrained,
        teacher_training=parts.teacher_training,
        real_training=lambda seed, teacher: parts.student_training(seed, teacher, None),
        arms=arms,
        inputs={"teacher": inputs["teacher"], "real": inputs["student"]},
        accuracy=parts.test_accuracy,
        published=plain(config.published),
        config=plain(config),
    )


def check(config: ConfigDict) -> None:
    """Raises `UserError` on the first value out of its range."""
    expect(config, "parallel", lambda x: x == "jit", "'jit' for data-free distillation")
    expect(
        config,
        "teacher.source",
        lambda x: x == "online",
        "'online', since what a generator makes is in no cache",
    )
    expect(
        config,
        "teacher.normalize",
        lambda x: x in ("dataset", "imagenet"),
        "'dataset' or 'imagenet', as generators make normalised images",
    )
    expect(
        config,
        "data_free.methods",
        lambda x: x and set(x) <= set(METHODS) and len(set(x)) == len(x),
        f"some of {tuple(METHODS)}, each once",
    )
    for name in ("batch_size", "latent_dim"):
        expect(config, f"data_free.{name}", lambda x: x > 0, "a positive number")
    for method in METHODS:
        for name in ("num_epochs", "steps_per_epoch", "student_steps"):
            expect(
                config,
                f"data_free.{method}.{name}",
                lambda x: x > 0,
                "a positive number",
            )


def _arm(parts: Parts, method: str, *, on_noise: bool) -> Arm:
    """A method, or the same student on normal noise."""
    config = parts.config
    section = config.data_free[method]
    objectives = METHODS[method](parts, section)
    if on_noise:
        objectives = objectives._replace(generator=None)
    models = Models(
        teacher=parts.teacher.apply,
        student=parts.student.apply,
        generator=_generator(parts, section, on_noise=on_noise),
        student_optimizer=optimizer_fn(section.student),
        generator_optimizer=optimizer_fn(section.generator),
    )
    name = f"{method}_noise" if on_noise else method
    return Arm(
        method=method,
        on_noise=on_noise,
        training=functools.partial(_training, parts, name, section, models, objectives),
        images=functools.partial(_images, models.generator),
        inputs=_inputs(parts, method) | {"on_noise": on_noise},
    )


def _inputs(parts: Parts, method: str) -> dict[str, Any]:
    """What an arm depends on besides the teacher's variables; no real image."""
    config = plain(parts.config)
    common = ("batch_size", "latent_dim", "generator", method)
    return {
        "teacher": parts.teacher.description,
        "image_shape": list(parts.teacher.image_shape),
        "student": {key: config["student"][key] for key in ("model", *SEEN_BY)},
        "seeds": config["seeds"],
        "data_free": {key: config["data_free"][key] for key in common},
    }


def _generator(parts: Parts, section: ConfigDict, *, on_noise: bool) -> Generator:
    """As the teacher normalises its pixels; nothing else is known of the data."""
    known = {key: parts.teacher.description[key] for key in ("mean", "std")}
    shape = parts.teacher.image_shape
    if on_noise:
        return data_free.normal_images(shape, **known)
    arguments: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in parts.config.data_free.generator.items()
    }
    module = generators.create(
        image_shape=shape, norm_epsilon=section.norm_epsilon, **arguments
    )
    latent_dim = parts.config.data_free.latent_dim
    return data_free.from_linen(module, latent_dim=latent_dim, **known)


def _training(
    parts: Parts,
    name: str,
    section: ConfigDict,
    models: Models,
    method: Method,
    teacher_variables: Variables,
) -> Training:
    config = parts.config
    hparams = _hparams(section, method)
    return parts.custom_training(
        key=name,
        name=name,
        train=section,
        seed=config.seed,
        init=functools.partial(_init, parts, models, hparams),
        train_step=data_free.make_train_step(models, method),
        constants=teacher_variables,
        hparams=hparams,
        evaluate=functools.partial(_evaluate, parts),
        loader=NoiseLoader(
            config.seeds,
            (method.num_draws, *models.generator.noise_shape),
            config.data_free.batch_size,
            section.steps_per_epoch,
            place=parts.devices.replicate,
        ),
    )


def _init(parts: Parts, models: Models, hparams: HParams) -> DataFreeState:
    """Students begin as those of the reference; generators have keys of their own."""
    students, makers = [], []
    for seed in parts.config.seeds:
        init_rng, rng = jax.random.split(jax.random.key(seed))
        variables = parts.student.init(init_rng)
        own = data_free.of_role(hparams, "student")
        students.append(steps.init_state(variables, models.student_optimizer, own, rng))
        rng = order.purpose_key(seed, order.Purpose.GENERATOR)
        variables = models.generator.init(rng)
        own = data_free.of_role(hparams, "generator")
        makers.append(steps.init_state(variables, models.generator_optimizer, own, rng))
    return DataFreeState(
        step=jnp.zeros((), jnp.int32),
        student=members.stack(students),
        generator=members.stack(makers),
    )


def _hparams(section: ConfigDict, method: Method) -> dict[str, Any]:
    """Schedules of everything that is a number, over the updates of each role."""
    found: dict[str, Any] = {}
    for role, updates in (("student", method.student_steps), ("generator", 1)):
        train = ConfigDict(
            {
                **plain(section[role]),
                "num_epochs": section.num_epochs,
                "ema_decay": 0.0,
            }
        )
        found |= {
            f"{role}/{name}": schedule
            for name, schedule in optimizer_hparams(
                train, updates * section.steps_per_epoch
            ).items()
        }
        found |= {
            f"{role}/{name}": schedules.Constant(section.weights[name])
            for name in section.weights
        }
    return found


def _evaluate(parts: Parts, state: DataFreeState) -> dict[str, float]:
    """On real images, for the curve alone: by no name that picks a checkpoint."""
    evaluate = split_evaluator(
        parts.predict["student"],
        parts.splits.validation,
        parts.config.student.train.batch_size,
    )
    return {
        f"{name}_seed{seed}": value
        for i, seed in enumerate(parts.config.seeds)
        for name, value in evaluate(members.member(state.student, i)).items()
    }


def _images(generator: Generator, state: DataFreeState) -> np.ndarray:
    first = jax.device_get(members.member(state.generator, 0))
    shape = (NUM_SHOWN, *generator.noise_shape)
    key = order.purpose_key(0, order.Purpose.NOISE)
    variables = {"params": first.params, **first.model_state}
    pixels, _ = generator.apply(variables, jax.random.normal(key, shape), train=False)
    return np.asarray(jnp.clip(jnp.round(pixels), 0, 255).astype(jnp.uint8))
