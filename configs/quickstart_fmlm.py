"""FMLM distilled from configs/quickstart_flm.py, for two CPU cores: step 3 of quickstart.sh.

python -m flm_jax.train --config=configs/quickstart_fmlm.py --workdir=runs/quickstart/fmlm
"""

from flm_jax.defaults import base_config


def get_config(arg: str = ""):
    """`arg` is the folder of the quickstart, runs/quickstart by default."""
    config = base_config()
    folder = arg or "runs/quickstart"
    config.data.path = f"{folder}/data"
    config.data.packing = "stream"
    config.model.length = 64
    config.model.dim = 256
    config.model.depth = 3
    config.model.loss_tile = 16
    config.model.heads = 4
    config.model.two_time = True
    config.objective.name = "semigroup"
    config.objective.teacher = f"{folder}/flm"
    config.optim.lr = 1e-3
    config.optim.warmup_steps = 50
    config.optim.schedule = "cosine"
    config.optim.ema_decay = 0.99
    config.train.steps = 500
    config.train.batch = 32
    config.train.log_every = 50
    config.train.checkpoint_every = 50
    config.eval.every = 250
    config.eval.sample_steps = 1
    return config
