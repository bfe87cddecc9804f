"""All that crosses between a client and its server."""

import math
from typing import Any

import flax.struct
import jax


@flax.struct.dataclass
class Broadcast:
    """From the server to each participant of a round.

    Attributes:
      variables: of the global model, from which the client goes on.
      teacher: of the model that the client is held near; empty for most methods.
    """

    variables: Any
    teacher: Any


@flax.struct.dataclass
class Upload:
    """From a client back to the server.

    Attributes:
      variables: of the client's model, after its local training.
      num_examples: how many examples it trained on, float32.
    """

    variables: Any
    num_examples: Any


@flax.struct.dataclass
class PublicLogits:
    """Both ways where clients share predictions, and no parameters.

    Attributes:
      logits: on this round's public examples, `[examples, num_classes]`.
    """

    logits: Any


def signature(tree: Any) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and dtype of every array of a message, by its path."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {
        jax.tree_util.keystr(path): (tuple(leaf.shape), str(leaf.dtype))
        for path, leaf in leaves
    }


def check(message: Any, expected: Any) -> None:
    """Raises `ValueError` unless a message holds what was agreed on, and no more.

    Costs nothing in a compiled step: it looks at shapes alone.
    """
    found, agreed = signature(message), signature(expected)
    if type(message) is not type(expected) or found != agreed:
        wrong = sorted(
            key for key in found | agreed if found.get(key) != agreed.get(key)
        )
        raise ValueError(
            f"Expected {type(expected).__name__} to cross between client and server as "
            f"agreed, got {type(message).__name__} that differs in "
            f"{', '.join(wrong) or 'nothing else'}."
        )


def num_bytes(message: Any) -> int:
    """The size of a message, of arrays or of their shapes."""
    return sum(
        math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(message)
    )
