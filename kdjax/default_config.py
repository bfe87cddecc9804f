"""Every key that a config has, with its unit and its neutral value.

Imports `ml_collections` alone, so that loading a config touches no device. A file in
`configs/` starts from here and states only what its experiment is about; a key that
is not here is a mistake, and is reported as one.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ml_collections import config_dict


def get_config(recipe: str = "offline") -> config_dict.ConfigDict:
    """Returns a fresh config of a recipe, on the embedded digits.

    Args:
      recipe: the way of distilling: a module of kdjax.recipes. Its section, if it has
        one, is below, under its name.
    """
    config = config_dict.ConfigDict()
    config.recipe = recipe
    if recipe in SECTIONS:
        config[recipe] = SECTIONS[recipe]()
    config.seed = 0  # Of the augmented views, and of the teacher.
    config.seeds = (0,)  # One student and one baseline each: initial weights, order.
    config.parallel = "jit"  # Or 'pmap'.
    config.steps_per_dispatch = 50  # On accelerators; one at a time on CPU.
    config.log_every_steps = 50
    config.diagnose_every_steps = 0  # Between looks at each term's gradient; 0: none.
    config.eval_every_epochs = 1  # Each evaluation saves a checkpoint.
    config.checkpoint_every_steps = 0  # Further checkpoints; 0: none.
    config.keep_checkpoints = 2  # The latest; the best by validation stays too.

    config.dataset = config_dict.create(
        name="digits",  # The embedded set, or a name of TensorFlow Datasets.
        path=config_dict.placeholder(str),  # .npz or image folder, in place of TFDS.
        data_dir=config_dict.placeholder(str),  # Where TFDS looks.
        image_size=config_dict.placeholder(int),  # Pixels, where images vary in size.
        validation=0.1,  # Cut from train: a count, or a fraction.
        max_examples=0,  # Of train and of test, at most, the classes evenly; 0: all.
        streaming=False,  # True: read batch by batch, for sets beyond memory.
    )
    config.teacher = config_dict.create(
        model=dict(name="resnet14", dtype="float32"),
        normalize="dataset",  # By its channel statistics; 'unit': pixels in [0, 1]; or
        # as pretrained weights need: 'imagenet', 'symmetric', 'efficientnet_lite',
        # 'caffe'.
        resize=0,  # Pixels: the side that its images are brought to on the device, by
        # linear interpolation; 0: none.
        pretrained=config_dict.placeholder(str),  # Weights: see docs/pretrained.md.
        finetune=False,  # True: `pretrained` is where its training begins.
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
        resize=0,  # As the teacher's, and apart from it.
        pretrained=config_dict.placeholder(str),  # Where its training begins, and the
        # baseline's.
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
    config.export = config_dict.create(  # Of the stage `export`.
        formats=("safetensors", "stablehlo", "onnx", "onnx_int8"),
        pixels="uint8",  # What files take, or 'float32': 0 to 255 in both.
        platforms=("cpu", "cuda", "tpu"),  # Of StableHLO.
        calibration=512,  # Examples of train, for ranges of activations in 8 bits.
        qat_epochs=0,  # In which a student, rounded to 8 bits, is distilled once more.
        qat_learning_rate=0.1,  # Of these, as a share of the student's.
        test_examples=10_000,  # Compared at most.
        batch_size=64,  # Of comparison and throughput.
        runs=200,  # Of each file at batch size 1, and of each batch.
        max_seconds=30.0,  # Of latencies, and of throughputs; no round begins later.
    )
    config.published = config_dict.create(
        source="",  # Empty: nothing to compare with.
        unit="accuracy",  # In %, or 'errors': a count.
        teacher=config_dict.placeholder(float),
        student=config_dict.placeholder(float),
        baseline=config_dict.placeholder(float),
        accept=config_dict.ConfigDict(),  # Role to (lowest, highest).
    )
    config.sweep = ()  # Axes, as `axes` makes them: many students, see docs/sweeps.md.
    config.sweep_options = config_dict.create(
        form="measured",  # How students share a program, or 'vmap', 'loop'.
        max_students=0,  # In one program; 0: as many as memory has room for.
        max_gigabytes=0.0,  # Of that memory; 0: most of what the device has free.
        rungs=(),  # Epochs after which the worst settings stop, by validation.
        keep=0.5,  # Share of the settings that goes on from a rung.
        trials=0,  # That optuna proposes, in place of a grid; 0: a grid.
        trials_at_once=8,  # In one program.
    )
    config.lock()  # A key that is not here is a mistake.
    _open(config)
    return config


def _open(section: config_dict.ConfigDict) -> None:
    """Lets new keys into the arguments of models, and into what begins empty."""
    for name, value in section.items():
        if isinstance(value, config_dict.ConfigDict):
            if not value or (name in ("model", "generator") and "name" in value):
                value.unlock()
            _open(value)


def axes(
    values: Mapping[str | tuple[str, ...], Sequence[Any]],
) -> tuple[tuple[str | tuple[str, ...], tuple[Any, ...]], ...]:
    """What `config.sweep` is set to, from the values of each key.

    Args:
      values: by path, such as `'distill.temperature'`, or by several paths that go
        together, for which each value is a tuple; `'seed'` is one of `config.seeds`.
        With `sweep_options.trials`, `(low, high)` or `(low, high, 'log')`.
    """
    return tuple((path, tuple(tried)) for path, tried in values.items())


def smoke(config: config_dict.ConfigDict) -> config_dict.ConfigDict:
    """Shrinks an experiment to seconds, on the embedded digits; adds no key."""
    config.seeds = (0, 1)
    config.log_every_steps = 5
    config.dataset.update(
        name="digits", path=None, data_dir=None, image_size=None, validation=237
    )
    config.cache.shard_size = 500
    config.teacher.update(pretrained=None, finetune=False)
    config.student.pretrained = None
    config.published.source = ""
    config.export.update(runs=5, max_seconds=5.0)
    for model in (config.teacher, config.student):
        if model.model.name == "mlp":
            model.model.hidden = (32,)
        else:
            model.model.name = "resnet8"
        model.update(normalize="dataset", resize=0)
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
        # these in a further, mixed cohort: dict(name="lenet5", dtype="float32"); in
        # the order of their names, as sections have it.
        updates="simultaneous",  # Or 'alternating': each sees those before it updated.
        weight=1.0,  # Of the mean divergence from the peers; the labels' is 1.
        temperature=1.0,
    )


def ensemble() -> config_dict.ConfigDict:
    """The section of `config.recipe = "ensemble"`."""
    return config_dict.create(
        counts=(1, 2, 5),  # Of teachers; as many as the largest are trained.
        ways=("logits", "probs", "losses"),  # What is averaged; and 'confidence'.
        weights=(),  # One for each teacher, positive; none: equal.
        models=config_dict.ConfigDict(),  # Of each teacher, by any name, in the order
        # of the names; none: all `teacher.model`.
    )


def assistants() -> config_dict.ConfigDict:
    """The section of `config.recipe = "assistants"`."""
    return config_dict.create(
        models=config_dict.ConfigDict(),  # By name.
        chain=(),  # These names, from the largest to the smallest.
    )


def cross_modal() -> config_dict.ConfigDict:
    """The section of `config.recipe = "cross_modal"`."""
    return config_dict.create(
        teacher_sees="left",  # Of kdjax.data.modalities.MODALITIES.
        student_sees="right",
        pairs=0.5,  # Of train, for the students; the rest, with labels, the teacher's.
        methods={},  # How students learn from pairs: name to loss, weight, arguments.
        labels=(10, 30, 100, 300),  # A class, for the probe and from scratch.
        compare_at=100,  # One of them: that of the table.
        scratch_epochs=50,  # Of as many examples as the most labels are.
        probe=dict(
            features="pooled",  # Of the student.
            weight_decay=1e-3,
        ),
    )


def visual_questions() -> config_dict.ConfigDict:
    """The section of `config.recipe = "visual_questions"`."""
    return config_dict.create(
        dim=64,  # Of the space in which the teacher multiplies image and question.
    )


def encoders() -> config_dict.ConfigDict:
    """The section of `config.recipe = "encoders"`.

    The last stage of a student is `student.train`, with the losses of `distill`.
    """
    return config_dict.create(
        tokenizer=config_dict.placeholder(str),  # tokenizer.json; none: one is made of
        # the words of the training texts.
        vocabulary_size=8000,  # Of that, at most.
        lengths=(32, 64, 128),  # Of batches, in tokens; longer texts are cut.
        corpus=config_dict.placeholder(str),  # Unlabelled: a line each, or a folder.
        layer_map="uniform",  # Of the teacher's layers to the student's; 'top',
        # 'bottom'.
        init_from_teacher=False,  # Students begin with its embeddings and those layers.
        general=dict(train=_train() | dict(num_epochs=0), terms={}),  # On `corpus`.
        layers=dict(train=_train(), terms={}),  # On the task's texts, before the last.
        arms=config_dict.ConfigDict(),  # By name: title, layer_map, without (terms),
        # teacher (False: labels alone), against, accept_gain, note.
        main_arm="distilled",  # Whose share of the teacher's accuracy is told.
        accept_share=config_dict.placeholder(float),  # The least that it should be.
    )


def born_again() -> config_dict.ConfigDict:
    """The section of `config.recipe = "born_again"`; losses are those of `distill`."""
    return config_dict.create(
        num_generations=3,  # After the first network, which learns from labels alone.
    )


def self_distillation() -> config_dict.ConfigDict:
    """The section of `config.recipe = "self_distillation"`."""
    return config_dict.create(
        arms=(  # In the order of the report.
            "plain",
            "label_smoothing",
            "virtual_teacher",
            "uskd",
            "byot",
            "weight_average",
            "mean_teacher",
            "few_labels",
            "few_labels_mean_teacher",
        ),
        label_smoothing=dict(share=0.1),  # Of a label's mass, spread over all classes.
        virtual_teacher=dict(
            alpha=0.1,  # Its weight; 1 - alpha is that of the labels.
            correct_prob=0.99,
            temperature=20.0,
            form="author_code",  # Or 'paper': see losses.virtual_teacher_loss.
        ),
        uskd=dict(
            features="stage2",  # What the weak head sees.
            target_weight=1.0,
            non_target_weight=0.1,
            weak_weight=0.005,
            form="paper",  # Or 'author_code': see losses.uskd_loss.
        ),
        byot=dict(
            features="stage?",  # An exit at each but the last, whose maps are hints.
            alpha=0.1,  # Of the deepest exit's teaching; 1 - alpha: labels, each exit.
            temperature=3.0,
            feature_weight=1e-6,  # Of squared distances, summed over the batch.
        ),
        mean_teacher=dict(
            decay=0.97,  # Of the average, a step.
            consistency=100.0,  # Weight of the mean squared difference.
            warmup_epochs=1.0,  # In which that weight grows from 0.
        ),
        few_labels=dict(
            num_labels=1000,  # Of the train split, the classes evenly; others hidden.
            batch_size=32,  # How many of them are in each batch.
        ),
    )


def data_free() -> config_dict.ConfigDict:
    """The section of `config.recipe = "data_free"`."""
    return config_dict.create(
        methods=("dafl", "dfad", "zskt"),  # Each with its control on normal noise.
        batch_size=512,  # Generated images in an update, over all devices.
        latent_dim=100,  # Of the generator's noise.
        generator=dict(name="conv"),  # Or 'mlp'; and its own arguments.
        dafl=_generating(
            num_epochs=60,
            steps_per_epoch=400,
            norm_epsilon=0.8,
            features="pooled",  # Of the teacher: what its last layer sees.
            weights=dict(one_hot=1.0, activation=0.1, information_entropy=5.0),
        ),
        dfad=_generating(num_epochs=20, steps_per_epoch=100, student_steps=5),
        zskt=_generating(
            num_epochs=20,
            steps_per_epoch=100,
            student_steps=10,
            features="",  # Of both sides, for attention maps; none: logits alone.
            weights=dict(attention=250.0),
        ),
    )


def _generating(**more: Any) -> dict:
    """How students and generators are trained by one method."""
    settings = dict(
        num_epochs=10,
        steps_per_epoch=100,  # Updates of the generator: there is no data to count.
        student_steps=1,  # Updates of the student for each of the generator.
        norm_epsilon=1e-5,  # Of the BatchNorm in the generator's hidden layers.
        weights={},  # Of the method's terms.
        published=config_dict.placeholder(float),  # Accuracy of the student, in %.
        published_noise=config_dict.placeholder(float),  # That of its control.
        accept=config_dict.placeholder(float),  # The least accuracy.
        accept_gain=config_dict.placeholder(float),  # The least lead over the control.
    )
    for role in ("student", "generator"):
        train = _train()
        settings[role] = {key: train[key] for key in ("optimizer", "learning_rate")}
        settings[role]["optimizer"]["name"] = "adamw"
        settings[role]["learning_rate"].update(schedule="constant", base=1e-3)
    return settings | more


def federated() -> config_dict.ConfigDict:
    """The section of `config.recipe = "federated"`.

    The teacher is the global model, `teacher.train` how a client trains it in a round;
    the student is a client's own model, `student.train` how it trains that.
    """
    return config_dict.create(
        methods=("fedavg", "feddf", "fedgkd", "personal"),  # And 'fedmd'.
        num_clients=20,
        partition="dirichlet",  # Or 'shards': sorted by class, cut, and dealt.
        levels=(0.1, 0.3, 0.5),  # Concentrations; of 'shards', shards of a client.
        participation=0.2,  # Share of the clients in a round.
        dropout=0.0,  # Probability that a participant is lost in the middle of a round.
        rounds=30,
        public=dict(  # Examples that everybody has, as of another `dataset`.
            name="mnist",  # Or 'validation': what `dataset.validation` sets aside.
            path=config_dict.placeholder(str),
            data_dir=config_dict.placeholder(str),
        ),
        feddf=dict(  # The server's distillation in a round, without labels.
            average="losses",  # Or 'logits', 'probs': what of the clients is averaged.
            num_steps=200,
            batch_size=128,
            learning_rate=1e-3,  # Of Adam, by half a cosine to 0.
            clip_norm=5.0,  # Of the gradient.
        ),
        fedgkd=dict(
            gamma=0.2,  # Weight of the divergence, halved by the method.
            memory=5,  # Global models whose mean is the teacher.
        ),
        fedmd=dict(
            models=config_dict.ConfigDict(),  # By any name, each with `clients`.
            classes=(0, 1, 2, 3, 4, 5),  # Of the private data set.
            classes_per_client=3,  # Of these.
            examples_per_class=10,  # Of a client.
            public_epochs=2,  # Before the rounds, with labels.
            num_public=5000,  # Public examples of a round.
            digest=dict(num_epochs=8, batch_size=250),  # Of the consensus.
            revisit=dict(num_epochs=4, batch_size=5),  # Of a client's own examples.
            accept_gain=config_dict.placeholder(float),  # Least, over clients alone.
        ),
        personal_teacher="feddf",  # Whose global model the clients' own learn from.
        # By method, pairs of a partition and a number: (("dirichlet_0.1", 71.81),).
        published=config_dict.ConfigDict(),  # Accuracies in %.
        accept_gain=config_dict.ConfigDict(),  # The least mean gain over FedAvg.
    )


def study_why() -> config_dict.ConfigDict:
    """The section of `config.recipe = "study_why"`; soft terms stand alone there."""
    return config_dict.create(
        few_labels=dict(
            num_labels=1800,  # Examples; 3 % of MNIST's 60,000.
            held_out=0.1,  # Fraction of these, by which hard labels stop early.
            temperatures=(2.0, 5.0, 10.0, 20.0),
            num_epochs=300,  # Of these few.
        ),
        speed=dict(
            look_every=50,  # Steps between two looks at the validation split.
            thresholds=(97.0, 98.0),  # Accuracies in %, to count the steps to.
        ),
        omit_3=dict(num_epochs=20),
        only_7_and_8=dict(num_epochs=60),
        width_temperature=dict(
            widths=(30, 100, 300, 800),  # Units of each hidden layer.
            temperatures=(1.0, 2.5, 4.0, 8.0, 12.0, 20.0, 40.0),
            num_epochs=20,
        ),
    )


def consistency() -> config_dict.ConfigDict:
    """The section of `config.recipe = "consistency"`."""
    return config_dict.create(
        multiples=(1, 4, 16),  # Schedules, in lengths of student.train.num_epochs.
        mixup=1.0,  # Of function matching; 1 is uniform.
    )


def learned_temperature() -> config_dict.ConfigDict:
    """The section of `config.recipe = "learned_temperature"`.

    What is learned begins at `distill.temperature` and `distill.alpha`.
    """
    return config_dict.create(
        learn=("temperature", "alpha"),  # Or one of the two.
        learning_rate=0.01,  # Of Adam, on log temperature and logit alpha.
        b2=0.999,  # Of Adam. The first gradients are the largest by far: with less, it
        # forgets them sooner and goes on moving.
        batch_size=256,  # Validation examples of a step.
        num_terms=1,  # Steps that the gradient looks back; each costs one more.
        temperatures=(1.0, 2.0, 4.0, 8.0, 20.0),  # Of the grid.
        alphas=(0.1, 0.5, 0.9),
        accept_gain=config_dict.placeholder(float),  # Least, over the grid's median.
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


def methods() -> config_dict.ConfigDict:
    """The section of `config.recipe = "methods"`.

    An entry of the table has `title`, `distill` (what it changes of `config.distill`),
    `published` (the accuracy in %), `note`, and `classifier`, 'student' or 'teacher':
    SimKD predicts by the teacher's.
    """
    return config_dict.create(
        only="",  # Names of the methods to train, commas between; empty: all.
        of_epochs=240.0,  # What the epochs in the table are out of: they are scaled
        # to student.train.num_epochs.
        table=config_dict.ConfigDict(),  # The methods, by name.
    )


def lm() -> config_dict.ConfigDict:
    """The section of `config.recipe = "lm"`.

    The corpus is `dataset`, the weight of the teacher `distill.alpha`; with
    `teacher.source="cached"` the teacher's last hidden states are stored, by which all
    its logits are known.
    """
    return config_dict.create(
        tokenizer=config_dict.placeholder(str),  # tokenizer.json; none: a new BPE.
        vocab_size=1024,  # Of a new one.
        length=64,  # Tokens of a text.
        teacher_windows=0,  # Texts that the teacher is trained on; 0: all.
        student_windows=0,  # Of these, the first so many for the students; 0: all.
        eval_windows=0,  # Texts of validation and of test; 0: all.
        methods=("forward_kl", "random_sampling", "top_k"),  # In the report's order.
        chunk_size=1024,  # Tokens whose logits are in memory at a time.
        skew=0.1,  # Of the student in the teacher's mixture, and the other way.
        draws=50,  # Of each token, for 'random_sampling'.
        top_k=12,  # Classes stored, for 'top_k' and 'top_k_tail'.
        gkd=dict(
            share=0.5,  # Of the steps, on text of the student's own.
            beta=0.5,  # Of the Jensen-Shannon divergence; the teacher's share.
            prompt=16,  # Tokens of a given text that it continues.
            temperature=1.0,
        ),
        taid=dict(start=0.4, end=1.0, rate=5e-4, decay=0.99),
        angles=dict(
            windows=32,  # Texts of the gradients compared.
            draws=(12, 25, 50, 100),
            top_k=(3, 6, 12, 25, 50, 100),
        ),
        prompts=(),  # Texts for both models to continue, in the report.
        new_tokens=40,
    )


SECTIONS: dict[str, Callable[[], config_dict.ConfigDict]] = {
    "assistants": assistants,
    "born_again": born_again,
    "consistency": consistency,
    "cross_modal": cross_modal,
    "data_free": data_free,
    "encoders": encoders,
    "ensemble": ensemble,
    "federated": federated,
    "learned_temperature": learned_temperature,
    "lm": lm,
    "methods": methods,
    "mutual": mutual,
    "self_distillation": self_distillation,
    "study_why": study_why,
    "visual_questions": visual_questions,
}
