"""Texts drawn from a network's output, and sums of their log likelihoods, tile by tile."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from flm_jax.core.network import Network
from flm_jax.core.types import Key
from flm_jax.denoiser import tile_targets, tiled
from flm_jax.denoiser.head import Readout, read
from flm_jax.denoiser.tile_plan import plan_of
from flm_jax.flows.shapes import over_positions, positions_of


def drawn(key: Key, out: Readout, net: Network, number: int) -> Int[Array, "k b l"]:
    """Draws `number` texts, each token from softmax(logits) of its position.

    The noise of one text exists at a time; each tile has its own key.
    """

    def pick(logits: Float[Array, "b t v"], places: Int[Array, "b t"]):
        own = jax.random.fold_in(key, places[0, 0])
        one = lambda k: jax.random.categorical(k, logits, mode="high").astype(jnp.int32)
        return jnp.moveaxis(jax.lax.map(one, jax.random.split(own, number)), 0, -1)

    return jnp.moveaxis(read(out, net, pick, positions_of(out.features)), -1, 0)


def weighted_log_likelihood(
    out: Readout,
    texts: Int[Array, "k b l"],
    gains: Float[Array, "k b"],
    weights: Float[Array, "b l"],
    net: Network,
) -> jax.Array:
    """Computes sum_kbl gains_kb weights_bl log P_bl(texts_kbl), P = softmax(logits).

    Its gradient is the score-function estimate for gains that are functions of the texts. The
    logits of a tile are computed once for all K texts.

    Args:
      out: features [B, L, D] and head, in which the sum is differentiable.
      texts: K texts for each row.
      gains: factor of each text, without gradient.
      weights: weight of each position in the sum; 0 switches a position off.
      net: network, for its soft cap and tiles. Only reverse mode is supported: `jax.jvp` raises.
    """
    factors = [over_positions(gain, weights.shape) for gain in jax.lax.stop_gradient(gains)]
    rows = (jnp.moveaxis(texts, 0, -1), jnp.stack(factors, axis=-1))
    head = (out.kernel, out.bias)
    plan, target = plan_of(net), ((), rows)
    return -tiled.weighted_cross_entropy(plan, _texts_target, out.features, head, weights, target)[
        0
    ]


def _texts_target(logits, log_z, target: tiled.Target, plan: tiled.Plan):
    """A target of `tiled.weighted_cross_entropy`, whose gradient in the logits is softmax - q.

    That of sum_k g_k (log_z - logit_k) is sum_k g_k (softmax - onehot_k), from which q is computed.
    """
    texts, gains = target[1]
    value, hits, total = 0.0, 0.0, 0.0
    for k in range(texts.shape[-1]):
        hit, nll = tile_targets.token_target(logits, log_z, ((), (texts[..., k],)), plan)
        gain = gains[..., k]
        value, total = value + gain * nll, total + gain
        hits = hits + gain[..., None] * hit
    return (1.0 - total)[..., None] * jnp.exp(logits - log_z) + hits, value
