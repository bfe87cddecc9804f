import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
from scipy import special

from kdjax import metrics

NUM_CLASSES = 7


@pytest.fixture
def predictions():
    """Student's and teacher's logits and labels of 211 examples, as NumPy arrays."""
    rng = np.random.default_rng(0)
    labels = rng.integers(NUM_CLASSES, size=211)
    signal = 2 * np.eye(NUM_CLASSES)[labels]
    logits = signal + 2 * rng.normal(size=(2, 211, NUM_CLASSES))
    return *logits.astype(np.float32), labels


WITH_LABELS = [
    metrics.accuracy,
    metrics.negative_log_likelihood,
    metrics.expected_calibration_error,
    lambda *args, **kwargs: metrics.top_k_accuracy(*args, k=3, **kwargs),
]
WITH_TEACHER = [metrics.agreement, metrics.forward_kl, metrics.rank_correlation]


def _call(metric, predictions, rows=slice(None), **kwargs):
    student, teacher, labels = (x[rows] for x in predictions)
    return metric(student, labels if metric in WITH_LABELS else teacher, **kwargs)


def test_accuracy(predictions):
    logits, _, labels = predictions
    expected = sklearn.metrics.accuracy_score(labels, logits.argmax(-1))
    np.testing.assert_allclose(metrics.accuracy(logits, labels), expected, rtol=1e-6)


@pytest.mark.parametrize("k", [1, 3, 7])
def test_top_k_accuracy(predictions, k):
    logits, _, labels = predictions
    named = np.argsort(-logits, axis=-1)[:, :k]
    expected = (named == labels[:, None]).any(-1).mean()
    actual = metrics.top_k_accuracy(logits, labels, k=k)
    np.testing.assert_allclose(actual, expected, rtol=1e-6)


def test_equal_logits_are_right_by_chance_only():
    labels = np.arange(7)
    equal = np.zeros((7, 7), np.float32)
    np.testing.assert_allclose(metrics.accuracy(equal, labels), 1 / 7, rtol=1e-6)
    top_3 = metrics.top_k_accuracy(equal, labels, k=3)
    np.testing.assert_allclose(top_3, 3 / 7, rtol=1e-6)


def test_negative_log_likelihood(predictions):
    logits, _, labels = predictions
    expected = sklearn.metrics.log_loss(
        labels, special.softmax(logits.astype(np.float64), axis=-1)
    )
    actual = metrics.negative_log_likelihood(logits, labels)
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


@pytest.mark.parametrize("num_bins", [4, 15])
def test_calibration(predictions, num_bins):
    logits, _, labels = predictions
    probs = special.softmax(logits.astype(np.float64), axis=-1)
    confidence, correct = probs.max(-1), probs.argmax(-1) == labels
    edges = np.linspace(0, 1, num_bins + 1)
    error = 0.0
    bins = metrics.reliability_bins(logits, labels, num_bins=num_bins)
    for m, (low, high) in enumerate(itertools.pairwise(edges)):
        inside = (confidence > low) & (confidence <= high)
        assert bins["count"][m] == inside.sum()
        if not inside.any():
            assert bins["confidence"][m] == bins["accuracy"][m] == 0
            continue
        gap = correct[inside].mean() - confidence[inside].mean()
        error += inside.mean() * abs(gap)
        np.testing.assert_allclose(
            bins["confidence"][m], confidence[inside].mean(), rtol=1e-5
        )
        np.testing.assert_allclose(bins["accuracy"][m], correct[inside].mean(), 1e-5)
    actual = metrics.expected_calibration_error(logits, labels, num_bins=num_bins)
    np.testing.assert_allclose(actual, error, rtol=1e-4)


def test_a_bin_includes_its_upper_edge():
    logits = np.array([[0, 0, 0, 0], [0, 0, -200, -200], [200, 0, 0, 0]], np.float32)
    bins = metrics.reliability_bins(logits, np.zeros(3, int), num_bins=4)
    np.testing.assert_array_equal(bins["count"], [1, 1, 0, 1])


