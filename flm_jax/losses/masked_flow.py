"""Masked language flow: cross entropy on the masked bridge (arXiv 2606.27617, eqs. 8 and 12).

    CE(x_l, D_t(z_t)) + w |probs E - E[x_l]|^2 / D,   summed with weights over hidden positions.

At t = 0 the first term is masked diffusion's cross entropy. The hidden positions and the weighting
of positions differ between the paper and its authors' code, and between their two stages; each is a
setting (docs/methods/masked_flow.md has the table).
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from flm_jax.core.network import Network
from flm_jax.core.settings import setting
from flm_jax.core.types import Key, Metrics, Params, States, Times
from flm_jax.denoiser.forward import forward
from flm_jax.denoiser.head import cross_entropy, expected_embedding
from flm_jax.flows.flow import Flow
from flm_jax.flows.masking import at_least_one, free_positions, hide_below
from flm_jax.flows.noising import hidden_states
from flm_jax.flows.time_sampling import Rows, kronecker_uniform
from flm_jax.losses.base import number_of, row_means

REDUCTIONS = ("inverse_count", "inverse_length", "inverse_share", "none")
_SHARES = ("cosine", "cosine_squared", "uniform")


@dataclasses.dataclass(frozen=True)
class HidingConfig:
    """Settings of hidden positions and of their weights in the loss."""

    reduction: str = setting(
        "inverse_count",
        "Weighting of positions in the loss: inverse_count (mean over the hidden positions of"
        " each row, then over rows), inverse_length (in each row the sum divided by the "
        "hidden fraction times the number of positions that may be hidden, then the mean over"
        " rows), inverse_share (sum divided by hidden fractions and by the number of all "
        "positions that may be hidden) or none (mean over all hidden positions).",
        choices=REDUCTIONS,
    )
    share: str = setting(
        "cosine",
        "Distribution of the hidden fraction r + (1 - r) f(u), with u uniform and r the "
        "smallest fraction: cosine (f = cos(pi u/2)), cosine_squared (its square) or uniform "
        "(f = u).",
        choices=_SHARES,
    )
    least_share: float = setting(0.05, "Smallest hidden fraction r.", range="[0, 1]")
    whole: float = setting(
        0.0, "Fraction of rows whose positions are all hidden, except prompts.", range="[0, 1]"
    )
    hide_special: bool = setting(
        False,
        "Whether special tokens (end of text, padding, unknown) are hidden and learnt like "
        "any other; else they stay visible.",
    )
    prompt: int = setting(
        0,
        "Number of first positions of each sequence that stay visible.",
        unit="tokens",
        range="[0, inf)",
    )
    eos_id: int = setting(
        -1,
        "Token excluded from the statistics of the distribution of gamma; -1 for the "
        "tokenizer's end of text.",
        range="[-1, inf)",
    )
    special_ids: tuple = setting(
        (), "Special tokens; empty for the tokenizer's beginning, end, padding and unknown."
    )


@dataclasses.dataclass(frozen=True)
class BridgeConfig(HidingConfig):
    """Settings of the masked bridge; the defaults follow the authors' adaptation."""

    embedding_weight: float = setting(
        0.0,
        "Weight of the squared distance between embeddings, averaged over their features.",
        range="[0, inf)",
    )


def hidden_share(u: Times, cfg: HidingConfig) -> Times:
    """Hidden fraction for u ~ U(0, 1): r + (1 - r) f(u)."""
    cosine = jnp.cos(0.5 * jnp.pi * u)
    shape = {"cosine": cosine, "cosine_squared": cosine**2, "uniform": u}[cfg.share]
    return cfg.least_share + (1.0 - cfg.least_share) * shape


def may_be_hidden(batch: dict[str, jax.Array], cfg: HidingConfig) -> Bool[Array, "b l"]:
    """Mask of valid positions except prompts, and except special tokens if these stay visible."""
    free = free_positions(batch, cfg.prompt)
    if cfg.hide_special or not cfg.special_ids:
        return free
    special = jnp.isin(batch["tokens"], jnp.array(cfg.special_ids, jnp.int32))
    return free & ~special


