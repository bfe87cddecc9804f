r"""x"""

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
    section.lengths = (16, 32, 64)
    section.layers.terms = dict(
        embeddings=_hidden("embeddings"),
        hidden=_hidden("block*[0-9]"),
        attention=dict(loss="tinybert_attention", weight=1.0),
    )
    for train in (config.teacher.train, section.layers.train, config.student.train):
        train.batch_size = 32
        train.optimizer.update(name="adamw", weight_decay=0.01, clip_norm=1.0)
        train.learning_rate.update(schedule="cosine", base=5e-4, warmup_epochs=0.1)
    config.teacher.model = dict(
        name="bert", dtype="float32", dim=128, depth=6, heads=4, hidden=512
    )
    config.student.model = dict(
        name="bert", dtype="float32", dim=64, depth=2, heads=4, hidden=256
    )
    config.teacher.train.num_epochs = 4
    section.layers.train.num_epochs = 5
    config.student.train.num_epochs = 3
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
    if variant == "smoke":
        config.seeds = (0, 1)
        config.dataset.update(name="docstrings", path=None)
        section.update(tokenizer=None, vocabulary_size=1000, lengths=(16, 32))
        config.teacher.model.update(dim=24, depth=4, heads=2, hidden=48)
        config.student.model.update(dim=16, depth=2, heads=2, hidden=32)
        for train in (config.teacher.train, section.layers.train, config.student.train):
            train.update(num_epochs=2, batch_size=40)
    return config


def _hidden(features: str) -> dict:
    return dict(loss="tinybert_hidden", weight=1.0, student_features=features)


def _arm(title: str, **more) -> dict:
    return dict(title=title, against="uniform", **more)
