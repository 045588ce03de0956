"""A small masked diffusion model of Python functions, the base of xflow_functions_align; CPU.

python -m flm_jax.train --config=configs/xflow_functions_base.py --workdir=runs/functions/base
"""

from configs import xflow_small_base


def get_config(arg: str = ""):
    config = xflow_small_base.get_config()
    config.data.task = "functions"
    config.objective.prompt = 8  # tokens of a specification
    config.model.length = 24
    config.model.depth = 4
    config.train.steps = 2500
    config.train.log_every = 100
    config.train.checkpoint_every = 500
    config.eval.sample_steps = 16
    return config
