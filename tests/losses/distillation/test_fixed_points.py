"""Every route on a flow whose two-time denoiser is known: its gradient vanishes there alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flm_jax.core.network import Network
from flm_jax.denoiser.forward import forward
from flm_jax.denoiser.head import embed_probs, probabilities
from flm_jax.flows.clocks import decoding_clock
from flm_jax.flows.flow import onehot_flow
from flm_jax.losses.distillation.base import Pairs, diagonal_loss_at
from flm_jax.losses.distillation.endpoint import endpoint_loss_at
from flm_jax.losses.distillation.eulerian import eulerian_loss_at
from flm_jax.losses.distillation.lagrangian import lagrangian_loss_at
from flm_jax.losses.distillation.moving_target import TargetConfig
from flm_jax.losses.distillation.semigroup import semigroup_loss_at, split_times
from helpers.routes import FIRST, SIGN, random_pairs, smooth_network

LENGTH = 3


def true_mean(x, s, t, steps=24):
    """2 w - 1 [B] of delta_st(x) = w x^1 + (1-w) x^2."""
    start, end = s / (1 - s), t / (1 - t)
    span = (end - start) / steps
    speed = lambda b, r: LENGTH * jnp.tanh(r * b / 2)

    def step(carry, i):
        b, total = carry
        r = start + i * span
        k1 = speed(b, r)
        k2 = speed(b + span / 2 * k1, r + span / 2)
        k3 = speed(b + span / 2 * k2, r + span / 2)
        k4 = speed(b + span * k3, r + span)
        mean = (k1 + 2 * k2 + 2 * k3 + k4) / 6
        return (b + span * mean, total + mean), None

    b = jnp.einsum("blv,lv->b", x, SIGN) / (1 - s)
    (_, total), _ = jax.lax.scan(step, (b, jnp.zeros_like(b)), jnp.arange(steps, dtype=b.dtype))
    return total / (steps * LENGTH)


def solvable(flow, scale, constant=False):
    """The true network plus params["wrong"] in its logits, seen through the table scale * I.

    With `constant` the flow towards a fixed distribution, of which delta_st is that for all s, t.
    """

    def features(p, y, tau_s, tau_t, *, key=None):
        s, t = flow.t(tau_s), flow.t(tau_t)
        m = jnp.full_like(s, 0.4) if constant else true_mean(y / scale, s, t)
        off, in_t, in_y = (p["wrong"][i] for i in range(3))
        z = jnp.arctanh(m) + off + in_t * (t - 0.5 * s)
        return (z[:, None] + in_y * y[:, :, 0] / scale)[..., None] * SIGN[None]

    return Network(
        lambda key: None,
        features,
        lambda p: (jnp.eye(2), p["bias"]),
        lambda p: scale * jnp.eye(2),
        2,
        2,
        LENGTH,
        two_time=True,
    )


RIGHT = {"wrong": jnp.zeros(3), "bias": jnp.zeros(2)}
WRONG = {"wrong": jnp.asarray([0.2, -0.3, 0.1]), "bias": jnp.asarray([0.1, -0.1])}


def solvable_loss(route, form, projection, with_teacher, constant=False):
    """params -> loss of one route over 16 noisy states of the solvable flow."""
    flow = onehot_flow(decoding_clock(2))
    net, tutor = solvable(flow, 1.0, constant), solvable(flow, 2.0, constant)
    rng = np.random.default_rng(4)
    rows = 16
    tau = np.sort(rng.uniform(0.05, 0.5, (2, rows)), axis=0).astype(np.float32)
    tau_s, tau_t = jnp.asarray(tau)
    s, t = flow.t(tau_s), flow.t(tau_t)
    clean = jnp.where(rng.random((rows, 1, 1)) < 0.5, SIGN[None], -SIGN[None])
    noise = jnp.asarray(rng.standard_normal((rows, LENGTH, 2)), jnp.float32)
    x = s[:, None, None] * (1 + clean) / 2 + (1 - s)[:, None, None] * noise
    weights = jnp.asarray(rng.random((rows, LENGTH)), jnp.float32) / rows
    pairs = Pairs((x, 2.0 * x if with_teacher else None), tau_s, tau_t, s, t, weights)
    settings = {"net": net, "flow": flow, "teacher": (tutor, RIGHT) if with_teacher else None}
    cfg = TargetConfig(form, projection)

    def loss(params):
        if route == "semigroup":
            tau_u = split_times(jax.random.key(0), flow, tau_s, tau_t, "uniform")
            times = (s, flow.t(tau_u), t)
            taus = (tau_s, tau_u, tau_t)
            how = {"net": net, "flow": flow, "form": form}
            return semigroup_loss_at(params, params, x, taus, times, weights, **how)[0]
        if route == "endpoint":
            return endpoint_loss_at(params, params, pairs, **settings)[0]
        if route == "lagrangian":
            return lagrangian_loss_at(params, params, pairs, cfg=cfg, **settings)[0]
        return eulerian_loss_at(params, params, pairs, cfg=cfg, bound=3.0, **settings)[0]

    return loss


def sizes(gradient):
    return {name: float(jnp.abs(g).max()) for name, g in gradient.items()}


@pytest.mark.parametrize(
    "route, form, projection, with_teacher",
    [
        ("semigroup", "ce", "none", False),  # asks the teacher on the diagonal alone
        ("semigroup", "mse", "none", False),
        ("lagrangian", "ce", "sparsemax", False),
        ("lagrangian", "mse", "none", True),
        ("lagrangian", "ce", "sparsemax", True),
        ("eulerian", "mse", "none", False),
        ("eulerian", "mse", "none", True),
    ],
)
def test_the_true_flow_map_is_stationary(route, form, projection, with_teacher):
    """Gradient below 2e-5 there, above 1e-3 in each parameter where it is perturbed."""
    gradient = jax.jit(jax.grad(solvable_loss(route, form, projection, with_teacher)))
    right, wrong = sizes(gradient(RIGHT)), sizes(gradient(WRONG))
    assert max(right.values()) < 2e-5, right
    assert min(wrong.values()) > 1e-3, wrong


@pytest.mark.parametrize("with_teacher", [False, True], ids=["self", "teacher"])
def test_endpoint_consistency_is_a_bound(with_teacher):
    """Stationary where the true delta_st does not change with t; elsewhere it is not, by design."""
    still = jax.jit(jax.grad(solvable_loss("endpoint", "ce", "none", with_teacher, constant=True)))
    assert max(sizes(still(RIGHT)).values()) < 2e-5
    assert min(sizes(still(WRONG)).values()) > 1e-3
    moving = jax.jit(jax.grad(solvable_loss("endpoint", "ce", "none", with_teacher)))
    assert max(sizes(moving(RIGHT)).values()) > 1e-3


def test_endpoint_consistency_against_the_plain_formula():
    """Values and gradients of both terms, written over all probabilities: within 1e-4."""
    flow = onehot_flow(decoding_clock(7))
    net, params = smooth_network()
    pairs = random_pairs(flow)
    (y, _), tau_s, tau_t = pairs.views, pairs.tau_s, pairs.tau_t
    slope = flow.slope(pairs.t)
    fixed = jax.tree.map(jnp.copy, params)

    def plain(params):
        probs = lambda tau_t: probabilities(forward(net, params, y, tau_s, tau_t), net)
        p, rate = jax.jvp(probs, (tau_t,), (slope,))
        landed = flow.path.step(y, embed_probs(p, fixed["table"]), pairs.s, pairs.t)
        q = probabilities(forward(net, fixed, jax.lax.stop_gradient(landed), tau_t, tau_t), net)
        factor = (flow.path.weights(pairs.s, pairs.t).clean ** 2)[:, None]
        each = factor * jnp.sum(rate**2, -1) - jnp.sum(jax.lax.stop_gradient(q) * jnp.log(p), -1)
        return jnp.sum(pairs.weights * each)

    def loss(params):
        return endpoint_loss_at(params, fixed, pairs, net=net, flow=flow)[0]

    got, want = (jax.jit(jax.value_and_grad(f))(params) for f in (loss, plain))
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-4 * float(jnp.abs(b).max()))


def test_the_diagonal_is_stationary_at_the_denoiser():
    """From a teacher row by row; from data in the mean over the posterior of each state."""
    flow = onehot_flow(decoding_clock(2))
    net, tutor = solvable(flow, 1.0), solvable(flow, 2.0)
    tau = jnp.asarray([0.1, 0.3, 0.5])
    t = flow.t(tau)
    x = jnp.asarray(np.random.default_rng(5).standard_normal((3, LENGTH, 2)), jnp.float32)
    w = (1 + true_mean(x, t, t)) / 2
    tokens = jnp.broadcast_to(FIRST, (3, LENGTH))
    ones = jnp.ones((3, LENGTH))

    def data(params):
        loss = lambda tokens, w: diagonal_loss_at(
            params, (x, None), tau, tokens, w[:, None] * ones, net=net, teacher=None
        )[0]
        return loss(tokens, w) + loss(1 - tokens, 1 - w)

    def taught(params):
        views, teacher = (x, 2.0 * x), (tutor, RIGHT)
        return diagonal_loss_at(params, views, tau, tokens, ones, net=net, teacher=teacher)[0]

    for loss in (data, taught):
        assert max(sizes(jax.grad(loss)(RIGHT)).values()) < 2e-5
        assert min(sizes(jax.grad(loss)(WRONG)).values()) > 1e-3
