"""Posterior refinement: what is written, when, how many calls, and that it mends a flow map."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flm_jax.build.data import open_data, resolve_vocabulary
from flm_jax.build.flow import make_flow
from flm_jax.build.load import Model
from flm_jax.build.model import make_network
from flm_jax.build.sampler import choose_sampler
from flm_jax.config.check import check
from flm_jax.config.schema import choose
from flm_jax.config.upgrade import upgrade
from flm_jax.core.errors import UserError
from flm_jax.core.network import Network
from flm_jax.denoiser.forward import denoise
from flm_jax.inference import engine
from flm_jax.samplers.base import Given, nothing_given
from flm_jax.samplers.euler import sample_euler
from flm_jax.samplers.posterior_refinement import (
    BUDGETS,
    PosteriorRefinementConfig,
    sample_refined,
    tokens_of_round,
)
from helpers.networks import FLOW, LENGTH, ROWS, VOCAB, denoiser, start, tiny_network
from helpers.routes import FIRST, SIGN
from helpers.runs import tiny_config

KEY = jax.random.key(4)


@functools.lru_cache
def any_order():
    net, params = tiny_network(True)
    return dataclasses.replace(net, any_order=True), params


def settings(**changes):
    return PosteriorRefinementConfig(**({"spread": "even", "threshold": 1.0} | changes))


@functools.lru_cache
def refined(steps, budget="topk", threshold=1.0, **more):
    net, _ = any_order()
    how = {"flow": FLOW, "steps": steps}
    how["cfg"] = settings(budget=budget, threshold=threshold, **more)
    return jax.jit(lambda key, params, given: sample_refined(key, net, params, given=given, **how))


TOPK = {"flow": FLOW, "cfg": settings()}


def infill(mask):
    tokens = jax.random.randint(jax.random.key(8), (ROWS, LENGTH), 0, VOCAB)
    return Given(tokens, jnp.broadcast_to(jnp.asarray(mask), (ROWS, LENGTH)))


UNEVEN = np.arange(LENGTH)[None] < np.array([0, 2, LENGTH])[:, None]  # 6, 4 and no free positions


@pytest.mark.parametrize("mask", [False, np.arange(LENGTH) % 2 == 0], ids=["free", "infill"])
def test_one_call_is_the_plain_one_step(mask):
    """The same tokens with either budget: all free positions are written by the one call.

    Two programs: their confidences agree within rounding.
    """
    net, params = any_order()
    given = infill(mask)
    want = jax.jit(lambda key: sample_euler(key, net, params, flow=FLOW, steps=1, given=given))(KEY)
    for budget in BUDGETS:
        got = refined(1, budget)(KEY, params, given)
        np.testing.assert_array_equal(got.tokens, want.tokens)
        np.testing.assert_allclose(got.steps_confidence, want.steps_confidence, atol=1e-6)
        assert int(got.calls) == 1


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("steps", [3, 9])
def test_given_tokens_stay_and_the_rest_is_written_evenly(budget, steps):
    """After call k a row has its share of calls 1..k; what is written never changes again."""
    _, params = any_order()
    given = infill(UNEVEN)
    out = refined(steps, budget)(KEY, params, given)
    assert int(out.calls) == min(steps, LENGTH)
    seen = np.concatenate([np.asarray(out.steps_tokens), out.tokens[None]])
    for row in seen:
        np.testing.assert_array_equal(row[UNEVEN], np.asarray(given.tokens)[UNEVEN])
    # A written position is read out with confidence 1 by the calls after.
    known = np.asarray(out.steps_confidence)[: int(out.calls)] == 1.0
    free = LENGTH - UNEVEN.sum(axis=1)
    share = [free // steps + (k < free % steps) for k in range(steps)]
    want = UNEVEN.sum(axis=1) + np.cumsum([0 * free, *share], axis=0)[: len(known)]
    np.testing.assert_array_equal(known.sum(axis=2), want)
    for k in range(1, len(known)):
        assert (known[k] >= known[k - 1]).all()
        np.testing.assert_array_equal(seen[k][known[k]], np.asarray(out.tokens)[known[k]])


def test_nothing_to_write_takes_no_call():
    _, params = any_order()
    given = infill(True)
    out = refined(3, "topk")(KEY, params, given)
    assert int(out.calls) == 0
    np.testing.assert_array_equal(out.tokens, given.tokens)


def test_topk_keeps_the_most_confident_and_uniform_does_not_look():
    _, params = any_order()
    given = nothing_given(ROWS, LENGTH)
    out = refined(3, "topk")(KEY, params, given)
    first, second = np.asarray(out.steps_confidence[:2])
    written = second == 1.0
    for row in range(ROWS):
        assert first[row][written[row]].min() > first[row][~written[row]].max()
    counts = np.zeros(LENGTH)
    for seed in range(200):
        out = refined(3, "uniform")(jax.random.key(seed), params, given)
        counts += (np.asarray(out.steps_confidence[1]) == 1.0).sum(axis=0)
    np.testing.assert_allclose(counts / 600, 2 / LENGTH, atol=0.08)


def test_threshold_keeps_sure_predictions_at_once():
    """Below every probability one call is left; above them all it changes nothing."""
    _, params = any_order()
    given = nothing_given(ROWS, LENGTH)
    slow, fast = refined(6, "topk"), refined(6, "topk", 0.0)
    assert int(fast(KEY, params, given).calls) == 1
    np.testing.assert_array_equal(
        fast(KEY, params, given).tokens, refined(1, "topk")(KEY, params, given).tokens
    )
    assert int(slow(KEY, params, given).calls) == 6


def by_hand(rounds, given, cfg):
    """The authors' rule round by round: tokens, network calls, positions that each round wrote."""
    net, params = any_order()
    table, written, tokens = net.table(params), np.asarray(given.mask), np.asarray(given.tokens)
    calls, counts = 0, []
    for r in range(rounds):
        if written.all():
            break
        fresh = r > 0 and cfg.noise == "fresh"
        y = start(jax.random.fold_in(KEY, r) if fresh else KEY, net, params, given)
        for j in range(cfg.flow_steps):
            s, t = (jnp.where(written, 1.0, (j + i) / cfg.flow_steps) for i in (0, 1))
            y = jnp.where(written[..., None], table[tokens], y)
            probs = jax.nn.softmax(denoiser(net)(params, y, s, t))
            a, b = (FLOW.t(jnp.asarray((j + i) / cfg.flow_steps)) for i in (0, 1))
            y = (1 - b) / (1 - a) * y + (b - a) / (1 - a) * (probs @ table)
            calls += 1
        confidence = np.where(written, -1.0, np.asarray(probs.max(-1)))
        now = confidence >= cfg.threshold
        for row, left in enumerate((~written).sum(axis=1)):
            count = cfg.tokens or int(np.ceil(left / (rounds - r)))
            best = np.argsort(-confidence[row])[: min(left, left if r == rounds - 1 else count)]
            now[row, best] = True
        tokens = np.where(now, np.asarray(probs.argmax(-1)), tokens)
        counts.append(now.sum(axis=1))
        written = written | now
    return tokens, calls, np.array(counts)


