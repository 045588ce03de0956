"""A small masked diffusion model of Python functions, to be aligned and decoded as a flow.

python -m flm_jax.train --config=configs/x_prediction/functions_base.py \
    --workdir=runs/functions/base

Hardware: one CPU core. Duration: 29 minutes beside other work. Expected: programs of low-confidence
mask prediction pass their unit tests for 98.1% of the problems in 16 network calls, and for 40.2%
in 4 (docs/methods/x_prediction.md, "Small Python functions, on one CPU core").
"""

from configs.x_prediction import recipe


def get_config(arg: str = ""):
    """`arg` is ignored."""
    config = recipe.base()
    config.data.task = "functions"
    config.objective.prompt = 8  # tokens of a specification
    config.model.length = 24
    config.model.depth = 4
    config.train.steps = 2500
    config.train.log_every = 100
    config.train.checkpoint_every = 500
    config.eval.sample_steps = 16
    return config
