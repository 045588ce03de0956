"""Sampler of uniform-state diffusion: ancestral steps, and the greedy tail of Duo."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from flm_jax.core.network import Network
from flm_jax.core.settings import setting
from flm_jax.core.types import Key, Params
from flm_jax.denoiser.forward import embedded, forward
from flm_jax.denoiser.head import Readout, read
from flm_jax.flows.shapes import positions_of
from flm_jax.flows.uniform_noise import posterior_logits
from flm_jax.samplers.base import Given, Samples
from flm_jax.samplers.categorical import Choice, DrawnConfig, position_noise, probability_of
from flm_jax.samplers.watching import show

_END = 1e-5  # noise that is left before a greedy tail


@dataclasses.dataclass(frozen=True)
class UniformSamplerConfig(DrawnConfig):
    """Ancestral sampling of uniform-state diffusion."""

    tail: str = setting(
        "ancestral",
        "Last call: ancestral (a step like the others, to clean text) or greedy (after steps "
        "to text with almost no noise, the most probable token of each position).",
        choices=("ancestral", "greedy"),
    )


def noise_levels(steps: int, tail: str) -> jax.Array:
    """Noise levels before each call and after the last one, [K + 1], from 1 to 0."""
    if tail == "ancestral":
        return jnp.linspace(1.0, 0.0, steps + 1)
    before = jnp.linspace(1.0, _END, steps) if steps > 1 else jnp.ones(1)
    return jnp.append(before, 0.0)


def sample(
    key: Key,
    params: Params,
    given: Given,
    extra: dict | None = None,
    *,
    net: Network,
    steps: int,
    cfg: UniformSamplerConfig,
    objective: Any,
    **unused: Any,
) -> Samples:
    """Takes ancestral steps from uniformly drawn tokens (arXiv 2506.10892v3, section 4.2).

    Each call predicts the clean token of a position, after temperature and top-p; a step draws the
    next state from the posterior of `flows.uniform_noise` given that prediction as the clean token.
    Prescribed tokens are kept. Arguments are as in `samplers.registry.Sampler`.

    Returns:
      Samples; the tokens after a call are the state to which it led, with the probabilities that
      the call gave to them.
    """
    del extra, unused
    number = net.token_count
    levels = noise_levels(steps, cfg.tail)
    start_key, key = jax.random.split(key)
    first = jax.random.randint(start_key, given.tokens.shape, 0, number, given.tokens.dtype)

    def call(state, now):
        k, noise, later = now
        told = jnp.full(state.shape[0], 1.0 - noise if objective.time_conditioning else 0.0)
        shown = embedded(net, params, state)
        out = forward(net, params, shown, told, told, visible=given.visible)
        greedy = (cfg.tail == "greedy") & (later == 0.0)
        drawn = _next(jax.random.fold_in(key, k), out, net, state, (noise, later, greedy), cfg)
        tokens = jnp.where(given.mask, given.tokens, drawn[0])
        seen = (tokens, jnp.where(given.mask, 1.0, drawn[1]))
        return show(k, tokens, tokens, k < steps - 1), seen

    grid = (jnp.arange(steps), levels[:-1], levels[1:])
    state = jnp.where(given.mask, given.tokens, first)
    last, seen = jax.lax.scan(call, state, grid)
    return Samples(last, *seen)


def _next(key: Key, out: Readout, net: Network, state: jax.Array, times, cfg: DrawnConfig):
    """Draws the next state with the probabilities of its tokens, tile by tile."""
    noise, later, greedy = times
    places = positions_of(state)
    rows = jnp.broadcast_to(jnp.arange(state.shape[0])[:, None], state.shape)

    def pick(logits, state, rows, places):
        level = lambda x: jnp.broadcast_to(x, state.shape)
        clean = _log_choice(logits, cfg.choice)
        scores = posterior_logits(clean, state, level(noise), level(later), net.token_count)
        scores = scores + position_noise(key, rows, places, logits.shape[-1])
        tokens = jnp.argmax(jnp.where(greedy, logits, scores), axis=-1).astype(jnp.int32)
        return tokens, probability_of(logits, tokens)

    return read(out, net, pick, state, rows, places)


def _log_choice(logits: jax.Array, choice: Choice) -> jax.Array:
    """Logarithms of the probabilities from which tokens are drawn."""
    if choice.temperature == 0.0:
        best = jnp.argmax(logits, axis=-1)
        return jnp.where(jax.nn.one_hot(best, logits.shape[-1]) > 0, 0.0, -jnp.inf)
    return jax.nn.log_softmax(choice.scores(logits), axis=-1)
