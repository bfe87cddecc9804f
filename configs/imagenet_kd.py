r"""ImageNet: ResNet-50 into MobileNetV2 with Hinton's soft targets.

Setting: the pair of most tutorials; the protocol of torchvision's classification
references for MobileNetV2, with the teacher run on the very crop the student sees.
Published top-1 accuracy of the two without distillation, torchvision: ResNet-50
76.13, MobileNetV2 71.88 %. Not measured here: it takes an accelerator and ImageNet.

Run (ImageNet prepared by TensorFlow Datasets in data_dir):
  python -m kdjax.main --config=configs/imagenet_kd.py \
    --config.dataset.data_dir=/path/to/tensorflow_datasets \
    --config.teacher.pretrained=/path/to/resnet50.safetensors
Or from a folder of images: --config.dataset.path=/path/with/train/and/test

Try it in a minute, on any machine, without a download (on the embedded digits):
  python -m kdjax.main --config=configs/imagenet_kd.py:smoke
"""

from ml_collections import config_dict

from kdjax import default_config


def get_config(variant: str = "") -> config_dict.ConfigDict:
    """Returns the published setting, or a tiny one if `variant` is 'smoke'."""
    if variant not in ("", "smoke"):
        raise ValueError(f"Expected variant '' or 'smoke', got {variant!r}.")

    config = default_config.get_config()
    config.dataset.name = "imagenet2012"
    config.dataset.image_size = 224
    config.dataset.validation = 10000
    config.dataset.streaming = True
    config.teacher.model.update(name="resnet50", dtype="bfloat16")
    config.teacher.source = "online"  # A view of every image in every epoch.
    config.student.model.update(name="mobilenet_v2", dtype="bfloat16")
    for model in (config.teacher, config.student):
        model.normalize = "imagenet"
        model.train.batch_size = 256
        model.train.optimizer.weight_decay = 4e-5
        model.train.augment.update(resized_crop=True, flip=True)
    config.teacher.train.num_epochs = 90
    config.teacher.train.learning_rate.update(
        schedule="step", base=0.1, decay_factor=0.1, decay_epochs=(30, 60)
    )
    config.student.train.num_epochs = 300
    config.student.train.learning_rate.update(
        schedule="cosine", base=0.1, warmup_epochs=5.0
    )
    config.distill.update(temperature=2.0, alpha=0.5)
    config.published.update(
        source="torchvision, without distillation", teacher=76.13, baseline=71.88
    )
    return default_config.smoke(config) if variant == "smoke" else config
