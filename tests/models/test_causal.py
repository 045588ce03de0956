"""The causal transformer: its cache, its mask, its variants."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flm_jax.denoiser.forward import denoise
from flm_jax.denoiser.head import Readout, logits
from flm_jax.losses.autoregressive import next_token_loss
from flm_jax.models.attention import AttentionPlan, attention
from flm_jax.models.causal import causal
from flm_jax.models.transformer import TransformerConfig
from flm_jax.samplers.autoregressive import sample_autoregressive
from flm_jax.samplers.base import Given
from flm_jax.samplers.categorical import Choice

KEY = jax.random.key(7)
SIZES = TransformerConfig(
    vocab_size=11,
    length=6,
    dim=8,
    depth=2,
    heads=2,
    mlp_ratio=2,
    dropout=0.0,
    attention_softcap=50.0,
    logit_softcap=30.0,
    dtype="float32",
    remat="none",
    scan_blocks=True,
)
TOKENS = jax.random.randint(jax.random.key(3), (3, 6), 0, 11)


def random_params(net):
    """Every leaf random: fresh blocks are identities."""
    leaves, tree = jax.tree.flatten(jax.eval_shape(net.init, jax.random.key(0)))
    keys = jax.random.split(jax.random.key(1), len(leaves))
    return tree.unflatten([0.5 * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves)])


@functools.lru_cache
def program(net):
    zeros = jnp.zeros(3)
    return jax.jit(lambda p, tokens: denoise(net, p, net.table(p)[tokens], zeros, zeros))


def whole(net, params, tokens):
    return program(net)(params, tokens)


@pytest.mark.parametrize("softcap, scan_blocks", [(50.0, True), (0.0, False)])
def test_cached_logits_equal_those_of_the_whole_sequence(softcap, scan_blocks):
    """Within 1e-5 of logits of order 1, at every position."""
    net = causal(dataclasses.replace(SIZES, attention_softcap=softcap, scan_blocks=scan_blocks))
    params = random_params(net)
    want, extend = whole(net, params, TOKENS), jax.jit(net.extend)
    cache, x_BD = net.cache(3, 6), jnp.full((3, 8), jnp.nan)
    for position in range(6):
        features, cache = extend(params, cache, x_BD, position)
        got = logits(Readout(features, *net.readout(params)), net)[:, 0]
        np.testing.assert_allclose(got, want[:, position], rtol=0, atol=1e-5)
        x_BD = net.table(params)[TOKENS[:, position]]
    assert jnp.abs(want).max() > 0.5


def test_no_position_sees_itself_or_what_follows():
    net = causal(SIZES)
    params = random_params(net)
    want = whole(net, params, TOKENS)
    for position in range(6):
        moved = TOKENS.at[:, position].set((TOKENS[:, position] + 1) % 11)
        change = jnp.abs(whole(net, params, moved) - want).max(axis=(0, 2))
        np.testing.assert_array_equal(change[: position + 1], 0.0)
        assert position == 5 or (change[position + 1 :] > 1e-4).all()


def test_variants_of_the_causal_network_agree():
    """Rematerialised, unrolled, and by tiles: values and gradients within 1e-5."""
    changes = {"remat": "full", "scan_blocks": False, "loss_tile": 4}
    params, weights = random_params(causal(SIZES)), jnp.full((3, 6), 1 / 18)

    def loss(net):
        value = lambda p: next_token_loss(p, TOKENS, weights, net=net)[0]
        return jax.jit(jax.value_and_grad(value))(params)

    want, got = loss(causal(SIZES)), loss(causal(dataclasses.replace(SIZES, **changes)))
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want)):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_a_prompt_is_held_and_read():
    """Greedy: what follows a prompt is the whole model's argmax after it."""
    net = causal(SIZES)
    params = random_params(net)
    mask = jnp.broadcast_to(jnp.arange(6)[None] < 3, (3, 6))
    given = Given(jnp.where(mask, TOKENS, 0), mask)
    run = lambda: sample_autoregressive(KEY, net, params, given=given, choice=Choice(0.0, 1.0))
    out = jax.jit(run)()
    np.testing.assert_array_equal(out.tokens[:, :3], TOKENS[:, :3])
    best = jnp.argmax(whole(net, params, out.tokens), axis=-1)
    np.testing.assert_array_equal(out.tokens[:, 3:], best[:, 3:])
    assert int(out.calls) == 6


@pytest.mark.parametrize("softcap", [0.0, 5.0])
def test_causal_splash_attention_equals_plain(softcap):
    """In Pallas' interpreter, within 1e-5 of outputs of order 1."""
    qkv = jax.random.normal(KEY, (3, 1, 128, 2, 8))
    plan = AttentionPlan("splash", interpret=True)
    plain, splash = (
        attention(*qkv, softcap=softcap, plan=p, causal=True) for p in (AttentionPlan(), plan)
    )
    np.testing.assert_allclose(splash, plain, rtol=0, atol=1e-5)
    assert jnp.abs(plain - attention(*qkv, softcap=softcap)).max() > 0.1
