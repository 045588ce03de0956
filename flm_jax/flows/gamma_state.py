"""The distribution of gamma = log noise over signal: its settings and its learnt state."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from flm_jax.core.errors import require
from flm_jax.core.settings import setting

KNOTS = 101
# Statistics are kept apart by the hidden fraction, in bins between these.
RATIO_EDGES = np.arange(1, 21) / 20


@dataclasses.dataclass(frozen=True)
class GammaConfig:
    """A mixture of U(low, high), a clipped N(center, spread^2), and a learnt distribution.

    The learnt distribution has the remaining weight. The defaults follow the adaptation of arXiv
    2606.27617 in its authors' code.
    """

    low: float = setting(-10.0, "Lowest gamma, where states are almost clean.", range="[-30, 30]")
    high: float = setting(
        6.0,
        "Highest gamma, where states are almost pure noise; sampling starts there.",
        range="[-30, 30]",
    )
    uniform: float = setting(0.1, "Fraction of the mixture that is uniform.", range="[0, 1]")
    normal: float = setting(0.2, "Fraction of the mixture that is normal.", range="[0, 1]")
    center: float = setting(-2.5, "Mean of the normal component.")
    spread: float = setting(2.0, "Standard deviation of the normal component.", range="(0, inf)")
    learnt: str = setting(
        "logistic",
        "Form of the learnt distribution: logistic or gumbel (fitted to the cross entropy "
        "over gamma) or empirical (quantiles of the measured curve).",
        choices=("logistic", "gumbel", "empirical"),
    )
    before: str = setting(
        "normal",
        "Component that also takes the learnt fraction until the first fit.",
        choices=("normal", "uniform"),
    )
    bins: int = setting(
        128, "Number of bins of gamma in which the cross entropy is averaged.", range="[8, inf)"
    )
    decay: float = setting(0.999, "Decay rate of the sums in these bins.", range="[0, 1)")
    decays: str = setting(
        "fit",
        "Moment at which these sums decay: fit (once before each fit, when the sums since the"
        " last one are added) or batch (with each batch).",
        choices=("fit", "batch"),
    )
    refit_every: int = setting(20, "Number of batches between two fits.", range="[1, inf)")
    knot_rate: float = setting(
        0.002,
        "Step size of the moving average of the quantiles of a logistic or empirical "
        "distribution; the first fit is taken in full, and 1 takes every fit in full.",
        range="(0, 1]",
    )
    ratio_low: float = setting(
        0.05, "Smallest hidden fraction of the rows that a fit uses.", range="[0, 1]"
    )
    ratio_high: float = setting(
        1.0, "Largest hidden fraction of the rows that a fit uses.", range="[0, 1]"
    )
    least_cell: float = setting(
        20.0,
        "Number of rows (after decay) below which a bin of gamma and of the hidden fraction "
        "is left out.",
        range="[0, inf)",
    )
    least_examples: float = setting(
        4096.0, "Number of rows (after decay) below which nothing is fitted.", range="[0, inf)"
    )
    least_r2: float = setting(
        0.95,
        "Coefficient of determination R^2 below which a fitted curve is rejected; an "
        "empirical one is always accepted.",
    )
    least_scale: float = setting(
        0.0, "Lower bound of the scale b of a fitted curve; 0.05 in the paper.", range="[0, inf)"
    )

    inherit: bool = setting(
        True,
        "Whether a run that starts from the adapters of another one (config.adapters.start) "
        "also starts from its learnt distribution.",
    )

    def __post_init__(self):
        require(
            self.uniform + self.normal <= 1.0,
            f"config.flow.law has uniform {self.uniform} and normal {self.normal}, more than 1 "
            "together; the rest is the learnt fraction.",
        )
        require(
            self.low < self.high,
            f"config.flow.law has low {self.low} and high {self.high}; expected low < high.",
        )
        require(
            bool(np.any(self.ratios)),
            f"config.flow.law has ratio_low {self.ratio_low} and ratio_high {self.ratio_high}; "
            "expected the middle of one of 0.05-0.10, ..., 0.95-1.00 between them.",
        )

    @property
    def ratios(self) -> np.ndarray:
        """Mask of the bins of the hidden fraction that a fit uses, bool [19], by their centres."""
        middles = 0.5 * (RATIO_EDGES[:-1] + RATIO_EDGES[1:])
        return (middles >= self.ratio_low) & (middles <= self.ratio_high)


class GammaState(NamedTuple):
    """Learnt state of the distribution, float32.

    Attributes:
      cells: [19, bins, 3], for each bin of hidden fraction and gamma the decayed number of rows,
        the sum of their mean cross entropies (nats) and the sum of the squares of these.
      fresh: the same sums for the batches since the last fit, if sums decay before each fit.
      examples: number of rows seen in total.
      shape: (mu, b, a) of the last accepted fit; for a gumbel distribution, the distribution
        itself.
      knots: [101] gamma at quantile levels 0, 0.01, ..., 1 of a logistic or empirical distribution,
        ascending.
      r2: coefficient of determination of the last fit, accepted or not.
      ready: 1 from the first accepted fit or curve on, else 0.
    """

    cells: Float[Array, "r k 3"]
    fresh: Float[Array, "r k 3"]
    examples: jax.Array
    shape: Float[Array, "3"]
    knots: Float[Array, "n"]
    r2: jax.Array
    ready: jax.Array


def fresh_state(cfg: GammaConfig) -> GammaState:
    """Returns the state before any batch."""
    size = (len(RATIO_EDGES) - 1, cfg.bins, 3)
    return GammaState(
        cells=jnp.zeros(size),
        fresh=jnp.zeros(size),
        examples=jnp.zeros(()),
        shape=jnp.array([cfg.center, 1.0, 1.0]),
        knots=jnp.linspace(cfg.low, cfg.high, KNOTS),
        r2=jnp.zeros(()),
        ready=jnp.zeros(()),
    )


def state_of_knots(knots: np.ndarray | jax.Array, cfg: GammaConfig) -> GammaState:
    """Returns a state with a known curve, without statistics.

    Args:
      knots: gamma at quantile levels 0, 0.01, ..., 1, [101] from cfg.low to cfg.high.
    """
    new = fresh_state(cfg)
    return new._replace(knots=jnp.asarray(knots, new.knots.dtype), ready=jnp.ones(()))


def inherited(state: GammaState, cfg: GammaConfig) -> GammaState:
    """Returns the curve of a state without its statistics, as the start of another run."""
    return fresh_state(cfg)._replace(shape=state.shape, knots=state.knots, ready=state.ready)


def bin_centers(cfg: GammaConfig) -> Float[Array, "k"]:
    """Centres of the bins of gamma."""
    width = (cfg.high - cfg.low) / cfg.bins
    return cfg.low + width * (jnp.arange(cfg.bins) + 0.5)
