"""Masked language flow: cross entropy on the masked bridge (arXiv 2606.27617).

    CE(x_l, D_t(z_t)) + w ||probs E - E[x_l]||^2,   averaged over the hidden positions.

At t = 0 the first term is masked diffusion's cross entropy.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from flm_jax.core.network import Network
from flm_jax.core.settings import setting
from flm_jax.core.types import Key, Metrics, Params, States, Times
from flm_jax.denoiser.forward import forward
from flm_jax.denoiser.head import cross_entropy, expected_embedding
from flm_jax.flows.flow import Flow
from flm_jax.flows.masking import free_positions, hide_share
from flm_jax.flows.noising import hidden_states
from flm_jax.flows.time_sampling import Rows, kronecker_uniform
from flm_jax.losses.base import number_of, row_means, token_weights

_NEARLY_ALL = 0.95  # share hidden from which a row tells the cross entropy of a whole answer


@dataclasses.dataclass(frozen=True)
class BridgeConfig:
    """Choices of the masked bridge."""

    embedding_weight: float = setting(
        10.0, "weight of the squared distance of embeddings", range="[0, inf)"
    )
    least_share: float = setting(0.05, "smallest fraction of hidden positions", range="[0, 1]")
    whole: float = setting(
        0.0, "fraction of rows that are hidden entirely, prompts apart", range="[0, 1]"
    )
    prompt: int = setting(
        0, "first positions of each sequence, which stay visible", unit="tokens", range="[0, inf)"
    )
    eos_id: int = setting(
        -1,
        "token left out of the averages of an empirical law; -1 for the tokenizer's end of text",
        range="[-1, inf)",
    )


def hidden_share(u: Times, cfg: BridgeConfig) -> Times:
    """Share of hidden positions for u ~ U(0, 1): 1 below cfg.whole, and on the rest a cosine.

    least + (1 - least) cos(pi v / 2) with v = (u - whole) / (1 - whole).
    """
    v = jnp.clip((u - cfg.whole) / max(1.0 - cfg.whole, 1e-6), 0.0, 1.0)
    cosine = cfg.least_share + (1.0 - cfg.least_share) * jnp.cos(0.5 * jnp.pi * v)
    return jnp.where(u < cfg.whole, 1.0, cosine)


def bridge_loss_at(
    params: Params,
    z_t: States,
    tau: Times,
    tokens: Int[Array, "b l"],
    weights: Float[Array, "b l"],
    *,
    net: Network,
    cfg: BridgeConfig,
    key: Key | None = None,
) -> tuple[jax.Array, Float[Array, "b l"], jax.Array]:
    """The loss at given states.

    Args:
      z_t: states of `hidden_states`; tau: what the network is told of their times [B].
      weights: of each position in the sums; 0 where visible.

    Returns:
      Weighted sum of both terms; cross entropy of each token [B, L] (nats, no gradient); weighted
      sum of squared distances.
    """
    out = forward(net, params, z_t, tau, tau, key=key)
    loss, nll = cross_entropy(out, tokens, weights, net)
    if not cfg.embedding_weight:
        return loss, nll, jnp.zeros(())
    table = net.table(params)
    gap = expected_embedding(out, table, net) - table[tokens]
    distance = jnp.sum(weights * jnp.sum(gap**2, axis=-1))
    return loss + cfg.embedding_weight * distance, nll, distance


def bridge_loss(
    params: Params,
    batch: dict[str, jax.Array],
    key: Key,
    *,
    net: Network,
    flow: Flow,
    cfg: BridgeConfig,
    rows: Rows,
) -> tuple[jax.Array, Metrics]:
    """The loss with gamma and the share of hidden positions low-discrepancy over the global batch.

    Args:
      params: parameters of a network with an anchor.
      batch: "tokens" int32 [B, L] and "mask" [B, L], 1 where valid; optionally "prompt" [B, L], 1
        where tokens stay visible.
      key: for times, masks, noise and dropout.
      flow: the masked bridge, settled at what is learnt of its times.
      rows: which rows of the global batch these are.

    Returns:
      Mean over hidden positions, and metrics: cross entropy (nats/token) and squared distance of
      embeddings, and under "observed" the sums that `noise_schedule.update_state` takes.
    """
    gamma_key, share_key, hide_key, noise_key, dropout_key = jax.random.split(key, 5)
    tokens = batch["tokens"]
    num = tokens.shape[0]
    free = free_positions(batch, cfg.prompt)
    tau = flow.draw_times(gamma_key, num, rows)
    share = hidden_share(kronecker_uniform(share_key, num, rows), cfg)
    hidden = hide_share(rows.fold(hide_key), share, free)
    z_t = hidden_states(
        rows.fold(noise_key),
        flow,
        flow.t(tau),
        tokens,
        hidden,
        net.table(params),
        net.anchor(params),
    )
    weights = token_weights(hidden)
    loss, nll, distance = bridge_loss_at(
        params, z_t, tau, tokens, weights, net=net, cfg=cfg, key=rows.fold(dropout_key)
    )
    observed = hidden
    if flow.times.cfg.learnt == "empirical":
        observed = hidden & (tokens != cfg.eos_id) & (share >= _NEARLY_ALL)[:, None]
    metrics = {
        "nll_nats_per_token": jnp.sum(weights * nll),
        "squared_distance_per_token": distance,
        "counted": number_of(hidden),
        "observed": flow.times.observe(tau, *row_means(nll, observed)),
    }
    return loss, metrics
