"""Language models: who taught what, on whose text, and what a sparse teacher says."""

import functools
import math
import pathlib
import runpy

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import losses, teacher_cache
from kdjax.builders import _lm_evaluation, _lm_steps
from kdjax.builders import lm as builder
from kdjax.recipes import lm
from kdjax.types import UserError

ROOT = pathlib.Path(__file__).parents[2]


def _config(**updates):
    path = ROOT / "configs" / "lm_kd.py"
    config = runpy.run_path(str(path))["get_config"]("smoke")
    for model in (config.teacher, config.student):
        model.train.batch_size = 8
    config.lm.update(
        vocab_size=270, teacher_windows=16, student_windows=16, eval_windows=11
    )
    config.cache.encoding = "float32"
    config.update_from_flattened_dict(updates)
    return config


@pytest.fixture(scope="module")
def experiment():
    return lm.build(_config())


@pytest.fixture(scope="module")
def teacher(experiment):
    """Variables of a teacher that is sure of something."""
    return jax.tree.map(lambda x: 4 * x, experiment.teacher.init(jax.random.key(3)))


@pytest.fixture(scope="module")
def cache(experiment, teacher, tmp_path_factory):
    """Open caches by what they hold."""

    @functools.cache
    def make(reads):
        path = tmp_path_factory.mktemp("cache") / reads
        manifest = experiment.manifest(reads, teacher)
        compute = experiment.compute(reads, teacher)
        teacher_cache.write(path, manifest, compute, batch_size=8)
        return teacher_cache.open(path, manifest)

    return make


def _steps(training, count):
    """The metrics of the first steps, and the state after them."""
    place = training.parallel.replicate
    state, constants, hparams = (
        place(x) for x in (training.init(), training.constants, training.hparams)
    )
    rows = []
    for _, inputs in zip(range(count), training.loader.inputs(0), strict=False):
        state, row = training.programs(1)(state, constants, hparams, inputs)
        rows.append({name: float(x[0]) for name, x in row.items()})
    return rows, state


def test_a_student_of_cached_states_is_one_of_the_teacher_itself(
    experiment, teacher, cache
):
    assert experiment.reads["forward_kl"] == "hidden"
    training = experiment.student_training("forward_kl", 1, teacher, cache("hidden"))
    assert "blocks_0" not in training.constants["params"]  # The head alone.
    online = lm.build(_config(**{"teacher.source": "online"}))
    assert "forward_kl" not in online.reads
    rows, _ = _steps(training, 2)
    expected, _ = _steps(online.student_training("forward_kl", 1, teacher, None), 2)
    for row, other in zip(rows, expected, strict=True):
        np.testing.assert_allclose(row["loss"], other["loss"], rtol=1e-5)
        np.testing.assert_allclose(row["grad_norm"], other["grad_norm"], rtol=1e-4)


def test_the_first_loss_is_the_divergence_over_the_first_batch(
    experiment, teacher, cache
):
    training = experiment.student_training("forward_kl", 1, teacher, cache("hidden"))
    rows, _ = _steps(training, 1)
    inputs = next(training.loader.inputs(0))
    tokens = training.loader.batch(inputs, jnp.asarray(0))["tokens"]
    seen = {"tokens": tokens}
    student = {"params": training.init().params}
    logits = [
        jax.jit(functools.partial(network.apply, train=False))(variables, seen)[
            0
        ].logits
        for network, variables in (
            (experiment.student, student),
            (experiment.teacher, teacher),
        )
    ]
    expected = jnp.mean(losses.forward_kl(*logits))
    np.testing.assert_allclose(rows[0]["loss"], expected, rtol=1e-4)


@pytest.mark.slow
def test_sparse_students_learn_from_what_the_cache_holds(experiment, teacher, cache):
    for method, reads in (("random_sampling", "draws"), ("top_k", "top")):
        training = experiment.student_training(method, 0, teacher, cache(reads))
        assert training.constants == {}  # Of the teacher there is nothing else.
        rows, _ = _steps(training, 1)
        assert math.isfinite(rows[0]["loss"])


def test_draws_belong_to_their_text(experiment, teacher):
    compute = experiment.compute("draws", teacher)
    ids = np.arange(16, dtype=np.int32)
    whole = np.concatenate([compute(ids[:8], 0), compute(ids[8:], 0)])
    shuffled = np.random.default_rng(0).permutation(ids)
    again = np.concatenate([compute(shuffled[:8], 0), compute(shuffled[8:], 0)])
    np.testing.assert_array_equal(again, whole[shuffled])


def _gkd(share):
    config = _config(**{"lm.gkd.share": share, "lm.methods": ("gkd",)})
    return lm.build(config)


