"""The flow map of the flow of configs/conditional/flm.py, which answers in one call or a few.

python -m flm_jax.train --config=configs/conditional/fmlm.py --workdir=runs/conditional/fmlm

With --config.objective.guidance=2 the teacher is guided, so that the map has guidance folded in.
Hardware: one CPU core. Duration: 5 to 8 minutes. Expected: 29% right answers in one network call,
32% with guidance (docs/results/tasks.md, "Questions and answers").
"""

from configs.conditional import recipe
from flm_jax.config import choose


def get_config(arg: str = ""):
    """`arg` is the folder of the runs, runs/conditional by default; the teacher is its `flm`."""
    config = recipe.flow(arg)
    config.model.two_time = True
    choose(config, objective="semigroup")
    config.objective.teacher = f"{arg or recipe.FOLDER}/flm"
    config.optim.lr = 2e-3
    config.train.steps = recipe.MAP_STEPS
    config.eval.sample_steps = 1
    return config
