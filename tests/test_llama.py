"""Llama networks of masked diffusion: against a NumPy forward, imported, exported, adapted."""

import dataclasses
import functools
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from flm_jax.build.load import load_model
from flm_jax.build.model import make_network
from flm_jax.config.schema import base_config
from flm_jax.core.errors import UserError
from flm_jax.data.tokenizers.builtin import CharacterTokenizer
from flm_jax.denoiser.forward import denoise
from flm_jax.flows.masking import masked_states
from flm_jax.inference import engine
from flm_jax.interop.llama import read_llada, read_smdm, state_dict_from_params
from flm_jax.models.llama import LlamaConfig, llama
from flm_jax.models.lora import AdapterConfig, join, merged, split

VOCAB, DIM, DEPTH, HEADS, GROUPS, HIDDEN, LENGTH = 23, 32, 3, 4, 2, 64, 7
CONFIG = LlamaConfig(
    vocab_size=VOCAB,
    max_length=LENGTH,
    dim=DIM,
    depth=DEPTH,
    heads=HEADS,
    mlp_ratio=2,
    dropout=0.0,
    attention_softcap=0.0,
    logit_softcap=0.0,
    dtype="float32",
    remat="none",
    scan_blocks=True,
    kv_heads=GROUPS,
)
ADAPTERS = AdapterConfig(4, 8.0, 3, 3.0, 0.1, 6)
TOKENS = np.random.default_rng(0).integers(0, VOCAB, (2, LENGTH))
MASKED = jnp.asarray(np.random.default_rng(1).random((2, LENGTH)) < 0.4)
LLADA_MASK = 21


def weights(seed, shapes):
    rng = np.random.default_rng(seed)
    middle = {name: float(len(shape) == 1) for name, shape in shapes.items()}  # norms near 1
    return {
        name: (middle[name] + 0.15 * rng.normal(size=shape)).astype(np.float32)
        for name, shape in shapes.items()
    }


def smdm(seed=0):
    head_dim = DIM // HEADS
    shapes = {
        "transformer.wte.weight": (VOCAB + 1, DIM),
        "transformer.ln_f.weight": (DIM,),
        "lm_head.weight": (VOCAB, DIM),
    }
    for i in range(DEPTH):
        at = f"transformer.h.{i}."
        shapes |= {
            f"{at}norm_1.weight": (DIM,),
            f"{at}attn.attn.weight": ((HEADS + 2 * GROUPS) * head_dim, DIM),
            f"{at}attn.proj.weight": (DIM, DIM),
            f"{at}norm_2.weight": (DIM,),
            f"{at}mlp.swiglu.w1.weight": (HIDDEN, DIM),
            f"{at}mlp.swiglu.w2.weight": (HIDDEN, DIM),
            f"{at}mlp.swiglu.w3.weight": (DIM, HIDDEN),
        }
    return weights(seed, shapes)


def llada(seed=0, groups=HEADS):
    narrow = groups * DIM // HEADS
    shapes = {
        "model.transformer.wte.weight": (VOCAB, DIM),
        "model.transformer.ln_f.weight": (DIM,),
        "model.transformer.ff_out.weight": (VOCAB, DIM),
    }
    for i in range(DEPTH):
        at = f"model.transformer.blocks.{i}."
        shapes |= {
            f"{at}attn_norm.weight": (DIM,),
            f"{at}q_proj.weight": (DIM, DIM),
            f"{at}k_proj.weight": (narrow, DIM),
            f"{at}v_proj.weight": (narrow, DIM),
            f"{at}attn_out.weight": (DIM, DIM),
            f"{at}ff_norm.weight": (DIM,),
            f"{at}ff_proj.weight": (HIDDEN, DIM),
            f"{at}up_proj.weight": (HIDDEN, DIM),
            f"{at}ff_out.weight": (DIM, HIDDEN),
        }
    return weights(seed, shapes)


