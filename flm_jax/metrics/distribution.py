"""A distance between the distributions of two sets of sequences, by a kernel on n-grams.

Entropy and distinct n-grams detect collapse but reward noise; perplexity detects noise but rewards
collapse. The maximum mean discrepancy (Gretton et al., JMLR 13, 2012) is 0 in expectation for equal
distributions alone, up to what its features distinguish, and grows for both.

Features. Of a row and an order n, the square roots of its n-grams' relative frequencies, a unit
vector phi_n; n-grams are hashed into buckets, and two signs for begin and end of the row are part
of them from n = 2 on, so that order matters even in rows of two tokens.

Kernel. k(x, y) = mean over orders n of exp(-|phi_n(x) - phi_n(y)|^2 / (2 h_n^2)), where h_n^2 is
the mean of |phi_n - phi_n'|^2 over pairs of the reference: values against one reference compare,
whatever the samples. k(x, x) = 1, so the squared distance lies in [0, 2] in expectation.

Limits. Long-range faults that leave all n-grams of the orders as they are go unseen (a task's
report sees those). The scale depends on the reference; compare with the interval of true samples.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from flm_jax.core.errors import require
from flm_jax.metrics.intervals import Interval, interval

ORDERS = (1, 2, 3)
BUCKETS = 4096
_FACTOR = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio, odd: a bijection on 64 bits
_SHIFT = np.uint64(32)


class Grams(NamedTuple):
    """Kernel matrices of sample (x) and reference (y): [N, N], [N, M], [M, M], float64."""

    xx: np.ndarray
    xy: np.ndarray
    yy: np.ndarray


def ngram_hashes(tokens: np.ndarray, n: int) -> np.ndarray:
    """Hash of each n-gram of each row, uint64 [N, max(L - n + 1, 0)].

    Equal n-grams have equal hashes; different ones collide with a probability of about 2^-64 each.
    """
    tokens = np.asarray(tokens).astype(np.int64).astype(np.uint64)
    count = max(tokens.shape[1] - n + 1, 0)
    hashes = np.full((len(tokens), count), np.uint64(n))
    for offset in range(n):
        hashes = _mix(hashes ^ _mix(tokens[:, offset : offset + count] + np.uint64(1)))
    return hashes


def ngram_features(tokens: np.ndarray, n: int, buckets: int = BUCKETS) -> np.ndarray:
    """Features phi_n of each row, float32 [N, buckets] of unit length."""
    tokens = np.asarray(tokens)
    if n > 1:
        edge = np.full((len(tokens), 1), -1)
        tokens = np.concatenate([edge, tokens, edge - 1], axis=1)
    # The lower bits depend on the upper ones after the last shift.
    places = (ngram_hashes(tokens, n) % np.uint64(buckets)).astype(np.int64)
    places += np.arange(len(tokens))[:, None] * buckets
    counts = np.bincount(places.ravel(), minlength=len(tokens) * buckets)
    counts = counts.reshape(len(tokens), buckets).astype(np.float32)
    return np.sqrt(counts / np.maximum(counts.sum(axis=1, keepdims=True), 1))


def kernel_matrices(
    sample: np.ndarray,
    reference: np.ndarray,
    orders: Sequence[int] = ORDERS,
    buckets: int = BUCKETS,
) -> Grams:
    """Values of the kernel between all rows.

    Args:
      sample, reference: tokens, int [N, L] and [M, L], at least two rows each.
      orders: lengths n of n-grams; those above L + 1 are left out.
    """
    sample, reference = np.asarray(sample), np.asarray(reference)
    require(
        sample.ndim == reference.ndim == 2
        and min(len(sample), len(reference)) >= 2
        and sample.shape[1] == reference.shape[1] > 0,
        f"kernel distance got sequences {sample.shape} and {reference.shape}; expected two or more "
        "rows each, of one length.",
    )
    orders = [n for n in orders if n <= sample.shape[1] + 1]
    require(bool(orders), f"kernel distance got no order from 1 to {sample.shape[1] + 1}.")
    shapes = [(len(a), len(b)) for a, b in _pairs(sample, reference)]
    total = [np.zeros(shape) for shape in shapes]
    for n in orders:
        features = ngram_features(sample, n, buckets), ngram_features(reference, n, buckets)
        # |a - b|^2 = 2 - 2 a.b for unit vectors; rounding may take it below 0.
        gaps = [np.maximum(2 - 2 * (a @ b.T).astype(np.float64), 0) for a, b in _pairs(*features)]
        rows = len(reference)
        scale = (gaps[2].sum() - np.trace(gaps[2])) / (rows * (rows - 1))
        # A constant reference has no scale of its own; 1 is half the largest squared distance.
        scale = scale if scale > 1e-9 else 1.0
        for out, gap in zip(total, gaps):
            out += np.exp(-gap / (2 * scale))
    return Grams(*(out / len(orders) for out in total))


def squared_distance(grams: Grams, rows_x: np.ndarray, rows_y: np.ndarray) -> float:
    """Unbiased estimate of MMD^2 (Gretton et al., eq. 3) on chosen rows; it may be negative.

    A row that is chosen several times counts that often, but never against itself: as a pair of
    equal draws it would resemble a collapse, and shift every bootstrap draw upwards by about 1 / N.

    Args:
      rows_x, rows_y: row indices, np.arange(N) and np.arange(M) for the statistic itself.
    """
    weights_x = np.bincount(rows_x, minlength=len(grams.xx)).astype(float)
    weights_y = np.bincount(rows_y, minlength=len(grams.yy)).astype(float)
    across = weights_x @ grams.xy @ weights_y / (weights_x.sum() * weights_y.sum())
    return _within(grams.xx, weights_x) + _within(grams.yy, weights_y) - 2 * float(across)


def kernel_distance(
    sample: np.ndarray,
    reference: np.ndarray,
    *,
    orders: Sequence[int] = ORDERS,
    draws: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """MMD^2 of two sets of sequences with a bootstrap interval.

    An interval around 0 means that the sets cannot be distinguished. For equal distributions it is
    wider than necessary, since the estimate then varies less than its resampled copies.

    Args:
      sample, reference: tokens, int [N, L] and [M, L]. Time and memory grow with (N + M)^2: half a
        second for 500 rows each.
      orders: lengths of n-grams.
      draws, seed, level: the same as for `intervals.interval`.
    """
    grams = kernel_matrices(sample, reference, orders)
    rows = np.arange(len(grams.xx)), np.arange(len(grams.yy))
    statistic = lambda x, y: squared_distance(grams, x, y)
    return interval(statistic, *rows, draws=draws, seed=seed, level=level)


def _mix(numbers: np.ndarray) -> np.ndarray:
    """A bijection of 64-bit numbers that spreads small differences over all bits."""
    for _ in range(2):
        numbers = numbers * _FACTOR
        numbers = numbers ^ (numbers >> _SHIFT)
    return numbers


def _pairs(x, y) -> tuple:
    return (x, x), (x, y), (y, y)


def _within(gram: np.ndarray, weights: np.ndarray) -> float:
    """Weighted mean over pairs of different rows."""
    squares = weights**2
    pairs = weights.sum() ** 2 - squares.sum()
    # All draws the same row: no pair is left, and k(x, x) = 1 is the limit.
    return float((weights @ gram @ weights - squares @ np.diag(gram)) / pairs) if pairs else 1.0
