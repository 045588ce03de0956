"""Self-distillation through time of masked diffusion (SDTT, arXiv 2410.21035v2).

The teacher takes two steps of ancestral sampling from a masked text; the student learns to predict
at once, for every masked token, the distribution from which the teacher unmasks it. Tokens that
stay masked have the teacher's last prediction as target.

For an exact teacher that unmasks one token before another, the student of the forward divergence is
the teacher itself: its prediction of the second token, averaged over the first, is its prediction
before. Where it unmasks several tokens at once it draws them independently, and its student learns
the effect on the others.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from flm_jax.core.network import Network
from flm_jax.core.settings import setting
from flm_jax.core.types import Key, Metrics, Params, Times
from flm_jax.denoiser.divergence import divergence
from flm_jax.denoiser.draws import drawn
from flm_jax.denoiser.head import Readout
from flm_jax.flows.masking import hide_independently, written_positions
from flm_jax.flows.time_sampling import Rows, stratified_uniform
from flm_jax.losses.base import Frozen, number_of, token_weights
from flm_jax.losses.distillation.rounds import RoundsConfig
from flm_jax.losses.masked_diffusion import MaskedConfig, masked_readout


@dataclasses.dataclass(frozen=True)
class ThroughTimeConfig(MaskedConfig, RoundsConfig):
    """Settings of self-distillation through time."""

    restart: bool = setting(
        True, "Whether the student, too, continues from the averaged parameters in a new round."
    )


def teacher_target(
    key: Key,
    params: Params,
    tokens: Int[Array, "b l"],
    masked: Bool[Array, "b l"],
    noise: Times,
    span: jax.Array | float,
    *,
    net: Network,
    cfg: MaskedConfig,
) -> Readout:
    """Predictions of the teacher for masked tokens, in two steps of ancestral sampling.

    Args:
      key: key for the tokens that the first step unmasks, and for their values.
      params: parameters of the teacher.
      tokens: tokens, which are read where they are not masked.
      noise: t [B], the masked fraction.
      span: length of a step in time; a step that would end below 0 ends at 0.

    Returns:
      The output of the first step at tokens that it unmasks, and of the second one elsewhere.
    """
    when_key, draw_key = jax.random.split(key)
    how = {"net": net, "cfg": cfg}
    first = masked_readout(params, tokens, masked, noise, **how)
    # From t to t - d a masked token is unmasked with probability d/t.
    now = hide_independently(when_key, jnp.minimum(span / noise, 1.0), masked)
    revealed = jnp.where(now, drawn(draw_key, first, net, 1)[0], tokens)
    left = jnp.maximum(noise - span, 0.0)
    second = masked_readout(params, revealed, masked & ~now, left, **how)
    return first._replace(features=jnp.where(now[..., None], first.features, second.features))


def through_time_loss(
    params: Params,
    frozen: Frozen,
    batch: dict[str, jax.Array],
    key: Key,
    rows: Rows,
    *,
    net: Network,
    cfg: ThroughTimeConfig,
) -> tuple[jax.Array, Metrics]:
    """Divergence between student and teacher over masked tokens.

    Args:
      params: parameters of the student.
      frozen: `other` holds the teacher's parameters; `step` determines the length of its steps.
      batch: "tokens" int32 [B, L] and "mask" [B, L], 1 where valid; other positions are masked like
        the rest and do not count. Optionally "prompt" [B, L], 1 where tokens stay visible.
      key: key for times, masks, the teacher's draws and dropout.
      rows: indices of these rows in the global batch.
      net: network of both.
      cfg: settings.

    Returns:
      Mean over masked valid tokens, nats/token, and metrics {"divergence_nats_per_token"}, the
      same, and "counted", the number of those tokens.
    """
    time_key, mask_key, teacher_key, dropout_key = jax.random.split(key, 4)
    tokens = batch["tokens"]
    noise = cfg.least + (1.0 - cfg.least) * stratified_uniform(time_key, tokens.shape[0], rows)
    masked = hide_independently(rows.fold(mask_key), noise, written_positions(batch, cfg.prompt))
    teacher, span = jax.lax.stop_gradient(frozen.other), cfg.span(frozen.step)
    target = teacher_target(
        rows.fold(teacher_key), teacher, tokens, masked, noise, span, net=net, cfg=cfg
    )
    how = {"net": net, "cfg": cfg, "key": rows.fold(dropout_key)}
    out = masked_readout(params, tokens, masked, noise, **how)
    counted = masked & batch["mask"].astype(bool)
    loss, _ = divergence(out, target, token_weights(counted), net, cfg.direction)
    return loss, {"divergence_nats_per_token": loss, "counted": number_of(counted)}
