"""FMLM on the phrase tasks, distilled from configs/phrases_flm.py.

python -m flm_jax.train --config=configs/phrases_fmlm.py --workdir=runs/phrases_fmlm \
    --config.objective.teacher=runs/phrases_flm
"""

from flm_jax.defaults import base_config


def get_config(arg: str = ""):
    """`arg` names the task: phrases2 (default), phrases4, phrases_shared."""
    config = base_config()
    config.data.task = arg or "phrases2"
    config.model.length = 2
    config.model.dim = 64
    config.model.depth = 2
    config.model.heads = 4
    config.model.two_time = True
    config.objective.name = "semigroup"
    config.objective.teacher = "runs/phrases_flm"
    config.optim.lr = 1e-3
    config.optim.schedule = "cosine"
    config.optim.ema_decay = 0.99
    config.train.steps = 3000
    config.train.batch = 512
    config.train.log_every = 500
    config.train.checkpoint_every = 1000
    config.eval.every = 1000
    config.eval.samples = 4
    config.eval.sample_steps = 1
    return config
