"""What a term of an objective reads: how a loss finds its arguments in a step."""

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from kdjax import losses
from kdjax.types import Batch, Outputs, Values


@dataclasses.dataclass(frozen=True)
class Seen:
    """What a term sees: arrays in a step, and their shapes while it is built.

    Attributes:
      name: of the term.
      student_taps: the names of the student's features that it is about.
      teacher_taps: likewise of the teacher's.
      student: its outputs; those of the term's adapters are among its features.
      teacher: its outputs.
      batch: without the images.
      values: the hyperparameters.
    """

    name: str
    student_taps: tuple[str, ...]
    teacher_taps: tuple[str, ...]
    student: Outputs
    teacher: Outputs
    batch: Batch
    values: Values

    @property
    def student_layers(self) -> list[Any]:
        """The student's features, in the order of its layers."""
        return [self.student.features[tap] for tap in self.student_taps]

    @property
    def teacher_layers(self) -> list[Any]:
        """The teacher's features, in the order of its layers."""
        return [self.teacher.features[tap] for tap in self.teacher_taps]

    @property
    def adapted_layers(self) -> list[Any]:
        """The output of the adapter of each of the student's layers."""
        return [self.adapted(tap) for tap in self.student_taps]

    def adapted(self, key: str) -> Any:
        """The output of one of the term's adapters."""
        return self.student.features[f"{self.name}/{key}"]

    @property
    def epoch(self) -> jax.Array:
        """How many epochs have passed, with a fraction."""
        return self.values[f"{self.name}.epoch"]


class Setting(NamedTuple):
    """What else an adapter may need to know of a training.

    Attributes:
      batch_size: over all devices.
      labels: reads the classes of the whole training set, `[examples]`.
    """

    batch_size: int
    labels: Callable[[], np.ndarray]


Arguments: TypeAlias = tuple[Any, ...]
Reader: TypeAlias = Callable[[Seen], Any]
Modules: TypeAlias = dict[str, tuple[nn.Module, Callable[[Seen], Arguments]]]


def no_modules(seen: Seen, setting: Setting) -> Modules:
    """Those of a loss that needs none."""
    del seen, setting
    return {}


class Method(NamedTuple):
    """A loss that a config can name, and where in a step its arguments are.

    Attributes:
      fn: the loss of `kdjax.losses`.
      arguments: the arguments of each call; the values of several are added.
      taps: the layers that it is for, unless the config names others; none for a loss
        that reads logits alone.
      modules: the adapters by key, each with what it is given; the keywords of this
        function can be set by the config.
      keywords: those of the loss that are read in the step, and not from the config.
      beside: a further loss `[B]`, from which the adapters learn; its weight is 1.
      tokens: whether the loss has a value for each token, of which the mean over those
        of an example counts, padding left out.
    """

    fn: Callable[..., jax.Array]
    arguments: Callable[[Seen], list[Arguments]]
    taps: str = ""
    modules: Callable[..., Modules] = no_modules
    keywords: Mapping[str, Reader] = MappingProxyType({})
    beside: Callable[[Seen], jax.Array] | None = None
    tokens: bool = False

    def __call__(
        self, seen: Seen, *, standardize: bool = False, **hyperparameters: Any
    ) -> jax.Array:
        """The loss, `[B]`, perhaps of standardised logits (Sun et al. 2024)."""
        if standardize:
            student, teacher = (
                dataclasses.replace(x, logits=losses.standardize_logits(x.logits))
                for x in (seen.student, seen.teacher)
            )
            seen = dataclasses.replace(seen, student=student, teacher=teacher)
        read = {name: reader(seen) for name, reader in self.keywords.items()}
        total, where = jnp.zeros((), jnp.float32), self._where(seen)
        for arguments in self.arguments(seen):
            values = self.fn(*arguments, where=where, **read, **hyperparameters)
            if self.tokens:  # Their mean; of a text without any, zero.
                number = jnp.sum(where.astype(values.dtype), axis=1)
                values = jnp.sum(values, axis=1) / jnp.maximum(number, 1)
            total += values
        return total

    def _where(self, seen: Seen) -> jax.Array:
        where = seen.batch["mask"]
        if not self.tokens:
            return where
        if "token_mask" in seen.batch:
            return where[:, None] & seen.batch["token_mask"]
        length = seen.teacher_layers[0].shape[-2]
        return jnp.broadcast_to(where[:, None], (len(where), length))

    def options(self) -> dict[str, bool]:
        """What a term may set, and whether it is an array in the compiled step."""
        of_loss = keywords(self.fn)
        known = {name: of_loss[name] for name in of_loss if name not in self.keywords}
        known |= dict.fromkeys(self.of_modules(), False)
        known |= {"weight": True, "standardize": False}
        if self.taps:
            known |= {"student_features": False, "teacher_features": False}
        return known

    def of_modules(self) -> list[str]:
        """The names of what can be set of the adapters."""
        return list(keywords(self.modules))


def keywords(fn: Callable[..., Any]) -> dict[str, bool]:
    """The keywords of a loss, and whether each is a number that may change."""
    unset = {"where", "axis_name", "chunk_size"}
    return {
        name: parameter.annotation not in (int, bool, str)
        for name, parameter in inspect.signature(fn).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY and name not in unset
    }
