r"""CIFAR-100: ResNet-32x4 into ResNet-8x4 with Hinton's soft targets.

Setting: Tian et al., Contrastive Representation Distillation, ICLR 2020,
https://arxiv.org/abs/1910.10699; numbers as in the authors' README.
Published test accuracy (last epoch): teacher 79.42, student alone 72.50,
distilled 73.33 %.

Run:
  python -m kdjax.main --config=configs/cifar100_kd.py

Try it in a minute, on any machine, without a download (on the embedded digits):
  python -m kdjax.main --config=configs/cifar100_kd.py:smoke
"""

from ml_collections import config_dict

from kdjax import default_config


def get_config(variant: str = "") -> config_dict.ConfigDict:
    """Returns the published setting, or a tiny one if `variant` is 'smoke'."""
    if variant not in ("", "smoke"):
        raise ValueError(f"Expected variant '' or 'smoke', got {variant!r}.")

    config = default_config.get_config()
    config.seeds = (0, 1, 2, 3, 4)
    config.dataset.name = "cifar100"
    config.dataset.validation = 0  # The protocol trains on all 50,000 images.
    config.teacher.model.name = "resnet32x4"
    config.student.model.name = "resnet8x4"
    for model in (config.teacher, config.student):
        model.train.num_epochs = 240
        model.train.batch_size = 64
        model.train.optimizer.weight_decay = 5e-4
        model.train.learning_rate.update(
            schedule="step", base=0.05, decay_factor=0.1, decay_epochs=(150, 180, 210)
        )
        model.train.augment.update(crop_padding=4, flip=True)
    config.distill.update(temperature=4.0, alpha=0.9)
    config.published.update(
        source="RepDistiller README: CIFAR-100, last epoch, mean of 5 runs",
        teacher=79.42,
        student=73.33,
        baseline=72.50,
    )
    return default_config.smoke(config) if variant == "smoke" else config