def position_weights(
    hidden: Bool[Array, "b l"], free: Bool[Array, "b l"], share: Times, reduction: str
) -> tuple[Float[Array, "b l"], jax.Array]:
    """Weights of the sum over positions, and the number by which they are normalised.

    Args:
      hidden: mask of hidden positions.
      free: mask of positions that may be hidden.
      share: hidden fraction of each row, [B].
      reduction: one of `REDUCTIONS`.

    Returns:
      float32 [B, L], and the number of rows or positions over which the mean is taken; parts of a
      batch are weighted by it.
    """
    number = lambda mask: jnp.sum(mask.astype(jnp.float32), axis=1, keepdims=True)
    mask, share = hidden.astype(jnp.float32), share[:, None]
    if reduction == "none":
        counted = number_of(hidden)
    elif reduction == "inverse_share":
        mask, counted = mask / share, number_of(free)
    else:
        each = number(hidden) if reduction == "inverse_count" else share * number(free)
        mask = mask / jnp.maximum(each, 1e-6)
        counted = jnp.sum(jnp.any(free, axis=1).astype(jnp.float32))
    return mask / jnp.maximum(counted, 1.0), counted


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
    """Masked flow loss at given states.

    Args:
      z_t: states from `hidden_states`.
      weights: weight of each position in the sums; 0 where visible.

    Returns:
      Weighted sum of both terms; cross entropy of each token [B, L] (nats, no gradient); weighted
      sum of mean squared distances.
    """
    out = forward(net, params, z_t, tau, tau, key=key)
    loss, nll = cross_entropy(out, tokens, weights, net)
    if not cfg.embedding_weight:
        return loss, nll, jnp.zeros(())
    table = net.table(params)
    gap = expected_embedding(out, table, net) - table[tokens]
    distance = jnp.sum(weights * jnp.mean(gap**2, axis=-1))
    return loss + cfg.embedding_weight * distance, nll, distance


def draw_hidden(
    key: Key, share_key: Key, free: Bool[Array, "b l"], rows: Rows, cfg: HidingConfig
) -> tuple[Bool[Array, "b l"], Times]:
    """Draws hidden positions, each free one with its row's probability; at least one in a row.

    Args:
      key: key for the positions, and for rows that are hidden entirely.
      share_key: key for the fractions, the same for every (micro)batch of a global batch, over
        which they are low-discrepancy.

    Returns:
      Hidden positions [B, L], and the hidden fraction of each row, 1 where it is hidden entirely.
    """
    mask_key, one_key, whole_key = jax.random.split(rows.fold(key), 3)
    num = free.shape[0]
    # Not stratified like gamma, with which it would rise along the rows.
    share = hidden_share(kronecker_uniform(share_key, num, rows), cfg)
    hidden = hide_below(jax.random.uniform(mask_key, free.shape), share, free)
    hidden = at_least_one(one_key, hidden, free)
    if not cfg.whole:
        return hidden, share
    whole = jax.random.uniform(whole_key, (num,)) < cfg.whole
    return jnp.where(whole[:, None], free, hidden), jnp.where(whole, 1.0, share)


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
    """Masked flow loss, with gamma and hidden fraction low-discrepancy over the global batch.

    Args:
      params: parameters of a network with an anchor.
      batch: "tokens" int32 [B, L] and "mask" [B, L], 1 where valid; optionally "prompt" [B, L], 1
        where tokens stay visible.
      key: key for times, masks, noise and dropout.
      flow: masked bridge with the current state of its learnt times.
      rows: indices of these rows in the global batch.

    Returns:
      The loss, and metrics: cross entropy (nats/token) and squared distance of embeddings with the
      loss's weights, and under "observed" the data from which the distribution of gamma is learnt:
      the mean cross entropy of each row over hidden tokens except the end of text, by gamma and
      hidden fraction.
    """
    gamma_key, share_key, hide_key, noise_key, dropout_key = jax.random.split(key, 5)
    tokens = batch["tokens"]
    free = may_be_hidden(batch, cfg)
    tau = flow.draw_times(gamma_key, tokens.shape[0], rows)
    hidden, share = draw_hidden(hide_key, share_key, free, rows, cfg)
    z_t = hidden_states(
        rows.fold(noise_key),
        flow,
        flow.t(tau),
        tokens,
        hidden,
        net.table(params),
        net.anchor(params),
    )
    weights, counted = position_weights(hidden, free, share, cfg.reduction)
    loss, nll, distance = bridge_loss_at(
        params, z_t, tau, tokens, weights, net=net, cfg=cfg, key=rows.fold(dropout_key)
    )
    seen, number = row_means(nll, hidden & (tokens != cfg.eos_id))
    metrics = {
        "nll_nats_per_token": jnp.sum(weights * nll),
        "squared_distance_per_token": distance,
        "counted": counted,
        "observed": flow.times.observe(tau, seen, (number > 0).astype(jnp.float32), share),
    }
    return loss, metrics
