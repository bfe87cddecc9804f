"""A model's activations by name, and trainable maps from one side's to the other's."""

import dataclasses
import difflib
import fnmatch
import functools
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from kdjax.networks import Network
from kdjax.types import (
    ADAPTERS,
    ApplyFn,
    Batch,
    Outputs,
    UserError,
    Values,
    Variables,
)


@dataclasses.dataclass(frozen=True)
class Adapter:
    """A map between the features of the two sides, trained with the student.

    Attributes:
      module: called as `module(*inputs, train=...)`.
      inputs: what it is given, out of the student's outputs, the teacher's outputs,
        the batch and the values of the step.
    """

    module: nn.Module
    inputs: Callable[[Outputs, Outputs, Batch, Values], tuple[Any, ...]]


def describe(network: Network) -> Outputs:
    """The outputs for one example as `jax.ShapeDtypeStruct`s; runs nothing."""
    apply: Any = network.apply  # A function can be a key, as a protocol says not.
    return _describe(network.init, apply, network.image_shape, network.example_fn)


@functools.lru_cache(maxsize=32)  # To trace a deep network takes seconds.
def _describe(
    init: Callable[[jax.Array], Variables],
    apply: ApplyFn,
    image_shape: tuple[int, ...],
    example_fn: Callable[[int], Any] | None,
) -> Outputs:
    network = Network("", init, apply, image_shape, 0, {}, example_fn)

    def outputs(rng: jax.Array) -> Outputs:
        variables = init(rng)
        outputs, _ = apply(variables, network.example(), train=False)
        return dataclasses.replace(outputs, variables=variables)

    return jax.eval_shape(outputs, jax.random.key(0))


def match(pattern: str, names: Iterable[str], owner: str) -> tuple[str, ...]:
    """The names that a pattern such as `stage[12]` or `stage*` means, in their order.

    Several patterns are taken in the order given, the names of one by their numbers,
    `block9` before `block10`: `jax.jit` and its like sort the keys of dictionaries, so
    that the order of the forward pass is not to be had.

    Args:
      pattern: of `fnmatch`; a comma separates several.
      names: of the features.
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
    names, found = sorted(names, key=_by_number), list[str]()
    for part in (part.strip() for part in pattern.split(",")):
        matching = fnmatch.filter(names, part)
        if not matching:
            near = difflib.get_close_matches(part, names, cutoff=0.4)
            hint = f" Did you mean {' or '.join(near)}?" if near else ""
            raise UserError(
                f"Expected {part!r} to match a feature of {owner}, which has "
                f"{', '.join(names) or 'none'}.{hint}"
            )
        found += [name for name in matching if name not in found]
    return tuple(found)


def _by_number(name: str) -> list[Any]:
    """A key that sorts the numbers in names as numbers."""
    parts = re.split(r"(\d+)", name)
    return [int(x) if i % 2 else x for i, x in enumerate(parts)]


def init(
    rng: jax.Array,
    student: Network,
    teacher: Outputs,
    adapters: Mapping[str, Adapter],
    values: Values,
) -> Variables:
    """The initial variables of a student and its adapters.

    The student itself starts as it would without them. Theirs lie under `ADAPTERS` in
    the same collections.

    Args:
      rng: the key that the student alone would be made from.
      student: the network.
      teacher: the teacher's outputs, as `describe` gives them.
      adapters: by name, which must be none of the student's features.
      values: the hyperparameters of the first step.
    """
    own = student.init(rng)
    student_zeros, teacher_zeros = jax.tree.map(
        lambda x: jnp.zeros(x.shape, x.dtype), (describe(student), teacher)
    )
    number, valid = jnp.zeros(1, jnp.int32), jnp.ones(1, bool)
    batch = {"label": number, "example_id": number, "mask": valid}
    extra: dict[str, dict[str, Any]] = {}
    for index, (name, adapter) in enumerate(adapters.items()):
        begin: Any = jax.jit(functools.partial(adapter.module.init, train=False))
        inputs = adapter.inputs(student_zeros, teacher_zeros, batch, values)
        made = begin(jax.random.fold_in(rng, index), *inputs)
        for collection, tree in made.items():
            extra.setdefault(collection, {})[name] = tree
    return join(own, extra)


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


def join(own: Variables, extra: Variables) -> Variables:
    """What `split` took apart."""
    joined = {collection: dict(tree) for collection, tree in own.items()}
    for collection, tree in extra.items():
        joined.setdefault(collection, {})[ADAPTERS] = tree
    return joined


def adapt(
    adapters: Mapping[str, Adapter],
    variables: Variables,
    student: Outputs,
    teacher: Outputs,
    batch: Batch,
    values: Values,
    rng: jax.Array,
) -> tuple[Outputs, Variables]:
    """The student's outputs with those of its adapters as features, in training.

    Returns:
      The outputs, in which the output of the adapter called `name` is the feature
      `name`, and the adapters' collections that are not trained.
    """
    adapted: dict[str, Any] = {}
    state: dict[str, dict[str, Any]] = {k: {} for k in variables if k != "params"}
    for index, (name, adapter) in enumerate(adapters.items()):
        own = {k: tree[name] for k, tree in variables.items() if name in tree}
        adapted[name], new = adapter.module.apply(
            own,
            *adapter.inputs(student, teacher, batch, values),
            train=True,
            rngs={"dropout": jax.random.fold_in(rng, index)},
            mutable=[k for k in own if k != "params"],
        )
        for collection, tree in dict(new).items():
            state[collection][name] = tree
    known = {**student.features, **adapted}
    return dataclasses.replace(student, features=known), state
