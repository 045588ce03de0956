"""Weights of SMDM and LLaDA, imported and exported; wrong ones refused."""

import json
import os
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from flm_jax.build.load import load_model
from flm_jax.core.errors import UserError
from flm_jax.data.tokenizers.builtin import CharacterTokenizer
from flm_jax.inference import engine
from flm_jax.interop.llama import read_llada, read_smdm, state_dict_from_params
from flm_jax.interop.tensors import TensorFiles
from helpers.chat_tokenizers import save
from helpers.compiling import FAST
from helpers.llama import DIM, HEADS, LENGTH, LLADA_MASK, llada, llada_folder, smdm


def test_export_gives_the_tensors_back(tmp_path):
    save_file(smdm(), tmp_path / "mdm.safetensors")
    for (params, model), want in (
        (read_smdm(tmp_path / "mdm.safetensors", HEADS), smdm()),
        (read_llada(llada_folder(tmp_path, llada())), llada()),
    ):
        back = state_dict_from_params(params, HEADS, model["kv_heads"])
        assert back.keys() == want.keys()
        for name, value in want.items():
            np.testing.assert_array_equal(back[name], value, err_msg=name)


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
    with pytest.raises(UserError, match="is no JSON .*expected an index of shards"):
        read_llada(folder)


def command(*flags):
    env = os.environ | {"XLA_FLAGS": FAST, "JAX_PLATFORMS": "cpu"}
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


def test_the_tokenizer_beside_the_weights_comes_along_with_its_template(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    pytest.importorskip("jinja2")
    words = {word: i for i, word in enumerate("a b <|endoftext|> <|eot_id|> <role>".split())}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="a"))
    backend.add_special_tokens(["<|endoftext|>", "<|eot_id|>", "<role>"])
    (tmp_path / "in").mkdir()
    source = llada_folder(tmp_path / "in", llada())
    says = {"eos_token": "<|endoftext|>", "chat_template": "{{ messages[0].role }} by its name"}
    save(source, backend, tokenizer_config=says)
    template = "<role>{% for m in messages %}{{ m.content }}<|eot_id|>{% endfor %}"
    (source / "chat_template.jinja").write_text(template)
    workdir, out = tmp_path / "run", tmp_path / "out"
    flags = ("flm_jax.convert", "--source=llada", f"--checkpoint={source}", f"--workdir={workdir}")
    done = command(*flags)
    assert done.returncode == 0, done.stderr
    assert "its tokenizer has a chat template" in done.stdout
    done = command("flm_jax.convert", f"--export={out}", f"--workdir={workdir}")
    assert done.returncode == 0, done.stderr
    for folder in (workdir, out):
        model = load_model(folder)
        given = engine.given_tokens(model, "b", "", 1, LENGTH, chat=True)
        assert given.tokens[0, :3].tolist() == [4, 1, 3] and given.mask[0].tolist()[2:4] == [1, 0]
        assert model.tokenizer.end_ids == {2, 3}


def test_hidden_files_are_no_shards(tmp_path):
    save_file({"a": np.ones(2, np.float32)}, tmp_path / "a.safetensors")
    (tmp_path / "._a.safetensors").write_bytes(b"\0\5\x16\7")
    assert TensorFiles(tmp_path).shapes == {"a": (2,)}


def test_a_stray_file_beside_the_shards_is_named(tmp_path):
    save_file(
        {"a": np.ones(2, np.float32), "b": np.ones(1, np.float32)}, tmp_path / "a.safetensors"
    )
    save_file({"a": np.zeros(2, np.float32)}, tmp_path / "zz_old.safetensors")
    with pytest.raises(UserError, match=r"a .*a\.safetensors and .*zz_old\.safetensors"):
        TensorFiles(tmp_path)
    index = {"weight_map": {"a": "a.safetensors", "b": "a.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert {name: value.sum() for name, value in TensorFiles(tmp_path).items()} == {"a": 2, "b": 1}


def test_an_index_is_kept_to(tmp_path):
    save_file({"a": np.ones(2, np.float32)}, tmp_path / "a.safetensors")
    save_file({"b": np.ones(2, np.float32)}, tmp_path / "b.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    for lost in ({"c": "a.safetensors"}, {"b": "a.safetensors"}):
        homes = {"a": "a.safetensors", "b": "b.safetensors"} | lost
        index.write_text(json.dumps({"weight_map": homes}))
        (name,) = lost
        with pytest.raises(UserError, match=rf"a\.safetensors lacks .*\({name}\).*index"):
            TensorFiles(tmp_path)
    index.write_text(json.dumps({"weight_map": {"a": ["a.safetensors"]}}))
    with pytest.raises(UserError, match="no index of safetensors shards"):
        TensorFiles(tmp_path)
