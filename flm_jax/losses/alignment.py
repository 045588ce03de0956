"""Alignment of masked diffusion for decoding as a flow (arXiv 2606.29066).

    || softmax(logits_l) E - E[x_l] ||^2,   averaged over all positions, masked and visible,

of masked inputs, with x written by the base model itself. Masked diffusion is trained at masked
positions alone; decoding as a flow also reads its predictions at tokens that are partly or wholly
written, and stops or edits them by these. E in this loss is a constant: were it trained through
it, shrinking all embeddings would be a way out.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from flm_jax.core.network import Network
from flm_jax.core.settings import setting
from flm_jax.core.types import Key, Metrics, Params
from flm_jax.denoiser.forward import forward
from flm_jax.denoiser.head import Readout, expected_embedding, summary
from flm_jax.flows.interpolants.mask_anchored import MaskAnchored
from flm_jax.flows.masking import (
    free_positions,
    hide_independently,
    mean_progress,
    written_positions,
)
from flm_jax.flows.time_sampling import Rows, stratified_uniform
from flm_jax.losses.base import number_of, token_weights

INPUTS = ("masked", "progress", "mixed", "predicted")


@dataclasses.dataclass(frozen=True)
class AlignmentConfig:
    """Choices of alignment.

    Inputs are "masked", the masks, as in the paper; "progress", t E[x] + (1-t) m with t ~ U(0, 1)
    for each position; "mixed", either with probability 1/2; "predicted", in half of the rows masks,
    in the others what a call of decoding leaves: t E[z] + (1-t) m with z the network's own
    prediction from masks, c its probability and t = min(a, c), a ~ U(0, 1) for each position. Such
    a state may be wrong, and is to be read so; E[x] is still what is to be predicted.
    """

    inputs: str = setting(
        "masked",
        "Inputs at hidden positions: masked (masks), progress (random points between mask and"
        " token embeddings), mixed (either of the two), predicted (masks, or points between "
        "the mask and the model's own predictions).",
        choices=INPUTS,
    )
    time_conditioning: bool = setting(
        False,
        "Whether the network is conditioned on the mean unmasking progress; else its time "
        "input is 0.",
    )
    teacher: str = setting(
        "", "Workdir of the masked diffusion model to start from; empty with config.adapters.base."
    )


def aligned_at(
    params: Params,
    tokens: Int[Array, "b l"],
    t: Float[Array, "b l"],
    *,
    net: Network,
    cfg: AlignmentConfig,
    key: Key | None = None,
    shown: Int[Array, "b l"] | None = None,
    visible: Bool[Array, "b l"] | None = None,
) -> tuple[Float[Array, "b l"], Readout]:
    """Squared distances of expected embeddings to E[x], at states of progress t.

    Args:
      params: of a network with an anchor.
      tokens: x; t: progress of each position, 0 = mask, 1 = its token.
      key: for dropout.
      shown: tokens that the states hold in the place of x.
      visible: positions that may be attended to; None for all.

    Returns:
      Sum over the coordinates of each position, float32 [B, L]; and the read-out.
    """
    out = _read(params, tokens if shown is None else shown, t, net, cfg, visible, key)
    table = net.table(params)
    fixed = jax.lax.stop_gradient(table)
    return jnp.sum((expected_embedding(out, fixed, net) - fixed[tokens]) ** 2, axis=-1), out


def _read(
    params: Params,
    shown: jax.Array,
    t: jax.Array,
    net: Network,
    cfg: AlignmentConfig,
    visible: jax.Array | None,
    key: Key | None = None,
) -> Readout:
    """The network at states t E[shown] + (1-t) m."""
    clean, anchor = net.table(params)[shown], net.anchor(params)
    anchor = jnp.broadcast_to(anchor[None, : shown.shape[1]], clean.shape)
    states = MaskAnchored().at(t, clean, anchor=anchor)
    told = mean_progress(t, visible) if cfg.time_conditioning else jnp.zeros(t.shape[0])
    return forward(net, params, states, told, told, key=key, visible=visible)


def predicted(
    params: Params,
    tokens: Int[Array, "b l"],
    hidden: Bool[Array, "b l"],
    *,
    net: Network,
    cfg: AlignmentConfig,
    visible: Bool[Array, "b l"] | None = None,
) -> tuple[Int[Array, "b l"], Float[Array, "b l"]]:
    """Tokens with the network's own predictions at hidden positions, and their probabilities.

    It sees masks there; no gradient goes through it.
    """
    fixed, t = jax.lax.stop_gradient(params), jnp.where(hidden, 0.0, 1.0)
    out = _read(fixed, tokens, t, net, cfg, visible)
    _, (own, confidence) = summary(out, net.table(fixed), net)
    return jnp.where(hidden, own, tokens), confidence


def draw_inputs(
    key: Key,
    params: Params,
    tokens: Int[Array, "b l"],
    hidden: Bool[Array, "b l"],
    net: Network,
    cfg: AlignmentConfig,
    rows: Rows,
    visible: Bool[Array, "b l"] | None = None,
) -> tuple[Int[Array, "b l"], Float[Array, "b l"]]:
    """What the network is shown, by cfg.inputs.

    Args:
      key: of the progress.
      tokens: x; hidden: positions that are to be predicted.

    Returns:
      Tokens in the states, int32 [B, L], and their progress, float32 [B, L]: 1 where not hidden.
    """
    masked = jnp.where(hidden, 0.0, 1.0)
    if cfg.inputs == "masked":
        return tokens, masked
    u = jax.random.uniform(rows.fold(key), tokens.shape)
    if cfg.inputs == "predicted":
        more = {"net": net, "cfg": cfg, "visible": visible}
        shown, confidence = predicted(params, tokens, hidden, **more)
        moved = hidden & (jnp.arange(tokens.shape[0]) % 2 == 1)[:, None]
        return shown, jnp.where(moved, jnp.minimum(u, confidence), masked)
    u = u if cfg.inputs == "progress" else jnp.maximum(2.0 * u - 1.0, 0.0)
    return tokens, jnp.where(hidden, u, 1.0)


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

    What stands behind the end of a text is hidden like the text, as in decoding, which writes it as
    well. It counts where the mask says so: of models that fill rows with ends of text, as LLaDA and
    LLaDA2.0 do.

    Args:
      params: of a network with an anchor.
      batch: "tokens" int32 [B, L], "mask" [B, L], and optionally "prompt", see `free_positions`,
        and "visible" [B, L], 1 where the network may look, which is prompt elsewhere.
      key: for shares, masks, progress and dropout.
      rows: which rows of the global batch these are.

    Returns:
      Mean over the positions that may be written, and metrics: it, and the means over those of them
      that are hidden and that are not. Squared lengths of embeddings.
    """
    share_key, hide_key, t_key, dropout_key = jax.random.split(key, 4)
    tokens, counted = batch["tokens"], free_positions(batch, 0)
    share = stratified_uniform(share_key, tokens.shape[0], rows)
    hidden = hide_independently(rows.fold(hide_key), share, written_positions(batch, 0))
    seen = batch.get("visible")
    shown, t = draw_inputs(t_key, params, tokens, hidden, net, cfg, rows, seen)
    more = {"net": net, "cfg": cfg, "key": rows.fold(dropout_key), "visible": seen}
    distance, _ = aligned_at(params, tokens, t, shown=shown, **more)
    mean = lambda where: jnp.sum(token_weights(where) * distance)
    loss = mean(counted)
    return loss, {
        "squared_distance_per_token": loss,
        "hidden_squared_distance_per_token": mean(counted & hidden),
        "visible_squared_distance_per_token": mean(counted & ~hidden),
        "counted": number_of(counted),
    }
