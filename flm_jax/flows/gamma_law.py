"""The distribution of gamma = log noise over signal: a uniform, normal and learnt mixture.

    F(g) = w_0 (g - low) / (high - low) + w_1 Phi((g - center) / spread) + w_2 F_2(g)

F_2 is the learnt component, which is concentrated where the cross entropy changes: piecewise linear
through the knots of the state, or a Gumbel distribution. Before the first fit, another component
has its weight w_2. Values beyond [low, high] are clipped to the ends.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flm_jax.core.types import Key, Times
from flm_jax.flows.gamma_fit import gumbel_cdf, gumbel_quantile
from flm_jax.flows.gamma_state import KNOTS, GammaConfig, GammaState
from flm_jax.flows.time_sampling import Rows, stratified_uniform

_BISECTIONS = 64
_LAST_QUANTILE = 1e-6  # of sampling, whose last gamma is the lowest


def learnt_quantile(state: GammaState, u: Times, cfg: GammaConfig) -> Times:
    """Quantile of the learnt component at level u in (0, 1); uniform before the first fit."""
    flat = cfg.low + (cfg.high - cfg.low) * u
    if cfg.learnt == "gumbel":
        learnt = gumbel_quantile(state.shape, u)
    else:
        learnt = jnp.interp(u, jnp.linspace(0.0, 1.0, KNOTS), state.knots)
    return jnp.clip(jnp.where(state.ready > 0, learnt, flat), cfg.low, cfg.high)


def learnt_share(state: GammaState, gamma: Times, cfg: GammaConfig) -> Times:
    """Inverse of `learnt_quantile` where it is not clipped."""
    flat = (gamma - cfg.low) / (cfg.high - cfg.low)
    if cfg.learnt == "gumbel":
        learnt = gumbel_cdf(state.shape, gamma)
    else:
        learnt = jnp.interp(gamma, state.knots, jnp.linspace(0.0, 1.0, KNOTS))
    return jnp.where(state.ready > 0, learnt, flat)


def mixture_weights(cfg: GammaConfig, state: GammaState) -> Float[Array, "3"]:
    """Weights of the uniform, the normal and the learnt component."""
    learnt = 1.0 - cfg.uniform - cfg.normal
    before = {"normal": (0.0, learnt, 0.0), "uniform": (learnt, 0.0, 0.0)}[cfg.before]
    moved = jnp.where(state.ready > 0, jnp.array([0.0, 0.0, learnt]), jnp.array(before))
    return jnp.array([cfg.uniform, cfg.normal, 0.0]) + moved


def mixture_cdf(
    gamma: Times,
    cfg: GammaConfig,
    state: GammaState,
    *,
    low: float | None = None,
    high: float | None = None,
) -> Times:
    """Distribution function F(gamma) of the mixture.

    Args:
      low, high: range of the uniform component; the range of cfg by default.
    """
    low, high = cfg.low if low is None else low, cfg.high if high is None else high
    weights = mixture_weights(cfg, state)
    flat = jnp.clip((gamma - low) / (high - low), 0.0, 1.0)
    normal = jax.scipy.special.ndtr((gamma - cfg.center) / cfg.spread)
    return weights[0] * flat + weights[1] * normal + weights[2] * learnt_share(state, gamma, cfg)


def mixture_quantile(
    u: Times,
    cfg: GammaConfig,
    state: GammaState,
    *,
    low: float | None = None,
    high: float | None = None,
) -> Times:
    """Solves F(gamma) = u by bisection of [low, high]; beyond it, the nearer end.

    Args:
      u: quantile levels in [0, 1], any shape.
      low, high: range of the uniform component and of the result; the range of cfg by default. The
        learnt component keeps its own range.
    """
    low, high = cfg.low if low is None else low, cfg.high if high is None else high

    def halve(_, ends):
        below, above = ends
        middle = 0.5 * (below + above)
        less = mixture_cdf(middle, cfg, state, low=low, high=high) < u
        return jnp.where(less, middle, below), jnp.where(less, above, middle)

    first = (jnp.full_like(u, low), jnp.full_like(u, high))
    below, above = jax.lax.fori_loop(0, _BISECTIONS, halve, first)
    return 0.5 * (below + above)


def draw_gamma(
    key: Key, num: int, rows: Rows, cfg: GammaConfig, state: GammaState
) -> Float[Array, "b"]:
    """Draws one gamma for each row, low-discrepancy over the global batch.

    Args:
      key: key, the same for every (micro)batch of a global batch.
      num: number of rows.
      rows: indices of these rows in the global batch.
      cfg: settings of the mixture.
      state: state of the learnt component.
    """
    return mixture_quantile(stratified_uniform(key, num, rows), cfg, state)


def sampling_grid(
    steps: int,
    cfg: GammaConfig,
    state: GammaState,
    *,
    low: float,
    high: float,
    first_quantile: float,
) -> Float[Array, "k"]:
    """Values of gamma for sampling, from noise to text: quantiles of the mixture on [low, high].

    Args:
      steps: number of steps K, static.
      low, high: range of gamma; the last value is `low`.
      first_quantile: quantile level of the first value.

    Returns:
      float32 [K + 1], not increasing; several of the last values may equal `low`.
    """
    u = jnp.linspace(first_quantile, _LAST_QUANTILE, steps + 1)
    return mixture_quantile(u, cfg, state, low=low, high=high).at[-1].set(low)