def write_shards(folder, state, shards):
    """Safetensors with their index, as published."""
    names, files = sorted(state), {}
    for k in range(shards):
        file = f"model-{k + 1:05}-of-{shards:05}.safetensors"
        part = {name: state[name] for name in names[k::shards]}
        save_file(part, folder / file)
        files |= dict.fromkeys(part, file)
    index = {"metadata": {}, "weight_map": files}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def llada_folder(folder, state, shards=3, **config):
    """Shards with their index and config.json, as published."""
    write_shards(folder, state, shards)
    says = {"n_heads": HEADS, "rope_theta": 500000.0, "mask_token_id": LLADA_MASK}
    says |= {"max_sequence_length": LENGTH, "rms_norm_eps": 1e-05, "weight_tying": False}
    (folder / "config.json").write_text(json.dumps(says | config))
    return folder


# The architecture in NumPy, one row and one head at a time.
def norm(x, weight):
    return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + 1e-5) * weight


def rope(x, base, condense=1.0):
    half = x.shape[-1] // 2
    out = np.empty_like(x)
    for pos in range(len(x)):
        for j in range(half):
            angle = pos / condense * base ** (-2 * j / x.shape[-1])
            c, s = np.cos(angle), np.sin(angle)
            out[pos, j] = x[pos, j] * c - x[pos, j + half] * s
            out[pos, j + half] = x[pos, j + half] * c + x[pos, j] * s
    return out


def silu(x):
    return x / (1 + np.exp(-x))


def attend(heads_q, heads_k, heads_v, base, condense):
    share = len(heads_q) // len(heads_k)
    outs = []
    for h, q in enumerate(heads_q):
        k, v = heads_k[h // share], heads_v[h // share]
        scores = rope(q, base, condense) @ rope(k, base, condense).T / np.sqrt(q.shape[-1])
        p = np.exp(scores - scores.max(-1, keepdims=True))
        outs.append(p / p.sum(-1, keepdims=True) @ v)
    return np.concatenate(outs, axis=-1)


def smdm_forward(w, ids, condense=1.0):
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
        x = x + attend(q, k, v, 10000.0, condense) @ w[f"{at}attn.proj.weight"].T
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


@functools.lru_cache
def program(net):
    def run(params, tokens, masked, times, key):
        y = masked_states(tokens, masked, net.table(params), net.anchor(params))
        return denoise(net, params, y, times, times, key=key)

    return jax.jit(run)


def logits(net, params, s=0.0, key=None):
    params = jax.tree.map(jnp.asarray, params)
    return np.asarray(program(net)(params, jnp.asarray(TOKENS), MASKED, jnp.full(2, s), key))


def network_of(model):
    config = base_config().to_dict()
    config["model"] |= model | {"length": LENGTH}
    config["objective"]["name"] = "masked"
    return make_network(config)


def test_smdm_logits_are_those_of_the_architecture(tmp_path):
    state = smdm()
    save_file(state, tmp_path / "mdm.safetensors")
    params, model = read_smdm(tmp_path / "mdm.safetensors", heads=HEADS)
    assert (model["llama"]["kv_heads"], model["length"]) == (GROUPS, 2048)
    got = logits(network_of(model), params)
    ids = np.where(MASKED, VOCAB, TOKENS)
    for row in range(2):
        np.testing.assert_allclose(got[row], smdm_forward(state, ids[row]), atol=1e-5)
    condensed = llama(dataclasses.replace(CONFIG, rope_condense=2.0))
    np.testing.assert_allclose(
        logits(condensed, params)[0], smdm_forward(state, ids[0], 2.0), atol=1e-5
    )


@pytest.mark.parametrize("groups", [HEADS, GROUPS])
def test_llada_logits_are_those_of_the_architecture(tmp_path, groups):
    state = llada(groups=groups)
    params, model = read_llada(llada_folder(tmp_path, state))
    assert (model["llama"]["kv_heads"], model["length"]) == (groups, LENGTH)
    got = logits(network_of(model), params)
    ids = np.where(MASKED, LLADA_MASK, TOKENS)
    others = np.arange(VOCAB) != LLADA_MASK
    for row in range(2):
        want = llada_forward(state, ids[row])
        np.testing.assert_allclose(got[row][:, others], want[:, others], atol=1e-5)
    assert (got[..., LLADA_MASK] < -1e8).all()


def test_export_gives_the_tensors_back(tmp_path):
    save_file(smdm(), tmp_path / "mdm.safetensors")
    for (params, model), want in (
        (read_smdm(tmp_path / "mdm.safetensors", HEADS), smdm()),
        (read_llada(llada_folder(tmp_path, llada())), llada()),
    ):
        back = state_dict_from_params(params, HEADS, model["llama"]["kv_heads"])
        assert back.keys() == want.keys()
        for name, value in want.items():
            np.testing.assert_array_equal(back[name], value, err_msg=name)


def test_bfloat16_is_kept(tmp_path):
    state = {k: v.astype(ml_dtypes.bfloat16) for k, v in llada().items()}
    params, model = read_llada(llada_folder(tmp_path, state))
    assert {x.dtype for x in jax.tree.leaves(params)} == {np.dtype(ml_dtypes.bfloat16)}
    assert model["llama"]["param_dtype"] == "bfloat16"
    net = network_of(model)
    fresh = jax.eval_shape(net.init, jax.random.key(0))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), fresh) == jax.tree.map(
        lambda x: (x.shape, x.dtype), params
    )
    wide = {k: v.astype(np.float32) for k, v in state.items()}
    want = llada_forward(wide, np.where(MASKED, LLADA_MASK, TOKENS)[0])
    others = np.arange(VOCAB) != LLADA_MASK
    np.testing.assert_allclose(logits(net, params)[0][:, others], want[:, others], atol=1e-5)


