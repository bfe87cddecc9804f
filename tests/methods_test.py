"""Every method of the table, named in a config, trains a student on real images."""

import pathlib
import runpy

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import builders, losses, metric_writers, training

DIGITS = pathlib.Path(__file__).parents[1] / "configs" / "digits_kd.py"

# What a method needs set, or reads from a vision transformer's layers.
LAYERS = {
    "student_features": "block1,block2",
    "teacher_features": "block2,block4",
}
SETTINGS = {
    "crd": {"num_negatives": 50, "dim": 16},
    "factor": {"paraphrase_epochs": 0.0},  # From then on there is a target to reach.
    "hidden_cosine": LAYERS,
    "linear_taid": {"interpolation": 0.5},
    "minilm": {
        "student_features": "block2_queries,block2_keys,block2_values",
        "teacher_features": "block4_queries,block4_keys,block4_values",
        "num_heads": 2,
    },
    "minilm_relation": {
        "student_features": "block2_queries,block2_keys,block2_values",
        "teacher_features": "block3_queries,block3_keys,block3_values",
        "num_relation_heads": 4,
    },
    "taid": {"interpolation": 0.5},
    "tinybert_attention": {
        "student_features": "block1_scores,block2_scores",
        "teacher_features": "block2_scores,block4_scores",
    },
    "tinybert_hidden": LAYERS,
    "top_k_kl": {"num_kept": 3},
    "ttm": {"temperature": 4.0},
    "wttm": {"temperature": 4.0},
}
ENCODERS = {*SETTINGS} & {
    "hidden_cosine",
    "minilm",
    "minilm_relation",
    "tinybert_attention",
    "tinybert_hidden",
}
# The others train in the slow suite.
QUICK = {"srrl"}


def _config(name):
    config = runpy.run_path(str(DIGITS))["get_config"]("smoke")
    config.update_from_flattened_dict(
        {"teacher.source": "online", "distill.alpha": 0.0, "log_every_steps": 1}
    )
    config.eval_every_epochs = 3
    for role in ("teacher", "student"):
        for key in set(config[role].model) - {"name", "dtype"}:
            del config[role].model[key]
        config[role].model.name = "resnet8"
    if name in ENCODERS:
        for role, depth in (("teacher", 4), ("student", 2)):
            config[role].model.update(
                name="vit", patch_size=2, dim=16 * depth, depth=depth, heads=2
            )
    config.teacher.train.update(num_epochs=6, batch_size=80)
    config.student.train.update(num_epochs=3, batch_size=80)
    config.student.train.learning_rate.update(schedule="constant", base=0.02)
    # Alone: what is learned is the method's.
    config.distill.terms.hard = {"loss": "cross_entropy", "weight": 0.0}
    config.distill.terms.extra = {"loss": name, "weight": 1.0, **SETTINGS.get(name, {})}
    return config


@pytest.fixture(scope="module")
def teachers(tmp_path_factory):
    """Makes the trained variables of a teacher, once for each kind of model."""
    made = {}

    def make(experiment):
        name = experiment.teacher.name
        if name not in made:
            directory = tmp_path_factory.mktemp(name)
            state, saved = training.fit(experiment.teacher_training(), directory)
            saved.close()
            made[name] = state.eval_variables
        return made[name]

    return make


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in QUICK else pytest.mark.slow)
        for name in builders.LOSSES
    ],
)
def test_a_method_trains_a_student_on_real_images(name, teachers, tmp_path):
    experiment = builders.build(_config(name))
    teacher = teachers(experiment)
    before = jax.device_get(teacher)
    _, saved = training.fit(experiment.student_training(0, teacher, None), tmp_path)
    saved.close()
    rows = metric_writers.read(tmp_path)
    values = [row["extra"] + row.get("extra_beside", 0.0) for row in rows]
    assert len(values) >= 36
    assert np.all(np.isfinite(values))
    assert np.mean(values[-9:]) < np.mean(values[:9])
    jax.tree.map(np.testing.assert_array_equal, before, jax.device_get(teacher))


def _statistics(teacher, real):
    """Of what the teacher makes of real images, in one layer."""
    x = teacher(real).features["stage2"]
    return jnp.mean(x, (0, 1, 2)), jnp.var(x, (0, 1, 2))


# What trains a generator: of its images, the teacher, a student, and real images.
GENERATORS = {
    "activation": lambda x, teacher, student, real: losses.activation_loss(
        teacher(x).features["pooled"]
    ),
    "batch_norm_statistics": lambda x, teacher, student, real: (
        losses.batch_norm_statistics_loss(
            teacher(x).features["stage2"], *_statistics(teacher, real)
        )
    ),
    "dfad_generator": lambda x, teacher, student, real: losses.dfad_generator_loss(
        student(x).logits, teacher(x).logits
    ),
    "image_total_variation": lambda x, teacher, student, real: (
        losses.image_total_variation(x)
    ),
    "information_entropy": lambda x, teacher, student, real: (
        losses.information_entropy_loss(teacher(x).logits)
    ),
    "one_hot": lambda x, teacher, student, real: losses.one_hot_loss(teacher(x).logits),
    "zskt_generator": lambda x, teacher, student, real: losses.zskt_generator_loss(
        student(x).logits, teacher(x).logits
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", GENERATORS)
def test_a_loss_of_generators_trains_images_on_a_real_teacher(name, teachers):
    experiment = builders.build(_config("soft_target"))
    variables = teachers(experiment)
    student_variables = experiment.student.init(jax.random.key(5))
    real = jnp.asarray(experiment.splits.train.take(np.arange(64))["image"])

    def teacher(images):
        return experiment.teacher.apply(variables, images, train=False)[0]

    def student(images):
        return experiment.student.apply(student_variables, images, train=False)[0]

    @jax.jit
    def step(images):
        value, grad = jax.value_and_grad(
            lambda x: jnp.mean(GENERATORS[name](x, teacher, student, real))
        )(images)
        return images - 3 * jnp.sign(grad), value  # Of 255 shades.

    images = jax.random.uniform(jax.random.key(1), (32, *real.shape[1:]), maxval=255.0)
    values = []
    for _ in range(30):
        images, value = step(images)
        values.append(float(value))
    assert np.all(np.isfinite(values))
    assert np.mean(values[-5:]) < np.mean(values[:5])


def test_what_is_in_no_table_trains_no_student():
    """Every loss is a method, a generator's, or named here as part of another."""
    parts = {
        "average_logits",
        "average_probs",
        "confidence_weights",
        "federated_average",
        "fedmd_consensus",
        "soft_cross_entropy",  # The hard term, where mixup mixes the labels.
    }
    methods = {method.fn.__name__ for method in builders.LOSSES.values()}
    generators = {name + "_loss" for name in GENERATORS} | {"image_total_variation"}
    public = {
        name
        for name in losses.__all__
        if name.endswith(("_loss", "_kl")) or "entropy" in name or name in parts
    }
    assert public <= methods | generators | parts
