"""Visual question answering from a config: a teacher sees both, a student the image."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from kdjax import features, fingerprints, networks, parallel, steps
from kdjax.builders._checks import check, plain
from kdjax.builders._networks import network
from kdjax.builders._objectives import (
    Built,
    Sides,
    distill_objective,
    label_objective,
    optimizer_hparams,
)
from kdjax.builders._parts import Parts
from kdjax.builders._roles import Role
from kdjax.builders._terms import Setting
from kdjax.data import augment, loaders, sources
from kdjax.data.questions import QuestionSplit, VisualQuestions, load
from kdjax.models.fusion import Fusion
from kdjax.training import Training, predict_split
from kdjax.types import Batch, Outputs, UserError, Values, Variables


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A teacher that sees image and question, and students that see the image.

    Attributes:
      questions: the data.
      teacher: its input is a pair of images and tokens.
      student: its input are images.
      seeds: one student of each kind for every seed.
      teacher_training: makes that of the teacher.
      student_training: makes that of a student, from a seed and the teacher's logits
        for each image in each view, `[views, images, answers]`.
      baseline_training: makes that of the same student on answers alone.
      num_views: questions that each image is asked in a student's training.
      ask: the teacher's logits, `[images, texts, answers]`, for every question about
        every image of a split.
      look: a student's logits, `[images, answers]`.
      inputs: by kind of training, what its result depends on; JSON-able.
      config: the whole config, for the report.
    """

    questions: VisualQuestions
    teacher: networks.Network
    student: networks.Network
    seeds: tuple[int, ...]
    teacher_training: Callable[[], Training]
    student_training: Callable[[str, int, np.ndarray], Training]
    baseline_training: Callable[[int], Training]
    num_views: int
    ask: Callable[[Variables, QuestionSplit], np.ndarray]
    look: Callable[[Variables, QuestionSplit], np.ndarray]
    inputs: Mapping[str, Mapping[str, Any]]
    config: Mapping[str, Any]


def build(config: ConfigDict) -> Experiment:
    """Reads a whole config, and raises `UserError` on the first thing wrong with it."""
    check(config)
    _check(config)
    devices = parallel.create(config.parallel)
    for role in ("teacher", "student"):
        devices.check_batch_size(
            f"{role}.train.batch_size", config[role].train.batch_size
        )
    questions = load(config.dataset.name, config.dataset.path)
    made = _Made(config, devices, questions)
    made.check()
    return Experiment(
        questions=questions,
        teacher=made.teacher,
        student=made.student,
        seeds=tuple(config.seeds),
        teacher_training=made.teacher_training,
        student_training=made.student_training,
        baseline_training=made.baseline_training,
        num_views=config.student.train.num_epochs,
        ask=made.ask,
        look=made.look,
        inputs=made.inputs(),
        config=plain(config),
    )


def _check(config: ConfigDict) -> None:
    if config.dataset.streaming or config.dataset.validation:
        raise UserError(
            "Expected dataset.streaming=False and dataset.validation=0 for questions "
            f"about images, got {config.dataset.streaming} and "
            f"{config.dataset.validation}."
        )
    if config.distill.terms:
        raise UserError(
            "Expected no distill.terms, as the students read the teacher's logits "
            f"alone, got {', '.join(config.distill.terms)}."
        )
    for role in ("teacher", "student"):
        if config[role].train.augment.mixup:
            raise UserError(
                f"Expected {role}.train.augment.mixup=0, as answers can't be mixed "
                "along with images, got "
                f"{config[role].train.augment.mixup}."
            )


def with_questions(image: networks.Network, fusion: Fusion) -> networks.Network:
    """A network of images and questions, out of one of images that has `pooled`."""

    def init(rng: jax.Array) -> Variables:
        rngs = jax.random.split(rng)
        pooled = jnp.zeros((1, *features.describe(image).features["pooled"].shape[1:]))
        own = fusion.init(rngs[1], pooled, jnp.zeros((1, 1), jnp.int32))
        return _together(image.init(rngs[0]), own)

    def apply(variables, seen, *, train, rng=None):
        images, questions = seen
        own, fused = _apart(variables)
        outputs, state = image.apply(own, images, train=train, rng=rng)
        logits = fusion.apply(fused, outputs.features["pooled"], questions)
        return Outputs(logits, outputs.features), _together(state, {})

    return dataclasses.replace(image, init=init, apply=apply)


def asking(
    image: networks.Network, fusion: Fusion
) -> Callable[[Variables, jax.Array], jax.Array]:
    """A predict step of that network: every image is asked every question.

    It is given `variables` and the tokens of all `questions`, `[texts, length]`, and
    returns logits `[images, texts, answers]`.
    """

    def step(given, images):
        own, fused = _apart(given["variables"])
        outputs, _ = image.apply(own, images, train=False)
        pooled = outputs.features["pooled"]
        return fusion.apply(fused, pooled[:, None], given["questions"][None])

    return step


def _together(image: Variables, fusion: Variables) -> Variables:
    names = [*image, *(name for name in fusion if name not in image)]
    parts = {"image": image, "fusion": fusion}
    return {
        name: {part: tree[name] for part, tree in parts.items() if name in tree}
        for name in names
    }


def _apart(variables: Variables) -> tuple[Variables, Variables]:
    image, fusion = (
        {name: tree[part] for name, tree in variables.items() if part in tree}
        for part in ("image", "fusion")
    )
    return image, fusion


