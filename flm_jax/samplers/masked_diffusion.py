"""Samplers of masked diffusion: ancestral, and low-confidence remasking in blocks."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from flm_jax.flows import readout
from flm_jax.flows.masking import highest, masked_states
from flm_jax.samplers.categorical import Choice, choose
from flm_jax.samplers.common import Given, Samples
from flm_jax.types import Key, Network, Params, require


class _State(NamedTuple):
    """tokens [B, L], masked [B, L], the last read-out (tokens, confidence), calls so far."""

    tokens: jax.Array
    masked: jax.Array
    seen: tuple[jax.Array, jax.Array]
    calls: jax.Array


def _predict(key, net, params, state: _State, progress, choice: Choice):
    """Tokens drawn for masked positions, the others carried over; and their probabilities."""
    states = masked_states(state.tokens, state.masked, net.table(params), net.anchor(params))
    logits = readout.denoise(net, params, states, progress, progress)
    tokens, confidence = choose(key, logits, choice)
    tokens = jnp.where(state.masked, tokens, state.tokens)
    return tokens, jnp.where(state.masked, confidence, 1.0)


def _run(key, net, params, given: Given, steps: int, choice: Choice, progress, plan, reveal):
    """Reveals positions in `steps` steps; one that reveals nothing makes no network call.

    Args:
      progress: (state, step) -> progress the network is told, scalar or [B].
      plan: (state, step) -> whether this step reveals anything, and what `reveal` needs for it.
      reveal: (state, confidence, plan) -> positions [B, L] that take their drawn tokens.
    """
    rows = given.tokens.shape[0]

    def step(state: _State, k):
        wanted, details = plan(state, k)

        def call(state: _State) -> _State:
            told = jnp.broadcast_to(progress(state, k), (rows,))
            seen = _predict(jax.random.fold_in(key, k), net, params, state, told, choice)
            now = state.masked & reveal(state, seen[1], details)
            tokens = jnp.where(now, seen[0], state.tokens)
            return _State(tokens, state.masked & ~now, seen, state.calls + 1)

        state = jax.lax.cond(wanted, call, lambda state: state, state)
        return state, state.seen

    confidence = jnp.where(given.mask, 1.0, 0.0)
    first = _State(given.tokens, ~given.mask, (given.tokens, confidence), jnp.int32(0))
    last, seen = jax.lax.scan(step, first, jnp.arange(steps))
    return Samples(last.tokens, *seen, last.calls)


def sample_ancestral(
    key: Key,
    net: Network,
    params: Params,
    *,
    steps: int,
    given: Given,
    choice: Choice,
    time_conditioning: bool = False,
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

    def plan(state: _State, k):
        now = when == k
        return jnp.any(now & state.masked), now

    progress = lambda state, k: k / steps if time_conditioning else jnp.zeros(())
    reveal = lambda state, confidence, now: now
    return _run(key, net, params, given, steps, choice, progress, plan, reveal)


def sample_confident(
    key: Key,
    net: Network,
    params: Params,
    *,
    steps: int,
    given: Given,
    choice: Choice,
    block_length: int = 0,
    time_conditioning: bool = False,
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
    size = block_length or length
    blocks = -(-length // size)
    require(
        steps % blocks == 0,
        f"{steps} steps do not divide over {blocks} blocks of {size} tokens; give a multiple of "
        f"{blocks}, or another block length.",
    )
    each = steps // blocks
    block = jnp.arange(length) // size
    index = jax.lax.broadcasted_iota(jnp.int32, (1, blocks), 1)
    # [B, blocks]: positions to write.
    total = jnp.sum((~given.mask)[:, :, None] & (block[None, :, None] == index[:, None]), axis=1)

    def plan(state: _State, k):
        now, part = k // each, k % each
        todo = jnp.take(total, now, axis=1)
        count = todo // each + (part < todo % each)
        return jnp.any(count > 0), (jnp.broadcast_to(block == now, given.mask.shape), count)

    def progress(state: _State, k):
        return 1.0 - jnp.mean(state.masked, axis=1) if time_conditioning else jnp.zeros(())

    def reveal(state: _State, confidence, details):
        inside, count = details
        return highest(confidence, inside & state.masked, count)

    return _run(key, net, params, given, steps, choice, progress, plan, reveal)
