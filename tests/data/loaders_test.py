"""Laws of loaders: a batch is a function of the step, however it is made."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from kdjax.data import augment, loaders, order, sources
from kdjax.types import UserError

SIZE, BATCH, VIEWS, SEED = 53, 16, 2, 3
STEPS = SIZE // BATCH  # 3 in an epoch, 5 examples left out.


@pytest.fixture(scope="module")
def source():
    rng = np.random.default_rng(0)
    return sources.ArraySource(
        rng.integers(0, 256, (SIZE, 7, 5, 3), dtype=np.uint8),
        rng.integers(0, 4, SIZE),
        name="noise",
        class_names=("a", "b", "c", "d"),
    )


@pytest.fixture(scope="module")
def logits():
    shape = (VIEWS, SIZE, 4)
    return np.random.default_rng(1).normal(size=shape).astype(np.float32)


AUGMENTATION = augment.Augmentation(
    seed=5, num_examples=SIZE, num_classes=4, crop_padding=1, flip=True, mixup=1.0
)
PLAIN = augment.Augmentation(seed=5, num_examples=SIZE, num_classes=4)


@pytest.fixture(scope="module")
def resident(source, logits):
    return loaders.ResidentLoader(
        source, AUGMENTATION, BATCH, VIEWS, SEED, extras={"teacher_logits": logits}
    )


def _streaming(source, logits, **kwargs):
    return loaders.StreamingLoader(
        source,
        AUGMENTATION,
        BATCH,
        VIEWS,
        SEED,
        extras_fn=lambda view, ids: {"teacher_logits": logits[view, ids]},
        num_threads=2,
        **kwargs,
    )


@pytest.fixture(scope="module")
def program(resident):
    return jax.jit(resident.batch)


@pytest.fixture(scope="module")
def stream_program(source, logits):
    return jax.jit(_streaming(source, logits).batch)


@pytest.fixture(scope="module")
def expected(resident, program):
    """The batches of the first steps: two epochs, two views, and some more."""
    inputs = zip(range(2 * STEPS + 2), resident.inputs(0), strict=False)
    return [jax.device_get(program(arrays, jnp.int32(step))) for step, arrays in inputs]


def _assert_equal(actual, expected):
    assert actual.keys() == expected.keys()
    for name in expected:
        assert actual[name].dtype == expected[name].dtype, name
        np.testing.assert_array_equal(actual[name], expected[name], name)


def test_a_batch_has_the_examples_of_its_ids(source, logits, expected):
    for step, batch in enumerate(expected):
        epoch, position = order.locate(step, STEPS)
        ids = np.asarray(order.permutation(SEED, epoch, SIZE))
        ids = ids[position * BATCH : (position + 1) * BATCH]
        np.testing.assert_array_equal(batch["example_id"], ids)
        np.testing.assert_array_equal(batch["label"], source.labels[ids])
        np.testing.assert_array_equal(
            batch["teacher_logits"], logits[epoch % VIEWS, ids]
        )
        assert batch["image"].shape == (BATCH, 7, 5, 3)


def test_no_example_comes_twice_in_an_epoch(expected):
    for epoch in range(2):
        batches = expected[epoch * STEPS : (epoch + 1) * STEPS]
        ids = np.concatenate([batch["example_id"] for batch in batches])
        assert len(set(ids.tolist())) == STEPS * BATCH


def test_another_remainder_is_left_out_in_another_epoch(expected):
    seen = [
        set(np.concatenate([b["example_id"] for b in part]).tolist())
        for part in (expected[:STEPS], expected[STEPS : 2 * STEPS])
    ]
    assert seen[0] != seen[1]


def test_an_example_has_the_same_pixels_wherever_a_view_shows_it(source):
    # Epochs 0 and 2 show the same view in another order; mixup included.
    loader = loaders.ResidentLoader(source, AUGMENTATION, BATCH, VIEWS, SEED)
    program = jax.jit(loader.batch)
    images = [{}, {}, {}]
    steps = zip(range(3 * STEPS), loader.inputs(0), strict=False)
    for step, inputs in steps:
        batch = jax.device_get(program(inputs, jnp.int32(step)))
        for example_id, image in zip(batch["example_id"], batch["image"], strict=True):
            images[step // STEPS][int(example_id)] = image
    common = images[0].keys() & images[2].keys()
    assert len(common) > SIZE // 2
    assert all(np.array_equal(images[0][i], images[2][i]) for i in common)
    assert not all(
        np.array_equal(images[0][i], images[1][i])
        for i in images[0].keys() & images[1].keys()
    )


@pytest.mark.parametrize("start", [1, STEPS, STEPS + 2])
def test_starting_at_a_step_gives_what_a_whole_run_gives(
    resident, program, expected, start
):
    inputs = zip(range(start, len(expected)), resident.inputs(start), strict=False)
    for step, arrays in inputs:
        _assert_equal(program(arrays, jnp.int32(step)), expected[step])


def test_the_resident_set_is_placed_once(source):
    placed = []
    loader = loaders.ResidentLoader(
        source,
        PLAIN,
        BATCH,
        VIEWS,
        SEED,
        place=lambda tree: placed.append(tree) or jax.device_put(tree),
    )
    inputs = list(itertools.islice(loader.inputs(0), 2 * STEPS))
    assert len(placed) == 3  # The set, and the order of two epochs.
    assert all(x["image"] is inputs[0]["image"] for x in inputs)
    assert len({id(x["order"]) for x in inputs}) == 2


@pytest.mark.parametrize("start", [0, STEPS + 1])
def test_streaming_equals_resident(source, logits, stream_program, expected, start):
    loader = _streaming(source, logits)
    assert loader.steps_per_epoch == STEPS
    inputs = zip(range(start, len(expected)), loader.inputs(start), strict=False)
    for step, arrays in inputs:
        _assert_equal(stream_program(arrays, jnp.int32(step)), expected[step])


def test_processes_stream_their_shares(source, logits, stream_program, expected):
    parts = [
        _streaming(source, logits, process_index=i, process_count=2) for i in (0, 1)
    ]
    first, second = (part.inputs(STEPS) for part in parts)
    for step in (STEPS, STEPS + 1):
        shares = [stream_program(next(x), jnp.int32(step)) for x in (first, second)]
        joined = {name: np.concatenate([x[name] for x in shares]) for name in shares[0]}
        _assert_equal(joined, expected[step])


def test_sharded_and_pmapped_programs_give_the_same_batches(resident, expected):
    step, inputs = STEPS, next(resident.inputs(STEPS))
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    sharded = NamedSharding(mesh, PartitionSpec("data"))

    def constrained(inputs, step):
        return jax.lax.with_sharding_constraint(resident.batch(inputs, step), sharded)

    replicated = jax.device_put(inputs, NamedSharding(mesh, PartitionSpec()))
    _assert_equal(jax.jit(constrained)(replicated, jnp.int32(step)), expected[step])
    mapped = jax.pmap(
        lambda _, x: resident.batch(
            x, jnp.int32(step), index=jax.lax.axis_index("data"), count=8
        ),
        axis_name="data",
        in_axes=(0, None),
    )(np.arange(8), inputs)
    joined = {n: np.asarray(x).reshape(-1, *x.shape[2:]) for n, x in mapped.items()}
    _assert_equal(joined, expected[step])


def test_loaders_satisfy_the_protocol(resident, source, logits):
    assert isinstance(resident, loaders.Loader)
    assert isinstance(_streaming(source, logits), loaders.Loader)


class _Broken:
    """A source whose images can't be read."""

    name, num_classes, class_names, image_shape = "x", 4, tuple("abcd"), (7, 5, 3)

    def __len__(self):
        return SIZE

    def take(self, ids):
        raise UserError("Expected an image that can be read, got x.png.")

    def fingerprint(self):
        return ""


