"""Distilling encoders of texts from a config: TinyBERT, DistilBERT, MiniLM."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from kdjax import features, fingerprints, networks, parallel, pretrained, steps
from kdjax.builders._checks import check, expect, plain
from kdjax.builders._encoder_parts import HEADS, EncoderParts, encoder, read
from kdjax.builders._export import in_float32
from kdjax.builders._layer_maps import MAPS, mapped
from kdjax.builders._starts import digests
from kdjax.builders._trainings import Trainings
from kdjax.data.text import Texts
from kdjax.training import Training
from kdjax.types import UserError, Variables

KEYS = {"title", "layer_map", "without", "teacher", "against", "accept_gain", "note"}


@dataclasses.dataclass(frozen=True)
class Stage:
    """One training of a student, of several in a row.

    Attributes:
      name: `'general'`, `'layers'`, `'prediction'` or `'labels'`.
      inputs: what it depends on, apart from the stages before it; JSON-able.
      training: makes it, from a seed, the student's variables before it, the teacher's
        variables, and the teacher's logits on the train split, if it needs them.
    """

    name: str
    inputs: Mapping[str, Any]
    training: Callable[[int, Variables, Variables, np.ndarray | None], Training]

    @property
    def is_last(self) -> bool:
        """Whether the classifier is trained, so that the student can be judged."""
        return self.name in ("prediction", "labels")


@dataclasses.dataclass(frozen=True)
class Arm:
    """A way of training students.

    Attributes:
      name: by which a config and directories call it.
      title: what the reader calls it.
      stages: its trainings, in their order.
      is_taught: whether it has a teacher, and begins where the general stage ended.
      against: the arm that it is compared with.
      accept_gain: the lowest and highest acceptable mean difference from that.
      note: what to know about it.
    """

    name: str
    title: str
    stages: tuple[Stage, ...]
    is_taught: bool
    against: str | None
    accept_gain: tuple[float | None, float | None] | None
    note: str


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A teacher, and students of every arm and seed, all of them encoders.

    Attributes:
      teacher: the large network.
      student: the small one.
      exported: both as they are exported: in float32.
      tokenizer: of the `tokenizers` library.
      seeds: one student of each arm for every seed.
      arms: ways of training the student.
      test: the split that all are judged on.
      train: the split whose logits a teacher is asked for.
      teacher_pretrained: a file to read the teacher from, or None.
      teacher_training: makes the training of the teacher, of its variables before; None
        where it is used as it was read.
      teacher_start: these variables.
      general: the stage on unlabelled texts before all others, if there is one.
      student_start: of a seed and the teacher's variables, the student's before all.
      predict: from 'teacher' or 'student', variables and texts to logits.
      teacher_inputs: what the teacher depends on; JSON-able.
      main_arm: the one whose share of the teacher's accuracy is told.
      accept_share: the least that it should be.
      facts: sentences for the report.
      config: the whole config, for the report.
    """

    teacher: networks.Network
    student: networks.Network
    exported: Mapping[str, networks.Network]
    tokenizer: Any
    seeds: tuple[int, ...]
    arms: tuple[Arm, ...]
    test: Texts
    train: Texts
    teacher_pretrained: str | None
    teacher_training: Callable[[Variables], Training] | None
    teacher_start: Callable[[], Variables]
    general: Stage | None
    student_start: Callable[[int, Variables], Variables]
    predict: Callable[[str, Variables, Texts], np.ndarray]
    teacher_inputs: Mapping[str, Any]
    main_arm: str
    accept_share: float | None
    facts: tuple[str, ...]
    config: Mapping[str, Any]


def build(config: ConfigDict) -> Experiment:
    """Reads a whole config, and raises `UserError` on the first thing wrong with it."""
    check(config)
    _check(config)
    made = _Made(_assemble(config))
    arms = tuple(made.arm(name) for name in config.encoders.arms)
    parts = made.parts
    finetune = config.teacher.finetune or config.teacher.pretrained is None
    return Experiment(
        teacher=parts.teacher,
        student=parts.student,
        exported=in_float32(
            {"teacher": parts.teacher, "student": parts.student},
            config,
            lambda section: encoder(
                section,
                parts.corpora,
                config.encoders.lengths[-1],
                parts.trainings.devices,
            ),
        ),
        tokenizer=parts.corpora.tokenizer,
        seeds=tuple(config.seeds),
        arms=arms,
        test=parts.corpora.test,
        train=parts.corpora.train,
        teacher_pretrained=config.teacher.pretrained,
        teacher_training=parts.teacher_training if finetune else None,
        teacher_start=made.teacher_start,
        general=made.general(),
        student_start=made.student_start,
        predict=parts.predict,
        teacher_inputs=made.teacher_inputs(),
        main_arm=config.encoders.main_arm,
        accept_share=config.encoders.accept_share,
        facts=made.facts(),
        config=plain(config),
    )


