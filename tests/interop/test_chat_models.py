"""Folders of LLaDA and LLaDA2.0 as they are published, from convert to answers and a score."""

import json
import os
import subprocess
import sys

import pytest

from flm_jax.data.tokenizers.registry import load_tokenizer
from helpers import chat_tokenizers
from helpers.benchmarks import mbpp_problem
from helpers.compiling import FAST
from helpers.files import json_lines
from helpers.llada2 import llada2_folder, llada2_weights
from helpers.llama import llada, llada_folder

pytest.importorskip("tokenizers")
pytest.importorskip("jinja2")
VOCAB, LENGTH = 448, 512  # the table of embeddings is padded to a round number


def published_llada(folder):
    """Weights, index, config.json and the files of the tokenizer."""
    chat_tokenizers.llada(folder)
    mask = number_of(folder, "<|mdm_mask|>")
    says = {"max_sequence_length": LENGTH, "mask_token_id": mask, "vocab_size": VOCAB}
    return llada_folder(folder, llada(vocab=VOCAB), **says)


def published_llada2(folder):
    chat_tokenizers.llada2(folder)
    own = (folder / "tokenizer.json").read_bytes()
    says = {"max_position_embeddings": LENGTH, "vocab_size": VOCAB}
    llada2_folder(folder, llada2_weights(vocab=VOCAB), **says)
    (folder / "tokenizer.json").write_bytes(own)
    return folder


def number_of(folder, token):
    added = json.loads((folder / "tokenizer.json").read_text())["added_tokens"]
    return next(one["id"] for one in added if one["content"] == token)


FOLDERS = {"llada": published_llada, "llada2": published_llada2}


def command(name, **flags):
    env = os.environ | {"XLA_FLAGS": FAST, "JAX_PLATFORMS": "cpu"}
    line = [sys.executable, "-m", f"flm_jax.{name}", *(f"--{k}={v}" for k, v in flags.items())]
    done = subprocess.run(line, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("source", FOLDERS)
def test_from_published_files_to_answers_and_a_score(tmp_path, source):
    folder, workdir = tmp_path / "published", tmp_path / "run"
    FOLDERS[source](folder)
    said = command("convert", source=source, checkpoint=folder, workdir=workdir, length=LENGTH)
    assert "its tokenizer has a chat template" in said
    how = {"workdir": workdir, "steps": "1/4", "sampler": "confidence", "temperature": 0}
    how |= {"answer_length": 32, "batch_size": 2, "chat": True}
    asked = ["Say <|eot_id|>.", "Why?"]
    path = json_lines(tmp_path / "q.jsonl", *({"prompt": one} for one in asked))
    command("sample", **how, prompts=path, out=tmp_path / "a.jsonl")
    tokenizer = load_tokenizer(workdir / "tokenizer")
    lines = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    for question, line in zip(asked, lines, strict=True):
        head = tokenizer.decode(tokenizer.encode_turns([question]))
        assert line["prompt"] == question and question in head
        assert line["text"] == head + line["answer"]
        assert line["steps"] == "1/4" and line["calls"] == 8
    problems = json_lines(tmp_path / "mbpp.jsonl", *(mbpp_problem(n) for n in (11, 12)))
    command("run_benchmark", **how, task="mbpp", data=problems, out=tmp_path / "out")
    records = (tmp_path / "out" / "records.jsonl").read_text().splitlines()
    assert len(records) == 2 and not any(json.loads(r).get("too_long") for r in records)
    assert json.loads((tmp_path / "out" / "settings.json").read_text())["steps"] == "1/4"
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["pass@1"] == 0.0 and summary["calls"] == 8
