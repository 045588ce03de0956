"""The small masked diffusion model of configs/masked_flow/small_base.py adapted into a flow.

python -m flm_jax.train --config=configs/masked_flow/small_adapt.py --workdir=runs/small/adapt

Hardware: two CPU cores. Duration and metrics are unmeasured; docs/methods/masked_flow.md shows the
schedule that it learns.
"""

from configs.masked_flow import recipe, small_base


def get_config(arg: str = ""):
    """`arg` is the folder of the runs, runs/small by default."""
    config = small_base.get_config()
    recipe.adapt(config, base=f"{arg or 'runs/small'}/base")
    config.adapters.rank = 16
    config.adapters.alpha = 32.0
    config.adapters.head_rank = 8
    config.adapters.head_alpha = 8.0
    config.adapters.cond_dim = 64
    config.train.steps = 400
    config.train.log_every = 100
    config.train.checkpoint_every = 200
    config.flow.law.decay = 0.98
    config.flow.law.refit_every = 100
    config.eval.every = 100
    config.eval.sample_steps = 16
    return config
