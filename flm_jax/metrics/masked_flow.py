"""Cross entropy of masked language flows over the progress of the bridge, on held-out data."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from flm_jax.core.network import Network
from flm_jax.core.types import Key, Params
from flm_jax.denoiser.forward import forward
from flm_jax.denoiser.head import cross_entropy
from flm_jax.flows.flow import Flow
from flm_jax.flows.noising import hidden_states
from flm_jax.losses.base import row_means
from flm_jax.losses.masked_flow import HidingConfig, may_be_hidden


def make_bridge_nll(
    net: Network, flow: Flow, cfg: HidingConfig
) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """Returns row_nll(params, batch, tau [B], key) -> (nll [B], scored [B]), all tokens hidden.

    All tokens that may be hidden are hidden. tau is the network's time input, the progress in [0,
    1]; nll is the mean over a row, nats/token. It is no likelihood.
    """

    def row_nll(params: Params, batch: dict[str, jax.Array], tau: jax.Array, key: Key):
        hidden = may_be_hidden(batch, cfg)
        tokens = batch["tokens"]
        table, anchor = net.table(params), net.anchor(params)
        z_t = hidden_states(key, flow, flow.t(tau), tokens, hidden, table, anchor)
        weights = hidden.astype(jnp.float32)
        out = forward(net, params, z_t, tau, tau)
        _, nll = cross_entropy(out, tokens, weights, net)
        return row_means(nll, weights)

    return row_nll