def _check(config: ConfigDict) -> None:
    lengths = tuple(config.encoders.lengths)
    if not lengths or list(lengths) != sorted(set(lengths)) or lengths[0] < 3:
        raise UserError(
            "Expected encoders.lengths to be rising numbers of at least 3 tokens, got "
            f"{lengths}: for example (32, 64, 128)."
        )
    if config.student.pretrained and config.encoders.init_from_teacher:
        raise UserError(
            "Expected students that begin with student.pretrained or with the layers "
            "of their teacher, got both: set encoders.init_from_teacher=False."
        )
    expect(config, "encoders.layer_map", lambda x: x in MAPS, f"one of {MAPS}")
    expect(config, "encoders.vocabulary_size", lambda x: x > 5, "more than 5")
    expect(
        config, "dataset.streaming", lambda x: not x, "False, as texts fit into memory"
    )
    if config.encoders.main_arm not in config.encoders.arms:
        raise UserError(
            "Expected encoders.main_arm to be one of encoders.arms, "
            f"{', '.join(config.encoders.arms) or 'none'}, got "
            f"{config.encoders.main_arm!r}."
        )
    general = config.encoders.general
    if general.train.num_epochs and not (config.encoders.corpus and general.terms):
        raise UserError(
            "Expected encoders.corpus and encoders.general.terms for a general stage "
            f"of {general.train.num_epochs} epochs, got {config.encoders.corpus!r} and "
            f"{len(general.terms)} terms: set both, or general.train.num_epochs=0."
        )
    for name, section in _trained(config).items():
        changed = {k: v for k, v in section.train.augment.items() if v}
        if changed or section.train.num_views:
            raise UserError(
                f"Expected no {name}.augment and num_views=0, as texts are not "
                f"augmented, got {changed} and {section.train.num_views}."
            )


def _trained(config: ConfigDict) -> dict[str, ConfigDict]:
    """The sections that say how something is trained, by the name of what they say."""
    return {
        "teacher.train": config.teacher,
        "student.train": config.student,
        "encoders.general.train": config.encoders.general,
        "encoders.layers.train": config.encoders.layers,
    }


def _assemble(config: ConfigDict) -> EncoderParts:
    devices = parallel.create(config.parallel)
    corpora = read(config)
    longest = config.encoders.lengths[-1]
    nets = {
        role: encoder(config[role], corpora, longest, devices)
        for role in ("teacher", "student")
    }
    predict = {
        role: devices.predict_program(steps.make_predict_step(net.apply))
        for role, net in nets.items()
    }
    for name, section in _trained(config).items():
        size = section.train.batch_size
        if not section.train.num_epochs:
            continue
        devices.check_batch_size(f"{name}.batch_size", size)
        texts = corpora.corpus if name.startswith("encoders.general") else corpora.train
        if size > len(texts):
            raise UserError(
                f"Expected {name}.batch_size of at most {len(texts)}, as many texts as "
                f"there are, got {size}."
            )
    trainings = Trainings(config, devices)
    return EncoderParts(
        config, corpora, nets["teacher"], nets["student"], trainings, predict
    )


