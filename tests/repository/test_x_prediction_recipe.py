"""The recipe of x-prediction, by the page's own commands, on small folders of the published form.

Random weights under the published names, in shards with an index, tokenizers with the published
special tokens and templates. They write ends of text alone: the empty program, which passes the
tests of the problems here.
"""

import gzip
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from flm_jax.core.reading import read_object
from flm_jax.data.self_generated import open_generated
from flm_jax.data.tokenizers.huggingface import HuggingFaceTokenizer
from flm_jax.inference.step_policy import load_step_policy
from helpers import chat_tokenizers, llada2, llama
from helpers.benchmarks import HUMANEVAL, mbpp_problem
from helpers.compiling import FAST
from helpers.files import json_lines, write_shards

pytest.importorskip("tokenizers")
pytest.importorskip("jinja2")
ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/methods/x_prediction.md").read_text()
LENGTH, ANSWER = 256, 16
SMALL = {
    "convert": [f"--length={LENGTH}"],
    "generate_data": ["--num=4", "--batch_size=2", f"--answer_length={ANSWER}"],
    "train": [
        f"--config.model.length={LENGTH}",
        *("--config.train.steps=2", "--config.train.batch=2", "--config.train.checkpoint_every=2"),
        *("--config.train.log_every=1", "--config.eval.batches=1", "--config.eval.sample_steps=1"),
    ],
    "train_policy": [
        *("--config.train.steps=1", "--config.train.log_every=1", "--config.prompt_batch=1"),
        *("--config.group=2", "--config.prompts=2", f"--config.answer_length={ANSWER}"),
        *(f"--config.calls=({ANSWER},)", "--config.seconds=10"),
    ],
    "run_benchmark": [f"--answer_length={ANSWER}", "--limit=1", "--batch_size=2", "--seconds=10"],
}
# Of LLaDA's alignment, whose configuration says the sizes of its base; LoRA takes them from it.
LLADA = {"vocab_size": 400, "dim": 32, "depth": 3, "heads": 4, "kv_heads": 4, "mlp_ratio": 2}


def block(model):
    """The page's commands for a model."""
    (found,) = re.findall(rf"^```bash\n(# needs {re.escape(model)},.*?)^```", PAGE, re.S | re.M)
    return found


def ending(state, table, head, eos):
    """Weights of a model that finds an end of text the most probable everywhere, not surely.

    It reads off a feature that all embeddings share, and blocks change little.
    """
    for name in state.keys() - {head}:
        if name.endswith(("dense.weight", "down_proj.weight", "attn_out.weight", "ff_out.weight")):
            state[name] *= 0.1
    state[table][:, 0] += 10.0
    state[head][:, 0] = 0.0
    state[head][eos] = 0.0
    state[head][eos, 0] = 1.3
    return {name: value.astype(ml_dtypes.bfloat16) for name, value in state.items()}


def llada_folder(folder):
    chat_tokenizers.llada(folder)
    ids = HuggingFaceTokenizer.load(str(folder))._backend.token_to_id
    names = [f"model.transformer.{name}.weight" for name in ("wte", "ff_out")]
    state = ending(llama.llada(vocab=400), *names, ids("<|endoftext|>"))
    return llama.llada_folder(
        folder, state, mask_token_id=ids("<|mdm_mask|>"), max_sequence_length=512
    )


def llada2_folder(folder):
    chat_tokenizers.llada2(folder)
    ids = HuggingFaceTokenizer.load(str(folder))._backend.token_to_id
    weights = {name: value.copy() for name, value in llada2.llada2_weights(400).items()}
    names = ("model.word_embeddings.weight", "lm_head.weight")
    write_shards(folder, ending(weights, *names, ids("<|endoftext|>")), 3)
    says = llada2.SAYS | {"vocab_size": 400, "max_position_embeddings": 512}
    (folder / "config.json").write_text(json.dumps(says))


