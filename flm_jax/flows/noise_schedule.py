"""The learnt noise schedule: refits the distribution of gamma in training, and draws times.

The distribution is learnt from the mean cross entropy over gamma (`gamma_statistics`): its
distribution function is that curve scaled to [0, 1] (`gamma_fit`), mixed with a uniform and a
normal distribution (`gamma_law`).
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flm_jax.core.types import Key, Times
from flm_jax.flows.flow import GammaTold, TimeLaw
from flm_jax.flows.gamma_fit import empirical_knots, gumbel_fit, logistic_fit, logistic_knots
from flm_jax.flows.gamma_law import (
    draw_gamma,
    learnt_quantile,
    learnt_share,
    mixture_cdf,
    mixture_quantile,
    sampling_grid,
)
from flm_jax.flows.gamma_state import GammaConfig, GammaState, bin_centers, fresh_state
from flm_jax.flows.gamma_statistics import curve, gathered, observe
from flm_jax.flows.time_sampling import Rows

_LEAST_BINS = 8
_TINY = 1e-6


def update_state(
    state: GammaState, observed: Float[Array, "r k 3"], step: jax.Array, cfg: GammaConfig
) -> GammaState:
    """Adds one batch; refits if `step` (of this batch, from 0) completes refit_every."""
    due = (step + 1) % cfg.refit_every == 0
    state = gathered(state, observed, due, cfg)
    return jax.lax.cond(due, lambda s: refitted(s, cfg), lambda s: s, state)


def refitted(state: GammaState, cfg: GammaConfig) -> GammaState:
    """Refits to the current statistics, if these suffice and the fit is good."""
    number, values = curve(state, cfg)
    enough = (jnp.sum(number > 0.0) >= _LEAST_BINS) & (jnp.sum(number) >= cfg.least_examples)
    gamma, shape, r2, knots = bin_centers(cfg), state.shape, state.r2, state.knots
    if cfg.learnt == "empirical":
        knots, good = empirical_knots(gamma, values, number, cfg)
    else:
        if cfg.learnt == "gumbel":
            shape, r2, good = gumbel_fit(gamma, values, (number > 0.0).astype(gamma.dtype), cfg)
        else:
            shape, r2, good = logistic_fit(gamma, values, number, cfg.least_scale)
            knots = logistic_knots(shape, cfg)
        good = good & (r2 >= cfg.least_r2)
    good = good & enough
    rate = jnp.where(state.ready > 0.0, cfg.knot_rate, 1.0)
    return state._replace(
        shape=jnp.where(good, shape, state.shape),
        knots=jnp.where(good, (1.0 - rate) * state.knots + rate * knots, state.knots),
        r2=r2,
        ready=jnp.where(good, 1.0, state.ready),
    )


@dataclasses.dataclass(frozen=True)
class LearntTimes(TimeLaw):
    """Times from the learnt distribution of gamma; training draws from the mixture.

    Flows and flow maps space sampling by the learnt component (`quantile`), masked flows and their
    maps by the mixture (`sampling_gammas`, and `quantile` if `mixed`).

    Attributes:
      cfg: settings of the mixture.
      told: time variable of the network.
      state: learnt state; None before any batch.
      mixed: whether quantiles are taken of the mixture, not of its learnt component.
    """

    cfg: GammaConfig
    told: GammaTold
    state: GammaState | None = None
    mixed: bool = False

    def settled(self, state: GammaState | None) -> "LearntTimes":
        if state is None:
            return self
        return dataclasses.replace(self, state=jax.tree.map(jnp.asarray, state))

    @property
    def _now(self) -> GammaState:
        return fresh_state(self.cfg) if self.state is None else self.state

    def draw(self, key: Key, num: int, rows: Rows) -> Times:
        return self.told.progress(draw_gamma(key, num, rows, self.cfg, self._now))

    def quantile(self, share: Times) -> Times:
        # The network is told the progress, which falls with gamma.
        within = jnp.clip(1.0 - share, _TINY, 1.0 - _TINY)
        if self.mixed:
            gamma = mixture_quantile(within, self.cfg, self._now)
        else:
            gamma = learnt_quantile(self._now, within, self.cfg)
        tau = self.told.progress(gamma)
        return jnp.where(share <= 0.0, 0.0, jnp.where(share >= 1.0, 1.0, tau))

    def share(self, tau: Times) -> Times:
        gamma = self.told.gamma(tau)
        if self.mixed:
            return 1.0 - mixture_cdf(gamma, self.cfg, self._now)
        return 1.0 - learnt_share(self._now, gamma, self.cfg)

    def sampling_gammas(self, steps: int, lowest: float, first_quantile: float) -> Times:
        """Values of gamma for sampling, [steps + 1], noise to text; see `gamma_law.sampling_grid`.

        Args:
          steps: number of steps, static.
          lowest: gamma at the end.
          first_quantile: quantile level of the first value.
        """
        ends = {"low": lowest, "high": self.cfg.high}
        return sampling_grid(steps, self.cfg, self._now, first_quantile=first_quantile, **ends)

    def observe(
        self,
        tau: Times,
        values: Float[Array, "b"],
        weights: Float[Array, "b"],
        share: Float[Array, "b"] | None = None,
    ) -> Float[Array, "r k 3"]:
        return observe(self.told.gamma(tau), values, weights, share, self.cfg)
