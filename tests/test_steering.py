"""Steering at inference: what must change nothing, and what each option does on known flows."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_samplers import (
    CLOCK,
    FREE,
    KEY,
    SEQUENCES,
    denoiser,
    draw,
    exact_network,
    matches,
    network,
    some_given,
)

from flm_jax.core.errors import UserError
from flm_jax.denoiser.head import Readout, probabilities
from flm_jax.denoiser.mixture import Part, mixture
from flm_jax.flows.clocks import tau_to_t
from flm_jax.samplers.base import Given, nothing_given
from flm_jax.samplers.categorical import Choice, choose
from flm_jax.samplers.euler import carry, overshoot, renoised, step_key
from flm_jax.samplers.flow import NONE, Steering, check_steering, sample_flow
from flm_jax.samplers.guidance import Weak, autoguided, plain
from flm_jax.samplers.guides import Guides
from flm_jax.samplers.reward_guidance import Reward, make_nudge

GUIDED = Steering(guidance=2.0, weak_dropout=0.5)
# A reward of the share of token 1 in a text, in the one-hot space.
ONES = Reward(lambda params: jnp.eye(params["size"].shape[0]), lambda params, x: x[..., 1].sum(1))
REWARD = {"reward": {"size": jnp.zeros(11)}}


@functools.lru_cache
def program(net, steps, steering, choice, guides, exact=False):
    clock = exact_network()[1] if exact else CLOCK
    how = {"clock": clock, "steps": steps, "steering": steering, "choice": choice, "guides": guides}
    return jax.jit(lambda k, p, g, e: sample_flow(k, net, p, given=g, extra=e, **how))


def steered(two_time, steering=NONE, *, steps=3, given=FREE, temperature=0.0, extra=None):
    """Samples of the random network of test_samplers; its dropout rate is 0.5."""
    net, params = network(two_time)
    guides = Guides(net, ONES)
    run = program(net, steps, steering, Choice(temperature), guides)
    return run(KEY, params, given, REWARD | (extra or {}))


def assert_same(one, other):
    np.testing.assert_array_equal(one.steps_tokens, other.steps_tokens)
    np.testing.assert_array_equal(one.steps_confidence, other.steps_confidence)


@pytest.mark.parametrize("two_time", [False, True])
def test_neutral_settings_change_nothing(two_time):
    """eta = 1, gamma = 0, a reward of weight 0: bit-equal; their neighbours are not."""
    net, params = network(two_time)
    want = draw(net, params)
    neutral = dict(gamma=0.0, guidance=1.0, weak_dropout=0.5, reward="x", reward_scale=0.0)
    assert_same(steered(two_time, Steering(**neutral)), want)
    changes = [{"guidance": 1.1}, {"reward_scale": 0.5}] + [{"gamma": 0.1}] * two_time
    for change in changes:
        got = steered(two_time, Steering(**(neutral | change)))
        assert (got.steps_confidence != want.steps_confidence).any(), change


def test_temperature_to_zero_is_the_argmax():
    """Of the last read-out; the earlier ones are not drawn at any temperature."""
    net, params = network(False)
    want = draw(net, params)
    np.testing.assert_array_equal(steered(False, temperature=1e-4).tokens, want.tokens)
    hot = steered(False, temperature=3.0)
    assert (hot.tokens != want.tokens).any()
    np.testing.assert_array_equal(hot.steps_tokens[:-1], want.steps_tokens[:-1])
    np.testing.assert_array_equal(hot.steps_tokens[-1], hot.tokens)


def test_read_outs_are_summed_and_drawn_by_tiles():
    """Tiles of 4 of 6 positions: the same tokens, and the same sum with a negative weight."""
    net, params = network(False)
    tiled = dataclasses.replace(net, loss_tile=4)
    head = net.readout(params)
    first, second = (Readout(x, *head) for x in jax.random.normal(KEY, (2, 3, 6, 8)))
    pick = jax.vmap(
        lambda at, x: choose(jax.random.fold_in(KEY, at), x, Choice(1.0)),
        in_axes=(0, 1),
        out_axes=1,
    )

    @jax.jit
    def both():
        return [
            mixture([Part(1.5, first, own), Part(-0.5, second, own)], params["table"], pick)
            for own in (net, tiled)
        ]

    (mean, seen), (tiled_mean, tiled_seen) = both()
    np.testing.assert_array_equal(seen[0], tiled_seen[0])
    want = 1.5 * probabilities(first, net) - 0.5 * probabilities(second, net)
    for got in (mean, tiled_mean):
        np.testing.assert_allclose(got, want @ params["table"], rtol=0, atol=1e-4)
    share = jnp.maximum(want, 0.0) / jnp.maximum(want, 0.0).sum(-1, keepdims=True)
    picked = jnp.take_along_axis(share, seen[0][..., None], axis=-1)[..., 0]
    np.testing.assert_allclose(seen[1], picked, rtol=1e-3)
    assert (seen[0] != jnp.argmax(want, axis=-1)).any()


def test_temperature_draws_from_the_last_distribution():
    """One call of the exact flow: tokens as often as by p^(1/T), within 4 errors."""
    net, _ = exact_network()
    given, rows = nothing_given(4000, 3), 4000
    uneven = dataclasses.replace(
        net, features=lambda *a, **k: net.features(*a, **k) + jnp.asarray([[[1.0, 0, 0, 0, 0]]])
    )
    run = program(uneven, 1, Steering(), Choice(0.5), Guides(), exact=True)
    first = np.asarray(run(KEY, {}, given, {}).tokens)[:, 0]
    share = np.exp(2.0) / (1 + np.exp(2.0))  # logits 1 and 0 at temperature 1/2
    assert set(first) == {0, 3}
    assert abs((first == 0).mean() - share) < 4 * (share * (1 - share) / rows) ** 0.5


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0])
def test_noise_between_jumps(gamma):
    """Clean data x at t' and delta = x: the state at t has the law of t x + (1-t) eps."""
    rng, t, clean = np.random.default_rng(0), jnp.float32(0.3), 2.0
    end = float(overshoot(t, gamma))
    y = end * clean + (1 - end) * jnp.asarray(rng.standard_normal((1, 200_000, 1)), jnp.float32)
    eps = jnp.asarray(rng.standard_normal(y.shape), jnp.float32)
    got = renoised(y, jnp.full(y.shape, clean), t, gamma, eps)
    assert abs(got.mean() - t * clean) < 0.01 and abs(got.std() - (1 - t)) < 0.01
    if gamma == 0.0:
        assert end == t and (got == y).all()
    if gamma == 1.0:
        assert end == 1.0
        np.testing.assert_allclose(got, t * clean + (1 - t) * eps, rtol=0, atol=1e-6)


