"""Reading and writing the weights of the PyTorch FLM networks."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from flm_jax.core.errors import UserError
from flm_jax.interop.flm import params_from_state_dict, state_dict_from_params
from flm_jax.models.dit import DiTConfig, dit

GOLDENS = Path(__file__).parents[1] / "goldens"
ROTARY = "rotary_emb.inv_freq"
HEAD = "learnable_loss_weighting."


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


def test_half_precision_files(tmp_path):
    state = {k: v.astype(np.float16) for k, v in golden("single").items()}
    save_file(state, tmp_path / "half.safetensors")
    params, _ = params_from_state_dict(load_file(tmp_path / "half.safetensors"))
    np.testing.assert_array_equal(
        params["table"], state["vocab_embed.embedding"].astype(np.float32)
    )
    assert all(x.dtype == np.float32 for x in jax.tree.leaves(params))


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
    assert (
        "does not say its release: it is read as --source=flm; others are flm_2026_02"
        in done.stdout
    )
    assert "warning: of a trained flow that is near 1" in done.stdout  # random weights
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
