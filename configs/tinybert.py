r"""TinyBERT: a teacher's embeddings, layers and attention first, then its predictions.

Setting: Jiao et al., TinyBERT, EMNLP Findings 2020, https://arxiv.org/abs/1909.10351:
student layer m learns from teacher layer g(m) of three maps, 'uniform' m N / M, 'top' m
+ N - M and 'bottom' m; embeddings, hidden states and attention scores by squared errors
of weight 1, then the prediction by a soft cross-entropy at temperature 1.

Here on Rotten Tomatoes, 7,464 sentences to train on and 1,066 to test on, with an
encoder of 6 layers of 128 that is trained from scratch as teacher, and 2 layers of 64
as student: the shape of the published ablation, in minutes, and not its figures. Left
out: the general stage (no corpus; see encoders.corpus) and the paper's augmented data.
Each layer has a projection of its own, where the authors share one. 'no_layers' keeps
the loss of the embeddings, 'labels' takes as many steps on labels alone.

Variant 'minilm': the real MiniLM-L6 as teacher, fine-tuned, and a student of 3 of its 6
layers' width, so begun with its embeddings and its layers 2, 4, 6.

Published, BERT-base to 4 layers of 312 (mean of MNLI, MRPC and CoLA, dev): uniform
75.6, bottom 71.3, top 70.9, without the losses of the layers 56.3; 96.9 % of the
teacher's 79.5 on the GLUE test sets (77.0), 9.4 times as fast with 7.5 times fewer
parameters.
Measured (seeds 0 to 2, two CPU cores): teacher 76.55 %; uniform map 75.58 +- 0.20, top
75.42 +- 0.19, bottom 75.11 +- 0.27, without layers 75.02 +- 1.05, labels alone 75.33 +-
0.68: the uniform map first, no layers last, and no difference told from 0.
Measured (minilm, 3,000 sentences by --config.dataset.max_examples=3000, seeds 0 and 1):
teacher 80.68 %; uniform map 77.95 +- 0.93, 96.6 % of it; top 76.45 +- 0.40, bottom
75.47 +- 0.46, without layers 76.13 +- 0.07, labels alone 77.30 +- 0.00.

Run:
  pip install -e '.[text]'
  python benchmarks/fetch_data.py --out=data rotten_tomatoes
  python -m kdjax.main --config=configs/tinybert.py \
    --config.dataset.path=data/rotten_tomatoes

  python benchmarks/fetch_data.py --out=data minilm_l6
  python -m kdjax.main --config=configs/tinybert.py:minilm \
    --config.dataset.path=data/rotten_tomatoes \
    --config.teacher.pretrained=data/minilm_l6/model.safetensors \
    --config.encoders.tokenizer=data/minilm_l6/tokenizer.json

Try it in a few minutes, on any machine, without a download (whose function a sentence
of documentation describes, of the packages that are installed):
  python -m kdjax.main --config=configs/tinybert.py:smoke
"""

from ml_collections import config_dict

from kdjax import default_config


def get_config(variant: str = "") -> config_dict.ConfigDict:
    """Returns the setting above, with MiniLM, or a tiny one if `variant` is 'smoke'."""
    if variant not in ("", "minilm", "smoke"):
        raise ValueError(f"Expected variant '', 'minilm' or 'smoke', got {variant!r}.")

    config = default_config.get_config("encoders")
    config.seeds = (0, 1, 2)
    config.log_every_steps = 100
    config.eval_every_epochs = 1000  # At the end: each evaluation saves a checkpoint.
    config.dataset.name = "rotten_tomatoes"
    config.dataset.validation = 0
    section = config.encoders
    section.lengths = (24, 48)
    section.layers.terms = dict(
        embeddings=_hidden("embeddings"),
        hidden=_hidden("block*[0-9]"),
        attention=dict(loss="tinybert_attention", weight=1.0),
    )
    for train in (config.teacher.train, section.layers.train, config.student.train):
        train.batch_size = 32
        train.optimizer.update(name="adamw", weight_decay=0.01, clip_norm=1.0)
        train.learning_rate.update(schedule="cosine", base=1e-3, warmup_epochs=0.1)
    config.teacher.train.learning_rate.base = 5e-4
    config.teacher.model = dict(
        name="bert", dtype="float32", dim=128, depth=6, heads=4, hidden=512
    )
    config.student.model = dict(
        name="bert", dtype="float32", dim=64, depth=2, heads=4, hidden=256
    )
    config.teacher.train.num_epochs = 4
    section.layers.train.num_epochs = 2
    config.student.train.num_epochs = 2
    config.distill.update(temperature=1.0, alpha=1.0)
    config.distill.terms.soft = dict(loss="tinybert_prediction", weight=1.0)
    section.main_arm = "uniform"
    section.accept_share = 0.96
    section.arms = dict(
        uniform=dict(title="Uniform map"),
        top=_arm("Top layers", layer_map="top", accept_gain=(None, 0.5)),
        bottom=_arm("Bottom layers", layer_map="bottom", accept_gain=(None, 0.5)),
        no_layers=_arm(
            "Without layers", without="hidden,attention", accept_gain=(None, 0.0)
        ),
        labels=_arm("Labels alone", teacher=False),
    )
    if variant == "minilm":
        _minilm(config)
    if variant == "smoke":
        config.seeds = (0, 1)
        config.dataset.update(name="docstrings", path=None)
        section.update(tokenizer=None, vocabulary_size=1000, lengths=(16, 32))
        config.teacher.model.update(dim=24, depth=4, heads=2, hidden=48)
        config.student.model.update(dim=16, depth=2, heads=2, hidden=32)
        for train in (config.teacher.train, section.layers.train, config.student.train):
            train.update(num_epochs=2, batch_size=40)
            train.learning_rate.base = 3e-3
        config.teacher.train.num_epochs = 8
    return config


def _minilm(config: config_dict.ConfigDict) -> None:
    """A real teacher, and students that begin as DistilBERT's do."""
    config.encoders.lengths = (32, 64)
    config.encoders.init_from_teacher = True
    config.teacher.finetune = True
    config.teacher.model = dict(name="minilm_l6", dtype="float32")
    config.student.model = dict(
        name="bert", dtype="float32", dim=384, depth=3, heads=12, hidden=1536
    )
    sections = config.teacher.train, config.encoders.layers.train, config.student.train
    for train in sections:
        train.learning_rate.update(base=5e-5, warmup_epochs=0.2)
        train.num_epochs = 2


def _hidden(features: str) -> dict:
    return dict(loss="tinybert_hidden", weight=1.0, student_features=features)


def _arm(title: str, **more) -> dict:
    return dict(title=title, against="uniform", **more)
