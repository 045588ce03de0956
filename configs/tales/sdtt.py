"""SDTT of the tales (arXiv 2410.21035): masked diffusion that is distilled to need fewer calls.

python -m flm_jax.train --config=configs/tales/sdtt.py:runs/tales --workdir=runs/tales/sdtt

Its teacher is the MDLM of configs/tales/mdlm.py. Five rounds, from steps of 1/32 of the time to
steps of 1/2. Hardware: as for the flow. At this size it is unmeasured; docs/results/tales.md,
"A map beside rivals", has a smaller one.
"""

from configs.tales.recipe import recipe
from flm_jax.config import choose


def get_config(arg: str = ""):
    """`arg` is the folder of the runs, runs/tales by default."""
    config = recipe(arg)
    choose(config, objective="through_time")
    config.objective.teacher = f"{arg or 'runs/tales'}/mdlm"
    config.objective.first_span = 1 / 32
    config.objective.round_steps = 2000
    config.optim.lr = 1e-3
    config.train.steps = 10_000
    return config
