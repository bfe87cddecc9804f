"""The linear probe: at the optimum that theory and another library know."""

import numpy as np
import pytest
from sklearn import linear_model

from kdjax import probes

RNG = np.random.default_rng(0)
FEATURES = RNG.normal(size=(60, 7)) * np.arange(1, 8) + 3
LABELS = RNG.integers(0, 3, 60)
OTHERS = RNG.normal(size=(11, 7))


def _probs(logits):
    e = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def test_it_is_scikit_learns_optimum():
    probe = probes.fit(FEATURES, LABELS, num_classes=3, weight_decay=0.01)
    # The sum of losses and not their mean, so the penalty counts 60 times as much.
    oracle = linear_model.LogisticRegression(C=1 / (0.01 * 60), tol=1e-9, max_iter=5000)
    standard = (FEATURES - FEATURES.mean(0)) / FEATURES.std(0)
    oracle.fit(standard, LABELS)
    expected = oracle.predict_proba((OTHERS - FEATURES.mean(0)) / FEATURES.std(0))
    np.testing.assert_allclose(_probs(probe.logits(OTHERS)), expected, atol=1e-5)


def test_scale_and_shift_of_a_feature_do_not_matter():
    scale, shift = np.exp(RNG.normal(size=7)), RNG.normal(size=7)
    probe = probes.fit(FEATURES, LABELS, num_classes=3, weight_decay=0.01)
    moved = probes.fit(
        scale * FEATURES + shift, LABELS, num_classes=3, weight_decay=0.01
    )
    np.testing.assert_allclose(
        moved.logits(scale * OTHERS + shift), probe.logits(OTHERS), atol=1e-3
    )


def test_a_feature_that_never_changes_and_an_absent_class_are_no_trouble():
    features = np.concatenate([FEATURES, np.full((60, 1), 4.0)], axis=1)
    probe = probes.fit(features, LABELS, num_classes=4, weight_decay=0.01)
    logits = probe.logits(np.concatenate([OTHERS, np.full((11, 1), 4.0)], axis=1))
    assert np.isfinite(logits).all()
    assert (logits.argmax(axis=-1) < 3).all()


@pytest.mark.parametrize(("size", "weight_decay"), [(60, 0.0), (0, 0.1)])
def test_what_has_no_optimum_is_refused(size, weight_decay):
    with pytest.raises(ValueError, match="positive weight_decay"):
        probes.fit(
            FEATURES[:size], LABELS[:size], num_classes=3, weight_decay=weight_decay
        )
