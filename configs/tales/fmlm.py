"""FMLM of the tales: the flow of configs/tales/flm.py distilled by the semigroup route.

python -m flm_jax.train --config=configs/tales/fmlm.py:runs/tales --workdir=runs/tales/fmlm

The data are prepared by launch/tales.sh. Hardware: as for the flow. Duration and metrics: 600 steps
in 79 s on an H200 beside masked diffusion, 54 ms each; judge perplexity 2286 in one call
(docs/results/tales.md).
"""

from configs.tales.recipe import flow
from flm_jax.config import choose


def get_config(arg: str = ""):
    """`arg` is the folder of the runs, runs/tales by default; the teacher lies in its `flm`."""
    config = flow(arg)
    config.model.two_time = True
    choose(config, objective="semigroup")
    config.objective.teacher = f"{arg or 'runs/tales'}/flm"
    config.optim.lr = 2e-3
    config.train.steps = 4000
    config.sampler.gamma = 0.5
    config.eval.sample_steps = 1
    return config
