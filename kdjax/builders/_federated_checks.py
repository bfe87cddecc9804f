"""What can be said of a federated config before anything is read or built."""

from ml_collections import ConfigDict

from kdjax.builders._checks import expect
from kdjax.builders._federation import DIVISIONS, ROUNDS
from kdjax.types import UserError

METHODS = (*ROUNDS, "personal", "fedmd")
AVERAGES = ("losses", "logits", "probs")

_POSITIVE = (
    "num_clients",
    "rounds",
    "feddf.num_steps",
    "feddf.batch_size",
    "fedgkd.memory",
    "fedmd.classes_per_client",
    "fedmd.examples_per_class",
    "fedmd.num_public",
    "fedmd.digest.batch_size",
    "fedmd.revisit.batch_size",
)
_NOT_NEGATIVE = (
    "feddf.learning_rate",
    "feddf.clip_norm",
    "fedgkd.gamma",
    "fedmd.public_epochs",
    "fedmd.digest.num_epochs",
    "fedmd.revisit.num_epochs",
)


def check(config: ConfigDict) -> None:
    """Raises `UserError` on the first value out of its range."""
    federated = config.federated
    for name in _POSITIVE:
        _expect(config, name, lambda x: x > 0, "a positive number")
    for name in _NOT_NEGATIVE:
        _expect(config, name, lambda x: x >= 0, "no negative number")
    _expect(config, "participation", lambda x: 0 < x <= 1, "above 0 and at most 1")
    _expect(config, "dropout", lambda x: 0 <= x <= 1, "a number between 0 and 1")
    _expect(config, "partition", lambda x: x in DIVISIONS, f"one of {[*DIVISIONS]}")
    _expect(config, "feddf.average", lambda x: x in AVERAGES, f"one of {AVERAGES}")
    methods = federated.methods
    _expect(
        config,
        "methods",
        lambda x: x and set(x) <= set(METHODS) and len(set(x)) == len(x),
        f"some of {METHODS}, each once",
    )
    _expect(
        config,
        "levels",
        lambda x: x and min(x) > 0 and len(set(x)) == len(x),
        "different positive numbers",
    )
    if federated.partition == "shards":
        whole = "whole numbers where partition is 'shards'"
        _expect(config, "levels", lambda x: all(isinstance(n, int) for n in x), whole)
    if "personal" in methods and federated.personal_teacher not in methods:
        raise UserError(
            "Expected federated.personal_teacher to be among federated.methods, so "
            f"that there is a global model to learn from, got "
            f"{federated.personal_teacher!r} and {tuple(methods)}: add it."
        )
    _expect(config, "personal_teacher", lambda x: x in ROUNDS, f"one of {ROUNDS}")
    if "fedmd" in methods:
        _check_fedmd(config)
    _check_unused(config)


def by_partition(section: ConfigDict) -> dict[str, dict[str, float]]:
    """Numbers by method and partition, from a config's pairs.

    Raises:
      UserError: if they are no pairs of a name and a number.
    """
    try:
        return {
            method: {str(name): float(number) for name, number in pairs}
            for method, pairs in section.items()
        }
    except (TypeError, ValueError) as error:
        raise UserError(
            "Expected federated.published and federated.accept_gain to have for each "
            'method pairs such as ("dirichlet_0.1", 71.81), got '
            f"{section.to_dict()}."
        ) from error


def _check_fedmd(config: ConfigDict) -> None:
    fedmd = config.federated.fedmd
    if not fedmd.models or any(m.get("clients", 0) < 1 for m in fedmd.models.values()):
        raise UserError(
            "Expected federated.fedmd.models to name models, each with the number of "
            "its `clients`, got "
            f"{fedmd.models.to_dict()}: for example dict(name='mlp', "
            "dtype='float32', clients=2)."
        )
    if fedmd.num_public % fedmd.digest.batch_size:
        raise UserError(
            "Expected federated.fedmd.num_public to divide into batches of "
            f"federated.fedmd.digest.batch_size, got {fedmd.num_public} and "
            f"{fedmd.digest.batch_size}."
        )
    _expect(
        config,
        "fedmd.classes",
        lambda x: len(set(x)) == len(x) >= fedmd.classes_per_client,
        f"at least {fedmd.classes_per_client} different classes",
    )


def _check_unused(config: ConfigDict) -> None:
    """What clients do not do in a federation may not be asked for."""
    if config.parallel != "jit":
        raise UserError(
            f"Expected parallel='jit' in a federation, whose clients are split over "
            f"the devices, got {config.parallel!r}."
        )
    for role in ("teacher", "student"):
        train = config[role].train
        asked = [f"augment.{k}" for k, x in train.augment.items() if x]
        asked += ["ema_decay"] * (train.ema_decay > 0)
        asked += ["num_microbatches"] * (train.num_microbatches > 1)
        if asked:
            raise UserError(
                f"Expected clients to train on plain images in whole batches, got "
                f"{role}.train.{asked[0]}: leave it at its default."
            )


def _expect(config: ConfigDict, name: str, holds: object, expected: str) -> None:
    expect(config, f"federated.{name}", holds, expected)
