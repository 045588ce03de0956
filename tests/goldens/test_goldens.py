"""Numbers of the published PyTorch code, all float32; see README.md beside this file."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flm_jax.denoiser.forward import denoise
from flm_jax.flows.clocks import decoding_clock, t_to_tau, tau_to_t
from flm_jax.flows.flow import onehot_flow
from flm_jax.losses.denoising import denoising_loss_at
from flm_jax.losses.distillation.base import diagonal_loss_at
from flm_jax.losses.distillation.semigroup import semigroup_loss_at
from flm_jax.models.layers import time_features
from flm_jax.samplers.base import nothing_given
from flm_jax.samplers.euler import carry, sample_euler_from, step_key
from flm_jax.samplers.guidance import plain
from helpers.goldens import (
    GOLDENS,
    arrays,
    assert_close,
    assert_trees_close,
    golden_network,
    golden_states,
    gradients,
)

KEY = jax.random.key(0)
DIAGONAL, OFF_DIAGONAL = slice(0, 3), slice(3, 8)


@pytest.fixture(scope="module")
def flow():
    return onehot_flow(decoding_clock(97))


@pytest.mark.parametrize("vocab_size", [27, 1024, 30522, 50257])
def test_clock_is_the_integral(vocab_size):
    with np.load(GOLDENS / "clocks.npz") as file:
        grid, tau, t = (
            file[k] for k in ("grid", f"g2a_exact_{vocab_size}", f"a2g_exact_{vocab_size}")
        )
    clock = decoding_clock(vocab_size)
    grid = jnp.asarray(grid, jnp.float32)
    assert_close(t_to_tau(clock, grid), tau, 2e-6)
    assert_close(tau_to_t(clock, grid), t, 2e-6)


@pytest.mark.parametrize(
    "name, logits", [("dit_single", "single_cont_sigma"), ("dit_double", "double_cont_both")]
)
def test_logits(name, logits):
    golden = arrays("dit")
    net, params = golden_network(name, logit_softcap=0.0)
    y = golden["x_cont"] @ params["table"]
    assert_close(y, golden[f"{name[4:]}_cont_act_embed"])
    found = denoise(net, params, y, golden["sigma"], golden["sigma_prime"])
    assert_close(found, golden[f"{logits}_f32"])


def embed_time(params, times):
    hidden, out = params["hidden"], params["out"]
    hidden = jax.nn.silu(time_features(times) @ hidden["kernel"] + hidden["bias"][None])
    return hidden @ out["kernel"] + out["bias"][None]


def test_time_embedding():
    golden = arrays("dit")
    _, params = golden_network("dit_single")
    assert_close(embed_time(params["time"], golden["sigma"]), golden["single_cont_act_sigma_emb"])


def denoising_losses(params, net, golden, kind):
    y_t = golden_states(golden["noise"], golden["gamma"], golden["x0"], params["table"], kind)
    weights = jnp.full(golden["x0"].shape, 1 / golden["x0"].size)
    return denoising_loss_at(params, y_t, golden["tau"], golden["x0"], weights, net=net)


def test_denoising_loss_and_gradient():
    golden = arrays("flm")
    net, params = golden_network("dit_single")
    step = jax.jit(
        jax.value_and_grad(lambda p: denoising_losses(p, net, golden, "onehot"), has_aux=True)
    )
    (mean, nll), gradient = step(params)
    assert_close(nll, golden["loss_per_token_f32"])
    assert_close(mean, golden["loss_mean_f32"])
    assert_trees_close(gradient, gradients("flm_grads", "dit_single.safetensors"))


def test_denoising_loss_projected():
    golden = arrays("flm")
    net, params = golden_network("dit_single")
    mean, nll = jax.jit(lambda p: denoising_losses(p, net, golden, "projected"))(params)
    assert_close(nll, golden["loss_per_token_f32"])
    assert_close(mean, golden["loss_mean_f32"])


def test_clock_at_golden_times(flow):
    golden = arrays("flm")
    assert_close(flow.t(golden["tau"]), golden["gamma"], 2e-6)


def test_euler_tokens(flow):
    golden = arrays("flm")
    net, params = golden_network("dit_single")
    y_0 = golden["z0"] @ params["table"]
    samples = sample_euler_from(y_0, net, params, flow=flow, steps=8, given=nothing_given(4, 16))
    assert (samples.tokens == golden["tokens_8_f32"]).all()
    confidence = jnp.exp(golden["logp_last_8_f32"].max(axis=-1))
    assert_close(samples.steps_confidence[-1], confidence)


def semigroup_losses(params, net, flow, golden, taus, times, kind):
    """Diagonal rows and the others, as the objective joins them."""
    tokens = golden["x1"]
    weights = jnp.full(tokens.shape, 1 / tokens.size)
    y_s = golden_states(golden["noise"], times[0], tokens, params["table"], kind)
    diagonal, first = diagonal_loss_at(
        params,
        (y_s[DIAGONAL], None),
        taus[0][DIAGONAL],
        tokens[DIAGONAL],
        weights[DIAGONAL],
        net=net,
        teacher=None,
    )
    semigroup, second = semigroup_loss_at(
        params,
        params,
        y_s[OFF_DIAGONAL],
        tuple(tau[OFF_DIAGONAL] for tau in taus),
        tuple(t[OFF_DIAGONAL] for t in times),
        weights[OFF_DIAGONAL],
        net=net,
        flow=flow,
        form="ce",
    )
    return diagonal + semigroup, jnp.concatenate([first, second])


def test_semigroup_loss_and_gradient(flow):
    golden = arrays("fmlm")
    net, params = golden_network("dit_double")

    def losses(params, taus, times, kind):
        return semigroup_losses(params, net, flow, golden, taus, times, kind)

    step = jax.jit(jax.value_and_grad(losses, has_aux=True), static_argnums=3)
    projected = jax.jit(losses, static_argnums=3)
    for split in ("mid", "rand"):
        taus = tuple(golden[name] for name in ("tau_s", f"tau_u_{split}", "tau_t"))
        times = tuple(golden[f"psd_{split}_{name}"] for name in "sut")
        (mean, ce), gradient = step(params, taus, times, "onehot")
        assert_close(ce, golden[f"psd_{split}_loss"])
        assert_close(mean, golden[f"psd_{split}_loss"].mean())
        assert_trees_close(gradient, gradients(f"psd_{split}_grads", "dit_double.safetensors"))
        _, ce = projected(params, taus, times, "projected")
        assert_close(ce, golden[f"psd_{split}_loss"])


def test_golden_rows_are_as_the_tests_split_them():
    golden = arrays("fmlm")
    assert golden["idx_diag"].tolist() == [0, 1, 2]
    assert sorted([*golden["idx_boundary"].tolist(), *golden["idx_offdiag"].tolist()]) == [
        *range(3, 8)
    ]


@pytest.mark.parametrize("kind", ["onehot", "projected"])
def test_teacher_on_the_diagonal(kind):
    golden = arrays("fmlm")
    net, params = golden_network("dit_double")
    teacher = golden_network("dit_single")
    tokens, t = golden["x1"][DIAGONAL], golden["psd_mid_s"][DIAGONAL]

    @jax.jit
    def losses(params, teacher_params):
        noise, tables = golden["noise"][DIAGONAL], (params["table"], teacher_params["table"])
        return diagonal_loss_at(
            params,
            tuple(golden_states(noise, t, tokens, table, kind) for table in tables),
            golden["tau_s"][DIAGONAL],
            tokens,
            jnp.full(tokens.shape, 1 / tokens.size),
            net=net,
            teacher=(teacher[0], teacher_params),
        )[1]

    assert_close(losses(params, teacher[1]), golden["psd_mid_teacher_loss"][DIAGONAL])


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_flow_map_tokens(flow, steps):
    golden = arrays("fmlm")
    net, params = golden_network("dit_double")
    y_0 = golden["z0"] @ params["table"]
    samples = sample_euler_from(
        y_0, net, params, flow=flow, steps=steps, given=nothing_given(4, 16)
    )
    assert (samples.tokens == golden[f"samp_g0.0_n{steps}_f32_tokens"]).all()


@pytest.mark.parametrize("gamma", [0.5, 1.0])
@pytest.mark.parametrize("steps", [2, 4])
def test_stochastic_flow_map_tokens(flow, steps, gamma):
    """With the fresh noise of the published code, found by the key of its step."""
    golden, fresh = arrays("fmlm"), arrays("gamma")
    net, params = golden_network("dit_double")
    data = lambda k: jax.random.key_data(jax.random.fold_in(step_key(KEY, k), 1))
    keys = jnp.stack([data(k) for k in range(3)])

    def noise(key):
        place = jnp.argmax(jnp.all(keys == jax.random.key_data(key)[None], axis=1))
        return fresh["fresh"][place] @ params["table"]

    denoiser = plain(net, params, flow, nothing_given(4, 16))._replace(noise=noise)
    y_0 = golden["z0"] @ params["table"]
    how = {"flow": flow, "steps": steps, "stochasticity": gamma}
    samples = jax.jit(lambda y: carry(KEY, y, denoiser, **how))(y_0)
    assert (samples.tokens == fresh[f"samp_g{gamma}_n{steps}_f32_tokens"]).all()
