"""Several teachers from a config, and students of some or all of them."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from kdjax import losses, networks, parallel, schedules, steps, teacher_cache
from kdjax.builders._caches import Stored
from kdjax.builders._checks import expect, plain
from kdjax.builders._networks import network, with_model
from kdjax.builders._objectives import (
    Built,
    base_hparams,
    label_objective,
    optimizer_hparams,
)
from kdjax.builders._parts import Parts, assemble
from kdjax.builders._roles import Role
from kdjax.data import sources
from kdjax.objectives import Objective
from kdjax.teacher_cache import Encoding
from kdjax.training import Training, split_evaluator
from kdjax.types import Batch, Outputs, UserError, Values, Variables

FIRST_SEED = 1000  # Of the teachers: no student begins as its teacher did.

WAYS = ("logits", "probs", "losses", "confidence")


@dataclasses.dataclass(frozen=True)
class Teacher:
    """One of the teachers.

    Attributes:
      network: its network.
      training: makes its training.
      inputs: what it depends on; JSON-able.
      manifest: makes its cache's manifest from its variables.
      compute: makes, from its variables, what its cache is filled with.
      predict: its compiled inference.
    """

    network: networks.Network
    training: Callable[[], Training]
    inputs: Mapping[str, Any]
    manifest: Callable[[Variables], teacher_cache.Manifest]
    compute: Callable[[Variables], Callable[[np.ndarray, int], np.ndarray]]
    predict: Callable[[Variables, Any], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Distillation from several teachers, ready to run.

    Attributes:
      splits: train, validation and test.
      devices: where programs run.
      teachers: as many as the largest of `counts`.
      student: the network.
      seeds: one student of each kind for every seed.
      counts: how many teachers students are given, ascending.
      ways: of combining several, out of `WAYS`.
      cached: whether each teacher has a cache, or runs in every step.
      chosen: the teachers of a seed, by how many there are.
      student_training: makes the training of a student, by way, number of teachers and
        seed, from the variables of all teachers, or from all caches.
      baseline_training: that of a student without a teacher.
      inputs: of `student` and `baseline`: what they depend on; JSON-able.
      predict: the student's compiled inference.
      batch_size: of inference.
      published: what the literature reports.
      config: the whole config, for the report.
    """

    splits: sources.Splits
    devices: parallel.Parallel
    teachers: tuple[Teacher, ...]
    student: networks.Network
    seeds: tuple[int, ...]
    counts: tuple[int, ...]
    ways: tuple[str, ...]
    cached: bool
    chosen: Callable[[int, int], tuple[int, ...]]
    student_training: Callable[
        [str, int, int, Sequence[Variables], Sequence[teacher_cache.Cache]], Training
    ]
    baseline_training: Callable[[int], Training]
    inputs: Mapping[str, Mapping[str, Any]]
    predict: Callable[[Variables, Any], np.ndarray]
    batch_size: int
    published: Mapping[str, Any]
    config: Mapping[str, Any]


def build(config: ConfigDict) -> Experiment:
    """Reads a whole config, and raises `UserError` on the first thing wrong with it."""
    parts = assemble(config)
    check(config)
    parts.check()
    counts = tuple(sorted(config.ensemble.counts))
    models = _models(config)
    each = [_parts_of(parts, model) for model in models]
    chosen = functools.partial(_chosen, tuple(config.seeds), counts[-1])
    return Experiment(
        splits=parts.splits,
        devices=parts.devices,
        teachers=tuple(
            _teacher(own, i, model)
            for i, (own, model) in enumerate(zip(each, models, strict=True))
        ),
        student=parts.student,
        seeds=tuple(config.seeds),
        counts=counts,
        ways=tuple(config.ensemble.ways),
        cached=parts.cached,
        chosen=chosen,
        student_training=functools.partial(_student_training, parts, each, chosen),
        baseline_training=parts.baseline_training,
        inputs=parts.inputs(),
        predict=parts.predict["student"],
        batch_size=config.student.train.batch_size,
        published=plain(config.published),
        config=plain(config),
    )