def test_a_calibrated_model_has_little_calibration_error():
    """Labels drawn from the model's own probabilities: what is left is noise."""
    rng = np.random.default_rng(0)
    logits = 2 * rng.normal(size=(20_000, 5)).astype(np.float32)
    probs = special.softmax(logits, axis=-1)
    labels = (probs.cumsum(-1) < rng.uniform(size=(20_000, 1))).sum(-1).clip(max=4)
    honest = metrics.expected_calibration_error(logits, labels)
    boastful = metrics.expected_calibration_error(3 * logits, labels)
    assert honest < 0.02
    assert boastful > 0.1


def test_agreement(predictions):
    student, teacher, _ = predictions
    expected = (student.argmax(-1) == teacher.argmax(-1)).mean()
    np.testing.assert_allclose(metrics.agreement(student, teacher), expected, rtol=1e-6)
    assert metrics.agreement(student, student) == 1


def test_forward_kl(predictions):
    student, teacher, _ = predictions
    expected = special.rel_entr(
        special.softmax(teacher.astype(np.float64), axis=-1),
        special.softmax(student.astype(np.float64), axis=-1),
    )
    actual = metrics.forward_kl(student, teacher)
    np.testing.assert_allclose(actual, expected.sum(-1).mean(), rtol=1e-5)


def test_rank_correlation(predictions):
    student, teacher, _ = predictions
    student, teacher = student.round(), teacher.round()  # Makes ties.
    expected = np.mean(
        [
            scipy.stats.spearmanr(s, t).statistic
            for s, t in zip(student, teacher, strict=True)
        ]
    )
    actual = metrics.rank_correlation(student, teacher)
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_rank_correlation_sees_nothing_but_order(predictions):
    student, teacher, _ = predictions
    expected = metrics.rank_correlation(student, teacher)
    actual = metrics.rank_correlation(np.exp(student), teacher**3)
    np.testing.assert_allclose(actual, expected, rtol=1e-6)
    np.testing.assert_allclose(metrics.rank_correlation(student, -student), -1, 1e-6)


def test_rank_correlation_without_an_order_is_0(predictions):
    student, _, _ = predictions
    assert metrics.rank_correlation(student, np.ones_like(student)) == 0


@pytest.mark.parametrize("metric", WITH_LABELS + WITH_TEACHER)
def test_invalid_examples_are_as_if_absent(metric, predictions):
    student, teacher, labels = predictions
    where = np.arange(211) % 3 != 0
    poison = np.where(where, 0, np.nan)[:, None].astype(np.float32)
    poisoned = (student + poison, teacher + poison, np.where(where, labels, -100))
    actual = _call(metric, poisoned, where=where)
    expected = _call(metric, predictions, rows=where)
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


@pytest.mark.parametrize("metric", WITH_LABELS + WITH_TEACHER)
def test_jit_agrees_with_eager_and_any_batch_shape_will_do(metric, predictions):
    arrays = tuple(jnp.asarray(x[:210]) for x in predictions)
    expected = _call(metric, arrays)
    assert expected.shape == ()
    assert expected.dtype == jnp.float32
    folded = tuple(x.reshape(2, 105, *x.shape[1:]) for x in arrays)
    other = 2 if metric in WITH_LABELS else 1
    actual = jax.jit(metric)(folded[0], folded[other])
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


@pytest.mark.parametrize("metric", WITH_LABELS + WITH_TEACHER)
def test_the_mean_of_no_example_is_nan(metric, predictions):
    assert np.isnan(_call(metric, predictions, where=np.zeros(211, bool)))


def test_half_precision_logits_are_averaged_in_float32(predictions):
    """In bfloat16 a count stops at 256."""
    logits, _, labels = predictions
    logits, labels = np.tile(logits, (5, 1)), np.tile(labels, 5)
    half = jnp.asarray(logits, jnp.bfloat16)
    full = half.astype(jnp.float32)
    for metric in WITH_LABELS:
        np.testing.assert_allclose(metric(half, labels), metric(full, labels), 1e-6)


@pytest.mark.parametrize("k", [0, 8])
def test_top_k_accuracy_refuses_more_classes_than_there_are(predictions, k):
    logits, _, labels = predictions
    with pytest.raises(ValueError, match=f"Expected k from 1 to 7 classes, got {k}"):
        metrics.top_k_accuracy(logits, labels, k=k)
