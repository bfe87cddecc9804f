import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import schedules

SCHEDULES = {
    "constant": schedules.Constant(4.0),
    "linear": schedules.Linear(start=8.0, end=2.0, num_steps=100.0),
    "step": schedules.Step(
        base=0.1, decay_factor=0.2, decay_steps=(30.0, 60.0), warmup_steps=5.0
    ),
    "cosine": schedules.Cosine(base=0.1, final=0.01, num_steps=100.0, warmup_steps=5.0),
    "between": schedules.Between(0.5, first_step=4.0, end_step=60.0, warmup_steps=5.0),
}
STEPS = jnp.array([0, 1, 4, 5, 29, 30, 31, 52, 60, 99, 100, 101, 1000])


@pytest.fixture(params=SCHEDULES.values(), ids=SCHEDULES.keys())
def schedule(request):
    return request.param


def _values(schedule):
    return np.array([schedule(step) for step in STEPS])


def _scaled(schedule, factor):
    return jax.tree.map(lambda x: factor * x, schedule)


def test_a_constant_is_constant():
    np.testing.assert_array_equal(_values(schedules.Constant(4.0)), 4.0)


def test_a_line_has_its_ends_and_its_middle_and_stays():
    line = schedules.Linear(start=8.0, end=2.0, num_steps=100)
    values = [float(line(step)) for step in (-1, 0, 50, 100, 1000)]
    assert values == [8.0, 8.0, 5.0, 2.0, 2.0]


def test_a_line_of_no_length_is_at_its_end_after_one_step():
    line = schedules.Linear(start=8.0, end=2.0, num_steps=0)
    assert [float(line(step)) for step in (0, 1)] == [8.0, 2.0]


def test_steps_decay_at_each_boundary_and_not_before():
    rate = schedules.Step(base=0.1, decay_factor=0.1, decay_steps=(150, 180, 210))
    steps = (0, 149, 150, 179, 180, 209, 210, 10_000)
    actual = [rate(step) for step in steps]
    expected = [0.1, 0.1, 0.01, 0.01, 1e-3, 1e-3, 1e-4, 1e-4]
    np.testing.assert_allclose(actual, expected, rtol=1e-6)


def test_without_boundaries_steps_are_constant():
    rate = schedules.Step(base=0.1, decay_factor=0.1, decay_steps=())
    np.testing.assert_allclose(_values(rate), 0.1, rtol=1e-6)


@pytest.mark.parametrize("warmup_steps", [0, 20])
def test_a_cosine_has_its_ends_and_its_middle_and_stays(warmup_steps):
    rate = schedules.Cosine(
        base=0.1, final=0.02, num_steps=100, warmup_steps=warmup_steps
    )
    middle = (warmup_steps + 100) // 2
    quarter = (3 * warmup_steps + 100) // 4
    actual = [rate(step) for step in (warmup_steps, quarter, middle, 100, 1000)]
    three_quarters = 0.06 + 0.04 * np.cos(np.pi / 4)
    expected = [0.1, three_quarters, 0.06, 0.02, 0.02]
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


@pytest.mark.parametrize("name", ["step", "cosine"])
def test_a_warm_up_rises_in_a_line_and_never_starts_at_zero(name):
    schedule = SCHEDULES[name]
    values = [schedule(step) for step in range(6)]
    expected = 0.1 * np.array([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])
    np.testing.assert_allclose(values, expected, rtol=1e-5)


def test_values_are_float32_scalars_whatever_the_step(schedule):
    for step in (7, jnp.int32(7), jnp.float32(7)):
        value = schedule(step)
        assert value.shape == ()
        assert value.dtype == jnp.float32


def test_every_number_is_a_leaf(schedule):
    for leaf in jax.tree.leaves(schedule):
        assert isinstance(leaf, float)
    doubled = _scaled(schedule, 2.0)
    assert jax.tree.structure(doubled) == jax.tree.structure(schedule)
    assert np.any(_values(doubled) != _values(schedule))


def test_a_changed_number_does_not_recompile(schedule):
    traces = 0

    @jax.jit
    def value(schedule, step):
        nonlocal traces
        traces += 1
        return schedule(step)

    for other in (schedule, _scaled(schedule, 0.5)):
        for step in (0, 30, 100):
            np.testing.assert_allclose(value(other, step), other(step), rtol=1e-6)
    assert traces == 1


def test_a_mapped_schedule_is_one_schedule_per_row(schedule):
    rows = [_scaled(schedule, factor) for factor in (1.0, 0.5, 3.0)]
    stacked = jax.tree.map(lambda *leaves: jnp.array(leaves), *rows)
    mapped = jax.vmap(lambda schedule: jax.vmap(schedule)(STEPS))(stacked)
    np.testing.assert_allclose(mapped, [_values(row) for row in rows], rtol=1e-5)


def test_between_is_zero_outside_and_warms_up_from_its_first_step():
    schedule = schedules.Between(6.0, first_step=10, end_step=20, warmup_steps=4)
    values = [float(schedule(step)) for step in range(25)]
    assert values == [0.0] * 10 + [1.5, 3.0, 4.5] + [6.0] * 7 + [0.0] * 5
    endless = schedules.Between(6.0)
    assert [float(endless(step)) for step in (0, 10**6)] == [6.0, 6.0]
