"""Features by name; adapters are trained with the student and leave with nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from kdjax import features, networks, objectives, optimizers, schedules, steps
from kdjax.types import ADAPTERS, Outputs, UserError

NAMES = ["stem", "stage1", "stage1_preact", "stage2", "pooled"]
SHAPE, CLASSES = (4, 4, 3), 5


class Net(nn.Module):
    """A convolution with BatchNorm, and a linear layer."""

    width: int = 6

    @nn.compact
    def __call__(self, images, *, train):
        x = nn.Conv(self.width, (3, 3))(images)
        x = nn.relu(nn.BatchNorm(not train)(x))
        pooled = x.mean((1, 2))
        return Outputs(nn.Dense(CLASSES)(pooled), {"map": x, "pooled": pooled})


class Connector(nn.Module):
    """A linear map with BatchNorm."""

    width: int

    @nn.compact
    def __call__(self, x, *, train):
        return nn.BatchNorm(not train)(nn.Dense(self.width)(x))


def _network(width=6):
    return networks.from_linen(
        Net(width),
        name="net",
        image_shape=SHAPE,
        num_classes=CLASSES,
        mean=(0.5, 0.4, 0.3),
        std=(0.2, 0.2, 0.3),
    )


@pytest.fixture
def student():
    adapters = {
        "wide": features.Adapter(Connector(9), ("pooled",)),
        "map": features.Adapter(Connector(4), ("map",)),
    }
    return features.with_adapters(
        _network(), {f"hint/{k}": v for k, v in adapters.items()}
    )


def _images(seed=0):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.integers(0, 256, (8, *SHAPE), np.uint8))


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("stage2", ("stage2",)),
        ("stage[12]", ("stage1", "stage2")),
        ("stage2,stem", ("stem", "stage2")),
        ("s*", ("stem", "stage1", "stage1_preact", "stage2")),
    ],
)
def test_a_pattern_means_features_in_the_order_of_the_model(pattern, expected):
    assert features.match(pattern, NAMES, "the student") == expected


def test_a_pattern_without_a_match_names_what_is_near():
    with pytest.raises(UserError, match=r"'stgae2' .*the teacher.*mean stage2"):
        features.match("stage1,stgae2", NAMES, "the teacher")


def test_shapes_are_those_of_one_image():
    assert features.shapes(_network(3)) == {"map": (1, 4, 4, 3), "pooled": (1, 3)}


def test_the_student_starts_as_it_would_without_adapters(student):
    rng = jax.random.key(3)
    own, extra = features.split(student.init(rng))
    jax.tree.map(np.testing.assert_array_equal, own, _network().init(rng))
    assert set(extra["params"]) == {"hint/wide", "hint/map"}


def test_in_training_an_adapters_output_is_a_feature(student):
    variables = student.init(jax.random.key(0))
    outputs, state = student.apply(variables, _images(), train=True)
    plain, plain_state = _network().apply(
        features.split(variables)[0], _images(), train=True
    )
    np.testing.assert_array_equal(outputs.logits, plain.logits)
    assert outputs.features["hint/wide"].shape == (8, 9)
    assert outputs.features["hint/map"].shape == (8, 4, 4, 4)
    # The statistics of both are updated, each in its place.
    jax.tree.map(np.testing.assert_array_equal, features.split(state)[0], plain_state)
    old, new = (x["batch_stats"][ADAPTERS] for x in (variables, state))
    assert jax.tree.structure(old) == jax.tree.structure(new)
    for name in old:
        moved = jax.tree.map(lambda x, y: np.any(x != y), old[name], new[name])
        assert all(jax.tree.leaves(moved))


def test_in_inference_nothing_is_left_of_them(student):
    variables = student.init(jax.random.key(0))
    outputs, _ = student.apply(variables, _images(), train=False)
    assert set(outputs.features) == {"map", "pooled"}


def test_a_step_trains_both_and_only_the_student_is_kept(student):
    teacher = _network(9)
    teacher_variables = teacher.init(jax.random.key(9))

    def hint(student, teacher, batch, values):
        error = student.features["hint/wide"] - teacher.features["pooled"]
        return jnp.where(batch["mask"], jnp.mean(error**2, axis=-1), 0)

    def teacher_fn(variables, batch, values):
        return teacher.apply(variables, batch["image"], train=False)[0]

    hparams = {
        name: schedules.Constant(value)
        for name, value in dict(
            learning_rate=0.05, momentum=0.9, weight_decay=0.0
        ).items()
    }
    optimizer_fn = optimizers.sgd()
    objective = objectives.weighted_sum({"hint": objectives.Term(hint, lambda v: 1.0)})
    step = jax.jit(
        steps.make_train_step(student.apply, teacher_fn, objective, optimizer_fn)
    )
    rng = jax.random.key(0)
    start = steps.init_state(student.init(rng), optimizer_fn, hparams, rng)
    batch = {
        "image": _images(),
        "label": jnp.zeros(8, jnp.int32),
        "mask": jnp.ones(8, bool),
    }
    state, losses = start, []
    for _ in range(60):
        state, metrics = step(state, teacher_variables, batch, hparams)
        losses.append(float(metrics["hint"]))
    assert losses[-1] < 0.3 * losses[0]
    change = jax.tree.map(jnp.subtract, state.params, start.params)
    assert optax.tree.norm(change[ADAPTERS]["hint/wide"]) > 1e-3
    assert optax.tree.norm(change["Conv_0"]) > 1e-3
    assert optax.tree.norm(change[ADAPTERS]["hint/map"]) == 0  # Nothing reads it.
    expected = jax.tree.structure(_network().init(rng))
    assert jax.tree.structure(dict(state.eval_variables)) == expected
