r"""CIFAR-10: twenty-two methods of distillation, ResNet-56 into ResNet-20, one budget.

Setting: the CIFAR-10 table of Knowledge-Distillation-Zoo,
https://github.com/AberHu/Knowledge-Distillation-Zoo: 200 epochs, batch 128, SGD with
0.1, divided by 10 at 100 and 150, weight decay 1e-4. Its teacher is a ResNet-110, its
figures are of the best epoch of one run, and its weights are its own; weights and
stages here are those of RepDistiller, https://github.com/HobbitLong/RepDistiller, or
of the paper, for the forms of the losses that kdjax has. Epochs of warm-up and of first
stages are out of 240, and scale with the budget, which they are a part of.
Published test accuracy: student alone 92.37, mean of twenty methods 92.96 % (a standard
deviation of 0.19 between methods; the sampling error of one figure is 0.26).

Run all of it:
  python benchmarks/fetch_data.py --out=data cifar10 resnet56_cifar10
  python -m kdjax.main --config=configs/cifar_methods.py

Run ten epochs of each, by several processes on one accelerator:
  export XLA_PYTHON_CLIENT_PREALLOCATE=false
  run="python -m kdjax.main --config=configs/cifar_methods.py:short"
  $run --stages=teacher,cache,baseline
  $run --stages=methods --config.methods.only=kd,logits,dkd,dist &
  $run --stages=methods --config.methods.only=hint,fitnets,at,nst & wait
  $run --stages=methods,report

Measured (:short with 3 epochs, seeds 0 to 2, 15 of the methods, one NVIDIA H200, commit
12dfddd): no teacher 72.08 +- 1.02; 13 of 15 above it in the mean, OFD +14.2, hint
+12.6, FitNets +8.0, ReviewKD +7.0, attention transfer +6.4, SP +6.1, PKT +2.1, DIST
+1.9, KD +1.6, DKD and logits +1.2, VID +1.1, CRD +0.2, RKD -2.1, SimKD -3.5.

Try it in a minute, on any machine, without a download (on the embedded digits):
  python -m kdjax.main --config=configs/cifar_methods.py:smoke
"""

from ml_collections import config_dict

from kdjax import default_config

LABELS = dict(alpha=0.0)  # The labels at a weight of 1, and no soft targets.
FIRST = 30.0  # Epochs of a first stage without labels, out of 240.
STAGES = "stage[123]"


def _term(loss: str, weight: float, **settings) -> dict:
    return {loss: dict(loss=loss, weight=weight, **settings)}


def _labels_and(*terms: dict) -> dict:
    return LABELS | dict(terms={k: v for term in terms for k, v in term.items()})


def _by_stage(loss: str, weights: dict[int, float], **settings) -> dict:
    """One term for each stage of the network, before its last ReLU."""
    return {
        f"{loss}{i}": dict(
            loss=loss,
            weight=weight,
            student_features=f"stage{i}_preact",
            teacher_features=f"stage{i}_preact",
            **settings,
        )
        for i, weight in weights.items()
    }


