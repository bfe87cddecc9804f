"""Second views, and few labels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.data.augment import Augmentation
from kdjax.data.loaders import ResidentLoader
from kdjax.data.sources import ArraySource
from kdjax.data.two_views import TwoViewLoader

N, BATCH, VIEWS = 43, 10, 3
LABELLED = np.array([2, 3, 5, 7, 11, 13, 17])


def _arguments(**updates):
    images = np.arange(N * 16, dtype=np.uint8).reshape(N, 4, 4, 1) + 1
    source = ArraySource(
        images, np.arange(N) % 4, name="numbers", class_names=tuple("abcd")
    )
    augmentation = Augmentation(seed=1, num_examples=N, num_classes=4, jitter=1)
    return dict(
        source=source,
        augmentation=augmentation,
        batch_size=BATCH,
        num_views=VIEWS,
        seed=2,
        **updates,
    )


def _batches(loader, start, stop):
    batch = jax.jit(loader.batch)
    inputs = loader.inputs(start)
    return [jax.device_get(batch(next(inputs), step)) for step in range(start, stop)]


def test_without_few_labels_it_is_a_resident_loader_with_more_entries():
    plain = _batches(ResidentLoader(**_arguments()), 0, 9)
    for batch, expected in zip(
        _batches(TwoViewLoader(**_arguments()), 0, 9), plain, strict=True
    ):
        assert batch.keys() - expected.keys() == {"second_image", "labelled"}
        for name, x in expected.items():
            np.testing.assert_array_equal(batch[name], x)
        assert batch["labelled"].all()


def test_the_second_view_is_one_that_no_epoch_shows_first():
    arguments = _arguments()
    ids = jnp.arange(N)
    raw = jax.tree.map(jnp.asarray, arguments["source"].take(np.arange(N)))
    augment = jax.jit(arguments["augmentation"])
    firsts = [augment(raw, ids, view)["image"] for view in range(2 * VIEWS)]
    for step, batch in enumerate(_batches(TwoViewLoader(**arguments), 0, 9)):
        view = VIEWS + step // 4 % VIEWS
        expected = firsts[view][batch["example_id"]]
        np.testing.assert_array_equal(batch["second_image"], expected)


def test_every_batch_begins_with_the_labelled_and_all_take_turns():
    loader = TwoViewLoader(**_arguments(), labelled=LABELLED, labelled_batch_size=3)
    ids = np.stack([batch["example_id"] for batch in _batches(loader, 0, 8)])
    assert np.isin(ids[:, :3], LABELLED).all()
    assert not np.isin(ids[:, 3:], LABELLED).any()
    # Within an epoch of 4 batches, 12 of 7 labelled and 28 of 36 others.
    for epoch in (ids[:4], ids[4:]):
        counts = np.bincount(epoch[:, :3].ravel(), minlength=N)[LABELLED]
        assert counts.min() >= 1
        assert counts.max() == 2
        assert len(np.unique(epoch[:, 3:])) == 28
    assert (ids[:4] != ids[4:]).any()


def test_the_mask_says_which_labels_are_known():
    loader = TwoViewLoader(**_arguments(), labelled=LABELLED, labelled_batch_size=3)
    for batch in _batches(loader, 0, 2):
        expected = np.isin(batch["example_id"], LABELLED)
        np.testing.assert_array_equal(batch["labelled"], expected)


@pytest.mark.parametrize(
    "labels", [{}, {"labelled": LABELLED, "labelled_batch_size": 3}]
)
def test_starting_anywhere_gives_the_same_batches(labels):
    whole, late = (
        _batches(TwoViewLoader(**_arguments(), **labels), start, 9) for start in (0, 6)
    )
    for x, y in zip(whole[6:], late, strict=True):
        jax.tree.map(np.testing.assert_array_equal, x, y)


@pytest.mark.parametrize("size", [0, 10])
def test_a_batch_needs_some_of_both_kinds(size):
    with pytest.raises(ValueError, match="some not"):
        TwoViewLoader(**_arguments(), labelled=LABELLED, labelled_batch_size=size)
