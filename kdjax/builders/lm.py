"""Language models from a config: a corpus, its tokens, a teacher and students."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from kdjax import fingerprints, networks, parallel, pretrained
from kdjax import teacher_cache as caches
from kdjax.builders import _lm_caches, _lm_evaluation, _lm_methods
from kdjax.builders._checks import check, plain
from kdjax.builders._export import in_float32
from kdjax.builders._lm_parts import METHODS, check_settings, language_model, read
from kdjax.builders._lm_steps import Lesson, OnPolicy, Taid
from kdjax.builders._networks import optimizer_fn
from kdjax.builders._objectives import optimizer_hparams
from kdjax.builders._starts import digests
from kdjax.data import language
from kdjax.schedules import Constant
from kdjax.training import Training
from kdjax.types import Variables

__all__ = ["METHODS", "Experiment", "build"]


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A teacher, and students that learn from it and from text, ready to run.

    Attributes:
      tokenizer: of the `tokenizers` library.
      windows: of each split, `[N, length + 1]`; 'student' is the part of 'train' that
        students see.
      teacher: the large model.
      student: the small one.
      exported: both as they are exported: in float32.
      seeds: one student of each method and one baseline each.
      methods: by which students learn.
      reads: what of the teacher each method reads from a cache; those that are not
        here have the teacher run in every step.
      teacher_pretrained: a file to import the teacher from as it is, or `None`.
      teacher_training: makes that of the teacher.
      student_training: makes that of a student, from a method, a seed, the teacher's
        variables, and the open cache, where the method reads one.
      baseline_training: makes that of the same student on text alone.
      manifest: makes that of a cache from what it stores and the teacher's variables.
      compute: makes, from the same, the function that the cache is filled with.
      evaluate: from a role, variables and windows to perplexity and more.
      angles: from the student's and the teacher's variables to the angles of the
        gradients of sparse teachers.
      complete: from a role and variables to texts of greedy continuations.
      losses: of `kdjax.losses`, by method.
      batch_size: of the teacher pass.
      inputs: by kind of training, what its result depends on; JSON-able.
      config: the whole config, for the report.
    """

    tokenizer: Any
    windows: Mapping[str, np.ndarray]
    teacher: networks.Network
    student: networks.Network
    exported: Mapping[str, networks.Network]
    seeds: tuple[int, ...]
    methods: tuple[str, ...]
    reads: Mapping[str, str]
    teacher_pretrained: str | None
    teacher_training: Callable[[], Training]
    student_training: Callable[[str, int, Variables, caches.Cache | None], Training]
    baseline_training: Callable[[int], Training]
    manifest: Callable[[str, Variables], caches.Manifest]
    compute: Callable[[str, Variables], Callable[[np.ndarray, int], Any]]
    evaluate: Callable[[str, Variables, np.ndarray], dict[str, float]]
    angles: Callable[[Variables, Variables], dict]
    complete: Callable[[str, Variables], list[str]]
    losses: Mapping[str, Callable[..., jax.Array]]
    batch_size: int
    inputs: Mapping[str, Mapping[str, Any]]
    config: Mapping[str, Any]


def build(config: ConfigDict) -> Experiment:
    """Reads a whole config, and raises `UserError` on the first thing wrong with it."""
    check(config)
    check_settings(config)
    devices = parallel.create(config.parallel)
    for role in ("teacher", "student"):
        devices.check_batch_size(
            f"{role}.train.batch_size", config[role].train.batch_size
        )
    tokenizer, windows = read(config)
    made = _Made(config, devices, tokenizer, windows)
    return Experiment(
        tokenizer=tokenizer,
        windows=windows,
        teacher=made.teacher.network,
        student=made.student.network,
        exported=in_float32(
            {"teacher": made.teacher.network, "student": made.student.network},
            config,
            lambda section: language_model(section, tokenizer).network,
        ),
        seeds=tuple(config.seeds),
        methods=tuple(config.lm.methods),
        reads=made.reads,
        teacher_pretrained=(
            None if config.teacher.finetune else config.teacher.pretrained
        ),
        teacher_training=made.teacher_training,
        student_training=made.student_training,
        baseline_training=made.baseline_training,
        manifest=made.manifest,
        compute=made.compute,
        evaluate=made.evaluate,
        angles=made.angles,
        complete=made.complete,
        losses={name: _lm_methods.METHODS[name].loss for name in config.lm.methods},
        batch_size=config.teacher.train.batch_size,
        inputs=made.inputs(),
        config=plain(config),
    )


