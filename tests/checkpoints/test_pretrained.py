"""Models that come with the library, by their names."""

import shutil

import numpy as np

import flm_jax
from flm_jax.checkpoints.portable import PRETRAINED, located
from flm_jax.evaluation.wording import Wording


def test_the_name_of_a_shipped_model_stands_for_its_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert str(located("tales")) == str(PRETRAINED / "tales")
    # What is no bare name, or no model, is a path.
    for other in ("./tales", "runs/tales", str(tmp_path / "tales"), "tale", ".", ""):
        assert not str(located(other)).startswith(str(PRETRAINED))


def test_a_local_folder_of_that_name_wins(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(PRETRAINED / "tales", tmp_path / "tales")
    assert str(located("tales")) == "tales"
    assert flm_jax.load("tales").kind == "flow map"


def test_the_tales_are_written_in_one_call_and_in_words():
    model = flm_jax.load("tales")
    written = model.sample(16, steps=1, prompt="Once upon a time", seed=0)
    assert all(text.startswith("Once upon a time") for text in written.texts)
    assert written.calls == 1 and len(np.unique(written.tokens, axis=0)) == 16
    words = Wording(str(PRETRAINED / "tales/words.txt"))
    assert words.figures(written.texts)["known_words"] >= 0.9


def test_it_is_small_and_says_what_it_is():
    files = {path.name: path.stat().length for path in (PRETRAINED / "tales").iterdir()}
    assert {"README.md", "config.json", "model.safetensors", "tokenizer", "words.txt"} <= set(files)
    assert files["model.safetensors"] < 15e6
    assert files["bigrams.safetensors"] + files["trigrams.safetensors"] < 7e6