@pytest.fixture(scope="module")
def on_policy(teacher):
    return {
        share: _steps(_gkd(share).student_training("gkd", 0, teacher, None), 2)[0]
        for share in (0.0, 1.0)
    }


@pytest.mark.slow
def test_the_share_of_own_text_is_that_of_the_steps(on_policy):
    assert [row["on_policy"] for row in on_policy[0.0]] == [0, 0]
    assert [row["on_policy"] for row in on_policy[1.0]] == [1, 1]
    assert on_policy[0.0][0]["loss"] != on_policy[1.0][0]["loss"]


@pytest.mark.slow
def test_without_own_text_gkd_is_jensen_shannon(on_policy, teacher):
    config = _config(**{"lm.methods": ("jensen_shannon",), "teacher.source": "online"})
    training = lm.build(config).student_training("jensen_shannon", 0, teacher, None)
    for row, other in zip(_steps(training, 2)[0], on_policy[0.0], strict=True):
        np.testing.assert_allclose(row["loss"], other["loss"], rtol=1e-5)


def test_own_text_goes_on_from_the_given_and_counts_after_it(experiment, teacher):
    config = _config(**{"lm.gkd.share": 1.0, "lm.methods": ("gkd",)})
    devices = experiment.baseline_training(0).parallel
    made = builder._Made(config, devices, experiment.tokenizer, experiment.windows)
    lesson = made._lesson("gkd", "student", 2)
    state = lesson.init_state(0, made._hparams(made.config.student.train, 2), None)
    rows = jnp.asarray(experiment.windows["student"][:8])
    batch = {
        "tokens": rows[:, :-1],
        "label": rows[:, 1:],
        "mask": jnp.ones(8, bool),
        "example_id": jnp.arange(8),
    }
    text = jax.jit(lesson._text)(state, batch, {})
    assert bool(text["drawn"])
    np.testing.assert_array_equal(text["tokens"][:, :8], rows[:, :8])
    np.testing.assert_array_equal(text["tokens"][:, 1:], text["label"][:, :-1])
    np.testing.assert_array_equal(text["where"], np.tile(np.arange(16) >= 7, (8, 1)))
    assert (np.asarray(text["label"][:, 7:]) != np.asarray(rows[:, 8:])).any()


TAID = _lm_steps.Taid(start=0.4, end=0.9, rate=0.5, decay=0.5, num_steps=10)


def test_taid_goes_on_where_the_loss_falls():
    """The authors' rule in plain numbers; never below the line, nor beyond the end."""
    values, t, m, before = [4.0, 3.0, 2.9, 5.0, 1.0, 0.5, 0.4, 0.4, 0.4], 0.4, 0.0, None
    state = _lm_steps.TaidState.begin(TAID)
    advance = jax.jit(functools.partial(_lm_steps.advance, TAID))
    seen = []
    for step, loss in enumerate(values):
        state = advance(state, jnp.asarray(step), jnp.asarray(loss, jnp.float32))
        fall = 0.0 if before is None else (before - loss) / before
        m, before = 0.5 * m + 0.5 * fall, loss
        t = t + 0.5 / (1 + math.exp(-m)) * (1 - t)
        t = min(0.9, max(0.4 + 0.5 * (step + 1) / 10, t))
        np.testing.assert_allclose(state.interpolation, t, rtol=1e-5)
        seen.append(t)
    assert seen[0] < 0.9 == seen[-1]


def test_taids_place_is_in_the_state_and_the_model_is_kept_without_it(
    experiment, teacher, cache
):
    config = _config(**{"lm.methods": ("taid",), "lm.taid.rate": 0.1})
    training = lm.build(config).student_training("taid", 0, teacher, cache("hidden"))
    rows, state = _steps(training, 2)
    assert rows[0]["interpolation"] == np.float32(0.4)
    assert rows[1]["interpolation"] > 0.4
    assert state.model_state["taid"].loss == np.float32(rows[1]["soft"])
    assert lm._of(state).keys() == {"params"}


def test_perplexity_and_calibration_are_those_of_the_logits(experiment, teacher):
    windows = experiment.windows["test"]
    assert len(windows) == 11  # No multiple of the batch.
    found = experiment.evaluate("teacher", teacher, windows)
    seen = {"tokens": jnp.asarray(windows[:, :-1])}
    logits = np.asarray(experiment.teacher.apply(teacher, seen, train=False)[0].logits)
    logits, labels = logits.reshape(-1, logits.shape[-1]), windows[:, 1:].ravel()
    probs = np.exp(logits - logits.max(axis=-1, keepdims=True), dtype=np.float64)
    probs /= probs.sum(axis=-1, keepdims=True)
    nll = -np.log(probs[np.arange(len(labels)), labels]).mean()
    np.testing.assert_allclose(found["nll"], nll, rtol=1e-5)
    np.testing.assert_allclose(found["perplexity"], np.exp(nll), rtol=1e-4)
    right = probs.argmax(axis=-1) == labels
    np.testing.assert_allclose(found["accuracy"], 100 * right.mean(), rtol=1e-5)
    bins = np.ceil(probs.max(axis=-1) * 15)
    gaps = [
        abs((right[bins == b] - probs.max(axis=-1)[bins == b]).sum())
        for b in np.unique(bins)
    ]
    np.testing.assert_allclose(found["ece"], 100 * sum(gaps) / len(labels), rtol=1e-4)


