"""The recipe that the configurations of the phrase tasks share: task, sizes, optimizer.

A task is a set of two-word phrases with known probabilities. `phrases2` has "new york" and "san
diego"; `phrases4` and `phrases_shared` have four phrases, which in `phrases_shared` have only two
first words.
"""

from flm_jax.config import base_config

# With more phrases one network call must resolve more boundaries between them in noise, which takes
# more blocks. The FLM is as deep as its FMLM, which starts from the FLM's weights.
DEPTH = {"phrases2": 2, "phrases4": 4, "phrases_shared": 4}


def recipe(task: str):
    """`task` names the task: phrases2, phrases4 or phrases_shared."""
    config = base_config()
    config.data.task = task
    config.model.length = 2
    config.model.dim = 64
    config.model.depth = DEPTH.get(task, 2)
    config.model.heads = 4
    config.optim.lr = 1e-3
    config.optim.schedule = "cosine"
    config.optim.ema_decay = 0.99
    config.train.batch = 512
    config.train.checkpoint_every = 1000
    config.eval.samples = 4
    return config


def baseline(task: str):
    """As `recipe`, with the length of training that MDLM and the autoregressive model share."""
    config = recipe(task)
    config.train.steps = 500
    config.train.log_every = 100
    config.eval.every = 500
    config.eval.sample_steps = 2
    return config
