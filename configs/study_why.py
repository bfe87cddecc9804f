r"""MNIST: why distillation works, five experiments on Hinton's own teacher.

Setting: Hinton et al., Distilling the Knowledge in a Neural Network, 2015,
https://arxiv.org/abs/1503.02531, sections 3 and 6: the teacher, 784-1200-1200-10, is
that of mnist_kd.py, but for 5,000 images that no one trains on. Its logits of the clean
images are cached once; students, 784-800-800-10, see either labels or soft labels,
never both, from five seeds. All students of a stage train as one program.

few_labels: 1,800 images, 3 % of 60,000, the classes evenly among them; hard labels
stop at the epoch that is best on a tenth of these, held out; soft labels, of the other
nine tenths too, do not stop. The temperature is chosen by the same tenth.
Published (table 5, frame accuracy of speech): 58.9 all labels, 44.5 hard, 57.0 soft
with 3 %. Accepted: soft above hard on 5 of 5 seeds, at least 40 % of the gap closed.

speed: steps to 97 and 98 % on the 5,000 images, hard against soft, T = 20.

omit_3: soft labels, T = 20, of no 3. The bias of class 3 is then raised: until the
probability of 3 has the frequency of 3s in the train split, of which it takes the
images, 3s among them, and no label; and, as a bound, to the best on the test set.
Published: 133 of 1,010 test 3s wrong, 14 with the bias chosen on the test set (+3.5).
Accepted: at least 85 % of the 3s right, 97 % after, and 98 % of all digits.

only_7_and_8: soft labels of 7s and 8s alone, and their two biases lowered together.
Published error: 47.3 %, 13.2 % with the bias chosen on the test set (-7.6). Accepted:
at most 20 % after, a third of what it was.

width_temperature: two layers of 30 to 800 units, T from 1 to 40, soft labels alone.
Published: with 30 units 2.5 to 4 is best; from 300 on, all T above 8 are about equal.
Accepted: the best T of 30 units is 2, 2.5, 4 or 8; from 300 units on, the errors at T
of 8 and above differ by at most 25.

Measured (five seeds, one NVIDIA H200, commit 12dfddd): teacher 99.21. few_labels: hard
92.44 +- 0.15, soft 95.81 +- 0.06 at T = 20, 56 % of the gap. speed: 710 and 450 steps
to 97 %, 2110 and 1040 to 98 %. omit_3: 90.57 +- 0.62 % of the 3s, 97.90 +- 0.42 by
frequency. only_7_and_8: error 23.9, 9.6 by frequency, 2.5 times less: missed.
width_temperature: T = 1 is best with 30 units: missed; 3.4 and 4.0 errors apart from T
= 8 on with 300 and 800.

Run:
  python benchmarks/fetch_data.py --out=data mnist
  python -m kdjax.main --config=configs/study_why.py \
    --config.dataset.path=data/mnist.npz
Fewer labels and faster convergence on Fashion-MNIST too (its 3 is a dress):
  python -m kdjax.main --config=configs/study_why.py \
    --workdir=runs/study_why_fashion --config.dataset.name=fashion_mnist \
    --config.dataset.path=data/fashion_mnist.npz \
    --config.study_why.speed.thresholds='(85.0, 88.0)' \
    --stages=teacher,cache,few_labels,speed,report
A teacher from elsewhere, by --config.teacher.pretrained=, should not have seen the
5,000 images.

Try it in seconds, on any machine, without a download (on the embedded digits):
  python -m kdjax.main --config=configs/study_why.py:smoke
"""

from ml_collections import config_dict

from kdjax import default_config


def get_config(variant: str = "") -> config_dict.ConfigDict:
    """Returns the published setting, or a tiny one if `variant` is 'smoke'."""
    if variant not in ("", "smoke"):
        raise ValueError(f"Expected variant '' or 'smoke', got {variant!r}.")

    config = default_config.get_config("study_why")
    config.seeds = (0, 1, 2, 3, 4)
    config.steps_per_dispatch = 500  # No less than an epoch: one program for all.
    config.log_every_steps = 1_000_000  # At evaluations alone.
    config.eval_every_epochs = 10
    config.keep_checkpoints = 1
    config.dataset.name = "mnist"
    config.dataset.validation = 5000
    config.teacher.model.update(
        name="mlp", hidden=(1200, 1200), input_dropout=0.2, dropout=0.5
    )
    config.student.model.update(name="mlp", hidden=(800, 800))
    for model in (config.teacher, config.student):
        model.normalize = "unit"
        model.train.batch_size = 128
        model.train.optimizer.update(name="adamw", weight_decay=0.0)
        model.train.learning_rate.update(schedule="cosine", base=1e-3)
    config.teacher.train.num_epochs = 100
    config.teacher.train.optimizer.max_norm = 15.0
    config.teacher.train.augment.jitter = 2
    config.student.train.num_epochs = 20
    config.student.train.num_views = 1  # Clean images: one view, cached exactly.
    config.distill.update(temperature=20.0, alpha=1.0)
    return _smoke(config) if variant == "smoke" else config


def _smoke(config: config_dict.ConfigDict) -> config_dict.ConfigDict:
    default_config.smoke(config)
    config.student.train.num_views = 1
    for model in (config.teacher, config.student):
        model.train.learning_rate.base = 1e-2
    study = config.study_why
    study.few_labels.update(num_labels=200, temperatures=(2.0, 20.0), num_epochs=4)
    study.speed.update(look_every=5, thresholds=(30.0, 99.0))
    study.omit_3.num_epochs = 4
    study.only_7_and_8.num_epochs = 4
    study.width_temperature.update(
        widths=(8, 30), temperatures=(1.0, 20.0), num_epochs=2
    )
    return config
