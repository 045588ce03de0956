"""Remasking in masked diffusion (ReMDM, arXiv 2503.00307v3): unmasked tokens are masked again.

From signal a (the unmasked fraction) to b >= a, an unmasked token is masked with probability sigma,
and a masked one is unmasked with probability (b - (1 - sigma) a) / (1 - a). Any sigma up to min(1,
(1 - b) / a) keeps the distribution of a state given the text as in training; sigma = 0 is ancestral
sampling.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from flm_jax.core.errors import require
from flm_jax.core.network import Network
from flm_jax.core.settings import setting
from flm_jax.core.types import Key, Params
from flm_jax.denoiser.forward import forward
from flm_jax.flows.masking import masked_states
from flm_jax.flows.shapes import positions_of
from flm_jax.samplers.base import Given, Samples, Steps, calls_of_rows, most_calls
from flm_jax.samplers.categorical import DrawnConfig, choose_at
from flm_jax.samplers.watching import show

STRATEGIES = ("cap", "rescale", "conf", "loop")


@dataclasses.dataclass(frozen=True)
class RemaskingConfig(DrawnConfig):
    """Ancestral sampling with remasking."""

    strategy: str = setting(
        "loop",
        "Probability sigma of masking an unmasked token again, with its bound s: cap, "
        "min(eta, s); rescale, eta s; conf, s times the softmax of minus its probability when"
        " it was drawn; loop, cap while the unmasked fraction stays at loop_signal, and 0 "
        "before and after.",
        choices=STRATEGIES,
    )
    eta: float = setting(0.02, "Parameter eta of cap, rescale and loop.", range="[0, 1]")
    loop_start: float = setting(
        0.55, "Time, from 1 to 0, at which the loop begins.", range="(0, 1)"
    )
    loop_end: float = setting(0.05, "Time at which the loop ends.", range="(0, 1)")
    loop_signal: float = setting(
        0.9, "Fraction of tokens that are unmasked during the loop.", range="(0, 1)"
    )

    def __post_init__(self):
        super().__post_init__()
        require(
            self.loop_end < self.loop_start,
            f"got loop_start={self.loop_start}, loop_end={self.loop_end}; expected an end below "
            "the start: times run from 1 to 0.",
        )

    def signal(self, time: Float[Array, "b"]) -> Float[Array, "b"]:
        """Unmasked fraction at a time: 1 - time, except in loops."""
        if self.strategy != "loop":
            return 1.0 - time
        before = self.loop_signal * (1.0 - time) / (1.0 - self.loop_start)
        after = 1.0 - (1.0 - self.loop_signal) * time / self.loop_end
        late = jnp.where(time > self.loop_end, self.loop_signal, after)
        return jnp.where(time > self.loop_start, before, late)


def most_masked(now: jax.Array, later: jax.Array) -> jax.Array:
    """Upper bound min(1, (1 - b) / a) of sigma, from signal a to b."""
    # The bound keeps the probability of `revealed` at most 1.
    return jnp.minimum(1.0, (1.0 - later) / jnp.maximum(now, 1e-12))


def masked_again(
    cfg: RemaskingConfig,
    times: tuple[jax.Array, jax.Array],
    written: Bool[Array, "b l"],
    sure: Float[Array, "b l"],
) -> Float[Array, "b l"]:
    """Probability sigma of masking each position again in a step.

    Args:
      cfg: settings with the strategy.
      times: start and end of the step, [B] each.
      written: mask of the positions that are unmasked and not prescribed.
      sure: probability of each token when it was drawn.
    """
    start = times[0]
    bound = most_masked(cfg.signal(start), cfg.signal(times[1]))
    if cfg.strategy == "conf":
        scores = jnp.where(written, -sure, -jnp.inf)
        share = jax.nn.softmax(scores, axis=1, where=written)
        return bound[:, None] * jnp.where(written, share, 0.0)
    sigma = cfg.eta * bound if cfg.strategy == "rescale" else jnp.minimum(cfg.eta, bound)
    if cfg.strategy == "loop":
        inside = (start > cfg.loop_end) & (start <= cfg.loop_start)
        sigma = jnp.where(inside, sigma, 0.0)
    return jnp.broadcast_to(sigma[:, None], written.shape)


def revealed(cfg: RemaskingConfig, times, sigma: Float[Array, "b l"]) -> Float[Array, "b l"]:
    """Probability that a masked position is unmasked in a step; arguments as in `masked_again`."""
    now, later = (cfg.signal(time)[:, None] for time in times)
    # A part (1 - sigma) a stays unmasked; the rest of b comes out of the masked part 1 - a.
    left = later - (1.0 - sigma) * now
    return jnp.where(now < 1.0, left / jnp.maximum(1.0 - now, 1e-12), 1.0)


class _Text(NamedTuple):
    """A text that is partly unmasked.

    Attributes:
      tokens, masked: tokens and mask, int32 and bool [B, L].
      sure: float32 [B, L], probability of each token when it was drawn.
      seen: last predictions (tokens, confidence).
      calls: int32 scalar, number of network calls.
    """

    tokens: Int[Array, "b l"]
    masked: Bool[Array, "b l"]
    sure: Float[Array, "b l"]
    seen: tuple[jax.Array, jax.Array]
    calls: jax.Array


def sample(
    key: Key,
    params: Params,
    given: Given,
    extra: dict | None = None,
    *,
    net: Network,
    steps: Steps,
    cfg: RemaskingConfig,
    objective: Any,
    **unused: Any,
) -> Samples:
    """Ancestral sampling with remasking, in K steps on a uniform grid of times.

    Arguments are as in `registry.Sampler`. The positions that change are drawn before the network
    is called, since they do not depend on it: steps that unmask nothing in any row make no call.

    Returns:
      Samples; calls is the number of network calls.
    """
    del extra, unused
    calls, most = calls_of_rows(steps, given), most_calls(steps, given.mask.shape[1])
    time = lambda k: jnp.maximum(1.0 - k / calls, 0.0)

    def predict(text: _Text, signal, k) -> tuple[jax.Array, jax.Array]:
        states = masked_states(text.tokens, text.masked, net.table(params), net.anchor(params))
        told = signal if objective.time_conditioning else jnp.zeros_like(signal)
        out = forward(net, params, states, told, told, visible=given.visible)
        own, places = jax.random.fold_in(key, 2 * k), positions_of(text.tokens)
        tokens, sure = choose_at(own, out, net, places, cfg.choice)
        tokens = jnp.where(text.masked, tokens, text.tokens)
        return tokens, jnp.where(text.masked, sure, 1.0)

    def step(text: _Text, k):
        times, own = (time(k), time(k + 1)), jax.random.fold_in(key, 2 * k + 1)
        written = ~text.masked & ~given.mask
        sigma = masked_again(cfg, times, written, text.sure)
        # A masked token of the confidence rule has sigma 0: it was not written.
        chance = jnp.where(text.masked, revealed(cfg, times, sigma), sigma)
        hit = ~given.mask & (jax.random.uniform(own, text.masked.shape) < chance)
        shown = text.masked & hit

        def call(text: _Text) -> _Text:
            seen = predict(text, cfg.signal(times[0]), k)
            tokens = jnp.where(shown, seen[0], text.tokens)
            sure = jnp.where(shown, seen[1], text.sure)
            return text._replace(tokens=tokens, sure=sure, seen=seen, calls=text.calls + 1)

        text = jax.lax.cond(jnp.any(shown), call, lambda text: text, text)
        # A hit turns a masked position into an unmasked one, and the reverse.
        follows = jnp.any(shown) & (k < most - 1)
        tokens = show(k, text.seen[0], text.tokens, follows)
        text = text._replace(tokens=tokens, masked=text.masked ^ hit)
        return text, text.seen

    sure = jnp.where(given.mask, 1.0, 0.0)
    first = _Text(given.tokens, ~given.mask, sure, (given.tokens, sure), jnp.int32(0))
    last, seen = jax.lax.scan(step, first, jnp.arange(most))
    return Samples(last.tokens, *seen, last.calls)
