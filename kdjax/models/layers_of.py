"""Single layers of a model, by what they do: those that some losses read."""

import itertools
import re

import jax

from kdjax.types import UserError, Variables


def classifier(variables: Variables) -> tuple[jax.Array, jax.Array]:
    """The kernel `[channels, classes]` and bias `[classes]` of the last linear layer.

    Raises:
      UserError: if there is none where the models of kdjax have it.
    """
    params = variables.get("params", {})
    names = sorted((x for x in params if re.fullmatch(r"Dense_\d+", x)), key=_number)
    if not names:
        raise UserError(
            "Expected a model whose last layer is a linear one, as the models of kdjax "
            f"have, got {', '.join(params) or 'no parameters'}: use a loss that does "
            "not read the classifier."
        )
    layer = params[names[-1]]
    return layer["kernel"], layer["bias"]


def last_norms(variables: Variables) -> list[tuple[jax.Array, jax.Array]]:
    """Scale and bias `[channels]` of the BatchNorm at the end of each ResNet stage.

    A stage is a run of residual blocks of one width; its end is the last convolution's
    BatchNorm of its last block, whose output the shortcut is added to.

    Raises:
      UserError: if the model is no ResNet of `kdjax.models`.
    """
    params = variables.get("params", {})
    blocks = [x for x in params if re.fullmatch(r"(BasicBlock|Bottleneck)_\d+", x)]
    if not blocks:
        raise UserError(
            "Expected a ResNet as teacher, whose BatchNorms give the margins of OFD, "
            f"got a model of {', '.join(params) or 'no parameters'}: use another loss, "
            "such as hint."
        )
    last = "BatchNorm_1" if blocks[0].startswith("BasicBlock") else "BatchNorm_2"
    norms = [params[name][last] for name in sorted(blocks, key=_number)]
    stages = itertools.groupby(norms, key=lambda norm: norm["scale"].shape)
    ends = [list(stage)[-1] for _, stage in stages]
    return [(norm["scale"], norm["bias"]) for norm in ends]


def _number(name: str) -> int:
    return int(name.rpartition("_")[2])
