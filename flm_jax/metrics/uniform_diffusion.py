"""Likelihood bound of uniform-state diffusion on held-out data."""

import jax
import jax.numpy as jnp

from flm_jax.core.network import Network
from flm_jax.core.types import Key, Params
from flm_jax.flows.masking import written_positions
from flm_jax.losses.base import row_means
from flm_jax.losses.uniform_diffusion import (
    UniformConfig,
    replaced_batch,
    uniform_loss_at,
)
from flm_jax.metrics.likelihood import RowNll

_LEAST = 1e-6  # least noise and least signal, where float32 still tells both


def make_uniform_nll(net: Network, cfg: UniformConfig) -> RowNll:
    """Returns row_nll(params, batch, tau, key), an unbiased estimate of the NELBO over tau.

    Here tau ~ U(0, 1). The noise is (1 - tau)^2, so that tau = 0 is pure noise, as in a flow.
    Uniform noise levels would have infinite variance: a token is replaced with probability t, and
    then contributes nats/t.
    """

    def row_nll(params: Params, batch: dict[str, jax.Array], tau: jax.Array, key: Key):
        free = written_positions(batch, cfg.prompt)
        noise = jnp.clip(jnp.square(1.0 - tau), _LEAST, 1.0 - _LEAST)
        tokens, table = batch["tokens"], net.table(params)
        noisy = replaced_batch(key, tokens, noise, free, net, table)
        noisy = noisy._replace(rate=2.0 * jnp.sqrt(noise))
        valid = free & batch["mask"].astype(bool)
        weights = valid.astype(jnp.float32)
        how = {"net": net, "cfg": cfg, "visible": batch.get("visible")}
        _, nats = uniform_loss_at(params, tokens, noisy, weights, **how)
        return row_means(nats, weights)

    return row_nll
