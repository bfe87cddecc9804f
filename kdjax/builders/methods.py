"""Many methods of distilling, one after the other, on one pair of networks."""

import dataclasses
import difflib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from kdjax import builders, features
from kdjax import teacher_cache as caches
from kdjax.adapters import classify
from kdjax.builders._checks import plain
from kdjax.builders._parts import Parts, assemble
from kdjax.data import sources
from kdjax.models import layers_of
from kdjax.steps import TrainState
from kdjax.training import Training, predict_split, scores
from kdjax.types import UserError, Variables

KEYS = {"title", "distill", "published", "note", "classifier"}

LogitsFn = Callable[
    [TrainState, Variables, sources.Source], tuple[np.ndarray, np.ndarray]
]
"""Logits and labels of a split, from a state and the teacher's variables."""


@dataclasses.dataclass(frozen=True)
class Method:
    """One way to train the student from the teacher.

    Attributes:
      name: in the config, and of its directory.
      title: for the reader.
      note: what to know about it.
      published: the accuracy that the literature reports, in %, if any.
      cached: whether it reads the teacher's logits from the cache, or the teacher
        runs in every step.
      inputs: what its result depends on, besides the teacher's variables.
      training: makes the training of a seed, from the teacher's variables and the open
        cache, if it is cached.
      variables: what of a state is kept.
      test: logits and labels of the test split, from a state and the teacher's
        variables.
    """

    name: str
    title: str
    note: str
    published: float | None
    cached: bool
    inputs: Mapping[str, Any]
    training: Callable[[int, Variables, caches.Cache | None], Training]
    variables: Callable[[TrainState], Variables]
    test: Callable[[TrainState, Variables], tuple[np.ndarray, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Experiment:
    """All methods of a table, and the same student without a teacher.

    Attributes:
      base: teacher, cache and baseline, as for one method.
      methods: all of the table, for the report.
      wanted: the names of those to train.
      test: logits and labels of the test split, from a state of the baseline.
    """

    base: builders.Experiment
    methods: tuple[Method, ...]
    wanted: tuple[str, ...]
    test: Callable[[TrainState], tuple[np.ndarray, np.ndarray]]


def build(config: ConfigDict) -> Experiment:
    """Reads a whole config, and raises `UserError` on the first thing wrong with it."""
    parts = assemble(config)
    section = config.methods
    if not section.table or section.of_epochs <= 0:
        raise UserError(
            "Expected methods.table with at least one method and a positive "
            f"methods.of_epochs, got {len(section.table)} and {section.of_epochs}."
        )
    logits = _logits(parts)
    return Experiment(
        base=builders.experiment(parts),
        methods=tuple(_method(parts, name) for name in section.table),
        wanted=_wanted(section),
        test=lambda state: logits(state, {}, parts.splits.test),
    )


def _wanted(section: ConfigDict) -> tuple[str, ...]:
    """The names in `methods.only`, in the order of the table."""
    asked = [name.strip() for name in section.only.split(",") if name.strip()]
    for name in asked:
        if name not in section.table:
            near = difflib.get_close_matches(name, list(section.table), cutoff=0.4)
            hint = f" Did you mean {' or '.join(near)}?" if near else ""
            raise UserError(
                f"Expected methods.only out of {', '.join(section.table)}, got "
                f"{name!r}.{hint}"
            )
    return tuple(name for name in section.table if name in asked or not asked)


def _method(parts: Parts, name: str) -> Method:
    entry = plain(parts.config.methods.table[name])
    if unknown := entry.keys() - KEYS:
        raise UserError(
            f"Expected methods.table.{name} to set some of {', '.join(sorted(KEYS))}, "
            f"got {', '.join(sorted(unknown))}."
        )
    parts = _with_objective(parts, entry.get("distill", {}))
    parts.check()
    reuse = entry.get("classifier", "student") == "teacher"
    logits = _reused_logits(parts, name) if reuse else _logits(parts)

    def training(
        seed: int, teacher_variables: Variables, cache: caches.Cache | None
    ) -> Training:
        made = parts.student_training(seed, teacher_variables, cache)

        def evaluate(state: TrainState) -> dict[str, float]:
            if not len(parts.splits.validation):
                return {}
            return scores(*logits(state, teacher_variables, parts.splits.validation))

        return dataclasses.replace(made, name=f"{name} {seed}", evaluate=evaluate)

    return Method(
        name=name,
        title=entry.get("title", name),
        note=entry.get("note", ""),
        published=entry.get("published"),
        cached=parts.cached,
        inputs=parts.inputs()["student"] | {"source": parts.config.teacher.source},
        training=training,
        variables=_all_variables if reuse else lambda state: state.eval_variables,
        test=lambda state, teacher: logits(state, teacher, parts.splits.test),
    )


def _with_objective(parts: Parts, distill: Mapping[str, Any]) -> Parts:
    """The same data and networks for another `distill` section; its own programs.

    Teachers whose features are read run online: the one cache holds logits.
    """
    config = parts.config.copy_and_resolve_references()
    config.distill.terms.unlock()  # Not the rest: what is no key is a mistake.
    share = config.student.train.num_epochs / config.methods.of_epochs
    try:
        config.distill.update(_scaled(distill, share))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        text = " ".join(str(error).split())
        raise UserError(
            f"Expected methods.table to change config.distill, got {distill}: {text}"
        ) from error
    made = dataclasses.replace(parts, config=config, programs={})
    if made.reads_features:
        config.teacher.source = "online"
    return made


def _scaled(settings: Any, share: float) -> Any:
    """The settings, with all that are in epochs multiplied by `share`."""
    if not isinstance(settings, Mapping):
        return settings
    return {
        key: value * share
        if key.endswith(("epoch", "epochs"))
        else _scaled(value, share)
        for key, value in settings.items()
    }


def _logits(parts: Parts) -> LogitsFn:
    """By the student's own classifier."""

    def logits(state, teacher_variables, source):
        del teacher_variables
        size = parts.config.student.train.batch_size
        return predict_split(
            parts.predict["student"], state.eval_variables, source, size
        )

    return logits


def _reused_logits(parts: Parts, name: str) -> LogitsFn:
    """By the teacher's classifier, of what the method's one adapter makes: SimKD."""
    adapters = parts.adapters()
    if len(adapters) != 1:
        raise UserError(
            f"Expected methods.table.{name} to have one adapter, from whose output the "
            f"teacher's classifier predicts, got {len(adapters)}: "
            f"{', '.join(adapters) or 'none'}."
        )
    ((key, adapter),) = adapters.items()

    @parts.devices.predict_program
    def predict(variables, images):
        own, extra = features.split(variables["student"])
        student, _ = parts.student.apply(own, images, train=False)
        inputs = adapter.inputs(student, student, {}, {})
        made: Any = adapter.module.apply(
            {collection: tree[key] for collection, tree in extra.items()},
            *inputs,
            train=False,
        )
        return classify(made, *layers_of.classifier(variables["teacher"]))

    def logits(state, teacher_variables, source):
        variables = {"student": _all_variables(state), "teacher": teacher_variables}
        size = parts.config.student.train.batch_size
        return predict_split(predict, variables, source, size)

    return logits


def _all_variables(state: TrainState) -> Variables:
    """Of the student and of its adapters."""
    params = state.params if state.ema_params is None else state.ema_params
    return {"params": params, **state.model_state}
