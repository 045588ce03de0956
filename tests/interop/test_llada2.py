"""LLaDA2.0: against a NumPy forward, imported, exported, sampled."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from flm_jax.build.adapters import exported_tensors
from flm_jax.config.schema import base_config
from flm_jax.core.errors import UserError
from flm_jax.denoiser.forward import denoise
from flm_jax.distributed.sharding import MeshConfig, make_mesh, tree_shardings
from flm_jax.flows.masking import masked_states
from flm_jax.interop.llada2 import read_llada2
from flm_jax.samplers import x_prediction
from flm_jax.samplers.base import Given
from flm_jax.samplers.categorical import Choice
from flm_jax.samplers.masked_diffusion import sample_confident
from flm_jax.samplers.windows import BlocksConfig
from flm_jax.samplers.x_prediction import sample_x_prediction
from helpers.llada2 import (
    BLOCK,
    DEPTH,
    GROUPS,
    HEADS,
    LENGTH,
    MASK,
    MIXTURE,
    SIZE,
    VOCAB,
    llada2_folder,
    llada2_weights,
    network_of,
    route,
)

TOKENS = np.random.default_rng(0).integers(0, VOCAB - 2, (2, LENGTH))
HIDDEN_HERE = np.random.default_rng(1).random((2, LENGTH)) < 0.4


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    return read_llada2(llada2_folder(tmp_path_factory.mktemp("llada2"), llada2_weights()))


# The definition in float64, one row, one head, one token at a time.
def norm(x, weight):
    return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + 1e-6) * weight


def rope(x):
    """The first half of each head alone, in halves of its own."""
    out, rotated = x.copy(), SIZE // 2
    for pos in range(len(x)):
        for j in range(rotated // 2):
            angle = pos * 600000.0 ** (-2 * j / rotated)
            a, b = x[pos, j], x[pos, j + rotated // 2]
            out[pos, j] = a * np.cos(angle) - b * np.sin(angle)
            out[pos, j + rotated // 2] = b * np.cos(angle) + a * np.sin(angle)
    return out


def swiglu(w, at, x):
    gate = w[f"{at}gate_proj.weight"] @ x
    hidden = gate / (1 + np.exp(-gate)) * (w[f"{at}up_proj.weight"] @ x)
    return w[f"{at}down_proj.weight"] @ hidden


def forward(state, ids, block):
    w = {name: value.astype(np.float64) for name, value in state.items()}
    x = w["model.word_embeddings.weight"][ids]
    seen = np.arange(len(ids))[:, None] // block >= np.arange(len(ids))[None] // block
    for i in range(DEPTH):
        at = f"model.layers.{i}."
        fused = norm(x, w[f"{at}input_layernorm.weight"])
        fused = fused @ w[f"{at}attention.query_key_value.weight"].T
        heads = np.split(fused, HEADS + 2 * GROUPS, axis=1)
        outs = []
        for h in range(HEADS):
            group = h // (HEADS // GROUPS)
            q = rope(norm(heads[h], w[f"{at}attention.query_layernorm.weight"]))
            k = rope(norm(heads[HEADS + group], w[f"{at}attention.key_layernorm.weight"]))
            scores = np.where(seen, q @ k.T / np.sqrt(SIZE), -np.inf)
            p = np.exp(scores - scores.max(-1, keepdims=True))
            outs.append(p / p.sum(-1, keepdims=True) @ heads[HEADS + GROUPS + group])
        x = x + np.concatenate(outs, axis=1) @ w[f"{at}attention.dense.weight"].T
        normed = norm(x, w[f"{at}post_attention_layernorm.weight"])
        for pos, h in enumerate(normed):
            if i == 0:
                x[pos] += swiglu(w, f"{at}mlp.", h)
                continue
            x[pos] += swiglu(w, f"{at}mlp.shared_experts.", h)
            p = 1 / (1 + np.exp(-(w[f"{at}mlp.gate.weight"] @ h)))
            for e, weight in route(p, w[f"{at}mlp.gate.expert_bias"]).items():
                x[pos] += weight * swiglu(w, f"{at}mlp.experts.{e}.", h)
    return norm(x, w["model.norm.weight"]) @ w["lm_head.weight"].T


@functools.lru_cache
def program(net):
    def run(params, tokens, masked):
        y = masked_states(tokens, masked, net.table(params), net.anchor(params))
        times = jnp.zeros(len(tokens))
        return denoise(net, params, y, times, times)

    return jax.jit(run)


def logits(net, params, tokens=TOKENS):
    params = jax.tree.map(jnp.asarray, params)
    return np.asarray(program(net)(params, jnp.asarray(tokens), jnp.asarray(HIDDEN_HERE)))


OTHERS = np.arange(VOCAB) != MASK


@pytest.mark.parametrize("block", [0, BLOCK])
def test_logits_are_those_of_the_definition(imported, block):
    params, model = imported
    assert model["block_length"] == 32 and model["mask_id"] == MASK
    got = logits(network_of(model, block_length=block), params)
    ids = np.where(HIDDEN_HERE, MASK, TOKENS)
    for row in range(2):
        want = forward(llada2_weights(), ids[row], block or LENGTH)
        np.testing.assert_allclose(got[row][:, OTHERS], want[:, OTHERS], atol=1e-5, rtol=1e-5)
    assert (got[..., MASK] < -1e8).all()


def test_rematerialised_and_unrolled_blocks_agree(imported):
    """Logits and gradients, which reach every parameter but the biases of routers and masks."""
    params, model = imported
    pull = jax.random.normal(jax.random.key(0), (2, LENGTH, VOCAB)) * OTHERS[None, None]

    def gradients(**more):
        net = network_of(model | more)
        given = jax.tree.map(jnp.asarray, params)
        loss = lambda *a: (program(net)(*a) * pull).sum()
        masked = jnp.asarray(HIDDEN_HERE)
        return jax.value_and_grad(loss)(given, jnp.asarray(TOKENS), masked)

    want = gradients(scan_blocks=True)
    got = gradients(scan_blocks=False, remat="full")
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3), got, want)
    for path, leaf in jax.tree_util.tree_leaves_with_path(want[1]):
        assert path[-1].key == "bias" or np.abs(leaf).max() > 1e-3, path


def test_later_blocks_change_nothing_earlier(imported):
    params, model = imported
    net = network_of(model, block_length=BLOCK)
    before = logits(net, params)
    changed = TOKENS.copy()
    changed[:, BLOCK:] = (changed[:, BLOCK:] + 5) % (VOCAB - 2)
    after = logits(net, params, changed)
    np.testing.assert_allclose(after[:, :BLOCK], before[:, :BLOCK], atol=1e-6)
    within = TOKENS.copy()
    within[:, 1] = (within[:, 1] + 5) % (VOCAB - 2)
    assert (logits(net, params, within)[:, 0] != before[:, 0]).any()  # of the same block
    full = network_of(model, block_length=0)
    assert (logits(full, params, changed)[:, 0] != logits(full, params)[:, 0]).any()


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_export_gives_the_tensors_back(tmp_path, dtype):
    state = {k: v if "mlp.gate." in k else v.astype(dtype) for k, v in llada2_weights().items()}
    params, model = read_llada2(llada2_folder(tmp_path, state))
    fresh = jax.eval_shape(network_of(model).init, jax.random.key(0))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), fresh) == jax.tree.map(
        lambda x: (x.shape, x.dtype), params
    )
    config = base_config(model="llama", objective="masked_diffusion").to_dict()
    config["model"] |= model
    back = exported_tensors(config, params)
    assert back.keys() == state.keys()
    for name, value in state.items():
        assert back[name].dtype == value.dtype and back[name].shape == value.shape, name
        assert back[name].tobytes() == value.tobytes(), name


def test_wrong_files_are_refused_in_one_line(tmp_path):
    state = dict(llada2_weights())
    lost, wide = "model.layers.2.mlp.experts.11.up_proj.weight", "model.layers.1.mlp.gate.weight"
    del state[lost]
    state |= {"stranger": np.zeros(3, np.float32), wide: np.zeros((12, 5), np.float32)}
    with pytest.raises(UserError) as caught:
        read_llada2(llada2_folder(tmp_path, state))
    message = str(caught.value)
    assert f"1 missing ({lost})" in message and "1 unexpected (stranger)" in message
    assert f"1 misshapen ({wide} (12, 5) instead of (12, 32))" in message and "\n" not in message
    for config, said in (
        ({"score_function": "softmax"}, "score_function 'softmax' instead of 'sigmoid'"),
        ({"n_group": None, "rope_theta": None}, "lacks n_group, rope_theta; expected the config"),
        ({"head_dim": 16}, "4 heads of 16, which do not make the width 32"),
        ({"mask_token_id": VOCAB}, "the mask is token 23 and the embedding has 23 rows"),
    ):
        with pytest.raises(UserError, match=said):
            read_llada2(llada2_folder(tmp_path, llada2_weights(), **config))
    (tmp_path / "config.json").unlink()
    with pytest.raises(UserError, match=r"config.json does not exist; expected the config.json"):
        read_llada2(tmp_path)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"groups": 5}, "12 experts do not make 5 groups"),
        ({"active_groups": 5}, "active_groups is 5; expected 1 to 4"),
        ({"active": 7}, "active is 7; expected 1 to 6"),
        ({"shared": 0}, "shared is 0; expected a number in"),
        ({"dense_blocks": 3}, "dense_blocks is 3; expected 0 to 2"),
    ],
)
def test_bad_mixtures_are_refused(imported, change, message):
    model = imported.model
    experts = dataclasses.asdict(MIXTURE) | change
    with pytest.raises(UserError, match=message):
        network_of(model, experts=experts)
    with pytest.raises(UserError, match=r"rotary_share is 0.4, 3 of 8 features"):
        network_of(model, rotary_share=0.4)


@pytest.mark.parametrize("method", ["confidence", "flow"])
def test_sampling_in_blocks(imported, method):
    """What is given stays, no mask is left, and a block is the same whatever is given after it."""
    params, model = imported
    params = jax.tree.map(jnp.asarray, params)
    net = network_of(model | {"length": 6}, block_length=BLOCK)
    known = np.zeros((2, 6), bool)
    known[:, 0] = True

    @functools.partial(jax.jit, static_argnums=2)
    def run(tokens, known, steps):
        how = dict(steps=steps, given=Given(tokens, known), time_conditioning=False)
        if method == "confidence":
            how |= {"choice": Choice(0.0, 1.0), "blocks": BlocksConfig(BLOCK)}
            return sample_confident(jax.random.key(0), net, params, **how).tokens
        cfg = x_prediction.XPredictionConfig(block_length=BLOCK)
        return sample_x_prediction(net, params, how=cfg, **how).tokens

    tokens = TOKENS[:, :6]
    drawn = np.asarray(run(tokens, known, 4))
    assert (drawn[:, 0] == tokens[:, 0]).all() and not (drawn == MASK).any()
    known[:, BLOCK:] = True
    # Its two calls alone are left.
    np.testing.assert_array_equal(run(tokens, known, 2)[:, :BLOCK], drawn[:, :BLOCK])


def test_a_mesh_changes_no_logit(imported):
    params, model = imported
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    placed = jax.device_put(params, tree_shardings(params, mesh))
    spec = placed["blocks"]["experts"]["gate"]["kernel"].sharding.spec
    assert tuple(spec) == (None, None, "fsdp", "tensor")
    got = logits(network_of(model, mesh, block_length=BLOCK), placed)
    np.testing.assert_allclose(
        got, logits(network_of(model, block_length=BLOCK), params), atol=1e-5
    )