class _Made:
    """The models, and trainings of them."""

    def __init__(
        self,
        config: ConfigDict,
        devices: parallel.Parallel,
        tokenizer: Any,
        windows: Mapping[str, np.ndarray],
    ):
        self.config = config
        self.devices = devices
        self.tokenizer = tokenizer
        self.windows = windows
        self.teacher = language_model(config.teacher, tokenizer)
        self.student = language_model(config.student, tokenizer)
        self._programs: dict[str, Any] = {}
        self._evaluators = {
            role: _lm_evaluation.evaluator(
                getattr(self, role), devices, config.student.train.batch_size
            )
            for role in ("teacher", "student")
        }

    @property
    def reads(self) -> dict[str, str]:
        found = {}
        for name in self.config.lm.methods:
            reads = _lm_methods.METHODS[name].reads
            online = self.config.teacher.source == "online" and reads == "hidden"
            if not online and name not in _lm_methods.ON_POLICY:
                found[name] = reads
        return found

    def teacher_training(self) -> Training:
        return self._training("teacher", "teacher", self.config.seed, "train", {})

    def baseline_training(self, seed: int) -> Training:
        return self._training("baseline", "student", seed, "student", {})

    def student_training(
        self,
        method: str,
        seed: int,
        teacher_variables: Variables,
        cache: caches.Cache | None,
    ) -> Training:
        extras = {} if cache is None else cache.read_all()
        extras = {name: x[0] for name, x in extras.items()}  # The one view.
        return self._training(
            method, "student", seed, "student", extras, teacher_variables
        )

    def _training(
        self,
        kind: str,
        role: str,
        seed: int,
        split: str,
        extras: Mapping[str, np.ndarray],
        teacher_variables: Variables | None = None,
    ) -> Training:
        config, train = self.config, self.config[role].train
        loader = language.WindowLoader(
            self.windows[split],
            train.batch_size,
            seed,
            extras=extras,
            place=self.devices.replicate,
        )
        hparams = self._hparams(train, loader.steps_per_epoch)
        num_steps = train.num_epochs * loader.steps_per_epoch
        lesson = self._lesson(kind, role, num_steps)
        if kind not in self._programs:
            self._programs[kind] = self.devices.train_program(
                lesson.train_step, loader.batch, resident=True
            )
        return Training(
            name=kind if kind == "teacher" else f"{kind} {seed}",
            init=lambda: lesson.init_state(seed, hparams, self._begin(role)),
            programs=self._programs[kind],
            loader=loader,
            hparams=hparams,
            constants=self._constants(kind, teacher_variables),
            num_steps=num_steps,
            steps_per_epoch=loader.steps_per_epoch,
            evaluate=functools.partial(self._validation, role),
            parallel=self.devices,
            # Loops cost threads on CPU.
            steps_per_dispatch=(
                1 if jax.default_backend() == "cpu" else config.steps_per_dispatch
            ),
            log_every_steps=config.log_every_steps,
            eval_every_epochs=config.eval_every_epochs,
            checkpoint_every_steps=config.checkpoint_every_steps,
            keep_checkpoints=config.keep_checkpoints,
        )

    def _begin(self, role: str) -> Variables | None:
        """The weights that a training begins with, if they are read from a file."""
        path = self.config[role].pretrained
        if path is None:
            return None
        init = getattr(self, role).network.init
        return pretrained.load(path, jax.eval_shape(init, jax.random.key(0)))

    def _constants(self, kind: str, variables: Variables | None) -> Any:
        """What of the teacher every step reads: all, its head, or nothing."""
        reads = self.reads.get(kind, "teacher")
        if variables is None or reads in ("draws", "top"):
            return {}
        if reads == "teacher":
            return variables
        params = variables["params"]
        return {"params": {x: params[x] for x in ("head", "embed") if x in params}}

    def _lesson(self, kind: str, role: str, num_steps: int) -> Lesson:
        lm, distill = self.config.lm, self.config.distill
        method = _lm_methods.METHODS.get(kind)
        taid = None
        if kind == "taid":
            taid = Taid(**plain(lm.taid), num_steps=num_steps)
        on_policy = None
        if kind in _lm_methods.ON_POLICY:
            on_policy = OnPolicy(lm.gkd.share, lm.gkd.prompt, lm.gkd.temperature)
        online = method is not None and kind not in self.reads
        return Lesson(
            student=getattr(self, role),
            optimizer_fn=optimizer_fn(self.config[role].train),
            method=method,
            teacher=self.teacher if online else None,
            teacher_dim=self.teacher.dim,
            hard=method is None or distill.alpha < 1,
            on_policy=on_policy,
            taid=taid,
            chunk_size=lm.chunk_size,
        )

    def _hparams(self, train: ConfigDict, steps_per_epoch: int) -> dict[str, Any]:
        lm, distill = self.config.lm, self.config.distill
        values = {
            "temperature": distill.temperature,
            "alpha": distill.alpha,
            "skew": lm.skew,
            "beta": lm.gkd.beta,
        }
        constants = {name: Constant(value) for name, value in values.items()}
        return {**optimizer_hparams(train, steps_per_epoch), **constants}

    def _validation(self, role: str, state: Any) -> dict[str, float]:
        found = self.evaluate(
            role, {"params": state.params}, self.windows["validation"]
        )
        return {
            f"validation_{name}": x for name, x in found.items() if name != "accuracy"
        }

    def evaluate(
        self, role: str, variables: Variables, windows: np.ndarray
    ) -> dict[str, float]:
        return self._evaluators[role](variables, windows)

    def manifest(self, reads: str, variables: Variables) -> caches.Manifest:
        return caches.Manifest(
            num_examples=len(self.windows["student"]),
            num_views=1,
            encoding=self._encoding(reads),
            shard_size=self.config.cache.shard_size,
            teacher_fingerprint=fingerprints.fingerprint_tree(variables),
            dataset_fingerprint=fingerprints.fingerprint_tree(self.windows["student"]),
            augmentation={"temperature": float(self.config.distill.temperature)},
            preprocessing=self.teacher.network.description,
            seed=self.config.seed,
        )

    def compute(
        self, reads: str, variables: Variables
    ) -> Callable[[np.ndarray, int], Any]:
        return _lm_caches.compute(
            self.teacher,
            variables,
            self.windows["student"][:, :-1],
            self._encoding(reads),
            self.devices,
            temperature=self.config.distill.temperature,
            seed=self.config.seed,
        )

    def _encoding(self, reads: str) -> caches.Encoding:
        lm = self.config.lm
        return _lm_caches.encoding(
            reads,
            self.teacher,
            lm.length,
            num_draws=lm.draws,
            top_k=lm.top_k,
            dtype=self.config.cache.encoding,
        )

    def angles(self, student_variables: Variables, variables: Variables) -> dict:
        lm = self.config.lm.angles
        measure = _lm_evaluation.angles(
            self.student,
            self.teacher,
            draws=lm.draws,
            top_k=[k for k in lm.top_k if k <= self.teacher.network.num_classes],
            seed=self.config.seed,
        )
        tokens = self.windows["student"][: lm.windows, :-1]
        return measure(student_variables, variables, tokens)

    def complete(self, role: str, variables: Variables) -> list[str]:
        texts = []
        for prompt in self.config.lm.prompts:
            ids = self.tokenizer.encode(prompt, add_special_tokens=False).ids
            found = _lm_evaluation.greedy(
                getattr(self, role), variables, ids, self.config.lm.new_tokens
            )
            texts.append(self.tokenizer.decode(found))
        return texts

    def inputs(self) -> dict[str, Any]:
        """What each kind of training depends on, apart from those before it."""
        config = plain(self.config)

        def common(split: str) -> dict[str, Any]:
            return {
                "tokens": fingerprints.fingerprint_tree(self.windows[split]),
                "vocabulary": self.teacher.network.description["vocabulary"],
                "seed": config["seed"],
            }

        student = common("student") | digests(config["student"])
        lm = {
            name: config["lm"][name]
            for name in ("draws", "top_k", "skew", "gkd", "taid")
        }
        return {
            "teacher": common("train") | digests(config["teacher"]),
            "baseline": student,
            "student": student
            | {"distill": config["distill"], "cache": config["cache"], **lm},
        }
