"""A small masked diffusion model of sums of three digits, the base of xflow_small_align; CPU.

python -m flm_jax.train --config=configs/xflow_small_base.py --workdir=runs/xflow/base
"""

from configs import mlfm_small_base


def get_config(arg: str = ""):
    config = mlfm_small_base.get_config()
    config.data.task = "arithmetic"
    config.model.length = 12
    config.model.dim = 96
    config.model.depth = 3
    config.train.steps = 6000
    config.eval.sample_steps = 12
    return config
