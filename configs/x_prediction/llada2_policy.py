"""A policy of step sizes for LLaDA2.0-mini, aligned by configs/x_prediction/llada2_align.py.

python -m flm_jax.train_policy --config=configs/x_prediction/llada2_policy.py \
    --workdir=runs/llada2/policy

mbpp.jsonl is MBPP's file, of which the training split is asked: 8 of the problems that the model
solves by itself in a step, 8 answers to each, of 256 tokens in at most 256 calls.

Hardware: 8 accelerators of 80 GiB or more. Duration and metrics are unmeasured.
"""

from configs.x_prediction import recipe


def get_config(arg: str = ""):
    """`arg` is the folder of the runs, runs/llada2 by default."""
    config = recipe.published_policy(arg or "runs/llada2")
    config.block_length = 32
    return config
