"""Reward guidance: adds the gradient of a reward of the predicted text to a sampler's steps."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flm_jax.core.network import Network
from flm_jax.core.types import Params
from flm_jax.denoiser.forward import forward
from flm_jax.denoiser.head import expected_embedding
from flm_jax.flows.flow import Flow
from flm_jax.samplers import euler
from flm_jax.samplers.base import Given, held_times


class Reward(NamedTuple):
    """A differentiable function of texts given as distributions over tokens.

    Attributes:
      table: function from parameters to [V, d]; a text enters as probs @ table, [B, L, d] (with the
        identity, as the probabilities themselves).
      score: function from (parameters, [B, L, d]) to [B], larger is better; with log p(wish |
        text), reward_scale = 1 gives the conditional distribution.
    """

    table: Callable[[Params], Float[Array, "v d"]]
    score: Callable[[Params, Float[Array, "b l d"]], Float[Array, "b"]]


def make_nudge(
    net: Network,
    params: Params,
    flow: Flow,
    reward: Reward,
    reward_params: Params,
    scale: float,
    joint: Float[Array, "v w"],
    given: Given,
) -> euler.Nudge:
    """Returns a function that moves states along the reward's gradient at their predicted text.

    y <- y + q Sigma grad_y r(X_{s,1}(y)), where X_{s,1} is one call of a flow map, D_s(y) of a
    plain flow, and Sigma the covariance of the noise. The distribution tilted by exp(scale r) has,
    to first order in its denoised state, the denoiser D + scale c_s^2/a_s Sigma grad_y r; over a
    step from s to t that is q = scale w_x(s, t) c_s^2/a_s, which for the linear path is scale
    (t-s)(1-s)/s. Near noise, where this diverges and the gradient of a plain flow vanishes, a_s is
    bounded below by a_t - a_s.

    Args:
      joint: table in which states are expressed, with E in its first D columns.
    """
    table, wishes = net.table(params), reward.table(reward_params)
    width = table.shape[1]

    def nudge(y_s, xi, tau_s, s, t):
        t_held, *taus = (
            held_times(net, given, x)
            for x in (s, tau_s, jnp.ones_like(tau_s) if net.two_time else tau_s)
        )

        def value(y):
            held = flow.held(y, t_held, given.tokens, given.mask, xi[..., :width], table)
            out = forward(net, params, held, *taus)
            ahead = expected_embedding(out, wishes, net)
            ahead = jnp.where(given.mask[..., None], wishes[given.tokens], ahead)
            # Rows are independent: the gradient of their sum is that of each row's own reward.
            return jnp.sum(reward.score(reward_params, ahead))

        gradient = jax.grad(value)(y_s[..., :width])
        (a_s, _, c_s), (a_t, _, _) = flow.path.coefficients(s), flow.path.coefficients(t)
        early = jnp.maximum(a_s, a_t - a_s)
        q = scale * flow.path.weights(s, t).clean * jnp.square(c_s) / early
        return y_s + q * flow.noise.spread(gradient, table, joint)

    return nudge