def check(config: ConfigDict) -> None:
    """Raises `UserError` on the first value out of its range."""
    ensemble = config.ensemble
    expect(
        config,
        "ensemble.counts",
        lambda x: x and min(x) >= 1 and len(set(x)) == len(x) and max(x) >= 2,
        "different numbers of teachers, one of them at least 2",
    )
    expect(
        config,
        "ensemble.ways",
        lambda x: x and set(x) <= set(WAYS) and len(set(x)) == len(x),
        f"some of {WAYS}",
    )
    for name in ("weights", "models"):
        if ensemble[name] and len(ensemble[name]) != max(ensemble.counts):
            raise UserError(
                f"Expected ensemble.{name} to have one entry for each of the "
                f"{max(ensemble.counts)} teachers, the largest of ensemble.counts, or "
                f"none, got {len(ensemble[name])}."
            )
    expect(
        config, "ensemble.weights", lambda x: all(w > 0 for w in x), "positive numbers"
    )
    if config.distill.terms or config.distill.from_epoch:
        raise UserError(
            "Expected distill.terms and distill.from_epoch to be unset with several "
            "teachers, of whom a student sees the logits, got "
            f"{', '.join(config.distill.terms) or config.distill.from_epoch}."
        )


def _models(config: ConfigDict) -> list[ConfigDict]:
    """The model of each teacher."""
    named = config.ensemble.models
    return list(named.values()) or [config.teacher.model] * max(config.ensemble.counts)


def _parts_of(parts: Parts, model: ConfigDict) -> Parts:
    """The same experiment with another teacher; equal models share programs."""
    if model == parts.config.teacher.model:
        return parts
    section = with_model(parts.config.teacher, model)
    net = network(section, parts.splits.train, parts.devices)
    predict = parts.devices.predict_program(steps.make_predict_step(net.apply))
    predicts = {**parts.predict, "teacher": predict}
    return dataclasses.replace(parts, teacher=net, predict=predicts, programs={})


def _teacher(parts: Parts, index: int, model: ConfigDict) -> Teacher:
    seed = FIRST_SEED + parts.config.seed + index

    def training() -> Training:
        made = parts.teacher_training(seed)
        return dataclasses.replace(made, name=f"teacher {index}")

    return Teacher(
        network=parts.teacher,
        training=training,
        inputs=parts.inputs()["teacher"]
        | {"model": plain(model), "first_weights": seed},
        manifest=parts.manifest,
        compute=parts.compute,
        predict=parts.predict["teacher"],
    )


def _chosen(
    seeds: tuple[int, ...], num_teachers: int, count: int, seed: int
) -> tuple[int, ...]:
    """Which teachers a student has: those of the next seed begin with the next one.

    So students of one teacher have different ones, and what one owes to the luck of
    its teacher is part of what varies over the seeds.
    """
    first = seeds.index(seed)
    return tuple((first + i) % num_teachers for i in range(count))


def _student_training(
    parts: Parts,
    each: Sequence[Parts],
    chosen: Callable[[int, int], tuple[int, ...]],
    way: str,
    count: int,
    seed: int,
    variables: Sequence[Variables],
    open_caches: Sequence[teacher_cache.Cache],
) -> Training:
    train = parts.config.student.train
    loader = parts.loader(train, seed, _Several(open_caches) if open_caches else None)
    given = plain(parts.config.ensemble.weights) or [1.0] * len(each)
    mine = chosen(count, seed)
    weights = [w if i in mine else 0.0 for i, w in enumerate(given)]
    hparams = _hparams(parts.config, loader.steps_per_epoch, weights)
    if open_caches:
        encodings = [cache.manifest.encoding for cache in open_caches]
        teacher_fn = functools.partial(_read_teachers, encodings)
    else:
        teacher_fn = functools.partial(_run_teachers, [x.teacher.apply for x in each])
    built = Built(_objective(way, train, len(each)), hparams, {})
    start = parts.config.student.pretrained
    role = Role("student", parts.student, train, built, teacher_fn, start=start)
    constants = {} if open_caches else {str(i): x for i, x in enumerate(variables)}
    return parts.custom_training(
        key=f"student of several, {way}",
        name=f"{way} of {count}, seed {seed}",
        train=train,
        seed=seed,
        init=functools.partial(role.init_state, seed, hparams),
        train_step=role.train_step(parts.devices.axis_name),
        constants=constants,
        hparams=hparams,
        evaluate=split_evaluator(
            parts.predict["student"], parts.splits.validation, train.batch_size
        ),
        loader=loader,
    )


