"""Percentile bootstrap intervals (Efron 1979) with fixed seeds."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from flm_jax.core.errors import require


class Interval(NamedTuple):
    """A statistic of the complete sample, and the bounds of its interval."""

    value: float
    low: float
    high: float


def interval(
    statistic: Callable[..., float],
    *samples: np.ndarray,
    draws: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Bootstrap interval of a statistic of one or several independent samples.

    Each sample is resampled with replacement along its first axis; the bounds are the (1 -+ level)
    / 2 quantiles over all draws. It covers other samples of the same model, not other seeds of
    training.

    Limit: a statistic that duplicates bias, such as the number of distinct n-grams or a U-statistic
    of pairs, must know which rows are the same: pass row indices (np.arange(N)) as samples, as in
    `distribution.kernel_distance`.

    Args:
      statistic: function from arrays of the samples' shapes to a float; np.mean for figures by row.
      *samples: samples, arrays [N_i, ...].
      draws: number of repetitions.
      seed: seed of the resampling.
      level: fraction of draws inside, in (0, 1).

    Raises:
      UserError: an empty sample, or options out of range.
    """
    samples = tuple(np.asarray(sample) for sample in samples)
    sizes = [sample.shape[0] if sample.ndim else 0 for sample in samples]
    require(
        bool(sizes) and min(sizes) > 0,
        f"bootstrap got samples of {sizes} rows; expected at least one sample, none empty.",
    )
    require(
        draws >= 1 and 0 < level < 1,
        f"bootstrap got draws={draws}, level={level}; expected draws >= 1 and 0 < level < 1.",
    )
    rng = np.random.default_rng(seed)
    values = np.empty(draws)
    for i in range(draws):
        values[i] = statistic(*(s[rng.integers(0, n, n)] for s, n in zip(samples, sizes)))
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(statistic(*samples)), float(low), float(high))


def share_interval(share: float, count: int) -> tuple[float, float]:
    """Wilson's score interval (95%) of a fraction of `count` independent samples."""
    z = 1.96
    middle = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * ((share * (1 - share) + z**2 / (4 * count)) / count) ** 0.5
    # The bound on the side of 0, or of 1, is that number; rounding would leave it a hair away.
    return (middle - half if share > 0 else 0.0), (middle + half if share < 1 else 1.0)
