r"""Fashion-MNIST: born-again networks, three generations and their ensemble.

Setting: Furlanello et al., Born-Again Neural Networks, ICML 2018,
https://arxiv.org/abs/1805.04770: a ResNet-8 of 28x28 gray images learns from labels
for 10 epochs, and three more, each from other initial weights, from labels and the one
before, at T = 1 with equal weights. Controls: the same three without teachers, from the
same initial weights over the same batches, and the ensemble of these.

Published, on other data: 3.5 % errors on CIFAR-10 and 15.5 % on CIFAR-100 (abstract).
No published table on Fashion-MNIST was found; accepted is an ensemble of all
generations that is no worse than the best single one, on the mean of five seeds.

Measured (mlp, below, five seeds, two CPU cores): labels alone 87.15 +- 0.16,
generations 87.21 +- 0.09, 87.14 +- 0.15 and 87.28 +- 0.09, ensemble 87.57 +- 0.09,
+0.23 (0.15 to 0.32) over the best single one, ensemble of controls 87.63 +- 0.08. The
ResNet-8 for three epochs, seeds 0 to 2, on one NVIDIA H200, without its ensemble:
labels alone 88.91 +- 0.06, generations 88.89 +- 0.18, 88.56 +- 0.23, 88.79 +- 0.17.

Run:
  python benchmarks/fetch_data.py --out=data fashion_mnist
  python -m kdjax.main --config=configs/born_again.py \
    --config.dataset.path=data/fashion_mnist.npz
Without the path, the images come through TensorFlow Datasets.

Variant mlp: 784-256-256-10 instead, by Adam, for two CPU cores:
  python -m kdjax.main --config=configs/born_again.py:mlp \
    --config.dataset.path=data/fashion_mnist.npz

Try it in seconds, on any machine, without a download (on the embedded digits):
  python -m kdjax.main --config=configs/born_again.py:smoke
"""

from ml_collections import config_dict

from kdjax import default_config


def get_config(variant: str = "") -> config_dict.ConfigDict:
    """Returns the setting above, one for CPUs, or a tiny one."""
    if variant not in ("", "mlp", "smoke"):
        raise ValueError(f"Expected variant '', 'mlp' or 'smoke', got {variant!r}.")

    config = default_config.get_config("born_again")
    config.seeds = (0, 1, 2, 3, 4)
    # An epoch has 429 steps: dispatches of one length compile one program.
    config.steps_per_dispatch = config.log_every_steps = 143
    config.eval_every_epochs = 2
    config.dataset.update(name="fashion_mnist", validation=5000)
    config.teacher.source = "online"
    train = config.student.train
    train.num_epochs = 10
    train.optimizer.update(nesterov=True, weight_decay=5e-4)
    train.augment.update(crop_padding=2, flip=True)
    config.distill.update(temperature=1.0, alpha=0.5)
    if variant == "mlp":
        config.student.model.update(name="mlp", hidden=(256, 256))
        train.optimizer.update(name="adamw", weight_decay=1e-4)
        train.learning_rate.base = 1e-3
    if variant == "smoke":
        config = default_config.smoke(config)
        config.eval_every_epochs = 1
        config.born_again.num_generations = 2
    return config