def _hparams(
    config: ConfigDict, steps_per_epoch: int, weights: Sequence[float]
) -> dict[str, Any]:
    """Schedules of all numbers; of the weights too: fewer teachers are no new step."""
    train = config.student.train
    num_steps = train.num_epochs * steps_per_epoch
    return {
        **optimizer_hparams(train, steps_per_epoch),
        **base_hparams(config.distill, train, num_steps),
        **{
            f"teacher{i}.weight": schedules.Constant(weight)
            for i, weight in enumerate(weights)
        },
    }


class _Several:
    """Several caches as one, whose arrays have names of their own in a batch."""

    def __init__(self, caches: Sequence[Stored]):
        self._caches = caches

    def read(self, view: int, ids: np.ndarray) -> dict[str, np.ndarray]:
        return _named([cache.read(view, ids) for cache in self._caches])

    def read_all(self) -> dict[str, np.ndarray]:
        return _named([cache.read_all() for cache in self._caches])


def _named(entries: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {
        f"teacher{i}/{name}": array
        for i, of_one in enumerate(entries)
        for name, array in of_one.items()
    }


def _read_teachers(
    encodings: Sequence[Encoding], variables: Variables, batch: Batch, values: Values
) -> Outputs:
    """Logits of all teachers from their caches, `[B, teachers, num_classes]`."""
    del variables
    found = []
    for i, encoding in enumerate(encodings):
        entries = {name: batch[f"teacher{i}/{name}"] for name in encoding.arrays()}
        found.append(encoding.outputs(entries, values["temperature"]).logits)
    return Outputs(logits=jnp.stack(found, axis=1))


def _run_teachers(
    apply_fns: Sequence[Any], variables: Variables, batch: Batch, values: Values
) -> Outputs:
    """The same from the teachers themselves."""
    del values
    found = [
        apply_fn(variables[str(i)], batch["image"], train=False)[0].logits
        for i, apply_fn in enumerate(apply_fns)
    ]
    return Outputs(logits=jnp.stack(found, axis=1))


def _objective(way: str, train: ConfigDict, num_teachers: int) -> Objective:
    r"""Labels and teachers: :math:`\alpha \, \ell + (1 - \alpha) \, \mathrm{CE}`."""
    hard = label_objective(train).objective

    def objective(
        student: Outputs, teacher: Outputs, batch: Batch, values: Values
    ) -> dict[str, jax.Array]:
        terms = hard(student, teacher, batch, values)
        weights = [values[f"teacher{i}.weight"] for i in range(num_teachers)]
        soft = soft_loss(
            way,
            student.logits,
            jnp.moveaxis(teacher.logits, 1, 0),
            batch["label"],
            jnp.stack(weights),
            temperature=values["temperature"],
            where=batch["mask"],
        )
        alpha = values["alpha"]
        loss = alpha * soft + (1 - alpha) * terms["loss"]
        return {**terms, "soft": soft, "loss": loss}

    return objective


def soft_loss(
    way: str,
    student_logits: jax.Array,
    teacher_logits: jax.Array,
    labels: jax.Array,
    weights: jax.Array,
    *,
    temperature: jax.Array,
    where: jax.Array,
) -> jax.Array:
    """A student's divergence from several teachers, `[B]`.

    Args:
      way: `'logits'` or `'probs'`: from the teacher that they are in the mean;
        `'losses'`: in the mean from each; `'confidence'`: the same, each weighted for
        each example by how well it predicts the label.
      student_logits: `[B, num_classes]`.
      teacher_logits: `[teachers, B, num_classes]`.
      labels: `[B]`.
      weights: of the teachers, `[teachers]`.
      temperature: of both sides.
      where: which examples are valid.
    """
    options = {"temperature": temperature, "where": where}
    if way == "logits":
        mean = losses.average_logits(teacher_logits, weights=weights)
        return losses.soft_target_loss(student_logits, mean, **options)
    if way == "probs":
        mean = losses.average_probs(
            teacher_logits, temperature=temperature, weights=weights
        )
        return losses.soft_target_loss(student_logits, mean, **options)
    if way == "confidence":
        confidence = losses.confidence_weights(teacher_logits, labels)
        weights = weights[:, None] * confidence
    return losses.multi_teacher_loss(
        student_logits, teacher_logits, weights=weights, **options
    )
