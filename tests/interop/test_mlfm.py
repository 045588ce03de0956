"""Checkpoints of masked language flows as their authors save them, against their code's numbers.

goldens_mlfm/README.md says what the arrays are.
"""

import contextlib

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from flm_jax.build.model import make_network
from flm_jax.config.schema import base_config
from flm_jax.core.errors import UserError
from flm_jax.denoiser.forward import denoise
from flm_jax.interop import mlfm
from flm_jax.interop.llama import read_smdm
from flm_jax.models import llama_block as llamas
from flm_jax.models.layers import time_features
from flm_jax.models.llama import LlamaConfig, llama
from flm_jax.models.lora import AdapterConfig, join, split
from flm_jax.models.rotary import rotary_angles
from helpers.goldens_mlfm import GOLDENS, assert_close, record

# Their float32 was within CLOSE of a float64 replay; the logits of ours, also float32, add a half
# of that (one of 7320 is 2.3e-5 away).
CLOSE, LOGITS = 2e-5, 3e-5
HEADS = 2
ADAPTED, BASE = GOLDENS / "model_adapted.safetensors", GOLDENS / "model_base_smdm.safetensors"
NAMES = record("checkpoint_names")
FULL = NAMES["tiny_full_checkpoint_sft (state_dict)"]
ALONE = NAMES["tiny_adapter_checkpoint_train (adapter_state_dict)"]


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDENS / "adapter.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def published():
    return mlfm.read(ADAPTED, HEADS)


def configured(published, **more):
    """A configuration of the network of a fine-tuned checkpoint."""
    config = base_config(model="llama", objective="masked_flow").to_dict()
    config["model"] |= published.base.model | published.values["model"] | {"length": 24} | more
    config["adapters"] |= published.values["adapters"] | {"base": "beside"}
    return config


def network(published, **more):
    return make_network(configured(published, **more))


def whole(published):
    return jax.tree.map(jnp.asarray, join(published.base.params, published.adapters))


def progress(gamma):
    return jnp.asarray((6.0 - gamma) / 16.0, jnp.float32)


def logits(net, params, states, times):
    return np.asarray(denoise(net, params, jnp.asarray(states), times, times))


def test_time_features_are_theirs(golden):
    """Within 2e-6, the rounding of the angles."""
    assert_close(time_features(jnp.asarray(golden["gamma"])), golden["timestep_embedding"], 2e-6)
    columns = np.array([0, 1, 2, 64, 127, 128, 129, 192, 255])
    far = time_features(jnp.asarray(golden["timestep_embedding_extra_t"]))[:, columns]
    assert_close(far, golden["timestep_embedding_extra"], 2e-6)


def test_rounded_rotary_tables_are_theirs(golden):
    cos, sin = rotary_angles(24, 16, rounded="bfloat16")
    np.testing.assert_array_equal(cos, golden["rope_cos_bf16"])
    np.testing.assert_array_equal(sin, golden["rope_sin_bf16"])
    # A compiler that may keep more digits than asked for does not do so here.
    cos, _ = jax.jit(lambda: rotary_angles(24, 16, rounded="bfloat16"))()
    np.testing.assert_array_equal(cos, golden["rope_cos_bf16"])


@pytest.mark.parametrize("rounded, name", [("bfloat16", ""), ("float32", "_rope_f32")])
def test_adapted_logits_are_theirs(published, golden, rounded, name):
    assert published.base.model["rope_dtype"] == "bfloat16"
    net = network(published, rope_dtype=rounded)
    got = logits(net, whole(published), golden["z"], progress(golden["gamma"]))
    assert_close(got, golden[f"logits{name}"], LOGITS)
    other = "logits" if name else "logits_rope_f32"
    assert np.abs(got - golden[other]).max() > 0.05


@pytest.mark.parametrize("time", ["gamma", "t", "progress"])
def test_the_time_embedding_is_told_what_the_configuration_says(published, golden, time):
    """A network by its configuration against one that is given that number itself; within 3e-5."""
    gamma = golden["gamma"]
    numbers = {"gamma": gamma, "t": 0.04 / (np.exp(gamma) + 0.04), "progress": (6.0 - gamma) / 16.0}
    config = configured(published)
    config["adapters"]["time"] = time
    sizes = {k: v for k, v in config["model"].items() if k not in ("name", "experts")}
    bare = llama(LlamaConfig(**sizes, adapters=AdapterConfig(**published.values["adapters"])))
    want = logits(bare, whole(published), golden["z"], jnp.asarray(numbers[time], jnp.float32))
    got = logits(make_network(config), whole(published), golden["z"], progress(gamma))
    assert_close(got, want, LOGITS)


