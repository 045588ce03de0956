"""The loss of masked language flows: its start, its embedding term, hidden shares, records."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flm_jax.denoiser.forward import denoise
from flm_jax.flows.gamma_state import GammaConfig, fresh_state
from flm_jax.flows.masking import masked_states
from flm_jax.flows.noising import hidden_states
from flm_jax.flows.time_sampling import Rows
from flm_jax.losses.masked_diffusion import MaskedConfig, masked_loss_at
from flm_jax.losses.masked_flow import (
    REDUCTIONS,
    BridgeConfig,
    bridge_loss,
    bridge_loss_at,
    draw_hidden,
    position_weights,
)
from helpers.masked_flow import BASE, BASE_PARAMS, FLOW, KEY, NET, PARAMS, TOKENS, bridge_flow

HIDDEN = jax.random.bernoulli(jax.random.key(4), 0.6, (4, 6)).at[:, 0].set(True)


def test_at_time_zero_states_and_loss_are_those_of_masked_diffusion():
    t = jnp.zeros(4)
    z = hidden_states(KEY, FLOW, t, TOKENS, HIDDEN, NET.table(PARAMS), NET.anchor(PARAMS))
    want = masked_states(TOKENS, HIDDEN, BASE.table(BASE_PARAMS), BASE.anchor(BASE_PARAMS))
    np.testing.assert_array_equal(z, want)
    weights = HIDDEN / jnp.sum(HIDDEN)
    cfg = BridgeConfig(embedding_weight=0.0)
    loss, nll, _ = bridge_loss_at(PARAMS, z, t, TOKENS, weights, net=NET, cfg=cfg)
    base, base_nll = masked_loss_at(
        BASE_PARAMS, TOKENS, HIDDEN, t, weights, net=BASE, cfg=MaskedConfig()
    )
    np.testing.assert_array_equal(nll, base_nll)
    assert loss == base


@pytest.mark.parametrize("tile", [0, 3])
def test_the_embedding_term(tile):
    net = dataclasses.replace(NET, loss_tile=tile)
    z = hidden_states(
        KEY, FLOW, jnp.full(4, 0.5), TOKENS, HIDDEN, NET.table(PARAMS), NET.anchor(PARAMS)
    )
    weights = HIDDEN / jnp.sum(HIDDEN)
    tau = FLOW.tau(jnp.full(4, 0.5))
    run = lambda w: bridge_loss_at(
        PARAMS, z, tau, TOKENS, weights, net=net, cfg=BridgeConfig(embedding_weight=w)
    )
    probs = jax.nn.softmax(denoise(NET, PARAMS, z, tau, tau))
    table = NET.table(PARAMS)
    want = np.sum(weights * np.mean((np.asarray(probs @ table) - table[TOKENS]) ** 2, -1))
    (without, _, _), (loss, _, distance) = run(0.0), run(10.0)
    np.testing.assert_allclose(distance, want, rtol=1e-4)
    np.testing.assert_allclose(loss, without + 10.0 * want, rtol=1e-4)


# Draws.
def test_hidden_positions_of_a_batch():
    free = jnp.arange(40)[None] >= jnp.array([[0], [10], [40]])
    free = jnp.tile(free, (400, 1))
    cfg = BridgeConfig(whole=0.3, share="uniform", least_share=0.2)
    hidden, share = draw_hidden(KEY, jax.random.key(5), free, Rows(0, 1200), cfg)
    assert not (hidden & ~free).any()
    hidden, share = np.asarray(hidden), np.asarray(share)
    whole = share == 1.0
    np.testing.assert_array_equal(hidden[whole], free[whole])
    assert abs(whole.mean() - 0.3) < 0.05
    rest = ~whole & np.asarray(free).any(axis=1)
    part = hidden.sum(axis=1)[rest] / np.asarray(free).sum(axis=1)[rest]
    assert share[rest].min() >= 0.2
    assert abs(np.mean(part - share[rest])) < 0.01  # each position with the row's probability
    assert part.min() > 0


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_a_batch_counts_as_its_parts_do(reduction):
    free = jnp.arange(8)[None] >= jnp.array([[0], [3], [8], [6]])
    hidden = free & (jax.random.uniform(KEY, free.shape) < 0.7)
    share, nll = jnp.array([0.9, 0.5, 0.3, 1.0]), jax.random.uniform(jax.random.key(1), (4, 8))
    weights, counted = position_weights(hidden, free, share, reduction)
    parts = [
        position_weights(hidden[i], free[i], share[i], reduction)
        for i in (slice(0, 1), slice(1, 4))
    ]
    sums = [jnp.sum(w * nll[i]) * n for (w, n), i in zip(parts, (slice(0, 1), slice(1, 4)))]
    np.testing.assert_allclose(jnp.sum(weights * nll), sum(sums) / counted, rtol=1e-6)
    np.testing.assert_allclose(sum(n for _, n in parts), counted)


def test_the_loss_observes_rows_by_gamma_and_keeps_prompts():
    cfg, law = BridgeConfig(embedding_weight=0.0, whole=1.0), GammaConfig(learnt="empirical")
    batch = {"tokens": TOKENS, "mask": jnp.ones((4, 6)), "prompt": jnp.arange(6)[None] < 2}
    batch["prompt"] = jnp.broadcast_to(batch["prompt"], (4, 6))
    flow = bridge_flow(law).settled(fresh_state(law))

    def run(params, batch):
        return bridge_loss(params, batch, KEY, net=NET, flow=flow, cfg=cfg, rows=Rows(0, 4))

    loss, metrics = jax.jit(run)(PARAMS, batch)
    count, total, _ = jnp.moveaxis(metrics["observed"], -1, 0)
    assert count.sum() == count[-1].sum() == 4  # all hidden: the last bin of hidden fractions
    np.testing.assert_allclose(total.sum() / 4, loss, rtol=1e-5)
    assert metrics["nll_nats_per_token"] == loss
    # Ends of text are learnt, but the law does not see them.
    ended = dataclasses.replace(cfg, eos_id=int(TOKENS[0, -1]))
    less = bridge_loss(PARAMS, batch, KEY, net=NET, flow=flow, cfg=ended, rows=Rows(0, 4))
    np.testing.assert_allclose(less[0], loss, rtol=1e-6)
    assert abs(less[1]["observed"][..., 1].sum() - total.sum()) > 1e-3
    other = batch | {"tokens": TOKENS.at[:, :2].set((TOKENS[:, :2] + 1) % 11)}
    assert jax.jit(run)(PARAMS, other)[0] != loss  # prompts are seen
