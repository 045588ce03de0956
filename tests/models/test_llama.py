"""Llama networks of masked diffusion against a NumPy forward; attention in blocks."""

import dataclasses

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from flm_jax.build.model import make_network
from flm_jax.config.schema import base_config
from flm_jax.core.errors import UserError
from flm_jax.interop.llama import read_llada, read_smdm
from flm_jax.models import attention
from flm_jax.models.llama import LlamaConfig, llama
from helpers.llada2 import MIXTURE
from helpers.llama import (
    CONFIG,
    DEPTH,
    DIM,
    GROUPS,
    HEADS,
    LENGTH,
    LLADA_MASK,
    MASKED,
    TOKENS,
    VOCAB,
    llada,
    llada_folder,
    logits,
    smdm,
)


def test_splash_attention_sees_the_same_blocks():
    plan = attention.AttentionPlan("splash", interpret=True)
    q, k, v = jax.random.normal(jax.random.key(0), (3, 1, 128, 2, 8))
    want = attention.attention(q, k, v, block=32)
    np.testing.assert_allclose(attention.attention(q, k, v, plan=plan, block=32), want, atol=2e-5)
    assert np.abs(want - attention.attention(q, k, v)).max() > 1e-2
    cudnn = attention.AttentionPlan("cudnn", interpret=True)
    with pytest.raises(UserError, match="not blocks of 32"):
        attention.check_attention(
            cudnn, length=128, heads=2, head_dim=8, softcap=0.0, dtype="bfloat16", block=32
        )


# The architecture in NumPy, one row and one head at a time.
def norm(x, weight):
    return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + 1e-5) * weight


def rope(x, base, condense=1.0, rounded=np.float64):
    half = x.shape[-1] // 2
    out = np.empty_like(x)
    for pos in range(len(x)):
        for j in range(half):
            angle = pos / condense * base ** (-2 * j / x.shape[-1])
            c, s = (float(rounded(f(angle))) for f in (np.cos, np.sin))
            out[pos, j] = x[pos, j] * c - x[pos, j + half] * s
            out[pos, j + half] = x[pos, j + half] * c + x[pos, j] * s
    return out


def silu(x):
    return x / (1 + np.exp(-x))


