"""The decoding-error clock tau(t) of one-hot flows, evaluated and differentiated inside jit.

Source: arXiv 2602.16813v3, section on time reparameterisation. With noise N(0, I_V) and x_t = (1-t)
x_0 + t onehot(x), decoding x_t by its argmax errs with probability

    P_e(t) = 1 - E_z[Phi(z + t/(1-t))^(V-1)],  z ~ N(0, 1),

and tau(t) = 1 - V/(V-1) P_e(t) runs from 0 (noise) to 1 (data).

A network reads x_t through D numbers, y_t = E^T x_t, from which less can be decoded. The square of
the signal-to-noise ratio at which it sees token v is r^2 E[v] (E^T E)^-1 E[v]^T, r = t/(1-t). The
factors of r^2 are the leverages of the table; they sum to its rank, so that their mean is min(1,
D/V), whatever the table: the clock of embedded states has sqrt(min(1, D/V)) r instead of r.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import log_ndtr

from flm_jax.core.errors import require
from flm_jax.core.types import Times

_KNOTS = 4096
_TAIL = 1e-7  # 1 - tau below this is one straight piece: float32 cannot resolve it
_NEWTON_STEPS = 8


class Clock(NamedTuple):
    """Monotone piecewise-cubic table of tau(t); a pytree of float32 arrays.

    Attributes:
      t: knots in interpolant time, [N+1], from 0 to 1.
      tau: exact tau at the knots, [N+1], from 0 to 1.
      d_t: widths of the pieces in t, [N].
      d_tau: widths of the pieces in tau, [N] (stored, since they underflow as differences near 1).
      left: slope at the left end of each piece times d_t/d_tau, [N].
      right: slope at the right end of each piece, scaled in the same way, [N].
    """

    t: jax.Array
    tau: jax.Array
    d_t: jax.Array
    d_tau: jax.Array
    left: jax.Array
    right: jax.Array


def decoding_clock(vocab_size: int, dim: int | None = None) -> Clock:
    """Builds the table for one vocabulary size (float64 quadrature on the host, about 0.3 s once).

    Args:
      vocab_size: vocabulary size V >= 2.
      dim: dimension D, for errors of decoding y_t in R^D; None for x_t in R^V, as in the paper.

    Returns:
      A clock that is accurate to 1e-6 in tau.

    Raises:
      UserError: vocab_size < 2, for which there are no decoding errors.
    """
    require(vocab_size >= 2, f"The clock needs a vocabulary of at least 2, got {vocab_size}.")
    t, tail, slope = _quadrature(vocab_size)
    if dim is not None:
        t, slope = _seen_later(t, slope, max(1.0, vocab_size / dim) ** 0.5)
    d_t = np.append(np.diff(t), 1.0 - t[-1])
    d_tau = np.append(-np.diff(tail), tail[-1])
    scale = d_t / d_tau
    left = np.append(slope[:-1] * scale[:-1], 1.0)
    right = np.append(slope[1:] * scale[:-1], 1.0)
    knots = (np.append(t, 1.0), np.append(1.0 - tail, 1.0), d_t, d_tau, left, right)
    return Clock(*(jnp.asarray(k, jnp.float32) for k in knots))


@functools.cache
def _quadrature(vocab_size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Times t, 1 - tau and dtau/dt there, up to where the tail ends; computed once a process."""
    t = np.linspace(0.0, 1.0, _KNOTS + 1)[:-1]
    tail, slope = _tail_and_slope(t, vocab_size)
    keep = tail > _TAIL
    return t[keep], tail[keep], slope[keep]


def _seen_later(t: np.ndarray, slope: np.ndarray, factor: float) -> tuple[np.ndarray, np.ndarray]:
    """Times at which r is `factor` times its value at t, and dtau/dt there."""
    # From t'/(1 - t') = f t/(1 - t). The slope is dtau/dt dt/dt', where
    # t = t'/(f - (f - 1) t').
    later = factor * t / (1.0 + (factor - 1.0) * t)
    return later, slope * factor / (factor - (factor - 1.0) * later) ** 2


def identity_clock() -> Clock:
    """Returns tau(t) = t: no reparameterisation, for comparison with the decoding-error clock."""
    ends, one = jnp.array([0.0, 1.0]), jnp.ones(1)
    return Clock(ends, ends, one, one, one, one)


