"""Solvers of the ODE of a flow beyond Euler: Heun's, and Bogacki-Shampine's with adaptive steps.

With w = t/(1-t) and z = y/(1-t) the ODE dy/dt = (D_t(y) - y)/(1-t) is dz/dw = D_t(y): its right
side never leaves the convex hull of the embeddings, and nothing is singular before t = 1. A
Runge-Kutta step in w is a flow-map step of a mean of denoised states, whose weights are those of
`flow_map`; Euler's is the same in t and in w.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from flm_jax.flows.clocks import Clock, t_to_tau, tau_to_t
from flm_jax.flows.flow_map import flow_map, flow_map_weights
from flm_jax.flows.interpolants import over_features
from flm_jax.samplers.categorical import Choice
from flm_jax.samplers.common import Given, Samples, clock_grid
from flm_jax.samplers.denoisers import GREEDY, Denoiser
from flm_jax.samplers.flow_map import step_key
from flm_jax.types import Key, States, Times, require

# D: (states, interpolant times [B]) -> denoised states.
Denoised = Callable[[States, Times], States]
_END = 0.999  # tau at which adaptive steps end: of x_t alone one token in 1000 is read wrongly
_FIRST = 0.05  # first adaptive step, in tau
_SAFETY, _SHRINK, _GROW = 0.9, 0.2, 5.0
MIN_ADAPTIVE_CALLS = 5


def euler_step(denoised: States, y_s: States, s: Times, t: Times) -> States:
    """y_t of first order from D_s(y_s)."""
    return flow_map(y_s, denoised, s, t)


def heun_step(
    denoise: Denoised, denoised: States, y_s: States, s: Times, t: Times
) -> tuple[States, States]:
    """y_t of second order by the trapezoid rule, and D_t at Euler's prediction of it.

    Args:
      denoise: called once, at time t.
      denoised: D_s(y_s).
    """
    end = denoise(euler_step(denoised, y_s, s, t), t)
    return flow_map(y_s, 0.5 * (denoised + end), s, t), end


def bogacki_shampine_step(
    denoise: Denoised, first: States, y_s: States, s: Times, t: Times
) -> tuple[States, States, States]:
    """y_t of third order, with an embedded estimate of its error (second order).

    Source: Bogacki and Shampine, Appl. Math. Lett. 2(4), 1989. The last evaluation is the first of
    the next step.

    Args:
      denoise: called three times.
      first: D_s(y_s).

    Returns:
      y_t, D_t(y_t) and the estimate of the error of y_t.
    """
    w_s, w_t = s / (1.0 - s), t / (1.0 - t)
    between = lambda share: (w_s + share * (w_t - w_s)) / (1.0 + w_s + share * (w_t - w_s))
    half, later = between(0.5), between(0.75)
    second = denoise(flow_map(y_s, first, s, half), half)
    third = denoise(flow_map(y_s, second, s, later), later)
    y_t = flow_map(y_s, (2.0 * first + 3.0 * second + 4.0 * third) / 9.0, s, t)
    last = denoise(y_t, t)
    gap = -5.0 / 72.0 * first + second / 12.0 + third / 9.0 - last / 8.0
    return y_t, last, over_features(flow_map_weights(s, t)[1]) * gap


def heun(
    key: Key,
    y_0: States,
    denoiser: Denoiser,
    *,
    clock: Clock,
    steps: int,
    choice: Choice = GREEDY,
) -> Samples:
    """Heun's method on a grid uniform in tau, `steps` evaluations of the denoiser in all.

    The last interval takes one evaluation, whose delta is the result; each other one takes two,
    except the first where `steps` is even: that is Euler's, which leaves the order at 2.

    Returns:
      Samples, of every evaluation.
    """
    intervals = steps // 2 + 1
    taus = clock_grid(intervals)
    times = tau_to_t(clock, taus)
    rows = y_0.shape[0]

    def asked(y, t, tau, index, choice=GREEDY):
        return denoiser.ask(y_0, y, t, (tau, tau), step_key(key, index), choice)

    def euler(y_s, now):
        k, tau_s, _, s, t = now
        y_s, denoised, seen = asked(y_s, s, tau_s, 2 * k)
        return euler_step(denoised, y_s, jnp.full(rows, s), jnp.full(rows, t)), seen

    def step(y_s, now):
        k, tau_s, tau_t, s, t = now
        y_s, denoised, first = asked(y_s, s, tau_s, 2 * k)
        seen = [first]

        def denoise(y, t):
            _, found, tokens = asked(y, t, tau_t, 2 * k + 1)
            seen.append(tokens)
            return found

        y_t, _ = heun_step(denoise, denoised, y_s, jnp.full(rows, s), jnp.full(rows, t))
        return y_t, jax.tree.map(lambda a, b: jnp.stack([a, b]), *seen)

    grid = (jnp.arange(intervals), taus[:-1], taus[1:], times[:-1], times[1:])
    at = lambda i: tuple(x[i] for x in grid)
    begin = 1 if steps % 2 == 0 else 0
    history = []
    if begin:
        y_0_next, seen = euler(y_0, at(0))
        history.append(jax.tree.map(lambda x: x[None], seen))
    y, pairs = jax.lax.scan(step, y_0_next if begin else y_0, at(slice(begin, -1)))
    history.append(jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), pairs))
    k, tau, _, s, _ = at(-1)
    _, _, last = asked(y, s, tau, 2 * k, choice)
    history.append(jax.tree.map(lambda x: x[None], last))
    tokens, confidence = (jnp.concatenate(parts) for parts in zip(*history))
    return Samples(last[0], tokens, confidence)


class Progress(NamedTuple):
    """Rows [B] on their way: state, tau, step in tau, D there, evaluations so far."""

    y: States
    tau: jax.Array
    step: jax.Array
    first: States
    calls: jax.Array


def advance(
    key: Key,
    y_0: States,
    denoiser: Denoiser,
    *,
    clock: Clock,
    most: int,
    given: Given,
    tolerance: float,
) -> Progress:
    """Third-order steps, each row with its own length, as long as the tolerance allows.

    A step is taken if the estimated error of no free position is above the tolerance; the next
    length in tau follows from the error (order 3). Rows end at tau = 0.999, or where the
    evaluations are used up.

    Args:
      key: of the one dropout mask of all evaluations, without which the error would be that of the
        masks.
      most: evaluations of the denoiser.
      tolerance: as of `adaptive`.
    """
    unit = jnp.sqrt(jnp.mean(jnp.sum(jnp.square(denoiser.table), axis=-1)))

    def denoise(y, t):
        tau = t_to_tau(clock, t)
        return denoiser.ask(y_0, y, t, (tau, tau), key)[1]

    def body(now: Progress) -> Progress:
        tau_t = jnp.minimum(now.tau + now.step, _END)
        s, t = tau_to_t(clock, now.tau), tau_to_t(clock, tau_t)
        y_t, last, gap = bogacki_shampine_step(denoise, now.first, now.y, s, t)
        norms = jnp.where(given.mask, 0.0, jnp.sqrt(jnp.sum(jnp.square(gap), axis=-1)))
        error = jnp.max(norms, axis=1) / unit
        good = error <= tolerance
        factor = _SAFETY * (tolerance / jnp.maximum(error, 1e-12)) ** (1.0 / 3.0)
        taken = lambda a, b: jnp.where(good.reshape(-1, *[1] * (a.ndim - 1)), a, b)
        return Progress(
            taken(y_t, now.y),
            taken(tau_t, now.tau),
            (tau_t - now.tau) * jnp.clip(factor, _SHRINK, _GROW),
            taken(last, now.first),
            now.calls + 3,
        )

    def unfinished(now: Progress):
        return jnp.any(now.tau < _END) & (now.calls + 3 <= most)

    zeros = jnp.zeros(y_0.shape[0])
    start = Progress(y_0, zeros, zeros + _FIRST, denoise(y_0, zeros), jnp.int32(1))
    return jax.lax.while_loop(unfinished, body, start)


def adaptive(
    key: Key,
    y_0: States,
    denoiser: Denoiser,
    *,
    clock: Clock,
    steps: int,
    given: Given,
    tolerance: float,
    choice: Choice = GREEDY,
) -> Samples:
    """Steps chosen by their errors (`advance`), then a read-out that jumps to t = 1.

    Args:
      steps: most evaluations of the denoiser, at least 5; static.
      tolerance: of the error of y_t in one step, in units of the root mean square norm of clean
        embeddings.

    Returns:
      Samples of the last read-out alone, with calls = network calls made.
    """
    require(
        steps >= MIN_ADAPTIVE_CALLS,
        f"got steps={steps}; the adaptive solver needs at least {MIN_ADAPTIVE_CALLS} network "
        "calls: give its most calls, for example --steps=256.",
    )
    more = {"clock": clock, "most": steps - 1, "given": given, "tolerance": tolerance}
    end = advance(step_key(key, 0), y_0, denoiser, **more)
    t = tau_to_t(clock, end.tau)
    _, _, seen = denoiser.ask(y_0, end.y, t, (end.tau, end.tau), step_key(key, 1), choice)
    calls = (end.calls + 1) * denoiser.calls
    return Samples(seen[0], seen[0][None], seen[1][None], calls)
