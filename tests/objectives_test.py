import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import losses
from kdjax.objectives import Term, weighted_sum
from kdjax.types import Outputs


def _soft(student, teacher, batch, values):
    return losses.soft_target_loss(
        student.logits,
        teacher.logits,
        temperature=values["temperature"],
        where=batch["mask"],
    )


def _hard(student, teacher, batch, values):
    return losses.cross_entropy(student.logits, batch["label"], where=batch["mask"])


TERMS = {
    "hard": Term(_hard, lambda values: 1 - values["alpha"]),
    "soft": Term(_soft, lambda values: values["alpha"]),
}


@pytest.fixture
def arguments():
    """Student's and teacher's outputs, a batch with a padded example, values."""
    student, teacher = (
        Outputs(logits=3 * jax.random.normal(key, (4, 7)))
        for key in jax.random.split(jax.random.key(0))
    )
    batch = {
        "label": jnp.array([3, 0, 6, -100]),
        "mask": jnp.array([True, True, True, False]),
    }
    values = {"alpha": jnp.float32(0.9), "temperature": jnp.float32(4.0)}
    return student, teacher, batch, values


def test_every_term_is_reported_and_the_loss_is_their_weighted_sum(arguments):
    reported = weighted_sum(TERMS)(*arguments)
    assert set(reported) == {"hard", "soft", "loss"}
    np.testing.assert_array_equal(reported["hard"], _hard(*arguments))
    np.testing.assert_array_equal(reported["soft"], _soft(*arguments))
    expected = 0.1 * reported["hard"] + 0.9 * reported["soft"]
    np.testing.assert_allclose(reported["loss"], expected, rtol=1e-6)


def test_one_value_per_example_and_zero_for_padding(arguments):
    for values in weighted_sum(TERMS)(*arguments).values():
        assert values.shape == (4,)
        assert values[-1] == 0
        assert np.all(values[:-1] > 0)


def test_weights_are_read_at_every_call(arguments):
    *others, values = arguments
    objective = weighted_sum(TERMS)
    for alpha, name in ((0.0, "hard"), (1.0, "soft")):
        reported = objective(*others, values | {"alpha": jnp.float32(alpha)})
        np.testing.assert_allclose(reported["loss"], reported[name], rtol=1e-6)


def test_a_weight_may_be_a_number(arguments):
    objective = weighted_sum({"soft": Term(_soft, lambda values: 0.5)})
    reported = objective(*arguments)
    np.testing.assert_allclose(reported["loss"], 0.5 * reported["soft"], rtol=1e-6)


def test_the_gradient_is_the_weighted_sum_of_gradients(arguments):
    student, *others = arguments

    def grad(name):
        def total(logits):
            outputs = student.replace(logits=logits)
            return weighted_sum(TERMS)(outputs, *others)[name].sum()

        return jax.grad(total)(student.logits)

    expected = 0.1 * grad("hard") + 0.9 * grad("soft")
    np.testing.assert_allclose(grad("loss"), expected, rtol=1e-4, atol=1e-6)


def test_changed_values_do_not_recompile_and_map_to_single_runs(arguments):
    *others, values = arguments
    objective = weighted_sum(TERMS)
    traces = 0

    @jax.jit
    def loss(values):
        nonlocal traces
        traces += 1
        return objective(*others, values)["loss"]

    rows = [values, {"alpha": jnp.float32(0.3), "temperature": jnp.float32(2.0)}]
    singles = [loss(row) for row in rows]
    assert traces == 1
    stacked = jax.tree.map(lambda *xs: jnp.stack(xs), *rows)
    np.testing.assert_allclose(jax.vmap(loss)(stacked), singles, rtol=1e-5)
    assert np.any(np.abs(singles[0] - singles[1]) > 1e-3)


def test_an_objective_without_terms_is_refused():
    with pytest.raises(ValueError, match="Expected at least one term, got none"):
        weighted_sum({})


def test_a_term_may_not_take_the_name_of_the_total():
    with pytest.raises(
        ValueError, match="may not be named 'loss': that names the total"
    ):
        weighted_sum({"loss": TERMS["soft"]})
