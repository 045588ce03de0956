"""Runs a network up to its vocabulary head; losses and samplers call networks only through this."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from flm_jax.core.network import Network
from flm_jax.core.types import Params, States, Times
from flm_jax.denoiser.head import Readout, logits
from flm_jax.denoiser.posterior_input import posterior_embedding


def vocabulary_head(net: Network, params: Params) -> tuple[jax.Array, jax.Array]:
    """Returns (kernel [k, V], bias [V]) of the head for the features of `forward`."""
    kernel, bias = net.readout(params)
    if net.posterior_skip:
        evidence = net.evidence.kernel(net.table(params))
        kernel = jnp.concatenate([kernel, evidence.astype(kernel.dtype)])
    return kernel, bias


def embedded(net: Network, params: Params, tokens: Int[Array, "*b l"]) -> Float[Array, "*b l d"]:
    """Returns E[tokens], float32, without a float32 copy of E; for loops over network calls."""
    if net.lookup is None:
        return net.table(params)[tokens]
    return net.lookup(params, tokens)


def forward(
    net: Network,
    params: Params,
    x_s: States,
    s: Times,
    t: Times,
    *,
    key=None,
    estimate=None,
    visible: Bool[Array, "b l"] | None = None,
) -> Readout:
    """Runs the network up to its head, without the head.

    Args:
      net: network; if it reads posteriors, they are computed from x_s here.
      params: parameters of the network.
      x_s: states [B, L, D].
      s, t: network times, [B] or [B, L].
      key: key that switches dropout on.
      estimate: delta @ E [B, L, D] of an earlier call, for self-conditioned networks.
      visible: mask of positions that may be attended to; None for all.

    Returns:
      The last hidden states [B, L, k] with the head.
    """
    more = {} if estimate is None else {"estimate": estimate}
    more |= {} if visible is None else {"visible": visible}
    # A flow map reads a state as one of the middle of its jump: on the diagonal as its teacher
    # does, and from the start, where the posterior would be the same of all noise, as evidence.
    middle = 0.5 * (s + t) if net.two_time else s
    read = posterior_embedding(net, params, x_s, middle) if net.posterior_input else x_s
    features = net.features(params, read, s, t, key=key, **more)
    if net.posterior_skip:
        own = net.evidence.features(net.table(params), x_s, middle)
        features = jnp.concatenate([features, own.astype(features.dtype)], axis=-1)
    return Readout(features, *vocabulary_head(net, params))


def forward_window(
    net: Network,
    params: Params,
    cache: Params,
    x_s: jax.Array,
    s: Times,
    *,
    places=None,
    visible=None,
) -> tuple[Readout, Params]:
    """Runs `forward` at some positions of each row with a cached rest; see `Network.window`."""
    out, cache = net.window(params, cache, x_s, s, places=places, visible=visible)
    return Readout(out, *vocabulary_head(net, params)), cache


def denoise(
    net: Network, params: Params, x_s: States, s: Times, t: Times, *, key=None, visible=None
) -> Float[Array, "b l v"]:
    """Float32 logits of the (two-time) denoiser at states x_s and network times (s, t)."""
    return logits(forward(net, params, x_s, s, t, key=key, visible=visible), net)
