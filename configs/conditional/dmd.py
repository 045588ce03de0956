"""Distribution matching to the guided flow of answers, from the map of configs/conditional/fmlm.py.

python -m flm_jax.train --config=configs/conditional/dmd.py --workdir=runs/conditional/dmd

Hardware: CPU. Duration and metrics are unmeasured.
"""

from configs.conditional import recipe
from flm_jax.config import choose


def get_config(arg: str = ""):
    """`arg` is the folder of the runs, runs/conditional by default, with its `flm` and `fmlm`."""
    config = recipe.flow(arg)
    config.model.two_time = True
    choose(config, objective="distribution_matching")
    config.objective.teacher = f"{arg or recipe.FOLDER}/flm"
    config.objective.start = f"{arg or recipe.FOLDER}/fmlm"
    config.objective.guidance = recipe.GUIDANCE
    config.objective.auxiliary_updates = 2
    config.objective.auxiliary_lr = 1e-3
    config.objective.auxiliary_lead = 10
    config.objective.from_noise = 0.5
    config.objective.row_weighting = "distance"
    config.optim.lr = 5e-4
    config.train.batch = 192
    config.train.steps = 200
    config.eval.sample_steps = 1
    return config