def test_the_base_is_smdm_and_fresh_adapters_leave_it(published, golden, tmp_path):
    """Logits of SMDM's tokens, and not a bit of them changed by fresh adapters."""
    base = read_smdm(BASE, HEADS)
    for a, b in zip(jax.tree.leaves(base.params), jax.tree.leaves(published.base.params)):
        np.testing.assert_array_equal(a, b)
    ids, times = golden["ids"], progress(golden["gamma"])
    states = np.concatenate([base.params["table"], base.params["anchor"]])[ids]
    config = base_config(model="llama", objective="masked_diffusion").to_dict()
    config["model"] |= base.model | {"length": 24}
    plain = logits(make_network(config), jax.tree.map(jnp.asarray, base.params), states, times)
    assert_close(plain, golden["logits_base_mdm"], CLOSE)
    net = network(published)
    fresh = join(base.params, split(net.init(jax.random.key(0)))[1])
    np.testing.assert_array_equal(logits(net, fresh, states, times), plain)


@contextlib.contextmanager
def recorded():
    """What the blocks compute on the way, by the functions that they call."""
    found, patch = {}, pytest.MonkeyPatch()

    def keep(module, name):
        real, calls = getattr(module, name), found.setdefault(name, [])

        def fn(*args, **more):
            out = real(*args, **more)
            calls.append(([np.asarray(x) for x in args if isinstance(x, jax.Array)], out))
            return out

        patch.setattr(module, name, fn)

    keep(llamas.lora, "modulate")
    keep(llamas.lora, "conditions")
    for name in ("dropout", "rotate", "attention"):
        keep(llamas, name)
    with jax.disable_jit():
        yield found
    patch.undo()


def test_activations_are_theirs(published, golden):
    """What their blocks compute on the way to the logits."""
    rows = np.array([0, 3])
    net, params = network(published), whole(published)
    times = progress(golden["gamma"][rows])
    with recorded() as found:
        h = net.features(params, jnp.asarray(golden["z"][rows]), times, times)
    assert_close(h, golden["act_ln_f"], CLOSE)
    kernel = params["head"]["kernel"]
    assert_close(np.asarray(h) @ np.asarray(kernel), golden["act_lm_head"], CLOSE)
    attn_in, mlp_in, *_ = (np.asarray(out) for _, out in found["modulate"])
    assert_close(attn_in, golden["act_h0_attn_in"], CLOSE)
    assert_close(mlp_in, golden["act_h0_mlp_in"], CLOSE)
    # Their fused rows: of each head its query, its key, its value.
    (q, *_), (k, *_) = (inputs for inputs, _ in found["rotate"][:2])
    v = found["attention"][0][0][2]
    fused = np.stack([q, k, v], axis=3).reshape(2, 24, -1)
    assert_close(fused, golden["act_h0_qkv"], CLOSE)
    for block, (_, pair) in enumerate(found["conditions"]):
        for condition, branch in zip(pair, ("attn", "mlp")):
            for part in ("shift", "scale", "gate"):
                want = golden[f"h{block}_{part}_{branch}"][rows]
                assert_close(np.asarray(getattr(condition, part))[:, 0], want, CLOSE)
    # Before the dropout of a branch stands (1 + gate) times what the branch gave.
    gated = [inputs[0] for inputs, _ in found["dropout"] if inputs[0].shape == (2, 24, 32)]
    gates = [np.asarray(c.gate) for c in found["conditions"][0][1]]
    for got, gate, name in zip(gated, gates, ("h0_attn", "h0_mlp")):
        assert_close(got / (1 + gate), golden[f"act_{name}"], CLOSE)
    outs = golden["z"][rows]
    for block in range(2):
        outs = outs + gated[2 * block] + gated[2 * block + 1]
        assert_close(outs, golden[f"act_h{block}_out"], CLOSE)


