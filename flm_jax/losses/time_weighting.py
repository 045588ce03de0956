"""Learned weighting of a loss over its times (uncertainty weighting, as in arXiv 2312.02696).

A small function u(s, t) is trained with the model on exp(-u) loss + u. For fixed times its minimum
is u = log loss, so that each pair of times counts as if its mean loss were 1: times with a large
loss do not dominate the gradient.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flm_jax.core.network import Network
from flm_jax.core.types import Params, Times


def time_weights(
    net: Network, params: Params, weights: Float[Array, "b l"], tau_s: Times, tau_t: Times
) -> tuple[Float[Array, "b l"], jax.Array | float]:
    """Weights exp(-u) for a sum over positions, and the sum of u to add to it.

    Args:
      weights: weight of each position in the sum.
      tau_s, tau_t: network times [B] of the rows' noisy positions.

    Returns:
      Both; if `net` has no such function, the weights unchanged and 0.
    """
    if net.log_loss is None:
        return weights, 0.0
    # L e^-u + u is least at u = log L: each time is weighted by the inverse of its mean loss.
    u = net.log_loss(params, tau_s, tau_t)[:, None]
    return weights * jnp.exp(-u), jnp.sum(weights * u)
