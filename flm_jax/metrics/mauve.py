"""MAUVE: similarity of two sets of texts by the features of a language model.

Source: Pillutla et al., arXiv 2102.01454. Features of both sets are quantised together, and the
area under the frontier of the two divergences between their histograms is 1 for equal ones and 0
for disjoint ones. It reflects what a model's features represent, including long-range meaning,
where the kernel distance of `distribution` compares n-grams. Values depend on the features, on the
number of texts and on the number of clusters: rows are comparable if all three are the same.
"""

import warnings
from typing import NamedTuple

import numpy as np
from scipy.cluster import vq

from flm_jax.core.errors import require
from flm_jax.metrics.intervals import Interval

SCALE = 5.0  # c of exp(-c KL), as published
_WEIGHTS = np.linspace(1e-6, 1.0 - 1e-6, 25)  # of the first law in the mixtures
_VARIANCE = 0.9  # of the features that their principal components keep
_ROUNDS, _STARTS = 100, 5  # of k-means


class Clusters(NamedTuple):
    """Cluster of each text, int [N] of samples and int [M] of the reference; their number."""

    sample: np.ndarray
    reference: np.ndarray
    count: int


def quantised(
    sample: np.ndarray, reference: np.ndarray, clusters: int = 0, seed: int = 0
) -> Clusters:
    """Clusters the features of both sets by k-means.

    Features are scaled to length 1 and reduced to the principal components that hold nine tenths of
    their variance, as published.

    Args:
      sample, reference: features, float [N, D] and [M, D], two rows or more each.
      clusters: number of clusters; 0 for the published rule, a tenth of the smaller set, at least
        2.
      seed: seed of the k-means, the best of five runs.

    Raises:
      UserError: other shapes, or features that are not finite.
    """
    sample, reference = (np.asarray(x, np.float64) for x in (sample, reference))
    require(
        sample.ndim == reference.ndim == 2
        and min(len(sample), len(reference)) >= 2
        and sample.shape[1] == reference.shape[1] > 0,
        f"MAUVE got features {sample.shape} and {reference.shape}; expected two texts or more "
        "each, and features of one width.",
    )
    features = np.concatenate([sample, reference])
    require(bool(np.isfinite(features).all()), "MAUVE got features that are not finite.")
    features = _principal(features / np.maximum(np.linalg.norm(features, axis=1)[:, None], 1e-12))
    count = clusters or max(2, round(min(len(sample), len(reference)) / 10))
    labels = _labels(features, count, np.random.default_rng(seed))
    return Clusters(labels[: len(sample)], labels[len(sample) :], count)


def mauve(
    sample: np.ndarray,
    reference: np.ndarray,
    *,
    clusters: int = 0,
    draws: int = 1000,
    seed: int = 0,
) -> Interval:
    """MAUVE of two sets of features, in (0, 1], with an interval.

    The interval covers other texts of the same model in the same clusters. It is the value plus and
    minus 1.96 standard deviations of its bootstrap draws, not their quantiles: resampled histograms
    are further apart than the originals, and their MAUVE is lower.

    Args:
      sample, reference, clusters: the same as for `quantised`.
      draws: number of bootstrap draws.
      seed: seed of the k-means and of the draws.
    """
    found = quantised(sample, reference, clusters, seed)
    sets = found.sample, found.reference
    laws = lambda *labels: (np.bincount(x, minlength=found.count) / len(x) for x in labels)
    rng = np.random.default_rng(seed)
    again = [area(*laws(*(x[rng.integers(0, len(x), len(x))] for x in sets))) for _ in range(draws)]
    value, half = area(*laws(*sets)), 1.96 * float(np.std(again))
    return Interval(value, max(value - half, 0.0), min(value + half, 1.0))


def area(p: np.ndarray, q: np.ndarray) -> float:
    """Area under the divergence frontier of two histograms [K] (arXiv 2102.01454, eq. 2 and 3).

    Points of the frontier are (exp(-c KL(q|r)), exp(-c KL(p|r))) for mixtures r of p and q, between
    (1, 0) and (0, 1). The area is taken along both axes, and the mean of the two returned.
    """
    mixtures = _WEIGHTS[:, None] * p + (1.0 - _WEIGHTS[:, None]) * q
    across = np.exp(-SCALE * _divergence(q, mixtures))
    upwards = np.exp(-SCALE * _divergence(p, mixtures))
    across, upwards = np.r_[1.0, across, 0.0], np.r_[0.0, upwards, 1.0]
    # As the weight of p grows, the first only falls and the second only rises.
    falling = np.trapezoid(upwards[::-1], across[::-1])
    return float(0.5 * (falling + np.trapezoid(across, upwards)))


def _divergence(p: np.ndarray, mixtures: np.ndarray) -> np.ndarray:
    """Divergence KL(p | r) in nats of each mixture r [W, K], whose support contains p's."""
    there = p > 0
    return (p[there] * np.log(p[there] / mixtures[:, there])).sum(axis=1)


def _principal(features: np.ndarray) -> np.ndarray:
    centred = features - features.mean(axis=0)
    left, sizes, _ = np.linalg.svd(centred, full_matrices=False)
    held = np.cumsum(sizes**2) / max((sizes**2).sum(), 1e-300)
    kept = int(np.searchsorted(held, _VARIANCE)) + 1
    return left[:, :kept] * sizes[:kept]


def _labels(features: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Clusters of the best of several k-means, int [N]."""
    best, least = np.zeros(len(features), int), np.inf
    for _ in range(_STARTS):
        with warnings.catch_warnings():
            # A cluster may lose all its texts: it then has none in either histogram.
            warnings.simplefilter("ignore", UserWarning)
            centres, labels = vq.kmeans2(features, count, _ROUNDS, minit="++", seed=rng)
        spread = float(((features - centres[labels]) ** 2).sum())
        if spread < least:
            best, least = labels, spread
    return best
