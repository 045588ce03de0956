"""The recipe that the configurations of the quickstart share: data, sizes, optimizer, steps.

The corpus is the documentation of the running Python; configs/quickstart/flm.py says how to prepare
it. The sizes are chosen for two CPU cores. docs/results/recipe.md compares the optimizer, its rate,
posterior input and clean context with other choices.
"""

from flm_jax.config import base_config


def recipe(folder: str):
    """`folder` is the folder of the quickstart; the prepared data lie in its folder `data`."""
    config = base_config()
    config.data.path = f"{folder}/data"
    config.data.packing = "stream"
    config.model.length = 64
    config.model.dim = 256
    config.model.depth = 3
    config.model.heads = 4
    config.model.loss_tile = 16
    config.optim.name = "muon"
    config.optim.lr = 3e-3
    config.optim.warmup_steps = 50
    config.optim.schedule = "cosine"
    config.optim.ema_decay = 0.99
    config.train.steps = 500
    config.train.batch = 32
    config.train.log_every = 50
    config.train.checkpoint_every = 50
    config.eval.every = 250
    config.eval.sample_steps = 32
    # So few steps learn words better than their order: tokens of a call are chosen together.
    config.sampler.bigram = 1.0
    return config


def flow(folder: str):
    """The same with posterior input and clean context, which flows and flow maps have."""
    config = recipe(folder)
    config.model.posterior_input = True
    config.objective.context = 0.5
    return config
