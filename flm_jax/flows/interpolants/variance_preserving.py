"""The variance-preserving path y_t = sin(pi t/2) E[x] + cos(pi t/2) xi (as in arXiv 2604.11748)."""

import dataclasses

import jax.numpy as jnp

from flm_jax.core.types import Times
from flm_jax.flows.interpolants.base import Coefficients, Interpolant, Weights, divided

_QUARTER = 0.5 * jnp.pi
_TINY = 1e-12


@dataclasses.dataclass(frozen=True)
class VariancePreserving(Interpolant):
    """Path with a = sin(pi t/2), c = kappa = cos(pi t/2), 1/beta = (2/pi) c; odds tan(pi t/2)."""

    def coefficients(self, t: Times) -> Coefficients:
        return jnp.sin(_QUARTER * t), jnp.zeros_like(t), self.retained(t)

    def retained(self, t: Times) -> Times:
        return jnp.maximum(jnp.cos(_QUARTER * t), 0.0)  # float32 has cos(pi/2) = -4e-8

    def slowness(self, t: Times) -> Times:
        # beta = (pi/2) (cos + sin^2/cos) = (pi/2) / cos.
        return self.retained(t) / _QUARTER

    def odds(self, t: Times) -> Times:
        return jnp.sin(_QUARTER * t) / jnp.maximum(self.retained(t), _TINY)

    def time_of(self, odds: Times) -> Times:
        return jnp.arctan(odds) / _QUARTER

    def time_at(self, gamma: Times) -> Times:
        return self.time_of(jnp.exp(-0.5 * gamma))

    def weights(self, s: Times, t: Times, stochasticity: float = 0.0) -> Weights:
        found = super().weights(s, t, stochasticity)
        if stochasticity:
            return found
        # Without the cancellation of a_t - a_s w_y.
        # sin B - sin A cos B / cos A = sin(B - A) / cos A.
        return found._replace(clean=divided(jnp.sin(_QUARTER * (t - s)), self.retained(s)))

    def overshoot(self, t: Times, stochasticity: float) -> Times:
        return jnp.arccos(self.retained(t) * (1.0 - stochasticity**2) ** 0.5) / _QUARTER