# Title, what of `config.distill` it changes, published accuracy, note.
METHODS: dict[str, tuple[str, dict, float | None, str]] = {
    "kd": (
        "KD (soft targets)",
        dict(alpha=0.9, temperature=4.0),
        92.82,
        "0.9 T^2 KL + 0.1 labels at T = 4; published with 0.1 KL + labels",
    ),
    "logits": (
        "Logits",
        _labels_and(_term("logit_matching", 0.2)),
        92.98,
        "centred; half a square, so twice the published 0.1",
    ),
    "dkd": (
        "DKD",
        _labels_and(_term("dkd", 1.0, non_target_weight=2.0, warmup_epochs=20.0)),
        None,
        "beta = 2, T = 4",
    ),
    "dist": (
        "DIST",
        _labels_and(
            _term("dist", 1.0, inter_weight=2.0, intra_weight=2.0, temperature=4.0)
        ),
        None,
        "",
    ),
    "lskd": (
        "KD of standardised logits",
        dict(
            alpha=0.9,  # Of which the labels' 0.1 is left.
            terms=dict(
                soft=dict(
                    loss="soft_target", weight=9.0, temperature=2.0, standardize=True
                )
            ),
        ),
        None,
        "9 T^2 KL + 0.1 labels at T = 2",
    ),
    "hint": ("Hint", _labels_and(_term("hint", 100.0)), 93.04, "one stage"),
    "fitnets": (
        "FitNets",
        dict(
            alpha=0.9,
            temperature=4.0,
            from_epoch=FIRST,
            terms=_term("hint", 100.0, until_epoch=FIRST),
        ),
        None,
        "up to the hint alone for an eighth of the epochs, then KD",
    ),
    "at": (
        "Attention transfer",
        _labels_and(
            _term(
                "attention_transfer",
                1000.0,
                form="author_code",
                student_features=STAGES,
                teacher_features=STAGES,
            )
        ),
        93.21,
        "",
    ),
    "nst": ("NST", _labels_and(_term("nst", 50.0)), 92.83, "last maps"),
    "fsp": (
        "FSP",
        _labels_and(
            _term(
                "fsp",
                50.0,
                until_epoch=FIRST,
                student_features=STAGES,
                teacher_features=STAGES,
            )
        )
        | dict(from_epoch=FIRST),
        92.78,
        "alone for an eighth of the epochs, then labels",
    ),
    "ab": (
        "AB",
        LABELS
        | dict(
            from_epoch=FIRST,
            terms=_by_stage("ab", {1: 0.75e-3, 2: 1.5e-3, 3: 3e-3}, until_epoch=FIRST),
        ),
        92.96,
        "alone for an eighth of the epochs, then labels",
    ),
    "ft": (
        "Factor transfer",
        _labels_and(
            _term("factor", 200.0, form="repdistiller", paraphrase_epochs=FIRST)
        )
        | dict(from_epoch=FIRST),
        93.01,
        "the paraphraser alone for an eighth of the epochs",
    ),
    "vid": (
        "VID",
        _labels_and(
            _term("vid", 1.0, student_features=STAGES, teacher_features=STAGES)
        ),
        92.98,
        "",
    ),
    "ofd": (
        "OFD",
        LABELS | dict(terms=_by_stage("ofd", {1: 0.25e-3, 2: 0.5e-3, 3: 1e-3})),
        93.13,
        "",
    ),
    "review": (
        "ReviewKD",
        _labels_and(
            _term(
                "review",
                0.6,
                student_features=STAGES,
                teacher_features=STAGES,
                warmup_epochs=20.0,
            )
        ),
        None,
        "",
    ),
    "srrl": ("SRRL", _labels_and(_term("srrl", 1.0)), None, ""),
    "simkd": (
        "SimKD",
        dict(
            alpha=0.0,
            terms=dict(hard=dict(loss="cross_entropy", weight=0.0))
            | _term("simkd", 1.0),
        ),
        None,
        "no labels; predicts by the teacher's classifier",
    ),
    "pkt": (
        "PKT",
        _labels_and(_term("pkt", 30000.0, form="author_code")),
        93.01,
        "",
    ),
    "sp": (
        "Similarity preserving",
        _labels_and(_term("similarity_preserving", 3000.0)),
        93.30,
        "last maps",
    ),
    "rkd": (
        "RKD",
        _labels_and(_term("rkd_distance", 25.0), _term("rkd_angle", 50.0)),
        93.21,
        "",
    ),
    "cc": (
        "CC",
        _labels_and(_term("correlation_congruence", 0.02, form="repdistiller")),
        92.98,
        "",
    ),
    "crd": ("CRD", _labels_and(_term("crd", 0.8, num_negatives=16384)), 92.92, ""),
}


def get_config(variant: str = "") -> config_dict.ConfigDict:
    """Returns the published setting, ten epochs of it, or a tiny one."""
    if variant not in ("", "short", "smoke"):
        raise ValueError(f"Expected variant '', 'short' or 'smoke', got {variant!r}.")

    config = default_config.get_config("methods")
    config.seeds = (0, 1, 2)
    config.dataset.update(name="cifar10", path="data/cifar10.npz", validation=5000)
    # Stops at the ends of epochs alone, so that a method is one program.
    config.update(steps_per_dispatch=1000, log_every_steps=10**9)
    config.teacher.pretrained = "data/resnet56_cifar10.safetensors"
    config.teacher.normalize = "unit"
    config.teacher.model.name = "resnet56"
    config.student.model.name = "resnet20"
    for model in (config.teacher, config.student):
        model.train.num_epochs = 200
        model.train.batch_size = 128
        model.train.optimizer.weight_decay = 1e-4
        model.train.learning_rate.update(
            schedule="step", base=0.1, decay_factor=0.1, decay_epochs=(100, 150)
        )
        model.train.augment.update(crop_padding=4, flip=True)
    config.published.update(
        source="Knowledge-Distillation-Zoo: ResNet-110 teacher, best epoch, one run",
        teacher=93.86,
        baseline=92.37,
        accept=dict(baseline=(91.5, 92.7), kd_gain=(0.2, 1.2)),
    )
    for name, (title, distill, published, note) in METHODS.items():
        config.methods.table[name] = dict(
            title=title,
            distill=distill,
            published=published,
            note=note,
            classifier="teacher" if name == "simkd" else "student",
        )
    if variant == "short":
        _shorten(config)
    return _smoke(config) if variant == "smoke" else config


def _shorten(config: config_dict.ConfigDict) -> None:
    config.eval_every_epochs = 5
    config.student.train.num_epochs = 10
    config.student.train.learning_rate.update(
        schedule="cosine", base=0.1, warmup_epochs=0.5
    )
    config.published.accept = config_dict.ConfigDict()  # They are of 200 epochs.


def _smoke(config: config_dict.ConfigDict) -> config_dict.ConfigDict:
    """On digits, three methods of one kind each."""
    config = default_config.smoke(config)
    config.methods.only = "kd,fitnets,simkd"
    config.methods.table.crd.distill.terms.crd.num_negatives = 50
    return config