def followed(commands, folder, small):
    """Runs commands of a shell in a folder, `python` being forked_python.py."""
    stand_in, line = ROOT / "tests/helpers/forked_python.py", folder / "line"
    (folder / "configs").symlink_to(ROOT / "configs")
    (folder / "flags.json").write_text(json.dumps(small))
    (folder / "bin").mkdir()
    python = folder / "bin/python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -S -E {stand_in} {line} "$@"\n')
    python.chmod(0o755)
    env = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": FAST, "JAX_PLATFORMS": "cpu"}
    serving = [sys.executable, str(stand_in), str(line), str(folder / "flags.json")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(serving, env=env, cwd=folder, **pipes) as server:
        assert server.stdout.readline() == "ready\n"
        path = {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}"}
        shell = ["bash", "-euo", "pipefail", "-c", commands]
        done = subprocess.run(
            shell, cwd=folder, env=env | path, capture_output=True, text=True, timeout=600
        )
        server.stdin.close()
    assert done.returncode == 0, f"{done.stdout[-6000:]}\n{done.stderr[-2000:]}"
    return done.stdout


def problems(folder):
    """Prompts and the benchmarks' files; of MBPP one problem of each split, which all pass."""
    turns = [{"role": "user", "content": "Add."}, {"role": "assistant", "content": "No."}]
    json_lines(folder / "tulu3_code.jsonl", *[{"messages": turns}] * 3)
    easy = {"test_list": ["assert True"], "code": "x = 1"}
    json_lines(folder / "mbpp.jsonl", *(mbpp_problem(n) | easy for n in (2, 3, 4, 11, 601, 602)))
    with gzip.open(folder / "HumanEval.jsonl.gz", "wt") as file:
        file.write(json.dumps(HUMANEVAL) + "\n")


@pytest.mark.parametrize(
    "name, checkpoint, make, sizes",
    [
        ("llada", "LLaDA-8B-Instruct", llada_folder, LLADA),
        pytest.param("llada2", "LLaDA2.0-mini", llada2_folder, {}, marks=pytest.mark.slow),
    ],
)
def test_the_recipe_runs_from_prompt_to_score(name, checkpoint, make, sizes, tmp_path):
    problems(tmp_path)
    (tmp_path / checkpoint).mkdir()
    make(tmp_path / checkpoint)
    own = [f"--config.model.{key}={value}" for key, value in sizes.items()]
    if sizes:
        mask = read_object(tmp_path / checkpoint / "config.json", "sizes")["mask_token_id"]
        own.append(f"--config.model.mask_id={mask}")
    output = followed(block(checkpoint), tmp_path, SMALL | {"train": SMALL["train"] + own})
    runs = tmp_path / "runs" / name
    assert "2 of 2 problems are solved in full" in output
    # Answers are whole canvases of ends of text, and all of it counts.
    train, valid, tokenizer = open_generated(str(runs / "own"), LENGTH)
    row = train[0]
    free = row["mask"] & ~row["prompt"]
    assert free.sum() == ANSWER and set(row["tokens"][free]) == {tokenizer.eos_id}
    assert (row["visible"] == row["mask"]).all() and len(train) + len(valid) == 4
    config = read_object(runs / "align" / "config.json", "configuration")
    assert config["model"]["param_dtype"] == ("float32" if sizes else "bfloat16")
    assert bool(config["adapters"]["base"]) != bool(sizes)
    lines = [json.loads(line) for line in (runs / "align" / "metrics.jsonl").open()]
    figures = {key for line in lines for key in line}
    assert "eval/base_masked_nll_nats_per_token" in figures
    policy = load_step_policy(str(runs / "policy"))
    assert policy.cfg.layers == 2 and np.any(policy.params["out"]["bias"])
    # Both budgets, by their calls; MBPP's problem is passed by the empty program.
    for budget, calls in (("1/4", ANSWER // 4), ("1/1", ANSWER)):
        said = [
            read_object(runs / f"{task}_{budget}" / "summary.json", "figures")
            for task in ("humaneval", "mbpp")
        ]
        assert said[1]["pass@1"] == 1.0 and said[0]["problems"] == said[1]["problems"] == 1
        assert all(1 <= one["calls"] <= calls for one in said)