@pytest.mark.parametrize("read", [read_smdm, read_llada])
def test_all_faults_are_listed_at_once(tmp_path, read):
    state = smdm() if read is read_smdm else llada()
    last = next(n for n in state if n.endswith(("norm_2.weight", "ff_norm.weight")) and "2." in n)
    wide = next(n for n in state if n.endswith(("proj.weight", "attn_out.weight")) and "1." in n)
    del state[last]
    state |= {"stranger": np.zeros(3, np.float32), wide: np.zeros((DIM, 5), np.float32)}
    path = tmp_path / "weights.safetensors"
    save_file(state, path)
    with pytest.raises(UserError) as caught:
        if read is read_smdm:
            read(path, HEADS)
        else:
            (tmp_path / "config.json").write_text(json.dumps({"mask_token_id": 3}))
            read(path, HEADS)
    message = str(caught.value)
    assert f"1 missing ({last})" in message and "1 unexpected (stranger)" in message
    assert f"1 misshapen ({wide} ({DIM}, 5) instead of" in message


def test_other_architectures_are_refused(tmp_path):
    save_file(llada(), tmp_path / "weights.safetensors")
    with pytest.raises(UserError, match="no SMDM network here: no matrix transformer.wte.weight"):
        read_smdm(tmp_path / "weights.safetensors")
    folder = llada_folder(tmp_path, llada(), activation_type="gelu")
    with pytest.raises(UserError, match="activation_type 'gelu' instead of 'silu'"):
        read_llada(folder)
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(UserError, match=r"lacks 1 of 3 shards \(model-00002"):
        read_llada(folder)
    (tmp_path / "model.safetensors.index.json").write_text("{")
    with pytest.raises(UserError, match="no index of safetensors shards"):
        read_llada(folder)


def random_like(net, scale=0.3, seed=5):
    leaves, tree = jax.tree.flatten(jax.eval_shape(net.init, jax.random.key(0)))
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    draws = [scale * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves)]
    return tree.unflatten([d.astype(x.dtype) for d, x in zip(draws, leaves)])


BASE, ADAPTED = llama(CONFIG), llama(dataclasses.replace(CONFIG, adapters=ADAPTERS))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_fresh_adapters_change_no_bit(dtype):
    base = llama(dataclasses.replace(CONFIG, dtype=dtype))
    adapted = llama(dataclasses.replace(CONFIG, dtype=dtype, adapters=ADAPTERS))
    params = base.init(jax.random.key(3))
    adapters = split(adapted.init(jax.random.key(4)))[1]
    got = logits(adapted, join(params, adapters), 0.7, key=jax.random.key(1))
    np.testing.assert_array_equal(got, logits(base, params))


