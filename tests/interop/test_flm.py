"""Reading and writing the weights of the PyTorch FLM networks."""

import importlib.util
import json
import pickle
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from flm_jax.core.errors import UserError
from flm_jax.interop.flm import params_from_state_dict, read_checkpoint, state_dict_from_params
from flm_jax.models.dit import DiTConfig, dit

GOLDENS = Path(__file__).parents[1] / "goldens"
ROTARY = "rotary_emb.inv_freq"
HEAD = "learnable_loss_weighting."
needs_torch = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None,
    reason="torch is not installed: the .ckpt reader is not tested",
)


def golden(name):
    return load_file(GOLDENS / f"dit_{name}.safetensors")


def without_head(state):
    return {k: v for k, v in state.items() if not k.startswith(HEAD)}


def assert_same(got, want):
    assert got.keys() == want.keys()
    for name in want:
        np.testing.assert_array_equal(got[name], want[name], err_msg=name)
        assert got[name].dtype == np.float32


@pytest.mark.parametrize("name", ["single", "double"])
def test_tree_and_sizes(name):
    """The tree is exactly that of a fresh network of the sizes found."""
    params, sizes = params_from_state_dict(golden(name))
    assert sizes == {
        "vocab_size": 97,
        "dim": 64,
        "depth": 2,
        "heads": 4,
        "cond_dim": 32,
        "mlp_ratio": 4,
        "two_time": name == "double",
    }
    cfg = DiTConfig(
        **sizes,
        length=16,
        dropout=0.0,
        attention_softcap=50.0,
        logit_softcap=30.0,
        dtype="float32",
        remat="none",
        scan_blocks=True,
    )
    fresh = jax.eval_shape(dit(cfg).init, jax.random.key(0))
    assert jax.tree.structure(params) == jax.tree.structure(fresh)
    for ours, theirs in zip(jax.tree.leaves(params), jax.tree.leaves(fresh)):
        assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)


@pytest.mark.parametrize("name", ["single", "double"])
def test_round_trip_is_exact(name):
    state = without_head(golden(name))
    params, sizes = params_from_state_dict(state)
    back = state_dict_from_params(jax.tree.map(jax.numpy.asarray, params), sizes["heads"])
    np.testing.assert_allclose(back.pop(ROTARY), state.pop(ROTARY), rtol=1e-6)
    assert_same(back, state)
    assert all(value.flags.c_contiguous for value in back.values())
    assert ROTARY not in state_dict_from_params(params)


@pytest.mark.parametrize("prefix", ["backbone.", "backbone._orig_mod.", "module.backbone."])
def test_wrappers_are_stripped_and_a_teacher_ignored(prefix):
    state = {f"{prefix}{k}": v for k, v in golden("double").items()}
    teacher = {f"teacher_model.{k}": v + 1 for k, v in golden("single").items()}
    outside = {"metrics.count": np.zeros(())}
    params, _ = params_from_state_dict(teacher | state | outside)
    assert_same(state_dict_from_params(params), _named(golden("double")))
    params, _ = params_from_state_dict({f"module.{k}": v for k, v in golden("single").items()})
    assert_same(state_dict_from_params(params), _named(golden("single")))


def _named(state):
    return {k: v for k, v in without_head(state).items() if k != ROTARY}


def test_heads_are_needed_where_the_file_does_not_tell():
    state = _named(golden("single"))
    with pytest.raises(UserError, match="give the number of heads"):
        params_from_state_dict(state)
    assert params_from_state_dict(state, heads=8)[1]["heads"] == 8
    with pytest.raises(UserError, match="does not split into 5 heads"):
        params_from_state_dict(state, heads=5)
    with pytest.raises(UserError, match="heads=8 given, but the file has 4"):
        params_from_state_dict(golden("single"), heads=8)


def test_all_faults_are_listed_at_once():
    state = golden("single")
    state["stranger"] = np.zeros(3)
    del state["blocks.1.norm2.weight"], state["output_layer.linear.bias"]
    state["blocks.0.attn_qkv.weight"] = np.zeros((64, 192))
    with pytest.raises(UserError) as caught:
        params_from_state_dict(state)
    message = str(caught.value)
    assert "2 missing" in message and "blocks.1.norm2.weight" in message
    assert "1 unexpected (stranger)" in message
    assert "1 misshapen (blocks.0.attn_qkv.weight (64, 192) instead of (192, 64))" in message


def test_long_lists_are_shortened():
    state = {k: v for k, v in golden("single").items() if not k.startswith("blocks.1.")}
    state["blocks.1.norm1.weight"] = np.zeros(64)
    with pytest.raises(UserError, match=r"9 missing \(.*, \.\.\.\)"):
        params_from_state_dict(state)


@pytest.mark.parametrize("state", [{}, {"weight": np.zeros((2, 2))}])
def test_no_network_at_all(state):
    with pytest.raises(UserError, match="no FLM network"):
        params_from_state_dict(state)


