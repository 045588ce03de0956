"""From hidden features to logits, probabilities, expected embeddings and cross entropies.

The readout is (kernel [D, V], bias [V]) with an optional soft cap on the logits. `tile` > 0
computes over that many positions at a time and never holds more than [B, tile, V] in float32;
the gradient is then accumulated in the forward pass, at no extra matrix product.
"""

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


def logits(out: Readout, softcap: float) -> Float[Array, "b l v"]:
    """Float32 logits [B, L, V]; softcap c > 0 gives c * tanh(l / c)."""
    kernel = out.kernel.astype(out.features.dtype)
    raw = jnp.matmul(out.features, kernel, preferred_element_type=jnp.float32) + out.bias
    return softcap * jnp.tanh(raw / softcap) if softcap else raw


def denoise(
    net: Network, params: Params, x_s: States, s: Times, t: Times, *, key=None
) -> Float[Array, "b l v"]:
    """Float32 logits of the (two-time) denoiser at states x_s and network times (s, t)."""
    return logits(read(net, params, x_s, s, t, key=key), net.logit_softcap)


def embed_probs(probs: Float[Array, "b l v"], table: Float[Array, "v d"]) -> States:
    """probs @ E: a distribution over tokens as a state, float32."""
    return jnp.matmul(probs, table.astype(jnp.float32), precision=jax.lax.Precision.HIGH)


def token_nll(logits_BLV: jax.Array, tokens: Int[Array, "b l"]) -> Float[Array, "b l"]:
    """-log softmax(logits)[token] in nats."""
    picked = jnp.take_along_axis(logits_BLV, tokens[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits_BLV, axis=-1) - picked
