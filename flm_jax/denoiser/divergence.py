"""Divergences between the outputs of two networks, tile by tile, like `head.cross_entropy`."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flm_jax.core.network import Network
from flm_jax.denoiser import tiled
from flm_jax.denoiser.head import Readout
from flm_jax.denoiser.tile_plan import plan_of

DIRECTIONS = ("forward", "reverse")


def _divergence(logits, log_z, target: tiled.Target, plan: tiled.Plan, *, direction: str):
    """A target of `tiled.weighted_cross_entropy`, whose gradient in the logits is softmax - q.

    For the forward divergence q is the other's distribution. For the reverse one, sum p log(p / q),
    the gradient is p (log p/q - its mean), from which q is computed here.
    """
    (head,), (_, features) = target
    other = tiled.planned_logits(features, head, plan)
    log_q = other - tiled.log_partition(other, plan.vocab_axes, plan.softcap)
    log_p = logits - log_z
    if direction == "forward":
        q = jnp.exp(log_q)
        return q, jnp.sum(q * (log_q - log_p), axis=-1)
    p = jnp.exp(log_p)
    parts = p * (log_p - log_q)
    return p - parts + p * tiled.total(parts, plan.vocab_axes), jnp.sum(parts, axis=-1)


_TARGETS = {name: functools.partial(_divergence, direction=name) for name in DIRECTIONS}


def divergence(
    out: Readout, other: Readout, weights: Float[Array, "b l"], net: Network, direction: str
) -> tuple[jax.Array, Float[Array, "b l"]]:
    """Weighted divergence of softmax(out) and a fixed softmax(other).

    Args:
      out: features [B, L, D] and head of the student.
      other: features and head of the teacher; no gradient flows into them.
      weights: weight of each position in the sum, float32; 0 switches a position off.
      net: network, for its tiles and for its soft cap, which both share.
      direction: "forward" for KL(other || out), "reverse" for KL(out || other).

    Returns:
      The sum, differentiable in `out` and `weights`, and KL [B, L] in nats, without gradient. Only
      reverse mode is supported: `jax.jvp` raises.
    """
    kernel, bias, features = jax.lax.stop_gradient((other.kernel, other.bias, other.features))
    target = (((kernel, bias),), (jnp.ones(weights.shape), features))
    return tiled.weighted_cross_entropy(
        plan_of(net), _TARGETS[direction], out.features, (out.kernel, out.bias), weights, target
    )
