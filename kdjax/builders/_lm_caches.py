"""What a cache stores of a language model that teaches, and how it is computed."""

import functools
from collections.abc import Callable

import jax
import numpy as np

from kdjax import parallel, sampling
from kdjax import teacher_cache as caches
from kdjax.builders._lm_steps import LanguageModel
from kdjax.types import Variables


def encoding(
    reads: str,
    teacher: LanguageModel,
    length: int,
    *,
    num_draws: int,
    top_k: int,
    dtype: str,
) -> caches.Encoding:
    """Of texts of so many tokens: by what the students read of the teacher."""
    vocabulary = teacher.network.num_classes
    if reads == "draws":
        return caches.DrawnTokens(vocabulary, length, num_draws)
    if reads == "top":
        return caches.TopTokens(vocabulary, length, top_k)
    # Its last states, from which its head makes every logit.
    return caches.Record(0, (("hidden", (length, teacher.dim)),), dtype)


def compute(
    teacher: LanguageModel,
    variables: Variables,
    texts: np.ndarray,
    encoding: caches.Encoding,
    devices: parallel.Parallel,
    *,
    temperature: float,
    seed: int,
) -> Callable[[np.ndarray, int], np.ndarray]:
    """A function from the places of texts and a view to what the encoding takes."""

    @functools.partial(
        jax.jit,
        in_shardings=(None, devices.sharded, devices.sharded),
        out_shardings=devices.replicated,
    )
    def program(variables, tokens, ids):
        if isinstance(encoding, caches.Record):
            states = teacher.states(variables, tokens)
            return states.reshape(len(states), -1)
        logits = teacher.logits(variables, tokens) / temperature
        if isinstance(encoding, caches.TopTokens):
            return encoding.values(logits)
        assert isinstance(encoding, caches.DrawnTokens)
        rngs = sampling.keys(jax.random.key(seed), 0, ids)
        return encoding.words(*jax.vmap(encoding.draw)(logits, rngs))

    variables = devices.replicate(variables)

    def compute(ids: np.ndarray, view: int) -> np.ndarray:
        del view  # There is one.
        return np.asarray(program(variables, *devices.scatter((texts[ids], ids))))

    return compute
