"""Bogacki-Shampine solver whose step sizes follow an error estimate."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from flm_jax.core.errors import require
from flm_jax.core.settings import setting
from flm_jax.core.types import Key, States, Times
from flm_jax.flows.flow import Flow
from flm_jax.flows.interpolants.base import Interpolant
from flm_jax.flows.shapes import over_features
from flm_jax.samplers.base import Given, Samples
from flm_jax.samplers.categorical import Choice
from flm_jax.samplers.euler import step_key
from flm_jax.samplers.guidance import GREEDY, Denoiser
from flm_jax.samplers.steering import IteratedConfig

# D: (states, interpolant times [B]) -> denoised states.
Denoised = Callable[[States, Times], States]
_END = 0.999  # tau at which adaptive steps end: of x_t alone one token in 1000 is read wrongly
_FIRST = 0.05  # first adaptive step, in tau
_SAFETY, _SHRINK, _GROW = 0.9, 0.2, 5.0
MIN_ADAPTIVE_CALLS = 5


@dataclasses.dataclass(frozen=True)
class AdaptiveConfig(IteratedConfig):
    """Third-order steps of adaptive size; the step count bounds the network calls."""

    tolerance: float = setting(
        0.01,
        "Local error tolerance of a step, relative to the root mean square norm of the embeddings.",
        range="(0, inf)",
    )


def bogacki_shampine_step(
    path: Interpolant,
    denoise: Denoised,
    first: States,
    y_s: States,
    s: Times,
    t: Times,
    anchor: jax.Array | float = 0.0,
) -> tuple[States, States, States]:
    """Takes a step of third order to y_t, with an embedded estimate of its error (second order).

    Source: Bogacki and Shampine, Appl. Math. Lett. 2(4), 1989. The last evaluation is the first of
    the next step.

    Args:
      path: interpolant whose steps are combined.
      denoise: denoiser D, called three times.
      first: D_s(y_s).
      y_s: states at s.
      s, t: times of the step.
      anchor: m of anchored paths, else 0.

    Returns:
      y_t, D_t(y_t) and the estimate of the error of y_t.
    """
    u_s, u_t = path.odds(s), path.odds(t)
    half, later = (path.time_of(u_s + share * (u_t - u_s)) for share in (0.5, 0.75))
    step = lambda denoised, end: path.step(y_s, denoised, s, end, anchor=anchor)
    second = denoise(step(first, half), half)
    third = denoise(step(second, later), later)
    y_t = step((2.0 * first + 3.0 * second + 4.0 * third) / 9.0, t)
    last = denoise(y_t, t)
    # Weights (2/9, 1/3, 4/9, 0) of third order minus (7/24, 1/4, 1/3, 1/8) of second order.
    gap = -5.0 / 72.0 * first + second / 12.0 + third / 9.0 - last / 8.0
    return y_t, last, over_features(path.weights(s, t).clean) * gap


class Progress(NamedTuple):
    """Rows [B] under way: state, tau, step size in tau, D at the state, and evaluations so far."""

    y: States
    tau: jax.Array
    step: jax.Array
    first: States
    calls: jax.Array


def advance(
    key: Key,
    xi: States,
    denoiser: Denoiser,
    *,
    flow: Flow,
    most: int,
    given: Given,
    tolerance: float,
) -> Progress:
    """Takes third-order steps, each row with its own step size, as large as the tolerance allows.

    A step is accepted if the estimated error of no free position is above the tolerance; the next
    step size in tau follows from the error (order 3). Rows end at tau = 0.999, or when the
    evaluations are used up.

    Args:
      key: key of the dropout mask, which all evaluations share, since the error would otherwise be
        dominated by the masks.
      most: largest number of evaluations of the denoiser.
      tolerance: local error tolerance, see `adaptive`.
    """
    unit = jnp.sqrt(jnp.mean(jnp.sum(jnp.square(denoiser.table), axis=-1)))

    def denoise(y, t):
        tau = flow.tau(t)
        return denoiser.ask(xi, y, t, (tau, tau), key)[1]

    def body(now: Progress) -> Progress:
        tau_t = jnp.minimum(now.tau + now.step, _END)
        s, t = flow.t(now.tau), flow.t(tau_t)
        y_t, last, gap = bogacki_shampine_step(
            flow.path, denoise, now.first, now.y, s, t, denoiser.anchor
        )
        norms = jnp.where(given.mask, 0.0, jnp.sqrt(jnp.sum(jnp.square(gap), axis=-1)))
        error = jnp.max(norms, axis=1) / unit
        good = error <= tolerance
        # The local error of a second-order step is of third order in the step size.
        factor = _SAFETY * (tolerance / jnp.maximum(error, 1e-12)) ** (1.0 / 3.0)
        taken = lambda a, b: jnp.where(good.reshape(-1, *[1] * (a.ndim - 1)), a, b)
        return Progress(
            taken(y_t, now.y),
            taken(tau_t, now.tau),
            (tau_t - now.tau) * jnp.clip(factor, _SHRINK, _GROW),
            taken(last, now.first),
            # The last evaluation of a step is the first of the next; a rejected one keeps its
            # own.
            now.calls + 3,
        )

    def unfinished(now: Progress):
        return jnp.any(now.tau < _END) & (now.calls + 3 <= most)

    zeros, first = jnp.zeros(xi.shape[0]), denoiser.start(xi)
    start = Progress(first, zeros, zeros + _FIRST, denoise(first, flow.t(zeros)), jnp.int32(1))
    return jax.lax.while_loop(unfinished, body, start)


def adaptive(
    key: Key,
    xi: States,
    denoiser: Denoiser,
    *,
    flow: Flow,
    steps: int,
    given: Given,
    tolerance: float,
    choice: Choice = GREEDY,
) -> Samples:
    """Samples with adaptive steps (`advance`), then jumps to t = 1 and reads the tokens.

    Args:
      steps: largest number of evaluations of the denoiser, at least 5; static.
      tolerance: error tolerance of y_t in one step, in units of the root mean square norm of clean
        embeddings.

    Returns:
      Samples with the last logits' tokens alone; calls is the number of network calls.
    """
    require(
        steps >= MIN_ADAPTIVE_CALLS,
        f"got steps={steps}; the adaptive solver needs at least {MIN_ADAPTIVE_CALLS} network "
        "calls: give its most calls, for example --steps=256.",
    )
    more = {"flow": flow, "most": steps - 1, "given": given, "tolerance": tolerance}
    end = advance(step_key(key, 0), xi, denoiser, **more)
    t = flow.t(end.tau)
    _, _, seen = denoiser.ask(xi, end.y, t, (end.tau, end.tau), step_key(key, 1), choice)
    calls = (end.calls + 1) * denoiser.calls
    return Samples(seen[0], seen[0][None], seen[1][None], calls)
