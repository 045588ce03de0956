"""A small masked diffusion model of sums of three digits, the base of xflow_small_align; CPU.

python -m flm_jax.train --config=configs/xflow_small_base.py --workdir=runs/xflow/base
"""

from flm_jax.defaults import base_config


def get_config(arg: str = ""):
    config = base_config()
    config.objective.name = "masked"
    config.model.name = "llama"
    config.data.task = "arithmetic"
    config.model.length = 12
    config.model.dim = 96
    config.model.depth = 3
    config.model.heads = 4
    config.model.mlp_ratio = 3
    config.model.attention_softcap = 0.0
    config.model.logit_softcap = 0.0
    config.optim.lr = 2e-3
    config.optim.warmup_steps = 200
    config.optim.schedule = "cosine"
    config.optim.ema_decay = 0.99
    config.train.steps = 6000
    config.train.batch = 128
    config.train.log_every = 200
    config.train.checkpoint_every = 1000
    config.eval.every = 0
    config.eval.sample_steps = 12
    return config