def blended(share):
    """The exact denoiser, mixed with a law of independent tokens: `share` of the former.

    That law prefers the first sequence at its first position, the second at its last.
    """
    net, _ = exact_network()
    likely = jnp.asarray([[0.7, 0.5, 0.3], [0.3, 0.5, 0.7]])
    alone = jnp.einsum("kl,klv->lv", likely, jax.nn.one_hot(jnp.asarray(SEQUENCES), 5))[None]

    def features(params, x_s, s, t, *, key=None):
        right = jnp.exp(net.features(params, x_s / params["scale"], s, t))
        return jnp.log(share * right + (1 - share) * alone + 1e-30)

    table = lambda params: params["scale"] * jnp.eye(5)
    return dataclasses.replace(net, features=features, table=table)


def test_guidance_undoes_what_the_weak_network_does_worse():
    """Half and a quarter of the true denoiser: at eta = 3 their difference gives all of it back.

    The weak network has another table, so that both are asked about one eps only if the noise is
    drawn jointly.
    """
    exact, _ = exact_network()
    given = nothing_given(1000, 3)
    unit, double = {"scale": jnp.float32(1.0)}, {"scale": jnp.float32(2.0)}
    guides, extra = Guides(blended(0.25)), {"weak": double}
    valid = {}
    for eta in (1.0, 2.0, 3.0):
        steering = Steering(guidance=eta, weak="weak")
        run = program(blended(0.5), 2, steering, Choice(0.0), guides, exact=True)
        samples = run(KEY, unit, given, extra)
        found = matches(samples.tokens)
        valid[eta] = (found[0] | found[1]).mean()
        assert samples.calls is None if eta == 1.0 else int(samples.calls) == 4
    want = program(exact, 2, Steering(), Choice(0.0), Guides(), exact=True)(KEY, {}, given, {})
    np.testing.assert_array_equal(samples.tokens, want.tokens)
    np.testing.assert_allclose(samples.steps_confidence, want.steps_confidence, atol=1e-4)
    assert valid[1.0] < valid[2.0] - 0.02 and valid[2.0] < valid[3.0] == 1.0


