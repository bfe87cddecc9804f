"""Which client of a federation holds which examples: pure functions of the seed.

Each function returns one array of example ids for each client, on the host; no
example is held twice.
"""

from collections.abc import Sequence

import numpy as np

from kdjax.types import UserError

MIN_EXAMPLES = 10  # Of a client; partitions with a smaller one are drawn again.
_MAX_DRAWS = 1000


def dirichlet(
    labels: np.ndarray, num_clients: int, alpha: float, seed: int
) -> list[np.ndarray]:
    r"""Every class cut into shares drawn from a symmetric Dirichlet distribution.

    .. math:: (p_{1c}, \ldots, p_{Kc}) \sim \mathrm{Dir}(\alpha)

    is the share of class :math:`c` that each of :math:`K` clients gets. With a small
    :math:`\alpha` clients have few classes and very different numbers of examples,
    with a large one all have the same. Drawn again until every client has 10 examples.

    Args:
      labels: of all examples, integers `[N]`.
      num_clients: among whom they are divided.
      alpha: the concentration.
      seed: of the partition.

    Raises:
      UserError: if no draw gives every client its 10 examples.

    Examples:
      >>> import numpy as np
      >>> from kdjax.data import partitions
      >>> labels = np.arange(100) % 2
      >>> parts = partitions.dirichlet(labels, 3, alpha=1.0, seed=0)
      >>> sum(len(ids) for ids in parts)
      100

    References:
      Yurochkin et al., `Bayesian Nonparametric Federated Learning of Neural Networks
      <https://arxiv.org/abs/1905.12022>`_, ICML 2019, section 4.
    """
    rng = np.random.default_rng((seed, 1))
    possible = num_clients * MIN_EXAMPLES <= len(labels)
    for _ in range(_MAX_DRAWS if possible else 0):
        parts: list[list[np.ndarray]] = [[] for _ in range(num_clients)]
        for label in np.unique(labels):
            ids = rng.permutation(np.flatnonzero(labels == label))
            shares = rng.dirichlet(np.full(num_clients, alpha))
            cuts = (np.cumsum(shares)[:-1] * len(ids)).astype(np.int64)
            for part, some in zip(parts, np.split(ids, cuts), strict=True):
                part.append(some)
        joined = [np.sort(np.concatenate(part)) for part in parts]
        if min(len(ids) for ids in joined) >= MIN_EXAMPLES:
            return joined
    raise UserError(
        f"Expected each of {num_clients} clients to get {MIN_EXAMPLES} of "
        f"{len(labels)} examples by a Dirichlet distribution of concentration {alpha}, "
        f"got fewer in every draw: have fewer clients, or raise it."
    )


def shards(
    labels: np.ndarray, num_clients: int, shards_per_client: int, seed: int
) -> list[np.ndarray]:
    """Examples sorted by class, cut into equal shards, and some dealt to each client.

    Two shards of one class each make a client that knows two classes.

    Args:
      labels: of all examples, integers `[N]`.
      num_clients: among whom they are divided.
      shards_per_client: how many each gets.
      seed: of the partition.

    Raises:
      UserError: if there are more shards than examples.

    Examples:
      >>> import numpy as np
      >>> from kdjax.data import partitions
      >>> parts = partitions.shards(np.arange(12) // 2, 3, 2, seed=0)
      >>> [len(ids) for ids in parts]
      [4, 4, 4]

    References:
      McMahan et al., `Communication-Efficient Learning of Deep Networks from
      Decentralized Data <https://arxiv.org/abs/1602.05629>`_, AISTATS 2017, section 3.
    """
    count = num_clients * shards_per_client
    if count > len(labels):
        raise UserError(
            f"Expected at most as many shards as the {len(labels)} examples, got "
            f"{num_clients} clients of {shards_per_client} shards: have fewer."
        )
    rng = np.random.default_rng((seed, 2))
    shuffled = rng.permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    pieces = np.array_split(by_class, count)
    dealt = rng.permutation(count).reshape(num_clients, shards_per_client)
    return [np.sort(np.concatenate([pieces[i] for i in some])) for some in dealt]


def few(
    labels: np.ndarray,
    num_clients: int,
    classes: Sequence[int],
    *,
    classes_per_client: int,
    count: int,
    seed: int,
) -> list[np.ndarray]:
    """A few examples of some classes for each client; the rest is nobody's.

    Args:
      labels: of all examples, integers `[N]`.
      num_clients: who get examples.
      classes: that there are.
      classes_per_client: how many of these each client gets, at random.
      count: examples of a class.
      seed: of the partition.

    Raises:
      UserError: if there are not enough examples of a class.

    Examples:
      >>> import numpy as np
      >>> from kdjax.data import partitions
      >>> labels = np.arange(30) % 3
      >>> parts = partitions.few(
      ...     labels, 2, (0, 2), classes_per_client=2, count=4, seed=0)
      >>> [len(ids) for ids in parts]
      [8, 8]
    """
    rng = np.random.default_rng((seed, 3))
    left = {c: rng.permutation(np.flatnonzero(labels == c)) for c in classes}
    parts = []
    for _ in range(num_clients):
        taken = []
        for c in rng.permutation(np.asarray(classes))[:classes_per_client].tolist():
            taken.append(left[c][:count])
            left[c] = left[c][count:]
            if len(taken[-1]) < count:
                raise UserError(
                    f"Expected {num_clients} clients to get {count} examples of each "
                    f"of their classes, got too few of class {c}: ask for fewer."
                )
        parts.append(np.sort(np.concatenate(taken)))
    return parts


def pad(parts: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The clients' ids as one array, and how many of each row count.

    Args:
      parts: example ids of each client.

    Returns:
      Ids, int32 `[clients, most]`, rows filled up with zeros; and sizes, int32
      `[clients]`.

    Examples:
      >>> import numpy as np
      >>> from kdjax.data import partitions
      >>> ids, sizes = partitions.pad([np.array([4, 7]), np.array([5])])
      >>> ids.tolist(), sizes.tolist()
      ([[4, 7], [5, 0]], [2, 1])
    """
    sizes = np.array([len(ids) for ids in parts], np.int32)
    padded = np.zeros((len(parts), sizes.max()), np.int32)
    for row, ids in zip(padded, parts, strict=True):
        row[: len(ids)] = ids
    return padded, sizes


def label_counts(
    labels: np.ndarray, parts: Sequence[np.ndarray], num_classes: int
) -> np.ndarray:
    """How many examples of each class each client holds, `[clients, num_classes]`.

    Examples:
      >>> import numpy as np
      >>> from kdjax.data import partitions
      >>> parts = [np.array([0, 1]), np.array([2])]
      >>> partitions.label_counts(np.array([0, 0, 1]), parts, 2).tolist()
      [[2, 0], [0, 1]]
    """
    counts = [np.bincount(labels[ids], minlength=num_classes) for ids in parts]
    return np.stack(counts)