@pytest.mark.parametrize(
    "rounds, changes",
    [
        (3, {"threshold": 0.29}),
        (2, {"threshold": 1.0, "flow_steps": 3, "noise": "kept"}),
        (3, {"threshold": 1.0, "tokens": 1}),
    ],
)
def test_the_authors_rule_by_hand(rounds, changes):
    """What is left is spread over the rounds left, sure ones on top; or a number a round."""
    _, params = any_order()
    cfg = PosteriorRefinementConfig(**changes)
    given = infill(UNEVEN)
    tokens, calls, counts = by_hand(rounds, given, cfg)
    got = refined(rounds * cfg.flow_steps, **({"spread": "remaining"} | changes))(
        KEY, params, given
    )
    np.testing.assert_array_equal(got.tokens, tokens)
    assert int(got.calls) == calls
    if changes["threshold"] < 1.0:
        np.testing.assert_array_equal(counts, [[2, 3, 0], [3, 1, 0], [1, 0, 0]])  # not 2, 2, 2


def test_how_many_a_round_writes():
    """Of 20 positions 14 and 20 are written after the first round of four."""
    left, total = jnp.array([6, 0, 20]), jnp.array([20, 20, 20])
    for changes, want in (
        ({}, ([2, 0, 7], [6, 0, 20])),
        ({"spread": "even"}, ([5, 5, 5], [5, 5, 5])),
        ({"tokens": 3}, ([3, 3, 3], [6, 0, 20])),
    ):
        cfg = PosteriorRefinementConfig(**changes)
        for k, counts in zip((1, 3), want):
            got = tokens_of_round(cfg, left, total, 4, jnp.int32(k))
            np.testing.assert_array_equal(got, counts, err_msg=f"{changes} {k}")


def test_the_rule_of_the_authors_is_the_default():
    cfg = PosteriorRefinementConfig()
    told = (cfg.spread, cfg.threshold, cfg.noise, cfg.tokens, cfg.flow_steps, cfg.until)
    assert told == ("remaining", 0.9, "fresh", 0, 1, 1.0)
    older = {"name": "posterior_refinement", "budget": "topk", "threshold": 1.0, "until": 0.0}
    config = untrained(0.5).config | {"sampler": older}
    new = upgrade(config)["sampler"]
    assert (new["spread"], new["threshold"], new["until"]) == ("even", 1.0, 0.0)


