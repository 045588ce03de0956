"""The sampler of flows: what must change nothing, temperature, given tokens, refused options."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from flm_jax.core.errors import UserError
from flm_jax.samplers.base import nothing_given
from flm_jax.samplers.euler import EulerConfig, FlowMapConfig
from flm_jax.samplers.flow import check_flow
from flm_jax.samplers.guides import Guides
from helpers.networks import KEY, draw, exact_network, some_given, tiny_network
from helpers.steering import flow_settings, steered, steered_program

GUIDED = {"guidance": 2.0, "weak_dropout": 0.5}


def assert_same(one, other):
    np.testing.assert_array_equal(one.steps_tokens, other.steps_tokens)
    np.testing.assert_array_equal(one.steps_confidence, other.steps_confidence)


@pytest.mark.parametrize("two_time", [False, True])
def test_neutral_settings_change_nothing(two_time):
    """eta = 1, gamma = 0, a reward of weight 0: bit-equal; their neighbours are not."""
    net, params = tiny_network(two_time)
    want = draw(net, params)
    neutral = dict(guidance=1.0, weak_dropout=0.5, reward="x", reward_scale=0.0)
    neutral |= {"gamma": 0.0} if two_time else {}
    assert_same(steered(two_time, flow_settings(two_time, **neutral)), want)
    changes = [{"guidance": 1.1}, {"reward_scale": 0.5}] + [{"gamma": 0.1}] * two_time
    for change in changes:
        got = steered(two_time, flow_settings(two_time, **(neutral | change)))
        assert (got.steps_confidence != want.steps_confidence).any(), change


def test_temperature_to_zero_is_the_argmax():
    """Of the last read-out; the earlier ones are not drawn at any temperature."""
    net, params = tiny_network(False)
    want = draw(net, params)
    np.testing.assert_array_equal(steered(False, temperature=1e-4).tokens, want.tokens)
    hot = steered(False, temperature=3.0)
    assert (hot.tokens != want.tokens).any()
    np.testing.assert_array_equal(hot.steps_tokens[:-1], want.steps_tokens[:-1])
    np.testing.assert_array_equal(hot.steps_tokens[-1], hot.tokens)


def test_temperature_draws_from_the_last_distribution():
    """One call of the exact flow: tokens as often as by p^(1/T), within 4 errors."""
    net, _ = exact_network()
    given, rows = nothing_given(4000, 3), 4000
    uneven = dataclasses.replace(
        net, features=lambda *a, **k: net.features(*a, **k) + jnp.asarray([[[1.0, 0, 0, 0, 0]]])
    )
    run = steered_program(uneven, 1, EulerConfig(temperature=0.5), Guides(), exact=True)
    first = np.asarray(run(KEY, {}, given, {}).tokens)[:, 0]
    share = np.exp(2.0) / (1 + np.exp(2.0))  # logits 1 and 0 at temperature 1/2
    assert set(first) == {0, 3}
    assert abs((first == 0).mean() - share) < 4 * (share * (1 - share) / rows) ** 0.5


def test_a_denoiser_temperature_is_that_of_a_sharper_network():
    """At every call of the exact flow, whose logits are then divided by it."""
    net, _ = exact_network()
    given = nothing_given(64, 3)
    head = lambda params: tuple(x / 0.5 for x in net.readout(params))
    sharp = dataclasses.replace(net, readout=head, logit_softcap=2 * net.logit_softcap)
    run = lambda net, cfg: steered_program(net, 3, cfg, Guides(), exact=True)(KEY, {}, given, {})
    found = run(net, EulerConfig(denoiser_temperature=0.5))
    assert_same(found, run(sharp, EulerConfig()))
    assert (found.steps_confidence != run(net, EulerConfig()).steps_confidence).any()


ALL = [
    (False, flow_settings(False, "heun"), 0.0),
    (False, flow_settings(False, "adaptive"), 2.0),
    (False, flow_settings(False, "adaptive", **GUIDED), 0.0),
    (False, flow_settings(False, "marginal_bridge", **GUIDED), 2.0),
    (
        True,
        FlowMapConfig(gamma=0.7, guidance=3.0, weak_dropout=0.5, reward="x", reward_scale=5.0),
        2.0,
    ),
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


@pytest.mark.parametrize(
    "two_time, solver, fields, message",
    [
        (
            False,
            "adaptive",
            {"tolerance": 0.0},
            r"tolerance is 0.0; expected a number in \(0, inf\)",
        ),
        (True, "", {"gamma": 1.5}, r"gamma is 1.5; expected a number in \[0, 1\]"),
        (False, "euler", {"guidance": 2.0}, "nothing to guide by; give weak=WORKDIR"),
        (False, "euler", {"weak": "w", "weak_dropout": 0.1}, "expected one of them"),
        (False, "euler", {"weak_dropout": 1.0}, r"expected a number in \[0, 1\)"),
        (False, "euler", {"reward_scale": 1.0}, "no reward; give reward=FOLDER"),
        (False, "euler", {"guidance": float("nan"), "weak": "w"}, "guidance is nan"),
        (False, "heun", {"top_p": 0.5}, "top_p=0.5 without a temperature"),
    ],
)
def test_bad_settings(two_time, solver, fields, message):
    with pytest.raises(UserError, match=message):
        flow_settings(two_time, solver, **fields)


def test_bounds_of_calls_that_are_too_few():
    with pytest.raises(UserError, match="at least 5, for example 256"):
        check_flow(flow_settings(False, "adaptive"), tiny_network(False)[0], 4, None)
