"""The linear path y_t = t E[x] + (1-t) xi (arXiv 2602.16813v3; one-hot with covariance E^T E)."""

import dataclasses

import jax
import jax.numpy as jnp

from flm_jax.core.types import Times
from flm_jax.flows.interpolants.base import Coefficients, Straight


@dataclasses.dataclass(frozen=True)
class Linear(Straight):
    """Path with a = t, c = kappa = 1/beta = 1-t; the odds are t/(1-t)."""

    def coefficients(self, t: Times) -> Coefficients:
        return t, jnp.zeros_like(t), 1.0 - t

    def time_at(self, gamma: Times) -> Times:
        return jax.nn.sigmoid(-0.5 * gamma)