class _Made:
    """Stages and arms, out of parts."""

    def __init__(self, parts: EncoderParts):
        self.parts = parts
        self.config = parts.config
        self.known = tuple(
            features.describe(net).features for net in (parts.student, parts.teacher)
        )
        corpora = parts.corpora
        self.data = {
            "dataset": corpora.train.fingerprint(),
            "vocabulary": corpora.vocabulary,
            "lengths": list(self.config.encoders.lengths),
            "parallel": self.config.parallel,
        }

    def teacher_start(self) -> Variables:
        """From its file, with a new classifier if that has none; or from the seed."""
        like = self.parts.teacher.init(jax.random.key(self.config.seed))
        path = self.config.teacher.pretrained
        if path is None:
            return like
        heads = HEADS if self.config.teacher.finetune else ()
        return pretrained.load(path, like, optional=heads)

    def teacher_inputs(self) -> dict[str, Any]:
        """What the teacher depends on."""
        own = digests(plain(self.config.teacher))
        return {**self.data, "seed": self.config.seed, **own}

    def student_start(self, seed: int, teacher: Variables) -> Variables:
        """From its file or its seed; or from its teacher's layers, if asked."""
        start = self.parts.student.init(jax.random.key(seed))
        path = self.config.student.pretrained
        if path is not None:
            return pretrained.load(path, start, optional=HEADS)
        if self.config.encoders.init_from_teacher:
            return self.parts.from_teacher(start, teacher)
        return start

    def general(self) -> Stage | None:
        """On unlabelled texts, if it has any epochs."""
        section = self.config.encoders.general
        if not section.train.num_epochs:
            return None
        which = self.config.encoders.layer_map
        texts = self.parts.corpora.corpus
        return self._stage("general", section.train, section.terms, which, texts)

    def arm(self, name: str) -> Arm:
        """An arm of the config, its stages checked."""
        entry = plain(self.config.encoders.arms[name])
        if unknown := entry.keys() - KEYS:
            raise UserError(
                f"Expected encoders.arms.{name} to set some of "
                f"{', '.join(sorted(KEYS))}, got {', '.join(sorted(unknown))}."
            )
        is_taught = entry.get("teacher", True)
        bounds = entry.get("accept_gain")
        return Arm(
            name=name,
            title=entry.get("title", name),
            stages=self._taught(name, entry) if is_taught else (self._labels(name),),
            is_taught=is_taught,
            against=entry.get("against"),
            accept_gain=None if bounds is None else (bounds[0], bounds[1]),
            note=entry.get("note", ""),
        )

    def _taught(self, name: str, entry: Mapping[str, Any]) -> tuple[Stage, ...]:
        """Layers, then the prediction, less the terms that the arm goes without."""
        section = self.config.encoders
        which = entry.get("layer_map", section.layer_map)
        if which not in MAPS:
            raise UserError(
                f"Expected encoders.arms.{name}.layer_map out of {', '.join(MAPS)}, "
                f"got {which!r}."
            )
        without = {x.strip() for x in entry.get("without", "").split(",") if x.strip()}
        stages, known = [], {*section.layers.terms, *self.config.distill.terms}
        if unknown := without - known:
            raise UserError(
                f"Expected encoders.arms.{name}.without to name some of the terms "
                f"{', '.join(sorted(known))}, got {', '.join(sorted(unknown))}."
            )
        for stage, train, terms in (
            ("layers", section.layers.train, section.layers.terms),
            ("prediction", self.config.student.train, self.config.distill.terms),
        ):
            kept = {k: x for k, x in terms.items() if k not in without}
            if train.num_epochs and (kept or stage == "prediction"):
                texts = self.parts.corpora.train
                stages.append(self._stage(stage, train, kept, which, texts))
        return tuple(stages)

    def _stage(
        self,
        stage: str,
        train: ConfigDict,
        terms: Mapping[str, Any],
        which: str,
        texts: Texts,
    ) -> Stage:
        distill = self.config.distill.copy_and_resolve_references()
        distill.terms = ConfigDict(mapped(terms, which, *self.known))
        if stage != "prediction":  # Neither soft nor hard term.
            distill.from_epoch = float(train.num_epochs)
        self.parts.distillation(distill, train, texts)  # Whatever is wrong shows now.
        key = f"{stage} {fingerprints.fingerprint_json(plain(distill))}"
        use_logits = stage == "prediction" and self.config.teacher.source == "cached"

        def training(
            seed: int, start: Variables, teacher: Variables, logits: np.ndarray | None
        ) -> Training:
            return self.parts.student_training(
                f"{stage} {seed}",
                seed,
                key=key,
                distill=distill,
                train=train,
                texts=texts,
                start=start,
                teacher_variables=teacher,
                teacher_logits=logits if use_logits else None,
            )

        inputs = self._inputs(train) | {
            "distill": plain(distill),
            "source": self.config.teacher.source,
            "texts": texts.fingerprint(),
        }
        return Stage(stage, inputs, training)

    def _labels(self, name: str) -> Stage:
        """Labels alone, for as many epochs as the stages of other arms have."""
        train = self.config.student.train.copy_and_resolve_references()
        train.num_epochs += self.config.encoders.layers.train.num_epochs

        def training(
            seed: int, start: Variables, teacher: Variables, logits: np.ndarray | None
        ) -> Training:
            del teacher, logits
            return self.parts.label_training(f"{name} {seed}", train, seed, start)

        return Stage("labels", self._inputs(train), training)

    def _inputs(self, train: ConfigDict) -> dict[str, Any]:
        student = digests(plain(self.config.student)) | {"train": plain(train)}
        init = self.config.encoders.init_from_teacher
        return {**self.data, "student": student, "init_from_teacher": init}

    def facts(self) -> tuple[str, ...]:
        """How much text there was, and how long."""
        corpora = self.parts.corpora
        return (
            f"{len(corpora.train)} texts to train on, {len(corpora.test)} to test on, "
            f"of {corpora.train.lengths.mean():.1f} tokens on average and at most "
            f"{self.config.encoders.lengths[-1]}; {corpora.vocabulary_size} word "
            "pieces.",
        )
