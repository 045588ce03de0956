"""Malformed files of a workdir: one line each that names the file, never a traceback or a wait."""

import copy
import itertools
import json
import os
import sys
import types

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from flm_jax.checkpoints.config_file import write_config
from flm_jax.checkpoints.portable import read_folder
from flm_jax.checkpoints.workdir import load_ema, save_ema
from flm_jax.config.check import check
from flm_jax.config.schema import base_config
from flm_jax.config.upgrade import read_config
from flm_jax.core.errors import UserError
from flm_jax.core.files import StepLines
from flm_jax.data.tokenizers.builtin import ByteTokenizer
from flm_jax.evaluation.judges import load_judge
from flm_jax.inference.step_policy import load_step_policy
from flm_jax.inference.text_reward import load_text_reward
from flm_jax.interop import mlfm
from flm_jax.interop.flm_checkpoints import read_checkpoint
from flm_jax.interop.tensors import TensorFiles

CONFIG = check(base_config())
CONTENTS = {
    b"{": "is no JSON",
    b"": "is no JSON",
    b"\xff\xfe": "is no JSON",
    b"[" * 100_000: "nested too deeply",
    b'{"seed": ' + b"9" * 10_000 + b"}": "is no JSON",
    b'{"model": ["\\ud800", 1]}': "holds half of a character",
    b'{"model": {"\\uDFFF": 1}}': "holds half of a character",
    b"[]": "holds a JSON list",
    b"5": "holds a JSON int",
    b"{}": "config.model is None",
    b'{"seed": "\\ud83d\\ude42"}': "config.model is None",
    b'{"model": "dit", "objective": 1}': "config.model is 'dit'",
    b'{"model": {"name": ["dit"]}}': "config.model is",
    b'{"model": {"name": "dot"}, "objective": {"name": "denoising"}}': "did you mean 'dit'",
    b'{"model": {"name": "dit"}, "objective": {"name": "denoisin"}}': "config.json",
}


