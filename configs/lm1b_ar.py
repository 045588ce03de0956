"""AR (causal transformer) on LM1B, 128 tokens; sizes and data of configs/lm1b_flm.py.

python -m flm_jax.train --config=configs/lm1b_ar.py --workdir=runs/lm1b_ar

Hardware and preparation of the data as there. Unmeasured here.
"""

from flm_jax.defaults import base_config


def get_config(arg: str = ""):
    """`arg` is the prepared folder, data/lm1b by default."""
    config = base_config()
    config.data.path = arg or "data/lm1b"
    config.data.packing = "wrap"
    config.data.prefetch = 16
    config.model.name = "causal"
    config.model.length = 128
    config.model.dim = 768
    config.model.depth = 12
    config.model.heads = 12
    config.model.dropout = 0.1
    config.model.dtype = "bfloat16"
    config.model.scan_blocks = True
    config.model.loss_tile = 32
    config.objective.name = "autoregressive"
    config.optim.lr = 3e-4
    config.optim.warmup_steps = 2500
    config.train.steps = 1_000_000
    config.train.batch = 512
    config.train.log_every = 100
    config.train.checkpoint_every = 5000
    config.eval.every = 10_000
    config.eval.sample_steps = 128
    return config
