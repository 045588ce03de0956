"""Samplers of the one-hot flow on a grid: flow-map jumps and Euler steps, both linear in
(state, delta).

Source: arXiv 2602.16813v3. From time s to t,  y <- w_y y + w_delta (probs @ E)  with
w_delta = (t-s)/(1-s): one Euler step of the ODE and one flow-map jump X_st have the same weights.
They differ only in the target time the network is told: t for a flow map, s for a denoiser.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from flm_jax.core.network import Network
from flm_jax.core.settings import setting
from flm_jax.core.types import Key, Params, States, Times
from flm_jax.flows.clocks import Clock, t_to_tau, tau_to_t
from flm_jax.flows.flow_map import flow_map
from flm_jax.samplers.base import Given, Samples, clock_grid
from flm_jax.samplers.categorical import Choice
from flm_jax.samplers.guidance import GREEDY, Denoiser, plain, target_time
from flm_jax.samplers.steering import IteratedConfig, RewardedConfig

# (y_s [B, L, W], y_0, tau_s, s, t) -> y_s: moves a state before the network carries it from s to t.
Nudge = Callable[[States, States, Times, Times, Times], States]


@dataclasses.dataclass(frozen=True)
class EulerConfig(IteratedConfig, RewardedConfig):
    """Euler steps of a flow on a grid uniform in its clock."""


@dataclasses.dataclass(frozen=True)
class FlowMapConfig(RewardedConfig):
    """Jumps of a flow map on a grid uniform in its clock."""

    gamma: float = setting(
        0.0,
        "fraction of fresh noise after each jump; 1 for all, which is consistency sampling",
        range="[0, 1]",
    )


def step_key(key: Key, step: int | jax.Array) -> Key:
    """The key of one step; the noise at the start takes `key` itself and its first fold."""
    return jax.random.fold_in(jax.random.fold_in(key, 2), step)


def overshoot(t: Times, gamma: float) -> Times:
    """t' = 1 - (1-t) sqrt(1 - gamma^2): where a stochastic jump towards t lands before its noise.

    Noise of scale gamma (1-t) brings the total back to 1-t.
    """
    return 1.0 - (1.0 - t) * (1.0 - gamma**2) ** 0.5


def renoised(y: States, delta: States, t: Times, gamma: float, eps: States) -> States:
    """From t' = overshoot(t, gamma) back to t: y + (t - t') delta + gamma (1-t) eps.

    Source: "gamma-sampling" of arXiv 2602.16813v3. Exact at gamma = 1, where y = delta: the state
    becomes t delta + (1-t) eps. Between 0 and 1 delta stands for clean data.

    Args:
      y: state at t'; delta: the two-time denoiser that led there; eps: fresh embedded noise.
      t: scalar.
    """
    return y + (t - overshoot(t, gamma)) * delta + gamma * (1.0 - t) * eps


def carry(
    key: Key,
    y_0: States,
    denoiser: Denoiser,
    *,
    clock: Clock,
    steps: int,
    gamma: float = 0.0,
    choice: Choice = GREEDY,
    nudge: Nudge | None = None,
) -> Samples:
    """Carries the noise y_0 to data in `steps` steps on a grid uniform in tau.

    Args:
      key: of fresh noise, dropout and drawn tokens; a deterministic sampler does not use it.
      y_0: embedded noise [B, L, W].
      denoiser: a two-time one takes flow-map jumps, a one-time one Euler steps. A self-conditioned
        one is shown delta of the step before, none at first.
      clock: tau(t) of the vocabulary.
      steps: K >= 1, evaluations of the denoiser; static.
      gamma: share of fresh noise after each jump but the last, in [0, 1]; static.
      choice: how the tokens of the last read-out are chosen.
      nudge: applied to the state before each step.

    Returns:
      Samples. The last step returns delta itself (X_{s,1} = delta_{s,1}).
    """
    taus = clock_grid(steps)
    times = tau_to_t(clock, taus)
    # Where each jump lands; at gamma = 0 the grid itself, to the bit.
    ends = overshoot(times, gamma) if gamma else times
    tau_ends = t_to_tau(clock, ends) if gamma else taus

    def step(state, now, choice=GREEDY):
        y_s, estimate = state
        more = {} if estimate is None else {"estimate": estimate}
        k, tau_s, tau_end, s, t, end = now
        own = step_key(key, k)
        if nudge is not None:
            y_s = nudge(y_s, y_0, tau_s, s, t)
        target = target_time(denoiser, tau_s, tau_end)
        y_s, delta, seen = denoiser.ask(y_0, y_s, s, (tau_s, target), own, choice, **more)
        y_t = flow_map(y_s, delta, jnp.full(y_s.shape[0], s), jnp.full(y_s.shape[0], end))
        if gamma:
            y_t = renoised(y_t, delta, t, gamma, denoiser.noise(jax.random.fold_in(own, 1)))
        return (y_t, delta if denoiser.self_conditioned else None), seen

    grid = (jnp.arange(steps), taus[:-1], tau_ends[1:], times[:-1], times[1:], ends[1:])
    none = jnp.zeros_like(y_0) if denoiser.self_conditioned else None
    state, early = jax.lax.scan(step, (y_0, none), tuple(x[:-1] for x in grid))
    # Alone, so that the compiler drops delta @ E of the last call, which nothing reads.
    _, last = step(state, tuple(x[-1] for x in grid), choice)
    tokens, confidence = (jnp.concatenate([a, b[None]]) for a, b in zip(early, last))
    return Samples(last[0], tokens, confidence)


def sample_euler_from(
    y_0: States, net: Network, params: Params, *, clock: Clock, steps: int, given: Given
) -> Samples:
    """Carries the noise y_0 [B, L, D] to data deterministically in `steps` calls; see `carry`."""
    return carry(jax.random.key(0), y_0, plain(net, params, given), clock=clock, steps=steps)


def sample_euler(
    key: Key, net: Network, params: Params, *, clock: Clock, steps: int, given: Given
) -> Samples:
    """Draws noise and carries it to data deterministically; see `carry`."""
    denoiser = plain(net, params, given)
    return carry(key, denoiser.noise(key), denoiser, clock=clock, steps=steps)
