"""Trainings of a teacher and of students that read texts."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from kdjax import features, models, networks, parallel, steps
from kdjax.builders._layer_maps import depth, teacher_layer
from kdjax.builders._objectives import (
    Built,
    Sides,
    distill_objective,
    label_objective,
    optimizer_hparams,
)
from kdjax.builders._roles import Role, run_teacher
from kdjax.builders._terms import Setting
from kdjax.builders._trainings import Trainings
from kdjax.data import text, text_sources
from kdjax.data.text import Texts
from kdjax.training import Training, scores
from kdjax.types import Batch, Outputs, UserError, Values, Variables

HEADS = ("params/pooler", "params/classifier")  # Made anew where a file lacks them.


@dataclasses.dataclass(frozen=True)
class Corpora:
    """All texts, tokenised.

    Attributes:
      train: with labels.
      validation: with labels; may be empty.
      test: with labels.
      corpus: for the general stage, without labels; may be empty.
      tokenizer: of the `tokenizers` library.
      vocabulary: a digest of what the tokens stand for.
      vocabulary_size: how many there are.
    """

    train: Texts
    validation: Texts
    test: Texts
    corpus: Texts
    tokenizer: Any
    vocabulary: str
    vocabulary_size: int


def read(config: ConfigDict) -> Corpora:
    """All texts of a config, and the tokenizer's vocabulary."""
    section, dataset = config.encoders, config.dataset
    written = text_sources.read(
        dataset.name,
        dataset.path,
        validation=dataset.validation,
        max_examples=dataset.max_examples,
    )
    corpus: tuple[str, ...] = ()
    if section.corpus and section.general.train.num_epochs:
        corpus = text_sources.read_corpus(section.corpus)
    made = text_sources.tokenizer(
        section.tokenizer, (*written.train.texts, *corpus), section.vocabulary_size
    )
    names, longest = written.class_names, section.lengths[-1]
    unlabelled = text_sources.Labelled(corpus, (names[0],) * len(corpus))

    def tokenized(split: text_sources.Labelled) -> Texts:
        return text_sources.tokenize(made, split, names, longest)

    return Corpora(
        train=tokenized(written.train),
        validation=tokenized(written.validation),
        test=tokenized(written.test),
        corpus=tokenized(unlabelled),
        tokenizer=made,
        vocabulary=text_sources.digest(made),
        vocabulary_size=made.get_vocab_size(),
    )


def encoder(
    section: ConfigDict,
    corpora: Corpora,
    longest: int,
    devices: parallel.Parallel,
) -> networks.Network:
    """The model of a `teacher` or `student` section, for these texts."""
    model = dict(section.model)
    name, dtype = model.pop("name"), jnp.dtype(model.pop("dtype"))
    num_classes = len(corpora.train.class_names)
    module: Any = models.create(
        name,
        num_classes=num_classes,
        dtype=dtype,
        axis_name=devices.axis_name,
        among=models.ENCODERS,
        **{"vocab_size": corpora.vocabulary_size, **model},
    )
    if module.max_positions < longest or module.vocab_size < corpora.vocabulary_size:
        raise UserError(
            f"Expected {name!r} to have {longest} positions and "
            f"{corpora.vocabulary_size} tokens, as many as encoders.lengths and the "
            f"tokenizer ask for, got {module.max_positions} and {module.vocab_size}."
        )
    return networks.of_tokens(
        module, name=name, num_classes=num_classes, vocabulary=corpora.vocabulary
    )


def of_texts(train_step: steps.TrainStep) -> steps.TrainStep:
    """A step whose batches have `tokens` and `token_mask` in place of `image`."""

    def step(state, teacher_variables, batch, hparams):
        inputs = text.inputs_of(batch)
        seen: Any = {k: x for k, x in batch.items() if k != "tokens"}
        seen["image"] = inputs
        return train_step(state, teacher_variables, seen, hparams)

    return step


def _read_logits(variables: Variables, batch: Batch, values: Values) -> Outputs:
    del variables, values
    return Outputs(logits=batch["teacher_logits"])


