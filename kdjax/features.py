"""A model's activations by name, and trainable maps from one side's to the other's."""

import dataclasses
import difflib
import fnmatch
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from kdjax.networks import Network
from kdjax.types import ADAPTERS, Outputs, UserError, Variables


@dataclasses.dataclass(frozen=True)
class Adapter:
    """A map from some of the student's features, trained with the student.

    Attributes:
      module: called as `module(*features, train=...)`.
      taps: the names of the features that it is given.
    """

    module: nn.Module
    taps: tuple[str, ...]


def shapes(network: Network) -> dict[str, tuple[int, ...]]:
    """The shape of every feature of one image, `[1, ...]`, by name; runs nothing."""

    def features(rng: jax.Array) -> Mapping[str, jax.Array]:
        images = jnp.zeros((1, *network.image_shape), jnp.uint8)
        outputs, _ = network.apply(network.init(rng), images, train=False)
        return outputs.features

    described = jax.eval_shape(features, jax.random.key(0))
    return {name: x.shape for name, x in described.items()}


def match(pattern: str, names: Iterable[str], owner: str) -> tuple[str, ...]:
    """The names that a pattern such as `stage[12]` or `stage*` means, in their order.

    Args:
      pattern: of `fnmatch`; a comma separates several.
      names: of the features, in the order of the forward pass.
      owner: whose they are, for the message.

    Returns:
      The matching names.

    Raises:
      UserError: if a pattern means none of them.

    Examples:
      >>> from kdjax import features
      >>> features.match("stage[12]", ["stem", "stage1", "stage2"], "the student")
      ('stage1', 'stage2')
    """
    names, found = list(names), set()
    for part in (part.strip() for part in pattern.split(",")):
        matching = fnmatch.filter(names, part)
        if not matching:
            near = difflib.get_close_matches(part, names, cutoff=0.4)
            hint = f" Did you mean {' or '.join(near)}?" if near else ""
            raise UserError(
                f"Expected {part!r} to match a feature of {owner}, which has "
                f"{', '.join(names) or 'none'}.{hint}"
            )
        found |= set(matching)
    return tuple(name for name in names if name in found)


def with_adapters(network: Network, adapters: Mapping[str, Adapter]) -> Network:
    """The network, with adapters that are trained together with it.

    In training, the output of the adapter called `name` is the feature `name`. Its
    variables lie under `ADAPTERS` in the collections of the network; in inference
    nothing of it is left.

    Args:
      network: the student.
      adapters: by name, which must be none of the features of `network`.
    """

    def init(rng: jax.Array) -> Variables:
        variables = network.init(rng)
        known = {
            name: jnp.zeros(shape, jnp.float32)
            for name, shape in shapes(network).items()
        }
        collections: dict[str, dict[str, Any]] = {k: {} for k in variables}
        for index, (name, adapter) in enumerate(adapters.items()):
            # The network itself starts as it would without adapters.
            key = jax.random.fold_in(rng, index)
            inputs = [known[tap] for tap in adapter.taps]
            made = adapter.module.init(key, *inputs, train=False)
            for collection, tree in made.items():
                collections.setdefault(collection, {})[name] = tree
        return {
            k: {**variables.get(k, {}), ADAPTERS: tree}
            for k, tree in collections.items()
        }

    def apply(
        variables: Variables,
        images: jax.Array,
        *,
        train: bool,
        rng: jax.Array | None = None,
    ) -> tuple[Outputs, Variables]:
        own, extra = split(variables)
        outputs, state = network.apply(own, images, train=train, rng=rng)
        if not train:
            return outputs, state
        features, new_extra = _adapt(adapters, extra, outputs.features, rng)
        state = {
            k: {**state.get(k, {}), ADAPTERS: new_extra.get(k, {})}
            for k in variables
            if k != "params"
        }
        return Outputs(outputs.logits, {**outputs.features, **features}), state

    return dataclasses.replace(network, init=init, apply=apply)


def split(variables: Variables) -> tuple[Variables, Variables]:
    """The network's own collections, and those of its adapters."""
    own = {
        collection: {name: x for name, x in tree.items() if name != ADAPTERS}
        for collection, tree in variables.items()
    }
    extra = {
        collection: tree[ADAPTERS]
        for collection, tree in variables.items()
        if ADAPTERS in tree
    }
    return {k: tree for k, tree in own.items() if tree}, extra


def _adapt(
    adapters: Mapping[str, Adapter],
    variables: Variables,
    features: Mapping[str, jax.Array],
    rng: jax.Array | None,
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """The adapters' outputs, and their collections that are not trained."""
    adapted: dict[str, Any] = {}
    state: dict[str, dict[str, Any]] = {k: {} for k in variables if k != "params"}
    for index, (name, adapter) in enumerate(adapters.items()):
        own = {k: tree[name] for k, tree in variables.items() if name in tree}
        rngs = None if rng is None else {"dropout": jax.random.fold_in(rng, index)}
        adapted[name], new = adapter.module.apply(
            own,
            *(features[tap] for tap in adapter.taps),
            train=True,
            rngs=rngs,
            mutable=[k for k in own if k != "params"],
        )
        for collection, tree in dict(new).items():
            state[collection][name] = tree
    return adapted, state