def test_guidance_written_out():
    """One step of a dropout network: weak + eta (strong - weak), its argmax and its embedding."""
    net, params = network(False)
    y_0, tau = plain(net, params, FREE).noise(KEY), jnp.full(3, 0.25)
    guided = autoguided(net, params, Weak(net), 3.0, FREE)
    ask = jax.jit(lambda key: guided.ask(y_0, y_0, 0.4, (tau, tau), key))
    _, delta, (tokens, _) = ask(KEY)
    _, dropout_key = jax.random.split(KEY)
    probs = lambda **k: jax.nn.softmax(denoiser(net)(params, y_0, tau, tau, **k), axis=-1)
    want = 3.0 * probs() - 2.0 * probs(key=dropout_key)
    np.testing.assert_allclose(delta, want @ params["table"], rtol=0, atol=1e-4)
    np.testing.assert_array_equal(tokens, jnp.argmax(want, axis=-1))
    assert jnp.abs(ask(jax.random.key(9))[1] - delta).max() > 1e-2  # another mask


def test_reward_tilts_the_exact_law():
    """r = 1 for the second sequence, scale 2: its share is e^2/(1+e^2) = 0.88 instead of 1/2.

    The first-order denoiser comes near (within 0.06), and every text stays valid.
    """
    net, _ = exact_network()
    reward = Reward(lambda params: jnp.eye(5), lambda params, x: x[:, 0, 3])
    given, shares = nothing_given(2000, 3), []
    for scale in (0.0, 2.0, -2.0):
        steering = Steering(reward="x", reward_scale=scale)
        run = program(net, 32, steering, Choice(0.0), Guides(None, reward), exact=True)
        samples = run(KEY, {}, given, {"reward": {}})
        first, second = matches(samples.tokens)
        assert (first | second).mean() > 0.999
        assert samples.calls is None if scale == 0.0 else int(samples.calls) == 64
        shares.append(second.mean())
    want = 1 / (1 + np.exp([0.0, -2.0, 2.0]))
    np.testing.assert_allclose(shares, want, rtol=0, atol=0.06)


def test_nudge_is_the_gradient_in_the_one_hot_space():
    """c E^T E grad r(D_s(y)), against finite differences in R^V; given positions do not count."""
    net, params = network(False)
    given = Given(jnp.zeros((3, 6), jnp.int32), jnp.zeros((3, 6), bool).at[:, 0].set(True))
    table = params["table"]
    nudge = make_nudge(net, params, ONES, REWARD["reward"], 2.0, table, given)
    y, s, t, tau = 0.3 * table[some_given().tokens], 0.3, 0.4, jnp.float32(0.2)
    moved = jax.jit(nudge)(y, y, tau, s, t) - y
    c = 2.0 * (t - s) * (1 - s) / s
    way = jax.random.normal(jax.random.key(8), (3, 6, 11)).at[:, 0].set(0.0)  # in R^V

    def reward(step):
        held = y + step * way @ table
        held = held.at[:, 0].set(s * table[:1] + (1 - s) * y[:, 0])
        probs = jax.nn.softmax(denoiser(net)(params, held, jnp.full(3, tau), jnp.full(3, tau)))
        return probs[:, 1:, 1].sum()

    slope = (reward(1e-3) - reward(-1e-3)) / 2e-3
    # moved = c G E for the gradient G in R^V; what of `way` E does not see does not count.
    gradient, seen = moved @ jnp.linalg.pinv(table) / c, way @ table @ jnp.linalg.pinv(table)
    np.testing.assert_allclose(jnp.sum(gradient * seen), slope, rtol=0.02)


ALL = [
    (False, Steering(solver="heun"), 0.0),
    (False, Steering(solver="adaptive"), 2.0),
    (False, dataclasses.replace(GUIDED, solver="adaptive"), 0.0),
    (True, Steering(gamma=0.7, guidance=3.0, weak_dropout=0.5, reward="x", reward_scale=5.0), 2.0),
]