def _gradients(loss_fn, targets):
    """Of a loss of logits, and of the cross-entropy with soft labels."""
    logits = jnp.asarray(np.random.default_rng(1).normal(size=(4, 23)), jnp.float32)

    def soft(logits):
        return -jnp.sum(targets(logits) * jax.nn.log_softmax(logits))

    return jax.grad(lambda x: jnp.sum(loss_fn(x)))(logits), jax.grad(soft)(logits)


@pytest.mark.parametrize("with_tail", [False, True])
def test_soft_labels_of_an_angle_have_the_gradient_of_their_loss(with_tail):
    rng = np.random.default_rng(0)
    teacher = jax.nn.log_softmax(jnp.asarray(rng.normal(size=(4, 23)), jnp.float32))
    encoding = teacher_cache.TopTokens(23, 1, k=5)
    top, indices = jax.lax.top_k(teacher, 5)
    rest = jnp.log1p(-jnp.sum(jnp.exp(top), axis=-1))
    tail = rest if with_tail else jnp.full_like(rest, -jnp.inf)
    assert encoding.k == 5

    def targets(logits):
        own = jax.lax.stop_gradient(jax.nn.softmax(logits))
        make = _lm_evaluation._top_k_tail if with_tail else _lm_evaluation._top_k
        return make(jnp.exp(teacher), own, jnp.asarray(5))

    def loss_fn(logits):
        return losses.sparse_top_k_kl(logits, top, indices, tail)

    found, expected = _gradients(loss_fn, targets)
    np.testing.assert_allclose(found, expected, atol=2e-6)


@pytest.mark.slow
def test_draws_turn_the_gradient_less_than_the_likeliest_classes(experiment, teacher):
    student = experiment.student.init(jax.random.key(0))
    found = experiment.angles(student, teacher)
    draws, kept = zip(*found["random_sampling"].values(), strict=True)
    assert draws[0] > draws[-1] > 0  # Fewer draws, the larger angle.
    assert all(n < size for n, size in zip(kept, (4, 8), strict=True))
    assert found["top_k"][4][0] > found["top_k"][12][0]


def test_a_report_says_what_was_accepted():
    def result(nll):
        return {0: {"validation": {"nll": nll}, "test": {"nll": nll}}}

    results = {
        "forward_kl": result(3.0),
        "random_sampling": result(3.004),
        "top_k": result(3.2),
        "top_k_tail": result(3.001),
    }
    whole, top, tail = lm._loss_facts(results)
    assert "+0.0040 nats a token; accepted: at most +0.01: met" in whole
    assert "-0.1960 nats a token; accepted: below 0: met" in top
    assert "+0.0030 nats a token; accepted: below 0: missed" in tail


@pytest.mark.parametrize(
    ("updates", "words"),
    [
        ({"lm.methods": ("forward_kl", "kl")}, "lm.methods out of forward_kl.*got kl"),
        ({"parallel": "pmap"}, "'jit' for language models"),
        ({"lm.gkd.prompt": 17}, "lm.gkd.prompt to be from 1 to lm.length=16"),
        ({"lm.gkd.share": 1.5}, "lm.gkd.share to be from 0 to 1"),
        ({"distill.temperature_schedule": "linear"}, "'constant' for language models"),
        ({"student.train.batch_size": 24}, "student.train.batch_size of at most 16"),
        ({"lm.draws": 0}, "lm.draws to be a positive number"),
    ],
)
def test_mistakes_in_a_config_are_told(updates, words):
    with pytest.raises(UserError, match=words):
        lm.build(_config(**updates))


def test_an_experiment_is_its_inputs(experiment):
    """What a change of the config makes anew, and what it leaves."""
    other = lm.build(_config(**{"lm.skew": 0.2}))
    assert other.inputs["student"] != experiment.inputs["student"]
    for kind in ("teacher", "baseline"):
        assert other.inputs[kind] == experiment.inputs[kind]
    fewer = lm.build(_config(**{"lm.student_windows": 8}))
    assert fewer.inputs["teacher"] == experiment.inputs["teacher"]
    assert fewer.inputs["baseline"] != experiment.inputs["baseline"]
