"""Kernel distances tell planted faults from real data, and are the formula."""

from collections import Counter

import numpy as np
import pytest

from flm_jax.data.tasks.registry import make_task
from flm_jax.metrics.distribution import (
    Grams,
    kernel_distance,
    kernel_matrices,
    ngram_features,
    ngram_hashes,
    squared_distance,
)
from flm_jax.metrics.intervals import interval
from helpers.texts import ROWS, english_rows, planted_faults


@pytest.fixture(scope="module", params=["english", "grammar", "arithmetic"])
def halves(request):
    """Two independent sets of true rows, and the interval of their distance."""
    if request.param == "english":
        rows = english_rows()
    else:
        rows = make_task(request.param).sample(2 * ROWS, seed=0)
    return rows[:ROWS], rows[ROWS:], kernel_distance(rows[:ROWS], rows[ROWS:], draws=300)


def test_halves_of_real_data_are_not_told_apart(halves):
    value, low, high = halves[2]
    assert low < 0 < high
    assert low < value < high


@pytest.mark.parametrize("fault", planted_faults(np.zeros((10, 1), int)))
def test_planted_faults_lie_apart_from_real_data(halves, fault):
    real, reference, null = halves
    value, low, high = kernel_distance(planted_faults(real)[fault], reference, draws=300)
    if fault == "a quarter noise" and len(np.unique(real)) == 12:
        # All digits are equally likely beside each other, so n-grams hardly see it: only the
        # task's own report does.
        assert make_task("arithmetic").report(planted_faults(real)[fault])["valid"] < 0.2
        return
    assert low < value < high
    assert low > null.high


def test_kernel_distance_is_unbiased_and_covers_zero():
    """300 pairs of sets of 12 rows: the mean is 0 within its error, the intervals hold 0."""
    task = make_task("phrases4")
    values, covered = [], 0
    for seed in range(300):
        grams = kernel_matrices(task.sample(12, 2 * seed), task.sample(12, 2 * seed + 1))
        rows = np.arange(12)
        found = interval(lambda x, y, g=grams: squared_distance(g, x, y), rows, rows, draws=100)
        values.append(found.value)
        covered += found.low <= 0 <= found.high
    assert abs(np.mean(values)) < 4 * np.std(values) / np.sqrt(300)
    assert np.std(values) / np.sqrt(300) < 0.01
    assert covered > 0.93 * 300


def _features_by_hand(row, n):
    padded = ["begin", *map(int, row), "end"] if n > 1 else [int(t) for t in row]
    counts = Counter(tuple(padded[i : i + n]) for i in range(len(padded) - n + 1))
    return {gram: np.sqrt(c / counts.total()) for gram, c in counts.items()}


def _kernel_by_hand(x, y, reference):
    def gap(one, two):
        return sum((one.get(g, 0) - two.get(g, 0)) ** 2 for g in one.keys() | two.keys())

    total = 0.0
    for n in (1, 2, 3):
        base = [_features_by_hand(row, n) for row in reference]
        pairs = [gap(a, b) for i, a in enumerate(base) for j, b in enumerate(base) if i != j]
        squared = gap(_features_by_hand(x, n), _features_by_hand(y, n))
        total += np.exp(-squared / (2 * np.mean(pairs))) / 3
    return total


def test_kernel_distance_equals_the_formula():
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 4, (5, 6)), rng.integers(0, 4, (4, 6))
    k = lambda a, b: _kernel_by_hand(a, b, y)
    xx = np.mean([k(x[i], x[j]) for i in range(5) for j in range(5) if i != j])
    yy = np.mean([k(y[i], y[j]) for i in range(4) for j in range(4) if i != j])
    xy = np.mean([k(a, b) for a in x for b in y])
    assert kernel_distance(x, y, draws=2).value == pytest.approx(xx + yy - 2 * xy, abs=1e-6)


def test_rows_chosen_twice_never_meet_themselves():
    gram = np.array([[1.0, 0.2, 0.4], [0.2, 1.0, 0.6], [0.4, 0.6, 1.0]])
    zero = Grams(gram, np.zeros((3, 2)), np.zeros((2, 2)))
    both = np.arange(2)
    assert squared_distance(zero, np.arange(3), both) == pytest.approx(0.4)
    # Rows 0, 0, 2: two pairs (0, 2) and none of (0, 0).
    assert squared_distance(zero, np.array([0, 0, 2]), both) == pytest.approx(0.4)
    assert squared_distance(zero, np.array([1, 1, 2]), both) == pytest.approx(0.6)
    # Rows 0, 0, 1, 2: pairs with row 0 count twice, (2 * 0.2 + 2 * 0.4 + 0.6) / 5.
    assert squared_distance(zero, np.array([0, 0, 1, 2]), both) == pytest.approx(0.36)
    assert squared_distance(zero, np.array([1, 1, 1]), both) == pytest.approx(1.0)


def test_hashes_tell_ngrams_apart():
    tokens = np.random.default_rng(0).integers(-2, 50_000, (100, 200))
    tokens[50:] %= 7
    for n in (1, 2, 5):
        grams = [tuple(row[i : i + n].tolist()) for row in tokens for i in range(201 - n)]
        names = dict(zip(grams, ngram_hashes(tokens, n).ravel().tolist()))
        assert len(set(names.values())) == len(names) == len(set(grams))
    assert ngram_hashes(tokens, 201).shape == (100, 0)
    features = ngram_features(tokens, 2, buckets=64)
    assert features.shape == (100, 64)
    np.testing.assert_allclose((features**2).sum(axis=1), 1, rtol=1e-5)
    # Buckets fill evenly: 50 rows of 201 nearly different pairs in 64 buckets.
    counts = (features[:50] ** 2 * 201).sum(axis=0)
    assert abs(counts - 50 * 201 / 64).max() < 5 * np.sqrt(50 * 201 / 64)
