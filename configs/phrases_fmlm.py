"""FMLM on the phrase tasks, distilled from configs/phrases_flm.py.

python -m flm_jax.train --config=configs/phrases_fmlm.py --workdir=runs/phrases_fmlm \
    --config.objective.teacher=runs/phrases_flm
"""

from flm_jax.defaults import base_config

DEPTH = {"phrases2": 2, "phrases4": 4, "phrases_shared": 4}  # as in phrases_flm
STEPS = {"phrases2": 3000, "phrases4": 6000, "phrases_shared": 6000}
LR = {"phrases2": 1e-3, "phrases4": 2e-3, "phrases_shared": 2e-3}
EMA = {"phrases2": 0.99, "phrases4": 0.998, "phrases_shared": 0.998}


def get_config(arg: str = ""):
    """`arg` names the task: phrases2 (default), phrases4, phrases_shared."""
    config = base_config()
    task = arg or "phrases2"
    config.data.task = task
    config.model.length = 2
    config.model.dim = 64
    config.model.depth = DEPTH.get(task, 2)
    config.model.heads = 4
    config.model.two_time = True
    config.objective.name = "semigroup"
    config.objective.teacher = "runs/phrases_flm"
    config.optim.lr = LR.get(task, 1e-3)
    config.optim.schedule = "cosine"
    config.optim.ema_decay = EMA.get(task, 0.99)
    config.train.steps = STEPS.get(task, 3000)
    config.train.batch = 512
    config.train.log_every = 500
    config.train.checkpoint_every = 1000
    config.eval.every = 2000
    config.eval.samples = 4
    config.eval.sample_steps = 1
    return config
