"""Networks that read the token posterior in place of the noisy state."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flm_jax.build.model import make_network
from flm_jax.config.check import check
from flm_jax.core.errors import UserError
from flm_jax.denoiser.forward import forward
from flm_jax.denoiser.head import logits, tempered
from flm_jax.denoiser.posterior_input import posterior_embedding, with_posterior
from flm_jax.denoiser.self_conditioning import estimated, fixed_point
from flm_jax.distributed.sharding import MeshConfig, loss_parallel, make_mesh
from flm_jax.flows.posterior import posterior_features
from flm_jax.losses.denoising import DenoisingConfig, denoising_loss
from flm_jax.losses.distillation.eulerian import derivative_along_flow
from flm_jax.losses.distillation.lagrangian import derivative_in_t
from flm_jax.models.dit import dit
from flm_jax.samplers.euler import sample_euler
from flm_jax.training.program import student_params
from helpers.networks import (
    EIGHT_ROWS,
    FLOW,
    FREE,
    KEY,
    LENGTH,
    TINY,
    VOCAB,
    posterior_probs,
    random_batch,
    random_params,
    start,
    table_of,
    tiny_states,
)
from helpers.routes import random_pairs
from helpers.runs import changed, tiny_config


@functools.lru_cache
def network(**more):
    net = dit(dataclasses.replace(TINY, **({"dropout": 0.0} | more)))
    return with_posterior(net, FLOW, read=True, skip=False, dtype="float32"), random_params(net)


@pytest.mark.parametrize("two_time", [False, True])
def test_networks_read_it_and_flow_maps_that_of_the_middle_of_their_jump(two_time):
    net, params = network(two_time=two_time)
    s, t = jnp.asarray([0.1, 0.5, 0.9]), jnp.asarray([0.5, 0.6, 1.0])
    table, read_at = net.table(params), (s + t) / 2 if two_time else s
    shown = posterior_probs(tiny_states(), FLOW.t(read_at), table) @ table
    got = forward(net, params, tiny_states(), s, t).features
    np.testing.assert_allclose(got, net.features(params, shown, s, t), rtol=0, atol=1e-4)
    # From pure noise a denoiser answers alike, a flow map does not.
    ends = jnp.zeros(3), jnp.ones(3)
    first, second = (forward(net, params, tiny_states(seed), *ends).features for seed in (1, 2))
    assert np.allclose(first, second, atol=1e-5) == (not two_time)


def test_a_fresh_student_is_its_teacher_on_the_diagonal():
    plain, params = network(two_time=False)
    net, _ = network()
    student = student_params(net.init(jax.random.key(0)), params)
    tau = jnp.asarray([0.1, 0.5, 0.9])
    want, got = (
        forward(n, p, tiny_states(), tau, tau).features
        for n, p in ((plain, params), (net, student))
    )
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("over", [{}, {"data": 2, "fsdp": 2, "tensor": 2}])
def test_tiles_change_nothing_nor_does_a_mesh(over):
    config = dataclasses.replace(TINY, vocab_size=12, two_time=False, dropout=0.0)
    net = with_posterior(dit(config), FLOW, read=True, skip=False, dtype="float32")
    params, batch = random_params(net), random_batch()
    mesh = over and make_mesh(MeshConfig(**over))
    parallel = loss_parallel(mesh, 12, TINY.dim) if over else None
    cut = dataclasses.replace(net, loss_tile=4, parallel=parallel)
    more = {"flow": FLOW, "cfg": DenoisingConfig(), "rows": EIGHT_ROWS}
    loss = lambda p, net: denoising_loss(p, None, batch, KEY, net=net, **more)[0]
    whole, tiled = (
        jax.jit(jax.value_and_grad(functools.partial(loss, net=n)))(params) for n in (net, cut)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), whole, tiled)


@pytest.mark.parametrize("tile", [0, 4])
def test_16_bit_networks_take_its_mean_from_16_bit_numbers(tile):
    """To 1% of the largest, with its gradient; in float32 networks it is a float32 product."""
    net, params = network(loss_tile=tile)
    halved = with_posterior(net, FLOW, read=True, skip=False, dtype="bfloat16")
    tau = jnp.asarray([0.1, 0.5, 0.9])

    def mean(table, net):
        return posterior_embedding(net, params | {"table": table}, tiny_states(), tau)

    def both(net):
        total = lambda table: jnp.sum(jnp.sin(3.0 * mean(table, net)))
        return mean(params["table"], net), jax.grad(total)(params["table"])

    for want, got in zip(both(net), both(halved)):
        assert got.dtype == jnp.float32
        assert 0 < np.abs(got - want).max() < 0.01 * np.abs(want).max()
    program = lambda net: str(jax.make_jaxpr(mean, static_argnums=1)(params["table"], net))
    assert "bf16" not in program(net) and "Precision.HIGH," in program(net)
    assert "bf16" in program(halved) and "Precision.HIGH," not in program(halved)


def test_derivatives_go_through_it():
    """Float32 differences along the flow and in t, to 1%."""
    net, params = network()
    pairs = random_pairs(FLOW, rows=3, length=LENGTH, dim=TINY.dim)
    pairs = pairs._replace(views=(tiny_states(), None))
    # Away from the ends, where the clock is steep.
    taus = jnp.asarray([0.2, 0.3, 0.4]), jnp.asarray([0.6, 0.7, 0.5])
    s, t = (FLOW.t(tau) for tau in taus)
    pairs = pairs._replace(tau_s=taus[0], tau_t=taus[1], s=s, t=t)
    y, towards, h = pairs.views[0], tiny_states(5), 3e-3
    speed = (1 - s) * FLOW.slope(s)
    run = lambda y, tau_s, tau_t: forward(net, params, y, tau_s, tau_t).features
    in_t = lambda h: run(y, taus[0], taus[1] + h * FLOW.slope(t))
    along = lambda h: run(y + h * (towards - y), taus[0] + h * speed, taus[1])
    for tangent, moved in (
        (derivative_in_t(params, pairs, net=net, flow=FLOW)[1], in_t),
        (derivative_along_flow(params, pairs, towards, net=net, flow=FLOW)[1], along),
    ):
        want = (moved(h) - moved(-h)) / (2 * h)
        np.testing.assert_allclose(tangent, want, rtol=0, atol=0.01 * np.abs(want).max())


def test_self_conditioning_reads_it_once():
    net, params = network(two_time=False, self_conditioning=True)
    tau = jnp.full(3, 0.4)
    estimate = estimated(net, params, tiny_states(), (tau, tau), None)
    want = logits(forward(net, params, tiny_states(), tau, tau, estimate=estimate), net)
    got = logits(forward(fixed_point(net, 2), params, tiny_states(), tau, tau), net)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-4)


def test_samplers_run_on_it():
    """The last read-out is that of the state the sampler holds, here by its one step from noise."""
    net, params = network()
    got = sample_euler(KEY, net, params, flow=FLOW, steps=1, given=FREE)
    zero, one = jnp.zeros(3), jnp.ones(3)
    out = logits(forward(net, params, start(KEY, net, params, FREE), zero, one), net)
    np.testing.assert_array_equal(got.tokens, out.argmax(-1))


@pytest.mark.parametrize("cap", [0.0, 5.0])
def test_a_temperature_divides_the_evidence_among_the_logits_too(cap):
    net = dit(dataclasses.replace(TINY, dropout=0.0, logit_softcap=cap))
    net = with_posterior(net, FLOW, read=False, skip=True, dtype="float32")
    params, at = random_params(net), jnp.full(3, 0.5)
    plain, sharp = (
        logits(forward(each, params, tiny_states(), at, at), each)
        for each in (net, tempered(net, 0.5))
    )
    np.testing.assert_allclose(sharp, 2.0 * plain, rtol=1e-4, atol=1e-4)


def configured(**changes):
    config = tiny_config()
    config.model.vocab_size, config.model.length = VOCAB, LENGTH
    config.model.posterior_input = True
    changed(config, {key.replace("__", "."): value for key, value in changes.items()})
    return make_network(check(config))


def test_a_configuration_chooses_it():
    half, table = jnp.asarray([0.5]), table_of(VOCAB, 16)
    y = table_of(LENGTH, 16, seed=1)[None]
    for net, t in ((configured(), FLOW.t(half)), (configured(flow__clock="identity"), half)):
        assert net.posterior_input and not net.posterior_skip
        want = posterior_features(FLOW, y, t, table)
        np.testing.assert_allclose(net.evidence.features(table, y, half), want, rtol=1e-5)


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {"objective__name": "masked_diffusion"},
            "for flows from noise, got objective masked_diffusion",
        ),
    ],
)
def test_other_families_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        configured(**changes)
