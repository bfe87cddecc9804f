r"""Several teachers: what a student learns from one, two and five, combined three ways.

Setting: Hinton et al., Distilling the Knowledge in a Neural Network, 2015,
https://arxiv.org/abs/1503.02531, section 4, distil an ensemble of speech models of one
architecture and different initial weights into one of the same size. Here the same on
Fashion-MNIST with a small convolutional network: teachers and student are alike. Each
teacher has a cache of its own; students read several at once. The teachers' logits,
probabilities or losses are averaged; for the last two the gradient is the same.
Students of seed s have the teachers s, s + 1 and so on, so that what one owes to the
luck of its teacher is part of what varies over seeds.
Published: nothing on these data. Of speech, frame accuracy: one model 58.9, an ensemble
of ten 61.1, a model distilled from it 60.8 %.

Run:
  python benchmarks/fetch_data.py --out=data fashion_mnist
  python -m kdjax.main --config=configs/ensemble.py \
    --config.dataset.path=data/fashion_mnist.npz

Variant mlp: 784-256-256-10 instead of the convolutional network, for two CPU cores:
  python -m kdjax.main --config=configs/ensemble.py:mlp \
    --config.dataset.path=data/fashion_mnist.npz

Measured (mlp, seeds 0 to 2, 8 epochs, two CPU cores): student alone 89.37 +- 0.11, one
teacher 89.52 +- 0.13, five 90.11; student of one 88.88 +- 0.10, of five 88.96 +- 0.05
(logits), 88.94 +- 0.10 (probabilities), 89.02 +- 0.03 (losses): below the student
alone.

Try it in seconds, on any machine, without a download (on the embedded digits):
  python -m kdjax.main --config=configs/ensemble.py:smoke
"""

from ml_collections import config_dict

from kdjax import default_config


def get_config(variant: str = "") -> config_dict.ConfigDict:
    """Returns Fashion-MNIST's setting, one for CPUs, or a tiny one."""
    if variant not in ("", "mlp", "smoke"):
        raise ValueError(f"Expected variant '', 'mlp' or 'smoke', got {variant!r}.")

    config = default_config.get_config("ensemble")
    config.seeds = (0, 1, 2, 3, 4)
    config.steps_per_dispatch = config.log_every_steps = 468  # An epoch.
    config.eval_every_epochs = 10
    config.dataset.name = "fashion_mnist"
    config.dataset.validation = 0  # Nothing is chosen by it.
    for model in (config.teacher, config.student):
        if variant == "mlp":
            model.model.update(name="mlp", hidden=(256, 256))
        else:
            model.model.update(name="cnn", widths=(16, 32), hidden=128)
        model.train.update(num_epochs=20, batch_size=128, num_views=1)
        model.train.optimizer.update(name="adamw", weight_decay=1e-4)
        model.train.learning_rate.update(schedule="cosine", base=1e-3)
    config.distill.update(temperature=4.0, alpha=0.9)
    return _smoke(config) if variant == "smoke" else config


def _smoke(config: config_dict.ConfigDict) -> config_dict.ConfigDict:
    default_config.smoke(config)
    for model in (config.teacher, config.student):
        model.model.update(name="cnn", widths=(4, 8), hidden=16)
        model.train.learning_rate.base = 1e-2
    config.ensemble.counts = (1, 2)
    return config
