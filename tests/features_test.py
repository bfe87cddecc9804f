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
SHAPE, CLASSES, BATCH_STATS = (4, 4, 3), 5, "batch_stats"


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


def _adapter(width, tap):
    return features.Adapter(
        Connector(width), lambda student, *others: (student.features[tap],)
    )


ADAPTERS_BY_NAME = {"hint/wide": _adapter(9, "pooled"), "hint/map": _adapter(4, "map")}


def _init(rng=None):
    return features.init(
        jax.random.key(0) if rng is None else rng,
        _network(),
        features.describe(_network(9)),
        ADAPTERS_BY_NAME,
        {},
    )


def _images(seed=0):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.integers(0, 256, (8, *SHAPE), np.uint8))


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("stage2", ("stage2",)),
        ("stage[12]", ("stage1", "stage2")),
        ("stem,stage2", ("stem", "stage2")),
        ("stage2,stem,stage[12]", ("stage2", "stem", "stage1")),
        ("s*", ("stage1", "stage1_preact", "stage2", "stem")),
    ],
)
def test_a_pattern_means_features_in_its_own_order_and_by_number(pattern, expected):
    assert features.match(pattern, NAMES, "the student") == expected


def test_layers_are_in_order_whatever_jit_made_of_the_dictionary():
    names = [
        f"block{i}_{part}" for i in range(12, 0, -1) for part in ("keys", "values")
    ]
    names += [f"block{i}" for i in (10, 1, 12, 9, 2)]
    blocks = features.match("block*[0-9]", names, "the teacher")
    assert blocks == ("block1", "block2", "block9", "block10", "block12")
    named = features.match("block2_values,block2_keys", names, "the teacher")
    assert named == ("block2_values", "block2_keys")


def test_a_pattern_without_a_match_names_what_is_near():
    with pytest.raises(UserError, match=r"'stgae2' .*the teacher.*mean stage2"):
        features.match("stage1,stgae2", NAMES, "the teacher")


def test_a_description_has_the_shapes_of_one_image():
    described = features.describe(_network(3))
    shapes = {name: x.shape for name, x in described.features.items()}
    assert shapes == {"map": (1, 4, 4, 3), "pooled": (1, 3)}
    assert described.logits.shape == (1, CLASSES)
    assert described.variables["params"]["Dense_0"]["kernel"].shape == (3, CLASSES)


def test_the_student_starts_as_it_would_without_adapters():
    rng = jax.random.key(3)
    own, extra = features.split(_init(rng))
    jax.tree.map(np.testing.assert_array_equal, own, _network().init(rng))
    assert set(extra["params"]) == set(ADAPTERS_BY_NAME)


def test_joining_undoes_splitting():
    variables = _init()
    joined = features.join(*features.split(variables))
    jax.tree.map(np.testing.assert_array_equal, joined, variables)


def test_in_training_an_adapters_output_is_a_feature():
    own, extra = features.split(_init())
    student, _ = _network().apply(own, _images(), train=True)
    outputs, state = features.adapt(
        ADAPTERS_BY_NAME, extra, student, student, {}, {}, jax.random.key(0)
    )
    np.testing.assert_array_equal(outputs.logits, student.logits)
    assert outputs.features["hint/wide"].shape == (8, 9)
    assert outputs.features["hint/map"].shape == (8, 4, 4, 4)
    for name, old in extra["batch_stats"].items():
        moved = jax.tree.map(lambda x, y: np.any(x != y), old, state[BATCH_STATS][name])
        assert all(jax.tree.leaves(moved))


def test_an_adapter_sees_teacher_batch_and_values():
    seen = []

    def inputs(student, teacher, batch, values):
        seen.append((teacher.logits.shape, sorted(batch), values["alpha"]))
        return (teacher.features["pooled"],)

    adapters = {"hint/teacher": features.Adapter(Connector(2), inputs)}
    teacher = features.describe(_network(9))
    variables = features.init(
        jax.random.key(0), _network(), teacher, adapters, {"alpha": jnp.float32(0.5)}
    )
    kernel = variables["params"][ADAPTERS]["hint/teacher"]["Dense_0"]["kernel"]
    assert kernel.shape == (9, 2)
    assert seen == [((1, CLASSES), ["example_id", "label", "mask"], 0.5)]


def test_a_step_trains_both_and_only_the_student_is_kept():
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
        steps.make_train_step(
            _network().apply,
            teacher_fn,
            objective,
            optimizer_fn,
            adapters=ADAPTERS_BY_NAME,
        )
    )
    rng = jax.random.key(0)
    start = steps.init_state(_init(rng), optimizer_fn, hparams, rng)
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
