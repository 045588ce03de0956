"""The flow map of the masked bridge's ODE for positions of two tokens, 1 and -1, in closed form.

With z = (y - (1-t) m) / c and u = a/c the ODE is dz/du = tanh(u z + h), h half the log odds of the
two tokens. Its flow keeps quantiles: z_t is where the mixture p N(u_t, 1) + (1-p) N(-u_t, 1) has
the quantile that z_s has in that of u_s; and delta_st = (z_t - z_s) / (u_t - u_s).
"""

import jax
import jax.numpy as jnp

from flm_jax.core.network import Network
from flm_jax.flows.flow import Flow, GammaTold
from flm_jax.flows.gamma_state import GammaConfig
from flm_jax.flows.interpolants.masked_bridge import MaskedBridgeOde
from flm_jax.flows.noise import UnitNoise
from flm_jax.flows.noise_schedule import LearntTimes

PATH = MaskedBridgeOde(0.2)
LAW = GammaConfig(low=-2.0, uniform=1.0, normal=0.0)
LENGTH, FIRST, ANCHOR = 3, 0.7, 0.4  # positions, law of token 0, embedding of the mask
TABLE = jnp.asarray([[1.0], [-1.0]])


def bridge_flow():
    told = GammaTold(PATH, LAW.low, LAW.high)
    return Flow(PATH, UnitNoise(), LearntTimes(LAW, told, mixed=True), told)


def quantile(z, u, first):
    both = jax.scipy.special.ndtr(jnp.stack([z - u, z + u]))
    return first * both[0] + (1.0 - first) * both[1]


def transported(z, u_s, u_t, first):
    """z_t by 60 bisections."""
    level = quantile(z, u_s, first)

    def halve(_, ends):
        middle = 0.5 * (ends[0] + ends[1])
        less = quantile(middle, u_t, first) < level
        return jnp.where(less, middle, ends[0]), jnp.where(less, ends[1], middle)

    ends = (jnp.full_like(z, -300.0), jnp.full_like(z, 300.0))
    return sum(jax.lax.fori_loop(0, 60, halve, ends)) / 2


def denoised(z, u, first):
    """D_t = P(token 0) - P(token 1)."""
    return jnp.tanh(u * z + 0.5 * jnp.log(first / (1.0 - first)))


def exact_map(first=FIRST, two_time=True):
    """delta_st, or D_t, plus params["wrong"] in its logits, which 0 leaves as they are.

    `first` is the law of token 0; None for a flow whose end is always 0.4, as delta_st then is.
    """

    def features(p, y, tau_s, tau_t, *, key=None):
        s, t = (bridge_flow().t(tau)[:, None] for tau in (tau_s, tau_t))
        _, b, c = PATH.coefficients(s)
        z, u_s, u_t = (y[..., 0] - b * ANCHOR) / c, PATH.odds(s), PATH.odds(t)
        now = jnp.full_like(z, 0.4) if first is None else denoised(z, u_s, first)
        if two_time and first is not None:
            moved = transported(z, u_s, u_t, first) - z
            apart = u_t > u_s * 1.0001
            now = jnp.where(apart, moved / jnp.where(apart, u_t - u_s, 1.0), now)
        off, in_t, in_z = (p["wrong"][i] for i in range(3))
        logit = jnp.arctanh(jnp.clip(now, -0.999999, 0.999999))
        logit = logit + off + in_t * (tau_t - 0.5 * tau_s)[:, None] + in_z * jnp.tanh(z)
        return jnp.stack([logit, -logit], axis=-1)

    return Network(
        lambda key: RIGHT,
        features,
        lambda p: (jnp.eye(2), p["bias"]),
        lambda p: TABLE,
        2,
        1,
        LENGTH,
        two_time=two_time,
        anchor=lambda p: jnp.full((LENGTH, 1), ANCHOR),
    )


RIGHT = {"wrong": jnp.zeros(3), "bias": jnp.zeros(2)}
WRONG = {"wrong": jnp.asarray([0.2, -0.3, 0.1]), "bias": jnp.asarray([0.1, -0.1])}