@pytest.mark.parametrize("two_time, steering, temperature", ALL)
def test_given_tokens_are_never_altered(two_time, steering, temperature):
    given = some_given()
    got = steered(two_time, steering, steps=6, given=given, temperature=temperature)
    for tokens, confidence in zip(got.steps_tokens, got.steps_confidence):
        np.testing.assert_array_equal(tokens[given.mask], given.tokens[given.mask])
        assert (confidence[given.mask] == 1.0).all()
    assert (got.tokens != given.tokens)[~given.mask].any()
    free = steered(two_time, steering, steps=6, temperature=temperature)
    assert (free.tokens != given.tokens)[given.mask].any()


def test_weak_parameters_of_the_same_values_guide_nowhere():
    """delta + (eta - 1) (delta - delta): another eta, the same tokens."""
    net, params = network(True)
    got = steered(True, Steering(guidance=5.0, weak="w"), extra={"weak": params})
    want = draw(net, params)
    np.testing.assert_array_equal(got.steps_tokens, want.steps_tokens)
    np.testing.assert_allclose(got.steps_confidence, want.steps_confidence, rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"solver": "hein"}, "did you mean 'heun'"),
        ({"solver": "adaptive", "tolerance": 0.0}, "tolerance is 0.0; expected more than 0"),
        ({"tolerance": 0.1}, "with solver=euler, which has none; give solver=adaptive"),
        ({"gamma": 1.5}, "gamma is 1.5; expected 0 to 1"),
        ({"guidance": 2.0}, "nothing to guide by; give weak=WORKDIR"),
        ({"weak": "w", "weak_dropout": 0.1}, "expected one of them"),
        ({"weak_dropout": 1.0}, r"expected a rate in \[0, 1\)"),
        ({"reward_scale": 1.0}, "no reward; give reward=FOLDER"),
        ({"reward": "r", "reward_scale": 1.0, "solver": "heun"}, "go with solver=euler alone"),
        ({"guidance": float("nan"), "weak": "w"}, "expected a finite number"),
    ],
)
def test_bad_options(fields, message):
    with pytest.raises(UserError, match=message):
        Steering(**fields)


@pytest.mark.parametrize(
    "two_time, steering, steps, message",
    [
        (True, Steering(solver="heun"), 4, "for a flow map, which jumps"),
        (False, Steering(gamma=0.5), 4, "for a flow with one time"),
        (False, Steering(solver="adaptive"), 4, "at least 5, for example 256"),
    ],
)
def test_options_that_a_network_cannot_follow(two_time, steering, steps, message):
    with pytest.raises(UserError, match=message):
        check_steering(steering, network(two_time)[0], steps)


def test_steps_take_keys_of_their_own():
    """The noise at the start takes the key itself and, drawn jointly, its fold 1."""
    keys = [KEY, jax.random.fold_in(KEY, 1), *(step_key(KEY, k) for k in range(4))]
    assert len({tuple(jax.random.key_data(k).tolist()) for k in keys}) == 6


@pytest.mark.parametrize("gamma", [0.0, 1.0])
def test_stochastic_jumps_written_out(gamma):
    """Two jumps of a flow map, the second from t delta + (1-t) eps or from where it landed."""
    net, params = network(True)
    den = plain(net, params, FREE)
    y_0, taus = den.noise(KEY), jnp.asarray([0.0, 0.5, 1.0])
    t = tau_to_t(CLOCK, taus)[1]
    got = jax.jit(lambda y: carry(KEY, y, den, clock=CLOCK, steps=2, gamma=gamma))(y_0)
    ask = lambda y, a, b: jax.nn.softmax(
        denoiser(net)(params, y, jnp.full(3, a), jnp.full(3, b)), axis=-1
    )
    delta = ask(y_0, 0.0, 1.0 if gamma else 0.5) @ params["table"]
    fresh = den.noise(jax.random.fold_in(step_key(KEY, 0), 1)) if gamma else y_0
    want = ask(t * delta + (1 - t) * fresh, 0.5, 1.0)
    np.testing.assert_allclose(got.steps_confidence[-1], want.max(-1), rtol=0, atol=1e-4)
