"""SDTT of the tales (arXiv 2410.21035): masked diffusion that is distilled to need fewer calls.

python -m flm_jax.train --config=configs/tales/sdtt.py:runs/tales --workdir=runs/tales/sdtt

Its teacher is the MDLM of configs/tales/mdlm.py. Five rounds, from steps of 1/32 of the time to
steps of 1/2. Hardware: as for the flow. At this size it is unmeasured; docs/results/tales.md,
"A map beside rivals", has a smaller one.
"""

from configs.comparisons.recipe import distilled
from configs.tales.recipe import recipe


def get_config(arg: str = ""):
    """`arg` is the folder of the runs, runs/tales by default."""
    config = recipe(arg)
    config.train.steps = 10_000
    distilled(config, "through_time").objective.teacher = f"{arg or 'runs/tales'}/mdlm"
    return config
