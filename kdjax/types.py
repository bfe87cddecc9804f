"""What the layers of kdjax say to each other."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeAlias, runtime_checkable

import flax.struct
import jax

Variables: TypeAlias = Mapping[str, Any]
"""A model's collections: `params` and, for some, `batch_stats`."""

Batch: TypeAlias = Mapping[str, jax.Array]
"""One batch, the examples along the first axis of every entry:

* `image`: uint8 pixels as the models see them, augmented, `[B, height, width, C]`;
* in place of it, of texts, `tokens`, `[B, L]`, and `token_mask`, False for padding;
* `label`: integer classes, `[B]`;
* `soft_label`: class probabilities, `[B, num_classes]`; only where labels are mixed;
* `mask`: which examples are valid, `[B]`;
* `example_id`: the place in the data set, `[B]`;
* `teacher_logits`: only with a cached teacher, `[B, num_classes]`;
* `second_image`: another view of `image`, and `labelled`: whose label is known, `[B]`;
  only with a `TwoViewLoader`.
"""

ADAPTERS = "adapters"
"""Entry of a student's collections with what is trained beside the student itself."""

Values: TypeAlias = Mapping[str, jax.Array]
"""The hyperparameters at one step: scalars by name."""

HParams: TypeAlias = Mapping[str, Callable[[jax.Array], jax.Array]]
"""Schedules by name. A pytree: every number in it is a leaf of the compiled step."""


@flax.struct.dataclass
class Outputs:
    """What a model returns: logits, and named intermediate activations.

    Attributes:
      logits: unnormalised log-probabilities, `[B, num_classes]`.
      features: activations by name, `[B, ...]`.
      variables: those of the model, once a train step has added them for the losses
        that read a classifier or the statistics of a BatchNorm; else empty.
    """

    logits: Any  # An array; its shape and dtype, where a model is described.
    features: Mapping[str, Any] = flax.struct.field(default_factory=dict)
    variables: Variables = flax.struct.field(default_factory=dict)


@runtime_checkable
class ApplyFn(Protocol):
    """A model: variables and uint8 pixels to outputs and updated collections.

    The one function by which a Linen, NNX, Equinox or Haiku model joins. It
    normalises the pixels itself, since a teacher and a student may differ in that.
    """

    def __call__(
        self,
        variables: Variables,
        images: Any,  # Or what else the model takes: see kdjax.networks.
        *,
        train: bool,
        rng: jax.Array | None = None,
    ) -> tuple[Outputs, Variables]: ...


class UserError(Exception):
    """A mistake outside the code: a config, a flag, a path, a file, a full disk.

    The text is one or two sentences: what was expected, what was found, what to do.
    `kdjax.main` prints it without a traceback and exits with status 2.
    """
