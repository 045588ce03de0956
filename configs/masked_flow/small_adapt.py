"""The small masked diffusion model of configs/masked_flow/small_base.py adapted into a flow.

python -m flm_jax.train --config=configs/masked_flow/small_adapt.py --workdir=runs/small/adapt

It takes a tenth of the base's steps.

Hardware: two CPU cores.
"""

from configs.masked_flow import recipe, small_base


def get_config(arg: str = ""):
    """`arg` is the folder of the runs, runs/small by default."""
    config = small_base.get_config()
    recipe.adapt(config, base=f"{arg or 'runs/small'}/base")
    config.adapters.rank = 32
    config.adapters.alpha = 64.0
    config.adapters.head_rank = 8
    config.adapters.head_alpha = 8.0
    config.adapters.cond_dim = 64
    config.optim.name = "adamw"
    config.optim.lr = 2e-3
    config.optim.warmup_steps = 50
    config.train.steps = 300
    config.train.log_every = 50
    config.train.checkpoint_every = 100
    # Few steps: fewer rows are asked of a cell, and the curve moves faster.
    config.flow.law.bins = 32
    config.flow.law.least_cell = 2.0
    config.flow.law.knot_rate = 0.1
    config.eval.every = 100
    config.eval.sample_steps = 16
    return config
