"""MDLM, masked diffusion (arXiv 2406.07524), on the exchanges of configs/conditional/flm.py.

python -m flm_jax.train --config=configs/conditional/mdlm.py --workdir=runs/conditional/mdlm

It takes as many steps of as many rows as the flow and one map together. Hardware: one CPU
core. Duration: 6 minutes. Expected: 74% right answers in 8 network calls (docs/results/tasks.md,
"Questions and answers").
"""

from configs.conditional import recipe
from flm_jax.config import choose


def get_config(arg: str = ""):
    """`arg` is the folder of the runs, runs/conditional by default."""
    config = recipe.recipe(arg)
    choose(config, objective="masked_diffusion")
    config.optim.lr = 5e-3
    config.train.steps = recipe.FLOW_STEPS + recipe.MAP_STEPS
    return config
