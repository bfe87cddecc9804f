r"""Digits: the whole job in under a minute on a laptop's CPU, without a download.

The data are 1,797 real handwritten digits of 8x8 pixels that scikit-learn carries in
its wheel. A convolutional teacher is trained on augmented digits; a small multilayer
perceptron learns from its soft targets.

Published: nothing. It shows how the parts work together, and proves an installation.

Run:
  python -m kdjax.main --config=configs/digits_kd.py

Try it in seconds:
  python -m kdjax.main --config=configs/digits_kd.py:smoke
"""

from ml_collections import config_dict

from kdjax import default_config


def get_config(variant: str = "") -> config_dict.ConfigDict:
    """Returns the setting, or one of a single epoch if `variant` is 'smoke'."""
    if variant not in ("", "smoke"):
        raise ValueError(f"Expected variant '' or 'smoke', got {variant!r}.")

    config = default_config.get_config()
    config.seeds = (0, 1, 2, 3, 4)
    config.log_every_steps = 10
    config.eval_every_epochs = 5
    config.dataset.name = "digits"
    config.dataset.validation = 237
    config.teacher.model.update(name="mlp", hidden=(256, 256), dropout=0.3)
    config.student.model.update(name="mlp", hidden=(16,))
    for model in (config.teacher, config.student):
        model.train.batch_size = 100
        model.train.optimizer.update(name="adamw", weight_decay=1e-4)
        model.train.learning_rate.update(schedule="cosine", base=3e-3)
        model.train.augment.jitter = 1
    config.teacher.train.num_epochs = 30
    config.student.train.num_epochs = 30
    config.cache.shard_size = 600
    config.distill.update(temperature=4.0, alpha=0.9)
    return default_config.smoke(config) if variant == "smoke" else config
