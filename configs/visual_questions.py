r"""easy-VQA: a teacher sees image and question, its student the image alone.

Setting: easy-VQA, https://pypi.org/project/easy-vqa/: 4,000 and 1,000 images of 64x64
pixels, each of one coloured shape, with 38,575 and 9,673 questions about them (107
texts, 26 words, 13 answers). The teacher is a small convolutional network and a bag of
words, multiplied. It answers a student who never learns what was asked.

What can be learned: without the question, the distribution of answers given the image,
and no more. An image's own answers are about ten draws from it. A teacher's soft answer
to the same question adds little to them, as a good teacher is certain. But it can be
asked every question about every image, and the average of its answers is that
distribution: the soft targets of 'every_question'. Accuracy (naming the likeliest
answer) shows little of this; the negative log-likelihood is the figure to look at. A
student of the question alone has 107 inputs with some 360 answers each: there counting
suffices, and a teacher has nothing to add.

Published: no figure in reach that these could be compared with.
Measured (short, below, seeds 0 to 4, two CPU cores, 19 minutes), negative
log-likelihood in nats: image alone 1.422, soft answer to the question 1.427, soft
answers to every question 1.320, teacher averaged over questions 1.288: -0.103 (-0.112
to -0.093), lower on 5 of 5 seeds. Accuracy 37.3, 37.2, 37.1 and 37.2; the teacher who
knows the question 96.4.

Run:
  python benchmarks/fetch_data.py --out=data easy_vqa
  python -m kdjax.main --config=configs/visual_questions.py \
    --config.dataset.path=data/easy_vqa.npz

Variant short, for two CPU cores: images of 32x32 pixels, a ResNet-8 as teacher for 20
epochs, 10 epochs for students.

Try it in seconds, on any machine, without a download (eight questions about each of
the embedded digits):
  python -m kdjax.main --config=configs/visual_questions.py:smoke
"""

from ml_collections import config_dict

from kdjax import default_config


def get_config(variant: str = "") -> config_dict.ConfigDict:
    """Returns the setting above, a sixth of it if `variant` is 'short', or 'smoke'."""
    if variant not in ("", "short", "smoke"):
        raise ValueError(f"Expected variant '', 'short' or 'smoke', got {variant!r}.")

    config = default_config.get_config("visual_questions")
    config.seeds = (0, 1, 2, 3, 4)
    config.log_every_steps = 400  # 10 epochs: an epoch is a dispatch, by one program.
    config.eval_every_epochs = 1000  # At the end: each evaluation saves a checkpoint.
    config.dataset.name = "easy_vqa"
    config.dataset.validation = 0
    config.teacher.model.name = "resnet14"
    config.student.model.name = "resnet8"
    for model in (config.teacher, config.student):
        model.train.batch_size = 100
        model.train.num_epochs = 60  # Each image is asked one question an epoch.
        model.train.optimizer.update(name="adamw", weight_decay=0.01)
        model.train.learning_rate.update(schedule="cosine", base=2e-3)
    config.teacher.train.num_epochs = 120
    # The targets are the distribution itself: no temperature, and no hard term.
    config.distill.update(temperature=1.0, alpha=1.0)
    if variant == "short":
        config.teacher.model.name = "resnet8"
        config.teacher.train.num_epochs = 20
        config.student.train.num_epochs = 10
        config.teacher.resize = config.student.resize = 32
    if variant == "smoke":
        default_config.smoke(config)
        config.dataset.validation = 0
        config.teacher.train.num_epochs = 16
        config.student.train.num_epochs = 8
    return config
