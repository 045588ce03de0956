"""Masked language flows: closed forms, schedules, adaptation and its restarts, the sampler."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from scipy.optimize import isotonic_regression

from flm_jax.core.errors import UserError
from flm_jax.core.network import Network
from flm_jax.denoiser.forward import denoise
from flm_jax.flows import noise_schedule
from flm_jax.flows.flow_map import velocity
from flm_jax.flows.masked_bridge import (
    HIGH,
    LOW,
    bridge_states,
    gamma_at,
    gamma_from_t,
    progress,
    step_moments,
    t_from_gamma,
)
from flm_jax.flows.masking import masked_states
from flm_jax.flows.noise_schedule import GammaConfig
from flm_jax.flows.time_sampling import Rows, kronecker_uniform, stratified_uniform
from flm_jax.losses.masked_diffusion import MaskedConfig, masked_loss_at
from flm_jax.losses.masked_flow import BridgeConfig, bridge_loss, bridge_loss_at, hidden_share, hide
from flm_jax.models.llama import LlamaConfig, llama
from flm_jax.models.lora import AdapterConfig, join, split
from flm_jax.samplers import masked_flow
from flm_jax.samplers.base import Given, nothing_given
from flm_jax.samplers.masked_flow import Bridging, sample_masked_flow

KEY = jax.random.key(0)
SIZES = LlamaConfig(11, 6, 16, 2, 2, 2, 0.0, 0.0, 0.0, "float32", "none", True)
ADAPTERS = AdapterConfig(2, 4.0, 2, 2.0, 0.0, 8)
BASE, NET = llama(SIZES), llama(dataclasses.replace(SIZES, adapters=ADAPTERS))
BASE_PARAMS = BASE.init(jax.random.key(1))
PARAMS = join(BASE_PARAMS, split(NET.init(jax.random.key(2)))[1])
TOKENS = jax.random.randint(jax.random.key(3), (4, 6), 0, 11)
HIDDEN = jax.random.bernoulli(jax.random.key(4), 0.6, (4, 6)).at[:, 0].set(True)


# The bridge.
def test_gamma_and_t_are_inverse():
    gamma = jnp.linspace(LOW, HIGH, 41)
    np.testing.assert_allclose(gamma_from_t(t_from_gamma(gamma)), gamma, atol=2e-4)
    t = t_from_gamma(gamma)
    np.testing.assert_allclose(t, 0.04 / (np.exp(gamma) + 0.04), rtol=1e-5)
    assert gamma_from_t(jnp.array([0.0, 1.0])).tolist() == [HIGH, LOW]
    np.testing.assert_allclose(progress(jnp.array([HIGH, -2.0, LOW])), [0.0, 0.5, 1.0])
    np.testing.assert_allclose(gamma_at(progress(gamma)), gamma, atol=1e-5)


def test_mean_and_variance_of_the_bridge():
    rng = np.random.default_rng(0)
    table = jnp.asarray(rng.normal(size=(5, 3)), jnp.float32)
    anchor = jnp.asarray(rng.normal(size=(2, 3)), jnp.float32)
    tokens = jnp.tile(jnp.array([[1, 4]]), (40_000, 1))
    hidden = jnp.tile(jnp.array([[True, False]]), (40_000, 1))
    z = bridge_states(KEY, jnp.full(40_000, 0.3), tokens, hidden, table, anchor)
    np.testing.assert_array_equal(z[:, 1], np.tile(table[4], (40_000, 1)))
    want = 0.7 * anchor[0] + 0.3 * table[1]
    np.testing.assert_allclose(z[:, 0].mean(0), want, atol=4 * 0.2 * np.sqrt(0.21 / 40_000))
    np.testing.assert_allclose(z[:, 0].var(0), 0.04 * 0.21, rtol=0.04)


def test_two_moments_of_a_step_carry_the_bridge_to_the_bridge():
    """Mean and variance at t' of a step from the bridge at t are those of the bridge at t'."""
    clean, m, t, t2 = 1.7, -0.4, 0.35, 0.8
    shape = lambda x: jnp.full((1, 1, 1), x)
    mean, variance = step_moments(
        shape((1 - t) * m + t * clean), shape(clean), jnp.array([t]), jnp.array([t2])
    )
    np.testing.assert_allclose(mean, (1 - t2) * m + t2 * clean, rtol=1e-6)
    carried = ((1 - t2) / (1 - t)) ** 2 * 0.04 * t * (1 - t)
    np.testing.assert_allclose(variance + carried, 0.04 * t2 * (1 - t2), rtol=1e-6)
    np.testing.assert_allclose(variance, 0.04 * (t2 - t) * (1 - t2) / (1 - t), rtol=1e-6)
    z = shape(0.3)
    mean, _ = step_moments(z, shape(clean), jnp.array([t]), jnp.array([t2]))
    euler = z + (t2 - t) * velocity(z, shape(clean), jnp.array([t]))
    np.testing.assert_allclose(mean, euler, rtol=1e-6)
    mean, variance = step_moments(z, shape(clean), jnp.array([t]), jnp.array([1.0]))
    np.testing.assert_allclose([mean[0, 0, 0], variance[0, 0, 0]], [clean, 0.0], atol=1e-7)


def test_at_time_zero_states_and_loss_are_those_of_masked_diffusion():
    t = jnp.zeros(4)
    z = bridge_states(KEY, t, TOKENS, HIDDEN, NET.table(PARAMS), NET.anchor(PARAMS))
    want = masked_states(TOKENS, HIDDEN, BASE.table(BASE_PARAMS), BASE.anchor(BASE_PARAMS))
    np.testing.assert_array_equal(z, want)
    weights = HIDDEN / jnp.sum(HIDDEN)
    cfg = BridgeConfig(embedding_weight=0.0)
    loss, nll, _ = bridge_loss_at(PARAMS, z, jnp.full(4, HIGH), TOKENS, weights, net=NET, cfg=cfg)
    base, base_nll = masked_loss_at(
        BASE_PARAMS, TOKENS, HIDDEN, t, weights, net=BASE, cfg=MaskedConfig()
    )
    np.testing.assert_array_equal(nll, base_nll)
    assert loss == base


@pytest.mark.parametrize("tile", [0, 3])
def test_the_embedding_term(tile):
    net = dataclasses.replace(NET, loss_tile=tile)
    z = bridge_states(KEY, jnp.full(4, 0.5), TOKENS, HIDDEN, NET.table(PARAMS), NET.anchor(PARAMS))
    weights = HIDDEN / jnp.sum(HIDDEN)
    gamma = gamma_from_t(jnp.full(4, 0.5))
    run = lambda w: bridge_loss_at(
        PARAMS, z, gamma, TOKENS, weights, net=net, cfg=BridgeConfig(embedding_weight=w)
    )
    times = progress(gamma)
    probs = jax.nn.softmax(denoise(NET, PARAMS, z, times, times))
    table = NET.table(PARAMS)
    want = np.sum(weights * np.sum((np.asarray(probs @ table) - table[TOKENS]) ** 2, -1))
    (without, _, _), (loss, _, distance) = run(0.0), run(10.0)
    np.testing.assert_allclose(distance, want, rtol=1e-4)
    np.testing.assert_allclose(loss, without + 10.0 * want, rtol=1e-4)


# Draws.
def test_shares_of_hidden_positions():
    u = jnp.array([0.0, 1 / 3, 1.0])
    np.testing.assert_allclose(
        hidden_share(u, BridgeConfig()), [1.0, 0.05 + 0.95 * np.cos(np.pi / 6), 0.05], rtol=1e-5
    )
    half = BridgeConfig(whole=0.5)
    np.testing.assert_allclose(
        hidden_share(jnp.array([0.2, 0.5, 0.75, 1.0]), half),
        [1.0, 1.0, 0.05 + 0.95 * np.cos(np.pi / 4), 0.05],
        rtol=1e-5,
    )
    free = jnp.arange(10)[None] >= jnp.array([[0], [4], [10]])
    hidden = hide(KEY, jnp.array([0.31, 0.01, 1.0]), free)
    assert hidden.sum(axis=1).tolist() == [4, 1, 0]
    assert not (hidden & ~free).any()


def test_draws_are_low_discrepancy_alone_and_together():
    n = 256
    u = np.asarray(stratified_uniform(KEY, n, Rows(0, n)))
    v = np.asarray(kronecker_uniform(jax.random.key(9), n, Rows(0, n)))
    assert stats.kstest(v, "uniform").statistic < 0.02
    assert abs(np.corrcoef(u, v)[0, 1]) < 0.05
    counts = np.histogram2d(u, v, bins=8, range=[[0, 1], [0, 1]])[0]
    assert counts.min() >= 2 and counts.max() <= 6  # 4 on average; independent draws: 0 to 12
    halves = [kronecker_uniform(jax.random.key(9), n // 2, Rows(s, n)) for s in (0, n // 2)]
    np.testing.assert_array_equal(np.concatenate(halves), v)


def test_the_three_parts_of_the_mixture():
    cfg, n = GammaConfig(uniform=0.3, normal=0.3), 4096
    state = noise_schedule.fresh_state(cfg)._replace(
        shape=jnp.array([-1.0, 0.5, 2.0]), ready=jnp.ones(())
    )
    gamma = np.asarray(noise_schedule.draw_gamma(KEY, n, Rows(0, n), cfg, state))
    flat = lambda g: np.clip((g - LOW) / (HIGH - LOW), 0, 1)
    law = lambda g: (
        0.3 * flat(g)
        + 0.3 * stats.norm.cdf(g, -2.5, 2.0)
        + 0.4 * (1 / (1 + np.exp(-(g + 1) / 0.5))) ** 2
    )
    inside = gamma[(gamma > LOW) & (gamma < HIGH)]
    points = np.sort(inside)
    below = (gamma <= LOW).mean()
    found = below + np.arange(1, len(points) + 1) / n
    assert np.abs(found - law(points)).max() < 0.003  # independent draws: about 0.02
    unready = noise_schedule.draw_gamma(
        KEY, n, Rows(0, n), cfg, state._replace(ready=jnp.zeros(()))
    )
    share = ((np.asarray(unready) > 2.0).mean(), 0.7 * 0.25 + 0.3 * stats.norm.sf(2.0, -2.5, 2.0))
    np.testing.assert_allclose(*share, atol=0.01)


def test_the_logistic_quantile_is_the_inverse():
    shape, u = jnp.array([-2.0, 0.7, 3.0]), jnp.linspace(0.01, 0.99, 25)
    np.testing.assert_allclose(
        noise_schedule.logistic_cdf(shape, noise_schedule.logistic_quantile(shape, u)), u, atol=1e-5
    )


@pytest.mark.parametrize("shape", [(-2.0, 0.8, 1.0), (-4.0, 1.5, 0.3), (0.5, 0.4, 4.0)])
def test_a_known_curve_is_recovered(shape):
    gamma = noise_schedule.bin_centers(GammaConfig())
    f = noise_schedule.logistic_cdf(jnp.array(shape), gamma)
    noise = 0.02 * jax.random.normal(KEY, f.shape)
    found, r2, scale = jax.jit(noise_schedule.fit_logistic)(
        gamma, 3.0 * f + 0.2 + noise, jnp.ones(64)
    )
    assert r2 > 0.995
    fitted = scale * noise_schedule.logistic_cdf(
        found, gamma
    )  # up to a constant, which is fitted too
    np.testing.assert_allclose(fitted - fitted.mean(), 3.0 * (f - f.mean()), atol=0.05)


def observed(curve, cfg):
    gamma = noise_schedule.bin_centers(cfg)
    return noise_schedule.observe(gamma, curve(gamma), jnp.ones(cfg.bins), cfg)


def test_refits_come_when_due_and_only_good_ones_count():
    cfg = GammaConfig(refit_every=3)
    rise = observed(lambda g: 2.0 * jax.nn.sigmoid(g + 2.0), cfg)
    saw = observed(lambda g: jnp.sin(3.0 * g), cfg)
    update = jax.jit(lambda s, o, k: noise_schedule.update_state(s, o, k, cfg))
    state = noise_schedule.fresh_state(cfg)
    for k in range(2):
        state = update(state, rise, k)
        assert state.ready == 0
    state = update(state, rise, 2)
    assert state.ready == 1 and state.r2 > 0.99 and state.examples == 3 * cfg.bins
    np.testing.assert_allclose(state.shape, [-2.0, 1.0, 1.0], atol=0.1)
    bad = update(noise_schedule.fresh_state(cfg), saw, 2)
    assert bad.ready == 0 and bad.r2 < 0.95
    kept = update(state._replace(total=saw[0], count=saw[1]), saw, 5)
    np.testing.assert_array_equal(kept.shape, state.shape)
    assert kept.ready == 1


def test_isotonic_regression():
    rng = np.random.default_rng(0)
    values = np.linspace(0, 2, 30) + rng.normal(size=30) * 0.5
    weights = rng.uniform(0.5, 2.0, 30)
    want = isotonic_regression(values, weights=weights).x
    np.testing.assert_allclose(
        noise_schedule.isotonic(jnp.array(values), jnp.array(weights)), want, atol=1e-5
    )


def test_the_empirical_curve_needs_examples_and_moves_slowly():
    cfg = GammaConfig(learnt="empirical", normal=0.0, refit_every=1)
    rise = observed(lambda g: 2.0 * jax.nn.sigmoid(g + 2.0), cfg)
    update = jax.jit(lambda s, o: noise_schedule.update_state(s, o, jnp.int32(0), cfg))
    state = update(noise_schedule.fresh_state(cfg), rise)
    assert state.ready == 0  # 64 examples of 4096
    state = update(state._replace(examples=jnp.float32(4096)), rise)
    assert state.ready == 1
    np.testing.assert_allclose(state.knots[50], -2.0, atol=0.3)
    shifted = observed(lambda g: 2.0 * jax.nn.sigmoid(g - 2.0), cfg)
    moved = update(state._replace(total=shifted[0], count=shifted[1]), shifted)
    np.testing.assert_allclose(moved.knots[50] - state.knots[50], 0.05 * 4.0, atol=0.06)


def test_the_loss_observes_rows_by_gamma_and_keeps_prompts():
    cfg = BridgeConfig(embedding_weight=0.0, whole=1.0, gamma=GammaConfig(learnt="empirical"))
    batch = {"tokens": TOKENS, "mask": jnp.ones((4, 6)), "prompt": jnp.arange(6)[None] < 2}
    batch["prompt"] = jnp.broadcast_to(batch["prompt"], (4, 6))
    state = noise_schedule.fresh_state(cfg.gamma)

    def run(params, batch):
        loss, metrics = bridge_loss(
            params, batch, KEY, net=NET, cfg=cfg, state=state, rows=Rows(0, 4)
        )
        return loss, metrics

    loss, metrics = jax.jit(run)(PARAMS, batch)
    total, count = metrics["observed"]
    assert count.sum() == 4
    np.testing.assert_allclose(total.sum() / 4, loss, rtol=1e-5)
    assert metrics["nll_nats_per_token"] == loss
    other = batch | {"tokens": TOKENS.at[:, :2].set((TOKENS[:, :2] + 1) % 11)}
    assert jax.jit(run)(PARAMS, other)[0] != loss  # prompts are seen


# Sampling, by a network of known answers: at position l token l, of given confidence.
def oracle(confidence, seen=None):
    """Ends of bridges that do not depend on z; `confidence` [L] of token l at position l."""
    length, vocab = len(confidence), 8
    probs = np.repeat((1 - np.array([confidence]).T) / (vocab - 1), vocab, axis=1)
    probs[np.arange(length), np.arange(length)] = confidence
    logits = jnp.asarray(np.log(np.maximum(probs, 1e-30)), jnp.float32)

    def features(params, x_s, s, t, *, key=None):
        lift = 0.0 if seen is None else seen(x_s)
        return jnp.broadcast_to(logits[None] + lift, (*x_s.shape[:2], vocab))

    return Network(
        init=lambda key: {},
        features=features,
        readout=lambda params: (jnp.eye(vocab), jnp.zeros(vocab)),
        table=lambda params: jnp.eye(vocab),
        vocab_size=vocab,
        dim=vocab,
        max_length=length,
        anchor=lambda params: jnp.full((length, vocab), 0.1),
    )


def draw(net, given=None, steps=8, key=KEY, **how):
    given = nothing_given(2, net.max_length) if given is None else given
    run = lambda key: sample_masked_flow(
        key, net, {}, steps=steps, given=given, how=Bridging(**how)
    )
    return jax.jit(run)(key)


def test_without_promotion_all_steps_are_taken():
    out = draw(oracle([1.0, 0.9, 0.8, 0.7]))  # confidence 1 does not promote either
    assert out.tokens.tolist() == [[0, 1, 2, 3]] * 2
    assert int(out.calls) == 8 and out.steps_tokens.shape == (8, 2, 4)
    np.testing.assert_allclose(out.steps_confidence[0, 0], [1.0, 0.9, 0.8, 0.7], rtol=1e-5)


def test_promotion_stops_the_walk():
    out = draw(oracle([0.99, 0.97, 0.99, 0.96]), promote=0.05)
    assert int(out.calls) == 1 and out.tokens.tolist() == [[0, 1, 2, 3]] * 2
    assert int(draw(oracle([0.99, 0.97, 0.5, 0.96]), promote=0.05).calls) == 8
    np.testing.assert_array_equal(out.steps_tokens, np.broadcast_to(out.tokens, (8, 2, 4)))


def test_promoted_tokens_are_seen_as_context():
    """Position 1 becomes sure once position 0 shows its clean embedding."""

    def seen(x):
        clean = jnp.all(x[:, 0] == jnp.eye(8)[:1], axis=-1)
        return jnp.zeros((x.shape[0], 2, 8)).at[:, 1, 1].add(9.0 * clean)

    out = draw(oracle([0.99, 0.5], seen), promote=0.05)
    assert int(out.calls) == 2 and out.tokens.tolist() == [[0, 1]] * 2


def test_given_tokens_are_kept():
    given = Given(jnp.array([[5, 0, 0, 7]]), jnp.array([[True, False, False, True]]))
    out = draw(oracle([0.9] * 4), given, promote=0.2)
    assert out.tokens.tolist() == [[5, 1, 2, 7]] and int(out.calls) == 1
    everything = Given(given.tokens, jnp.ones((1, 4), bool))
    assert int(draw(oracle([0.9] * 4), everything).calls) == 0


@pytest.mark.parametrize(
    "eos, want",
    [
        ("free", [True, False, True, True]),
        ("ordered", [True, False, False, True]),
        ("never", [True, False, False, True]),
    ],
)
def test_policies_of_the_end(eos, want):
    tokens, confidence = jnp.array([[1, 2, 7, 3]]), jnp.array([[0.99, 0.5, 0.99, 0.99]])
    how = Bridging(promote=0.05, eos=eos, eos_id=7)
    hidden = jnp.ones((1, 4), bool)
    got = masked_flow.promoted(tokens, confidence, hidden, how)
    assert got.tolist() == [want]
    filled = masked_flow.promoted(tokens, confidence, hidden.at[0, 1].set(False), how)
    assert bool(filled[0, 2]) == (eos != "never")


def test_no_guidance_is_bit_for_bit_the_plain_sampler_and_guidance_is_not():
    given = Given(TOKENS[:2], jnp.arange(6)[None] < jnp.array([[2], [3]]))
    run = lambda w: jax.jit(
        lambda key: masked_flow.sample_masked_flow(
            key, NET, PARAMS, steps=5, given=given, how=Bridging(context_guidance=w)
        )
    )(KEY)
    plain, none, some = run(0.0), run(-0.0), run(2.0)
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(none)):
        np.testing.assert_array_equal(a, b)
    assert (int(plain.calls), int(some.calls)) == (5, 10)
    assert np.abs(plain.steps_confidence - some.steps_confidence).max() > 1e-4


@pytest.mark.parametrize("bad", [{"promote": 1.0}, {"promote": -0.1}, {"eos": "freed"}])
def test_bad_sampling_is_refused(bad):
    with pytest.raises(UserError, match="promote|did you mean 'free'"):
        Bridging(**bad)


# A law of pairs of tokens, and the denoiser that is exact for it.
PAIRS = np.array([[0, 1], [2, 3], [0, 3], [2, 1]])
LAW = np.array([0.90, 0.03, 0.05, 0.02])  # the first token is 0 with probability 0.95


def exact():
    """Posterior of LAW given bridges; a state that equals an embedding is context."""
    table, anchor = jnp.eye(4), jnp.full((2, 4), 0.25)

    def features(params, x_s, s, t, *, key=None):
        now = t_from_gamma(gamma_at(s))[:, None, None]
        clean = table[PAIRS]  # [pairs, 2, 4]
        mean = now[..., None] * clean[None] + (1 - now[..., None]) * anchor[None, None]
        gap = jnp.sum((x_s[:, None] - mean) ** 2, axis=-1) / (2 * 0.04 * now * (1 - now))
        same = jnp.sum((x_s[:, None] - clean[None]) ** 2, axis=-1)
        context = jnp.any(jnp.all(x_s[:, :, None] == table[None, None], axis=-1), axis=-1)[:, None]
        evidence = jnp.where(context, jnp.where(same == 0, 0.0, -1e9), -gap)
        weights = jax.nn.softmax(jnp.log(jnp.asarray(LAW))[None] + jnp.sum(evidence, -1), axis=-1)
        probs = jnp.einsum("bp,plv->blv", weights, clean)
        return jnp.log(jnp.maximum(probs, 1e-30))

    return Network(
        init=lambda key: {},
        features=features,
        readout=lambda params: (jnp.eye(4), jnp.zeros(4)),
        table=lambda params: table,
        vocab_size=4,
        dim=4,
        max_length=2,
        anchor=lambda params: anchor,
    )


def total_variation(tokens):
    share = np.mean(np.all(np.asarray(tokens)[:, None] == PAIRS[None], axis=-1), axis=0)
    return (np.abs(share - LAW).sum() + 1 - share.sum()) / 2


def test_promotion_errs_by_at_most_eps_times_length_on_a_solvable_law():
    given, eps = nothing_given(8192, 2), 0.06
    plain = draw(exact(), given, steps=48)
    assert total_variation(plain.tokens) < 0.02
    out = draw(exact(), given, steps=48, promote=eps)
    assert (np.asarray(out.tokens)[:, 0] == 0).all()  # 0.95 sure at once
    assert 0.03 < total_variation(out.tokens) <= eps * 2
    assert int(out.calls) < int(plain.calls)
