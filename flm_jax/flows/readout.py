"""From hidden features to logits, probabilities, expected embeddings and cross entropies.

The readout is (kernel [D, V], bias [V]) with an optional soft cap on the logits.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from flm_jax.types import Network, Params, States, Times


class Readout(NamedTuple):
    """Features [B, L, D] with the head that reads them: kernel [D, V], bias [V]."""

    features: jax.Array
    kernel: jax.Array
    bias: jax.Array


def read(net: Network, params: Params, x_s: States, s: Times, t: Times, *, key=None) -> Readout:
    """Runs the network on states x_s at network times (s, t) up to, not through, its head."""
    return Readout(net.features(params, x_s, s, t, key=key), *net.readout(params))


def logits(out: Readout, net: Network) -> Float[Array, "b l v"]:
    """Float32 logits [B, L, V], soft-capped as `net` says: c * tanh(l / c)."""
    kernel = out.kernel.astype(out.features.dtype)
    raw = jnp.matmul(out.features, kernel, preferred_element_type=jnp.float32)
    raw = raw + out.bias[None, None]
    cap = net.logit_softcap
    return cap * jnp.tanh(raw / cap) if cap else raw


def denoise(
    net: Network, params: Params, x_s: States, s: Times, t: Times, *, key=None
) -> Float[Array, "b l v"]:
    """Float32 logits of the (two-time) denoiser at states x_s and network times (s, t)."""
    return logits(read(net, params, x_s, s, t, key=key), net)


def embed_probs(probs: Float[Array, "b l v"], table: Float[Array, "v d"]) -> States:
    """probs @ E: a distribution over tokens as a state, float32."""
    return jnp.matmul(probs, table.astype(jnp.float32), precision=jax.lax.Precision.HIGH)


def token_nll(logits_BLV: jax.Array, tokens: Int[Array, "b l"]) -> Float[Array, "b l"]:
    """-log softmax(logits)[token] in nats."""
    picked = jnp.take_along_axis(logits_BLV, tokens[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits_BLV, axis=-1) - picked


def cross_entropy(
    out: Readout, tokens: Int[Array, "b l"], weights: Float[Array, "b l"], net: Network
) -> tuple[jax.Array, Float[Array, "b l"]]:
    """Weighted cross entropy to tokens.

    Args:
      out: features [B, L, D] and head.
      tokens: targets.
      weights: weight of each position in the sum, float32; 0 switches a position off.
      net: for its soft cap.

    Returns:
      sum(weights * nll), differentiable in `out`; nll [B, L] in nats, without gradient.
    """
    nll = token_nll(logits(out, net), tokens)
    return jnp.sum(weights * nll), jax.lax.stop_gradient(nll)


def mixture_cross_entropy(
    out: Readout,
    targets: Sequence[tuple[Float[Array, "b"], Readout]],
    weights: Float[Array, "b l"],
    net: Network,
) -> tuple[jax.Array, Float[Array, "b l"]]:
    """Weighted cross entropy to a mixture sum_k w_k softmax(logits(out_k)) of other readouts.

    Args:
      out: features [B, L, D] and head of the student.
      targets: pairs (w_k [B], out_k); w_k sum to 1 in each row. No gradient flows into them.
      weights, net: as in `cross_entropy`; the soft cap is shared by all readouts.

    Returns:
      sum(weights * ce), differentiable in `out`; ce [B, L] in nats, without gradient.
    """
    log_probs = jax.nn.log_softmax(logits(out, net), axis=-1)
    target = sum(w[:, None, None] * probabilities(q, net) for w, q in targets)
    ce = -jnp.sum(jax.lax.stop_gradient(target) * log_probs, axis=-1)
    return jnp.sum(weights * ce), jax.lax.stop_gradient(ce)


def probabilities(out: Readout, net: Network) -> Float[Array, "b l v"]:
    """softmax(logits), float32."""
    return jax.nn.softmax(logits(out, net), axis=-1)


def expected_embedding(out: Readout, table: Float[Array, "v d"], net: Network) -> States:
    """E[x] under softmax(logits): probs @ E, float32 [B, L, D]."""
    return embed_probs(probabilities(out, net), table)
