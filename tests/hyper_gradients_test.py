"""A gradient with respect to a hyperparameter is what finite differences say it is."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from kdjax import (
    hyper_gradients,
    losses,
    networks,
    objectives,
    optimizers,
    schedules,
    steps,
)
from kdjax.hyper_gradients import FRACTION, POSITIVE
from kdjax.types import Outputs

BATCH, CLASSES, SHAPE = 24, 4, (3, 3, 1)
LINKS = {"temperature": POSITIVE, "alpha": FRACTION}
RATES = {
    "hyper/learning_rate": schedules.Constant(0.1),
    "hyper/weight_decay": schedules.Constant(0.0),
    "hyper/b1": schedules.Constant(0.9),
    "hyper/b2": schedules.Constant(0.999),
}


class Net(nn.Module):
    @nn.compact
    def __call__(self, images, *, train):
        x = nn.tanh(nn.Dense(8)(images.reshape(len(images), -1)))
        return Outputs(nn.Dense(CLASSES)(x))


def _network():
    return networks.from_linen(
        Net(),
        name="net",
        image_shape=SHAPE,
        num_classes=CLASSES,
        mean=(0.5,),
        std=(0.3,),
    )


def _batch(seed):
    rng = np.random.default_rng(seed)
    return {
        "image": jnp.asarray(rng.integers(0, 256, (BATCH, *SHAPE), np.uint8)),
        "label": jnp.asarray(rng.integers(0, CLASSES, BATCH, np.int32)),
        "mask": jnp.arange(BATCH) < BATCH - 3,
        "example_id": jnp.arange(BATCH, dtype=jnp.int32),
    }


def _soft(student, teacher, batch, values):
    return losses.soft_target_loss(
        student.logits,
        teacher.logits,
        temperature=values["temperature"],
        where=batch["mask"],
    )


def _hard(student, teacher, batch, values):
    return losses.cross_entropy(student.logits, batch["label"], where=batch["mask"])


HPARAMS = {
    "learning_rate": schedules.Constant(0.5),
    "momentum": schedules.Constant(0.9),
    "weight_decay": schedules.Constant(0.01),
    "temperature": schedules.Constant(3.0),
    "alpha": schedules.Constant(0.3),
}


@functools.cache
def _train_step():
    network = _network()

    def teacher_fn(variables, batch, values):
        return network.apply(variables, batch["image"], train=False)[0]

    objective = objectives.weighted_sum(
        {
            "soft": objectives.Term(_soft, lambda values: values["alpha"]),
            "hard": objectives.Term(_hard, lambda values: 1.0 - values["alpha"]),
        }
    )
    step = steps.make_train_step(network.apply, teacher_fn, objective, optimizers.sgd())
    return jax.jit(step)


@functools.cache
def _state():
    """Of a student that has taken a step: its momentum is not zero."""
    network = _network()
    state = steps.init_state(
        network.init(jax.random.key(1)), optimizers.sgd(), HPARAMS, jax.random.key(2)
    )
    return _train_step()(state, _teacher(), _batch(0), HPARAMS)[0]


@functools.cache
def _teacher():
    sharp = _network().init(jax.random.key(3))
    return jax.tree.map(lambda x: 10 * x, sharp)


def _validation_loss(state, held_out, rng):
    outputs, _ = _network().apply(state.eval_variables, held_out["image"], train=False)
    return jnp.mean(losses.cross_entropy(outputs.logits, held_out["label"]))


def _learner(values=None):
    return hyper_gradients.init(
        _state(),
        values or {"temperature": 3.0, "alpha": 0.3},
        LINKS,
        optimizers.adamw(),
        RATES,
    )


@functools.cache
def _learned():
    """A step of both from `_learner()`."""
    step = hyper_gradients.make_train_step(
        _train_step(), _validation_loss, LINKS, optimizers.adamw()
    )
    return jax.jit(step)(_learner(), _constants(), _batch(1), BOTH)


def _constants():
    return {"teacher": _teacher(), "held_out": _batch(9)}


BOTH = HPARAMS | RATES


def test_the_gradient_through_a_step_is_that_of_finite_differences():
    """Of the distillation step itself, with momentum and decay; in both numbers."""
    train_step, state = _train_step(), _state()
    _, metrics = _learned()

    def loss_after(temperature, alpha):
        values = {"temperature": temperature, "alpha": alpha}
        hparams = {n: schedules.Constant(jnp.float32(x)) for n, x in values.items()}
        after, _ = train_step(state, _teacher(), _batch(1), HPARAMS | hparams)
        return float(_validation_loss(after, _batch(9), None))

    width = 0.1
    by_t = (
        loss_after(3 * np.exp(width), 0.3) - loss_after(3 * np.exp(-width), 0.3)
    ) / (2 * width)
    logit = np.log(0.3 / 0.7)
    up, down = (1 / (1 + np.exp(-logit - x)) for x in (width, -width))
    by_alpha = (loss_after(3.0, up) - loss_after(3.0, down)) / (2 * width)
    assert abs(by_t) > 1e-4
    assert float(metrics["hyper_gradient/temperature"]) == pytest.approx(by_t, rel=0.01)
    assert float(metrics["hyper_gradient/alpha"]) == pytest.approx(by_alpha, rel=0.01)
    assert float(metrics["hyper_loss"]) == pytest.approx(loss_after(3.0, 0.3), rel=1e-5)


def _ridge():
    """Least squares with decay h: a step of gradient descent, and where it rests."""
    rng = np.random.default_rng(0)
    x, y, goal = rng.normal(size=(30, 4)), rng.normal(size=30), rng.normal(size=4)
    hessian, target = x.T @ x / 30, x.T @ y / 30

    def update_fn(w, h):
        grad = jnp.float32(hessian) @ w - jnp.float32(target) + h * w
        return w - 0.3 * grad, None

    def validation_fn(w):
        return 0.5 * jnp.sum((w - jnp.float32(goal)) ** 2)

    def solve(h):
        return np.linalg.solve(hessian + h * np.eye(4), target)

    return update_fn, validation_fn, solve, goal


def test_many_terms_are_the_implicit_gradient():
    r"""At rest w*(h) the sum is -(w* - goal)^T (H + h)^{-1} w*, in closed form."""
    update_fn, validation_fn, solve, goal = _ridge()
    h = 0.5
    rest = solve(h)
    found = hyper_gradients.hyper_gradient(
        update_fn, validation_fn, jnp.float32(rest), jnp.float32(h), num_terms=150
    )
    width = 1e-4
    expected = (
        0.5 * np.sum((solve(h + width) - goal) ** 2)
        - 0.5 * np.sum((solve(h - width) - goal) ** 2)
    ) / (2 * width)
    assert float(found.gradient) == pytest.approx(expected, rel=1e-4)
    np.testing.assert_allclose(found.params, rest, rtol=1e-5)  # It is at rest.


@pytest.mark.parametrize("num_terms", [1, 2, 5])
def test_so_many_terms_are_so_many_unrolled_steps_at_rest(num_terms):
    update_fn, validation_fn, solve, _ = _ridge()
    rest = jnp.float32(solve(0.5))

    def unrolled(h):
        w = rest
        for _ in range(num_terms):
            w, _ = update_fn(w, h)
        return validation_fn(w)

    found = hyper_gradients.hyper_gradient(
        update_fn, validation_fn, rest, jnp.float32(0.5), num_terms=num_terms
    )
    expected = jax.grad(unrolled)(jnp.float32(0.5))
    np.testing.assert_allclose(found.gradient, expected, rtol=1e-4)


def test_no_term_is_refused():
    with pytest.raises(ValueError, match="num_terms to be at least 1, got 0"):
        hyper_gradients.hyper_gradient(
            lambda w, h: (w, None), jnp.sum, jnp.ones(2), jnp.ones(()), num_terms=0
        )


def test_the_student_takes_the_step_that_it_takes_with_the_numbers_fixed():
    state, metrics = _learned()
    expected, fixed = _train_step()(_state(), _teacher(), _batch(1), HPARAMS)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6),
        jax.device_get((state.student.params, state.student.opt_state)),
        jax.device_get((expected.params, expected.opt_state)),
    )
    assert int(state.step) == int(expected.step) == 2
    for name in ("temperature", "alpha", "loss", "soft", "hard"):
        assert float(metrics[name]) == pytest.approx(float(fixed[name]), rel=1e-5)


def test_numbers_go_against_their_gradient_and_only_those_asked_for():
    learner = _learner()
    state, metrics = _learned()
    for name in LINKS:
        move = float(state.hyper[name] - learner.hyper[name])
        # The first step of Adam is as long as its rate, whatever the gradient.
        sign = np.sign(float(metrics[f"hyper_gradient/{name}"]))
        assert move == pytest.approx(-0.1 * sign, rel=1e-3)
    one = {"alpha": FRACTION}
    step = hyper_gradients.make_train_step(
        _train_step(), _validation_loss, one, optimizers.adamw()
    )
    learner = hyper_gradients.init(
        _state(), {"alpha": 0.3}, one, optimizers.adamw(), RATES
    )
    for seed in (1, 2):
        learner, metrics = jax.jit(step)(learner, _constants(), _batch(seed), BOTH)
    assert float(metrics["temperature"]) == 3.0
    assert float(metrics["alpha"]) != pytest.approx(0.3)
    assert set(learner.hyper) == {"alpha"}


@pytest.mark.parametrize(("link", "value"), [(POSITIVE, 3.7), (FRACTION, 0.83)])
def test_links_are_inverse_and_keep_their_range(link, value):
    assert float(link.to_value(link.from_value(jnp.float32(value)))) == pytest.approx(
        value, rel=1e-5
    )
    for x in (-20.0, 0.0, 20.0):
        assert float(link.to_value(jnp.float32(x))) > 0
    assert float(FRACTION.to_value(jnp.float32(20.0))) <= 1


def test_validation_draws_anew_and_from_all_examples():
    network, state = _network(), _state()
    seen = []

    def loss_fn(logits, labels):
        seen.append(labels)
        return jnp.zeros(len(labels))

    validation_fn = hyper_gradients.make_validation_fn(network.apply, loss_fn, 200)
    held_out = {**_batch(0), "label": jnp.arange(BATCH, dtype=jnp.int32)}
    for key in (1, 2):
        validation_fn(state, held_out, jax.random.key(key))
    assert set(np.asarray(seen[0]).tolist()) == set(range(BATCH))
    assert not np.array_equal(seen[0], seen[1])
