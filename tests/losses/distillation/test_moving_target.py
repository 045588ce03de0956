"""Losses to a moving target: projections, tiles and meshes, gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flm_jax.denoiser import tiled
from flm_jax.losses.distillation.moving_target import TargetConfig, loss_to_target, project
from helpers.heads import head_network, parallel, readout


def sorted_projection(z):
    """Projection of the rows of z onto the simplex, by sorting (arXiv 1602.02068)."""
    ordered = -np.sort(-z, axis=-1)
    sums = np.cumsum(ordered, axis=-1) - 1
    ranks = np.arange(1, z.shape[-1] + 1)
    size = (ordered - sums / ranks > 0).sum(-1, keepdims=True)
    lift = np.take_along_axis(sums, size - 1, axis=-1) / size
    return np.maximum(z - lift, 0)


@pytest.mark.parametrize("scale", [1e-3, 0.3, 30.0])
def test_projections(scale):
    """Against sorting, and entmax's own optimality condition; vectors of 2000, within 1e-6."""
    z = scale * np.random.default_rng(0).standard_normal((6, 2000))
    z[0] = 0.0
    nearest, entmax, clipped = (
        np.asarray(project(jnp.asarray(z, jnp.float32), name))
        for name in ("sparsemax", "entmax15", "clip")
    )
    np.testing.assert_allclose(nearest, sorted_projection(z), rtol=0, atol=1e-6)
    for row, p in zip(z, entmax):
        assert abs(p.sum() - 1) < 1e-5
        lift = (row / 2 - np.sqrt(p))[p > 0]
        assert np.ptp(lift) < 1e-4 * max(scale, 1e-2)
        assert (row[p == 0] / 2 <= lift.min() + 1e-4 * scale).all()
    assert (np.nan_to_num(clipped) >= 0).all()
    np.testing.assert_allclose(clipped[1:].sum(-1), 1.0, rtol=1e-5)
    inside = np.asarray([[0.2, 0.5, 0.3]], np.float32)
    for name in ("sparsemax", "clip", "none"):
        np.testing.assert_allclose(project(jnp.asarray(inside), name), inside, atol=1e-7)


def moving_problem(net, form, projection):
    """(function of the student's readout, that readout) with a target that moves."""
    out, now, delta = (readout(seed) for seed in (1, 2, 3))
    rng = np.random.default_rng(6)
    shape = out.features.shape
    tangent = jnp.asarray(rng.standard_normal(shape), jnp.float32)
    share, rate = (jnp.asarray(rng.random(shape[0]), jnp.float32) for _ in range(2))
    weights = jnp.asarray(rng.random(shape[:2]), jnp.float32)

    def loss(out):
        if form == "rate":
            plan = tiled.Plan(net.loss_tile, net.logit_softcap, net.parallel)
            norm = tiled.squared_rate(plan, out.features, tangent, (out.kernel, out.bias))
            return jnp.sum(weights * norm), norm
        cfg = TargetConfig(form, projection)
        return loss_to_target(out, now, (delta, tangent), (share, rate), weights, net=net, cfg=cfg)

    return loss, out


KINDS = [("ce", "sparsemax"), ("ce", "entmax15"), ("ce", "clip"), ("mse", "none"), ("rate", "")]


@pytest.mark.parametrize("form, projection", [KINDS[0], *KINDS[3:]])
def test_tiles_and_meshes_change_nothing(form, projection):
    """Tiles that do not divide L; 2 x 4 devices over rows and vocabulary: within 1e-5."""
    nets = [head_network()]
    nets += [head_network(loss_tile=4), head_network(loss_tile=4, parallel=parallel("data-tensor"))]
    results = []
    for net in nets:
        loss, out = moving_problem(net, form, projection)
        results.append(jax.jit(jax.value_and_grad(loss, has_aux=True))(out))
    for got in results[1:]:
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(results[0]), strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * float(jnp.abs(b).max()))


@pytest.mark.parametrize("form, projection", KINDS[:4])
def test_gradient_against_the_plain_loss(form, projection):
    """The losses written out over all logits, differentiated by JAX: within 1e-5."""
    net = head_network()
    loss, out = moving_problem(net, form, projection)
    now, delta = readout(2), readout(3)
    rng = np.random.default_rng(6)
    tangent = jnp.asarray(rng.standard_normal(out.features.shape), jnp.float32)
    share, rate = (jnp.asarray(rng.random(8), jnp.float32)[:, None, None] for _ in range(2))
    weights = jnp.asarray(rng.random(out.features.shape[:2]), jnp.float32)
    soften = lambda q: jax.nn.softmax(
        tiled.head_logits(q.features, (q.kernel, q.bias), net.logit_softcap)
    )
    moved = lambda h: soften(delta._replace(features=delta.features + h * tangent))
    d_delta = jax.jvp(moved, (0.0,), (1.0,))[1]
    q = project(share * soften(now) + (1 - share) * soften(delta) + rate * d_delta, projection)

    def plain(out):
        p = soften(out)
        each = jnp.square(p - q) if form == "mse" else -q * jnp.log(p)
        return jnp.sum(weights * each.sum(-1))

    got, want = jax.grad(lambda o: loss(o)[0])(out), jax.grad(plain)(out)
    np.testing.assert_allclose(loss(out)[0], plain(out), rtol=1e-5)
    for a, b in zip(got, want):
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-5 * float(jnp.abs(b).max()))
