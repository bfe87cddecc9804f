"""Batches as a function of the step: from the device's memory, or streamed.

Both loaders give the same batches for the same step, and start at any step at no cost.
"""

import contextlib
import functools
import itertools
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np

from kdjax.data import order
from kdjax.data.augment import Augmentation
from kdjax.data.sources import Source
from kdjax.types import Batch

Inputs = Mapping[str, Any]


@runtime_checkable
class Loader(Protocol):
    """Where a training gets its batches."""

    steps_per_epoch: int

    def inputs(self, start_step: int) -> Iterator[Inputs]:
        """The arrays that each step takes, from `start_step` on, for ever."""
        ...

    def batch(
        self,
        inputs: Inputs,
        step: jax.Array,
        *,
        index: jax.Array | int = 0,
        count: int = 1,
    ) -> Batch:
        """The batch of a step, inside the compiled program.

        Device `index` of `count` gets its contiguous share.
        """
        ...


class ResidentLoader:
    """The whole set lives on the device, beside the order of the current epoch.

    Args:
      source: the examples; read whole.
      augmentation: makes the views.
      batch_size: over all devices; what is left of an epoch after the last whole batch
        is left out, other examples in every epoch.
      num_views: views of each example; epoch e shows view e modulo `num_views`.
      seed: of the order.
      extras: further arrays `[num_views, N, ...]` to gather into the batch, by name:
        a cached teacher's entries.
      place: puts host arrays on the devices.

    Raises:
      ValueError: if there is no whole batch, or `extras` have other shapes or a name
        that is taken.
    """

    def __init__(
        self,
        source: Source,
        augmentation: Augmentation,
        batch_size: int,
        num_views: int,
        seed: int,
        *,
        extras: Mapping[str, np.ndarray] | None = None,
        place: Callable[[Any], Any] = jax.device_put,
    ):
        self.steps_per_epoch = order.steps_per_epoch(len(source), batch_size)
        self._source = source
        self._augmentation = augmentation
        self._batch_size = batch_size
        self._num_views = num_views
        self._seed = seed
        self._extras = dict(extras or {})
        self._place = place
        _check_extras(self._extras, num_views, len(source))

    def inputs(self, start_step: int) -> Iterator[Inputs]:
        """The same arrays for every step of an epoch; only `order` ever changes."""
        size = len(self._source)
        examples = self._source.take(np.arange(size))
        arrays = self._place({**examples, **self._extras})
        first, position = order.locate(start_step, self.steps_per_epoch)
        for epoch in itertools.count(first):
            ids = self._place(_host(order.permutation, self._seed, epoch, size))
            for _ in range(position, self.steps_per_epoch):
                yield {**arrays, "order": ids}
            position = 0

    def batch(
        self,
        inputs: Inputs,
        step: jax.Array,
        *,
        index: jax.Array | int = 0,
        count: int = 1,
    ) -> Batch:
        """Orders, gathers and augments, all inside the compiled program."""
        epoch, position = order.locate(step, self.steps_per_epoch)
        view = epoch % self._num_views
        size = self._batch_size // count
        start = position * self._batch_size + index * size
        ids = jax.lax.dynamic_slice_in_dim(inputs["order"], start, size)
        raw = {name: inputs[name][ids] for name in ("image", "label")}
        if self._augmentation.mixup:
            partners = self._augmentation.partner_ids(ids, view)
            raw |= {f"partner_{n}": inputs[n][partners] for n in ("image", "label")}
        extras = {name: inputs[name][view, ids] for name in self._extras}
        return {**self._augmentation(raw, ids, view), **extras}