def asked(train_step: steps.TrainStep) -> steps.TrainStep:
    """A step whose labels are answers; its network sees the question if there is one.

    There is none in the batches of students.
    """

    def step(state, constants, batch, hparams):
        seen = batch["image"]
        if "question" in batch:
            seen = seen, batch["question"]
        batch = {**batch, "image": seen, "label": batch["answer"]}
        return train_step(state, constants, batch, hparams)

    return step


def _read_logits(variables: Variables, batch: Batch, values: Values) -> Outputs:
    del variables, values
    return Outputs(logits=batch["teacher_logits"])


class _Made:
    """The networks, and trainings of them."""

    def __init__(
        self, config: ConfigDict, devices: parallel.Parallel, questions: VisualQuestions
    ):
        self.config = config
        self.devices = devices
        self.questions = questions
        images = questions.train.images
        self.student = network(config.student, images, devices)
        image = network(config.teacher, images, devices)
        if "pooled" not in features.describe(image).features:
            raise UserError(
                "Expected a teacher.model with the feature 'pooled', which meets the "
                f"question, got {config.teacher.model.name!r}: use a convolutional one."
            )
        fusion = Fusion(
            image.num_classes, len(questions.vocabulary), config.visual_questions.dim
        )
        self.teacher = with_questions(image, fusion)
        self._asking = devices.predict_program(asking(image, fusion))
        self._looking = devices.predict_program(
            steps.make_predict_step(self.student.apply)
        )
        splits = sources.Splits(
            images, images.subset(np.arange(0)), questions.test.images
        )
        self.parts = Parts(config, devices, splits, self.teacher, self.student, {})

    def check(self) -> None:
        """Finds mistakes before the first stage."""
        for role in ("teacher", "student"):
            self._loader(self.config[role].train, 0, {})

    def teacher_training(self) -> Training:
        train = self.config.teacher.train
        role = Role("teacher", self.teacher, train, label_objective(train))
        pairs = self.questions.train.asked(train.num_epochs)
        ids = self.questions.train.question_ids[pairs]
        extras = {"question": self.questions.questions[ids]}
        return self._training(role, "teacher", self.config.seed, extras)

    def baseline_training(self, seed: int) -> Training:
        train = self.config.student.train
        role = Role("baseline", self.student, train, label_objective(train))
        return self._training(role, f"baseline {seed}", seed, {})

    def student_training(
        self, name: str, seed: int, teacher_logits: np.ndarray
    ) -> Training:
        train = self.config.student.train
        built = self._distillation(train)
        role = Role("student", self.student, train, built, _read_logits)
        extras = {"teacher_logits": teacher_logits}
        return self._training(role, f"{name} {seed}", seed, extras)

    def _distillation(self, train: ConfigDict) -> Built:
        student = features.describe(self.student)
        labels = functools.partial(sources.labels, self.questions.train.images)
        sides = Sides(student, student, Setting(train.batch_size, labels))
        num_steps = train.num_epochs * (
            len(self.questions.train.images) // train.batch_size
        )
        return distill_objective(self.config.distill, train, num_steps, sides)

    def _training(
        self,
        role: Role,
        name: str,
        seed: int,
        extras: Mapping[str, np.ndarray],
    ) -> Training:
        loader = self._loader(role.train, seed, extras)
        rates = optimizer_hparams(role.train, loader.steps_per_epoch)
        hparams = {**rates, **role.built.hparams}
        train_step = role.train_step(self.devices.axis_name)
        return self.parts.custom_training(
            key=role.name,
            name=name,
            train=role.train,
            seed=seed,
            init=functools.partial(role.init_state, seed, hparams),
            train_step=asked(train_step),
            constants={},
            hparams=hparams,
            evaluate=lambda state: {},
            loader=loader,
        )

    def _loader(
        self, train: ConfigDict, seed: int, extras: Mapping[str, np.ndarray]
    ) -> loaders.ResidentLoader:
        split = self.questions.train
        if train.batch_size > len(split.images):
            raise UserError(
                f"Expected a batch of at most {len(split.images)} images, as many as "
                f"the train split has, got batch_size={train.batch_size}."
            )
        answers = split.answers[split.asked(train.num_epochs)]
        return loaders.ResidentLoader(
            split.images,
            augment.Augmentation(
                seed=self.config.seed,
                num_examples=len(split.images),
                num_classes=split.images.num_classes,
                **plain(train.augment),
            ),
            train.batch_size,
            train.num_epochs,
            seed,
            extras={"answer": answers, **extras},
            place=self.devices.replicate,
        )

    def ask(self, variables: Variables, split: QuestionSplit) -> np.ndarray:
        given = {"variables": variables, "questions": self.questions.questions}
        return self._predict(self._asking, given, split)

    def look(self, variables: Variables, split: QuestionSplit) -> np.ndarray:
        return self._predict(self._looking, variables, split)

    def _predict(self, program: Any, variables: Any, split: QuestionSplit) -> Any:
        size = self.config.student.train.batch_size
        variables = self.devices.replicate(variables)
        return predict_split(program, variables, split.images, size)[0]

    def inputs(self) -> dict[str, Any]:
        """What each kind of training depends on, apart from those before it."""
        split, inputs = self.questions.train, self.parts.inputs()
        pairs = split.question_ids, split.answers, split.image_ids
        asked = {
            "questions": fingerprints.fingerprint_tree(
                (self.questions.questions, *pairs)
            )
        }
        return {
            "teacher": inputs["teacher"] | asked | plain(self.config.visual_questions),
            "student": inputs["student"] | asked,
            "baseline": inputs["baseline"] | asked,
        }