def _tail_and_slope(t: np.ndarray, vocab_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Values of 1 - tau and dtau/dt at t, by the trapezoid rule (spectrally accurate here)."""
    z = np.linspace(-9.5, 9.5, 1201)
    log_weight = -0.5 * z**2 - 0.5 * np.log(2 * np.pi) + np.log(z[1] - z[0])
    ratio = t / (1.0 - t)
    tail, slope = np.empty_like(t), np.empty_like(t)
    for i, r in enumerate(ratio):
        log_phi = log_ndtr(z + r)
        # 1 - Phi^(V-1) by expm1, exact to rounding also where it is tiny, near t = 1.
        tail[i] = np.sum(np.exp(log_weight) * -np.expm1((vocab_size - 1) * log_phi))
        log_density = -0.5 * (z + r) ** 2 - 0.5 * np.log(2 * np.pi)
        # d/dr of E[Phi^(V-1)] is (V - 1) E[Phi^(V-2) phi]; the factors V/(V - 1) and
        # dr/dt = 1/(1 - t)^2 come below.
        slope[i] = np.sum(np.exp(log_weight + log_density + (vocab_size - 2) * log_phi))
    tail *= vocab_size / (vocab_size - 1)
    tail[0] = 1.0
    return tail, slope * vocab_size / (1.0 - t) ** 2


def _cubic(clock: Clock, piece: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Normalised Hermite cubic of a piece at x in [0, 1], from 0 to 1, and its slope in x."""
    a, b = clock.left[piece], clock.right[piece]
    # The cubic with values 0, 1 and slopes a, b at the ends; the line where a = b = 1.
    c2, c3 = 3.0 - 2.0 * a - b, a + b - 2.0
    return x * (a + x * (c2 + x * c3)), a + x * (2.0 * c2 + 3.0 * x * c3)


def _piece(knots: jax.Array, value: jax.Array) -> jax.Array:
    return jnp.clip(jnp.searchsorted(knots, value, side="right") - 1, 0, knots.shape[0] - 2)


def within(t: Times, low: Times | float, high: Times | float) -> Times:
    """Clips t to [low, high] with the derivative of t.

    At its ends the derivative of a clip is a half, or 0 by rounding, and flow maps start and end
    there.
    """
    clipped, still = jax.lax.stop_gradient((jnp.clip(t, low, high), t))
    return clipped + (t - still)


def t_to_tau(clock: Clock, t: Times) -> Times:
    """Computes tau(t), any shape, float32; t is clipped to [0, 1]; differentiable in t."""
    t = within(jnp.asarray(t, jnp.float32), 0.0, 1.0)
    piece = _piece(clock.t, jax.lax.stop_gradient(t))
    x = (t - clock.t[piece]) / clock.d_t[piece]
    return clock.tau[piece] + clock.d_tau[piece] * _cubic(clock, piece, x)[0]


@jax.custom_jvp
def tau_to_t(clock: Clock, tau: Times) -> Times:
    """Computes t(tau), the inverse of t_to_tau, any shape, float32; tau is clipped to [0, 1].

    The cubic of the piece is solved by safeguarded Newton steps. The derivative is 1 / (dtau/dt),
    so that forward-mode differentiation through the clock is exact; the tables are constants.
    """
    return _solve(clock, tau)[0]


def _solve(clock: Clock, tau: Times) -> tuple[Times, Times]:
    tau = jnp.clip(jnp.asarray(tau, jnp.float32), 0.0, 1.0)
    piece = _piece(clock.tau, tau)
    goal = (tau - clock.tau[piece]) / clock.d_tau[piece]
    x = goal
    for _ in range(_NEWTON_STEPS):
        value, slope = _cubic(clock, piece, x)
        # The floor of the slope and the clip keep the step finite where the curve is flat.
        x = jnp.clip(x - (value - goal) / jnp.maximum(slope, 1e-3), 0.0, 1.0)
    slope = _cubic(clock, piece, x)[1]
    t = clock.t[piece] + clock.d_t[piece] * x
    return t, clock.d_t[piece] / (clock.d_tau[piece] * jnp.maximum(slope, 1e-3))


@tau_to_t.defjvp
def _tau_to_t_jvp(primals, tangents):
    t, slope = _solve(*primals)
    return t, slope * tangents[1]


# (V, D) -> the clock of a vocabulary of V tokens that is embedded in R^D.
CLOCKS: dict[str, Callable[[int, int], Clock]] = {
    "decoding": lambda vocab_size, dim: decoding_clock(vocab_size),
    "embedded": decoding_clock,
    "identity": lambda vocab_size, dim: identity_clock(),
}
