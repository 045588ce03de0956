"""Samplers of masked diffusion: ancestral, and low-confidence remasking in blocks."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from flm_jax.core.network import Network
from flm_jax.core.types import Key, Params
from flm_jax.denoiser.head import read
from flm_jax.flows.masking import highest, masked_states
from flm_jax.samplers.base import Given, Samples, Steps, calls_of_rows
from flm_jax.samplers.bigram import BigramConfig, candidates_of, choose_together, with_chain
from flm_jax.samplers.categorical import Choice, DrawnConfig, choose_at
from flm_jax.samplers.unmasking import Partial, reveal_in_steps, schedule
from flm_jax.samplers.windows import BlocksConfig, asker


@dataclasses.dataclass(frozen=True)
class AncestralConfig(BigramConfig):
    """Ancestral sampling: each step unmasks every masked token with the same probability."""


@dataclasses.dataclass(frozen=True)
class ConfidenceConfig(DrawnConfig, BlocksConfig):
    """Low-confidence remasking, block after block."""


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
    """Samples by either sampler, with the signature of `samplers.registry.Sampler`."""
    del unused
    how = {"steps": steps, "given": given, "choice": cfg.choice}
    how["time_conditioning"] = objective.time_conditioning
    if isinstance(cfg, ConfidenceConfig):
        return sample_confident(key, net, params, blocks=cfg, **how)
    how["choice"] = with_chain(cfg.choice, cfg, extra or {})
    return sample_ancestral(key, net, params, **how)


def _run(
    key, net, params, given: Given, steps: Steps, choice: Choice, progress, plan, reveal, ask=None
):
    """Unmasks positions in `steps` steps; see `reveal_in_steps`.

    Args:
      progress: function from (partial, step) to the network's time input, [B].
      ask: pair of an asker and (partial, step) -> block [B] in which each row is; None for calls on
        full rows.
    """
    whole_rows = (asker(net, params, given, None, None, False), lambda partial, k: None)
    asked, block_of = ask or whole_rows

    def states(partial: Partial) -> jax.Array:
        return masked_states(partial.tokens, partial.masked, net.table(params), net.anchor(params))

    def predict(partial: Partial, k):
        told, block = progress(partial, k), block_of(partial, k)
        call = asked.call(partial.kept, states(partial), told, block)
        own = jax.random.fold_in(key, k)
        if choice.chain is not None:
            # Calls are on whole rows, so that all rows have the same places: all of them.
            pick = lambda logits, places: candidates_of(own, places[0], logits, choice)
            found = read(call.out, net, pick, call.places)
            held = Given(partial.tokens, ~partial.masked)
            return choose_together(own, found, choice, held), call.kept
        found = choose_at(own, call.out, net, call.places, choice)
        tokens, confidence = (call.spread(*pair) for pair in zip(found, partial.seen))
        tokens = jnp.where(partial.masked, tokens, partial.tokens)
        return (tokens, jnp.where(partial.masked, confidence, 1.0)), call.kept

    first = masked_states(given.tokens, ~given.mask, net.table(params), net.anchor(params))
    return reveal_in_steps(given, steps, predict, plan, reveal, asked.start(first))


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

    From t to s each masked position is unmasked with probability (t-s)/t, independently of the
    network. On a uniform grid the step that unmasks it is therefore uniform over the steps, and is
    drawn beforehand: the distribution is the same, and steps that unmask nothing in any row need no
    network call (most of them, if there are many more steps than tokens).

    Args:
      steps: K of each row, a number or a fraction of the tokens to generate; static.
      given: prescribed tokens, visible from the start and never changed.
      choice: temperature and top-p of the token of an unmasked position.
      time_conditioning: whether the network is conditioned on time, as in training.

    Returns:
      Samples; calls is the number of network calls, at most the largest K. A step without a call
      repeats the tokens and confidence of the call before.
    """
    when_key, key = jax.random.split(key)
    calls = calls_of_rows(steps, given)
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
    blocks: BlocksConfig,
    time_conditioning: bool,
) -> Samples:
    """Low-confidence remasking, block after block (arXiv 2502.09992v3, section 2.4).

    Each step predicts every masked token and keeps the most confident ones of the current block;
    the rest is masked again. The masked positions of a block are spread evenly over its steps.

    Args:
      steps: K of each row, a number or a fraction of the tokens to generate; static. `schedule`
        spreads them over blocks.
      given: prescribed tokens, visible from the start and never changed.
      choice: temperature and top-p of the predictions.
      blocks: block length, counted from the prompt's end; probability above which predictions are
        unmasked at once, after which a row may start its next block earlier; cached keys and
        values.
      time_conditioning: whether the network is conditioned on time, as in training; its time is the
        unmasked fraction of the positions to generate.

    Returns:
      Samples; calls is the number of network calls: none for a step that unmasks nothing in any
      row. With temperature 0 the tokens of a row do not depend on the other rows.
    """
    plan_of = schedule(net, given, steps, blocks.block_length)
    free = jnp.sum(~given.mask, axis=1)
    early = blocks.threshold < 1.0

    def block_of(partial: Partial, k) -> jax.Array:
        if not early:
            return plan_of.at(k)
        return jnp.min(jnp.where(partial.masked, plan_of.place, plan_of.blocks), axis=1)

    def plan(partial: Partial, k):
        left = jnp.sum(partial.masked, axis=1)
        count = plan_of.due(k + 1) - plan_of.due(k)
        if early:
            # What is due less what is done already, and one at least, since a row may be ahead of
            # its plan.
            count = jnp.where(left > 0, jnp.maximum(plan_of.due(k + 1) - (free - left), 1), 0)
        inside = plan_of.place == block_of(partial, k)[:, None]
        return jnp.any(count > 0), (inside, count)

    def progress(partial: Partial, k):
        left = jnp.sum(partial.masked, axis=1) / jnp.maximum(free, 1)
        return 1.0 - left if time_conditioning else jnp.zeros(left.shape)

    def reveal(partial: Partial, confidence, details):
        inside, count = details
        best = highest(confidence, inside & partial.masked, count)
        return best | (inside & (confidence > blocks.threshold)) if early else best

    asked = asker(net, params, given, plan_of, blocks, time_conditioning)
    return _run(key, net, params, given, steps, choice, progress, plan, reveal, (asked, block_of))
