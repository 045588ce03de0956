"""The two stages of the two-network distillation, against their formulas in the one-hot space."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flm_jax.denoiser.forward import forward
from flm_jax.denoiser.head import Readout, probabilities
from flm_jax.denoiser.tile_plan import plan_of
from flm_jax.flows.clocks import decoding_clock
from flm_jax.flows.flow import onehot_flow
from flm_jax.losses.distillation.base import Pairs
from flm_jax.losses.distillation.two_networks import (
    RESIDUAL,
    Term,
    merge_loss_at,
    residual_loss_at,
    squared_norm,
    two_tables,
)
from helpers.heads import head_network, parallel, readout
from helpers.routes import B, L, V, random_pairs, smooth_network

FLOW = onehot_flow(decoding_clock(V))
NET, PARAMS = smooth_network()
WEIGHTS = jnp.asarray(np.random.default_rng(0).random((B, L)), jnp.float32)


def _other(seed):
    """Parameters of another network of the same form."""
    keys = iter(jax.random.split(jax.random.key(seed), len(PARAMS)))
    draw = lambda x: (x + 0.5 * jax.random.normal(next(keys), x.shape)).astype(jnp.float32)
    return jax.tree.map(draw, PARAMS)


TEACHER, OWN, STUDENT = map(_other, range(3))


def _onehot_states():
    """States in R^V with pairs of times, t = 1 among them, and the u between."""
    pairs = random_pairs(FLOW)
    tau_s, tau_t = pairs.tau_s.at[0].set(0.0), pairs.tau_t.at[0].set(1.0)
    tau_u = 0.5 * (tau_s + tau_t)
    x = jax.random.normal(jax.random.key(5), (B, L, V))
    return x, (tau_s, tau_u, tau_t), tuple(map(FLOW.t, (tau_s, tau_u, tau_t)))


def _denoised(net, params, x, tau_s, tau_t):
    return probabilities(forward(net, params, x @ params["table"], tau_s, tau_t), net)


def _residual(net, params, x, tau_s, tau_t):
    """g in R^V: features times what its head has beyond the flow's."""
    out = forward(net, params, x @ params["table"], tau_s, tau_t)
    kernel, bias = out.kernel - TEACHER["kernel"], out.bias - TEACHER["bias"]
    return out.features @ kernel + bias[None, None]


def _dense_residual(net, params):
    """The published target and answer, with the state x in R^V and all velocities."""
    fixed = jax.lax.stop_gradient(params)
    x, (tau_s, tau_u, tau_t), times = _onehot_states()
    s, u, t = (value[:, None, None] for value in times)
    d_s = _denoised(net, TEACHER, x, tau_s, tau_s)
    v_s, g_su = (d_s - x) / (1 - s), _residual(net, fixed, x, tau_s, tau_u)
    v_su = v_s + (u - s) / 2 * g_su
    moved = x + (u - s) * v_s + (u - s) ** 2 / 2 * g_su
    v_u = (_denoised(net, TEACHER, moved, tau_u, tau_u) - moved) / (1 - u)
    v_ut = v_u + (t - u) / 2 * _residual(net, fixed, moved, tau_u, tau_t)
    mean = ((u - s) * v_su + (t - u) * v_ut) / (t - s)
    target = jax.lax.stop_gradient(x + (1 - s) * mean)
    answer = d_s + (t - s) * (1 - s) / 2 * _residual(net, params, x, tau_s, tau_t)
    values = jnp.sum((target - answer) ** 2, axis=-1)
    return jnp.sum(WEIGHTS * values), values


def _dense_merge(net, params):
    x, (tau_s, _, tau_t), times = _onehot_states()
    s, _, t = (value[:, None, None] for value in times)
    velocity = (_denoised(net, TEACHER, x, tau_s, tau_s) - x) / (1 - s)
    end = x + (t - s) * velocity + (t - s) ** 2 / 2 * _residual(net, OWN, x, tau_s, tau_t)
    own = x + (t - s) * (_denoised(net, params, x, tau_s, tau_t) - x) / (1 - s)
    values = jnp.sum((jax.lax.stop_gradient(end) - own) ** 2, axis=-1)
    return jnp.sum(WEIGHTS * values), values


def _first(net, params):
    x, (tau_s, tau_u, tau_t), (s, u, t) = _onehot_states()
    views = (x @ params["table"], x @ TEACHER["table"])
    pairs = Pairs(views, tau_s, tau_t, s, t, WEIGHTS)
    how = {"net": net, "flow": FLOW, "teacher": (net, TEACHER)}
    return residual_loss_at(params, params, pairs, tau_u, u, **how)


def _second(net, params):
    x, (tau_s, _, tau_t), (s, _, t) = _onehot_states()
    teacher = (two_tables(net, net), TEACHER | {RESIDUAL: OWN})
    views = (x @ params["table"], x @ teacher[0].table(teacher[1]))
    pairs = Pairs(views, tau_s, tau_t, s, t, WEIGHTS)
    return merge_loss_at(params, params, pairs, net=net, flow=FLOW, teacher=teacher)


@pytest.mark.parametrize("stage", ["first", "second"])
def test_losses_and_gradients_are_the_published_ones(stage):
    net = dataclasses.replace(NET, loss_tile=3)
    ours, dense = (_first, _dense_residual) if stage == "first" else (_second, _dense_merge)
    of = lambda loss: jax.jit(jax.value_and_grad(lambda p: loss(net, p), has_aux=True))(STUDENT)
    (loss, values), grads = of(ours)
    (want, wanted), slopes = of(dense)
    np.testing.assert_allclose(values, wanted, rtol=2e-4, atol=1e-5)
    np.testing.assert_allclose(loss, want, rtol=1e-4)
    for name in slopes:
        np.testing.assert_allclose(grads[name], slopes[name], rtol=2e-3, atol=2e-4, err_msg=name)


@pytest.mark.parametrize("columns", [0, 80])
def test_tiles_and_meshes_change_nothing(columns):
    """Tiles that do not divide L; 2 x 4 devices over rows and vocabulary; rows that fill it up."""
    outs = [readout(seed) for seed in (1, 2)]
    weights = jnp.asarray(np.random.default_rng(3).standard_normal((2, 8, 10)), jnp.float32)

    def norm(net, outs=outs):
        def loss(outs):
            terms = [Term(weights[0], outs[0], 3.0), Term(weights[1], outs[1], None)]
            values = squared_norm(plan_of(net), terms)
            return jnp.sum(values), values

        return jax.jit(jax.value_and_grad(loss, has_aux=True))(outs)

    whole = head_network(tokens=columns)
    mesh = dataclasses.replace(whole, loss_tile=4, parallel=parallel("data-tensor"))
    first = norm(whole)
    for net in (dataclasses.replace(whole, loss_tile=4), mesh):
        for a, b in zip(jax.tree.leaves(norm(net)), jax.tree.leaves(first), strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * float(jnp.abs(b).max()))
    if columns:
        assert not np.any(first[1][1].kernel[:, columns:])
        cut = [Readout(h, k[:, :columns], b[:columns]) for h, k, b in outs]
        alone = norm(head_network(), cut)
        np.testing.assert_allclose(first[0][1], alone[0][1], rtol=1e-5)
