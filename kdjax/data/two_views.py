"""Two views of every image, of which few may have labels."""

import itertools
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from kdjax.data import order
from kdjax.data.loaders import Inputs, ResidentLoader
from kdjax.types import Batch


class TwoViewLoader(ResidentLoader):
    """Batches with a second view of each image, and word of which labels are known.

    The first view is that of a `ResidentLoader`, the second one that no epoch shows
    first. Entries of a batch beside its: `second_image`, and `labelled`, `[B]`.

    Args:
      labelled: ids of the examples whose labels are known; None if all are. If some
        are not, every batch starts with `labelled_batch_size` of these, each as often
        as any other, and the rest of it is of the examples without labels.
      labelled_batch_size: of `batch_size`.
      **arguments: those of `ResidentLoader`.

    Raises:
      ValueError: if there is no whole batch, or of the labelled or of the others there
        is none for a batch.
    """

    def __init__(
        self,
        *,
        labelled: np.ndarray | None = None,
        labelled_batch_size: int = 0,
        **arguments: Any,
    ):
        super().__init__(**arguments)
        self._labelled_ids = labelled
        self._labelled_batch_size = labelled_batch_size
        is_labelled = np.ones(len(self._source), bool)
        if labelled is not None:
            is_labelled = np.isin(np.arange(len(self._source)), labelled)
            others = self._batch_size - labelled_batch_size
            if not (0 < labelled_batch_size and 0 < others <= np.sum(~is_labelled)):
                raise ValueError(
                    f"Expected some of the {self._batch_size} examples of a batch to "
                    f"be labelled and some not, got {labelled_batch_size} of "
                    f"{len(labelled)} labelled ones."
                )
        self._is_labelled = is_labelled

    def inputs(self, start_step: int) -> Iterator[Inputs]:
        """As a `ResidentLoader`, with the mask of labels and an order of its own."""
        step, last_epoch, ids = start_step, -1, None
        is_labelled = self._place(self._is_labelled)
        for inputs in super().inputs(start_step):
            epoch, _ = order.locate(step, self.steps_per_epoch)
            if self._labelled_ids is not None and epoch != last_epoch:
                last_epoch, ids = epoch, self._place(self.order_of(epoch))
            own_order = {} if ids is None else {"order": ids}
            yield {**inputs, **own_order, "labelled": is_labelled}
            step += 1

    def order_of(self, epoch: int) -> np.ndarray:
        """The ids of an epoch: each batch begins with the labelled ones.

        Both kinds go round: a permutation of all of them, then another one.
        """
        rng = np.random.default_rng([self._seed, epoch])
        few = self._labelled_batch_size
        batches = [
            _rounds(rng, ids, self.steps_per_epoch * size).reshape(-1, size)
            for ids, size in (
                (np.flatnonzero(self._is_labelled), few),
                (np.flatnonzero(~self._is_labelled), self._batch_size - few),
            )
        ]
        return np.concatenate(batches, axis=1).reshape(-1).astype(np.int32)

    def batch(
        self,
        inputs: Inputs,
        step: jax.Array,
        *,
        index: jax.Array | int = 0,
        count: int = 1,
    ) -> Batch:
        """The batch of a `ResidentLoader`, and the entries that are new."""
        batch = super().batch(inputs, step, index=index, count=count)
        epoch, _ = order.locate(step, self.steps_per_epoch)
        ids = batch["example_id"]
        raw = {name: inputs[name][ids] for name in ("image", "label")}
        view = self._num_views + epoch % self._num_views
        second = self._augmentation(raw, ids, view)["image"]
        return {**batch, "second_image": second, "labelled": inputs["labelled"][ids]}


def _rounds(rng: np.random.Generator, ids: np.ndarray, count: int) -> np.ndarray:
    """The first `count` of one permutation after another."""
    rounds = itertools.repeat(ids, -(-count // len(ids)))
    return np.concatenate([rng.permutation(x) for x in rounds])[:count]
