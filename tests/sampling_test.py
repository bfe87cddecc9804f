"""Sampling: whose key a token has, where a text ends, and what is drawn how often."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import models, sampling
from kdjax.models.decoder import DECODERS

VOCAB = 13
PROMPTS = np.random.default_rng(0).integers(0, VOCAB, (4, 3)).astype(np.int32)


@functools.cache
def _model():
    """A model that is sure enough not to draw alike from every text."""
    model = models.create(
        "llama", num_classes=VOCAB, among=DECODERS, dim=8, heads=2, mlp_dim=9
    )
    init = jax.jit(functools.partial(model.init, train=False))
    variables = init(jax.random.key(0), {"tokens": jnp.asarray(PROMPTS)})
    return model, jax.tree.map(lambda x: 8 * x, variables)


def _sample(prompts=PROMPTS, ids=None, *, step=0, num_tokens=6, **kwargs):
    model, variables = _model()
    ids = np.arange(len(prompts)) if ids is None else np.asarray(ids)
    size = prompts.shape[1] + num_tokens

    @jax.jit
    def run(prompts, rngs):
        cache = model.init_cache(len(prompts), size)
        extend = functools.partial(model.apply, variables, method="extend")
        return sampling.sample(
            extend, cache, prompts, rngs, num_tokens=num_tokens, **kwargs
        )

    rngs = sampling.keys(jax.random.key(5), step, jnp.asarray(ids))
    return jax.tree.map(np.asarray, run(jnp.asarray(prompts), rngs))


def test_without_temperature_the_likeliest_token_follows():
    model, variables = _model()
    read = jax.jit(functools.partial(model.apply, variables, train=False))
    tokens = np.pad(PROMPTS, [(0, 0), (0, 6)])
    for i in range(3, 9):  # What follows is not seen.
        logits = read({"tokens": jnp.asarray(tokens)}).logits[:, i - 1]
        tokens[:, i] = np.argmax(logits, axis=-1)
    np.testing.assert_array_equal(_sample(temperature=0.0).tokens, tokens)
    np.testing.assert_array_equal(_sample(top_k=1).tokens, tokens)


def test_a_token_belongs_to_its_step_and_example_alone():
    whole = _sample().tokens
    np.testing.assert_array_equal(_sample(num_tokens=2).tokens, whole[:, :5])
    alone = _sample(PROMPTS[2:3], [2]).tokens
    np.testing.assert_array_equal(alone, whole[2:3])
    assert (_sample(PROMPTS[2:3], [1]).tokens != alone).any()
    assert (_sample(step=1).tokens != whole).any()


def test_only_what_was_drawn_is_marked():
    found = _sample()
    np.testing.assert_array_equal(found.tokens[:, :3], PROMPTS)
    np.testing.assert_array_equal(found.mask, np.tile(np.arange(9) >= 3, (4, 1)))


def test_a_text_ends_at_its_end():
    free = _sample().tokens
    end = int(free[0, 3])
    assert end  # What follows an end is 0.
    found = _sample(end=end)
    for own, mask, row in zip(found.tokens, found.mask, free, strict=True):
        drawn = row[3:].tolist()
        length = 3 + (drawn.index(end) + 1 if end in drawn else len(drawn))
        np.testing.assert_array_equal(own[:length], row[:length])
        np.testing.assert_array_equal(own[length:], 0)
        np.testing.assert_array_equal(
            mask, (np.arange(9) >= 3) & (np.arange(9) < length)
        )


def test_the_loop_stops_when_all_texts_have_ended():
    calls = []

    def always_two(tokens, cache):
        jax.debug.callback(lambda: calls.append(1))
        return jnp.full((len(tokens), VOCAB), -9.0).at[:, 2].set(9.0), cache

    rngs = sampling.keys(jax.random.key(0), 0, jnp.arange(4))
    found = sampling.sample(
        always_two, (), jnp.asarray(PROMPTS), rngs, num_tokens=50, end=2
    )
    jax.effects_barrier()
    assert found.mask.sum() == 4
    assert len(calls) == 2  # The prompt, and the end.


@pytest.mark.parametrize("top_k", [0, 3])
def test_frequencies_are_the_softened_probabilities(top_k):
    logits = jnp.linspace(-2, 2, VOCAB)
    prompts = jnp.zeros((4000, 1), jnp.int32)
    found = sampling.sample(
        lambda tokens, cache: (jnp.tile(logits, (len(tokens), 1)), cache),
        (),
        prompts,
        sampling.keys(jax.random.key(0), 0, jnp.arange(4000)),
        num_tokens=1,
        temperature=2.0,
        top_k=top_k,
    )
    drawn = np.bincount(found.tokens[:, 1], minlength=VOCAB) / 4000
    kept = np.arange(VOCAB) >= VOCAB - (top_k or VOCAB)
    probs = np.where(kept, np.exp(np.asarray(logits) / 2), 0)
    # Five standard deviations of a frequency.
    np.testing.assert_allclose(drawn, probs / probs.sum(), atol=5 * 0.5 / 4000**0.5)
    assert (drawn[~kept] == 0).all()


def test_nothing_to_draw_is_refused():
    with pytest.raises(ValueError, match="num_tokens of at least 1"):
        _sample(num_tokens=0)
