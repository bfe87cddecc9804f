"""Language models from a config: a corpus, its tokens, a teacher and students."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from kdjax import fingerprints, models, networks, parallel, sampling
from kdjax import teacher_cache as caches
from kdjax.builders import _lm_evaluation, _lm_methods
from kdjax.builders._checks import check, expect, plain
from kdjax.builders._lm_steps import LanguageModel, Lesson, OnPolicy, Taid
from kdjax.builders._networks import optimizer_fn
from kdjax.builders._objectives import optimizer_hparams
from kdjax.data import language
from kdjax.models.decoder import DECODERS
from kdjax.schedules import Constant
from kdjax.training import Training
from kdjax.types import UserError, Variables

__all__ = ["METHODS", "Experiment", "build"]

METHODS = {name: method.title for name, method in _lm_methods.METHODS.items()}


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A teacher, and students that learn from it and from text, ready to run.

    Attributes:
      tokenizer: of the `tokenizers` library.
      windows: of each split, `[N, length + 1]`; 'student' is the part of 'train' that
        students see.
      teacher: the large model.
      student: the small one.
      seeds: one student of each method and one baseline each.
      methods: by which students learn.
      reads: what of the teacher each method reads from a cache; those that are not
        here have the teacher run in every step.
      teacher_pretrained: a file to import the teacher from, or `None`.
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
      batch_size: of the teacher pass.
      inputs: by kind of training, what its result depends on; JSON-able.
      config: the whole config, for the report.
    """

    tokenizer: Any
    windows: Mapping[str, np.ndarray]
    teacher: networks.Network
    student: networks.Network
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
    batch_size: int
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
    tokenizer, windows = _read(config)
    made = _Made(config, devices, tokenizer, windows)
    return Experiment(
        tokenizer=tokenizer,
        windows=windows,
        teacher=made.teacher.network,
        student=made.student.network,
        seeds=tuple(config.seeds),
        methods=tuple(config.lm.methods),
        reads=made.reads,
        teacher_pretrained=config.teacher.pretrained,
        teacher_training=made.teacher_training,
        student_training=made.student_training,
        baseline_training=made.baseline_training,
        manifest=made.manifest,
        compute=made.compute,
        evaluate=made.evaluate,
        angles=made.angles,
        complete=made.complete,
        batch_size=config.teacher.train.batch_size,
        inputs=made.inputs(),
        config=plain(config),
    )


def _check(config: ConfigDict) -> None:
    unknown = [name for name in config.lm.methods if name not in METHODS]
    if unknown or not config.lm.methods:
        raise UserError(
            f"Expected lm.methods out of {', '.join(METHODS)}, got "
            f"{', '.join(unknown) or 'none'}."
        )
    expect(config, "parallel", lambda x: x == "jit", "'jit' for language models")
    expect(config, "distill.alpha", lambda x: x > 0, "above 0, a teacher's share")
    for name in ("temperature_schedule", "alpha_schedule"):
        expect(
            config,
            f"distill.{name}",
            lambda x: x == "constant",
            "'constant' for language models",
        )
    for name in ("gkd.share", "gkd.beta", "skew"):
        expect(config, f"lm.{name}", lambda x: 0 <= x <= 1, "from 0 to 1")
    for name in ("length", "chunk_size", "draws", "top_k"):
        expect(config, f"lm.{name}", lambda x: x > 0, "a positive number")
    expect(
        config,
        "lm.gkd.prompt",
        lambda x: 0 < x <= config.lm.length,
        f"from 1 to lm.length={config.lm.length}",
    )


def _read(config: ConfigDict) -> tuple[Any, dict[str, np.ndarray]]:
    """The tokenizer, and the windows of each split and of the students."""
    lm = config.lm
    corpus = language.load(config.dataset.name, config.dataset.path)
    if lm.tokenizer is not None:
        tokenizer = language.read_tokenizer(lm.tokenizer)
    else:
        tokenizer = language.train_tokenizer(corpus.train, lm.vocab_size)
    windows = {}
    for split, limit in (
        ("train", lm.teacher_windows),
        ("validation", lm.eval_windows),
        ("test", lm.eval_windows),
    ):
        text = getattr(corpus, split)
        # A token is at least one character of a byte-level tokenizer's, on average.
        text = text[: 12 * limit * lm.length] if limit else text
        found = language.windows(language.encode(tokenizer, text), lm.length)
        windows[split] = found[:limit] if limit else found
        if not len(found):
            raise UserError(
                f"Expected a corpus with more than lm.length={lm.length} tokens in "
                f"{split}, got {len(text)} characters."
            )
    windows["student"] = windows["train"][: lm.student_windows or None]
    for role, split in (("teacher", "train"), ("student", "student")):
        size = config[role].train.batch_size
        if size > len(windows[split]):
            raise UserError(
                f"Expected {role}.train.batch_size of at most {len(windows[split])}, "
                f"the windows there are, got {size}."
            )
    return tokenizer, windows


