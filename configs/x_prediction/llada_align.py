"""LLaDA-8B-Instruct aligned on answers that it wrote itself: 100 steps of all parameters.

python -m flm_jax.train --config=configs/x_prediction/llada_align.py --workdir=runs/llada/align

The model is what `convert --source=llada --length=1024` wrote to runs/llada/base, its answers what
`generate_data` wrote to runs/llada/own (docs/methods/x_prediction.md has all commands).

Hardware: 8 accelerators of 80 GiB or more. Duration and metrics are unmeasured.
"""

from configs.x_prediction import recipe


def get_config(arg: str = ""):
    """`arg` is the folder of the runs, runs/llada by default."""
    runs = arg or "runs/llada"
    config = recipe.published_align(runs)
    config.objective.teacher = f"{runs}/base"
    config.model.vocab_size = 126464
    config.model.dim = 4096
    config.model.depth = 32
    config.model.heads = 32
    config.model.kv_heads = 32
    config.model.mlp_ratio = 3
    config.model.rope_base = 500_000.0
    config.model.mask_id = 126336
    config.optim.lr = 1e-5
    config.train.steps = 100
    return config
