"""Laws of augmented views: bits that depend on (seed, example id, view) alone."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from kdjax.data import augment, order

pytestmark = pytest.mark.optimized  # These are laws of equal bits.

NUM_EXAMPLES = 37
HEIGHT, WIDTH, CHANNELS = 11, 13, 3
NUM_CLASSES = 5

CASES = {
    "none": {},
    "flip": dict(flip=True),
    "crop": dict(crop_padding=3),
    "jitter": dict(jitter=2),
    "cutout": dict(cutout=5),
    "mixup": dict(mixup=1.0),
    "mixup_sharp": dict(mixup=0.2),
    "resized_crop": dict(resized_crop=True),
    "all": dict(
        flip=True, crop_padding=2, jitter=1, cutout=4, mixup=0.7, resized_crop=True
    ),
}


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    shape = (NUM_EXAMPLES, HEIGHT, WIDTH, CHANNELS)
    images = rng.integers(0, 256, shape, dtype=np.uint8)
    labels = rng.integers(0, NUM_CLASSES, NUM_EXAMPLES).astype(np.int32)
    return images, labels


@pytest.fixture(params=CASES)
def augmentation(request):
    return _make(**CASES[request.param])


def _make(**moves):
    return augment.Augmentation(
        seed=5, num_examples=NUM_EXAMPLES, num_classes=NUM_CLASSES, **moves
    )


# Compiled once for all tests: eager, every operation is a program of its own.
_augment = jax.jit(augment.Augmentation.__call__, static_argnums=0)
_partner_ids = jax.jit(augment.Augmentation.partner_ids, static_argnums=0)


def _raw(data, augmentation, ids, view):
    images, labels = data
    raw = {"image": jnp.asarray(images[ids]), "label": jnp.asarray(labels[ids])}
    if augmentation.mixup:
        partners = np.asarray(_partner_ids(augmentation, jnp.asarray(ids), view))
        raw["partner_image"] = jnp.asarray(images[partners])
        raw["partner_label"] = jnp.asarray(labels[partners])
    return raw


def _view(data, augmentation, ids, view):
    raw = _raw(data, augmentation, ids, view)
    return _augment(augmentation, raw, jnp.asarray(ids), view)


def _assert_equal(actual, expected, rows=slice(None)):
    assert actual.keys() == expected.keys()
    for name in expected:
        np.testing.assert_array_equal(actual[name], expected[name][rows], name)


def test_any_batch_in_any_order_gives_the_same_bits(data):
    augmentation = _make(**CASES["all"])
    expected = _view(data, augmentation, np.arange(NUM_EXAMPLES), 3)
    ids = np.arange(NUM_EXAMPLES)[::-1][5:12]
    _assert_equal(_view(data, augmentation, ids, 3), expected, ids)


def test_eager_gives_the_bits_of_jit(data):
    augmentation, ids = _make(**CASES["all"]), np.arange(NUM_EXAMPLES)
    raw = _raw(data, augmentation, ids, 3)
    eager = augmentation(raw, jnp.asarray(ids), 3)
    _assert_equal(eager, _view(data, augmentation, ids, 3))


def test_sharded_and_pmapped_programs_give_the_same_bits(data):
    augmentation = _make(**CASES["all"])
    ids = np.arange(32)[::-1].copy()
    expected = _view(data, augmentation, ids, 2)
    raw = _raw(data, augmentation, ids, 2)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    placed = jax.device_put((raw, jnp.asarray(ids)), sharding)
    _assert_equal(jax.jit(augmentation.__call__)(*placed, 2), expected)
    split = jax.tree.map(lambda x: x.reshape(8, -1, *x.shape[1:]), (raw, ids))
    mapped = jax.pmap(functools.partial(augmentation.__call__, view=2))(*split)
    joined = {n: np.asarray(x).reshape(-1, *x.shape[2:]) for n, x in mapped.items()}
    _assert_equal(joined, expected)


def test_x64_changes_no_pixel(data):
    augmentation = _make(**CASES["all"])
    ids = np.arange(9)
    expected = _view(data, augmentation, ids, 1)
    with jax.enable_x64(True):
        again = _view(data, augmentation, ids, 1)
    np.testing.assert_array_equal(again["image"], expected["image"])


def test_views_differ_unless_nothing_is_augmented(data, augmentation):
    ids = np.arange(NUM_EXAMPLES)
    image = _view(data, augmentation, ids, 0)["image"]
    other_view = _view(data, augmentation, ids, 1)["image"]
    is_plain = augmentation == _make()
    assert np.array_equal(image, data[0]) == is_plain
    assert np.array_equal(image, other_view) == is_plain


def test_seeds_give_different_views(data):
    ids = np.arange(NUM_EXAMPLES)
    first, second = (
        _view(data, dataclasses.replace(_make(flip=True, jitter=2), seed=seed), ids, 0)
        for seed in (5, 6)
    )
    assert not np.array_equal(first["image"], second["image"])


# The oracle: the same draws, one example at a time, in plain NumPy.


def _bits(purpose, example_id, view, count):
    ids = jnp.array([example_id])
    return [int(x) for x in order.example_bits(5, purpose, ids, view, count)[0]]


def _oracle_move(image, example_id, view, moves):
    bits = _bits(order.Purpose.AUGMENT, example_id, view, 8)
    height, width, channels = image.shape
    if moves.get("resized_crop"):
        image = _oracle_resized_crop(image, bits[5:])
    if moves.get("flip") and bits[0] % 2:
        image = image[:, ::-1]
    pad = moves.get("crop_padding", 0) + moves.get("jitter", 0)
    padded = np.zeros((height + 2 * pad, width + 2 * pad, channels), np.uint8)
    padded[pad : pad + height, pad : pad + width] = image
    top, left = bits[1] % (2 * pad + 1), bits[2] % (2 * pad + 1)
    image = padded[top : top + height, left : left + width].copy()
    if side := moves.get("cutout"):
        top, left = bits[3] % height - side // 2, bits[4] % width - side // 2
        image[max(top, 0) : max(top + side, 0), max(left, 0) : max(left + side, 0)] = 0
    return image


def _oracle_resized_crop(image, bits):
    box = augment.crop_table()[bits[0] % augment.TABLE_SIZE]
    for axis in (0, 1):
        length = image.shape[axis]
        size = max(int(np.floor(int(box[axis]) // 2 * length / 2**15 + 0.5)), 1)
        start = bits[1 + axis] % (length - size + 1)
        crop = np.take(image, np.arange(start, start + size), axis).astype(float)
        rows = []
        for i in range(length):
            place = (i + 0.5) * size / length - 0.5
            place = np.floor(np.clip(place, 0, size - 1) * 256 + 1e-9) / 256
            low = int(place)
            high = min(low + 1, size - 1)
            rows.append(
                (1 - (place - low)) * np.take(crop, low, axis)
                + (place - low) * np.take(crop, high, axis)
            )
        image = np.floor(np.stack(rows, axis) + 0.5).astype(np.uint8)
    return image


@pytest.mark.parametrize("case", CASES)
def test_pixels_and_labels_equal_the_oracle(data, case):
    images, labels = data
    moves, augmentation = CASES[case], _make(**CASES[case])
    batch = _view(data, augmentation, np.arange(NUM_EXAMPLES), 4)
    for i in range(NUM_EXAMPLES):
        expected = _oracle_move(images[i], i, 4, moves)
        if moves.get("mixup"):
            partner_bits, weight_bits = _bits(order.Purpose.PARTNER, i, 4, 2)
            j = partner_bits % NUM_EXAMPLES
            other = _oracle_move(images[j], j, 4, moves)
            quantile = (weight_bits % 4096 + 0.5) / 4096
            distribution = scipy.stats.beta(moves["mixup"], moves["mixup"])
            weight = np.round(256 * distribution.ppf(quantile))
            mixed = (weight * expected + (256 - weight) * other) / 256
            expected = np.floor(mixed + 0.5)
            soft = np.zeros(NUM_CLASSES)
            soft[labels[i]] += weight / 256
            soft[labels[j]] += 1 - weight / 256
            np.testing.assert_array_equal(batch["soft_label"][i], soft)
        np.testing.assert_array_equal(batch["image"][i], expected)


def test_soft_labels_come_with_mixup_alone(data, augmentation):
    batch = _view(data, augmentation, np.arange(NUM_EXAMPLES), 0)
    assert ("soft_label" in batch) == (augmentation.mixup > 0)
    if augmentation.mixup:
        assert batch["soft_label"].dtype == jnp.float32
        np.testing.assert_array_equal(batch["soft_label"].sum(-1), 1)
    np.testing.assert_array_equal(batch["label"], data[1])
    assert batch["mask"].all()


def test_moves_are_as_frequent_as_they_say():
    # One bright pixel shows where it went; 4000 views, 5 standard deviations.
    count = 4000
    images = np.zeros((count, 9, 9, 1), np.uint8)
    images[:, 4, 3] = 200
    raw = {"image": jnp.asarray(images), "label": jnp.zeros(count, jnp.int32)}
    augmentation = augment.Augmentation(0, count, 2, flip=True, crop_padding=2)
    moved = _augment(augmentation, raw, jnp.arange(count), 0)["image"]
    _, rows, columns, _ = np.nonzero(np.asarray(moved))
    assert len(rows) == count
    counts = np.bincount(rows - 2, minlength=5)
    assert np.all(np.abs(counts - count / 5) < 5 * np.sqrt(count * 0.2 * 0.8))
    # Unflipped it lands in columns 1 to 5, flipped in 3 to 7.
    counts = np.bincount(columns, minlength=9)
    for column, share in zip(range(1, 8), (1, 1, 2, 2, 2, 1, 1), strict=True):
        p = share / 10
        assert abs(counts[column] - count * p) < 5 * np.sqrt(count * p * (1 - p))


@pytest.mark.parametrize("concentration", [0.2, 1.0, 3.0])
def test_mixing_weights_follow_the_beta_distribution(concentration):
    table = augment.beta_table(concentration) / 256
    assert table.min() >= 0
    assert table.max() <= 1
    variance = 1 / (4 * (2 * concentration + 1))
    np.testing.assert_allclose(table.mean(), 0.5, atol=1e-3)
    np.testing.assert_allclose(table.var(), variance, atol=1e-3)


def test_crops_have_the_areas_and_ratios_of_inception():
    height, width = augment.crop_table().T / 65536
    area, ratio = height * width, width / height
    assert area.min() > 0.0799
    assert area.max() < 1.0001
    assert ratio.min() > 0.7499
    assert ratio.max() < 1.3335
    # Drawn again, until a box fits: 0.476, where it would be 0.54 if all did.
    rng = np.random.default_rng(1)
    log_ratio = rng.uniform(np.log(3 / 4), np.log(4 / 3), 10**6)
    drawn = rng.uniform(0.08, 1, 10**6)
    fits = (drawn * np.exp(np.abs(log_ratio))) <= 1
    np.testing.assert_allclose(area.mean(), drawn[fits].mean(), atol=0.02)
    np.testing.assert_allclose(area.std(), drawn[fits].std(), atol=0.02)


def test_a_crop_of_a_flat_image_is_flat_and_of_a_ramp_is_monotone():
    count = 64
    ramp = np.broadcast_to(np.arange(0, 240, 8)[:, None], (count, 30, 30))
    images = np.stack([np.full((count, 30, 30), 77), ramp], axis=-1).astype(np.uint8)
    raw = {"image": jnp.asarray(images), "label": jnp.zeros(count, jnp.int32)}
    crop = augment.Augmentation(0, count, 2, resized_crop=True)
    moved = np.asarray(_augment(crop, raw, jnp.arange(count), 0)["image"]).astype(int)
    assert np.all(moved[..., 0] == 77)
    assert np.all(np.diff(moved[..., 1], axis=1) >= 0)
    assert np.all(np.diff(moved[..., 1], axis=2) == 0)


def test_a_large_image_is_cropped_without_overflow():
    side = augment.LONGEST_SIDE
    image = np.broadcast_to(np.arange(side)[:, None] * 255 // side, (side, 4))
    raw = {
        "image": jnp.asarray(image[None, :, :, None].astype(np.uint8)),
        "label": jnp.zeros(1, jnp.int32),
    }
    crop = augment.Augmentation(0, 1, 2, resized_crop=True)
    for view in range(4):
        moved = np.asarray(_augment(crop, raw, jnp.arange(1), view)["image"])[
            0, :, :, 0
        ]
        assert np.all(np.diff(moved.astype(int), axis=0) >= 0)
        assert moved.max() > moved.min()


def test_a_side_beyond_the_fixed_point_is_refused():
    raw = {
        "image": jnp.zeros((1, augment.LONGEST_SIDE + 1, 1, 1), jnp.uint8),
        "label": jnp.zeros(1, jnp.int32),
    }
    with pytest.raises(ValueError, match="sides <= 2048, got 2049"):
        augment.Augmentation(0, 1, 2, resized_crop=True)(raw, jnp.arange(1), 0)


def test_partners_are_in_range_and_their_own_in_each_view():
    augmentation = _make(mixup=1.0)
    ids = jnp.arange(NUM_EXAMPLES)
    partners = np.stack([_partner_ids(augmentation, ids, view) for view in range(4)])
    assert partners.min() >= 0
    assert partners.max() < NUM_EXAMPLES
    assert len({tuple(row) for row in partners.tolist()}) == 4


def test_the_description_tells_every_field():
    base = _make(mixup=1.0)
    assert json.loads(json.dumps(base.description())) == base.description()
    descriptions = [base.description()]
    for field in dataclasses.fields(base):
        value = getattr(base, field.name)
        changed = not value if isinstance(value, bool) else value + 1
        other = dataclasses.replace(base, **{field.name: changed})
        descriptions.append(other.description())
    assert len({json.dumps(x, sort_keys=True) for x in descriptions}) == 10


def test_negative_numbers_are_refused():
    with pytest.raises(ValueError, match="Expected cutout >= 0, got -1"):
        _make(cutout=-1)
