"""Losses and gradients of both stages, as the authors' code."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flm_jax.denoiser.forward import denoise
from flm_jax.denoiser.head import embed_probs
from flm_jax.losses.base import row_means
from flm_jax.losses.masked_flow import BridgeConfig, bridge_loss_at, position_weights
from helpers.goldens_mlfm import (
    EOS,
    adapted,
    arrays,
    assert_close,
    bridge,
    record,
    stored_gradients,
)

# Their names of the reductions, ours, and whether the two stages' batches use them.
REDUCTIONS = {"inverse_count": "inverse_count", "inverse_p": "inverse_share", "none": "none"}


@pytest.fixture(scope="module", params=["pretrain", "sft"])
def stage(request):
    return request.param, arrays(f"loss_{request.param}"), record("loss")[request.param]


def free_of(golden):
    return golden.get("sft_response_mask", golden["valid_mask"]).astype(bool)


def weights_of(golden, reduction):
    hidden, free = golden["corrupt_mask"], free_of(golden)
    return position_weights(hidden, free, golden["mask_ratio"], reduction)[0]


def test_reductions_of_given_tensors(stage):
    name, golden, want = stage
    for theirs, ours in REDUCTIONS.items():
        weights = weights_of(golden, ours)
        key = f"{theirs}_lambda10" if name == "pretrain" else f"same_tensors_{theirs}"
        assert_close(jnp.sum(weights * golden["ce_per_token"]), want[key]["ce"], atol=2e-6)
        assert_close(jnp.sum(weights * golden["mse_per_token"]), want[key]["mse"], atol=1e-6)
    if name == "sft":
        weights = weights_of(golden, "inverse_length")
        assert_close(
            jnp.sum(weights * golden["ce_per_token"]), want["sft_lambda10"]["ce"], atol=2e-6
        )
        assert_close(
            jnp.sum(weights * golden["mse_per_token"]), want["sft_lambda10"]["mse"], atol=1e-6
        )


def test_loss_through_the_network(stage):
    name, golden, want = stage
    net, params = adapted()
    flow = bridge()
    tau = flow.told.progress(golden["gamma"])
    assert_close(flow.t(tau), golden["t"], atol=2e-7)
    logits = denoise(net, params, golden["z_t"], tau, tau)
    assert_close(logits, golden["logits"], atol=2e-5)
    if "posterior_mean" in golden:
        mean = embed_probs(jax.nn.softmax(logits), net.table(params))
        assert_close(mean, golden["posterior_mean"], atol=3e-6)
    reduction = "inverse_count" if name == "pretrain" else "inverse_length"
    prefix = "inverse_count" if name == "pretrain" else "sft"
    weights = weights_of(golden, reduction)
    for weight in (0.0, 10.0):
        loss, nll, distance = bridge_loss_at(
            params,
            golden["z_t"],
            tau,
            golden["input_ids"],
            weights,
            net=net,
            cfg=BridgeConfig(embedding_weight=weight),
        )
        figures = want[f"{prefix}_lambda{weight:.0f}"]
        assert_close(loss, figures["total"], atol=1e-5)
        assert_close(jnp.sum(weights * nll), figures["ce"], atol=5e-6)
        if weight:
            assert_close(distance, figures["mse"], atol=1e-6)
    hidden = golden["corrupt_mask"]
    assert_close(jnp.where(hidden, nll, 0.0), golden["ce_per_token"] * hidden, atol=2e-5)
    seen, valid = row_means(nll, hidden & (golden["input_ids"] != EOS))
    there = ~jnp.isnan(golden["sample_ce_no_eos"])
    np.testing.assert_array_equal(valid > 0, there)
    assert_close(seen[there], golden["sample_ce_no_eos"][there], atol=1e-5)


@pytest.mark.parametrize(
    "name, stored, weight, reduction",
    [
        ("pretrain", "grads_pretrain_lambda10", 10.0, "inverse_count"),
        ("pretrain", "grads_pretrain_lambda0_some", 0.0, "inverse_count"),
        ("sft", "grads_sft_lambda10_unfrozen", 10.0, "inverse_length"),
    ],
)
def test_gradients(name, stored, weight, reduction):
    golden = arrays(f"loss_{name}")
    net, params = adapted()
    tau = bridge().told.progress(golden["gamma"])
    cfg = BridgeConfig(embedding_weight=weight)
    weights = weights_of(golden, reduction)

    def loss(params):
        return bridge_loss_at(
            params, golden["z_t"], tau, golden["input_ids"], weights, net=net, cfg=cfg
        )[0]

    got, want = stored_gradients(stored, jax.grad(loss)(params))
    assert len(want) > 4
    for key in want:
        scale = max(1.0, float(np.abs(want[key]).max()))
        assert_close(got[key] / scale, want[key] / scale, atol=2e-5)
