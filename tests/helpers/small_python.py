"""Stands for `python` in commands of the documentation: runs them at small sizes.

The flags that make them small follow those of the page, and take their place. Every other flag, the
order of the commands and the files that pass between them are the page's own.
"""

import os
import runpy
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
TRAINING = {
    "train.steps": 2,
    "train.batch": 8,
    "train.log_every": 1,
    "train.checkpoint_every": 2,
    "eval.every": 0,
    "eval.batches": 1,
    "eval.samples": 1,
    "eval.sample_steps": 2,
}
NETWORK = {"model.dim": 32, "model.depth": 1, "model.loss_tile": 8}
# A policy learns from problems that its model solves: of the shortest sums some soon are.
SUMS = {
    "data.task": "arithmetic1",
    "model.length": 6,
    "train.steps": 100,
    "train.batch": 64,
    "optim.warmup_steps": 10,
    "objective.prompt": 0,
}
POLICY = {
    "train.steps": 1,
    "train.log_every": 1,
    "prompts": 100,
    "prompt_batch": 1,
    "group": 2,
    "reward": "exact_match",
}
# Tokenizers, and SMDM's number of heads, are known of the published sizes.
CONVERT = {
    "smdm": ["--tokenizer=bytes_tokenizer", "--heads=4"],
    "llada": ["--tokenizer=bytes_tokenizer"],
    "llada2": ["--tokenizer=letters", "--length=64"],
}
# The page's own number where that is less.
AT_MOST = {
    "num_samples": 4,
    "questions": 8,
    "problems": 4,
    "batch_size": 4,
    "limit": 1,
    "vocab_size": 256,
}
OTHERS = {
    "generate_data": ["--num=8", "--batch_size=8"],
    "train_reward": ["--steps=2", "--batch_size=8"],
    "sweep": ["--num_samples=8", "--batch_size=8", "--steps=2", "--values=1,2"],
    "bench": ["--rounds=1", "--filter=flm_train_v1024"],
}


def _value(words, flag):
    return next((w.split("=", 1)[1] for w in words if w.startswith(f"--{flag}=")), "")


def _training(words):
    config = _value(words, "config")
    sizes = dict(TRAINING)
    if "masked_flow/adapt" in config or "masked_flow/sft" in config:
        sizes |= {"model.length": 64}  # all other sizes are of the base
    else:
        sizes |= NETWORK
    if "configs/x_prediction" in config:
        sizes |= SUMS
    if "quickstart" in config:
        sizes |= {"model.length": 16}
    # Three updates in a step; the student's come after ten.
    if "dmd" in config or "/reinforce" in config:
        sizes |= {"train.batch": 12, "train.steps": 12}
    return [f"--config.{key}={value}" for key, value in sizes.items()]


def _comparison(words):
    """Small models, one step count each; of a corpus, the reader's text in few pieces."""
    path, _, arg = _value(words, "config").partition(":")
    config = runpy.run_path(str(ROOT / path))["get_config"](arg)
    flags = ["--config.samples=8", "--config.batch_size=8"]
    if "prepare" in config:
        small = {"source": "text", "path": "book.txt", "vocab_size": 256}
        flags += [f"--config.prepare.{key}={value}" for key, value in small.items()]
    for name, model in config.models.items():
        at = f"--config.models.{name}"
        flags += [f"{at}.config.{key}={value}" for key, value in (TRAINING | NETWORK).items()]
        if model.steps:
            flags.append(f"{at}.steps=(2,)")
    return flags


def smaller(module, words):
    """Flags to follow `words`, those of a command of flm_jax.`module`."""
    if module == "train":
        return _training(words)
    if module == "train_policy":
        return [f"--config.{key}={value}" for key, value in POLICY.items()]
    if module == "evaluate" and _value(words, "config"):
        return _comparison(words)
    flags = list(OTHERS.get(module, ()))
    if module == "convert":
        flags += CONVERT.get(_value(words, "source"), [])
    if module == "sample" and _value(words, "steps") in ("128", "256"):
        flags.append("--steps=8")
    if module == "run_benchmark":
        flags += ["--steps=2", "--answer_length=8", "--seconds=10"]
        # Trained above on rows of 64 tokens.
        flags += ["--length=64"] if _value(words, "workdir") == "runs/mlfm_sft" else []
    if module in ("prepare_data", "sample", "evaluate", "run_benchmark"):
        given = {flag: _value(words, flag) for flag in AT_MOST}
        flags += [f"--{flag}={min(int(n), AT_MOST[flag])}" for flag, n in given.items() if n]
    return flags


def main():
    words = sys.argv[1:]
    if words[:1] == ["-m"] and words[1].startswith("flm_jax."):
        words += smaller(words[1].removeprefix("flm_jax."), words[2:])
    os.execv(sys.executable, [sys.executable, *words])


if __name__ == "__main__":
    main()