def test_low_rank_updates_are_theirs(published, golden):
    """Of the matrix of queries, keys and values; its rows go to ours and back."""
    rows = np.concatenate(list(published.sizes.fused_rows.values()))
    blocks = published.base.params["blocks"]
    base = np.concatenate([golden["lora_x"] @ blocks[name]["kernel"][0] for name in "qkv"], axis=-1)
    low = published.adapters["blocks"]["lora"]["qkv"]
    update = golden["lora_x"] @ low["a"]["kernel"][0] @ low["b"]["kernel"][0]
    theirs = np.empty_like(base)
    theirs[:, rows] = base
    assert_close(theirs, golden["lora_y_base"], CLOSE)
    theirs[:, rows] = base + 2.0 * update
    assert_close(theirs, golden["lora_y"], CLOSE)


def test_what_is_read_is_written(published, tmp_path):
    """Tensors of both kinds of checkpoints, by name, type and value."""
    state = load_file(ADAPTED)
    assert {name: list(value.shape) for name, value in state.items()} == FULL
    params = join(published.base.params, published.adapters)
    cfg = AdapterConfig(**published.values["adapters"])
    both = mlfm.state_dict_from_params(params, cfg, HEADS, 0, whole=True)
    alone = mlfm.state_dict_from_params(params, cfg, HEADS, 0, whole=False)
    assert both.keys() == FULL.keys() and alone.keys() == ALONE.keys()
    for name, value in both.items():
        np.testing.assert_array_equal(value, state[name], err_msg=name)
    for name, value in alone.items():
        np.testing.assert_array_equal(value, state[name], err_msg=name)
        assert list(value.shape) == ALONE[name]
    save_file(alone, tmp_path / "adapters.safetensors")
    again = mlfm.read(tmp_path / "adapters.safetensors", HEADS)
    assert again.base is None and again.values == published.values
    for a, b in zip(jax.tree.leaves(again.adapters), jax.tree.leaves(published.adapters)):
        np.testing.assert_array_equal(a, b)


def test_a_base_in_bfloat16_stays_so_beside_adapters_in_float32(tmp_path):
    state = load_file(ADAPTED)
    state = {k: v if k in ALONE else v.astype(ml_dtypes.bfloat16) for k, v in state.items()}
    save_file(state, tmp_path / "sft.safetensors")
    found = mlfm.read(tmp_path / "sft.safetensors", HEADS)
    assert {x.dtype.name for x in jax.tree.leaves(found.base.params)} == {"bfloat16"}
    assert {x.dtype.name for x in jax.tree.leaves(found.adapters)} == {"float32"}
    assert found.base.model["param_dtype"] == "bfloat16"
    like = jax.eval_shape(network(found).init, jax.random.key(0))
    both = join(found.base.params, found.adapters)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), like) == jax.tree.map(
        lambda x: (x.shape, x.dtype), both
    )


OFFICIAL = LlamaConfig(
    vocab_size=32000,
    dim=1792,
    depth=20,
    heads=14,
    mlp_ratio=4,
    adapters=AdapterConfig(),
)


def test_sizes_of_the_official_model_are_theirs():
    """Names, shapes and numbers of tensors and parameters, by shapes alone."""
    shapes = jax.eval_shape(llama(OFFICIAL).init, jax.random.key(0))
    _, adapters = split(shapes)
    count = lambda tree: sum(x.size for x in jax.tree.leaves(tree))
    says, sft = NAMES["official_1028M_train"], NAMES["official_1028M_sft"]
    assert count(adapters) == says["trainable_params"] == 319_526_912
    # Their wte has a row for the mask, ours an anchor: the same number of parameters.
    assert count(shapes) == says["all_params"]
    n = mlfm.Sizes(32000, 1792, 20, 14, 14, 7168)
    alone = mlfm.adapters_layout(n, OFFICIAL.adapters)
    assert len(alone) == says["number_of_saved_tensors"]
    assert len(alone | mlfm.base_layout(n)) == sft["number_of_saved_tensors"]
    for layout, saved in ((alone, says), (alone | mlfm.base_layout(n), sft)):
        for name, shape in saved["saved_tensors_layers_0_and_last"].items():
            assert list(layout[name][0]) == shape, name
    # Every leaf of ours is filled by the layout and has the size that it says.
    filled = {}
    for shape, parts in (alone | mlfm.base_layout(n)).values():
        for part in parts:
            rows = shape[0] if part.rows is None else mlfm_rows(part.rows)
            filled[part.path] = filled.get(part.path, 0) + rows * int(np.prod(shape[1:]))
    leaves = jax.tree_util.tree_leaves_with_path(shapes)
    assert filled == {tuple(key.key for key in path): leaf.size for path, leaf in leaves}


