"""What can be said of a config before anything is read or built."""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from kdjax.networks import NORMALIZATIONS
from kdjax.types import UserError

CHOICES = {
    "parallel": ("jit", "pmap"),
    "teacher.source": ("cached", "online"),
    "teacher.normalize": ("dataset", "unit", *NORMALIZATIONS),
    "student.normalize": ("dataset", "unit", *NORMALIZATIONS),
    "teacher.model.dtype": ("float32", "bfloat16"),
    "student.model.dtype": ("float32", "bfloat16"),
    "cache.encoding": ("float32", "float16", "topk"),
    "distill.temperature_schedule": ("constant", "linear", "cosine"),
    "distill.alpha_schedule": ("constant", "linear", "cosine"),
    "published.unit": ("accuracy", "errors"),
    "teacher.train.optimizer.name": ("sgd", "adamw"),
    "student.train.optimizer.name": ("sgd", "adamw"),
    "teacher.train.learning_rate.schedule": ("constant", "cosine", "step"),
    "student.train.learning_rate.schedule": ("constant", "cosine", "step"),
}

POSITIVE = (
    "steps_per_dispatch",
    "log_every_steps",
    "eval_every_epochs",
    "keep_checkpoints",
    "cache.shard_size",
    "cache.top_k",
    "distill.temperature",
    "distill.temperature_final",
    *(
        f"{role}.train.{key}"
        for role in ("teacher", "student")
        for key in ("num_epochs", "batch_size", "num_microbatches")
    ),
)

FRACTIONS = ("distill.alpha", "distill.alpha_final")

NOT_NEGATIVE = (
    "diagnose_every_steps",
    "dataset.max_examples",
    "teacher.resize",
    "student.resize",
    "cache.max_gigabytes",
    "distill.from_epoch",
    *(
        f"{role}.train.{key}"
        for role in ("teacher", "student")
        for key in (
            "num_views",
            "label_smoothing",
            "ema_decay",
            "optimizer.weight_decay",
            "optimizer.clip_norm",
            "optimizer.max_norm",
            "learning_rate.base",
            "learning_rate.warmup_epochs",
            "augment.crop_padding",
            "augment.cutout",
            "augment.jitter",
            "augment.mixup",
        )
    ),
)

# At 1 nothing would be left: of the label, of the new weights.
BELOW_ONE = tuple(
    f"{role}.train.{key}"
    for role in ("teacher", "student")
    for key in ("label_smoothing", "ema_decay", "optimizer.momentum")
)


# Whose weights a recipe makes itself, of random ones.
RANDOM = {
    "assistants": ("teacher", "student"),
    "born_again": ("teacher", "student"),
    "cross_modal": ("teacher", "student"),
    "data_free": ("student",),
    "encoders": ("student",),
    "ensemble": ("teacher",),
    "federated": ("teacher", "student"),
    "lm": ("student",),
    "mutual": ("teacher", "student"),
    "self_distillation": ("teacher", "student"),
    "study_why": ("student",),
    "visual_questions": ("teacher", "student"),
}

# Recipes whose trainings are weighted sums of terms, each with a gradient.
DIAGNOSED = ("offline", "methods", "assistants", "born_again")


def check(config: ConfigDict) -> None:
    """Raises `UserError` on the first value out of its range."""
    for name, choices in CHOICES.items():
        expect(config, name, lambda x, c=choices: x in c, f"one of {choices}")
    for name in POSITIVE:
        expect(config, name, lambda x: x > 0, "a positive number")
    for name in FRACTIONS:
        expect(config, name, lambda x: 0 <= x <= 1, "a number between 0 and 1")
    for name in NOT_NEGATIVE:
        expect(config, name, lambda x: x >= 0, "no negative number")
    for name in BELOW_ONE:
        expect(config, name, lambda x: x < 1, "a number below 1")
    if not config.seeds or len(set(config.seeds)) != len(config.seeds):
        raise UserError(
            f"Expected seeds to be one or more different numbers, got "
            f"{tuple(config.seeds)}: for example (0, 1, 2)."
        )
    if config.diagnose_every_steps and config.recipe not in DIAGNOSED:
        raise UserError(
            f"Expected diagnose_every_steps=0 with the recipe {config.recipe!r}, got "
            f"{config.diagnose_every_steps}: only {', '.join(DIAGNOSED)} have terms "
            "whose gradients can be told apart."
        )
    _check_pretrained(config)
    for role in ("teacher", "student"):
        _check_training(role, config[role].train)


def _check_pretrained(config: ConfigDict) -> None:
    for role in RANDOM.get(config.recipe, ()):
        if config[role].pretrained is not None:
            raise UserError(
                f"Expected no {role}.pretrained with the recipe {config.recipe!r}, "
                f"which begins from random weights, got {config[role].pretrained!r}: "
                "leave it out, or distil with the recipe 'offline'."
            )
    if config.teacher.finetune and config.teacher.pretrained is None:
        raise UserError(
            "Expected teacher.pretrained where teacher.finetune is True, got none: "
            "name the file of weights that the training begins from."
        )


def _check_training(role: str, train: ConfigDict) -> None:
    if train.batch_size % train.num_microbatches:
        raise UserError(
            f"Expected {role}.train.batch_size to divide into "
            f"{role}.train.num_microbatches parts, got {train.batch_size} and "
            f"{train.num_microbatches}: set one to a multiple of the other."
        )
    if train.label_smoothing and train.augment.mixup:
        raise UserError(
            f"Expected {role}.train to smooth labels or to mix them, got "
            f"label_smoothing={train.label_smoothing} and augment.mixup="
            f"{train.augment.mixup}: set one of them to 0."
        )


def expect(config: ConfigDict, name: str, holds: Any, expected: str) -> None:
    """Raises `UserError` unless the value at a dotted name is as expected."""
    value: Any = config
    for key in name.split("."):
        value = value[key]
    try:
        good = holds(value)
    except TypeError:
        good = False
    if not good:
        raise UserError(
            f"Expected {name} to be {expected}, got {value!r}: set it in the config or "
            f"with --config.{name}=..."
        )


def plain(config: Any) -> Any:
    """A config as dictionaries, lists and numbers, for JSON."""
    if isinstance(config, ConfigDict | Mapping):
        return {str(name): plain(config[name]) for name in config}
    if isinstance(config, list | tuple):
        return [plain(x) for x in config]
    return config
