"""The text, the tokens and the models of the recipe `lm`, from its config."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from kdjax import fingerprints, models, networks
from kdjax.builders import _lm_methods
from kdjax.builders._checks import expect
from kdjax.builders._lm_steps import LanguageModel
from kdjax.data import language
from kdjax.models.decoder import DECODERS
from kdjax.types import UserError

METHODS = {name: method.title for name, method in _lm_methods.METHODS.items()}


def check_settings(config: ConfigDict) -> None:
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


def read(config: ConfigDict) -> tuple[Any, dict[str, np.ndarray]]:
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


def language_model(config: ConfigDict, tokenizer: Any) -> LanguageModel:
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