def test_two_tensors_of_one_name():
    state = golden("single")
    with pytest.raises(UserError, match="two tensors are called"):
        params_from_state_dict(state | {f"module.{k}": v for k, v in state.items()})


def test_safetensors_need_no_torch(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    path = GOLDENS / "dit_single.safetensors"
    assert_same(read_checkpoint(path), golden("single"))
    (tmp_path / "weights.ckpt").write_bytes(b"")
    with pytest.raises(UserError, match=r'pip install "flm-jax\[torch\]"'):
        read_checkpoint(tmp_path / "weights.ckpt")


def test_half_precision_files(tmp_path):
    state = {k: v.astype(np.float16) for k, v in golden("single").items()}
    save_file(state, tmp_path / "half.safetensors")
    params, _ = params_from_state_dict(read_checkpoint(tmp_path / "half.safetensors"))
    np.testing.assert_array_equal(
        params["table"], state["vocab_embed.embedding"].astype(np.float32)
    )
    assert all(x.dtype == np.float32 for x in jax.tree.leaves(params))


def test_unreadable_files(tmp_path):
    with pytest.raises(UserError, match="no file"):
        read_checkpoint(tmp_path / "absent.ckpt")
    (tmp_path / "weights.bin").write_bytes(b"x")
    with pytest.raises(UserError, match="unknown ending"):
        read_checkpoint(tmp_path / "weights.bin")
    (tmp_path / "weights.safetensors").write_bytes(b"not safetensors")
    with pytest.raises(UserError, match="not a readable safetensors file"):
        read_checkpoint(tmp_path / "weights.safetensors")


class Hyperparameters:
    """Something a Lightning checkpoint might pickle besides tensors."""


def lightning(tmp_path, state, shadows=None, **more):
    """A checkpoint as Lightning writes it, names prefixed; shadows as an EMA callback does."""
    import torch

    checkpoint = {
        "state_dict": {f"backbone.{k}": torch.from_numpy(v) for k, v in state.items()},
        "global_step": 7,
    }
    if shadows is not None:
        shadows = [torch.from_numpy(np.ascontiguousarray(v)) for v in shadows]
        checkpoint["ema"] = {"decay": 0.9999, "num_updates": 7, "shadow_params": shadows}
    path = tmp_path / "model.ckpt"
    torch.save(checkpoint | more, path)
    return path


def in_module_order(state):
    """The loss weighting last, as the network registers it; files store names sorted."""
    return without_head(state) | {k: v for k, v in state.items() if k.startswith(HEAD)}


@needs_torch
@pytest.mark.parametrize("name", ["single", "double"])
def test_lightning_checkpoint(tmp_path, name):
    state = in_module_order(golden(name))
    got = read_checkpoint(lightning(tmp_path, state))
    params, _ = params_from_state_dict(got)
    assert_same(state_dict_from_params(params), _named(state))


@needs_torch
@pytest.mark.parametrize("in_state, in_average", [(True, True), (True, False), (False, True)])
def test_averaged_weights_with_and_without_the_loss_weighting(tmp_path, in_state, in_average):
    full = in_module_order(golden("double"))
    state = full if in_state else without_head(full)
    averaged = full if in_average else without_head(full)
    shadows = [v + 1 for k, v in averaged.items() if k != ROTARY]
    path = lightning(tmp_path, state, shadows)
    params, sizes = params_from_state_dict(read_checkpoint(path))
    assert sizes["heads"] == 4
    assert_same(state_dict_from_params(params), {k: v + 1 for k, v in _named(full).items()})
    params, _ = params_from_state_dict(read_checkpoint(path, ema=False))
    assert_same(state_dict_from_params(params), _named(full))


@needs_torch
def test_averaged_weights_that_do_not_fit(tmp_path):
    state = golden("single")
    shadows = [v for k, v in state.items() if k != ROTARY]
    with pytest.raises(UserError, match="29 averaged tensors do not fit the 30"):
        read_checkpoint(lightning(tmp_path, state, shadows[:-1]))
    swapped = [shadows[1], shadows[0], *shadows[2:]]
    with pytest.raises(UserError, match="2 averaged tensors have another shape"):
        read_checkpoint(lightning(tmp_path, state, swapped))
    path = lightning(tmp_path, state, ema={"decay": 0.9999})
    with pytest.raises(UserError, match="lacks `shadow_params`"):
        read_checkpoint(path)


@needs_torch
def test_pickled_objects_need_trust(tmp_path):
    path = lightning(tmp_path, golden("single"), hyper_parameters=Hyperparameters())
    with pytest.raises(UserError, match="--trust_pickle"):
        read_checkpoint(path)
    params, _ = params_from_state_dict(read_checkpoint(path, trust_pickle=True))
    assert_same(state_dict_from_params(params), _named(golden("single")))


@needs_torch
def test_damaged_checkpoint(tmp_path):
    (tmp_path / "model.ckpt").write_bytes(pickle.dumps([1, 2])[:-1] + b"x")
    for trust in (False, True):
        with pytest.raises(UserError, match="model.ckpt"):
            read_checkpoint(tmp_path / "model.ckpt", trust_pickle=trust)


def convert(*flags):
    return subprocess.run(
        [sys.executable, "-m", "flm_jax.convert", *flags], capture_output=True, text=True
    )


def test_command_line_imports_and_exports(tmp_path):
    """Import, then export: the same tensors; the workdir loads as a model that samples."""
    from flm_jax.build.load import load_model
    from flm_jax.data.tokenizers.builtin import CharacterTokenizer
    from flm_jax.inference import engine

    CharacterTokenizer([chr(i) for i in range(33, 33 + 92)]).save(tmp_path / "tokenizer")
    workdir, exported = tmp_path / "run", tmp_path / "out" / "weights.safetensors"
    source = GOLDENS / "dit_double.safetensors"
    common = (f"--workdir={workdir}", f"--checkpoint={source}")
    done = convert(*common, f"--tokenizer={tmp_path / 'tokenizer'}", "--length=16")
    assert done.returncode == 0, done.stderr
    again = convert(*common)
    assert again.returncode == 2 and "holds a run already" in again.stderr
    assert len(again.stderr.strip().splitlines()) == 1
    done = convert(f"--workdir={workdir}", f"--export={exported}")
    assert done.returncode == 0, done.stderr
    want = without_head(load_file(source))
    got = load_file(exported)
    np.testing.assert_allclose(got.pop(ROTARY), want.pop(ROTARY), rtol=1e-6)
    assert_same(got, want)
    model = load_model(workdir)
    assert (model.net.two_time, model.net.max_length, model.step) == (True, 16, 0)
    given = engine.given_tokens(model, "", "", 2, 16)
    assert engine.draw(model, given, steps=2, num=3, seed=0).tokens.shape == (3, 16)
    # Parameters alike, another network.
    config = json.loads((workdir / "config.json").read_text())
    config["model"]["posterior_input"] = True
    (workdir / "config.json").write_text(json.dumps(config))
    refused = convert(f"--workdir={workdir}", f"--export={exported}")
    assert refused.returncode == 2 and "config.model.posterior_input" in refused.stderr


@pytest.mark.parametrize(
    "flags, message",
    [
        ((), "no --workdir"),
        (("--workdir=x",), "no --checkpoint to import"),
        (("--workdir=x", "--checkpoint=y.ckpt", "--source=fml"), "did you mean 'flm'"),
        (("--workdir=x", "--checkpoint=y.ckpt"), "no file y.ckpt"),
    ],
)
def test_command_line_errors(flags, message, capsys, monkeypatch):
    """In this process: a UserError, which run_cli turns into one line and status 2."""
    from absl import flags as absl_flags

    from flm_jax import convert as command

    absl_flags.FLAGS.unparse_flags()
    absl_flags.FLAGS(["convert", "--workdir=", "--checkpoint=", "--source=flm", *flags])
    with pytest.raises(UserError, match=message):
        command.main(["convert"])


def test_the_command_line_fetches_from_the_hub(tmp_path, monkeypatch):
    from absl import flags as absl_flags

    from flm_jax import convert as command
    from flm_jax.build.load import load_model
    from flm_jax.data.tokenizers.builtin import CharacterTokenizer

    hub = pytest.importorskip("huggingface_hub")
    there = tmp_path / "there"
    CharacterTokenizer([chr(i) for i in range(33, 33 + 92)]).save(there / "tokenizer")
    (there / "weights.safetensors").write_bytes((GOLDENS / "dit_double.safetensors").read_bytes())

    def download(name, revision, allow_patterns):
        assert (name, revision) == ("owner/name", None)
        assert {"*.safetensors", "*.json"} < set(allow_patterns) and "*" not in allow_patterns
        return str(there)

    monkeypatch.setattr(hub, "snapshot_download", download)

    def run(checkpoint, workdir):
        flags = f"--checkpoint={checkpoint}", f"--workdir={workdir}", "--source=flm", "--length=16"
        absl_flags.FLAGS.unparse_flags()
        absl_flags.FLAGS(["convert", *flags, f"--tokenizer={there / 'tokenizer'}", "--export="])
        command.main(["convert"])

    run("hf:owner/name", tmp_path / "run")
    assert load_model(tmp_path / "run").net.max_length == 16
    with pytest.raises(UserError, match="no file or folder owner/name; .* hf:owner/name"):
        run("owner/name", tmp_path / "other")
    (there / "more.ckpt").touch()
    with pytest.raises(UserError, match=r"hf:owner/name holds .*more\.ckpt, weights\.safetensors"):
        run("hf:owner/name", tmp_path / "other")
    for name in ("more.ckpt", "weights.safetensors"):
        (there / name).unlink()
    with pytest.raises(UserError, match=r"hf:owner/name holds no .*\.safetensors"):
        run("hf:owner/name", tmp_path / "other")
