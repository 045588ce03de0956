"""Solvers of a flow's ODE on one that is solved independently, and the network calls they make."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp

from flm_jax.flows.interpolants.linear import Linear
from flm_jax.samplers import adaptive, euler
from flm_jax.samplers.base import nothing_given
from flm_jax.samplers.guidance import plain
from flm_jax.samplers.heun import heun, heun_step
from helpers.networks import SEQUENCES, exact_network

KEY = jax.random.key(4)
CLEAN = np.eye(5)[np.array(SEQUENCES)]  # [2, L, V]


def denoised(y, t):
    """The exact D_t(y) of two equally likely sequences, in the one-hot space; t is [B]."""
    scores = jnp.einsum("blv,klv->bk", y, CLEAN) * (t / (1 - t) ** 2)[:, None]
    return jnp.einsum("bk,klv->blv", jax.nn.softmax(scores, axis=-1), CLEAN)


def solved(y_0, end):
    """y at time `end` by SciPy, of order 8 in t, for each row."""

    def slope(t, y):
        y = y.reshape(CLEAN[0].shape)
        scores = np.einsum("lv,klv->k", y, CLEAN) * t / (1 - t) ** 2
        p = np.exp(scores - np.logaddexp(*scores))
        return ((np.einsum("k,klv->lv", p, CLEAN) - y) / (1 - t)).ravel()

    exact = {"method": "DOP853", "rtol": 1e-11, "atol": 1e-11}
    ends = [solve_ivp(slope, (0, end), row.ravel(), **exact).y[:, -1] for row in y_0]
    return np.stack(ends).reshape(y_0.shape)


def carried(method, y, end, steps):
    """`steps` equal steps in t from 0 to `end`."""

    def step(k, carry):
        y, first = carry
        s, t = (jnp.full(len(y), end * (k + i) / steps) for i in (0, 1))
        if method == "euler":
            return Linear().step(y, denoised(y, s), s, t), first
        if method == "heun":
            return heun_step(Linear(), denoised, denoised(y, s), y, s, t)
        return adaptive.bogacki_shampine_step(Linear(), denoised, first, y, s, t)[:2]

    return jax.lax.fori_loop(0, steps, step, (y, denoised(y, jnp.zeros(len(y)))))[0]


@pytest.mark.parametrize("method, order", [("euler", 1), ("heun", 2), ("bogacki_shampine", 3)])
def test_order_of_convergence(method, order):
    """Halving the steps divides the error by 2^order (within 0.15 of the order)."""
    with jax.enable_x64(True):
        y_0 = jnp.asarray(np.random.default_rng(0).standard_normal((4, 3, 5)))
        want = solved(np.asarray(y_0), 0.5)
        run = jax.jit(carried, static_argnums=0)
        errors = [np.abs(run(method, y_0, 0.5, k) - want).max() for k in (16, 32)]
    assert abs(np.log2(errors[0] / errors[1]) - order) < 0.15
    assert errors[1] < 0.02


def counting(net):
    """A network that counts how often it runs."""
    calls = []

    def features(*args, **kwargs):
        jax.debug.callback(lambda: calls.append(1))
        return net.features(*args, **kwargs)

    return net.__class__(**{**vars(net), "features": features}), calls


@pytest.mark.parametrize("steps", [1, 2, 3, 6])
def test_heun_makes_as_many_calls_as_asked_for(steps):
    """Each is read out; with one or two calls it is Euler's method."""
    net, flow = exact_network()
    net, calls = counting(net)
    denoiser = plain(net, {}, flow, nothing_given(8, 3))
    y_0 = denoiser.noise(KEY)
    how = {"flow": flow, "steps": steps}
    got = jax.jit(lambda y: heun(KEY, y, denoiser, **how))(y_0)
    jax.effects_barrier()
    assert len(calls) == steps == len(got.steps_tokens) and got.calls is None
    if steps <= 2:
        want = jax.jit(lambda y: euler.carry(KEY, y, denoiser, **how))(y_0)
        np.testing.assert_array_equal(got.steps_confidence, want.steps_confidence)


def test_heun_written_out():
    """Five calls: two intervals of two, and a last one; confidences within 1e-5."""
    net, flow = exact_network()
    denoiser = plain(net, {}, flow, nothing_given(8, 3))
    y_0 = denoiser.noise(KEY)
    got = jax.jit(lambda y: heun(KEY, y, denoiser, flow=flow, steps=5))(y_0)
    t = np.asarray(flow.t(jnp.asarray([0.0, 1 / 3, 2 / 3])))
    w, z, want = t / (1 - t), y_0, []
    ask = lambda z, i: denoised(z * (1 - t[i]), jnp.full(8, t[i]))
    for k in range(2):
        first = ask(z, k)
        second = ask(z + (w[k + 1] - w[k]) * first, k + 1)
        z, want = z + (w[k + 1] - w[k]) * (first + second) / 2, [*want, first, second]
    want = jnp.stack([*want, ask(z, 2)])
    np.testing.assert_allclose(got.steps_confidence, want.max(-1), rtol=0, atol=1e-5)


@functools.lru_cache
def adaptive_end(tolerance, most):
    """States and times where the adaptive solver ends, its calls, and the true states there."""
    net, flow = exact_network()
    given = nothing_given(6, 3)
    denoiser = plain(net, {}, flow, given)
    y_0 = denoiser.noise(KEY)
    how = {"flow": flow, "given": given, "tolerance": tolerance, "most": most}
    end = jax.jit(lambda y: adaptive.advance(KEY, y, denoiser, **how))(y_0)
    t = np.asarray(flow.t(end.tau))
    want = [solved(np.asarray(y)[None], float(time))[0] for y, time in zip(y_0, t)]
    error = np.sqrt(np.sum((np.asarray(end.y) - want) ** 2, axis=-1)).max()
    return end, error


def test_adaptive_steps_meet_their_tolerance():
    """Errors at the end stay within 4 times that of a step, as those of all steps add up.

    A hundredth of it takes more calls (order 3: 4.6 times as many).
    """
    calls = []
    for tolerance in (1e-2, 1e-4):
        end, error = adaptive_end(tolerance, 10_000)
        assert (end.tau == jnp.float32(0.999)).all()
        assert error < 4 * tolerance
        calls.append(int(end.calls))
    assert 2 * calls[0] < calls[1] < 6 * calls[0]


def test_adaptive_steps_end_with_the_calls():
    end, error = adaptive_end(1e-4, 20)
    assert int(end.calls) == 19  # 1, and 3 for each step
    assert (end.tau < 0.999).all() and (end.tau > 0).all()
    assert error < 4e-4


@pytest.mark.parametrize("steps, bound", [(500, 100), (11, 11)])
def test_adaptive_calls_are_those_made(steps, bound):
    net, flow = exact_network()
    net, calls = counting(net)
    given = nothing_given(2000, 3)
    denoiser = plain(net, {}, flow, given)
    how = {"flow": flow, "steps": steps, "given": given, "tolerance": 1e-2}
    got = jax.jit(lambda key: adaptive.adaptive(key, denoiser.noise(key), denoiser, **how))(KEY)
    jax.effects_barrier()
    assert int(got.calls) == len(calls) <= bound
    right = [(np.asarray(got.tokens) == s).all(axis=1) for s in SEQUENCES]
    if steps == 500:
        assert (right[0] | right[1]).all()
        assert abs(right[0].mean() - 0.5) < 0.045  # 4 standard errors
