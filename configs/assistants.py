r"""Teacher assistants: a large network teaches a small one through sizes in between.

Setting: Mirzadeh et al., Improved Knowledge Distillation via Teacher Assistant, AAAI
2020, https://arxiv.org/abs/1902.03393: each network of a chain learns from the one
before it. Here multilayer perceptrons on Fashion-MNIST, 784-1200-1200-10 into
784-16-16-10, directly, through 784-200-200-10, through 784-60-60-10, and through both.
Assistants are trained as the student is, anew for each seed; the teacher is one.
Published: on CIFAR with other networks only; these data and sizes are ours.

Run:
  python benchmarks/fetch_data.py --out=data fashion_mnist
  python -m kdjax.main --config=configs/assistants.py \
    --config.dataset.path=data/fashion_mnist.npz

Measured (seeds 0 to 2, teacher 15 epochs, the others 10, two CPU cores): teacher 88.98,
student alone 85.91 +- 0.23, direct 83.76 +- 0.45, through the large one 83.76 +- 0.27,
the small one 83.64 +- 0.34, both 83.72 +- 0.31: nothing gained by assistants.

Try it in seconds, on any machine, without a download (on the embedded digits):
  python -m kdjax.main --config=configs/assistants.py:smoke
"""

from ml_collections import config_dict

from kdjax import default_config


def get_config(variant: str = "") -> config_dict.ConfigDict:
    """Returns Fashion-MNIST's setting, or a tiny one if `variant` is 'smoke'."""
    if variant not in ("", "smoke"):
        raise ValueError(f"Expected variant '' or 'smoke', got {variant!r}.")

    config = default_config.get_config("assistants")
    config.seeds = (0, 1, 2, 3, 4)
    config.steps_per_dispatch = config.log_every_steps = 468  # An epoch.
    config.eval_every_epochs = 20
    config.dataset.name = "fashion_mnist"
    config.dataset.validation = 0  # Nothing is chosen by it.
    config.teacher.model.update(
        name="mlp", hidden=(1200, 1200), input_dropout=0.2, dropout=0.5
    )
    config.student.model.update(name="mlp", hidden=(16, 16))
    for model in (config.teacher, config.student):
        model.train.update(num_epochs=20, batch_size=128, num_views=1)
        model.train.optimizer.update(name="adamw", weight_decay=0.0)
        model.train.learning_rate.update(schedule="cosine", base=1e-3)
    config.teacher.train.num_epochs = 40
    config.distill.update(temperature=4.0, alpha=0.9)
    models = config.assistants.models
    models.large = dict(name="mlp", dtype="float32", hidden=(200, 200))
    models.small = dict(name="mlp", dtype="float32", hidden=(60, 60))
    config.assistants.chain = ("large", "small")
    return _smoke(config) if variant == "smoke" else config


def _smoke(config: config_dict.ConfigDict) -> config_dict.ConfigDict:
    default_config.smoke(config)
    config.assistants.models.large.hidden = (24,)
    config.assistants.models.small.hidden = (16,)
    config.student.model.hidden = (8,)
    for model in (config.teacher, config.student):
        model.train.learning_rate.base = 1e-2
    return config
