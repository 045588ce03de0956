"""Samplers of masked diffusion: ancestral, and low-confidence remasking in blocks."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from flm_jax.core.network import Network
from flm_jax.core.settings import setting
from flm_jax.core.types import Key, Params
from flm_jax.denoiser.forward import forward
from flm_jax.flows.masking import highest, masked_states
from flm_jax.samplers.base import Given, Samples, Steps, calls_of
from flm_jax.samplers.categorical import Choice, DrawnConfig, choose_at
from flm_jax.samplers.unmasking import Partial, even_share, reveal_in_steps, schedule


@dataclasses.dataclass(frozen=True)
class AncestralConfig(DrawnConfig):
    """Ancestral sampling: each step reveals every masked token with the same probability."""


@dataclasses.dataclass(frozen=True)
class ConfidenceConfig(DrawnConfig):
    """Low-confidence remasking, block after block."""

    block_length: int = setting(
        0,
        "length of a block, written in turn from the prompt's end; 0 for one block",
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
    steps: Steps,
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


def _run(key, net, params, given: Given, steps: Steps, choice: Choice, progress, plan, reveal):
    """Reveals positions in `steps` steps; see `reveal_in_steps`.

    Args:
      progress: (partial, step) -> progress the network is told, [B].
    """

    rows, length = given.tokens.shape
    places = jnp.broadcast_to(jnp.arange(length)[None], (rows, length))

    def predict(partial: Partial, k):
        told = progress(partial, k)
        states = masked_states(
            partial.tokens, partial.masked, net.table(params), net.anchor(params)
        )
        out = forward(net, params, states, told, told, visible=given.visible)
        tokens, confidence = choose_at(jax.random.fold_in(key, k), out, net, places, choice)
        tokens = jnp.where(partial.masked, tokens, partial.tokens)
        return tokens, jnp.where(partial.masked, confidence, 1.0)

    return reveal_in_steps(given, steps, predict, plan, reveal)


def _calls(given: Given, steps: Steps) -> jax.Array:
    """Network calls of each row, [B]; 1 of a row that is all given."""
    free = jnp.sum(~given.mask, axis=1)
    return jnp.maximum(calls_of(steps, free, given.mask.shape[1]), 1)


def sample_ancestral(
    key: Key,
    net: Network,
    params: Params,
    *,
    steps: Steps,
    given: Given,
    choice: Choice,
    time_conditioning: bool,
) -> Samples:
    """Ancestral sampling of MDLM (arXiv 2406.07524v2) on a uniform grid of K times.

    From t to s each masked position is revealed with probability (t-s)/t, whatever the network
    says. So on a uniform grid the step of its revealing is uniform over the steps, and is drawn
    beforehand: the law is the same, and steps that reveal nothing in any row are known to need no
    network call (with many more steps than tokens, most of them).

    Args:
      steps: K of each row, a number or a share of the tokens to write; static.
      given: prescribed tokens, visible from the start and never changed.
      choice: temperature and top-p of the token of a revealed position.
      time_conditioning: as the network was trained.

    Returns:
      Samples; calls counts the network calls that were made, at most the largest K. The read-out of
      a step without a call is that of the call before.
    """
    when_key, key = jax.random.split(key)
    calls = _calls(given, steps)
    when = jax.random.randint(when_key, given.tokens.shape, 0, calls[:, None])

    def plan(partial: Partial, k):
        now = when == k
        return jnp.any(now & partial.masked), now

    progress = lambda partial, k: k / calls if time_conditioning else jnp.zeros(calls.shape)
    reveal = lambda partial, confidence, now: now
    return _run(key, net, params, given, steps, choice, progress, plan, reveal)


def sample_confident(
    key: Key,
    net: Network,
    params: Params,
    *,
    steps: Steps,
    given: Given,
    choice: Choice,
    block_length: int,
    time_conditioning: bool,
) -> Samples:
    """Low-confidence remasking, block after block (arXiv 2502.09992v3, section 2.4).

    Each step predicts every masked token and keeps the most confident of the current block; the
    rest is masked again. The masked positions of a block are spread evenly over its steps.

    Args:
      steps: K of each row, a number or a share of the tokens to write; static. See `schedule` for
        how they are spread over blocks.
      given: prescribed tokens, visible from the start and never changed.
      choice: temperature and top-p of the predictions.
      block_length: positions in a block, from the prompt's end; 0 for one block.
      time_conditioning: as the network was trained; it is told the share of the positions to write
        that are written.

    Returns:
      Samples; calls counts the network calls that were made: none for a step that writes nothing in
      any row. With temperature 0 a row's tokens do not depend on the other rows.
    """
    plan_of = schedule(net, given, steps, block_length)
    free = jnp.sum(~given.mask, axis=1)

    def plan(partial: Partial, k):
        block = plan_of.at(k)
        first, calls = plan_of.span(block)
        count = even_share(plan_of.todo(block), jnp.maximum(calls, 1), k - first)
        return jnp.any(count > 0), (plan_of.place == block[:, None], count)

    def progress(partial: Partial, k):
        left = jnp.sum(partial.masked, axis=1) / jnp.maximum(free, 1)
        return 1.0 - left if time_conditioning else jnp.zeros(left.shape)

    def reveal(partial: Partial, confidence, details):
        inside, count = details
        return highest(confidence, inside & partial.masked, count)

    return _run(key, net, params, given, steps, choice, progress, plan, reveal)
