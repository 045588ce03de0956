"""Pickles are read without running what they name."""

import collections
import importlib.util
import io
import os
import pickle
import tarfile
from types import SimpleNamespace

import numpy as np
import pytest

from flm_jax.core.errors import UserError
from flm_jax.interop import torch_files
from flm_jax.interop.torch_files import Named, load_torch, plain

needs_torch = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None,
    reason="torch is not installed: its own files are not read",
)


class Node:
    """As OmegaConf keeps a leaf (`_val`) or a container (`_content`)."""

    def __init__(self, **state):
        self.__dict__ |= state


class Items(list):
    """A class of its own that is filled item by item."""


class Attack:
    """Runs a command where it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def settings(**algorithm):
    leaves = {key: Node(_val=value) for key, value in algorithm.items()}
    return Node(_content={"algo": Node(_content=leaves), "steps": Node(_content=[Node(_val=1)])})


def test_unknown_objects_are_held_and_do_nothing(tmp_path):
    mark = tmp_path / "mark"
    odd = {"attack": Attack(mark), "items": Items([1, 2]), "named": collections.Counter("aab")}
    held = {"config": settings(name="fmlm", clock=None)} | odd
    file = io.BytesIO(pickle.dumps(held))
    found = torch_files._Unpickler(file).load()
    assert not mark.exists()
    assert plain(found["config"]) == {"algo": {"name": "fmlm", "clock": None}, "steps": [1]}
    assert all(isinstance(found[name], Named) for name in odd)
    assert found["items"].items == [1, 2]
    assert found["attack"].args == (f"touch {mark}",)


def test_plain_settings_stay():
    assert plain({"a": [1, (2, None)], "b": {"c": "x"}}) == {"a": [1, [2, None]], "b": {"c": "x"}}


def test_settings_without_end_are_refused():
    """A pickle says in a few bytes that a list holds one other many times, or itself."""
    shared, within = [1], []
    for _ in range(40):
        shared = [shared, shared]
    within.append(within)
    for settings in (shared, within):
        with pytest.raises(UserError, match="settings of a file are (more than|nested too deeply)"):
            plain(settings)


@needs_torch
def test_files_that_torch_would_run_or_unpack_are_refused(tmp_path):
    """TorchScript runs its code while it is loaded; of a tar archive torch opens the entries."""
    import torch

    source = """
def __getstate__(self):
    return 1
def __setstate__(self, state: int):
    torch.save(torch.ones(1), "MARK")
"""
    mark, path, pipe = (tmp_path / name for name in ("mark", "a.ckpt", "pipe.ckpt"))
    program = torch.jit.ScriptModule()
    program.define(source.replace("MARK", str(mark)))
    program.save(path)
    with pytest.raises(UserError, match="is a TorchScript program; expected tensors alone"):
        load_torch(path)
    assert not mark.exists()
    with tarfile.open(path, "w") as tar:
        entry = tarfile.TarInfo("storages")
        entry.type = tarfile.FIFOTYPE  # a reader would wait on it for ever
        tar.addfile(entry)
    with pytest.raises(UserError, match="is a tar archive"):
        load_torch(path)
    os.mkfifo(pipe)
    with pytest.raises(UserError, match="is no plain file"):
        load_torch(pipe)


@needs_torch
@pytest.mark.parametrize("zipped", [True, False])
def test_files_of_torch(tmp_path, zipped):
    import torch

    mark, path = tmp_path / "mark", tmp_path / "a.ckpt"
    tensors = {"a": torch.nn.Parameter(torch.ones(2, 3)), "b": torch.arange(3).bfloat16()}
    held = {"state_dict": collections.OrderedDict(tensors), "attack": Attack(mark)}
    torch.save(held, path, _use_new_zipfile_serialization=zipped)
    found = load_torch(path)
    np.testing.assert_array_equal(found["state_dict"]["a"].detach().numpy(), np.ones((2, 3)))
    np.testing.assert_array_equal(found["state_dict"]["b"].float().numpy(), [0, 1, 2])
    assert not mark.exists()
    torch.save([1], path)
    with pytest.raises(UserError, match="holds a list, expected a dict"):
        load_torch(path)
    path.write_bytes(pickle.dumps([1, 2])[:-1] + b"x")
    with pytest.raises(UserError, match="not a readable torch checkpoint"):
        load_torch(path)


def test_torch_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    with pytest.raises(UserError, match=r'pip install "flm-jax\[torch\]"'):
        load_torch(tmp_path / "weights.ckpt")


def test_torch_gets_the_reader(tmp_path, monkeypatch):
    """No release of torch is asked to unpickle by itself."""
    asked = {}
    stand_in = SimpleNamespace(load=lambda path, **options: asked.update(options) or {})
    monkeypatch.setitem(__import__("sys").modules, "torch", stand_in)
    (tmp_path / "weights.ckpt").write_bytes(b"")
    assert load_torch(tmp_path / "weights.ckpt") == {}
    assert asked["pickle_module"].Unpickler is torch_files._Unpickler
