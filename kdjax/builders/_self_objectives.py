"""What each arm of self-distillation minimises, and the classifiers it ends with."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from kdjax import adapters, features, losses, schedules
from kdjax.builders._objectives import Built, label_objective
from kdjax.networks import Network
from kdjax.objectives import Term, weighted_sum
from kdjax.types import Batch, Outputs, UserError, Values, Variables

Classify = Callable[[Variables, jax.Array], tuple[jax.Array, ...]]


class Given(NamedTuple):
    """What an arm is made from."""

    network: Network
    config: ConfigDict
    steps_per_epoch: int


class Plan(NamedTuple):
    """How an arm is trained and judged.

    Attributes:
      title: for the report.
      sections: the parts of the config that its result depends on.
      built: what it minimises.
      classify: maps variables and images to the logits of each classifier.
      classifiers: their names; the arm is judged by the first.
      averaged: whether a mean teacher learns beside the student.
      few_labels: whether most labels are hidden from it.
      against: the arm that it is compared with.
    """

    title: str
    sections: tuple[str, ...]
    built: Built
    classify: Classify
    classifiers: tuple[str, ...] = ("network",)
    averaged: bool = False
    few_labels: bool = False
    against: str | None = "plain"


def plain(given: Given) -> Plan:
    """Labels alone."""
    built = label_objective(given.config.student.train)
    return Plan("Labels alone", (), built, _network(given.network), against=None)


def label_smoothing(given: Given) -> Plan:
    """Labels with a share of their mass spread over all classes."""
    share = given.config.self_distillation.label_smoothing.share
    built = label_objective(given.config.student.train)
    hparams = {"label_smoothing": schedules.Constant(share)}
    built = built._replace(hparams=hparams)
    return Plan("Label smoothing", ("label_smoothing",), built, _network(given.network))


def virtual_teacher(given: Given) -> Plan:
    r"""Labels, and a made-up teacher's: :math:`(1 - \alpha) \ell_y + \alpha \ell`."""
    section = given.config.self_distillation.virtual_teacher

    def soft(
        student: Outputs, teacher: Outputs, batch: Batch, values: Values
    ) -> jax.Array:
        del teacher
        return losses.virtual_teacher_loss(
            student.logits,
            batch["label"],
            correct_prob=values["correct_prob"],
            temperature=values["temperature"],
            form=section.form,
            where=batch["mask"],
        )

    terms = {
        "hard": Term(_hard, lambda values: 1 - values["alpha"]),
        "virtual": Term(soft, lambda values: values["alpha"]),
    }
    hparams = _constants(section, "alpha", "correct_prob", "temperature")
    built = Built(weighted_sum(terms), hparams, {})
    return Plan("Virtual teacher", ("virtual_teacher",), built, _network(given.network))


def uskd(given: Given) -> Plan:
    """Soft labels made by the student itself, with a weak head for a second opinion."""
    section = given.config.self_distillation.uskd
    described = features.describe(given.network)
    (tap, *others) = features.match(section.features, described.features, "the student")
    if others:
        raise UserError(
            f"Expected self_distillation.uskd.features to name one feature, got "
            f"{', '.join([tap, *others])}."
        )
    names = ("target_weight", "non_target_weight", "weak_weight")

    def loss(
        student: Outputs, teacher: Outputs, batch: Batch, values: Values
    ) -> jax.Array:
        del teacher
        _, weak_logits = student.features["weak"]
        return losses.uskd_loss(
            student.logits,
            weak_logits,
            batch["label"],
            form=section.form,
            where=batch["mask"],
            **{name: values[name] for name in names},
        )

    terms = {"uskd": Term(loss, lambda values: 1.0)}
    head = _exit(described, tap, tap)
    built = Built(weighted_sum(terms), _constants(section, *names), {"weak": head})
    return Plan("USKD", ("uskd",), built, _network(given.network))


def byot(given: Given) -> Plan:
    r"""Exits at several depths; the deepest teaches the others.

    .. math::
      (1 - \alpha) \sum_{i \le K} \mathrm{CE}_i + \alpha \, \ell_\mathrm{BYOT}
      + \beta B \, \ell_\mathrm{features}

    for :math:`B` examples in a batch, over which the published code adds up the last.
    """
    section = given.config.self_distillation.byot
    described = features.describe(given.network)
    *taps, last = features.match(section.features, described.features, "the student")
    if not taps:
        raise UserError(
            "Expected self_distillation.byot.features to name two layers or more, of "
            f"which the last one is the deepest, got {last}."
        )
    exits = {f"exit{i}": _exit(described, tap, last) for i, tap in enumerate(taps, 1)}
    scale = section.feature_weight * given.config.student.train.batch_size
    hparams = _constants(section, "alpha", "temperature")
    hparams["feature_weight"] = schedules.Constant(scale)
    built = Built(_byot_objective(tuple(exits), last), hparams, exits)

    def classify(variables: Variables, images: jax.Array) -> tuple[jax.Array, ...]:
        own, extra = features.split(variables)
        outputs, _ = given.network.apply(own, images, train=False)
        logits = [outputs.logits]
        for (name, adapter), tap in zip(exits.items(), taps, strict=True):
            trained: Any = {key: tree[name] for key, tree in extra.items()}
            layer = outputs.features[tap]
            logits.append(adapter.module.apply(trained, layer, train=False)[1])
        return *logits, losses.average_probs(jnp.stack(logits))

    classifiers = ("deepest", *exits, "ensemble")
    return Plan("Be your own teacher", ("byot",), built, classify, classifiers)


