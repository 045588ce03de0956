"""The Brownian bridge from the mask embedding, N((1-t) m + t E[x], s^2 t (1-t) I).

Source: arXiv 2606.27617, with s = 0.2. At t = 0 its problem is that of masked diffusion.
"""

import dataclasses

import jax
import jax.numpy as jnp

from flm_jax.core.types import Times
from flm_jax.flows.interpolants.base import Coefficients, Interpolant, Straight

SIGMA = 0.2


@dataclasses.dataclass(frozen=True)
class MaskedBridge(Straight):
    """Bridge whose steps are its posterior given its end: kappa = 1-t, noise redrawn.

    Attributes:
      sigma: scale s of the noise, > 0.
    """

    sigma: float
    anchored, redraws = True, True

    def coefficients(self, t: Times) -> Coefficients:
        return t, 1.0 - t, self.sigma * jnp.sqrt(t * (1.0 - t))

    def time_at(self, gamma: Times) -> Times:
        """Time t = s^2 / (e^gamma + s^2), since gamma = log(s^2 (1-t)/t)."""
        return jax.nn.sigmoid(jnp.log(self.sigma**2) - gamma)

    def gamma(self, t: Times) -> Times:
        return jnp.log(self.sigma**2) + jnp.log1p(-t) - jnp.log(t)


@dataclasses.dataclass(frozen=True)
class MaskedBridgeOde(Interpolant):
    """Probability-flow ODE of the same bridge: kappa = c, 1/beta = 2 (1-t).

    Its velocity is singular at t = 0, and started at m it would give one answer for each prompt: it
    starts later, with noise drawn there.
    """

    sigma: float
    anchored = True

    coefficients = MaskedBridge.coefficients
    time_at = MaskedBridge.time_at
    gamma = MaskedBridge.gamma

    def retained(self, t: Times) -> Times:
        return self.coefficients(t)[2]

    def slowness(self, t: Times) -> Times:
        # c'/c = (1/t - 1/(1-t)) / 2, so that beta = 1 - t c'/c = 1 / (2 (1-t)).
        return 2.0 * (1.0 - t)

    def odds(self, t: Times) -> Times:
        return jnp.sqrt(t / (1.0 - t)) / self.sigma

    def time_of(self, odds: Times) -> Times:
        square = (self.sigma * odds) ** 2
        return square / (1.0 + square)

    def overshoot(self, t: Times, stochasticity: float) -> Times:
        """Time at which a/c is that of t over sqrt(1 - g^2).

        Noise added there until a/c is that of t again, with a scaled back, leaves sqrt(1 - g^2) of
        the noise that a jump to t would have: the weights of `Interpolant.weights`.
        """
        kept = (1.0 - stochasticity**2) * (1.0 - t)
        return t / (t + kept)