def attend(heads_q, heads_k, heads_v, base, condense, rounded=np.float64):
    share = len(heads_q) // len(heads_k)
    outs = []
    for h, q in enumerate(heads_q):
        k, v = heads_k[h // share], heads_v[h // share]
        q, k = (rope(x, base, condense, rounded) for x in (q, k))
        scores = q @ k.T / np.sqrt(q.shape[-1])
        p = np.exp(scores - scores.max(-1, keepdims=True))
        outs.append(p / p.sum(-1, keepdims=True) @ v)
    return np.concatenate(outs, axis=-1)


def smdm_forward(w, ids, condense=1.0, rounded=ml_dtypes.bfloat16):
    x, size = w["transformer.wte.weight"][ids], DIM // HEADS
    for i in range(DEPTH):
        at = f"transformer.h.{i}."
        h = norm(x, w[f"{at}norm_1.weight"]) @ w[f"{at}attn.attn.weight"].T
        q, k, v = [], [], []
        pieces = [h[:, j * size : (j + 1) * size] for j in range(h.shape[1] // size)]
        for _ in range(GROUPS):
            q += [pieces.pop(0) for _ in range(HEADS // GROUPS)]
            k.append(pieces.pop(0))
            v.append(pieces.pop(0))
        x = x + attend(q, k, v, 10000.0, condense, rounded) @ w[f"{at}attn.proj.weight"].T
        h = norm(x, w[f"{at}norm_2.weight"])
        mlp = f"{at}mlp.swiglu."
        hidden = silu(h @ w[f"{mlp}w1.weight"].T) * (h @ w[f"{mlp}w2.weight"].T)
        x = x + hidden @ w[f"{mlp}w3.weight"].T
    return norm(x, w["transformer.ln_f.weight"]) @ w["lm_head.weight"].T


def llada_forward(w, ids):
    top = "model.transformer."
    x = w[f"{top}wte.weight"][ids]
    for i in range(DEPTH):
        at = f"{top}blocks.{i}."
        h = norm(x, w[f"{at}attn_norm.weight"])
        q, k, v = (
            np.split(y := h @ w[f"{at}{n}_proj.weight"].T, y.shape[1] * HEADS // DIM, axis=1)
            for n in "qkv"
        )
        x = x + attend(q, k, v, 500000.0, 1.0) @ w[f"{at}attn_out.weight"].T
        h = norm(x, w[f"{at}ff_norm.weight"])
        hidden = silu(h @ w[f"{at}ff_proj.weight"].T) * (h @ w[f"{at}up_proj.weight"].T)
        x = x + hidden @ w[f"{at}ff_out.weight"].T
    return norm(x, w[f"{top}ln_f.weight"]) @ w[f"{top}ff_out.weight"].T


def network_of(model):
    config = base_config(model="llama", objective="masked_diffusion").to_dict()
    config["model"] |= model | {"length": LENGTH}
    return make_network(config)


def test_smdm_logits_are_those_of_the_architecture(tmp_path):
    state = smdm()
    save_file(state, tmp_path / "mdm.safetensors")
    params, model = read_smdm(tmp_path / "mdm.safetensors", heads=HEADS)
    assert (model["kv_heads"], model["length"]) == (GROUPS, 2048)
    got = logits(network_of(model), params)
    ids = np.where(MASKED, VOCAB, TOKENS)
    for row in range(2):
        np.testing.assert_allclose(got[row], smdm_forward(state, ids[row]), atol=1e-5)
    condensed = llama(dataclasses.replace(CONFIG, rope_condense=2.0))
    want = smdm_forward(state, ids[0], 2.0, np.float64)
    np.testing.assert_allclose(logits(condensed, params)[0], want, atol=1e-5)


@pytest.mark.parametrize("groups", [HEADS, GROUPS])
def test_llada_logits_are_those_of_the_architecture(tmp_path, groups):
    state = llada(groups=groups)
    params, model = read_llada(llada_folder(tmp_path, state))
    assert (model["kv_heads"], model["length"]) == (groups, LENGTH)
    got = logits(network_of(model), params)
    ids = np.where(MASKED, LLADA_MASK, TOKENS)
    others = np.arange(VOCAB) != LLADA_MASK
    for row in range(2):
        want = llada_forward(state, ids[row])
        np.testing.assert_allclose(got[row][:, others], want[:, others], atol=1e-5)
    assert (got[..., LLADA_MASK] < -1e8).all()


def test_bfloat16_is_kept(tmp_path):
    state = {k: v.astype(ml_dtypes.bfloat16) for k, v in llada().items()}
    params, model = read_llada(llada_folder(tmp_path, state))
    assert {x.dtype for x in jax.tree.leaves(params)} == {np.dtype(ml_dtypes.bfloat16)}
    assert model["param_dtype"] == model["dtype"] == "bfloat16"
    net = network_of(model | {"dtype": "float32"})
    fresh = jax.eval_shape(net.init, jax.random.key(0))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), fresh) == jax.tree.map(
        lambda x: (x.shape, x.dtype), params
    )
    wide = {k: v.astype(np.float32) for k, v in state.items()}
    want = llada_forward(wide, np.where(MASKED, LLADA_MASK, TOKENS)[0])
    others = np.arange(VOCAB) != LLADA_MASK
    np.testing.assert_allclose(logits(net, params)[0][:, others], want[:, others], atol=1e-5)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"kv_heads": 3}, "do not share 3 heads of keys and values"),
        ({"mask_id": VOCAB}, "mask_id is 23; expected -1"),
        ({"rope_condense": 0.0}, "rope_condense 0.0"),
        ({"remat": "some"}, "unknown config.model.remat"),
    ],
)
def test_bad_sizes_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        llama(dataclasses.replace(CONFIG, **change))


@pytest.mark.parametrize("block", [0, 3])
def test_a_window_beside_cached_keys_is_the_whole_call(block):
    """Of each row its own places, with experts and hidden positions."""
    net = llama(
        LlamaConfig(
            vocab_size=VOCAB,
            length=9,
            dim=32,
            depth=2,
            heads=4,
            kv_heads=2,
            qk_norm=True,
            rotary_share=0.5,
            attention_softcap=20.0,
            scan_blocks=True,
            block_length=block,
            experts=MIXTURE,
        )
    )
    params = jax.jit(lambda key: jax.tree.map(lambda x: 3 * x, net.init(key)))(jax.random.key(0))
    x, other = jax.random.normal(jax.random.key(1), (2, 2, 9, 32))
    visible = jnp.arange(9)[None] < jnp.asarray([[9], [8]])
    places, s = jnp.asarray([[3, 4, 5], [6, 7, 8]]), jnp.zeros(2)
    whole = jax.jit(lambda x: net.features(params, x, s, s, visible=visible))
    want = whole(x)
    rows = jnp.arange(2)[:, None]
    # The cache is of other states in the window, which it replaces.
    before = x.at[rows, places].set(other[rows, places])
    run = jax.jit(lambda *args, **more: net.window(params, *args, s, visible=visible, **more))
    features, cache = run(net.cache(2, 9), before if block else x)
    np.testing.assert_allclose(features, whole(before if block else x), atol=2e-5)
    features, cache = run(cache, x[rows, places], places=places)
    assert np.abs(want - whole(before)).max() > 1e-2
    # Position 8 of the second row may not be seen: what it gets means nothing.
    np.testing.assert_allclose(features[0], want[0, 3:6], atol=2e-5)
    np.testing.assert_allclose(features[1, :2], want[1, 6:8], atol=2e-5)
    _, again = run(net.cache(2, 9), x)
    for got, kept in zip(jax.tree.leaves(cache), jax.tree.leaves(again)):
        np.testing.assert_allclose(got[:, 0, :6], kept[:, 0, :6], atol=2e-5)