@dataclasses.dataclass(frozen=True)
class EncoderParts:
    """What is built so far; the methods make trainings."""

    config: ConfigDict
    corpora: Corpora
    teacher: networks.Network
    student: networks.Network
    trainings: Trainings
    predict_programs: Mapping[str, Any]

    def predict(self, role: str, variables: Variables, texts: Texts) -> np.ndarray:
        """Logits of the teacher or the student."""
        return text.predict(
            self.predict_programs[role],
            self.trainings.devices.replicate(variables),
            texts,
            self.config.encoders.lengths,
            self.config.student.train.batch_size,
        )

    def teacher_training(self, start: Variables) -> Training:
        """From these variables, on labels."""
        train = self.config.teacher.train
        role = Role("teacher", self.teacher, train, label_objective(train))
        name, seed = "teacher", self.config.seed
        return self._training(role, name, seed, start, self.corpora.train)

    def label_training(
        self, name: str, train: ConfigDict, seed: int, start: Variables
    ) -> Training:
        """A student's, from these variables, on labels alone."""
        role = Role("student", self.student, train, label_objective(train))
        return self._training(role, name, seed, start, self.corpora.train, key="labels")

    def distillation(
        self, distill: ConfigDict, train: ConfigDict, texts: Texts
    ) -> Built:
        """The objective of a stage, on these texts."""
        setting = Setting(train.batch_size, lambda: texts.labels)
        student, teacher = (features.describe(x) for x in (self.student, self.teacher))
        num_steps = train.num_epochs * (len(texts) // train.batch_size)
        return distill_objective(
            distill, train, num_steps, Sides(student, teacher, setting)
        )

    def student_training(
        self,
        name: str,
        seed: int,
        *,
        key: str,
        distill: ConfigDict,
        train: ConfigDict,
        texts: Texts,
        start: Variables,
        teacher_variables: Variables,
        teacher_logits: np.ndarray | None,
    ) -> Training:
        """A stage of a student's; the teacher runs unless its logits are given."""
        built = self.distillation(distill, train, texts)
        teacher_fn: steps.TeacherFn = functools.partial(run_teacher, self.teacher.apply)
        extras = {}
        if teacher_logits is not None and not built.teacher_taps:
            teacher_fn, extras = _read_logits, {"teacher_logits": teacher_logits}
            teacher_variables = {}
        role = Role("student", self.student, train, built, teacher_fn, self.teacher)
        return self._training(
            role, name, seed, start, texts, teacher_variables, extras, key=key
        )

    def _training(
        self,
        role: Role,
        name: str,
        seed: int,
        start: Variables,
        texts: Texts,
        teacher_variables: Variables | None = None,
        extras: Mapping[str, np.ndarray] | None = None,
        *,
        key: str = "",
    ) -> Training:
        devices = self.trainings.devices
        loader = text.TextLoader(
            texts,
            self.config.encoders.lengths,
            role.train.batch_size,
            seed,
            extras=extras,
            place=devices.shard,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        rates = optimizer_hparams(role.train, loader.steps_per_epoch)
        hparams = {**rates, **role.built.hparams}

        def init() -> steps.TrainState:
            return _begin_at(role.init_state(seed, hparams), start)

        network = "teacher" if role.name == "teacher" else "student"
        return self.trainings.make(
            key=key or role.name,
            name=name,
            train=role.train,
            init=init,
            train_step=of_texts(role.train_step(devices.axis_name)),
            constants=teacher_variables or {},
            hparams=hparams,
            evaluate=functools.partial(self._evaluate, network),
            loader=loader,
        )

    def _evaluate(self, role: str, state: steps.TrainState) -> dict[str, float]:
        validation = self.corpora.validation
        if not len(validation):
            return {}
        logits = self.predict(role, state.eval_variables, validation)
        return scores(logits, validation.labels)

    def from_teacher(self, start: Variables, teacher: Variables) -> Variables:
        """The student's variables with the teacher's embeddings and mapped layers.

        Raises:
          UserError: if these have other shapes than the student's.
        """
        names = depth(features.describe(self.student).features)
        of_teacher = depth(features.describe(self.teacher).features)
        params = dict(start["params"])
        for name in params:
            source = name
            if name.startswith("block"):
                layer = int(name.removeprefix("block"))
                which = self.config.encoders.layer_map
                source = f"block{teacher_layer(layer, names, of_teacher, which)}"
            own, given = params[name], teacher["params"].get(source)
            if jax.tree.map(jnp.shape, own) != jax.tree.map(jnp.shape, given):
                raise UserError(
                    "Expected a student of its teacher's dimensions, as "
                    f"encoders.init_from_teacher=True copies layers, but {name!r} "
                    f"differs from the teacher's {source!r}."
                )
            params[name] = given
        return {**start, "params": params}


def _begin_at(state: steps.TrainState, start: Variables) -> steps.TrainState:
    """The state, with a network's variables in place of its own initial ones."""
    # Copies: the first step may donate the buffers.
    own = jax.tree.map(lambda x: jnp.array(x, copy=True), dict(start["params"]))
    params = {**state.params, **own}
    ema = None if state.ema_params is None else jax.tree.map(jnp.copy, params)
    return dataclasses.replace(state, params=params, ema_params=ema)
