"""What every encoding of a teacher's outputs has."""

import abc
import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import numpy as np
from jaxtyping import Array, Float, ScalarLike

from kdjax.types import Outputs, UserError

Entries = Mapping[str, Any]
"""Arrays by name, the examples along the first axes of each; a batch is one too."""


@dataclasses.dataclass(frozen=True)
class Encoding(abc.ABC):
    """How logits are stored; equal encodings store equal logits equally.

    Attributes:
      num_classes: the number of logits of an example.
    """

    num_classes: int

    name: ClassVar[str]
    error: ClassVar[str]
    """What decoded logits differ by from the teacher's, for the manifest."""

    @abc.abstractmethod
    def arrays(self) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        """The stored arrays by name: shape and dtype of one entry."""

    @abc.abstractmethod
    def encode(self, logits: Float[Array, "*batch classes"]) -> dict[str, jax.Array]:
        """The entries of these logits, under the names of `arrays`."""

    @abc.abstractmethod
    def decode(
        self, entries: Entries, temperature: ScalarLike = 1.0
    ) -> Float[Array, "*batch classes"]:
        """Logits to be softened by `temperature`, float32 `[..., num_classes]`."""

    @abc.abstractmethod
    def deviations(
        self, entries: Entries, logits: Float[Array, "*batch classes"]
    ) -> dict[str, jax.Array]:
        """By how much stored entries miss those of `logits`, by name, not negative."""

    def outputs(self, entries: Entries, temperature: ScalarLike = 1.0) -> Outputs:
        """What of the teacher is stored: logits, and features where there are any."""
        return Outputs(self.decode(entries, temperature))

    @property
    def width(self) -> int:
        """The number of values of an example that are given to `encode`."""
        return self.num_classes

    def flatten(self, outputs: Outputs) -> Float[Array, "*batch width"]:
        """What `encode` takes, of the teacher's outputs: the logits."""
        return outputs.logits

    def rounding(self, logits: np.ndarray) -> float:
        """The largest deviation that the encoding itself may make on these logits."""
        del logits
        return 0.0

    def check_temperature(self, temperature: float | int) -> None:
        """Raises `UserError` if the decoded logits are not right at `temperature`."""
        del temperature

    def check_logits(self, logits: np.ndarray) -> None:
        """Raises `UserError` if these logits cannot be stored."""
        if not np.isfinite(logits).all():
            raise UserError(
                "Expected finite logits from the teacher, got NaN or infinity: look at "
                "its checkpoint, or run it in float32."
            )

    @property
    def bytes_per_entry(self) -> int:
        """The size of one entry before compression."""
        return sum(
            math.prod(shape) * dtype.itemsize for shape, dtype in self.arrays().values()
        )

    def description(self) -> dict[str, Any]:
        """Name and parameters; JSON-able. `from_description` is the way back."""
        return {"name": self.name} | dataclasses.asdict(self)
