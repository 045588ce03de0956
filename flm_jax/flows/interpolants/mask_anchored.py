"""The path y_t = t E[x] + (1-t) m from the mask embedding, without noise (arXiv 2606.29066)."""

import dataclasses

import jax.numpy as jnp

from flm_jax.core.types import Times
from flm_jax.flows.interpolants.base import Coefficients, Straight


@dataclasses.dataclass(frozen=True)
class MaskAnchored(Straight):
    """Path with a = t, b = kappa = 1/beta = 1-t, no noise; masked diffusion has t in {0, 1}."""

    anchored = True

    def coefficients(self, t: Times) -> Coefficients:
        return t, 1.0 - t, jnp.zeros_like(t)
