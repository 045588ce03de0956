"""Text metrics: planted collapse and noise are told from real data, halves of it are not."""

import pydoc_data.topics
from collections import Counter

import numpy as np
import pytest

from flm_jax.core.errors import UserError
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
from flm_jax.metrics.text import (
    distinct_n,
    diversity_report,
    longest_repeats,
    row_entropies,
    row_repetition,
    unigram_entropy,
)

ROWS = 200


def _english():
    """Python's own manual, as rows of 64 bytes in random order."""
    text = "\n".join(v for _, v in sorted(pydoc_data.topics.topics.items())).encode()
    rows = np.frombuffer(text, np.uint8)[: len(text) // 64 * 64].reshape(-1, 64).astype(np.int32)
    return np.random.default_rng(0).permutation(rows)[: 2 * ROWS]


def _planted(real):
    """Faults of a generative model, planted in true rows."""
    rng = np.random.default_rng(1)
    seen = np.unique(real)
    random = rng.choice(seen, real.shape)
    return {
        "one mode": np.tile(real[:1], (len(real), 1)),
        "ten modes": real[rng.integers(0, 10, len(real))],
        "one token": np.full_like(real, real[0, 0]),
        "random tokens": random,
        "frequent tokens": rng.choice(real.ravel(), real.shape),
        "shuffled tokens": rng.permuted(real, axis=1),
        "a quarter noise": np.where(rng.random(real.shape) < 0.25, random, real),
        "a quarter of rows is one": np.where(np.arange(len(real))[:, None] % 4, real, real[:1]),
    }


@pytest.fixture(scope="module", params=["english", "grammar", "arithmetic"])
def halves(request):
    """Two independent sets of true rows, and the interval of their distance."""
    if request.param == "english":
        rows = _english()
    else:
        rows = make_task(request.param).sample(2 * ROWS, seed=0)
    return rows[:ROWS], rows[ROWS:], kernel_distance(rows[:ROWS], rows[ROWS:], draws=300)


def test_halves_of_real_data_are_not_told_apart(halves):
    value, low, high = halves[2]
    assert low < 0 < high
    assert low < value < high


@pytest.mark.parametrize("fault", _planted(np.zeros((10, 1), int)))
def test_planted_faults_lie_apart_from_real_data(halves, fault):
    real, reference, null = halves
    value, low, high = kernel_distance(_planted(real)[fault], reference, draws=300)
    if fault == "a quarter noise" and len(np.unique(real)) == 12:
        # All digits are equally likely beside each other, so n-grams hardly see it: only the
        # task's own report does.
        assert make_task("arithmetic").report(_planted(real)[fault])["valid"] < 0.2
        return
    assert low < value < high
    assert low > null.high


def test_entropy_and_repetition_see_collapse_but_not_noise():
    real = _english()
    planted = _planted(real)
    entropy = interval(np.mean, row_entropies(real))
    assert unigram_entropy(planted["one token"]) == 0
    assert unigram_entropy(planted["random tokens"]) > entropy.high
    assert unigram_entropy(planted["shuffled tokens"]) == pytest.approx(entropy.value)
    assert distinct_n(planted["one mode"], 2) < 0.05 * distinct_n(real, 2)
    assert distinct_n(planted["random tokens"], 2) > distinct_n(real, 2)
    loop = np.tile(real[:, :8], (1, 8))
    assert row_repetition(loop, 2).mean() > interval(np.mean, row_repetition(real, 2)).high + 0.3


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


def _longest_by_hand(row):
    row = list(row)
    for n in range(len(row) - 1, 0, -1):
        runs = [tuple(row[i : i + n]) for i in range(len(row) - n + 1)]
        if len(set(runs)) < len(runs):
            return n
    return 0


def test_repetition_against_loops_over_tuples():
    rng = np.random.default_rng(0)
    tokens = np.concatenate([rng.integers(0, v, (20, 30)) for v in (2, 5, 100)])
    tokens = np.concatenate([tokens, np.arange(30)[None], np.zeros((1, 30), int)])
    assert longest_repeats(tokens).tolist() == [_longest_by_hand(row) for row in tokens]
    assert longest_repeats(tokens)[-2:].tolist() == [0, 29]
    for n in (1, 2, 3):
        grams = [[tuple(row[i : i + n]) for i in range(31 - n)] for row in tokens.tolist()]
        shares = [1 - len(set(row)) / len(row) for row in grams]
        np.testing.assert_allclose(row_repetition(tokens, n), shares)
        flat = [gram for row in grams for gram in row]
        assert distinct_n(tokens, n) == len(set(flat)) / len(flat)


def test_bootstrap_of_a_mean_is_the_normal_interval():
    rng = np.random.default_rng(0)
    x, y = rng.normal(1, 2, 400), rng.normal(0, 1, 900)
    value, low, high = interval(np.mean, x, draws=4000)
    assert value == x.mean()
    half = 1.96 * x.std() / 20
    assert high - value == pytest.approx(half, rel=0.08)
    assert value - low == pytest.approx(half, rel=0.08)
    gap = interval(lambda a, b: a.mean() - b.mean(), x, y, draws=4000)
    assert gap.high - gap.low == pytest.approx(
        2 * 1.96 * np.sqrt(x.var() / 400 + y.var() / 900), rel=0.08
    )
    assert interval(np.mean, x) == interval(np.mean, x)
    assert interval(np.mean, x) != interval(np.mean, x, seed=1)
    narrow = interval(np.mean, x, level=0.5)
    assert narrow.high - narrow.low == pytest.approx(2 * 0.6745 * x.std() / 20, rel=0.12)


def test_bootstrap_of_means_covers_the_truth():
    rng = np.random.default_rng(0)
    found = [interval(np.mean, rng.exponential(size=80), draws=200) for _ in range(300)]
    covered = np.mean([low <= 1 <= high for _, low, high in found])
    assert 0.89 < covered < 0.98


def test_report_has_an_interval_wherever_one_is_sound():
    rows = make_task("grammar").sample(120, seed=0)
    report = diversity_report(rows[:60], rows[60:])
    for key in ("entropy_nats", "repetition_2", "longest_repeat_tokens", "kernel_distance"):
        assert report[f"{key}_low"] < report[key] < report[f"{key}_high"]
    assert report["entropy_nats"] == pytest.approx(unigram_entropy(rows[:60]))
    assert report["distinct_2"] == distinct_n(rows[:60], 2)
    assert report["kernel_distance"] == kernel_distance(rows[:60], rows[60:]).value
    single = diversity_report(rows[:60, :1], rows[60:, :1])
    assert single["repetition_2"] == 0 < single["distinct_2"]
    assert "kernel_distance" not in diversity_report(rows[:1], rows)


def test_errors():
    rows = np.zeros((3, 4), int)
    with pytest.raises(UserError, match="two or more rows"):
        kernel_distance(rows[:1], rows)
    with pytest.raises(UserError, match="of one length"):
        kernel_distance(rows, rows[:, :2])
    with pytest.raises(UserError, match="no order from 1 to 5"):
        kernel_distance(rows, rows, orders=(9,))
    with pytest.raises(UserError, match="n=5"):
        distinct_n(rows, 5)
    with pytest.raises(UserError, match="none empty"):
        interval(np.mean, np.zeros(0))
    with pytest.raises(UserError, match="level=95"):
        interval(np.mean, np.zeros(3), level=95)
