"""The losses of relations, against loops in NumPy and numbers of published code."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.losses import _contrastive, _crd, _exits, _relations, _spectral

GENERATOR = np.random.default_rng(0)
STUDENT, TEACHER = GENERATOR.normal(size=(5, 4)), GENERATOR.normal(size=(5, 6))
MAPS = GENERATOR.normal(size=(2, 3, 2, 4, 5))


def _mean(loss_fn, *inputs, **kwargs):
    with jax.enable_x64(True):
        inputs = jax.tree.map(jnp.asarray, inputs)
        return float(jnp.mean(jax.jit(functools.partial(loss_fn, **kwargs))(*inputs)))


def _rkd(student_embedding, teacher_embedding):
    distance = _relations.rkd_distance_loss(student_embedding, teacher_embedding)
    angle = _relations.rkd_angle_loss(student_embedding, teacher_embedding)
    return 25 * distance + 50 * angle


# Run in float64 with the authors' code, or its host named, on sines of the flat index;
# the value and the length of the gradient in the student's input.
GOLDEN = {
    "RKD, 25 and 50 (authors)": (_rkd, (4, 16), 12.632317069, 2.997291570),
    "SP (RepDistiller)": (
        _relations.similarity_preserving_loss,
        (4, 6, 8, 8),
        0.455160390,
        0.010238869,
    ),
    "CC (RepDistiller, no embedding)": (
        functools.partial(_relations.correlation_congruence_loss, form="repdistiller"),
        (4, 16),
        9.486377234,
        3.704275276,
    ),
}


@pytest.mark.parametrize("golden", GOLDEN.values(), ids=GOLDEN.keys())
def test_published_code_gives_the_same(golden):
    loss_fn, shape, expected, expected_norm = golden
    with jax.enable_x64(True):
        n = jnp.arange(1.0, 1 + math.prod(shape)).reshape(shape)
        frequencies = (0.37, 0.23) if len(shape) == 4 else (0.9, 0.41)
        student, teacher = jnp.sin(frequencies[0] * n), jnp.cos(frequencies[1] * n)
        grad_fn = jax.jit(jax.value_and_grad(lambda x: jnp.mean(loss_fn(x, teacher))))
        value, grad = grad_fn(student)
    np.testing.assert_allclose(value, expected, rtol=0, atol=6e-10)
    np.testing.assert_allclose(np.linalg.norm(grad), expected_norm, rtol=0, atol=6e-10)


def _huber(x):
    return 0.5 * x * x if abs(x) < 1 else abs(x) - 0.5


def test_rkd_losses_are_means_over_pairs_and_triplets():
    size = len(STUDENT)
    sides, distances = (STUDENT, 9 * TEACHER), []
    for x in sides:
        d = np.array([[np.linalg.norm(a - b) for b in x] for a in x])
        distances.append(d / (d.sum() / (size * (size - 1))))
    differences = (distances[0] - distances[1]).ravel()
    expected = np.mean([_huber(x) for x in differences])
    actual = _mean(_relations.rkd_distance_loss, *sides)
    np.testing.assert_allclose(actual, expected, rtol=1e-9)

    def cosine(x, i, j, k):
        if i in (j, k):
            return 0.0
        a, b = x[j] - x[i], x[k] - x[i]
        return a @ b / (np.linalg.norm(a) * np.linalg.norm(b))

    triplets = np.ndindex(size, size, size)
    expected = np.mean(
        [_huber(cosine(STUDENT, *t) - cosine(TEACHER, *t)) for t in triplets]
    )
    actual = _mean(_relations.rkd_angle_loss, STUDENT, TEACHER)
    np.testing.assert_allclose(actual, expected, rtol=1e-9)


def test_similarity_has_rows_of_euclidean_length_1_not_of_sum_1():
    """A port divides by the sum of absolute values, and gets another number."""
    values = {}
    for order in (1, 2):
        grams = [x @ x.T for x in (STUDENT, TEACHER)]
        rows = [g / np.linalg.norm(g, order, axis=1, keepdims=True) for g in grams]
        values[order] = np.sum((rows[0] - rows[1]) ** 2) / len(STUDENT) ** 2
    actual = _mean(_relations.similarity_preserving_loss, STUDENT, TEACHER)
    np.testing.assert_allclose(actual, values[2], rtol=1e-9)
    assert abs(actual - values[1]) > 0.1 * actual


@pytest.mark.parametrize("form", ["paper", "author_code"])
def test_pkt_is_a_divergence_of_neighbours(form):
    size, probs = len(STUDENT), []
    for x in (STUDENT, TEACHER):
        p = np.zeros((size, size))
        for i in range(size):
            for j in range(size):
                if i != j or form == "author_code":
                    lengths = np.linalg.norm(x[i]) + 1e-7, np.linalg.norm(x[j]) + 1e-7
                    p[i, j] = (x[i] @ x[j] / (lengths[0] * lengths[1]) + 1) / 2
            p[i] /= p[i].sum()
        probs.append(p)
    terms = probs[1] * np.log((probs[1] + 1e-7) / (probs[0] + 1e-7))
    expected = terms.mean() if form == "author_code" else terms.sum() / size
    actual = _mean(_relations.pkt_loss, STUDENT, TEACHER, form=form)
    np.testing.assert_allclose(actual, expected, rtol=1e-9)


def test_correlation_congruence_tends_to_the_gaussian_kernel():
    kernels = []
    for x in (STUDENT, TEACHER):
        x = x / np.linalg.norm(x, axis=1, keepdims=True)
        squares = np.array([[np.sum((a - b) ** 2) for b in x] for a in x])
        kernels.append((np.exp(-0.4 * squares), x @ x.T))
    loss_fn = _relations.correlation_congruence_loss
    exact = np.mean((kernels[0][0] - kernels[1][0]) ** 2)
    actual = _mean(loss_fn, STUDENT, TEACHER, order=12)
    np.testing.assert_allclose(actual, exact, rtol=1e-8)
    second = [np.exp(-0.8) * (1 + 0.8 * c + 0.32 * c**2) for _, c in kernels]
    expected = np.mean((second[0] - second[1]) ** 2)
    np.testing.assert_allclose(_mean(loss_fn, STUDENT, TEACHER), expected, rtol=1e-9)


def test_cka_is_the_definition_and_ignores_rotation_and_scale():
    size = len(STUDENT)
    center = np.eye(size) - 1 / size
    k, m = (center @ x @ x.T @ center for x in (STUDENT, TEACHER))
    expected = 1 - np.sum(k * m) / np.sqrt(np.sum(k * k) * np.sum(m * m))
    actual = _mean(_spectral.cka_loss, STUDENT, TEACHER)
    np.testing.assert_allclose(actual, expected, rtol=1e-9)
    rotation, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(4, 4)))
    same = _mean(_spectral.cka_loss, 3 * STUDENT @ rotation + 1, STUDENT)
    np.testing.assert_allclose(same, 0, atol=1e-12)


def test_debiased_cka_is_the_unbiased_estimate():
    size, ones = len(STUDENT), np.ones(len(STUDENT))

    def hsic(a, b):
        a, b = a - np.diag(np.diag(a)), b - np.diag(np.diag(b))
        total = np.trace(a @ b)
        total += ones @ a @ ones * (ones @ b @ ones) / ((size - 1) * (size - 2))
        total -= 2 / (size - 2) * (ones @ a @ b @ ones)
        return total / (size * (size - 3))

    k, m = STUDENT @ STUDENT.T, TEACHER @ TEACHER.T
    expected = 1 - hsic(k, m) / np.sqrt(hsic(k, k) * hsic(m, m))
    actual = _mean(_spectral.cka_loss, STUDENT, TEACHER, debiased=True)
    np.testing.assert_allclose(actual, expected, rtol=1e-9)


def test_cka_of_a_collapsed_student_is_one():
    collapsed = _mean(_spectral.cka_loss, np.zeros((5, 3)), TEACHER)
    np.testing.assert_allclose(collapsed, 1, rtol=1e-12)


@pytest.mark.parametrize("form", ["paper", "author_code"])
def test_ickd_compares_channels_of_each_example(form):
    expected = []
    for student, teacher in zip(*MAPS, strict=True):
        grams = [x.reshape(-1, 5).T @ x.reshape(-1, 5) for x in (student, teacher)]
        if form == "author_code":
            grams = [g / np.linalg.norm(g, axis=1, keepdims=True) for g in grams]
        squares = np.sum((grams[0] - grams[1]) ** 2)
        expected.append(squares / (25 if form == "paper" else 5))
    actual = _mean(_spectral.ickd_loss, *MAPS, form=form)
    np.testing.assert_allclose(actual, np.mean(expected), rtol=1e-9)


def test_kdsvd_is_the_definition_by_singular_value_decomposition():
    stages = np.random.default_rng(2).normal(size=(2, 2, 3, 2, 4, 5))

    def aligned(student, teacher):
        _, scale, t = np.linalg.svd(teacher.reshape(-1, 5), full_matrices=False)
        s = np.linalg.svd(student.reshape(-1, 5), full_matrices=False)[2][:5]
        scale, t = scale[:2] / np.linalg.norm(scale[:2]), t[:2]
        rows = []
        for i, vector in enumerate(t):
            vector = vector if vector.sum() >= 0 else -vector
            best = max(s, key=lambda x, v=vector: abs(x @ v))
            rows.append((scale[i] * best * np.sign(best @ vector), scale[i] * vector))
        return rows

    expected = []
    for example in range(3):
        first, second = (aligned(*stages[:, stage, example]) for stage in range(2))
        total = 0.0
        for (s0, t0), (s1, t1) in zip(first, second, strict=True):
            for c in range(5):
                for d in range(5):
                    kernel = [
                        np.exp(-((a[c] - b[d]) ** 2) / 8)
                        for a, b in ((s1, s0), (t1, t0))
                    ]
                    total += (kernel[0] - kernel[1]) ** 2
        expected.append(total)
    sides = (tuple(x) for x in stages)
    actual = _mean(_spectral.kdsvd_loss, *sides, num_vectors=2)
    np.testing.assert_allclose(actual, np.mean(expected), rtol=1e-8)


def test_contrastive_loss_is_the_cost_of_the_right_row():
    s, t = STUDENT, TEACHER[:, :4]
    s, t = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (s, t))
    expected = [
        -np.log(np.exp(a @ t[i] / 0.5) / sum(np.exp(a @ b / 0.5) for b in t))
        for i, a in enumerate(s)
    ]
    actual = _mean(
        _contrastive.contrastive_loss, STUDENT, TEACHER[:, :4], temperature=0.5
    )
    np.testing.assert_allclose(actual, np.mean(expected), rtol=1e-9)


def _units(seed, *shape):
    x = np.random.default_rng(seed).normal(size=shape)
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


def test_crd_over_two_steps_is_the_published_algorithm():
    """The normalisers come of the first batch, which has an example not to count."""
    num_examples, temperature = 7, 0.5
    memory = _crd.init_crd_memory(jax.random.key(0), num_examples=7, dim=3)
    banks = [np.array(memory.student_bank), np.array(memory.teacher_bank)]
    loss_fn = jax.jit(functools.partial(_crd.crd_loss, temperature=temperature))
    update = jax.jit(functools.partial(_crd.update_crd_memory, temperature=temperature))
    where = np.array([True, True, False])
    normalizers = None
    for step, own in enumerate(([4, 0, 99], [2, 4, 99])):
        contrasts = np.array([[own[0], 5, 6], [own[1], 1, 6], [99, 99, 99]])
        embeddings = _units(step, 2, 3, 3)
        poisoned = np.where(where[None, :, None], embeddings, np.nan)
        arguments = jnp.asarray(poisoned[0]), jnp.asarray(poisoned[1])
        keywords = {"where": jnp.asarray(where)}
        actual = loss_fn(*arguments, memory, jnp.asarray(contrasts), **keywords)
        scores = [
            [
                [
                    np.exp(embeddings[side][b] @ banks[1 - side][j] / temperature)
                    for j in contrasts[b]
                ]
                for b in range(2)
            ]
            for side in range(2)
        ]
        if normalizers is None:
            normalizers = [np.mean(x) * num_examples for x in scores]
        noise = 2 / num_examples
        expected = np.zeros(3)
        for side in range(2):
            for b in range(2):
                o = np.array(scores[side][b]) / normalizers[side]
                expected[b] -= np.log(o[0] / (o[0] + noise + 1e-7))
                expected[b] -= np.sum(np.log(noise / (o[1:] + noise + 1e-7)))
        np.testing.assert_allclose(actual, expected, rtol=2e-5)
        memory = update(
            memory, *arguments, jnp.asarray(own), jnp.asarray(contrasts), **keywords
        )
        for side in range(2):
            for b in range(2):
                row = 0.5 * banks[side][own[b]] + 0.5 * embeddings[side][b]
                banks[side][own[b]] = row / np.linalg.norm(row)
        np.testing.assert_allclose(memory.student_bank, banks[0], rtol=1e-5)
        np.testing.assert_allclose(memory.teacher_bank, banks[1], rtol=1e-5)
        found = [memory.student_log_normalizer, memory.teacher_log_normalizer]
        np.testing.assert_allclose(np.exp(found), normalizers, rtol=1e-5)


@pytest.mark.parametrize("positives", ["exact", "relax"])
def test_contrasts_are_of_the_own_class_and_distinct_ones_of_others(positives):
    labels = jnp.array([0, 1, 2] * 8)
    indices = jnp.array([3, 7, 22])
    sample = functools.partial(_crd.sample_contrast_indices, positives=positives)
    sample = jax.jit(sample, static_argnames="num_negatives")
    first = set()
    for seed in range(20):
        drawn = np.asarray(
            sample(jax.random.key(seed), indices, labels, num_negatives=9)
        )
        first.add(tuple(drawn[:, 0]))
        for row, index in zip(drawn, np.asarray(indices), strict=True):
            assert labels[row[0]] == labels[index]
            assert np.all(labels[row[1:]] != labels[index])
            assert len(set(row[1:])) == 9
    assert (first == {(3, 7, 22)}) == (positives == "exact")


def test_every_example_of_another_class_is_as_likely_a_negative():
    labels = jnp.asarray(np.random.default_rng(0).permutation([5] * 12 + [7] * 8 + [9]))
    indices = jnp.array([2, 4, 11, int(jnp.argmax(labels))])
    sample = functools.partial(_crd.sample_contrast_indices, positives="relax")
    keys = jax.random.split(jax.random.key(0), 3000)
    drawn = np.asarray(
        jax.jit(jax.vmap(lambda key: sample(key, indices, labels, num_negatives=4)))(
            keys
        )
    )
    for i, index in enumerate(np.asarray(indices)):
        others = np.flatnonzero(labels != labels[index])
        own = np.flatnonzero(labels == labels[index])
        for column in range(5):
            allowed = others if column else own
            found = np.bincount(drawn[:, i, column], minlength=len(labels))
            assert found.sum() == found[allowed].sum()
            # Five standard deviations; of numbers drawn by far more tests than these.
            p = 1 / len(allowed)
            margin = 5 * np.sqrt(len(keys) * p * (1 - p))
            assert np.all(np.abs(found[allowed] - len(keys) * p) <= margin)


@pytest.mark.parametrize("seed", range(5))
def test_asked_for_all_it_takes_each_of_the_others_once(seed):
    labels = jnp.asarray(np.random.default_rng(seed).integers(0, 4, 30))
    drawn = _crd.sample_contrast_indices(
        jax.random.key(seed), jnp.arange(30), labels, num_negatives=29
    )
    for index, row in enumerate(np.asarray(drawn)):
        others = np.flatnonzero(labels != labels[index])
        assert set(row[1 : 1 + len(others)]) == set(others)
        assert set(row[1:]) == set(others)


def test_two_examples_of_a_batch_have_negatives_of_their_own():
    labels = jnp.arange(200)
    drawn = _crd.sample_contrast_indices(
        jax.random.key(0), jnp.arange(8), labels, num_negatives=10
    )
    assert len({tuple(row) for row in np.asarray(drawn[:, 1:])}) == 8


def test_too_few_negatives_are_repeated():
    labels = jnp.array([0, 0, 0, 1, 1])
    drawn = _crd.sample_contrast_indices(
        jax.random.key(0), jnp.array([2]), labels, num_negatives=7
    )
    assert set(np.asarray(drawn)[0, 1:]) == {3, 4}


def test_byot_sums_over_exits_and_takes_what_is_active_on_one_side():
    exits, deepest = STUDENT.reshape(5, 2, 2).transpose(1, 0, 2), TEACHER[:, :2]

    def softmax(x):
        return np.exp(x) / np.exp(x).sum(-1, keepdims=True)

    p, q = softmax(deepest / 3), softmax(exits / 3)
    expected = 9 * np.sum(p * np.log(p / q)) / 5
    actual = _mean(_exits.byot_loss, exits, deepest)
    np.testing.assert_allclose(actual, expected, rtol=1e-9)
    active = (exits > 0) | (deepest > 0)
    expected = np.sum(np.where(active, (exits - deepest) ** 2, 0)) / 5
    actual = _mean(_exits.byot_feature_loss, exits, deepest)
    np.testing.assert_allclose(actual, expected, rtol=1e-9)