def imperfect(error):
    """An any-order flow map of the flow of two sequences; its table is the identity.

    The true one-step map writes sequence 1 where b = <x, x^1 - x^2> > 0. Here each position adds
    an error of its own to b; a clean token tells which sequence it is, and then there is none.
    """

    def features(params, y, s, t, *, key=None):
        own = jnp.sum(y * SIGN[None], axis=-1)
        b = jnp.sum(own, axis=1, keepdims=True) + error * own
        clean = jnp.sum(jnp.where(s == 1.0, own, 0.0), axis=1, keepdims=True)
        return jnp.where(clean == 0.0, b, 4.0 * jnp.sign(clean))[..., None] * SIGN[None]

    readout = lambda params: (jnp.eye(2), jnp.zeros(2))
    table = lambda params: jnp.eye(2)
    return Network(lambda key: {}, features, readout, table, 2, 2, 3, two_time=True, any_order=True)


def consistent(tokens):
    """Share of rows that are one of the two sequences, and share of the first among all."""
    same = np.asarray(tokens) == np.asarray(FIRST)
    return (same.all(axis=1) | (~same).all(axis=1)).mean(), same.all(axis=1).mean()


@pytest.mark.parametrize("budget", BUDGETS)
def test_refinement_mends_what_one_call_leaves_undecided(budget):
    """One call: 15% of the rows mix the sequences. Two: none with top-k, fewer with uniform; the
    law stays even within 3 standard errors."""
    net, given = imperfect(1.5), nothing_given(4000, 3)
    draw = lambda steps: jax.jit(
        lambda key: (
            sample_refined(
                key, net, {}, steps=steps, given=given, flow=FLOW, cfg=settings(budget=budget)
            ).tokens
        )
    )(KEY)
    one, two, three = (consistent(draw(steps)) for steps in (1, 2, 3))
    assert one[0] < 0.85
    assert two[0] > one[0] + 0.05
    assert three[0] == 1.0
    assert abs(three[1] - 0.5) < 3 * 0.5 / 4000**0.5


def test_infilling_follows_the_given_token():
    net = imperfect(1.5)
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 2, (64, 3)), jnp.int32)
    given = Given(tokens, jnp.tile(jnp.asarray([False, True, False]), (64, 1)))
    out = sample_refined(KEY, net, {}, steps=1, given=given, **TOPK)
    np.testing.assert_array_equal(out.tokens[:, 1], tokens[:, 1])
    assert consistent(out.tokens)[0] == 1.0


def untrained(share):
    """A flow map as if trained with that share of rows with context."""
    config = tiny_config()
    choose(config, objective="semigroup")
    config.model.two_time = True
    config.objective.context = share
    config = check(config)
    tokenizer = open_data(config).tokenizer
    config = resolve_vocabulary(config, tokenizer)
    net = make_network(config)
    flow = make_flow(config, net.vocab_size)
    return Model(config, net, net.init(jax.random.key(0)), flow, tokenizer, 0)


@pytest.mark.parametrize("until", [0.0, 0.6])
def test_jumps_end_where_they_are_told(until):
    """One call reads out delta_0t at t = until, by definition."""
    net, params = any_order()
    given = nothing_given(ROWS, LENGTH)
    how = {"flow": FLOW, "cfg": settings(until=until)}
    got = sample_refined(KEY, net, params, steps=1, given=given, **how)
    y_0, times = start(KEY, net, params, given), jnp.zeros((ROWS, LENGTH))
    probs = jax.nn.softmax(denoise(net, params, y_0, times, times + until))
    np.testing.assert_array_equal(got.tokens, probs.argmax(-1))
    np.testing.assert_allclose(got.steps_confidence[0], probs.max(-1), atol=1e-5)
    whole = sample_refined(KEY, net, params, steps=1, given=given, **TOPK)
    assert not np.allclose(whole.steps_confidence, got.steps_confidence, atol=1e-3)


def test_models_are_refined_by_options():
    model = untrained(0.5)
    assert model.net.any_order
    given = nothing_given(4, 2)
    drawn = engine.draw(model, given, steps=2, num=8, seed=0, sampler=PosteriorRefinementConfig())
    assert drawn.tokens.shape == (8, 2) and drawn.calls == 2


@pytest.mark.parametrize(
    "share, changes, says",
    [
        (0.0, {}, "needs a flow map trained with random clean context"),
        (0.5, {"budget": "top"}, "unknown sampler.budget 'top'; did you mean 'topk'"),
        (0.5, {"until": 1.5}, r"until is 1.5; expected a number in \[0, 1\]"),
        (
            0.5,
            {"flow_steps": 3},
            "got steps=2 .* flow_steps=3; expected a multiple, such as steps=3",
        ),
        (0.5, {"flow_steps": 2, "until": 0.5}, "until is 0.5 with flow_steps=2"),
        (0.5, {"threshold": 1.5}, r"threshold is 1.5; expected a number in \[0, 1\]"),
        (0.5, {"temperature": 1.0}, "posterior_refinement has no 'temperature'"),
    ],
)
def test_refused_settings(share, changes, says):
    model = untrained(share)
    with pytest.raises(UserError, match=says):
        cfg = choose_sampler(model.config, "posterior_refinement", **changes)
        engine.draw(model, nothing_given(1, 2), steps=2, num=1, seed=0, sampler=cfg)
