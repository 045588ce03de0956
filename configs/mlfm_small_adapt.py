"""The small masked diffusion model of sums adapted into a flow; CPU.

python -m flm_jax.train --config=configs/mlfm_small_adapt.py --workdir=runs/small/adapt
"""

from configs import mlfm_small_base


def get_config(arg: str = ""):
    """`arg` is the folder of the runs, runs/small by default."""
    config = mlfm_small_base.get_config()
    config.objective.name = "masked_bridge"
    config.adapters.base = f"{arg or 'runs/small'}/base"
    config.adapters.rank = 16
    config.adapters.alpha = 32.0
    config.adapters.head_rank = 8
    config.adapters.head_alpha = 8.0
    config.adapters.cond_dim = 64
    config.optim.b2 = 0.95
    config.optim.weight_decay = 0.01
    config.train.steps = 400
    config.train.log_every = 100
    config.train.checkpoint_every = 200
    config.bridge.decay = 0.98
    config.bridge.refit_every = 100
    config.eval.every = 100
    config.eval.sample_steps = 16
    return config
