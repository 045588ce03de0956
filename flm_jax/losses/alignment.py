"""Alignment of masked diffusion for decoding as a flow (arXiv 2606.29066).

    || softmax(logits_l) E - E[x_l] ||^2,   averaged over all positions, masked and visible,

of masked inputs, with x written by the base model itself. Masked diffusion is trained at masked
positions alone; decoding as a flow also reads its predictions at tokens that are partly or wholly
written, and stops or edits them by these. E in this loss is a constant: were it trained through
it, shrinking all embeddings would be a way out.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from flm_jax.flows.interpolants import interpolate, mask_anchored
from flm_jax.flows.readout import Readout, expected_embedding, read
from flm_jax.flows.times import Rows, stratified_uniform
from flm_jax.losses.denoising import token_weights
from flm_jax.types import Key, Metrics, Network, Params, Times

Inputs = Literal["masked", "progress", "mixed"]
INPUTS = ("masked", "progress", "mixed")


@dataclasses.dataclass(frozen=True)
class AlignmentConfig:
    """Choices of alignment.

    Attributes:
      inputs: what stands at hidden positions: "masked", the masks, as in the paper; "progress",
        t E[x] + (1-t) m with t ~ U(0, 1) for each position; "mixed", either with probability 1/2.
      time_conditioning: whether the network is told the mean progress; else it is told 0 always.
    """

    inputs: Inputs = "masked"
    time_conditioning: bool = False


def written(batch: dict[str, jax.Array]) -> Bool[Array, "b l"]:
    """Positions that decoding may write: valid ones outside of the prompt.

    Args:
      batch: "mask" [B, L], 1 where valid; optionally "prompt" [B, L], 1 where tokens are given.
    """
    free = batch["mask"].astype(bool)
    return free & ~batch["prompt"].astype(bool) if "prompt" in batch else free


def hide(key: Key, share: Times, free: Bool[Array, "b l"]) -> Bool[Array, "b l"]:
    """Each free position with probability share [B]."""
    return free & (jax.random.uniform(key, free.shape) < share[:, None])


def aligned_at(
    params: Params,
    tokens: Int[Array, "b l"],
    t: Float[Array, "b l"],
    *,
    net: Network,
    cfg: AlignmentConfig,
    key: Key | None = None,
) -> tuple[Float[Array, "b l"], Readout]:
    """Squared distances of expected embeddings to E[x], at states of progress t.

    Args:
      params: of a network with an anchor.
      tokens: x; t: progress of each position, 0 = mask, 1 = its token.
      key: for dropout.

    Returns:
      Sum over the coordinates of each position, float32 [B, L]; and the read-out.
    """
    table, anchor = net.table(params), net.anchor(params)
    clean = table[tokens]
    anchor = jnp.broadcast_to(anchor[None, : tokens.shape[1]], clean.shape)
    states = interpolate(mask_anchored, t, clean, anchor=anchor)
    told = jnp.mean(t, axis=1) if cfg.time_conditioning else jnp.zeros(tokens.shape[0])
    out = read(net, params, states, told, told, key=key)
    fixed = jax.lax.stop_gradient(table)
    return jnp.sum((expected_embedding(out, fixed, net) - fixed[tokens]) ** 2, axis=-1), out


def alignment_loss(
    params: Params,
    batch: dict[str, jax.Array],
    key: Key,
    *,
    net: Network,
    cfg: AlignmentConfig,
    rows: Rows,
) -> tuple[jax.Array, Metrics]:
    """The loss, each position hidden with probability s, s low-discrepancy U(0, 1) over the batch.

    Args:
      params: of a network with an anchor.
      batch: "tokens" int32 [B, L], "mask" [B, L], and optionally "prompt", see `written`.
      key: for shares, masks, progress and dropout.
      rows: which rows of the global batch these are.

    Returns:
      Mean over the positions that may be written, and metrics: it, and the means over those of them
      that are hidden and that are not. Squared lengths of embeddings.
    """
    share_key, hide_key, t_key, dropout_key = jax.random.split(key, 4)
    tokens, counted = batch["tokens"], written(batch)
    share = stratified_uniform(share_key, tokens.shape[0], rows)
    hidden = hide(rows.fold(hide_key), share, counted)
    t = jnp.where(hidden, 0.0, 1.0)
    if cfg.inputs != "masked":
        u = jax.random.uniform(rows.fold(t_key), tokens.shape)
        u = u if cfg.inputs == "progress" else jnp.maximum(2.0 * u - 1.0, 0.0)
        t = jnp.where(hidden, u, 1.0)
    distance, _ = aligned_at(params, tokens, t, net=net, cfg=cfg, key=rows.fold(dropout_key))
    mean = lambda where: jnp.sum(token_weights(where) * distance)
    loss = mean(counted)
    return loss, {
        "squared_distance_per_token": loss,
        "hidden_squared_distance_per_token": mean(hidden),
        "visible_squared_distance_per_token": mean(counted & ~hidden),
    }
