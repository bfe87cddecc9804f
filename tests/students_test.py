"""Many students as one: each row is a student by itself, and keeps its own best."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import schedules, students
from kdjax.data import augment, loaders, sources
from kdjax.steps import TrainState
from kdjax.types import Outputs

# How many of four held-out examples a toy is right about after so many steps.
RIGHT = {"early": [0, 1, 4, 2, 1, 0, 3], "late": [0, 0, 1, 1, 2, 4, 4]}


def _toy(right):
    """A student that knows how many steps it made, and nothing else."""
    made = jnp.zeros((), jnp.int32)
    params = {"right": jnp.asarray(right)}
    return TrainState(
        made, params, {"count": {"made": made}}, (), None, jax.random.key(0)
    )


def _toy_apply(variables, images, *, train, rng=None):
    del train, rng
    count = variables["params"]["right"][variables["count"]["made"]]
    right = jnp.arange(len(images)) < count
    return Outputs(jax.nn.one_hot(jnp.where(right, 1, 0), 2)), {}


def _toy_step(state, constants, batch, hparams):
    del constants, batch
    made = state.step + 1
    loss = hparams["rate"](state.step)
    new = state.replace(step=made, model_state={"count": {"made": made}})
    return new, {"loss": loss}


@pytest.mark.parametrize(
    ("look_every", "curve", "best"),
    [
        (
            1,
            [[0.25, 0], [1, 0.25], [0.5, 0.25], [0.25, 0.5], [0, 1], [0.75, 1]],
            [2, 6],
        ),
        (3, [[0.5, 0.25], [0.75, 1]], [6, 6]),
    ],
)
def test_each_student_keeps_the_last_of_its_best_looks(look_every, curve, best):
    toys = [_toy(right) for right in RIGHT.values()]
    state = students.init(toys, num_looks=6 // look_every, keep_best=True)
    held_out = {"image": jnp.zeros((4, 1)), "label": jnp.ones(4, jnp.int32)}
    hparams = students.stack_hparams([{"rate": schedules.Constant(x)} for x in (1, 3)])
    step = students.make_train_step(_toy_step, _toy_apply, look_every=look_every)
    for i in range(6):
        assert state.step == i
        constants = {"teacher": {}, "held_out": held_out}
        state, metrics = step(state, constants, {"image": jnp.zeros((5, 2))}, hparams)
        assert metrics["loss"] == 2  # The mean of both.
    np.testing.assert_array_equal(state.curve, curve)
    np.testing.assert_array_equal(state.best["count"]["made"], best)


@pytest.mark.parametrize("mixup", [0.0, 1.0])
def test_each_student_has_the_batches_of_its_seed(mixup):
    rng = np.random.default_rng(0)
    source = sources.ArraySource(
        rng.integers(0, 256, (13, 5, 5, 1), np.uint8),
        rng.integers(0, 3, 13),
        name="toy",
        class_names=("a", "b", "c"),
    )
    stored = rng.normal(size=(2, 13, 3)).astype(np.float32)

    def resident(seed):
        return loaders.ResidentLoader(
            source,
            augment.Augmentation(7, 13, 3, jitter=1, mixup=mixup),
            batch_size=4,
            num_views=2,
            seed=seed,
            extras={"teacher_logits": stored},
        )

    seeds = (5, 0, 5, 2)
    loader = students.StudentsLoader(resident(9), seeds, len(source))
    assert loader.steps_per_epoch == 3
    singles = [resident(seed) for seed in seeds]
    batch_fn, single_fn = jax.jit(loader.batch), jax.jit(singles[0].batch)
    start = 2  # In the middle of the first epoch.
    inputs = zip(
        loader.inputs(start), *(x.inputs(start) for x in singles), strict=False
    )
    for step, (ours, *theirs) in zip(range(start, 8), inputs, strict=False):
        batch = batch_fn(ours, jnp.int32(step))
        for i, own in enumerate(theirs):
            expected = single_fn(own, jnp.int32(step))
            assert batch.keys() == expected.keys()
            for name, x in expected.items():
                np.testing.assert_array_equal(batch[name][:, i], x, name)
