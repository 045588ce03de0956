"""Heun's method in the odds of a path, and the Euler step from which it starts."""

import dataclasses

import jax
import jax.numpy as jnp

from flm_jax.core.types import Key, States, Times
from flm_jax.flows.flow import Flow
from flm_jax.flows.interpolants.base import Interpolant
from flm_jax.samplers.adaptive import Denoised
from flm_jax.samplers.base import Samples
from flm_jax.samplers.categorical import Choice
from flm_jax.samplers.euler import step_key
from flm_jax.samplers.guidance import GREEDY, Denoiser
from flm_jax.samplers.steering import IteratedConfig
from flm_jax.samplers.watching import show


@dataclasses.dataclass(frozen=True)
class HeunConfig(IteratedConfig):
    """Heun's method on a grid uniform in the quantiles of times; two calls for all but the last."""


def heun_step(
    path: Interpolant,
    denoise: Denoised,
    denoised: States,
    y_s: States,
    s: Times,
    t: Times,
    anchor: jax.Array | float = 0.0,
) -> tuple[States, States]:
    """Takes a step of second order to y_t (trapezoid rule); also returns D_t after Euler's step.

    Args:
      path: interpolant whose steps are combined.
      denoise: denoiser, called once, at time t.
      denoised: D_s(y_s).
      y_s: states at s.
      s, t: times of the step.
      anchor: m of anchored paths, else 0.
    """
    end = denoise(path.step(y_s, denoised, s, t, anchor=anchor), t)
    return path.step(y_s, 0.5 * (denoised + end), s, t, anchor=anchor), end


def heun(
    key: Key,
    xi: States,
    denoiser: Denoiser,
    *,
    flow: Flow,
    steps: int,
    choice: Choice = GREEDY,
) -> Samples:
    """Applies Heun's method on the grid of the flow's times, with `steps` evaluations in total.

    The last interval takes one evaluation, whose delta is the result; every other interval takes
    two, except the first one where `steps` is even: it is an Euler step, which leaves the order at
    2.

    Returns:
      Samples with the tokens of every evaluation.
    """
    # Odd steps: 2 (intervals - 1) + 1 evaluations; even ones: 1 + 2 (intervals - 2) + 1.
    intervals = steps // 2 + 1
    taus = flow.grid(intervals)
    times = flow.t(taus)
    rows, anchor = xi.shape[0], denoiser.anchor

    def asked(y, t, tau, index, choice=GREEDY):
        return denoiser.ask(xi, y, t, (tau, tau), step_key(key, index), choice)

    def euler(y_s, now):
        k, tau_s, _, s, t = now
        y_s, denoised, seen = asked(y_s, s, tau_s, 2 * k)
        ends = (jnp.full(rows, s), jnp.full(rows, t))
        y_t = flow.path.step(y_s, denoised, *ends, anchor=anchor)
        return show(0, seen[0], y_t), seen

    def step(y_s, now):
        k, tau_s, tau_t, s, t = now
        # The two evaluations of interval k have keys 2 k and 2 k + 1, also where the first
        # interval has one.
        y_s, denoised, first = asked(y_s, s, tau_s, 2 * k)
        seen = [first]
        index = 2 * k - begin  # of the first evaluation of this interval, among all

        def denoise(y, t):
            y = show(index, first[0], y)
            _, found, tokens = asked(y, t, tau_t, 2 * k + 1)
            seen.append(tokens)
            return found

        ends = (jnp.full(rows, s), jnp.full(rows, t))
        y_t, _ = heun_step(flow.path, denoise, denoised, y_s, *ends, anchor)
        y_t = show(index + 1, seen[1][0], y_t)
        # In order of evaluation, at s and then at t. The scan stacks pairs to [intervals, 2, ...];
        # the reshape below makes them [evaluations, ...].
        return y_t, jax.tree.map(lambda a, b: jnp.stack([a, b]), *seen)

    grid = (jnp.arange(intervals), taus[:-1], taus[1:], times[:-1], times[1:])
    at = lambda i: tuple(x[i] for x in grid)
    begin = 1 if steps % 2 == 0 else 0
    y, history = denoiser.start(xi), []
    if begin:
        y, seen = euler(y, at(0))
        history.append(jax.tree.map(lambda x: x[None], seen))
    # All intervals but the last and, after an Euler step, the first.
    y, pairs = jax.lax.scan(step, y, at(slice(begin, -1)))
    history.append(jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), pairs))
    k, tau, _, s, _ = at(-1)
    _, _, last = asked(y, s, tau, 2 * k, choice)
    history.append(jax.tree.map(lambda x: x[None], last))
    tokens, confidence = (jnp.concatenate(parts) for parts in zip(*history))
    return Samples(last[0], tokens, confidence)
