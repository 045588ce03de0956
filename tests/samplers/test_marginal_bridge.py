"""Marginal-conditioned bridges on laws that are known exactly."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flm_jax.flows.interpolants.variance_preserving import VariancePreserving
from flm_jax.flows.noise import UnitNoise
from flm_jax.samplers.base import nothing_given
from flm_jax.samplers.flow import sample_flow
from flm_jax.samplers.marginal_bridge import MarginalBridgeConfig
from helpers.law_networks import LINEAR, law_flow, law_network
from helpers.networks import FLOW, FREE, KEY, ROWS, denoiser, start, tiny_network
from helpers.steering import steered

LAW = np.array([0.5, 0.3, 0.15, 0.05])
ROWS_OF_LAW = 20_000


CURVED = law_flow(VariancePreserving(), UnitNoise())


def drawn(net, flow, steps, cfg, rows=ROWS_OF_LAW):
    run = jax.jit(functools.partial(sample_flow, net=net, flow=flow, steps=steps, cfg=cfg))
    return np.asarray(run(KEY, {}, nothing_given(rows, net.max_length), {}).tokens)


def one_position(flow):
    table = np.random.default_rng(1).normal(size=(4, 3)).astype(np.float32)
    return law_network([[0], [1], [2], [3]], LAW, table, flow)


def errors_off(tokens, want):
    """Largest deviation of frequencies from a law, in standard errors of its largest entry."""
    found = np.bincount(tokens.ravel(), minlength=len(want)) / tokens.size
    return np.abs(found - want).max() / np.sqrt(0.25 / tokens.size)


@pytest.mark.parametrize("flow, steps", [(LINEAR, 2), (LINEAR, 5), (CURVED, 3)])
def test_the_marginal_of_one_position_is_exact_at_any_number_of_steps(flow, steps):
    """And is not by steps to the mean of the tokens, nor without the noise."""
    net = one_position(flow)
    assert errors_off(drawn(net, flow, steps, MarginalBridgeConfig()), LAW) < 3.5
    if steps == 5:
        for cfg in (
            MarginalBridgeConfig(end="mean"),
            MarginalBridgeConfig(bridge_noise=False),
        ):
            assert errors_off(drawn(net, flow, steps, cfg), LAW) > 9.0, cfg


def test_temperature_and_nucleus_act_on_the_marginals():
    """One step: p^(1/T), and of it the first tokens that reach top_p."""
    net = one_position(LINEAR)
    sharp = LAW**2 / (LAW**2).sum()
    got = drawn(net, LINEAR, 1, MarginalBridgeConfig(temperature=0.5))
    assert errors_off(got, sharp) < 3.5
    got = drawn(net, LINEAR, 1, MarginalBridgeConfig(temperature=0.5, top_p=0.8))
    assert errors_off(got, np.array([sharp[0], sharp[1], 0, 0]) / sharp[:2].sum()) < 3.5
    # In every step: a nucleus of one token, or next to no temperature, takes the most probable.
    greedy = steered(False, MarginalBridgeConfig(), temperature=0.0)
    small = steered(False, MarginalBridgeConfig(top_p=1e-6), temperature=1.0)
    cold = steered(False, MarginalBridgeConfig(), temperature=1e-4)
    for other in (small, cold):
        np.testing.assert_array_equal(other.steps_tokens, greedy.steps_tokens)
    warm = steered(False, MarginalBridgeConfig(), temperature=1.0)
    assert (warm.steps_tokens[0] != greedy.steps_tokens[0]).any()


def mismatched(t):
    """Share of texts whose two tokens differ after a step to t and the last one, by quadrature.

    The tokens of the first step are independent; p(0, 0 | y) is a sigmoid of both differences.
    """
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    weights = weights / weights.sum()
    signal = t + (1 - t) * np.sqrt(2) * nodes  # y[0] - y[1] where the token is 0
    total = 0.0
    for first in (signal, -signal):
        for second in (signal, -signal):
            probs = 1 / (1 + np.exp(-t / (1 - t) ** 2 * (first[:, None] + second[None])))
            total += 0.25 * (weights[:, None] * weights[None] * 2 * probs * (1 - probs)).sum()
    return total


def test_the_error_of_two_positions_is_their_multi_information():
    """Two equal tokens: one step draws them apart, KL = log 2; two steps as by quadrature."""
    net = law_network([[0, 0], [1, 1]], [0.5, 0.5], np.eye(2, dtype=np.float32), LINEAR)
    pairs = lambda steps: drawn(net, LINEAR, steps, MarginalBridgeConfig()) @ [2, 1]
    one = np.bincount(pairs(1), minlength=4) / ROWS_OF_LAW
    divergence = (0.5 * np.log(0.5 / one[[0, 3]])).sum()
    assert abs(divergence - np.log(2)) < 4 / np.sqrt(ROWS_OF_LAW)
    error = lambda share: 4 * np.sqrt(share * (1 - share) / ROWS_OF_LAW)
    apart = {steps: np.isin(pairs(steps), [1, 2]).mean() for steps in (2, 8)}
    assert abs(apart[2] - mismatched(0.5)) < error(mismatched(0.5))
    assert apart[8] < 0.5 * apart[2] < 0.25


def test_steps_to_the_mean_written_out():
    """w_y y + w_x (probs E) with the weights of the bridge; and no step sees the tokens drawn."""
    net, params = tiny_network(False)
    y = start(KEY, net, params, FREE)
    cfg = MarginalBridgeConfig(end="mean", bridge_noise=False)
    got = steered(False, cfg, temperature=0.0)
    taus = np.linspace(0, 1, 4).astype(np.float32)
    times = np.asarray(FLOW.t(jnp.asarray(taus)), np.float64)
    for k, (tau, s, t) in enumerate(zip(taus, times, times[1:])):
        logits = denoiser(net)(params, y, jnp.full(ROWS, tau), jnp.full(ROWS, tau))
        np.testing.assert_array_equal(got.steps_tokens[k], jnp.argmax(logits, axis=-1))
        kept = s * (1 - t) ** 2 / (t * (1 - s) ** 2) if s < 1 else 0.0
        mean = jax.nn.softmax(logits, axis=-1) @ params["table"]
        y = jnp.float32(kept) * y + jnp.float32(t - s * kept) * mean