@pytest.mark.parametrize("content", CONTENTS, ids=lambda content: str(content[:20]))
def test_malformed_configurations_are_named(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(UserError, match="config.json") as caught:
        read_config(tmp_path)
    assert CONTENTS[content] in str(caught.value) and len(str(caught.value)) < 600


def test_each_value_of_a_configuration_is_checked_as_for_training(tmp_path):
    """What a configuration of training may not hold, one of a workdir may not either."""
    with pytest.raises(UserError, match="config.json: config.model.heads is 0; expected a number"):
        read_config(written(tmp_path, "model", "heads", 0))
    with pytest.raises(UserError, match="config.json: config.model.dim must be int, got '64'"):
        read_config(written(tmp_path, "model", "dim", "64"))
    with pytest.raises(UserError, match="config.json: unknown config.flow.clock 'wall'"):
        read_config(written(tmp_path, "flow", "clock", "wall"))
    strange = ("a", None, [1], {"b": 1}, -(10**30), 1.5, True)
    accepted = 0
    for group, value in itertools.product(CONFIG, strange):
        keys = list(CONFIG[group])[:4] if isinstance(CONFIG[group], dict) else []
        for key in (None, *keys):
            try:
                read_config(written(tmp_path, group, key, value))
                accepted += 1
            except UserError as error:
                assert "config.json" in str(error)
    assert accepted < 60


def written(folder, group, key, value):
    config = copy.deepcopy(CONFIG)
    place = config if key is None else config[group]
    place[group if key is None else key] = value
    write_config(folder, config)
    return folder


def test_pipes_and_devices_are_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(UserError, match="config.json is no plain file"):
        read_config(tmp_path)
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").symlink_to("/proc/kmsg")  # a plain file by its mode
    with pytest.raises(UserError, match="config.json is no plain file"):
        read_config(tmp_path)
    tree = {"a": np.ones(3, np.float32)}
    save_ema(tmp_path, tree, 5, {})
    assert load_ema(tmp_path, tree)[1] == 5
    ema = tmp_path / "checkpoints/5/ema"
    for name in ("_METADATA", "manifest.ocdbt"):  # names and shapes, read of damaged ones too
        content = (ema / name).read_bytes()
        (ema / name).unlink()
        os.mkfifo(ema / name)
        with pytest.raises(UserError, match="none of the checkpoints"):
            load_ema(tmp_path, tree)
        (ema / name).unlink()
        (ema / name).write_bytes(content)
    ema.rename(tmp_path / "elsewhere")
    ema.symlink_to(tmp_path / "elsewhere")
    os.mkfifo(tmp_path / "elsewhere/pipe")
    with pytest.raises(UserError, match="none of the checkpoints"):
        load_ema(tmp_path, tree)


def test_weights_are_one_plain_file_with_a_step(tmp_path):
    path, tree = tmp_path / "model.safetensors", {"a": np.ones(3, np.float32)}
    like = jax.eval_shape(lambda: tree)
    os.mkfifo(path)
    with pytest.raises(UserError, match="model.safetensors is no plain file"):
        read_folder(tmp_path, like, ())
    with pytest.raises(UserError, match="a.safetensors is no plain file"):
        TensorFiles((tmp_path / "a.safetensors").symlink_to("/dev/zero") or tmp_path)
    (tmp_path / "a.safetensors").unlink()
    path.unlink()
    for step in ("abc", "", "9" * 5000):
        save_file(tree, path, {"step": step})
        with pytest.raises(UserError, match="model.safetensors is damaged"):
            read_folder(tmp_path, like, ())
    index = tmp_path / "model.safetensors.index.json"
    for name in ("../b.safetensors", "/dev/zero", "", "b/../a", 5, "b" * 300, "b\0"):
        index.write_text(json.dumps({"weight_map": {"a": name}}))
        with pytest.raises(UserError, match="index.json (names|is no index)|lacks 1 of 1 shards"):
            TensorFiles(tmp_path)
    index.unlink()
    for kind, shape, size in (("F8_E4M3", [4], 4), ("F4", [4], 2), ("F32", [0, 1 << 62], 0)):
        head = {"a": {"dtype": kind, "shape": shape, "data_offsets": [0, size]}}
        said = json.dumps(head).encode()
        path.write_bytes(len(said).to_bytes(8, "little") + said + bytes(size))
        try:
            list(TensorFiles(tmp_path).items())
        except UserError as error:  # another NumPy may have them
            assert "a of" in str(error) and "model.safetensors is damaged" in str(error)


def test_helpers_of_a_model_are_read_alike(tmp_path):
    """Policies, rewards, judges and logs of steps."""
    path = tmp_path / "config.json"
    for content, words in ((b"{", "no JSON"), (b'{"policy": 5}', "must hold keys")):
        path.write_bytes(content)
        with pytest.raises(UserError, match=words):
            load_step_policy(str(tmp_path))
    for policy, words in (({"hidden": 0}, "hidden is 0"), ({"hiden": 1}, "did you mean 'hidden'")):
        path.write_text(json.dumps({"policy": policy}))
        with pytest.raises(UserError, match=f"policy={tmp_path}: .*{words}"):
            load_step_policy(str(tmp_path))
    tokenizer, reward = ByteTokenizer(), tmp_path / "reward.json"
    sizes = {"vocab_size": 260, "length": 4}
    good = {"pattern": "a", "sizes": sizes, "tokenizer": tokenizer.fingerprint}
    (tmp_path / "weights.npz").write_bytes(b"garbage")
    for settings, words in (
        ([], "holds a JSON list"),
        ({}, "lacks the pattern"),
        (good | {"tokenizer": 1}, "another tokenizer"),
        (good | {"sizes": {"size": 1}}, "is damaged"),
        (good, "is damaged"),
    ):
        reward.write_text(json.dumps(settings))
        with pytest.raises(UserError, match=words):
            load_text_reward(str(tmp_path), tokenizer)
    path.write_text('{"model_type": "gpt2", "n_layer": "a"}')
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="lacks vocab_size"):
        load_judge(str(tmp_path))
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n5\n{"step": "a"}\n[]\n{}\n{"step": 2}\n')
    StepLines(tmp_path / "metrics.jsonl", 2)
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1}\n{"step": 2}\n'


@pytest.mark.parametrize("held", [5, {"state_dict": 5}, {"model": 5}, {"model": {"a": 5}}, [], ""])
def test_checkpoints_of_torch_that_hold_other_things(tmp_path, monkeypatch, held):
    """As torch gives them; it stands here for whatever is installed."""
    path = tmp_path / "a.ckpt"
    path.write_bytes(b"a")
    stand_in = types.SimpleNamespace(load=lambda *args, **options: held)
    monkeypatch.setitem(sys.modules, "torch", stand_in)
    for read in (read_checkpoint, mlfm.read):
        with pytest.raises(UserError, match="a.ckpt|checkpoint with the keys|tensors"):
            read(path)

    def fails(*args, **options):
        raise KeyError("storages")

    monkeypatch.setattr(stand_in, "load", fails)
    with pytest.raises(UserError, match="a.ckpt is not a readable torch checkpoint"):
        read_checkpoint(path)