def test_adapters_reach_every_matrix_and_norm():
    """A change of any one leaf of the adapters changes the logits; A alone does so beside B."""
    params = random_like(ADAPTED)
    _, adapters = split(params)
    before = logits(ADAPTED, params)
    for path, _ in jax.tree_util.tree_leaves_with_path(adapters):

        def bump(p, x, wanted=path):
            return x + 0.1 if p == wanted else x

        changed = jax.tree_util.tree_map_with_path(bump, params)
        assert np.abs(logits(ADAPTED, changed) - before).max() > 1e-5, path
    low = adapters["blocks"]["lora"]
    assert set(low) == set(CONFIG.matrices) and set(adapters["lora"]) == {"head"}


def test_times_are_read_through_adapters_alone():
    params = random_like(ADAPTED)
    assert np.abs(logits(ADAPTED, params, 0.2) - logits(ADAPTED, params, 0.8)).max() > 1e-3
    base, _ = split(params)
    np.testing.assert_array_equal(logits(BASE, base, 0.2), logits(BASE, base, 0.8))


def test_split_and_join_are_inverse():
    params = random_like(ADAPTED)
    base, adapters = split(params)
    assert jax.tree.structure(base) == jax.tree.structure(
        jax.eval_shape(BASE.init, jax.random.key(0))
    )
    again = join(base, adapters)
    assert jax.tree.structure(again) == jax.tree.structure(params)
    assert jax.tree.all(jax.tree.map(lambda a, b: a is b, again, params))


def test_merging_gives_the_same_function():
    """With the time conditioning at zero the merged base alone is the adapted network."""
    params = random_like(ADAPTED)
    zero = lambda tree: jax.tree.map(jnp.zeros_like, tree)
    params["modulation"] = zero(params["modulation"])
    params["blocks"]["modulation"] = zero(params["blocks"]["modulation"])
    base, rest = merged(params, ADAPTERS)
    assert set(rest) == {"time", "modulation", "blocks"}
    np.testing.assert_allclose(logits(BASE, base), logits(ADAPTED, params), atol=2e-4)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"kv_heads": 3}, "do not share 3 heads of keys and values"),
        ({"mask_id": VOCAB}, "mask_id is 23; expected -1"),
        ({"rope_condense": 0.0}, "rope_condense 0.0"),
        ({"remat": "some"}, "unknown remat policy"),
    ],
)
def test_bad_sizes_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        llama(dataclasses.replace(CONFIG, **change))


def command(*flags):
    env = os.environ | {"XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    line = [sys.executable, "-m", *flags]
    return subprocess.run(line, env=env, capture_output=True, text=True, timeout=300)


def test_command_line_imports_and_exports(tmp_path):
    CharacterTokenizer([chr(i) for i in range(97, 97 + 18)]).save(tmp_path / "tokenizer")
    (tmp_path / "in").mkdir()
    state = {k: v.astype(ml_dtypes.bfloat16) for k, v in llada().items()}
    source = llada_folder(tmp_path / "in", state)
    workdir, out = tmp_path / "run", tmp_path / "back.safetensors"
    flags = ("flm_jax.convert", "--source=llada", f"--checkpoint={source}", f"--workdir={workdir}")
    done = command(*flags, f"--tokenizer={tmp_path / 'tokenizer'}")
    assert done.returncode == 0, done.stderr
    model = load_model(workdir)
    given = engine.given_tokens(model, "abc", "", 2, LENGTH)
    drawn = engine.draw(model, given, steps=3, num=2, seed=0)
    assert model.net.anchor is not None and not (drawn.tokens == LLADA_MASK).any()
    done = command("flm_jax.convert", f"--export={out}", f"--workdir={workdir}")
    assert done.returncode == 0, done.stderr
    back = load_file(out)
    assert back.keys() == state.keys()
    for name, value in state.items():
        assert back[name].dtype == value.dtype
        np.testing.assert_array_equal(back[name].astype(np.float32), value.astype(np.float32))