def mlfm_rows(rows):
    return rows.stop - rows.start if isinstance(rows, slice) else len(rows)


class Tensor:
    """The part of torch's tensors that the reader uses."""

    def __init__(self, value, dtype="torch.float32"):
        self.value, self.dtype, self.shape = value, dtype, value.shape

    def detach(self):
        return self

    float = cpu = detach

    def numpy(self):
        return self.value


def payload(**more):
    state = {name: Tensor(value) for name, value in load_file(ADAPTED).items()}
    return {"model": state, "save_full_model": True, "step": 7, "config": {}} | more


def test_averages_stand_in_for_the_last_weights():
    names = NAMES["tiny_sft_adapter_state_dict = ema_adapter keys in SFT"]
    averages = {name: Tensor(2.0 * load_file(ADAPTED)[name]) for name in names}
    tensors, _, step = mlfm.payload_tensors(payload(ema_adapter=averages))
    assert step == 7 and tensors.shapes == {k: tuple(v) for k, v in FULL.items()}
    for name, value in tensors.items():
        factor = 2.0 if name in names else 1.0
        np.testing.assert_array_equal(value, factor * load_file(ADAPTED)[name])
    half = {"a": Tensor(np.float32([1.5]), "torch.bfloat16")}
    ((_, value),) = mlfm.payload_tensors({"model": half})[0].items()
    assert value.dtype == ml_dtypes.bfloat16 and value == 1.5
    with pytest.raises(UserError, match="1 tensors .stranger. that `model` lacks"):
        mlfm.payload_tensors(payload(ema_adapter={"stranger": averages[names[0]]}))
    with pytest.raises(UserError, match="keys state_dict; expected one of MLFM"):
        mlfm.payload_tensors({"state_dict": {}})


def test_their_settings_and_curve_come_along(monkeypatch):
    """A curve given at other shares than ours is read at ours."""
    gamma = np.linspace(-10.0, 6.0, 201).tolist()
    says = {
        "lora_alpha": 12.0,
        "lora_output_alpha": 2.0,
        "time_conditioning": "t",
        "gamma_min": -9.0,
        "brownian_bridge_sigma": 0.3,
        "gamma_active_mixture_weights": [0.2, 0.0, 1.8],
        "gamma_active_piecewise_gamma": gamma,
        "gamma_active_piecewise_cdf": np.linspace(0.0, 1.0, 201).tolist(),
    }
    held = payload(config=says)
    monkeypatch.setattr(mlfm, "_opened", lambda *_: mlfm.payload_tensors(held))
    found = mlfm.read("checkpoint.pt", HEADS)
    np.testing.assert_allclose(found.knots, gamma[::2], atol=1e-12)
    assert found.step == 7 and found.values["adapters"]["alpha"] == 12.0
    assert found.values["adapters"]["time"] == "t"
    law = {"low": -9.0, "uniform": 0.1, "normal": 0.0}
    assert found.values["flow"] == {"sigma": 0.3, "law": law}
    says["gamma_active_piecewise_cdf"][3] = 0.9
    with pytest.raises(UserError, match="the second increasing"):
        mlfm.read("checkpoint.pt", HEADS)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"output_lora.lora_b.weight": None}, "no adapters of MLFM here: no matrix output_lora"),
        ({"model.transformer.h.1.time_mlp.0.bias": None}, "1 missing .model.transformer.h.1.time"),
        ({"stranger": np.zeros(2, np.float32)}, "1 unexpected .stranger"),
        ({"model.lm_head.weight": None}, "1 missing .model.lm_head.weight"),
    ],
)
def test_other_tensors_are_refused(tmp_path, change, message):
    state = {k: v for k, v in (load_file(ADAPTED) | change).items() if v is not None}
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=message):
        mlfm.read(tmp_path / "model.safetensors", HEADS)
    with pytest.raises(UserError, match="no file .* ending in .safetensors, .pt"):
        mlfm.read(tmp_path / "model.bin")