class StreamingLoader:
    """Each step's examples are read and decoded on the host, ahead of the step.

    For the same step the same batches as a `ResidentLoader`'s, to the last bit. The
    order is computed, not stored in the reader, so starting at any step costs nothing.

    Args:
      source: the examples; read by random access.
      augmentation: makes the views, on the device.
      batch_size: over all devices of all processes.
      num_views: views of each example; epoch e shows view e modulo `num_views`.
      seed: of the order.
      extras_fn: maps a view and example ids to further arrays `[B, ...]` for the
        batch, by name: the reader of a teacher's cache.
      place: puts this process's rows on the devices.
      process_index: of this process, which reads its contiguous share of the batch.
      process_count: of all that train together.
      num_threads: batches in the making at once; by default one for each core.
      prefetch: batches made before they are asked for.

    Raises:
      ValueError: if there is no whole batch, or it does not divide over the processes.
    """

    def __init__(
        self,
        source: Source,
        augmentation: Augmentation,
        batch_size: int,
        num_views: int,
        seed: int,
        *,
        extras_fn: Callable[[int, np.ndarray], Mapping[str, np.ndarray]] | None = None,
        place: Callable[[Any], Any] = jax.device_put,
        process_index: int = 0,
        process_count: int = 1,
        num_threads: int | None = None,
        prefetch: int | None = None,
    ):
        if batch_size % process_count:
            raise ValueError(
                f"Expected a batch_size that divides over {process_count} processes, "
                f"got {batch_size}."
            )
        self.steps_per_epoch = order.steps_per_epoch(len(source), batch_size)
        self._source = source
        self._augmentation = augmentation
        self._batch_size = batch_size
        self._num_views = num_views
        self._extras_fn = extras_fn
        self._place = place
        self._process_index = process_index
        self._process_count = process_count
        self._num_threads = num_threads or min(os.cpu_count() or 1, 16)
        self._prefetch = prefetch or self._num_threads + 2
        # An epoch's order serves all its steps; threads may be in two epochs at once.
        self._order = functools.lru_cache(maxsize=2)(
            functools.partial(_host, order.permutation, seed, num_examples=len(source))
        )

    def inputs(self, start_step: int) -> Iterator[Inputs]:
        """This process's rows of each step: raw pixels, labels, ids and extras."""
        import grain  # 1.5 s that no other loader has to wait for.

        steps = grain.MapDataset.range(start_step, sys.maxsize)
        batches = steps.map(self._read).to_iter_dataset(
            grain.ReadOptions(self._num_threads, self._prefetch)
        )
        return (self._place(batch) for batch in batches)

    def batch(
        self,
        inputs: Inputs,
        step: jax.Array,
        *,
        index: jax.Array | int = 0,
        count: int = 1,
    ) -> Batch:
        """Augments, inside the compiled program; the inputs are this device's share."""
        del index, count
        epoch, _ = order.locate(step, self.steps_per_epoch)
        raw = dict(inputs)
        ids = raw.pop("example_id")
        batch = self._augmentation(raw, ids, epoch % self._num_views)
        return {**{n: x for n, x in raw.items() if n not in _RAW}, **batch}

    def _read(self, step: int) -> dict[str, np.ndarray]:
        """What one step needs of the host, for this process."""
        epoch, position = order.locate(int(step), self.steps_per_epoch)
        view = epoch % self._num_views
        size = self._batch_size // self._process_count
        start = position * self._batch_size + self._process_index * size
        ids = self._order(epoch)[start : start + size]
        batch = raw_examples(self._source, self._augmentation, ids, view)
        extras = {} if self._extras_fn is None else self._extras_fn(view, ids)
        return {**batch, **extras, "example_id": ids}


_RAW = ("image", "label", "partner_image", "partner_label")


def raw_examples(
    source: Source, augmentation: Augmentation, ids: np.ndarray, view: int
) -> dict[str, np.ndarray]:
    """What `augmentation` needs of these examples, on the host."""
    raw = source.take(ids)
    if augmentation.mixup:
        partners = source.take(_host(_partner_ids, augmentation, ids, view))
        raw |= {f"partner_{name}": x for name, x in partners.items()}
    return raw


def eval_batches(source: Source, batch_size: int) -> Iterator[dict[str, np.ndarray]]:
    """The examples in their order, not augmented; the last batch padded with zeros.

    Returns:
      Batches of `image`, `label`, `example_id` and `mask`, which is False for padding.
    """
    for start in range(0, len(source), batch_size):
        ids = np.arange(start, min(start + batch_size, len(source)), dtype=np.int32)
        batch = {**source.take(ids), "example_id": ids, "mask": np.ones(len(ids), bool)}
        missing = batch_size - len(ids)
        yield {
            name: np.pad(x, [(0, missing)] + [(0, 0)] * (x.ndim - 1))
            for name, x in batch.items()
        }


# Compiled once for each batch size and split; a program for one id is as slow.
@functools.partial(jax.jit, static_argnums=0)
def _partner_ids(
    augmentation: Augmentation, ids: jax.Array, view: jax.Array
) -> jax.Array:
    return augmentation.partner_ids(ids, view)


def _host(fn: Callable[..., jax.Array], *args: Any, **kwargs: Any) -> np.ndarray:
    """Runs `fn` on the CPU: on an accelerator it would wait behind queued steps."""
    try:
        device: Any = jax.default_device(jax.local_devices(backend="cpu")[0])
    except RuntimeError:  # JAX was told to use nothing but the accelerator.
        device = contextlib.nullcontext()
    with device:
        return np.asarray(fn(*args, **kwargs))


def _check_extras(
    extras: Mapping[str, np.ndarray], num_views: int, num_examples: int
) -> None:
    for name, array in extras.items():
        if name in (*_RAW, "order", "example_id", "mask", "soft_label"):
            raise ValueError(f"Expected another name than {name!r} in extras.")
        if array.shape[:2] != (num_views, num_examples):
            raise ValueError(
                f"Expected {name} of shape [{num_views}, {num_examples}, ...], one "
                f"entry for each view and example, got {array.shape}."
            )
