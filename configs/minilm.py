r"""MiniLM: how the tokens of one layer relate, and no layer matched to another.

Setting: Wang et al., MiniLM, NeurIPS 2020, https://arxiv.org/abs/2002.10957, and
MiniLMv2, ACL Findings 2021, https://arxiv.org/abs/2012.15828. Version 1 teaches the
last layer's attention and the relations of its values; version 2 ('v2' among the arms)
the relations of queries, of keys and of values, split anew into more heads, of a layer
of the teacher above its middle. The papers distil on BERT's corpus, then fine-tune on
the task: name a corpus by encoders.corpus and move the epochs and terms from
encoders.layers to encoders.general for that. Here both stages see the task's texts, the
teacher is MiniLM-L6 fine-tuned on Rotten Tomatoes, and the last stage learns from
labels.

Published: MiniLM of 6 layers of 384 on the GLUE dev sets, such as SST-2 91.5 and MNLI
83.3, at 5.3 times BERT-base's speed; MiniLMv2 of that size MNLI 82.8 from BERT-base.
Measured: not run with this setting.

Run:
  pip install -e '.[text]'
  python benchmarks/fetch_data.py --out=data rotten_tomatoes minilm_l6
  python -m kdjax.main --config=configs/minilm.py \
    --config.dataset.path=data/rotten_tomatoes \
    --config.teacher.pretrained=data/minilm_l6/model.safetensors \
    --config.encoders.tokenizer=data/minilm_l6/tokenizer.json

Try it in a few minutes, on any machine, without a download:
  python -m kdjax.main --config=configs/minilm.py:smoke
"""

from ml_collections import config_dict

from kdjax import default_config


def get_config(variant: str = "") -> config_dict.ConfigDict:
    """Returns the setting above, or a tiny one if `variant` is 'smoke'."""
    if variant not in ("", "smoke"):
        raise ValueError(f"Expected variant '' or 'smoke', got {variant!r}.")

    config = default_config.get_config("encoders")
    config.seeds = (0, 1, 2)
    config.log_every_steps = 100
    config.eval_every_epochs = 1000  # At the end: each evaluation saves a checkpoint.
    config.dataset.name = "rotten_tomatoes"
    config.dataset.validation = 0
    section = config.encoders
    section.lengths = (32, 64)
    config.teacher.finetune = True
    config.teacher.model = dict(name="minilm_l6", dtype="float32")
    for train in (config.teacher.train, section.layers.train, config.student.train):
        train.num_epochs = 2
        train.batch_size = 32
        train.optimizer.update(name="adamw", weight_decay=0.01, clip_norm=1.0)
        train.learning_rate.update(schedule="cosine", base=5e-5, warmup_epochs=0.2)
    config.student.model = dict(
        name="bert", dtype="float32", dim=192, depth=3, heads=12, hidden=768
    )
    for train in (section.layers.train, config.student.train):
        train.num_epochs = 5
        train.learning_rate.base = 5e-4
    section.layers.terms = dict(
        v1=dict(
            loss="minilm",
            weight=1.0,
            num_heads=12,
            student_features=_vectors(3),
            teacher_features=_vectors(6),
        ),
        v2=dict(
            loss="minilm_relation",
            weight=1.0,
            num_relation_heads=24,
            student_features=_vectors(3),
            teacher_features=_vectors(5),
        ),
    )
    config.distill.alpha = 0.0  # After the relations, labels.
    section.main_arm = "v1"
    section.arms = dict(
        v1=dict(title="MiniLM", without="v2", against="labels"),
        v2=dict(title="MiniLMv2", without="v1", against="labels"),
        labels=dict(title="Labels alone", teacher=False),
    )
    if variant == "smoke":
        config.seeds = (0, 1)
        config.dataset.update(name="docstrings", path=None)
        config.teacher.update(pretrained=None, finetune=False)
        section.update(tokenizer=None, vocabulary_size=1000, lengths=(16, 32))
        small = dict(name="bert", dtype="float32", dim=24, heads=2, hidden=48)
        config.teacher.model = dict(small, depth=4)
        config.student.model = dict(small, depth=2)
        for name, layer in (("v1", 4), ("v2", 3)):
            section.layers.terms[name].update(
                student_features=_vectors(2), teacher_features=_vectors(layer)
            )
        section.layers.terms.v1.num_heads = 2
        section.layers.terms.v2.num_relation_heads = 4
        for train in (config.teacher.train, section.layers.train, config.student.train):
            train.update(num_epochs=min(train.num_epochs, 2), batch_size=40)
            train.learning_rate.base = 3e-3
    return config


def _vectors(layer: int) -> str:
    return ",".join(f"block{layer}_{x}" for x in ("queries", "keys", "values"))
