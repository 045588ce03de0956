"""Denoising cross entropy over the times, on held-out data."""

from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import numpy as np

from flm_jax.core.network import Network
from flm_jax.core.types import Key, Params
from flm_jax.flows.flow import Flow
from flm_jax.losses.base import row_means
from flm_jax.losses.denoising import denoising_loss_at


def make_row_nll(net: Network, flow: Flow) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """Returns row_nll(params, batch, tau [B], key) -> (nll [B], scored [B]), to be jitted.

    nll is the mean over a row in nats/token; scored is the number of tokens that it is the mean of.
    """

    def row_nll(params: Params, batch: dict[str, jax.Array], tau: jax.Array, key: Key):
        y_t, _ = flow.states(key, flow.t(tau), batch["tokens"], net.table(params))
        mask = batch["mask"].astype(jnp.float32)
        _, nll = denoising_loss_at(params, y_t, tau, batch["tokens"], mask, net=net)
        return row_means(nll, mask)

    return row_nll


def tau_profile(
    row_nll: Callable[..., tuple[jax.Array, jax.Array]],
    params: Params,
    batches: Iterable[dict[str, jax.Array]],
    bins: int,
    key: Key,
) -> dict[str, float]:
    """Mean cross entropy, over all times and in equal bins of tau.

    The times are the midpoints of a grid over the rows of each batch, and the noise is fixed by
    `key`: two calls compare like with like. Rows without a valid token do not count.

    Returns:
      {"nll_nats_per_token": ..., "nll_at_tau_0.06": ..., ...}, keys at the bins' centres.
    """
    taus, values = [], []
    for index, batch in enumerate(batches):
        rows = batch["tokens"].shape[0]
        tau = (np.arange(rows) + 0.5) / rows
        nll, scored = row_nll(params, batch, tau.astype(np.float32), jax.random.fold_in(key, index))
        valid = np.asarray(scored) > 0
        taus.append(tau[valid])
        values.append(np.asarray(nll)[valid])
    taus, values = np.concatenate(taus), np.concatenate(values)
    which = np.minimum((taus * bins).astype(int), bins - 1)
    profile = {"nll_nats_per_token": float(values.mean())}
    for b in range(bins):
        if (which == b).any():
            profile[f"nll_at_tau_{(b + 0.5) / bins:.2f}"] = float(values[which == b].mean())
    return profile
