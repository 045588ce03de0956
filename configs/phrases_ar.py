"""AR (causal transformer) on two phrases of two words: exactness at the smallest scale.

python -m flm_jax.train --config=configs/phrases_ar.py --workdir=runs/phrases_ar
"""

from flm_jax.defaults import base_config

# As many blocks as the FLM of the task.
DEPTH = {"phrases2": 2, "phrases4": 4, "phrases_shared": 4}


def get_config(arg: str = ""):
    """`arg` names the task: phrases2 (default), phrases4, phrases_shared."""
    config = base_config()
    config.data.task = arg or "phrases2"
    config.model.name = "causal"
    config.model.length = 2
    config.model.dim = 64
    config.model.depth = DEPTH.get(config.data.task, 2)
    config.model.heads = 4
    config.objective.name = "autoregressive"
    config.optim.lr = 1e-3
    config.optim.schedule = "cosine"
    config.optim.ema_decay = 0.99
    config.train.steps = 500
    config.train.batch = 512
    config.train.log_every = 100
    config.train.checkpoint_every = 1000
    config.eval.every = 500
    config.eval.samples = 4
    config.eval.sample_steps = 2
    return config
