"""Saved folders: the same model again, damages named, the hub asked."""

import fnmatch
import json
import shutil

import numpy as np
import pytest
from safetensors.flax import load_file, save_file

import flm_jax
from flm_jax.build.export import save_model
from flm_jax.build.load import load_model
from flm_jax.training.trainer import train_run
from helpers.runs import three_step_config


@pytest.fixture(scope="module", params=["denoising", "autoregressive"])
def model(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("portable") / request.param
    assert train_run(three_step_config(request.param), str(folder)) == 0
    return flm_jax.load(folder)


def test_a_saved_folder_is_the_same_model(model, tmp_path):
    model.save_pretrained(tmp_path / "out")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"README.md", "config.json", "model.safetensors", "tokenizer"}
    again = flm_jax.load(tmp_path / "out")
    assert (again.step, again.kind) == (model.step, model.kind)
    before, after = (m.sample(8, steps=2, seed=2) for m in (model, again))
    np.testing.assert_array_equal(before.tokens, after.tokens)
    np.testing.assert_array_equal(before.confidence, after.confidence)
    modes = {p.stat().st_mode for p in (tmp_path / "out").glob("*.*")}
    assert len(modes) == 1, "whoever reads the configuration reads the weights"
    with pytest.raises(flm_jax.UserError, match="holds a model already"):
        model.save_pretrained(tmp_path / "out")


def test_a_saved_folder_names_no_path_of_this_machine(model, tmp_path):
    loaded = model._model
    config = json.loads(json.dumps(loaded.config))
    config["data"]["path"], config["objective"]["teacher"] = "/secret/data", "/secret/teacher"
    config["data"]["generated"] = "/secret/own"
    config["objective"]["start"] = config["train"]["start"] = "/secret/start"
    config["sampler"] |= {key: "/secret/other" for key in ("weak", "reward", "bigrams")}
    config["sampler"] |= {"guidance": 2.0, "reward_scale": 3.0}
    save_model(tmp_path / "out", loaded._replace(config=config, step=3))
    assert "secret" not in "".join(p.read_text() for p in (tmp_path / "out").glob("*.[jm]*d"))
    assert "secret" not in (tmp_path / "out/config.json").read_text()
    if config["objective"]["name"] != "denoising":
        return
    assert load_model(tmp_path / "out").step == 3
    file = tmp_path / "out/config.json"
    for key in ("weak", "reward", "bigrams"):
        saved = json.loads(file.read_text())
        saved["sampler"][key] = "/dev"
        (tmp_path / key).mkdir()
        shutil.copytree(tmp_path / "out", tmp_path / key, dirs_exist_ok=True)
        (tmp_path / key / "config.json").write_text(json.dumps(saved))
        with pytest.raises(flm_jax.UserError, match=f"sampler.{key} is '/dev'.*no other model"):
            load_model(tmp_path / key)


def test_damaged_folders_are_named(model, tmp_path):
    model.save_pretrained(tmp_path / "out")
    path = tmp_path / "out/model.safetensors"
    whole, tensors = path.read_bytes(), load_file(path)
    name = sorted(tensors)[0]
    save_file({k: v for k, v in tensors.items() if k != name}, path)
    with pytest.raises(flm_jax.UserError, match=f"differ in 1 tensors.*{name}"):
        flm_jax.load(tmp_path / "out")
    save_file(tensors | {name: tensors[name][..., :1]}, path)
    with pytest.raises(flm_jax.UserError, match=f"{name} has shape"):
        flm_jax.load(tmp_path / "out")
    path.write_bytes(whole[:100])
    with pytest.raises(flm_jax.UserError, match="is damaged .SafetensorError"):
        flm_jax.load(tmp_path / "out")


def test_the_hub_is_asked_for_its_names(model, tmp_path, monkeypatch):
    hub = pytest.importorskip("huggingface_hub")
    model.save_pretrained(tmp_path / "there")
    asked = []

    def snapshot_download(name, revision, allow_patterns):
        asked.append((name, revision))
        files = [str(p.relative_to(tmp_path / "there")) for p in (tmp_path / "there").rglob("*.*")]
        kept = [f for f in files if any(fnmatch.fnmatch(f, p) for p in allow_patterns)]
        assert sorted(kept) == sorted(files) and not fnmatch.filter(["a.py"], allow_patterns[0])
        if name != "owner/name":
            raise hub.errors.HFValidationError(f"no such model: {name}\nlong explanations")
        return str(tmp_path / "there")

    monkeypatch.setattr(hub, "snapshot_download", snapshot_download)
    assert flm_jax.load("hf:owner/name").step == model.step
    assert flm_jax.load("hf:owner/name@v1.0").step == model.step
    assert asked == [("owner/name", None), ("owner/name", "v1.0")]
    with pytest.raises(flm_jax.UserError, match="hf:a/b could not be fetched: no such model: a/b$"):
        flm_jax.load("hf:a/b")


def test_a_model_is_uploaded_as_it_was_saved(model, tmp_path, monkeypatch):
    hub = pytest.importorskip("huggingface_hub")
    calls = []
    monkeypatch.setattr(hub, "create_repo", lambda name, **more: calls.append((name, more)))
    monkeypatch.setattr(hub, "upload_folder", lambda **more: calls.append(more))
    model.push_to_hub("owner/name", folder=tmp_path / "out", private=True)
    assert calls == [
        ("owner/name", {"private": True, "exist_ok": True}),
        {"repo_id": "owner/name", "folder_path": str(tmp_path / "out")},
    ]
