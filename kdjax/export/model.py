"""A trained model as what a file can hold: a function of named inputs alone."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kdjax.models import convolutions
from kdjax.networks import Network
from kdjax.types import Variables

BATCH, LENGTH = "batch", "length"  # Sizes that a file leaves open.
PIXELS = ("uint8", "float32")

Arrays = Mapping[str, np.ndarray]  # Inputs by name, `[B, ...]` each.
Predict = Callable[[Arrays], np.ndarray]  # From inputs to logits.


class Input(NamedTuple):
    """One input of an exported model.

    Attributes:
      shape: sizes, and names of sizes that are left open.
      dtype: by NumPy's name.
    """

    shape: tuple[int | str, ...]
    dtype: str


@dataclasses.dataclass(frozen=True)
class Model:
    """A trained model, ready to be exported.

    Attributes:
      role: 'teacher' or 'student'.
      network: of which it is an instance.
      variables: trained.
      inputs: by name, in the order in which `logits` takes them.
      logits: from the variables and the inputs to logits, in inference mode. What is
        done to raw pixels is part of it.
      class_names: of the logits, for those who read the file; none: tokens.
      formats: in which it is written; none: in all that are wanted.
      longest: the most tokens of a text, where there are tokens.
    """

    role: str
    network: Network
    variables: Variables
    inputs: Mapping[str, Input]
    logits: Callable[..., jax.Array]
    class_names: tuple[str, ...] = ()
    formats: tuple[str, ...] = ()
    longest: int | None = None

    def specs(self) -> tuple[jax.ShapeDtypeStruct, ...]:
        """What JAX traces in place of inputs, open sizes as symbols."""
        limits = [] if self.longest is None else [f"{LENGTH} <= {self.longest}"]
        scope = jax.export.SymbolicScope(limits)
        return tuple(
            jax.ShapeDtypeStruct(
                jax.export.symbolic_shape(
                    ", ".join(str(size) for size in one.shape), scope=scope
                ),
                jnp.dtype(one.dtype),
            )
            for one in self.inputs.values()
        )

    def closed(self) -> Callable[..., jax.Array]:
        """The function of the inputs alone: the variables are constants of it."""
        variables = jax.tree.map(np.asarray, dict(self.variables))
        return functools.partial(self.logits, variables)

    def traced_for_others(self) -> Callable[..., jax.Array]:
        """As `closed`, of plain operations: what other libraries' converters know."""
        fn = self.closed()

        def logits(*inputs: jax.Array) -> jax.Array:
            with convolutions.plain():
                return fn(*inputs)

        return logits

    def cast(self, arrays: Arrays) -> dict[str, np.ndarray]:
        """Arrays in the order and the dtypes of `inputs`."""
        return {
            name: np.asarray(arrays[name], one.dtype)
            for name, one in self.inputs.items()
        }


def of_network(
    role: str,
    network: Network,
    variables: Variables,
    pixels: str = "uint8",
) -> Model:
    """A trained network as a function of images, or of tokens and their mask.

    Images are raw, 0 to 255: scaling and normalisation are inside. Of tokens, the mask
    is False where they are padding.

    Args:
      role: 'teacher' or 'student'.
      network: of images, or of a dictionary of `tokens` and `mask`.
      variables: trained.
      pixels: 'uint8', or 'float32' for the same values in floating point.
    """
    inputs = {"images": Input((BATCH, *network.image_shape), pixels)}
    if network.example_fn is not None:
        inputs = {
            name: Input((BATCH, LENGTH, *x.shape[2:]), x.dtype.name)
            for name, x in network.example().items()
        }

    def logits(variables: Variables, *arrays: jax.Array) -> jax.Array:
        named: Any = dict(zip(inputs, arrays, strict=True))
        given = named if network.example_fn is not None else named["images"]
        return network.apply(variables, given, train=False)[0].logits

    return Model(role, network, variables, inputs, logits)


def slices(arrays: Arrays, size: int) -> Iterator[dict[str, np.ndarray]]:
    """Consecutive examples, `size` at a time; the last ones may be fewer."""
    count = len(next(iter(arrays.values())))
    for start in range(0, count, size):
        yield {name: x[start : start + size] for name, x in arrays.items()}


def predict_all(predict: Predict, arrays: Arrays, size: int) -> np.ndarray:
    """Logits of all examples, `size` at a time."""
    return np.concatenate([predict(some) for some in slices(arrays, size)])
