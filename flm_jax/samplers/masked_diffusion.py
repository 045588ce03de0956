"""Samplers of masked diffusion: ancestral, and low-confidence remasking in blocks."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from flm_jax.core.network import Network
from flm_jax.core.settings import setting
from flm_jax.core.types import Key, Params
from flm_jax.denoiser.forward import denoise
from flm_jax.flows.masking import highest, masked_states
from flm_jax.samplers.base import Given, Samples, in_blocks
from flm_jax.samplers.categorical import Choice, DrawnConfig, choose
from flm_jax.samplers.unmasking import Partial, even_share, reveal_in_steps


@dataclasses.dataclass(frozen=True)
class AncestralConfig(DrawnConfig):
    """Ancestral sampling: each step reveals every masked token with the same probability."""


@dataclasses.dataclass(frozen=True)
class ConfidenceConfig(DrawnConfig):
    """Low-confidence remasking, block after block."""

    block_length: int = setting(
        0,
        "length of a block, written in turn from the left; 0 for one block",
        unit="tokens",
        range="[0, inf)",
    )


def sample_by_config(
    key: Key,
    params: Params,
    given: Given,
    extra: dict | None = None,
    *,
    net: Network,
    steps: int,
    cfg: AncestralConfig | ConfidenceConfig,
    objective: Any,
    **unused: Any,
) -> Samples:
    """Either sampler as `samplers.registry.Sampler` has it."""
    del extra, unused
    how = {"steps": steps, "given": given, "choice": cfg.choice}
    how["time_conditioning"] = objective.time_conditioning
    if isinstance(cfg, ConfidenceConfig):
        return sample_confident(key, net, params, block_length=cfg.block_length, **how)
    return sample_ancestral(key, net, params, **how)


def _run(key, net, params, given: Given, steps: int, choice: Choice, progress, plan, reveal):
    """Reveals positions in `steps` steps; see `reveal_in_steps`.

    Args:
      progress: (partial, step) -> progress the network is told, scalar or [B].
    """
    rows = given.tokens.shape[0]

    def predict(partial: Partial, k):
        told = jnp.broadcast_to(progress(partial, k), (rows,))
        states = masked_states(
            partial.tokens, partial.masked, net.table(params), net.anchor(params)
        )
        logits = denoise(net, params, states, told, told)
        tokens, confidence = choose(jax.random.fold_in(key, k), logits, choice)
        tokens = jnp.where(partial.masked, tokens, partial.tokens)
        return tokens, jnp.where(partial.masked, confidence, 1.0)

    return reveal_in_steps(given, steps, predict, plan, reveal)


def sample_ancestral(
    key: Key,
    net: Network,
    params: Params,
    *,
    steps: int,
    given: Given,
    choice: Choice,
    time_conditioning: bool,
) -> Samples:
    """Ancestral sampling of MDLM (arXiv 2406.07524v2) on a uniform grid of `steps` times.

    From t to s each masked position is revealed with probability (t-s)/t, whatever the network
    says. So on a uniform grid the step of its revealing is uniform over the steps, and is drawn
    beforehand: the law is the same, and steps that reveal nothing in any row are known to need no
    network call (with many more steps than tokens, most of them).

    Args:
      steps: K >= 1; static.
      given: prescribed tokens, visible from the start and never changed.
      choice: temperature and top-p of the token of a revealed position.
      time_conditioning: as the network was trained.

    Returns:
      Samples; calls counts the network calls that were made, at most `steps`. The read-out of a
      step without a call is that of the call before.
    """
    when_key, key = jax.random.split(key)
    when = jax.random.randint(when_key, given.tokens.shape, 0, steps)

    def plan(partial: Partial, k):
        now = when == k
        return jnp.any(now & partial.masked), now

    progress = lambda partial, k: k / steps if time_conditioning else jnp.zeros(())
    reveal = lambda partial, confidence, now: now
    return _run(key, net, params, given, steps, choice, progress, plan, reveal)


def sample_confident(
    key: Key,
    net: Network,
    params: Params,
    *,
    steps: int,
    given: Given,
    choice: Choice,
    block_length: int,
    time_conditioning: bool,
) -> Samples:
    """Low-confidence remasking, block after block (arXiv 2502.09992v3, section 2.4).

    Each step predicts every masked token and keeps the most confident of the current block; the
    rest is masked again. The masked positions of a block are spread evenly over its steps.

    Args:
      steps: K, a multiple of the number of blocks; static.
      given: prescribed tokens, visible from the start and never changed.
      choice: temperature and top-p of the predictions.
      block_length: positions in a block, from the left; 0 for one block.
      time_conditioning: as the network was trained; it is told the share of visible positions.

    Returns:
      Samples; calls counts the network calls that were made: none for a step of a block whose
      tokens are all there.

    Raises:
      UserError: steps that do not divide over the blocks.
    """
    length = given.tokens.shape[1]
    size, blocks, each = in_blocks(steps, length, block_length)
    block = jnp.arange(length) // size
    index = jax.lax.broadcasted_iota(jnp.int32, (1, blocks), 1)
    # [B, blocks]: positions to write.
    total = jnp.sum((~given.mask)[:, :, None] & (block[None, :, None] == index[:, None]), axis=1)

    def plan(partial: Partial, k):
        now, part = k // each, k % each
        todo = jnp.take(total, now, axis=1)
        count = even_share(todo, each, part)
        return jnp.any(count > 0), (jnp.broadcast_to(block == now, given.mask.shape), count)

    def progress(partial: Partial, k):
        return 1.0 - jnp.mean(partial.masked, axis=1) if time_conditioning else jnp.zeros(())

    def reveal(partial: Partial, confidence, details):
        inside, count = details
        return highest(confidence, inside & partial.masked, count)

    return _run(key, net, params, given, steps, choice, progress, plan, reveal)
