"""A small masked diffusion model of sums of three digits, to be aligned and decoded as a flow.

python -m flm_jax.train --config=configs/x_prediction/sums_base.py --workdir=runs/xflow/base

Hardware: two CPU cores. Duration: 11 minutes. Expected: low-confidence mask prediction solves 91.0%
of the problems "a+b=" in 1 network call, 97.5% in 2 and all in 4 (docs/methods/x_prediction.md, "A
small run, on two CPU cores").
"""

from configs.x_prediction import recipe


def get_config(arg: str = ""):
    """`arg` is ignored."""
    config = recipe.base()
    config.data.task = "arithmetic"
    config.model.length = 12
    config.model.depth = 3
    config.train.steps = 6000
    config.eval.sample_steps = 12
    return config
