"""Every key that a config has, with its unit and its neutral value.

Imports `ml_collections` alone, so that loading a config touches no device. A file in
`configs/` starts from here and states only what its experiment is about; a key that
is not here is a mistake, and is reported as one.
"""

from ml_collections import config_dict


def get_config() -> config_dict.ConfigDict:
    """Returns a fresh config: offline distillation of the embedded digits."""
    config = config_dict.ConfigDict()
    config.recipe = "offline"  # The way of distilling: a module of kdjax.recipes.
    config.seed = 0  # Of the augmented views, and of the teacher.
    config.seeds = (0,)  # One student and one baseline each: initial weights, order.
    config.parallel = "jit"  # Or 'pmap'.
    config.steps_per_dispatch = 50  # On accelerators; one at a time on CPU.
    config.log_every_steps = 50
    config.eval_every_epochs = 1  # Each evaluation saves a checkpoint.
    config.checkpoint_every_steps = 0  # Further checkpoints; 0: none.
    config.keep_checkpoints = 2  # The latest; the best by validation stays too.

    config.dataset = config_dict.create(
        name="digits",  # The embedded set, or a name of TensorFlow Datasets.
        path=config_dict.placeholder(str),  # .npz or image folder, in place of TFDS.
        data_dir=config_dict.placeholder(str),  # Where TFDS looks.
        image_size=config_dict.placeholder(int),  # Pixels, where images vary in size.
        validation=0.1,  # Cut from train: a count, or a fraction.
        streaming=False,  # True: read batch by batch, for sets beyond memory.
    )
    config.teacher = config_dict.create(
        model=dict(name="resnet14", dtype="float32"),
        normalize="dataset",  # By its channel statistics; 'unit': pixels in [0, 1].
        checkpoint=config_dict.placeholder(str),  # Orbax directory, .safetensors, .pth.
        source="cached",  # Or 'online': run in every step.
        train=_train(),
    )
    config.cache = config_dict.create(
        encoding="float32",  # Or 'float16', 'topk'.
        top_k=5,
        temperatures=(1.0, 2.0, 4.0, 8.0, 20.0),  # Where the tail of 'topk' is exact.
        shard_size=8192,  # Examples.
        max_gigabytes=4.0,  # Of teacher's features; beyond, the teacher runs online.
    )
    config.student = config_dict.create(
        model=dict(name="resnet8", dtype="float32"),
        normalize="dataset",
        train=_train(),
    )
    config.distill = config_dict.create(
        temperature=4.0,
        temperature_schedule="constant",  # Or 'linear', 'cosine': to the final value.
        temperature_final=1.0,
        alpha=0.9,  # Weight of the soft term; 1 - alpha is that of the hard one.
        alpha_schedule="constant",  # As above.
        alpha_final=0.0,
        from_epoch=0.0,  # Until then both terms are off, and `terms` alone count.
        terms=config_dict.ConfigDict(),  # More losses by name, see builders.LOSSES.
    )
    config.published = config_dict.create(
        source="",  # Empty: nothing to compare with.
        unit="accuracy",  # In %, or 'errors': a count.
        teacher=config_dict.placeholder(float),
        student=config_dict.placeholder(float),
        baseline=config_dict.placeholder(float),
        accept=config_dict.ConfigDict(),  # Role to (lowest, highest).
    )
    config.lock()  # A key that is not here is a mistake.
    # But for the arguments of a model, more terms, and bands by role.
    for open_section in (
        config.teacher.model,
        config.student.model,
        config.distill.terms,
        config.published.accept,
    ):
        open_section.unlock()
    return config


def smoke(config: config_dict.ConfigDict) -> config_dict.ConfigDict:
    """Shrinks an experiment to seconds, on the embedded digits; adds no key."""
    config.seeds = (0, 1)
    config.log_every_steps = 5
    config.dataset.update(
        name="digits", path=None, data_dir=None, image_size=None, validation=237
    )
    config.cache.shard_size = 500
    config.teacher.checkpoint = None
    config.published.source = ""
    for model in (config.teacher, config.student):
        if model.model.name == "mlp":
            model.model.hidden = (32,)
        else:
            model.model.name = "resnet8"
        model.normalize = "dataset"
        model.train.update(num_epochs=2, batch_size=80)
        model.train.learning_rate.update(schedule="cosine", warmup_epochs=0.0)
        model.train.augment.resized_crop = False
        for name in ("crop_padding", "jitter"):
            model.train.augment[name] = min(model.train.augment[name], 1)
    return config


def mutual() -> config_dict.ConfigDict:
    """The section of `config.recipe = "mutual"`."""
    return config_dict.create(
        sizes=(2, 3, 4),  # Cohorts of so many students of `student.model`.
        partners=config_dict.ConfigDict(),  # Models, by any name, that join one of
        # these in a further, mixed cohort: dict(name="lenet5", dtype="float32").
        updates="simultaneous",  # Or 'alternating': each sees those before it updated.
        weight=1.0,  # Of the mean divergence from the peers; the labels' is 1.
        temperature=1.0,
    )


def _train() -> dict:
    """How a model is trained."""
    return dict(
        num_epochs=10,
        num_views=0,  # Augmented views of each image; 0: a new one each epoch.
        batch_size=128,  # Over all devices.
        num_microbatches=1,
        label_smoothing=0.0,
        ema_decay=0.0,  # Of the running average of the weights; 0: none.
        optimizer=dict(
            name="sgd",  # Or 'adamw'.
            momentum=0.9,
            nesterov=False,
            b1=0.9,
            b2=0.999,
            weight_decay=0.0,
            clip_norm=0.0,  # Of the whole gradient; 0: no clipping.
            max_norm=0.0,  # Of each unit's incoming weights; 0: no constraint.
        ),
        learning_rate=dict(
            schedule="cosine",  # Or 'step', 'constant'.
            base=0.1,
            warmup_epochs=0.0,
            final=0.0,  # Of 'cosine'.
            decay_factor=0.1,  # Of 'step'.
            decay_epochs=(),  # Of 'step'.
        ),
        augment=dict(
            crop_padding=0,  # Pixels.
            flip=False,
            cutout=0,  # Side of the square, pixels.
            jitter=0,  # Pixels, in any direction.
            mixup=0.0,  # Concentration of the Beta distribution; 0: none.
            resized_crop=False,  # The ImageNet crop, to dataset.image_size.
        ),
    )
