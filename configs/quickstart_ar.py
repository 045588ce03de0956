"""AR (causal transformer), at the sizes and tokens of quickstart_flm, two CPU cores.

python -m flm_jax.train --config=configs/quickstart_ar.py --workdir=runs/quickstart/ar
"""

from flm_jax.defaults import base_config


def get_config(arg: str = ""):
    """`arg` is the folder of the quickstart, runs/quickstart by default."""
    config = base_config()
    config.data.path = f"{arg or 'runs/quickstart'}/data"
    config.data.packing = "stream"
    config.model.name = "causal"
    config.model.length = 64
    config.model.dim = 256
    config.model.depth = 3
    config.model.loss_tile = 16
    config.model.heads = 4
    config.objective.name = "autoregressive"
    config.optim.lr = 1e-3
    config.optim.warmup_steps = 50
    config.optim.schedule = "cosine"
    config.optim.ema_decay = 0.99
    config.train.steps = 1000
    config.train.batch = 32
    config.train.log_every = 50
    config.train.checkpoint_every = 50
    config.eval.every = 500
    config.eval.sample_steps = 64
    return config