def mean_teacher(given: Given) -> Plan:
    """Labels, and agreement with the average of the student's own past."""
    weight = given.config.self_distillation.mean_teacher.consistency
    return Plan(
        "Mean teacher",
        ("mean_teacher",),
        _consistency(given, weight),
        _pair(given.network, "teacher", "student"),
        ("teacher", "student"),
        averaged=True,
    )


def weight_average(given: Given) -> Plan:
    """Labels alone, the weights averaged: what a mean teacher is without teaching."""
    return mean_teacher(given)._replace(
        title="Labels alone, weights averaged",
        built=_consistency(given, 0.0),
        classify=_pair(given.network, "teacher"),
        classifiers=("average",),
    )


def few_labels(given: Given) -> Plan:
    """The next arm's control: the same batches, without its consistency."""
    return mean_teacher(given)._replace(
        title="Few labels alone",
        sections=("mean_teacher", "few_labels"),
        built=_consistency(given, 0.0),
        classify=_pair(given.network, "student", "teacher"),
        classifiers=("network", "average of its weights"),
        few_labels=True,
        against=None,
    )


def few_labels_mean_teacher(given: Given) -> Plan:
    """A mean teacher, with few labels and many images without."""
    return mean_teacher(given)._replace(
        title="Mean teacher, few labels",
        sections=("mean_teacher", "few_labels"),
        few_labels=True,
        against="few_labels",
    )


ARMS: Mapping[str, Callable[[Given], Plan]] = {
    "plain": plain,
    "label_smoothing": label_smoothing,
    "virtual_teacher": virtual_teacher,
    "uskd": uskd,
    "byot": byot,
    "weight_average": weight_average,
    "mean_teacher": mean_teacher,
    "few_labels": few_labels,
    "few_labels_mean_teacher": few_labels_mean_teacher,
}


def _network(network: Network) -> Classify:
    return lambda variables, images: (_logits(network, variables, images),)


def _pair(network: Network, *names: str) -> Classify:
    """Of a mean teacher's `teacher` and `student`, those named."""

    def classify(variables: Variables, images: jax.Array) -> tuple[jax.Array, ...]:
        return tuple(_logits(network, variables[name], images) for name in names)

    return classify


def _logits(network: Network, variables: Variables, images: jax.Array) -> jax.Array:
    return network.apply(variables, images, train=False)[0].logits


def _constants(section: ConfigDict, *names: str) -> dict[str, Any]:
    return {name: schedules.Constant(section[name]) for name in names}


def _exit(described: Outputs, tap: str, last: str) -> features.Adapter:
    """An exit at layer `tap`, of the shape of layer `last`."""
    shape = described.features[last].shape
    if len(shape) != 4:
        raise UserError(
            f"Expected layers for exits to be maps, got {last} of shape {shape[1:]}."
        )
    module = adapters.Exit(shape[-1], shape[1:3], described.logits.shape[-1])
    return features.Adapter(module, lambda student, *_: (student.features[tap],))


def _byot_objective(exits: tuple[str, ...], last: str) -> Any:
    def exit_logits(student: Outputs) -> jax.Array:
        return jnp.stack([student.features[name][1] for name in exits])

    def hard(
        student: Outputs, teacher: Outputs, batch: Batch, values: Values
    ) -> jax.Array:
        return _hard(student, teacher, batch, values) + sum(
            losses.cross_entropy(logits, batch["label"], where=batch["mask"])
            for logits in exit_logits(student)
        )

    def soft(
        student: Outputs, teacher: Outputs, batch: Batch, values: Values
    ) -> jax.Array:
        del teacher
        return losses.byot_loss(
            exit_logits(student),
            student.logits,
            temperature=values["temperature"],
            where=batch["mask"],
        )

    def hints(
        student: Outputs, teacher: Outputs, batch: Batch, values: Values
    ) -> jax.Array:
        del teacher, values
        of_exits = jnp.stack([student.features[name][0] for name in exits])
        deepest = student.features[last]
        return losses.byot_feature_loss(of_exits, deepest, where=batch["mask"])

    return weighted_sum(
        {
            "hard": Term(hard, lambda values: 1 - values["alpha"]),
            "exits": Term(soft, lambda values: values["alpha"]),
            "features": Term(hints, lambda values: values["feature_weight"]),
        }
    )


def _consistency(given: Given, weight: float) -> Built:
    """The mean teacher's objective; the weight grows over the first epochs."""
    section = given.config.self_distillation.mean_teacher
    warmup_steps = round(section.warmup_epochs * given.steps_per_epoch)

    def hard(
        student: Outputs, teacher: Outputs, batch: Batch, values: Values
    ) -> jax.Array:
        del teacher, values
        known = batch["mask"] & batch["labelled"]
        return losses.cross_entropy(student.logits, batch["label"], where=known)

    def consistency(
        student: Outputs, teacher: Outputs, batch: Batch, values: Values
    ) -> jax.Array:
        del values
        return losses.consistency_loss(
            student.logits, teacher.logits, where=batch["mask"]
        )

    terms = {
        "hard": Term(hard, lambda values: 1.0),
        "consistency": Term(consistency, lambda values: values["consistency_weight"]),
    }
    hparams = {
        "teacher_decay": schedules.Constant(section.decay),
        "consistency_weight": schedules.Step(weight, 1.0, (), warmup_steps),
    }
    return Built(weighted_sum(terms), hparams, {})


def _hard(
    student: Outputs, teacher: Outputs, batch: Batch, values: Values
) -> jax.Array:
    del teacher, values
    return losses.cross_entropy(student.logits, batch["label"], where=batch["mask"])
