"""Decoders: reading at once is reading bit by bit, and nothing sees what follows."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import models
from kdjax.models import decoder
from kdjax.models.decoder import DECODERS, head_kernel
from kdjax.types import UserError

VOCAB = 31
KINDS = {
    "gpt2": dict(dim=12, depth=2, heads=3, max_length=13),
    "llama": dict(dim=24, depth=2, heads=6, kv_heads=2, mlp_dim=17, tied=False),
}
TOKENS = np.random.default_rng(0).integers(0, VOCAB, (3, 11)).astype(np.int32)


def _create(kind, **changes):
    settings = {**KINDS[kind], **changes}
    return models.create(kind, num_classes=VOCAB, among=DECODERS, **settings)


@functools.cache
def _made(kind):
    model = _create(kind)
    init = jax.jit(functools.partial(model.init, train=False))
    variables = init(jax.random.key(1), {"tokens": jnp.asarray(TOKENS)})
    # As far from its beginning as a trained one: no scale is 1, no bias 0.
    leaves, tree = jax.tree.flatten(variables)
    keys = jax.random.split(jax.random.key(2), len(leaves))
    leaves = [
        x + 0.3 * jax.random.normal(k, x.shape)
        for x, k in zip(leaves, keys, strict=True)
    ]
    return model, jax.tree.unflatten(tree, leaves)


@functools.cache
def _compiled(kind):
    model, variables = _made(kind)
    return jax.jit(functools.partial(model.apply, variables, train=False))


@functools.cache
def _extend(kind):
    model, variables = _made(kind)
    return jax.jit(functools.partial(model.apply, variables, method="extend"))


def _cache(kind, batch_size=3):
    return _made(kind)[0].init_cache(batch_size, 13)


def _read(kind, tokens=TOKENS, mask=None):
    mask = np.ones(tokens.shape, bool) if mask is None else mask
    return _compiled(kind)({"tokens": jnp.asarray(tokens), "mask": jnp.asarray(mask)})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sizes", [[1] * 11, [5, 1, 1, 3, 1]])
def test_incremental_decoding_is_the_full_forward(kind, sizes):
    logits, cache, end = _read(kind).logits, _cache(kind), 0
    for size in sizes:
        last, cache = _extend(kind)(jnp.asarray(TOKENS[:, end : end + size]), cache)
        end += size
        np.testing.assert_allclose(last, logits[:, end - 1], rtol=1e-4, atol=2e-5)
    assert int(cache.length) == 11


@pytest.mark.parametrize("kind", KINDS)
def test_no_logit_depends_on_a_later_token(kind):
    changed = TOKENS.copy()
    changed[:, 6:] = (changed[:, 6:] + 1) % VOCAB
    before, after = _read(kind).logits, _read(kind, changed).logits
    np.testing.assert_array_equal(after[:, :6], before[:, :6])
    assert (np.abs(after[:, 6:] - before[:, 6:]).max(axis=-1) > 1e-3).all()


@pytest.mark.parametrize("kind", KINDS)
def test_padding_before_and_after_a_text_changes_nothing(kind):
    short = _read(kind).logits[:, :5]  # What follows is not seen.
    mask = np.zeros((3, 11), bool)
    mask[:, 4:9] = True
    padded = np.full((3, 11), 7, np.int32)
    padded[:, 4:9] = TOKENS[:, :5]
    found = _read(kind, padded, mask).logits[:, 4:9]
    np.testing.assert_allclose(found, short, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_prompts_of_several_lengths_are_padded_at_their_beginning(kind):
    alone = _read(kind).logits[0, 5]
    prompts = TOKENS[:, :5].copy()
    prompts[0] = np.r_[9, 9, TOKENS[0, :3]]
    mask = np.ones((3, 5), bool)
    mask[0, :2] = False
    extend = _extend(kind)
    _, cache = extend(jnp.asarray(prompts), _cache(kind), jnp.asarray(mask))
    for i in (3, 4, 5):
        last, cache = extend(jnp.asarray(TOKENS[:, i : i + 1]), cache)
    np.testing.assert_allclose(last[0], alone, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_hidden_states_and_head_make_the_logits(kind):
    _, variables = _made(kind)
    outputs = _read(kind)
    logits = outputs.features["hidden"] @ head_kernel(variables)
    np.testing.assert_allclose(logits, outputs.logits, rtol=1e-5, atol=1e-5)
    assert outputs.features["block2"].shape == (3, 11, KINDS[kind]["dim"])


def test_rotary_positions_are_relative():
    """Scores see distances alone: a shift of all tokens changes none."""

    def keys_and_queries(positions):
        angles = decoder._angles(positions[None], 4, 10000.0)
        x = jnp.broadcast_to(jnp.linspace(-1, 2, 4), (1, 5, 2, 4))
        turned = decoder._rotated(x, *angles)
        return jnp.einsum("bqhd,bkhd->bhqk", turned, turned)

    scores = [keys_and_queries(jnp.arange(5) + shift) for shift in (0, 7)]
    np.testing.assert_allclose(scores[1], scores[0], rtol=1e-4, atol=1e-4)
    assert np.abs(scores[0][0, 0, 0] - scores[0][0, 0, 0, 0]).max() > 0.1


def test_bfloat16_is_near_and_logits_are_float32():
    _, variables = _made("llama")
    half = _create("llama", dtype=jnp.bfloat16)
    inputs = {"tokens": jnp.asarray(TOKENS)}
    with jax.numpy_dtype_promotion("standard"):  # For Flax's RMSNorm in bfloat16.
        read = jax.jit(functools.partial(half.apply, train=False))
        logits = read(variables, inputs).logits
    assert logits.dtype == jnp.float32
    full = _read("llama").logits
    assert np.abs(logits - full).max() < 0.05 * np.abs(full).max()


def test_sizes_that_do_not_fit_are_refused():
    def init(model):
        inputs = {"tokens": jnp.asarray(TOKENS)}
        return jax.eval_shape(
            lambda key: model.init(key, inputs, train=False), jax.random.key(0)
        )

    with pytest.raises(ValueError, match=r"divide dim 12.*got 5"):
        init(_create("gpt2", heads=5))
    with pytest.raises(ValueError, match="multiple of kv_heads 4"):
        init(_create("llama", kv_heads=4))
    with pytest.raises(ValueError, match="even dimension"):
        init(_create("llama", dim=18, heads=6))
    with pytest.raises(ValueError, match="at most max_length=10 tokens, got 11"):
        init(_create("gpt2", max_length=10))
    with pytest.raises(UserError, match="did you mean llama"):
        models.create("lama", num_classes=3, among=DECODERS)


def test_smollm2_has_its_published_number_of_parameters():
    model = models.create("smollm2_135m", num_classes=49152, among=DECODERS)
    inputs = {"tokens": jnp.zeros((1, 2), jnp.int32)}
    variables = jax.eval_shape(
        lambda key: model.init(key, inputs, train=False), jax.random.key(0)
    )
    assert sum(x.size for x in jax.tree.leaves(variables)) == 134_515_008
