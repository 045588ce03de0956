"""Cross entropy of masked language flows over the progress of the bridge, on held-out data."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from flm_jax.core.network import Network
from flm_jax.core.types import Key, Params
from flm_jax.flows.masked_bridge import bridge_states, gamma_at, t_from_gamma
from flm_jax.flows.masking import free_positions
from flm_jax.losses.masked_flow import BridgeConfig, bridge_loss_at


def make_bridge_nll(net: Network, cfg: BridgeConfig) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """row_nll(params, batch, tau [B], key) -> (nll [B], valid [B]), with all but prompts hidden.

    tau is the progress that the network is told, in [0, 1]; nll is the mean of a row, nats/token.
    No likelihood.
    """

    def row_nll(params: Params, batch: dict[str, jax.Array], tau: jax.Array, key: Key):
        hidden = free_positions(batch, cfg.prompt)
        tokens, gamma = batch["tokens"], gamma_at(tau)
        t = t_from_gamma(gamma, cfg.sigma)
        table, anchor = net.table(params), net.anchor(params)
        z_t = bridge_states(key, t, tokens, hidden, table, anchor, cfg.sigma)
        weights = hidden.astype(jnp.float32)
        _, nll, _ = bridge_loss_at(params, z_t, gamma, tokens, weights, net=net, cfg=cfg)
        count = jnp.sum(weights, axis=1)
        return jnp.sum(nll * weights, axis=1) / jnp.maximum(count, 1.0), count > 0

    return row_nll
