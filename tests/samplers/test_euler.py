"""Euler steps and jumps against their formulas, and on a flow whose denoiser is known exactly."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flm_jax.flows.clocks import decoding_clock
from flm_jax.flows.flow import onehot_flow
from flm_jax.flows.interpolants.linear import Linear
from flm_jax.samplers.base import Given, nothing_given
from flm_jax.samplers.euler import (
    carry,
    sample_euler,
    sample_euler_from,
    step_key,
)
from flm_jax.samplers.guidance import plain
from helpers.networks import (
    FLOW,
    FREE,
    KEY,
    LENGTH,
    ROWS,
    VOCAB,
    denoiser,
    draw,
    exact_network,
    matches,
    mirror_network,
    some_given,
    start,
    tiny_network,
)


@pytest.mark.parametrize("two_time", [True, False])
def test_shapes_and_same_key(two_time):
    net, params = tiny_network(two_time)
    first, second = draw(net, params), draw(net, params)
    assert first.tokens.shape == (ROWS, LENGTH)
    assert first.steps_tokens.shape == first.steps_confidence.shape == (3, ROWS, LENGTH)
    jax.tree.map(np.testing.assert_array_equal, first, second)
    np.testing.assert_array_equal(first.tokens, first.steps_tokens[-1])
    other = draw(net, params, key=jax.random.key(5))
    assert (other.tokens != first.tokens).any()
    assert ((first.steps_confidence > 1 / VOCAB) & (first.steps_confidence <= 1)).all()


def test_sample_is_sample_from_embedded_noise():
    net, params = tiny_network(True)
    y_0 = start(KEY, net, params, FREE)
    assert y_0.shape == (ROWS, LENGTH, 8)
    again = jax.jit(lambda y: sample_euler_from(y, net, params, flow=FLOW, steps=3, given=FREE))(
        y_0
    )
    np.testing.assert_array_equal(again.tokens, draw(net, params).tokens)


def test_one_step_is_the_argmax_of_the_denoiser():
    net, params = tiny_network(True)
    y_0 = start(KEY, net, params, FREE)
    logits = denoiser(net)(params, y_0, jnp.zeros(ROWS), jnp.ones(ROWS))
    got = draw(net, params, steps=1)
    np.testing.assert_array_equal(got.tokens, jnp.argmax(logits, axis=-1))
    confidence = jax.nn.softmax(logits, axis=-1).max(-1)
    np.testing.assert_allclose(got.steps_confidence[0], confidence, rtol=1e-5)


@pytest.mark.parametrize("two_time", [True, False])
def test_three_steps_written_out(two_time):
    """y += (t-s)/(1-s) (probs E - y); the network is told (tau_s, tau_t), or tau_s alone."""
    net, params = tiny_network(two_time)
    y = start(KEY, net, params, FREE)
    taus = np.array([0.0, 1 / 3, 2 / 3, 1.0], np.float32)
    times = np.asarray(FLOW.t(jnp.asarray(taus)))
    got = draw(net, params, steps=3)
    for k in range(3):
        now, target = (jnp.full(ROWS, taus[k + i]) for i in (0, 1))
        logits = denoiser(net)(params, y, now, target if two_time else now)
        np.testing.assert_array_equal(got.steps_tokens[k], jnp.argmax(logits, axis=-1))
        probs = jax.nn.softmax(logits, axis=-1)
        np.testing.assert_allclose(got.steps_confidence[k], probs.max(-1), rtol=0, atol=1e-5)
        s, t = times[k], times[k + 1]
        y = y + (t - s) * (probs @ params["table"] - y) / (1 - s)


def test_grid():
    np.testing.assert_allclose(FLOW.grid(4), [0, 0.25, 0.5, 0.75, 1])


@pytest.mark.parametrize("two_time", [True, False])
def test_given_positions_never_change(two_time):
    net, params = tiny_network(two_time)
    given = some_given()
    got = draw(net, params, given=given)
    for tokens, confidence in zip(got.steps_tokens, got.steps_confidence):
        np.testing.assert_array_equal(tokens[given.mask], given.tokens[given.mask])
        assert (confidence[given.mask] == 1.0).all()
        assert (confidence[~given.mask] < 1.0).any()


def test_given_positions_steer_the_others():
    """What is given changes free positions; what stands under a free position does not matter."""
    net, params = tiny_network(True)
    given = some_given()
    got = draw(net, params, given=given)
    moved = jnp.abs(got.steps_confidence - draw(net, params).steps_confidence)[-1]
    assert moved[~given.mask].max() > 1e-3  # 0 if they did not
    other = Given(jnp.where(given.mask, given.tokens, 0), given.mask)
    np.testing.assert_array_equal(got.tokens, draw(net, params, given=other).tokens)


def test_everything_given():
    net, params = tiny_network(True)
    given = Given(some_given().tokens, jnp.ones((ROWS, LENGTH), bool))
    np.testing.assert_array_equal(draw(net, params, given=given).tokens, given.tokens)


def sample_exact(net, flow, steps, given):
    return jax.jit(
        lambda key: sample_euler(key, net, {}, flow=flow, steps=steps, given=given).tokens
    )(KEY)


def test_exact_flow_samples_its_data():
    """64 Euler steps: all of 4000 samples are data, half each (within 4 standard errors, 3.2%)."""
    net, flow = exact_network()
    first, second = matches(sample_exact(net, flow, 64, nothing_given(4000, 3)))
    assert (first | second).all()
    assert abs(first.mean() - 0.5) < 0.032


def test_exact_flow_is_steered_by_what_is_given():
    """A first token that only one sequence has brings that sequence in most of 1000 samples.

    Not in all (82%): the third position can settle on the other sequence while the given one, held
    at the noise level of its time, is still unreadable.
    """
    net, flow = exact_network()
    mask = jnp.zeros((1000, 3), bool).at[:, 0].set(True)
    given = Given(jnp.full((1000, 3), 3, jnp.int32), mask)
    tokens = sample_exact(net, flow, 64, given)
    assert 0.7 < matches(tokens)[1].mean() < 0.95


@pytest.mark.parametrize("any_order", [True, False])
def test_given_tokens_stand_at_time_one(any_order):
    """Every call of an any-order network sees them clean; another one on their interpolant."""
    seen, base = [], mirror_network()

    def features(params, y, s, t, *, key=None):
        out = base.features(params, y, s, t)
        jax.debug.callback(lambda x: seen.append(np.asarray(x)), out, ordered=True)
        return out

    net = dataclasses.replace(base, features=features, any_order=any_order, two_time=True)
    mask = jnp.tile(jnp.arange(LENGTH) < 2, (3, 1))
    given = Given(jnp.full((3, LENGTH), 4), mask)
    out = sample_euler(
        jax.random.key(0), net, {}, flow=onehot_flow(decoding_clock(VOCAB)), steps=3, given=given
    )
    jax.block_until_ready(out)
    assert len(seen) == 3
    for k, call in enumerate(seen):
        y, s, t = call[..., :VOCAB], call[..., VOCAB], call[..., VOCAB + 1]
        np.testing.assert_allclose(s[:, 2:], k / 3, atol=1e-6)
        np.testing.assert_allclose(t[:, 2:], (k + 1) / 3, atol=1e-6)
        clean = np.broadcast_to(np.eye(VOCAB)[4], (3, 2, VOCAB))
        assert np.array_equal(y[:, :2], clean) == any_order
        assert ((s[:, :2] == 1.0) & (t[:, :2] == 1.0)).all() == any_order


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0])
def test_noise_between_jumps(gamma):
    """Clean data x at s and delta = x: the state at t has the law of t x + (1-t) eps.

    It is the jump to t' beyond t, and noise of scale gamma (1-t) that takes it back.
    """
    path, rng, clean = Linear(), np.random.default_rng(0), 2.0
    s, t = jnp.full(1, 0.1, jnp.float32), jnp.full(1, 0.3, jnp.float32)
    xi, eps = jnp.asarray(rng.standard_normal((2, 1, 200_000, 1)), jnp.float32)
    delta = jnp.full(xi.shape, clean)
    y = path.at(s, delta, xi)
    got = path.step(y, delta, s, t, noise=eps, stochasticity=gamma)
    end, t = path.overshoot(t, gamma), float(t[0])
    assert abs(got.mean() - t * clean) < 0.01 and abs(got.std() - (1 - t)) < 0.01
    landed = path.step(y, delta, s, end)
    back = landed + (t - end)[:, None, None] * delta + gamma * (1 - t) * eps
    np.testing.assert_allclose(got, back, rtol=0, atol=1e-6)
    if gamma == 0.0:
        assert end[0] == t and (got == landed).all()
    if gamma == 1.0:
        assert end[0] == 1.0
        np.testing.assert_allclose(got, t * clean + (1 - t) * eps, rtol=0, atol=1e-6)


def test_steps_take_keys_of_their_own():
    """The noise at the start takes the key itself and, drawn jointly, its fold 1."""
    keys = [KEY, jax.random.fold_in(KEY, 1), *(step_key(KEY, k) for k in range(4))]
    assert len({tuple(jax.random.key_data(k).tolist()) for k in keys}) == 6


@pytest.mark.parametrize("gamma", [0.0, 1.0])
def test_stochastic_jumps_written_out(gamma):
    """Two jumps of a flow map, the second from t delta + (1-t) eps or from where it landed."""
    net, params = tiny_network(True)
    den = plain(net, params, FLOW, FREE)
    y_0, taus = den.noise(KEY), jnp.asarray([0.0, 0.5, 1.0])
    t = FLOW.t(taus)[1]
    got = jax.jit(lambda y: carry(KEY, y, den, flow=FLOW, steps=2, stochasticity=gamma))(y_0)
    ask = lambda y, a, b: jax.nn.softmax(
        denoiser(net)(params, y, jnp.full(3, a), jnp.full(3, b)), axis=-1
    )
    delta = ask(y_0, 0.0, 1.0 if gamma else 0.5) @ params["table"]
    fresh = den.noise(jax.random.fold_in(step_key(KEY, 0), 1)) if gamma else y_0
    want = ask(t * delta + (1 - t) * fresh, 0.5, 1.0)
    np.testing.assert_allclose(got.steps_confidence[-1], want.max(-1), rtol=0, atol=1e-4)
