"""Routes to a flow map: published numbers, derivatives, memory, refused settings."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.interpreters import partial_eval as pe

from flm_jax.build.families.flow_map import ROUTES
from flm_jax.build.families.registry import make_objective
from flm_jax.build.flow import make_flow
from flm_jax.build.model import abstract_params, make_network
from flm_jax.config.check import check
from flm_jax.config.schema import choose, settings
from flm_jax.core.errors import UserError
from flm_jax.denoiser import tiled
from flm_jax.distributed import sharding
from flm_jax.flows.clocks import decoding_clock
from flm_jax.flows.flow import onehot_flow
from flm_jax.flows.interpolants.linear import Linear
from flm_jax.flows.time_sampling import Rows
from flm_jax.losses.base import Frozen
from flm_jax.losses.distillation.base import Pairs, diagonal_loss_at
from flm_jax.losses.distillation.eulerian import derivative_along_flow, eulerian_loss_at
from flm_jax.losses.distillation.lagrangian import derivative_in_t, lagrangian_loss_at
from flm_jax.losses.distillation.moving_target import TargetConfig
from flm_jax.training.program import assemble
from helpers.goldens import (
    arrays,
    assert_close,
    assert_trees_close,
    golden_network,
    golden_states,
    gradients,
)
from helpers.networks import exact_tau
from helpers.routes import V, random_pairs, smooth_network
from helpers.runs import tiny_config

DIAGONAL, OFF_DIAGONAL = slice(0, 3), slice(3, 8)


@pytest.fixture(scope="module")
def flow():
    return onehot_flow(decoding_clock(97))


def golden_pairs(golden, tables, rows):
    """Pairs at the stored times, seen through one table or two."""
    tokens, noise = golden["x1"][rows], golden["noise"][rows]
    s, t = golden["psd_mid_s"][rows], golden["psd_mid_t"][rows]
    views = (*(golden_states(noise, s, tokens, table, "onehot") for table in tables), None)[:2]
    weights = jnp.full(tokens.shape, 1 / golden["x1"].size)
    return Pairs(views, golden["tau_s"][rows], golden["tau_t"][rows], s, t, weights)


@pytest.mark.parametrize("alpha, projection", [("2.0", "sparsemax"), ("1.5", "entmax15")])
def test_lagrangian_golden(flow, alpha, projection):
    """Losses within 2e-5 of about 4.6 nats, and the gradient of their mean."""
    golden = arrays("fmlm")
    net, params = golden_network("dit_double")
    cfg = TargetConfig("ce", projection)

    def losses(params):
        pairs = golden_pairs(golden, [params["table"]], OFF_DIAGONAL)
        loss, values = lagrangian_loss_at(params, params, pairs, net=net, flow=flow, cfg=cfg)
        pairs = golden_pairs(golden, [params["table"]], DIAGONAL)
        tokens = golden["x1"][DIAGONAL]
        diagonal, first = diagonal_loss_at(
            params, pairs.views, pairs.tau_s, tokens, pairs.weights, net=net, teacher=None
        )
        return loss + diagonal, jnp.concatenate([first, values])

    want = golden[f"lsd_entmax{alpha}_loss"]
    if alpha == "1.5":
        assert_close(jax.jit(losses)(params)[1], want)
        return
    (mean, ce), gradient = jax.jit(jax.value_and_grad(losses, has_aux=True))(params)
    assert_close(ce, want)
    assert_close(mean, want.mean())
    assert_trees_close(gradient, gradients("lsd_grads", "dit_double.safetensors"))


def test_eulerian_golden(flow):
    """With a teacher, off the diagonal and the boundary; the bound of the factor never acts."""
    golden = arrays("fmlm")
    net, params = golden_network("dit_double")
    teacher = golden_network("dit_single")
    rows = golden["idx_offdiag"]

    @jax.jit
    def losses(params):
        pairs = golden_pairs(golden, [params["table"], teacher[1]["table"]], rows)
        kinds = {"cfg": TargetConfig("mse", "none"), "bound": 1e6, "teacher": teacher}
        return eulerian_loss_at(params, params, pairs, net=net, flow=flow, **kinds)[1]

    assert_close(losses(params), golden["esd_noboundary_teacher_loss"][rows])


def test_eulerian_target_is_bounded():
    """The factor of G equals (t-s)/(1-t) where that is small, and is finite at t = 1."""
    s, t = jnp.asarray([0.0, 0.2, 0.3, 0.5]), jnp.asarray([0.2, 0.5, 1.0, 0.5])
    share, factor = Linear().eulerian_rates(s, t, 2.0)
    np.testing.assert_allclose(share, [1.0, 1.0, 0.0, 1.0])
    np.testing.assert_allclose(factor, [0.25, 0.6, 2.0, 0.0], rtol=1e-6)
    share, factor = Linear().eulerian_rates(s, t, 1.0)
    np.testing.assert_allclose(share, [0.8, 0.625, 0.0, 1.0], rtol=1e-6)
    np.testing.assert_allclose(factor, [0.2, 0.375, 1.0, 0.0], rtol=1e-6)


def test_slope_of_what_is_told(flow):
    """Within 0.1% of differences of the exact integral; finite at both ends."""
    for t in (0.2, 0.5, 0.8):
        slope = (exact_tau(t + 1e-4, 97) - exact_tau(t - 1e-4, 97)) / 2e-4
        np.testing.assert_allclose(flow.slope(jnp.asarray([t])), slope, rtol=1e-3)
    assert jnp.isfinite(flow.slope(jnp.asarray([0.0, 1.0]))).all()


def test_derivatives_against_finite_differences():
    """Float64 differences of features (1e-8) and of probabilities (1e-5: these are float32)."""
    flow = onehot_flow(decoding_clock(V))
    with jax.enable_x64(True):
        net, params = smooth_network()
        pairs = random_pairs(flow, dtype=jnp.float64)
        y, h = pairs.views[0], 1e-6
        towards = jnp.asarray(np.random.default_rng(3).standard_normal(y.shape)) - y
        # Directions in float32, as the clock gives them.
        slope_t = flow.slope(pairs.t).astype(jnp.float64)
        speed = ((1 - pairs.s) * flow.slope(pairs.s)).astype(jnp.float64)
        run = lambda y, s, t: net.features(params, y, s, t)
        probs = lambda f: jax.nn.softmax(
            3 * jnp.tanh((f @ params["kernel"] + params["bias"][None, None]) / 3)
        )
        in_t = lambda h: run(y, pairs.tau_s, pairs.tau_t + h * slope_t)
        along = lambda h: run(y + h * towards, pairs.tau_s + h * speed, pairs.tau_t)
        found = (
            (derivative_in_t(params, pairs, net=net, flow=flow), in_t),
            (derivative_along_flow(params, pairs, y + towards, net=net, flow=flow), along),
        )
        plan = tiled.Plan(0, net.logit_softcap)
        for (out, tangent), moved in found:
            want = (moved(h) - moved(-h)) / (2 * h)
            assert np.abs(want).max() > 0.1
            np.testing.assert_allclose(tangent, want, rtol=0, atol=1e-8 * np.abs(want).max())
            want = (probs(moved(h)) - probs(moved(-h))) / (2 * h)
            _, rate = tiled.probability_rate(
                out.features, tangent, (params["kernel"], params["bias"]), plan
            )
            np.testing.assert_allclose(rate, want, rtol=0, atol=1e-5 * np.abs(want).max())
            norm = tiled.squared_rate(
                plan, out.features, tangent, (params["kernel"], params["bias"])
            )
            np.testing.assert_allclose(norm, (want**2).sum(-1), rtol=1e-4)


def largest(jaxpr):
    """Size of the largest array of a program, loops and calls included."""
    size = 0
    for eqn in jaxpr.eqns:
        size = max([size, *(v.aval.size for v in eqn.outvars if hasattr(v.aval, "size"))])
        for sub in jax.extend.core.jaxprs_in_params(eqn.params):
            size = max(size, largest(sub))
    return size


def route_config(name, **changes):
    config = tiny_config()
    config.model.two_time = True
    choose(config, objective=name)
    for key, value in changes.items():
        group = config.model if key in config.model else config.objective
        group[key] = value
    return config


def route_program(config):
    config = check(config)
    config["model"]["vocab_size"] = config["model"]["vocab_size"] or 256
    net = make_network(config)
    return net, make_objective(config, net, make_flow(config, net.vocab_size))


@pytest.mark.parametrize("name", ROUTES)
def test_no_jacobian_and_no_logits_of_all_positions(name):
    """With tiles every array is smaller than [B, L, V], and so than any Jacobian."""
    rows, length, vocab = 16, 32, 1024
    config = route_config(name, vocab_size=vocab, length=length, dim=16, heads=2, loss_tile=2)
    config.train.batch = rows
    net, objective = route_program(config)
    params = abstract_params(net)
    batch = {k: jax.ShapeDtypeStruct((rows, length), jnp.int32) for k in ("tokens", "mask")}
    loss = lambda p, b: objective(p, Frozen({}, p), b, jax.random.key(0), Rows(0, rows))[0]
    jaxpr = jax.make_jaxpr(jax.grad(loss))(params, batch).jaxpr
    states, whole = rows * length * 16, rows // 2 * length * vocab
    assert rows // 2 * 2 * vocab <= largest(jaxpr) < min(whole, states * 16) / 2


@pytest.mark.parametrize("used", [True, False])
@pytest.mark.parametrize("name", ROUTES)
def test_targets_of_the_average(name, used):
    """With ema_target the values off the diagonal depend on the average; without, none does."""
    net, objective = route_program(route_config(name, ema_target=used))
    params = abstract_params(net)
    batch = {k: jax.ShapeDtypeStruct((16, 2), jnp.int32) for k in ("tokens", "mask")}
    run = lambda p, a, b: objective(p, Frozen({}, a), b, jax.random.key(1), Rows(0, 16))[1]
    jaxpr, shapes = jax.make_jaxpr(run, return_shape=True)(params, params, batch)
    count = len(jax.tree.leaves(params))
    for i, metric in enumerate(shapes):
        if metric == "counted":  # a number of positions, which no parameter decides
            continue
        wanted = [j == i for j in range(len(shapes))]
        inputs = pe.dce_jaxpr(jaxpr.jaxpr, wanted)[1]
        assert any(inputs[:count])
        values_of_targets = used and metric not in (
            "diagonal_nats_per_token",
            "endpoint_squared_per_token",
        )
        assert any(inputs[count : 2 * count]) == values_of_targets, metric


@pytest.mark.parametrize(
    "name, changes, message",
    [
        ("lagrangian", {"projection": "none"}, "leaves the simplex"),
        ("lagrangian", {"projection": "sparsmax"}, "did you mean 'sparsemax'"),
        ("lagrangian", {"form": "kl"}, "valid: ce, mse"),
        ("eulerian", {"derivative_bound": 0.0}, "derivative_bound is 0.0"),
        ("eulerian", {"derivative_bound": float("inf")}, r"expected a number in \(0, inf\)"),
        ("eulerian", {"form": "ce", "projection": "none"}, "leaves the simplex"),
        (
            "endpoint",
            {"form": "mse"},
            "has no 'form': that is a key of denoising",
        ),
        ("semigroup", {"projection": "clip"}, "has no 'projection': that is a key of lagrangian"),
        ("semigroup", {"split": "middle"}, "valid: midpoint, uniform"),
        ("lagrangian", {"two_time": False}, "set config.model.two_time"),
        ("eulerian", {"diagonal": 1.5}, r"expected a number in \[0, 1\]"),
    ],
)
def test_refused_settings(name, changes, message):
    with pytest.raises(UserError, match=message):
        route_program(route_config(name, **changes))


def test_other_attention_is_refused():
    config = check(route_config("lagrangian"))
    config["model"]["vocab_size"] = 64
    net = make_network(config)
    config["model"]["attention"] = "cudnn"
    with pytest.raises(UserError, match="'cudnn' cannot; set it to 'xla'"):
        make_objective(config, net, make_flow(config, 64))


@pytest.mark.parametrize("name", ["eulerian", "endpoint"])
def test_steps_with_a_teacher(name):
    """Whole compiled steps on 8 devices: finite metrics named after the route, weights move."""
    config = check(route_config(name, loss_tile=4))
    config["model"]["vocab_size"] = 64
    mesh = sharding.make_mesh(settings(config, "mesh"))
    tutor = dataclasses.replace(make_network(config, mesh), two_time=False)
    teacher = jax.jit(tutor.init)(jax.random.key(3))
    program = assemble(config, mesh, (tutor, teacher))
    shape = (16, program.net.max_length)
    batch = {"tokens": jnp.ones(shape, jnp.int32), "mask": jnp.ones(shape, bool)}
    batch = jax.device_put(batch, sharding.batch_sharding(mesh))
    state = program.initial_state({})
    before = np.array(state.params["table"])
    for _ in range(2):  # the learning rate of the first is 0
        state, metrics = program.train_step(state, teacher, batch)
    assert all(np.isfinite(value) for value in metrics.values())
    assert any(key.startswith(name) for key in metrics)
    assert metrics["skipped_in_a_row"] == 0
    assert not np.array_equal(before, np.asarray(state.params["table"]))
