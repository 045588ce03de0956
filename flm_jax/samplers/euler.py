"""Samplers of a flow on a grid: flow-map jumps and Euler steps, both linear in (state, delta).

Source: arXiv 2602.16813v3. From time s to t the state becomes w_y y + w_x (probs @ E), with the
weights of `Interpolant.step`: a step of Euler's method and a flow-map jump X_st have the same
weights. They differ only in the target time on which the network is conditioned: t for a flow map,
s for a denoiser.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from flm_jax.core.network import Network
from flm_jax.core.settings import setting
from flm_jax.core.types import Key, Params, States, Times
from flm_jax.flows.flow import Flow
from flm_jax.samplers.base import Given, Samples
from flm_jax.samplers.categorical import Choice
from flm_jax.samplers.guidance import GREEDY, Denoiser, plain, target_time
from flm_jax.samplers.steering import IteratedConfig, RewardedConfig
from flm_jax.samplers.watching import show

# (y_s [B, L, W], xi, tau_s, s, t) -> y_s: moves a state before the network carries it from s to t.
Nudge = Callable[[States, States, Times, Times, Times], States]


@dataclasses.dataclass(frozen=True)
class EulerConfig(IteratedConfig, RewardedConfig):
    """Euler steps of a flow, on a grid uniform in the quantiles of its times."""


@dataclasses.dataclass(frozen=True)
class FlowMapConfig(RewardedConfig):
    """Jumps of a flow map, on a grid uniform in the quantiles of its times."""

    gamma: float = setting(
        0.0,
        "Fraction of fresh noise after each jump; 1 is consistency sampling.",
        range="[0, 1]",
    )


@dataclasses.dataclass(frozen=True)
class RenoisingConfig(RewardedConfig):
    """Forward renoising of a flow map: each call answers for the end, from (s, 1).

    Tokens are drawn, embedded and noised afresh to the next time of a grid uniform in the quantiles
    of times (arXiv 2609.40235).
    """

    temperature: float = setting(
        1.0,
        "Temperature at which the tokens of every call are drawn; 0 for the most probable ones.",
        range="[0, inf)",
    )


def step_key(key: Key, step: int | jax.Array) -> Key:
    """Key of one step; the noise at the start takes `key` itself and its first fold."""
    return jax.random.fold_in(jax.random.fold_in(key, 2), step)


def carry(
    key: Key,
    xi: States,
    denoiser: Denoiser,
    *,
    flow: Flow,
    steps: int,
    stochasticity: float = 0.0,
    choice: Choice = GREEDY,
    drawn: bool = False,
    nudge: Nudge | None = None,
) -> Samples:
    """Transports the noise xi to data in `steps` steps on the grid of the flow's times.

    Args:
      key: key of fresh noise, dropout and drawn tokens; a deterministic sampler does not use it.
      xi: noise [B, L, W], from which `Denoiser.start` computes the first state.
      denoiser: denoiser; a two-time one takes flow-map jumps, a one-time one Euler steps. A
        self-conditioned one takes delta of the step before, and no estimate at first.
      flow: path and times.
      steps: number K >= 1 of evaluations of the denoiser; static.
      stochasticity: fraction of fresh noise after each jump but the last, in [0, 1]; static. It is
        the gamma of arXiv 2602.16813v3: a jump goes beyond t, and fresh noise brings the state back
        to t.
      choice: rule by which the tokens of the last logits are chosen.
      drawn: whether `choice` draws the tokens of every call, and each step moves towards their
        embeddings instead of delta.
      nudge: function applied to the state before each step.

    Returns:
      Samples. The last step returns delta itself (X_{s,1} = delta_{s,1}).
    """
    taus = flow.grid(steps)
    times = flow.t(taus)
    # Where each jump lands before its noise; without noise the grid itself, to the bit.
    tau_ends = taus
    if stochasticity:
        tau_ends = flow.tau(flow.path.overshoot(times, stochasticity))
    redraws = flow.path.redraws or stochasticity > 0.0

    def step(state, now, choice=choice if drawn else GREEDY):
        y_s, estimate = state
        more = {} if estimate is None else {"estimate": estimate}
        # One row of `grid`: the network reads tau_s and tau_end, the path moves from s to t.
        k, tau_s, tau_end, s, t = now
        own = step_key(key, k)
        if nudge is not None:
            y_s = nudge(y_s, xi, tau_s, s, t)
        target = target_time(denoiser, tau_s, tau_end)
        # The fresh noise below takes a fold of `own`, which draws at a position must not share.
        draws = jax.random.fold_in(own, 0) if drawn else own
        y_s, delta, seen = denoiser.ask(xi, y_s, s, (tau_s, target), draws, choice, **more)
        fresh = denoiser.noise(jax.random.fold_in(own, 1)) if redraws else None
        delta = denoiser.table[seen[0]] if drawn else delta
        y_t = flow.path.step(
            y_s,
            delta,
            *(jnp.full(y_s.shape[0], time) for time in (s, t)),
            anchor=denoiser.anchor,
            noise=fresh,
            stochasticity=stochasticity,
        )
        y_t = show(k, seen[0], y_t)
        return (y_t, delta if denoiser.self_conditioned else None), seen

    grid = (jnp.arange(steps), taus[:-1], tau_ends[1:], times[:-1], times[1:])
    none = jnp.zeros_like(xi) if denoiser.self_conditioned else None
    state, early = jax.lax.scan(step, (denoiser.start(xi), none), tuple(x[:-1] for x in grid))
    # Alone, so that the compiler drops delta @ E of the last call, which nothing reads.
    _, last = step(state, tuple(x[-1] for x in grid), choice)
    tokens, confidence = (jnp.concatenate([a, b[None]]) for a, b in zip(early, last))
    return Samples(last[0], tokens, confidence)


def sample_euler_from(
    xi: States, net: Network, params: Params, *, flow: Flow, steps: int, given: Given
) -> Samples:
    """Transports the noise xi [B, L, D] to data deterministically in `steps` calls; see `carry`."""
    denoiser = plain(net, params, flow, given)
    return carry(jax.random.key(0), xi, denoiser, flow=flow, steps=steps)


def sample_euler(
    key: Key, net: Network, params: Params, *, flow: Flow, steps: int, given: Given
) -> Samples:
    """Draws noise and transports it to data deterministically; see `carry`."""
    denoiser = plain(net, params, flow, given)
    return carry(key, denoiser.noise(key), denoiser, flow=flow, steps=steps)
