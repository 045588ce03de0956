"""Euler, Heun and adaptive steps on every path, chosen by configuration alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp

from flm_jax.build.flow import make_flow
from flm_jax.config.check import check
from flm_jax.config.schema import base_config
from flm_jax.samplers.adaptive import bogacki_shampine_step
from flm_jax.samplers.heun import heun_step

D, VOCAB, END = 3, 11, 0.8
WEIGHTS = np.random.default_rng(0).normal(size=(D, D)) / 2
ANCHOR = np.array([[[0.5, -0.3, 0.8]]])
PATHS = [
    ("denoising", "linear", {}),
    ("denoising", "linear", {"noise": "unit", "clock": "learnt"}),
    ("denoising", "variance_preserving", {}),
    ("masked_flow", "masked_bridge", {"redraw": False}),
    ("alignment", "mask_anchored", {}),
]


def denoised(y, t):
    """A smooth estimate of clean data; any will do for the order of a solver."""
    return jnp.tanh(y @ WEIGHTS) + jnp.sin(3.0 * jnp.broadcast_to(t, y.shape[:1]))[:, None, None]


def flow_of(objective, name, changes):
    config = base_config(objective=objective, flow=name)
    config.flow.update(changes)
    return make_flow(check(config), VOCAB)


def euler(path, denoise, first, y, s, t, anchor):
    return path.step(y, first, s, t, anchor=anchor)


def heun(path, denoise, first, y, s, t, anchor):
    return heun_step(path, denoise, first, y, s, t, anchor)[0]


def third(path, denoise, first, y, s, t, anchor):
    return bogacki_shampine_step(path, denoise, first, y, s, t, anchor)[0]


def walked(flow, step, steps, y):
    """The state at END by equal steps in what the network is told."""
    ends = flow.tau(jnp.asarray([0.0, END], jnp.float64))
    times = flow.t(jnp.linspace(ends[0], ends[1], steps + 1)).astype(jnp.float64)
    times = times.at[-1].set(END)

    def body(y, now):
        s, t = (jnp.full(y.shape[0], time) for time in now)
        return step(flow.path, denoised, denoised(y, s), y, s, t, jnp.asarray(ANCHOR)), None

    return jax.lax.scan(body, y, (times[:-1], times[1:]))[0]


def exact(flow, y):
    """The same by a solver of high order on the path's velocity."""
    anchor = jnp.asarray(ANCHOR)

    @jax.jit
    def velocity(t, flat):
        state = flat.reshape(y.shape)
        time = jnp.full(y.shape[0], t)
        return flow.path.velocity(state, denoised(state, time), time, anchor).ravel()

    start = float(flow.t(jnp.zeros(())))
    found = solve_ivp(velocity, (start, END), np.ravel(y), method="DOP853", rtol=1e-11, atol=1e-12)
    return found.y[:, -1].reshape(y.shape)


@pytest.mark.parametrize("objective, name, changes", PATHS)
def test_orders_of_convergence(objective, name, changes):
    with jax.enable_x64(True):
        flow = flow_of(objective, name, changes)
        y = jax.random.normal(jax.random.key(1), (2, 4, D), jnp.float64)
        want = exact(flow, y)
        for order, step in ((1, euler), (2, heun), (3, third)):
            errors = [np.abs(walked(flow, step, steps, y) - want).max() for steps in (64, 128)]
            coarse, fine = errors
            assert np.log2(coarse / fine) > order - 0.3, (order, coarse, fine)
            assert fine < (2e-2, 1e-3, 1e-4)[order - 1]
