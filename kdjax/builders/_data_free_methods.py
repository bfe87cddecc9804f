"""What students and generators minimise, by method of distillation without data."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
from ml_collections import ConfigDict

from kdjax import features, losses
from kdjax.builders._parts import Parts
from kdjax.data_free import Method
from kdjax.objectives import LossFn, Objective, Term, weighted_sum
from kdjax.types import Batch, Outputs, Values


def _dafl(parts: Parts, section: ConfigDict) -> Method:
    """Chen et al. 2019: images that the teacher is sure of, strongly, of all classes.

    Losses and weights in the form of the authors' code, by which the student and the
    generator learn from the same images.
    """
    (layer,) = features.match(
        section.features, features.describe(parts.teacher).features, "the teacher"
    )
    generator = {
        "one_hot": _of_teacher(lambda x: losses.one_hot_loss(x.logits)),
        "activation": _of_teacher(
            lambda x: losses.activation_loss(x.features[layer], form="author_code")
        ),
        "information_entropy": _of_teacher(
            lambda x: losses.information_entropy_loss(x.logits, form="author_code")
        ),
    }
    return Method(
        student=_objective({"soft": _soft}),
        generator=_objective(generator, weighted=True),
        student_steps=section.student_steps,
        same_noise=True,
    )


def _dfad(parts: Parts, section: ConfigDict) -> Method:
    """Fang et al. 2019: images on which student and teacher differ most."""
    del parts
    return Method(
        student=_objective({"difference": _of_logits(losses.dfad_loss)}),
        generator=_objective({"difference": _of_logits(losses.dfad_generator_loss)}),
        student_steps=section.student_steps,
    )


def _zskt(parts: Parts, section: ConfigDict) -> Method:
    """Micaelli and Storkey 2019: the same by KL, and by attention maps if any."""
    taps: list[tuple[str, ...]] = [(), ()]
    if section.features:
        taps = [
            features.match(section.features, features.describe(net).features, side)
            for side, net in (
                ("the student", parts.student),
                ("the teacher", parts.teacher),
            )
        ]

    def student(
        student: Outputs, teacher: Outputs, batch: Batch, values: Values
    ) -> jax.Array:
        del batch
        layers = (
            tuple(side.features[tap] for tap in names)
            for side, names in zip((student, teacher), taps, strict=True)
        )
        weight = values["attention"]
        logits = student.logits, teacher.logits
        return losses.zskt_loss(*logits, *layers, attention_weight=weight)

    return Method(
        student=_objective({"zskt": student}),
        generator=_objective({"zskt": _of_logits(losses.zskt_generator_loss)}),
        student_steps=section.student_steps,
    )


# From the name in a config to the function that makes the method.
METHODS: dict[str, Callable[[Parts, ConfigDict], Method]] = {
    "dafl": _dafl,
    "dfad": _dfad,
    "zskt": _zskt,
}


def _objective(terms: Mapping[str, LossFn], *, weighted: bool = False) -> Objective:
    """The sum of the terms; weighted by the hyperparameters of their names, or by 1."""

    def weight(name: str) -> Callable[[Values], Any]:
        return (lambda values: values[name]) if weighted else (lambda values: 1.0)

    return weighted_sum({name: Term(fn, weight(name)) for name, fn in terms.items()})


def _soft(
    student: Outputs, teacher: Outputs, batch: Batch, values: Values
) -> jax.Array:
    del batch, values
    return losses.soft_target_loss(student.logits, teacher.logits)


def _of_logits(loss_fn: Callable[..., jax.Array]) -> LossFn:
    def fn(
        student: Outputs, teacher: Outputs, batch: Batch, values: Values
    ) -> jax.Array:
        del batch, values
        return loss_fn(student.logits, teacher.logits)

    return fn


def _of_teacher(loss_fn: Callable[[Outputs], jax.Array]) -> LossFn:
    def fn(
        student: Outputs, teacher: Outputs, batch: Batch, values: Values
    ) -> jax.Array:
        del student, batch, values
        return loss_fn(teacher)

    return fn
