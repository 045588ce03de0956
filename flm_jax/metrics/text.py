"""Statistics of sampled token sequences: diversity within and across rows.

None of them detects noise, which is diverse; `distribution.kernel_distance` does. All depend on the
number of tokens, so only sets of equal size are comparable.
"""

from collections.abc import Iterable

import numpy as np

from flm_jax.core.errors import require
from flm_jax.metrics.distribution import kernel_distance, ngram_hashes
from flm_jax.metrics.intervals import interval

_ROWS = 512  # of each set that the kernel distance compares: its work grows with the square


def unigram_entropy(tokens: np.ndarray) -> float:
    """Mean over rows of the entropy of the row's token frequencies, nats.

    This is the diversity measure of arXiv 2602.16813v3: low for repetitive text. It depends on the
    row's length, so only sequences of equal length are comparable.

    Args:
      tokens: tokens, int [N, L].
    """
    return float(np.mean(row_entropies(tokens)))


def row_entropies(tokens: Iterable[np.ndarray]) -> np.ndarray:
    """Entropy of each row's token frequencies, nats, float64 [N], for N rows of tokens int [L]."""
    return np.array([_row_entropy(np.asarray(row)) for row in tokens])


def distinct_n(tokens: np.ndarray, n: int) -> float:
    """Fraction of distinct n-grams among all n-grams of all rows, in (0, 1].

    This is distinct-n of Li et al. (arXiv 1510.03055). It falls as rows are added, and is lower in
    a bootstrap sample, which repeats rows: it has no interval here.

    Args:
      tokens: tokens, int [N, L] with L >= n.
    """
    hashes = _ngrams(tokens, n)
    return len(np.unique(hashes)) / hashes.size


def row_repetition(tokens: np.ndarray, n: int) -> np.ndarray:
    """Fraction of each row's n-grams that occur earlier in the row, float64 [N] in [0, 1)."""
    hashes = _ngrams(tokens, n)
    return _earlier(hashes).sum(axis=1) / hashes.shape[1]


def overlaps(tokens: np.ndarray, n: int) -> np.ndarray:
    """Fraction of each row's n-grams that stand in another row as well, float64 [N] in [0, 1].

    It sees samples that are alike, which each row's own entropy does not. It grows with N.
    """
    hashes = _ngrams(tokens, n)
    own = np.sort(hashes, axis=1)
    first = np.concatenate([np.ones((len(own), 1), bool), own[:, 1:] != own[:, :-1]], axis=1)
    found, rows = np.unique(own[first], return_counts=True)  # in how many rows each stands
    return (rows[np.searchsorted(found, hashes)] > 1).mean(axis=1)


def longest_repeats(tokens: np.ndarray) -> np.ndarray:
    """Length of the longest run of tokens that occurs twice in a row (overlaps count), int [N].

    It is 0 if all tokens of a row differ, and L - 1 if all are the same.
    """
    tokens = np.asarray(tokens)
    longest = np.zeros(len(tokens), int)
    low, high = longest.copy(), np.full(len(tokens), max(tokens.shape[1] - 1, 0))
    # If a run of n occurs twice, so do its parts: bisection, by rows that ask for the same n.
    while (low < high).any():
        middle = (low + high + 1) // 2
        for n in np.unique(middle[low < high]):
            rows = np.flatnonzero((low < high) & (middle == n))
            twice = _earlier(ngram_hashes(tokens[rows], int(n))).any(axis=1)
            low[rows[twice]] = n
            high[rows[~twice]] = n - 1
    return low


def diversity_report(tokens: np.ndarray, reference: np.ndarray, seed: int = 0) -> dict[str, float]:
    """Diversity figures of samples, which a comparison prints beside their quality.

    Args:
      tokens: samples, int [N, L].
      seed: seed of the bootstrap.

    Returns:
      entropy_nats: `unigram_entropy`.
      distinct_2: over all rows. repetition_2: mean over rows of `row_repetition`.
      longest_repeat_tokens: mean over rows of `longest_repeats`.
      overlap_4: mean over rows of `overlaps`; absent with fewer than two rows.
      kernel_distance: MMD^2 of the first 512 rows of each; absent with fewer than two rows.
      KEY_low, KEY_high: the 95% interval of each but distinct_2. In rows that are shorter than its
        n-grams, a figure is of n-grams of the row's length.
    """
    tokens, reference = np.asarray(tokens), np.asarray(reference)
    n = min(2, tokens.shape[1])
    found = {
        "entropy_nats": interval(np.mean, row_entropies(tokens), seed=seed),
        "repetition_2": interval(np.mean, row_repetition(tokens, n), seed=seed),
        "longest_repeat_tokens": interval(np.mean, longest_repeats(tokens), seed=seed),
    }
    if len(tokens) >= 2:
        found["overlap_4"] = interval(np.mean, overlaps(tokens, min(4, tokens.shape[1])), seed=seed)
    if min(len(tokens), len(reference)) >= 2:
        few = tokens[:_ROWS], reference[:_ROWS]
        found["kernel_distance"] = kernel_distance(*few, seed=seed)
    report = {}
    for key, (value, low, high) in found.items():
        report |= {key: value, f"{key}_low": low, f"{key}_high": high}
    return report | {"distinct_2": distinct_n(tokens, n)}


def _row_entropy(row: np.ndarray) -> float:
    counts = np.unique(row, return_counts=True)[1]
    share = counts / counts.sum()
    return float(-(share * np.log(share)).sum())


def _ngrams(tokens: np.ndarray, n: int) -> np.ndarray:
    tokens = np.asarray(tokens)
    require(
        tokens.ndim == 2 and len(tokens) > 0 and 1 <= n <= tokens.shape[1],
        f"n-grams of n={n} of tokens {tokens.shape}: expected [N, L] with N >= 1 and L >= n >= 1.",
    )
    return ngram_hashes(tokens, n)


def _earlier(hashes: np.ndarray) -> np.ndarray:
    """Marks all but one of each group of equal numbers in a row, in sorted order, bool."""
    ordered = np.sort(hashes, axis=1)
    return ordered[:, 1:] == ordered[:, :-1]
