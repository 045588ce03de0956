"""Masked diffusion: the continuous-time NELBO of MDLM (arXiv 2406.07524v2, eq. 10).

With the log-linear schedule alpha_t = 1 - t each token is hidden with probability t, and

    NELBO = E_{t ~ U(0, 1)}  1/t  sum_{l hidden} -log p(x_l | visible tokens).

Hidden positions have anchors as states, which are no rows of the table, and the head has no column
for them: the probability of the mask is exactly zero. Visible tokens have weight zero (carry-over).
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from flm_jax.core.network import Network
from flm_jax.core.settings import setting
from flm_jax.core.types import Key, Metrics, Params, Times
from flm_jax.denoiser.forward import forward
from flm_jax.denoiser.head import Readout, cross_entropy
from flm_jax.flows.masking import hide_independently, masked_states, written_positions
from flm_jax.flows.time_sampling import Rows, stratified_uniform
from flm_jax.losses.base import Frozen, number_of, token_weights


@dataclasses.dataclass(frozen=True)
class MaskedConfig:
    """Settings of masked diffusion.

    Below the smallest time `least`, 1/t makes the variance grow as log(1/least), while the part of
    the integral that is left out is of relative size `least`.
    """

    time_conditioning: bool = setting(
        False, "Whether the network is conditioned on 1 - t; else its time input is 0."
    )
    least: float = setting(1e-3, "Smallest time t of training.", range="[0, 1)")
    prompt: int = setting(
        0,
        "Number of first positions of each sequence that stay visible and do not count in the"
        " loss.",
        unit="tokens",
        range="[0, inf)",
    )


def masked_readout(
    params: Params,
    tokens: Int[Array, "b l"],
    masked: Bool[Array, "b l"],
    t: Times,
    *,
    net: Network,
    cfg: MaskedConfig,
    key: Key | None = None,
    visible: Bool[Array, "b l"] | None = None,
) -> Readout:
    """Output of the network for a partly masked text; arguments as in `masked_loss_at`."""
    states = masked_states(tokens, masked, net.table(params), net.anchor(params))
    progress = 1.0 - t if cfg.time_conditioning else jnp.zeros_like(t)
    return forward(net, params, states, progress, progress, key=key, visible=visible)


def masked_loss_at(
    params: Params,
    tokens: Int[Array, "b l"],
    masked: Bool[Array, "b l"],
    t: Times,
    weights: Float[Array, "b l"],
    *,
    net: Network,
    cfg: MaskedConfig,
    key: Key | None = None,
    visible: Bool[Array, "b l"] | None = None,
) -> tuple[jax.Array, Float[Array, "b l"]]:
    """Cross entropy of the tokens, given the tokens that are not masked.

    Args:
      masked: mask of hidden positions.
      t: expected hidden fraction [B].
      weights: weight of each position in the sum; 0 where visible.
      visible: mask of positions that may be attended to; None for all.

    Returns:
      Weighted sum (nats) and the cross entropy of each token [B, L] (nats, no gradient).
    """
    more = {"net": net, "cfg": cfg, "key": key, "visible": visible}
    out = masked_readout(params, tokens, masked, t, **more)
    return cross_entropy(out, tokens, weights, net)


def masked_loss(
    params: Params,
    frozen: Frozen | None,
    batch: dict[str, jax.Array],
    key: Key,
    rows: Rows,
    *,
    net: Network,
    cfg: MaskedConfig,
) -> tuple[jax.Array, Metrics]:
    """NELBO with t low-discrepancy in [least, 1] over the global batch.

    Args:
      params: parameters of a network with anchors.
      frozen: not used.
      batch: "tokens" int32 [B, L] and "mask" [B, L], 1 where valid; other positions are hidden like
        the rest and do not count. Optionally "prompt" [B, L], 1 where tokens stay visible and do
        not count.
      key: key for times, masks and dropout.
      rows: indices of these rows in the global batch.

    Returns:
      Mean over valid tokens, nats/token, and metrics {"nll_nats_per_token"}, the same bound, and
      "counted".
    """
    del frozen
    time_key, mask_key, dropout_key = jax.random.split(key, 3)
    tokens = batch["tokens"]
    t = cfg.least + (1.0 - cfg.least) * stratified_uniform(time_key, tokens.shape[0], rows)
    free = written_positions(batch, cfg.prompt)
    masked = hide_independently(rows.fold(mask_key), t, free)
    mask = batch["mask"] * free
    # With masking probability t the NELBO is the integral over t of 1/t times the masked tokens'
    # loss.
    # At t = 0, which `least` = 0 allows, nothing is hidden.
    weights = token_weights(mask) * masked / jnp.maximum(t, 1e-9)[:, None]
    loss, _ = masked_loss_at(
        params, tokens, masked, t, weights, net=net, cfg=cfg, key=rows.fold(dropout_key)
    )
    return loss, {"nll_nats_per_token": loss, "counted": number_of(mask)}
