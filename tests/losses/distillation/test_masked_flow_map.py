"""Distillation of masked flows, where the flow map of the bridge's ODE is known."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flm_jax.denoiser.head import Readout, probabilities
from flm_jax.flows.time_sampling import Rows
from flm_jax.losses.base import Frozen
from flm_jax.losses.distillation.base import Pairs
from flm_jax.losses.distillation.masked_flow_map import (
    MaskedMapConfig,
    guided_cross_entropy,
    guided_denoiser,
    masked_map_loss,
)
from flm_jax.losses.distillation.moving_target import project
from helpers.bridge_map import (
    ANCHOR,
    LENGTH,
    PATH,
    RIGHT,
    TABLE,
    WRONG,
    bridge_flow,
    exact_map,
    transported,
)

FLOW = bridge_flow()
ROWS = 16
BATCH = {
    "tokens": jnp.asarray(np.random.default_rng(0).integers(0, 2, (ROWS, LENGTH))),
    "mask": jnp.ones((ROWS, LENGTH)),
    "prompt": jnp.broadcast_to(jnp.arange(LENGTH) == 0, (ROWS, LENGTH)),
}


def loss_of(route, first, **more):
    """params -> loss of a batch with a clean first position, by the exact masked flow."""
    net, teacher = exact_map(first), exact_map(first, two_time=False)
    cfg = MaskedMapConfig(route=route, hide_special=True, whole=1.0, **more)
    how = {"net": net, "flow": FLOW, "cfg": cfg, "teacher": teacher}
    frozen = Frozen(RIGHT, RIGHT, FLOW.times._now)
    key, rows = jax.random.key(3), Rows(0, ROWS)
    return lambda params: masked_map_loss(params, frozen, BATCH, key, rows, **how)[0]


def sizes(gradient):
    return {name: float(jnp.abs(g).max()) for name, g in gradient.items()}


@pytest.mark.parametrize(
    "route, first, more",
    [
        ("semigroup", 0.7, {"diagonal": 0.0}),
        ("semigroup", 0.7, {"diagonal": 0.0, "split": "uniform", "ema_target": True}),
        ("semigroup", 0.7, {"diagonal": 1.0}),
        # Endpoint consistency is exact where delta_st does not change with t.
        ("endpoint", None, {"diagonal": 0.0}),
    ],
)
def test_the_map_of_the_bridges_ode_is_stationary(route, first, more):
    """Gradient below 1e-5 there, above 1e-3 in each parameter where it is perturbed."""
    gradient = jax.jit(jax.grad(loss_of(route, first, **more)))
    right, wrong = sizes(gradient(RIGHT)), sizes(gradient(WRONG))
    assert max(right.values()) < 1e-5, right
    assert all(1e-3 < size < 1e2 for size in wrong.values()), wrong


def test_jumps_keep_quantiles_and_clean_positions():
    """X_st of the exact map is the transport, and composes; clean states stay to the bit."""
    net, rng = exact_map(), np.random.default_rng(1)
    taus = [jnp.full(4, tau) for tau in (0.0, 0.5, 0.8)]
    s, u, t = (FLOW.t(tau) for tau in taus)
    hidden = jnp.broadcast_to(jnp.arange(LENGTH) > 0, (4, LENGTH))
    xi = jnp.asarray(rng.standard_normal((4, LENGTH, 1)), jnp.float32)
    y = jnp.where(hidden[..., None], PATH.at(s, 0.0 * xi, xi, ANCHOR), TABLE[:1][None])
    pairs = Pairs((y, None), *taus[:2], s, u, hidden, hidden, net.anchor(RIGHT))

    @jax.jit
    def jump(y, taus, times):
        logits = net.features(RIGHT, y, *taus)
        return pairs.jump(FLOW, y, jax.nn.softmax(logits) @ TABLE, *times)

    once = jump(y, (taus[0], taus[2]), (s, t))
    twice = jump(jump(y, taus[:2], (s, u)), taus[1:], (u, t))
    _, b, c = PATH.coefficients(t[0])
    want = transported(xi[..., 0], PATH.odds(s)[0], PATH.odds(t)[0], 0.7)
    for got in (once, twice):
        z = ((got - b * ANCHOR) / c)[..., 0]
        np.testing.assert_allclose(z[:, 1:], want[:, 1:], atol=2e-2)
        np.testing.assert_array_equal(got[:, 0], y[:, 0])
    # Neither value nor gradient of a clean position sees a root at t = 1.
    slope = jax.jit(jax.grad(lambda y: jnp.sum(jump(y, (taus[0], taus[2]), (s, t)) ** 2)))(y)
    assert np.isfinite(slope).all()


def test_targets_are_the_guided_denoiser():
    """Values and gradient against NumPy, off the simplex too; the context alone is corrupted."""
    rng = np.random.default_rng(2)
    seen = []

    def features(p, z, s, t, *, key=None):
        seen.append(z)
        near = jnp.roll(z, 1, axis=1)  # each position reads the one before it
        return jnp.concatenate([z, 3.0 * near], axis=-1)

    net = dataclasses.replace(exact_map(two_time=False), features=features)
    tau = jnp.full(ROWS, 0.5)
    hidden = ~BATCH["prompt"]
    z = jnp.asarray(rng.standard_normal((ROWS, LENGTH, 1)), jnp.float32)
    z = jnp.where(hidden[..., None], z, TABLE[BATCH["tokens"]])
    how = (jax.random.key(0), (net, RIGHT), z, tau, BATCH["tokens"], hidden)
    parts = guided_denoiser(*how, flow=FLOW, guidance=2.0)
    np.testing.assert_array_equal(jnp.where(hidden[..., None], seen[1], z), z)
    a, b, c = (float(x) for x in PATH.coefficients(FLOW.t(tau[0])))
    away = (seen[1] - a * TABLE[BATCH["tokens"]] - b * ANCHOR)[:, 0]
    assert 0.5 < float(jnp.std(away)) / c < 1.5
    weights = jnp.asarray(rng.random((ROWS, LENGTH)), jnp.float32)
    out = Readout(
        jnp.asarray(rng.standard_normal((ROWS, LENGTH, 2)), jnp.float32), *parts[0][1][1:]
    )
    p, blurred = (np.asarray(probabilities(part, net)) for _, part in parts)
    q = np.asarray(project(jnp.asarray(3.0 * p - 2.0 * blurred), "sparsemax"))
    assert ((3.0 * p - 2.0 * blurred) < -1e-3).any() and (q >= 0.0).all()

    def plain(features):
        return -jnp.sum(weights * jnp.sum(q * jax.nn.log_softmax(features), axis=-1))

    def loss(features):
        made = out._replace(features=features)
        return guided_cross_entropy(made, parts, weights, net, "sparsemax")[0]

    for got, want in zip(*(jax.value_and_grad(f)(out.features) for f in (loss, plain))):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-6)
    assert guided_denoiser(*how, flow=FLOW, guidance=0.0)[0][1] is not None and len(seen) == 3
