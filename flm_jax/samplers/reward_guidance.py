"""The gradient of a reward of where a state leads, added to a sampler's steps."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flm_jax.core.network import Network
from flm_jax.core.types import Params
from flm_jax.denoiser.forward import forward
from flm_jax.denoiser.head import expected_embedding
from flm_jax.flows.noising import hold_given
from flm_jax.samplers import euler
from flm_jax.samplers.base import Given, held_times


class Reward(NamedTuple):
    """Any differentiable function of text as distributions over tokens.

    Attributes:
      table: parameters -> [V, d]: a text enters as probs @ table, [B, L, d] (with the identity, as
        the probabilities themselves).
      score: (parameters, [B, L, d]) -> [B], larger is better; log p(wish | text) makes
        reward_scale = 1 the conditional law.
    """

    table: Callable[[Params], Float[Array, "v d"]]
    score: Callable[[Params, Float[Array, "b l d"]], Float[Array, "b"]]


def make_nudge(
    net: Network,
    params: Params,
    reward: Reward,
    reward_params: Params,
    scale: float,
    joint: Float[Array, "v w"],
    given: Given,
) -> euler.Nudge:
    """Moves states up the gradient of the reward of where they lead.

    In the one-hot space, x <- x + c grad_x r(X_{s,1}(x)), where X_{s,1} is one call of a flow map,
    D_s(x) of a plain flow; embedded, y <- y + c E^T E grad_y r. The law tilted by exp(scale r) has,
    to first order in its denoised state, the denoiser D + scale (1-s)^2/s grad_x r; over a step
    from s to t that is c = scale (t-s)(1-s)/s. Near noise, where this explodes and the gradient of
    a plain flow vanishes, s in the denominator is kept at t-s at least.

    Args:
      joint: table that the states are seen through, E in its first D columns.
    """
    table, wishes = net.table(params), reward.table(reward_params)
    spread = jnp.matmul(table.T, joint, precision=jax.lax.Precision.HIGHEST)
    width = table.shape[1]

    def nudge(y_s, y_0, tau_s, s, t):
        t_held, *taus = (
            held_times(net, given, x)
            for x in (s, tau_s, jnp.ones_like(tau_s) if net.two_time else tau_s)
        )

        def value(y):
            held = hold_given(y, t_held, given.tokens, given.mask, y_0[..., :width], table)
            out = forward(net, params, held, *taus)
            ahead = expected_embedding(out, wishes, net)
            ahead = jnp.where(given.mask[..., None], wishes[given.tokens], ahead)
            return jnp.sum(reward.score(reward_params, ahead))

        gradient = jax.grad(value)(y_s[..., :width])
        c = scale * (t - s) * (1.0 - s) / jnp.maximum(s, t - s)
        return y_s + c * jnp.matmul(gradient, spread, precision=jax.lax.Precision.HIGH)

    return nudge