def _language_model(config: ConfigDict, tokenizer: Any) -> LanguageModel:
    arguments = {
        name: value
        for name, value in config.model.items()
        if name not in ("name", "dtype")
    }
    size = tokenizer.get_vocab_size()
    module = models.create(
        config.model.name,
        num_classes=size,
        dtype=jnp.dtype(config.model.dtype),
        among=DECODERS,
        **arguments,
    )
    vocabulary = fingerprints.fingerprint_json(tokenizer.get_vocab())
    network = networks.of_tokens(
        module, name=config.model.name, num_classes=size, vocabulary=vocabulary
    )
    return LanguageModel(network, module)


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
        self.teacher = _language_model(config.teacher, tokenizer)
        self.student = _language_model(config.student, tokenizer)
        self.teacher_dim = self.teacher.module.dim
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
        on_cpu = jax.default_backend() == "cpu"
        return Training(
            name=kind if kind == "teacher" else f"{kind} {seed}",
            init=functools.partial(lesson.init_state, seed, hparams, None),
            programs=self._programs[kind],
            loader=loader,
            hparams=hparams,
            constants=self._constants(kind, teacher_variables),
            num_steps=num_steps,
            steps_per_epoch=loader.steps_per_epoch,
            evaluate=functools.partial(self._validation, role),
            parallel=self.devices,
            steps_per_dispatch=1 if on_cpu else config.steps_per_dispatch,
            log_every_steps=config.log_every_steps,
            eval_every_epochs=config.eval_every_epochs,
            checkpoint_every_steps=config.checkpoint_every_steps,
            keep_checkpoints=config.keep_checkpoints,
        )

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
            teacher_dim=self.teacher_dim,
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

    def _encoding(self, reads: str) -> caches.Encoding:
        lm, size = self.config.lm, self.teacher.network.num_classes
        if reads == "draws":
            return caches.DrawnTokens(size, lm.length, lm.draws)
        if reads == "top":
            return caches.TopTokens(size, lm.length, lm.top_k)
        dtype = self.config.cache.encoding
        return _lm_methods.hidden_encoding(lm.length, self.teacher_dim, dtype)

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
        encoding, temperature = self._encoding(reads), self.config.distill.temperature
        windows = self.windows["student"][:, :-1]

        @functools.partial(
            jax.jit,
            in_shardings=(None, self.devices.sharded, self.devices.sharded),
            out_shardings=self.devices.replicated,
        )
        def program(variables, tokens, ids):
            if isinstance(encoding, caches.Record):
                states = self.teacher.states(variables, tokens)
                return states.reshape(len(states), -1)
            logits = self.teacher.logits(variables, tokens) / temperature
            if isinstance(encoding, caches.TopTokens):
                return encoding.values(logits)
            assert isinstance(encoding, caches.DrawnTokens)
            rngs = sampling.keys(jax.random.key(self.config.seed), 0, ids)
            return encoding.words(*jax.vmap(encoding.draw)(logits, rngs))

        variables = self.devices.replicate(variables)

        def compute(ids: np.ndarray, view: int) -> np.ndarray:
            del view  # There is one.
            tokens, ids = self.devices.scatter((windows[ids], ids))
            return np.asarray(program(variables, tokens, ids))

        return compute

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
        common = {
            "tokens": {
                name: fingerprints.fingerprint_tree(self.windows[name])
                for name in ("train", "student")
            },
            "vocabulary": self.teacher.network.description["vocabulary"],
            "seed": config["seed"],
        }
        student = common | config["student"]
        lm = {
            name: config["lm"][name]
            for name in ("draws", "top_k", "skew", "gkd", "taid")
        }
        return {
            "teacher": common | config["teacher"],
            "baseline": student,
            "student": student
            | {"distill": config["distill"], "cache": config["cache"], **lm},
        }