def test_an_error_of_a_reading_thread_reaches_the_user():
    loader = loaders.StreamingLoader(_Broken(), PLAIN, BATCH, VIEWS, SEED)
    with pytest.raises(UserError, match=r"got x\.png"):
        next(loader.inputs(0))


@pytest.mark.parametrize(
    ("kwargs", "expected"),
    [
        (dict(batch_size=SIZE + 1), "the 53 examples there are, got 54"),
        (dict(extras={"image": np.zeros((VIEWS, SIZE))}), "another name than 'image'"),
        (
            dict(extras={"x": np.zeros((1, SIZE))}),
            r"shape \[2, 53, \.\.\.\].*\(1, 53\)",
        ),
    ],
)
def test_what_does_not_fit_is_refused(source, kwargs, expected):
    arguments = dict(batch_size=BATCH, num_views=VIEWS, seed=SEED) | kwargs
    with pytest.raises(ValueError, match=expected):
        loaders.ResidentLoader(source, PLAIN, **arguments)


def test_a_batch_divides_over_the_processes(source):
    with pytest.raises(ValueError, match="divides over 3 processes, got 16"):
        loaders.StreamingLoader(source, PLAIN, BATCH, VIEWS, SEED, process_count=3)


@pytest.mark.parametrize("batch_size", [10, 53, 64])
def test_evaluation_sees_every_example_once_and_in_order(source, batch_size):
    batches = list(loaders.eval_batches(source, batch_size))
    assert {len(x) for batch in batches for x in batch.values()} == {batch_size}
    mask = np.concatenate([batch["mask"] for batch in batches])
    examples = source.take(np.arange(SIZE)) | {"example_id": np.arange(SIZE)}
    for name, values in examples.items():
        joined = np.concatenate([batch[name] for batch in batches])
        np.testing.assert_array_equal(joined[mask], values)
        assert not joined[~mask].any()
    assert mask[:SIZE].all()  # Padding comes last.
    assert mask.sum() == SIZE


def test_raw_examples_are_what_the_view_is_made_from(source):
    ids = np.arange(4, dtype=np.int32)
    raw = loaders.raw_examples(source, AUGMENTATION, ids, 1)
    partners = np.asarray(AUGMENTATION.partner_ids(jnp.asarray(ids), 1))
    np.testing.assert_array_equal(raw["partner_label"], source.labels[partners])
    assert set(loaders.raw_examples(source, PLAIN, ids, 1)) == {"image", "label"}
